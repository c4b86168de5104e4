"""The demonstration: its command, and its documents as an acceptance test of the whole embedded path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lince_rag
from lince_rag import Answer, ChatLince, Index, create_rag_chain
from lince_rag.cli.demo import load_questions

DOCUMENTS = Path(lince_rag.__file__).parent / "cli" / "demo_documents"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    with Index.open(tmp_path_factory.mktemp("demo")) as index:
        report = index.ingest(DOCUMENTS)
        assert not report.failed
        chain = create_rag_chain(ChatLince(), index.as_retriever())
        answers = {}
        for question in load_questions() + load_questions("extra"):
            answer = chain.invoke(question["text"])
            for citation in answer.citations:
                assert index.text(citation.source)[citation.start : citation.end] == citation.quote
            answers[question["text"]] = answer
        return answers


def right(question: dict[str, object], answer: Answer) -> bool:
    if not question["answerable"]:
        return answer.abstained
    cited = {Path(citation.source).name for citation in answer.citations}
    return str(question["expected"]) in answer.text and question["source"] in cited


def test_documents_are_varied() -> None:
    suffixes = [path.suffix for path in DOCUMENTS.iterdir()]
    assert len(suffixes) >= 12
    assert set(suffixes) == {".txt", ".md", ".html", ".pdf", ".docx"}


@pytest.mark.parametrize("question", load_questions(), ids=lambda question: question["text"])
def test_the_six_questions(question: dict[str, object], answers: dict[str, Answer]) -> None:
    answer = answers[str(question["text"])]
    assert right(question, answer), answer.text
    assert answer.language == question["language"]
    assert len(load_questions()) == 6


def test_the_further_questions(answers: dict[str, Answer]) -> None:
    """Wordings that the engine was not tuned on; what it misses is printed."""
    wrong = [q for q in load_questions("extra") if not right(q, answers[q["text"]])]
    for question in wrong:
        print("missed:", question["text"], "→", answers[question["text"]].text)
    assert len(wrong) <= 4


@pytest.mark.parametrize(
    ("locale", "said"), [("es_ES.UTF-8", "Tus propios documentos"), ("pt_BR.UTF-8", "Seus próprios")]
)
def test_command(locale: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lince_rag.cli.app", "demo"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    for question in load_questions():
        assert question["text"] in done.stdout
        assert question.get("source", "") in done.stdout
    assert not list(tmp_path.iterdir())
