"""``lince-rag demo``: six questions about a small set of documents, answered with their sources."""

import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.markup import escape

from lince_rag.cli.answers import Places, print_answer
from lince_rag.cli.terminal import output, progress_bar
from lince_rag.prompting.registry import load_registry
from lince_rag.text.language import Language, load_table, wording


def load_questions(kind: str = "question") -> list[dict[str, Any]]:
    """Read the six questions of the demonstration, or the ``"extra"`` ones that only the tests ask.

    Answerable questions have ``expected`` and ``source``, next to ``text``, ``language`` and ``answerable``.
    """
    questions: list[dict[str, Any]] = load_table("demo")[kind]
    return questions


def run_demo(language: Language) -> None:
    """Index the documents of the demonstration in a temporary folder and answer its questions."""
    from lince_rag.chain.rag import create_rag_chain
    from lince_rag.index.index import Index
    from lince_rag.models.chat_model import ChatLince

    console = output()
    console.print(f"[bold]{wording('demo_intro', language)}[/]")
    with (
        as_file(files("lince_rag.cli") / "demo_documents") as documents,
        tempfile.TemporaryDirectory(prefix="lince-demo-") as folder,
        Index.open(folder) as index,
    ):
        with progress_bar(wording("ingesting", language)) as progress:
            report = index.ingest(documents, on_progress=progress)
        console.print(wording("demo_indexed", language, documents=len(report.added), seconds=report.seconds))
        chain = create_rag_chain(ChatLince(), index.as_retriever())
        # The files are gone when someone could open them.
        places = Places(index, lambda source: Path(source).name, linked=False)
        for question in load_questions():
            console.print(f"\n[bold]{escape(question['text'])}[/]")
            started = time.monotonic()
            steps = chain.stream(question["text"])
            answer = print_answer(steps, places, whole=True)
            seconds = time.monotonic() - started
            console.print(f"  [dim]{wording('seconds', answer.language, seconds=seconds)}[/]")
    console.print(f"\n[bold]{wording('demo_next', language)}[/]")
    console.print("  lince-rag ingest ~/Documents --index my-index", markup=False)
    console.print('  lince-rag ask "…" --index my-index', markup=False)
    console.print(f"[bold]{wording('demo_model', language)}[/]")
    console.print("  lince-rag models", markup=False)
    model = next(spec.name for spec in load_registry().values() if spec.parameters)
    console.print(f'  lince-rag prompt {model} --question "…" --context "…"', markup=False)
