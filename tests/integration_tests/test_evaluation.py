"""Questions asked of a real index: what is measured, kept, compared and reported."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from lxml import html
from pydantic import Field

from lince_rag import Answer, ChatLince, Citation, Index, create_rag_chain
from lince_rag.documents.chunking import ChunkingSettings
from lince_rag.errors import (
    ConfigurationError,
    EmbeddingsMismatchError,
    EvaluationError,
    LinceError,
    MissingExtraError,
    installation,
)
from lince_rag.evaluation import Evaluation, Question, evaluate, load_questions
from lince_rag.evaluation.gold import GoldMap
from lince_rag.evaluation.questions import draft_questions
from lince_rag.evaluation.records import read_run
from lince_rag.evaluation.report import compare_evaluations, write_report
from lince_rag.evaluation.runs import earlier_evaluation
from lince_rag.evaluation.settings import Setting, check_setting, copy_index, open_setting_index, parse_setting
from lince_rag.text.language import wording
from tests.integration_tests.commands import COMMAND, environment, run
from tests.integration_tests.embedder_samples import save_tiny_embedder

RENT = "El contrato de alquiler vence el 31 de mayo. La renta mensual es de 815 euros."
LIFT = "El ascensor nuevo costará 46.900 euros. La obra empieza en marzo."
GATE = "O portão da garagem fecha às dez horas da noite."
ELSEWHERE = "La biblioteca de Valdeperal cierra los lunes por la tarde."
FILES = {"contrato.txt": RENT, "acta.txt": LIFT, "regas.txt": GATE}

QUESTIONS = [
    Question("renta", "¿Cuánto es la renta mensual del alquiler?", ("815 euros",), (), RENT),
    Question("obra", "¿Cuándo empieza la obra del ascensor?", ("en marzo", "marzo"), (), LIFT),
    Question("portao", "A que horas fecha o portão da garagem?", ("dez horas da noite",), (), GATE),
    Question("biblioteca", "¿Qué día cierra la biblioteca de Valdeperal?", ("los lunes",), (), ELSEWHERE),
    Question("mundial", "¿Quién ganó el mundial de fútbol de 1986?"),
]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    documents = tmp_path / "documents"
    documents.mkdir()
    for name, text in FILES.items():
        (documents / name).write_text(text)
    with Index.open(tmp_path / "index") as index:
        index.ingest(documents)
        yield index


def source_of(index: Index, name: str) -> str:
    return next(source.source for source in index.sources() if source.source.endswith(name))


def extractive(index: Index, **options: Any) -> Any:
    return create_rag_chain(ChatLince(), index.as_retriever(**options))


class Scripted:
    """A chain whose answers are given; what it is asked is noted, and some questions it fails on."""

    def __init__(self, index: Index, answers: dict[str, Answer], failing: dict[str, BaseException] | None = None):
        self.llm = ChatLince()
        self.retriever = index.as_retriever(k=2)
        self.settings = extractive(index).settings
        self._answers = answers
        self._failing = failing or {}
        self._asked: list[str] = []

    def invoke(self, given: dict[str, Any]) -> Answer:
        question = given["question"]
        self._asked.append(question)
        if question in self._failing:
            raise self._failing[question]
        return self._answers.get(question, Answer(text="No lo encuentro.", language="es", abstained=True))


def cite(index: Index, name: str, quote: str) -> Citation:
    source = source_of(index, name)
    start = index.text(source).index(quote)
    place = {"source": source, "start": start, "end": start + len(quote), "quote": quote}
    return Citation(**place, answer_start=0, answer_end=1)


# What is measured.


def test_the_whole_chain(index: Index) -> None:
    found = evaluate(extractive(index), QUESTIONS, index)
    assert found.counts == {"questions": 5, "answerable": 3, "unanswerable": 2, "not_in_index": 1}
    values = {name: estimate.value for name, estimate in found.metrics.items()}
    perfect = "recall@5 recall@k mrr@10 ndcg@10 contains_answer citation_precision citation_recall groundedness"
    for name in [*perfect.split(), "language_match", "abstention_precision", "abstention_recall"]:
        assert values[name] == 1.0, name
    assert values["false_abstention"] == 0.0
    assert values["latency_p95_ms"] >= values["latency_p50_ms"] > 0
    assert [record.missing for record in found.records] == [False, False, False, True, False]
    first = found.records[0]
    assert first.answer == "La renta mensual es de 815 euros."
    assert [passage.source for passage in first.retrieved if passage.gold] == [source_of(index, "contrato.txt")]
    assert found.k == 5
    assert found.settings["model"]["model"] == "extractive"
    assert json.loads(json.dumps(found.to_dict()))["counts"]["questions"] == 5
    assert "records" not in found.to_dict(records=False)


def test_figures_by_hand(index: Index) -> None:
    rent, obra = QUESTIONS[0].text, QUESTIONS[1].text
    answers = {
        # Right, but one of its two citations is of another document.
        rent: Answer(
            text="La renta es de 815 euros al mes.", language="es", short="815 euros", grounded=True,
            confidence=0.9,
            citations=[cite(index, "contrato.txt", "815 euros"), cite(index, "acta.txt", "46.900 euros")],
        ),
        # Half right, in the wrong language, and cites nothing.
        obra: Answer(text="The works begin in marzo of 2026.", language="es", confidence=0.4),
        QUESTIONS[3].text: Answer(text="Los lunes.", language="es", confidence=0.5),
        QUESTIONS[4].text: Answer(text="No lo encuentro.", language="es", abstained=True, confidence=0.1),
    }  # fmt: skip
    found = evaluate(Scripted(index, answers), QUESTIONS, index)
    values = {name: (estimate.value, estimate.count) for name, estimate in found.metrics.items()}
    # obra: "the works begin in marzo of 2026" has seven words, of which "marzo" is the whole answer.
    assert values["exact_match"] == (pytest.approx(1 / 3), 3)
    assert values["f1"] == (pytest.approx((1 + 2 * 1 / 8 + 0) / 3), 3)
    assert values["contains_answer"] == (pytest.approx(2 / 3), 3)
    assert values["citation_precision"] == (pytest.approx((1 / 2 + 0) / 2), 2)
    assert values["citation_recall"] == (pytest.approx(1 / 3), 3)
    assert values["groundedness"] == (pytest.approx(1 / 3), 3)
    assert values["language_match"] == (pytest.approx(2 / 3), 3)
    assert values["abstention_precision"] == (pytest.approx(1 / 2), 2)
    assert values["abstention_recall"] == (pytest.approx(1 / 2), 2)
    assert values["false_abstention"] == (pytest.approx(1 / 3), 3)
    # Of the four pairs of (0.9, 0.4) and (0.5, 0.1), only (0.4, 0.5) is in the wrong order.
    assert values["confidence_auroc"] == (pytest.approx(3 / 4), 4)
    assert found.k == 2
    # The best threshold of both kinds of answer: 0.9 abstains on one of two, and answers nothing wrongly.
    best = {"threshold": 0.9, "false_abstention": 0.5, "false_answer": 0.0}
    assert found.to_dict(records=False)["abstention"] == best
    assert found.to_dict()["abstention"]["points"]


def test_a_number_is_not_in_a_wrong_language(index: Index) -> None:
    said = Answer(text="22:00", language="pt", grounded=True)
    found = evaluate(Scripted(index, {QUESTIONS[2].text: said}), QUESTIONS[2:3], index)
    assert found.metrics["language_match"].value == 1.0


def test_questions_about_documents(index: Index) -> None:
    questions = [
        Question("1", "¿Cuánto es la renta mensual?", ("815 euros",), ("documents/contrato.txt",)),
        Question(
            "2", "¿Cuánto costará el ascensor?", ("46.900 euros",), ("acta.txt", source_of(index, "regas.txt"))
        ),
        Question("3", "¿Cuánto costará el ascensor?", ("46.900 euros",), ("other/acta.txt",)),
        Question("4", "¿Cuándo vence el contrato de alquiler?", ("31 de mayo",)),
    ]
    found = evaluate(extractive(index, k=1), questions, index)
    one, two, three, four = found.records
    assert one.units == (f"document {source_of(index, 'contrato.txt')}",)
    assert one.located
    assert len(two.units) == 2
    assert (three.answerable, three.missing) == (False, True)
    assert (four.answerable, four.located, four.missing) == (True, False, False)
    # The second question's other document is not among the first one.
    assert found.metrics["recall@k"].value == pytest.approx((1 + 1 / 2) / 2)
    assert found.metrics["contains_answer"].count == 3


def test_the_end_of_a_path_must_fit_one_document(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        for source in ("a/acta.txt", "b/acta.txt"):
            index.ingest(Document(f"El acta de {source}.", metadata={"source": source}))
        with pytest.raises(ConfigurationError, match=r"'acta\.txt' may be any of a/acta\.txt, b/acta\.txt"):
            GoldMap([Question("1", "¿Qué?", ("acta",), ("acta.txt",))], index)
        gold = GoldMap([Question("1", "¿Qué?", ("acta",), ("b/acta.txt",))], index)
        assert gold.gold(Question("1", "")).units == {"document b/acta.txt"}


def test_paragraphs_are_found_whatever_the_white_space(tmp_path: Path) -> None:
    rent, lift = RENT.replace(" ", "  "), LIFT.replace(". ", ".\n")
    text = f"# Título\n\n{rent}\r\n\r\nOtro párrafo.\n\n{lift}\n\nSí.\n"
    (tmp_path / "todo.txt").write_bytes(text.encode())
    with Index.open(tmp_path / "index", chunking=ChunkingSettings(max_characters=50)) as index:
        index.ingest(tmp_path / "todo.txt")
        # The same paragraph once more, in a document that was never a file.
        index.ingest(Document(f"Ante todo: {RENT}", metadata={"source": "copia"}))
        (name,) = [source.source for source in index.sources() if source.source != "copia"]
        questions = [
            Question("1", "¿?", ("a",), (), "\ufeff" + RENT),
            Question("2", "¿?", ("a",), (), LIFT),
            Question("3", "¿?", ("a",), (), "Sí."),
            Question("4", "¿?", ("a",), (), "Título Otro"),
            Question("5", "¿?", ("a",), (), "árrafo."),
        ]
        gold = GoldMap(questions, index)
        assert [gold.gold(question).missing for question in questions] == [False, False, False, True, True]
        written = index.text(name)
        for question, part in zip(questions, ("vence", "La obra", "Sí."), strict=False):
            at = written.index(part)
            assert gold.holds(question, name, at, at + len(part))
            assert gold.unit(question, name, at, at + 1) in gold.gold(question).units
            assert not gold.holds(question, name, written.index("párrafo."), written.index("párrafo.") + 8)
            assert not gold.holds(question, name, at, len(written) + 1)
        assert gold.holds(questions[0], "copia", 11, 20)
        assert not gold.holds(questions[0], "copia", 10, 20)
        # A chunk of another question's paragraph stands for that paragraph, one of none for itself.
        at = written.index("El ascensor")
        assert gold.unit(questions[0], name, at, at + 5) in gold.gold(questions[1]).units
        other = written.index("Otro")
        assert gold.unit(questions[0], name, other, other + 4) == f"{name}:{other}-{other + 4}"
        # In a chunk of two paragraphs, the one with the answer counts.
        both = (written.index("vence"), len(written))
        assert gold.unit(questions[0], name, *both) in gold.gold(questions[0]).units
        assert gold.unit(questions[1], name, *both) in gold.gold(questions[1]).units


def test_several_chunks_of_a_paragraph_take_one_rank(tmp_path: Path) -> None:
    long = " ".join(f"La caldera número {number} calienta agua." for number in range(12))
    gold = "El técnico revisa la caldera en otoño."
    with Index.open(tmp_path / "index", chunking=ChunkingSettings(max_characters=40)) as index:
        index.ingest([Document(text, metadata={"source": name}) for name, text in (("a", long), ("b", gold))])
        questions = [
            Question("1", "¿Qué calienta la caldera número 3?", ("agua",), (), long),
            Question("2", "La caldera número calienta agua", ("otoño",), (), gold),
        ]
        found = evaluate(extractive(index), questions, index, depth=20)
    first, second = found.records
    assert sum(passage.gold for passage in first.retrieved) == 12
    assert [passage.gold for passage in second.retrieved].index(True) >= 5
    assert found.metrics["mrr@10"].value == pytest.approx((1 + 1 / 2) / 2)
    # The chunks themselves are what the chain reads: the fifth does not reach the other paragraph.
    assert found.metrics["recall@5"].value == pytest.approx(1 / 2)


# What is kept.


def asked(chain: Any) -> list[str]:
    return [question.id for question in QUESTIONS if question.text in chain._asked]


@pytest.mark.parametrize("stop", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_stopped_run_goes_on_where_it_was(index: Index, tmp_path: Path, stop: BaseException) -> None:
    output = tmp_path / "output"
    broken = Scripted(index, {}, {QUESTIONS[2].text: stop})
    with pytest.raises((EvaluationError, KeyboardInterrupt)) as error:
        evaluate(broken, QUESTIONS, index, output=output)
    if error.type is EvaluationError:
        assert "portao" in str(error.value)
        assert "broken" in str(error.value)
    assert asked(broken) == ["renta", "obra", "portao"]
    (path,) = output.iterdir()
    assert len(path.read_text().splitlines()) == 3
    progress: list[tuple[int, int]] = []
    again = Scripted(index, {})
    found = evaluate(again, QUESTIONS, index, output=output, on_progress=lambda *step: progress.append(step[:2]))
    assert asked(again) == ["portao", "biblioteca", "mundial"]
    assert progress == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert [record.id for record in found.records] == [question.id for question in QUESTIONS]
    assert found.path == path
    third = Scripted(index, {})
    assert evaluate(third, QUESTIONS, index, output=output).metrics == found.metrics
    assert asked(third) == []


def test_another_run_goes_to_another_file(index: Index, tmp_path: Path) -> None:
    output = tmp_path / "output"

    def files(questions: list[Question] = QUESTIONS, **options: Any) -> int:
        chain = Scripted(index, {})
        chain.retriever = index.as_retriever(**options)
        evaluate(chain, questions, index, output=output, name="another name")
        assert len(chain._asked) in (0, len(questions))
        return len(list(output.iterdir()))

    assert files() == 1
    assert files() == 1
    assert files(k=3) == 2
    assert files(lexical_weight=0.5) == 3
    assert files(QUESTIONS[:2]) == 4
    index.ingest(Document("Un documento más.", metadata={"source": "more"}))
    assert files() == 5
    index.delete("more")
    assert files() == 5


def test_questions_without_an_end_are_refused(index: Index) -> None:
    for questions in ([], [QUESTIONS[0], QUESTIONS[0]]):
        with pytest.raises(ConfigurationError):
            evaluate(extractive(index), questions, index)


# What is compared.

BASE = Setting("base", Path("index"), None, {"k": 5}, {"model": "extractive", "model_path": "w", "device": "cpu"})


def test_settings_change_the_base() -> None:
    assert parse_setting("k=3", BASE).retriever == {"k": 3}
    both = parse_setting(" lexical_weight=1.0, reranker=a/b,c ", BASE)
    assert both.retriever == {"k": 5, "lexical_weight": 1.0, "reranker": "a/b,c"}
    assert both.name == "lexical_weight=1.0, reranker=a/b,c"
    model = parse_setting("k=3,model=lince-zero,base_model_path=/a,b/c", BASE)
    assert model.model == {"model": "lince-zero", "base_model_path": "/a,b/c", "device": "cpu"}
    assert parse_setting("model_path=x", BASE).model["model_path"] == "x"
    assert parse_setting("embeddings=e", BASE).embeddings == "e"
    embedded = parse_setting("embeddings=e", BASE)
    assert parse_setting("index=other", embedded).embeddings is None
    assert parse_setting("index=other,embeddings=f", embedded).index == Path("other")
    base = replace(BASE, chain={"language": "pt", "on_unsupported": "flag"})
    chain = parse_setting("on_unsupported=drop,minimum_confidence=0.2,k=3", base).chain
    assert chain == {"language": "pt", "on_unsupported": "drop", "minimum_confidence": 0.2}
    assert parse_setting("models_file=own.toml,seed=7", BASE).model["models_file"] == Path("own.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense=1", "unknown key: 'nonsense'. Known keys: base_model_path, base_url, device, dtype"),
        ("k", "not of the form key=value"),
        ("k=", "not of the form key=value"),
        ("", "not of the form key=value"),
        ("k=3,,", "k=3,,, which is not a whole number"),
        ("k=tres", "k=tres, which is not a whole number"),
        ("minimum_confidence=high", "minimum_confidence=high, which is not a number"),
        ("lexical_weight=much", "lexical_weight=much, which is not a number"),
        ("k=1,k=2", "has 'k' twice"),
    ],
)
def test_wrong_settings(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        parse_setting(text, BASE)


OUT_OF_RANGE = ["k=0", "lexical_weight=2", "max_tokens=0", "model=lince-cero", "index=nowhere"]
OUT_OF_RANGE += ["language=fr", "on_unsupported=hide", "minimum_confidence=2", "models_file=missing.toml"]


@pytest.mark.parametrize("text", OUT_OF_RANGE)
def test_values_out_of_range_show_before_the_first_question(index: Index, text: str) -> None:
    setting = parse_setting(text, Setting("base", index.folder))
    with pytest.raises(LinceError, match=re.escape(text.split("=")[0]) + "|lince-cero|nowhere|missing.toml"):
        check_setting(setting)
    check_setting(parse_setting("k=1,lexical_weight=0", Setting("base", index.folder)))


class Counting(DeterministicFakeEmbedding):
    """Fake vectors; counts the texts."""

    model: str = "counting"
    embedded: list[str] = Field(default_factory=list)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += texts
        return super().embed_documents(texts)


def same_chunks(one: Index, other: Index) -> bool:
    ids = one.ledger.chunk_ids()
    return other.ledger.chunk_ids() == ids and one.ledger.chunks(ids) == other.ledger.chunks(ids)


def test_copying_an_index(index: Index, tmp_path: Path) -> None:
    embeddings, folder = Counting(size=8), tmp_path / "copy"
    steps: list[int] = []
    with copy_index(index, folder, embeddings, on_progress=lambda done, total, name: steps.append(done)) as copy:
        assert steps == [0, 1, 2, 3]
        assert copy.verify().ok
        assert same_chunks(index, copy)
        assert [copy.text(s.source) for s in copy.sources()] == [index.text(s.source) for s in index.sources()]
        assert copy.sources() == index.sources()
        (best, *_) = copy.as_retriever(lexical_weight=1.0).invoke("¿Cuándo empieza la obra?")
        assert best.page_content == LIFT
    assert len(embeddings.embedded) == 3
    changed = Path(source_of(index, "acta.txt"))
    changed.write_text("El ascensor ya no se pone.")
    Path(source_of(index, "regas.txt")).unlink()
    index.ingest(changed.parent)
    with copy_index(index, folder, embeddings) as copy:
        assert same_chunks(index, copy)
        assert copy.verify().ok
        assert len(copy.sources()) == 2
    assert embeddings.embedded[3:] == ["El ascensor ya no se pone."]
    with pytest.raises(EmbeddingsMismatchError):
        copy_index(index, folder, "embedded")


def test_another_embedder_is_a_copy_that_is_used_again(index: Index, tmp_path: Path) -> None:
    embedder, output = save_tiny_embedder(tmp_path / "tiny"), tmp_path / "output"
    setting = parse_setting(f"embeddings={embedder}", Setting("base", index.folder))
    steps: list[str] = []
    for _ in range(2):
        with open_setting_index(setting, output, lambda done, total, name: steps.append(name)) as copy:
            assert copy.folder.parent == output
            assert same_chunks(index, copy)
            found = evaluate(extractive(copy), QUESTIONS[:2], copy, output=output)
            assert found.settings["embeddings"] == embedder
    assert len(list(output.glob("index-*"))) == 1
    assert len(list(output.glob("records-*"))) == 1
    for own in (Setting("base", index.folder), parse_setting("embeddings=embedded", setting)):
        with open_setting_index(own, output) as opened:
            assert opened.folder == index.folder


# The report.


def attack(text: str) -> str:
    return f"{text} <script>alert(1)</script> <img src=x onerror=alert(2)> \" onload='alert(3)'"


def test_the_report_escapes_whatever_it_is_given(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        text = attack("El contrato vence el 31 de mayo.")
        index.ingest(Document(text, metadata={"source": attack("s"), "title": attack("Título")}))
        questions = [
            Question("1", attack("¿Cuándo vence el contrato?"), (attack("31 de mayo."), "contrato"), (), text),
            Question("2", attack("¿Quién firmó el contrato?"), (attack("Amalia"),), (), text),
            Question("3", attack("¿Cuánto es la renta?")),
        ]
        said = Answer(text=attack("No se sabe."), language="es", short=attack("no"), confidence=0.5)
        chain = Scripted(index, {question.text: said for question in questions})
        found = evaluate(chain, questions, index, name=attack("base $\\frac$"))
    path = write_report([found, found], tmp_path / "report.html", language="es", questions_file=attack("q.json"))
    page = path.read_text()
    tree = html.fromstring(page)
    assert not tree.xpath("//script | //iframe | //object | //link | //form | //svg")
    assert not tree.xpath("//@*[starts-with(name(), 'on')]")
    addresses = tree.xpath("//@src | //@href")
    assert len(addresses) == 5
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "http" not in re.sub(r"http-equiv|base64,[\w+/=]+", "", page)
    seen = " ".join(tree.text_content().split())
    for part in ("q.json", "¿Quién firmó el contrato?", "No se sabe.", "base $\\frac$", "Título"):
        assert " ".join(attack(part).split()) in seen, part
    assert tree.xpath("//mark[text()='contrato']")
    assert not list(tmp_path.glob("*.part"))


def test_the_report_shows_where_it_went_wrong(index: Index, tmp_path: Path) -> None:
    wrong = Answer(text="La obra cuesta 46.900 euros.", language="es", confidence=0.8)
    wrong = wrong.model_copy(update={"citations": [cite(index, "acta.txt", "46.900 euros")]})
    answers = {QUESTIONS[1].text: wrong, QUESTIONS[4].text: Answer(text="España.", language="es", confidence=0.2)}
    found = evaluate(Scripted(index, answers), QUESTIONS, index)
    for language in ("es", "pt", "en"):
        path = write_report([found], tmp_path / "new" / "report.html", language=language)
        tree = html.fromstring(path.read_text())
        failures = {node.text_content(): node.getparent() for node in tree.xpath("//summary")}
        kinds = ("wrongly_abstained", "wrong_sentence", "answered_unanswerable")
        assert list(failures) == [f" · {wording(f'eval_{kind}', language)}" for kind in kinds]
        shown = failures[f" · {wording('eval_wrong_sentence', language)}"].text_content()
        assert QUESTIONS[1].text in shown
        assert "en marzo · marzo" in shown
        assert LIFT in shown
        assert tree.xpath("//li[@class='gold']//mark[text()='en marzo']")
        assert wording("eval_title", language) in tree.text_content()


def test_a_follow_up_is_asked_after_its_history(index: Index) -> None:
    history = (("human", "¿Cuándo vence el contrato de alquiler?"), ("ai", "El 31 de mayo."))
    question = Question("1", "¿Y la renta mensual?", ("815 euros",), ("contrato.txt",), history=history)
    found = evaluate(extractive(index), [question], index).records[0]
    assert "815 euros" in found.answer
    assert found.standalone.startswith("¿Cuándo vence el contrato de alquiler?")
    assert found.standalone.endswith(question.text)
    assert found.citations[0].gold


def test_a_citation_of_a_copy_is_as_right(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(RENT + f" Archivo {name}.")
    with Index.open(tmp_path / "copies") as index:
        index.ingest(folder)
        question = Question("1", "¿Cuánto es la renta mensual?", ("815 euros",), ("a.txt",), copies=("b.txt",))
        gold = GoldMap([question], index)
        for name in ("a.txt", "b.txt"):
            assert gold.holds(question, source_of(index, name), 0, 10)
            assert {gold.unit(question, source_of(index, name), 0, 10)} == gold.gold(question).units


def test_types_and_changes_are_in_the_report(index: Index, tmp_path: Path) -> None:
    questions = [replace(question, type="number" if question.answers else "off-topic") for question in QUESTIONS]
    right = Answer(text=RENT, language="es", confidence=0.9)
    first = evaluate(Scripted(index, {}), questions, index, name="a", output=tmp_path)
    second = evaluate(Scripted(index, {QUESTIONS[0].text: right}), questions, index, name="b")
    page = write_report([first, second], tmp_path / "report.html", language="en")
    tree = html.fromstring(page.read_text())
    assert tree.xpath("//table[caption='b']//th[text()='off-topic']")
    (changes,) = [node for node in tree.xpath("//details") if "b · fixed (1)" in node.text_content()]
    assert QUESTIONS[0].text in changes.text_content()
    assert RENT in changes.text_content()
    assert first.path is not None
    earlier = read_run(first.path)[1]
    assert earlier == {record.id: record for record in first.records}
    ((name, found),) = compare_evaluations([second], earlier)
    assert (name, found.fixed, found.broken) == ("b", ("renta",), ())


def test_an_earlier_run_is_measured_by_its_records(index: Index, tmp_path: Path) -> None:
    first = evaluate(Scripted(index, {}), QUESTIONS, index, name="a", output=tmp_path)
    assert first.path is not None
    found = earlier_evaluation(first.path, QUESTIONS, "before")
    assert found is not None
    assert (found.name, found.k, found.records) == ("before", first.k, first.records)
    assert found.metrics == first.metrics
    only = earlier_evaluation(first.path, QUESTIONS[:1], "before")
    assert only is not None
    assert [record.id for record in only.records] == [QUESTIONS[0].id]
    assert earlier_evaluation(first.path, [replace(QUESTIONS[0], id="new")], "before") is None


def test_drafts_can_be_asked_as_they_are(index: Index, tmp_path: Path) -> None:
    drafts = draft_questions(index, 10)
    assert {Path(draft["source"]).name for draft in drafts} == {"contrato.txt", "acta.txt", "regas.txt"}
    assert draft_questions(index, 10) == drafts
    assert len(draft_questions(index, 2)) == 2
    for draft in drafts:
        assert draft["answers"][0] in draft["evidence"]
        assert draft["answers"][0] not in draft["question"]
        assert draft["evidence"] in index.text(draft["source"])
    path = tmp_path / "drafts.jsonl"
    path.write_text("".join(json.dumps(draft) + "\n" for draft in drafts))
    records = evaluate(extractive(index), load_questions(path), index).records
    assert all(record.answer for record in records)
    assert {record.type for record in records} == {draft["type"] for draft in drafts}


def test_drafts_leave_out_clause_numbers_and_numbers_that_count_nothing(tmp_path: Path) -> None:
    (tmp_path / "contrato.txt").write_text(
        "Segunda. El contrato dura 18 meses desde la firma.\n\n"
        "Cláusula 3.ª – La renta del local es de 815 euros.\n\n"
        "El local está en la calle de la Fuente Nueva 47, bajo.\n\n"
        "4.2. El local tiene una capacidad de 36 personas sentadas.\n\n"
        "Quarta. O prazo de pagamento é de 9 dias depois da fatura n.º 5521 emitida.\n"
    )
    with Index.open(tmp_path / "index", embeddings="embedded") as index:
        index.ingest(tmp_path / "contrato.txt")
        drafts = draft_questions(index, 10)
    asked = {draft["answers"][0]: draft["question"] for draft in drafts}
    assert {"18 meses", "815 euros", "36"} <= asked.keys()
    assert not any(number in answer for answer in asked for number in ("47", "5521"))
    starts = "El contrato", "La renta", "El local", "O prazo"
    assert all(re.search(rf"\? (?:{'|'.join(starts)})", question) for question in asked.values()), asked
    assert any(draft["evidence"].startswith("Segunda. ") for draft in drafts)


def test_reports_of_little(index: Index, tmp_path: Path) -> None:
    """No failure, no answerable question, nothing retrieved: there is still a page."""
    found: list[Evaluation] = [evaluate(Scripted(index, {}), [QUESTIONS[4]], index)]
    with Index.open(tmp_path / "empty") as empty:
        found.append(evaluate(extractive(empty), QUESTIONS[:1], empty))
    for evaluation in found:
        assert "</html>" in write_report([evaluation], tmp_path / "report.html", language="en").read_text()


@pytest.mark.parametrize("package", ["ir_measures", "matplotlib", "scipy", "sklearn"])
def test_without_the_extra(index: Index, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    chain = Scripted(index, {})
    with pytest.raises(MissingExtraError, match=f"{package}.*" + re.escape(installation("evaluation"))):
        evaluate(chain, QUESTIONS, index)
    assert asked(chain) == []


# The command line.


@pytest.fixture
def folder(index: Index, tmp_path: Path) -> Path:
    """An index, and its questions as SQuAD and as JSON lines."""
    index.close()
    paragraphs = [
        {
            "context": question.context or RENT,
            "qas": [
                {
                    "id": question.id, "question": question.text, "is_impossible": not question.answerable,
                    "answers": [{"text": answer, "answer_start": 0} for answer in question.answers],
                }
            ],
        }
        for question in QUESTIONS
    ]  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    lines = [
        {"question": f"¿Cuándo vence el contrato de alquiler número {number}?", "answer": "31 de mayo"}
        for number in range(60)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return tmp_path


def test_the_command(folder: Path) -> None:
    assert [question.id for question in load_questions(folder / "squad.json")] == [q.id for q in QUESTIONS]
    command = ["eval", "squad.json", "--index", "index"]
    out, err = run(*command, "--compare", "lexical_weight=1.0", "--compare", "k=1", cwd=folder)
    assert re.search(r"medida +base +lexical_weight=1\.0 +k=1", out)
    assert re.search(r"MRR@10( +1,000 \[1,000; 1,000\]){3}", out)
    assert "5 preguntas: 3 con respuesta en el índice y 2 sin ella." in out
    assert "De 1 el archivo da una respuesta" in out
    assert "Informe: lince-eval/report.html" in out
    assert err == ""
    assert (folder / "lince-eval" / "report.html").is_file()
    assert len(list((folder / "lince-eval").glob("records-*.jsonl"))) == 3
    out, _ = run(*command, "--compare", "k=1", "--json", "--limit", "2", "--output", "other", cwd=folder)
    found = json.loads(out)
    assert [one["name"] for one in found["evaluations"]] == ["base", "k=1"]
    assert found["evaluations"][0]["counts"]["questions"] == 2
    assert found["evaluations"][0]["metrics"]["mrr@10"] == {"value": 1.0, "low": 1.0, "high": 1.0, "count": 2}
    assert found["evaluations"][1]["k"] == 1
    assert Path(folder, found["report"]).is_file()


def test_the_options_of_answers_reach_every_setting(folder: Path) -> None:
    options = ["--index", "index", "--language", "pt", "--seed", "3", "--json"]
    compare = ["--compare", "language=en,minimum_confidence=0", "--compare", "on_unsupported=drop"]
    found = json.loads(run("eval", "squad.json", *options, *compare, cwd=folder)[0])["evaluations"]
    chains = [one["settings"]["chain"] for one in found]
    assert [chain["language"] for chain in chains] == ["pt", "en", "pt"]
    assert [chain["minimum_confidence"] for chain in chains] == [0.15, 0.0, 0.15]
    assert [chain["on_unsupported"] for chain in chains] == ["flag", "flag", "drop"]
    assert {one["settings"]["model"]["seed"] for one in found} == {3}
    assert len({one["fingerprint"] for one in found}) == 3
    assert "Não encontro isso nos documentos." in Path(folder, found[0]["records_file"]).read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["squad.json", "--index", "index", "--on-unsupported", "hide"], "hide"),
        (["squad.json", "--index", "index", "--compare", "language=fr"], "fr"),
        (["squad.json", "--index", "nowhere"], "No hay ningún índice en"),
        (["documents/acta.txt", "--index", "index"], "acta.txt"),
        (
            ["squad.json", "--index", "index", "--compare", "k=1", "--compare", "lexical_weight=2"],
            "lexical_weight",
        ),
        (["squad.json", "--index", "index", "--limit", "0"], "--limit"),
        (["--index", "index"], "Falta el argumento"),
    ],
)
def test_wrong_use(folder: Path, arguments: list[str], said: str) -> None:
    _, err = run("eval", *arguments, cwd=folder, status=2)
    assert said in err
    if err.startswith("lince-rag: "):
        assert err.count("\n") == 1
    assert not list((folder / "lince-eval").glob("*"))


def test_the_command_without_the_extra(folder: Path) -> None:
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nsys.argv = ['lince-rag', *sys.argv[1:]]\n"
        "from lince_rag.cli.app import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", "squad.json", "--index", "index"],
        capture_output=True, text=True, cwd=folder, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "[evaluation]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_command_goes_on_where_it_was(folder: Path) -> None:
    arguments = ["eval", "many.jsonl", "--index", "index", "--json"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment(),
        # A test run in the background of a shell ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(_kept(folder)) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Interrumpido" in out
    assert "lince-eval" in out
    assert "Traceback" not in err
    kept = _kept(folder)
    assert 5 <= len(kept) < 61
    found = json.loads(run(*arguments, cwd=folder)[0])
    assert found["evaluations"][0]["counts"]["questions"] == 60
    assert _kept(folder)[: len(kept)] == kept
    assert len(_kept(folder)) == 61


def _kept(folder: Path) -> list[str]:
    files = list((folder / "lince-eval").glob("records-*.jsonl"))
    return files[0].read_text().split("\n")[:-1] if files else []
