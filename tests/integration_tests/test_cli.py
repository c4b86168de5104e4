"""The command line as a user meets it: real processes, real files, exit statuses, no traceback."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

import lince_rag.errors
from lince_rag import ChatLince, HybridRetriever, Index
from lince_rag.cli.options import AnswerOptions
from lince_rag.prompting.registry import get_model
from tests.checkpoints import KINDS, shared_checkpoint
from tests.integration_tests.commands import COMMAND, environment, run
from tests.unit_tests.file_samples import pdf_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    documents = folder / "documentos"
    documents.mkdir()
    (documents / "contrato.txt").write_text(
        "La renta mensual es de 815 euros. El contrato vence el 30 de junio de 2027."
    )
    (documents / "ata.md").write_text("# Ata\n\nA reunião foi no dia 12 de maio. O elevador custa 1.100 euros.\n")
    (documents / "vacío.txt").write_text("")
    (documents / "foto.pdf").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    run("ingest", "documentos", "--index", "indice", status=1, cwd=folder)
    return folder


def test_ingest_reports_problems_by_name_and_reason(folder: Path) -> None:
    out, err = run("ingest", "documentos", "--index", "indice", status=1, cwd=folder)
    assert "0 nuevos, 0 cambiados, 2 sin cambios, 0 retirados, 2 con problemas" in out
    assert re.search(r"documentos/vacío\.txt: el archivo está vacío", err)
    assert re.search(r"documentos/foto\.pdf: .+", err)
    assert "Traceback" not in err


def test_ask(folder: Path) -> None:
    out, _ = run("ask", "¿Cuándo vence el contrato?", "--index", "indice", cwd=folder)
    assert out == "El contrato vence el 30 de junio de 2027.\n  Fuentes: documentos/contrato.txt, línea 1\n"
    out, _ = run("ask", "Em que dia foi a reunião?", "--index", "indice", cwd=folder)
    said = "A reunião foi no dia 12 de maio.\n  Fontes: documentos/ata.md, linha 3 (Ata)\n"
    assert out.startswith(said)


def test_only_the_documents_that_are_named_are_read(folder: Path) -> None:
    out, _ = run("ask", "¿Cuándo vence el contrato?", "--index", "indice", "--source", "ata.md", cwd=folder)
    assert "2027" not in out
    out, _ = run("ask", "Resume el documento", "--index", "indice", "--source", "contrato.txt", cwd=folder)
    assert "815 euros" in out
    _, err = run("ask", "¿?", "--index", "indice", "--source", "nada.txt", cwd=folder, status=2)
    assert "'nada.txt'" in err
    out, _ = run(
        "ask", "¿Cuándo vence el contrato?", "--index", "indice", "--source", "documentos/*.md", cwd=folder
    )
    assert "2027" not in out
    for condition in ("language=es", '{"language": {"$ne": "pt"}}'):
        out, _ = run("ask", "¿Cuándo vence el contrato?", "--index", "indice", "--filter", condition, cwd=folder)
        assert "2027" in out
    out, _ = run("ask", "¿Cuándo vence el contrato?", "--index", "indice", "--filter", "language!=es", cwd=folder)
    assert "2027" not in out
    _, err = run("eval", "q.jsonl", "--index", "indice", "--source", "ata.md", cwd=folder, status=2)
    assert "--source" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "contrat.txt"], ["'contrat.txt'", "contrato.txt"]),
        (["--source", "*.odt"], ["'*.odt'"]),
        (["--filter", "langage=es"], ["langage=es", "language"]),
        (["--filter", "page"], ["'page'", "key=value"]),
        (["--filter", '{"page": {"$like": 1}}'], ["$like"]),
    ],
)
def test_a_wrong_name_or_condition_says_what_would_be_right(
    folder: Path, options: list[str], said: list[str]
) -> None:
    for command in ("ask", "search"):
        _, err = run(command, "¿Cuándo vence?", "--index", "indice", *options, cwd=folder, status=2)
        assert all(each in err for each in said)
        assert err.count("\n") == 1


def test_search_prints_passages_best_first(folder: Path) -> None:
    out, _ = run("search", "¿Cuándo vence el contrato?", "--index", "indice", cwd=folder)
    assert re.match(r"1\. documentos/contrato\.txt, línea 1  \d+,\d\d\n   La renta mensual", out)
    assert "2. documentos/ata.md, línea 1 (Ata)" in out
    out, _ = run("search", "¿Cuándo vence el contrato?", "--index", "indice", "-k", "1", "--json", cwd=folder)
    (found,) = json.loads(out)
    text = Path(found["source"]).read_text()
    assert found["text"] == text[found["start"] : found["end"]]
    assert found["score"] > 0
    out, _ = run("search", "contrato", "--index", "indice", "--source", "ata.md", "--json", cwd=folder)
    assert [Path(each["source"]).name for each in json.loads(out)] == ["ata.md"]
    _, err = run("search", " ", "--index", "indice", cwd=folder, status=2)
    assert err.count("\n") == 1


def test_version() -> None:
    out, _ = run("--version")
    assert re.fullmatch(r"lince-rag \d+\.\d+\.\d+\n", out)


def test_a_source_in_another_language_is_said(folder: Path) -> None:
    out, _ = run("ask", "¿Cuánto cuesta el elevador?", "--index", "indice", cwd=folder)
    assert "1.100 euros" in out
    assert "La fuente está en portugués." in out


def test_a_doubtful_answer_says_so_and_strict_abstains(folder: Path) -> None:
    question = "¿Qué dice el contrato de la calefacción del garaje?"
    out, _ = run("ask", question, "--index", "indice", "--minimum-confidence", "0", cwd=folder)
    assert re.search(r"Puede que no sea esto: la confianza es baja \(\d+%\)\.", out)
    out, _ = run("ask", question, "--index", "indice", "--minimum-confidence", "0", "--strict", cwd=folder)
    assert out == "No lo encuentro en los documentos.\n"


def test_ask_what_the_documents_do_not_say(folder: Path) -> None:
    out, _ = run("ask", "¿Quién ganó el mundial de fútbol?", "--index", "indice", cwd=folder)
    assert out == "No lo encuentro en los documentos.\n"
    out, _ = run("ask", "¿Quién ganó el mundial?", "--index", "indice", "--language", "pt", cwd=folder)
    assert out == "Não encontro isso nos documentos.\n"


SHARED_OPTIONS = ["--model", "--model-path", "--base-model-path", "--device", "--dtype", "--quantization"]
SHARED_OPTIONS += ["--engine", "--tokenizer", "--base-url", "--api-key"]
SHARED_OPTIONS += [
    "--models-file",
    "--embeddings-url",
    "--max-tokens",
    "--seed",
    "-k",
    "--reranker",
    "--reranker-url",
]
SHARED_OPTIONS += ["--source", "--filter", "--language"]
SHARED_OPTIONS += ["--on-unsupported", "--minimum-confidence", "--strict"]


@pytest.mark.parametrize("command", ["ask", "chat", "mcp", "eval"])
def test_commands_that_answer_share_their_options(command: str) -> None:
    out, _ = run(command, "--help")
    named = re.findall(r"^ +(-[-\w]+)", out, re.MULTILINE)
    assert [name for name in named if name in SHARED_OPTIONS] == SHARED_OPTIONS
    assert {field.name.replace("_", "-") for field in fields(AnswerOptions)} == {
        option.lstrip("-") for option in SHARED_OPTIONS
    }


def test_options_reach_model_retriever_and_chain(folder: Path) -> None:
    (folder / "own.toml").write_text("")
    options = AnswerOptions(
        models_file=folder / "own.toml", max_tokens=7, seed=3, k=2, reranker="a/b", language="pt",
        on_unsupported="drop", minimum_confidence=0.25, device="cpu",
    )  # fmt: skip
    with Index.open(folder / "indice", create=False) as index:
        chain = options.make_chain(index)
    chat, retriever, settings = chain.llm, chain.retriever, chain.settings
    assert isinstance(chat, ChatLince)
    assert (chat.model, chat.max_tokens, chat.seed, chat.device) == ("extractive", 7, 3, "cpu")
    assert chat.models_file == folder / "own.toml"
    assert isinstance(retriever, HybridRetriever)
    assert retriever.k == 2
    assert "'a/b'" in repr(retriever.reranker)
    assert (settings.language, settings.on_unsupported, settings.minimum_confidence) == ("pt", "drop", 0.25)


def test_ask_json(folder: Path) -> None:
    out, _ = run("ask", "¿Cuánto es la renta mensual?", "--json", cwd=folder, LINCE_INDEX=str(folder / "indice"))
    answer = json.loads(out)
    (citation,) = answer["citations"]
    text = Path(citation["source"]).read_text()
    assert text[citation["start"] : citation["end"]] == citation["quote"] == answer["text"]
    assert answer["grounded"]
    assert answer["language"] == "es"


def test_status(folder: Path) -> None:
    out, _ = run("status", "--index", "indice", "--list", cwd=folder)
    assert "documentos/contrato.txt" in out
    out, _ = run("status", "--index", "indice", cwd=folder)
    assert "documentos/contrato.txt" not in out
    assert "Idiomas: es 1, pt 1; tamaño: " in out
    assert "2 documentos, 2 fragmentos" in out
    assert "El índice está en orden." in out
    found = json.loads(run("status", "--index", "indice", "--json", cwd=folder)[0])
    assert len(found["sources"]) == found["verify"]["chunks"] == 2


@pytest.mark.parametrize(
    ("locale", "said"), [("pt_BR.UTF-8", "sem alterações"), ("en_US.UTF-8", "unchanged"), ("C", "sin cambios")]
)
def test_messages_follow_the_locale(folder: Path, locale: str, said: str) -> None:
    out, _ = run("ingest", "documentos/ata.md", "--index", "indice", cwd=folder, LC_ALL=locale)
    assert said in out


def test_models() -> None:
    out, _ = run("models")
    rows = json.loads(run("models", "--json")[0])
    assert len(rows) >= 6
    assert all(row["name"] in out and str(row["context_window"]) in out and row["licence"] for row in rows)


def test_the_largest_model_is_named() -> None:
    """With the memory that is free here, whatever it is."""
    rows = json.loads(run("models", "--json", LC_ALL="pt_BR.UTF-8")[0])
    largest = [row for row in rows if row["largest"]]
    fitting = [row for row in rows if "pt" in row["languages"] and row["fits"]]
    assert [row["parameters"] for row in largest] == sorted(row["parameters"] for row in fitting)[-1:]
    assert all(row["memory"][dtype] <= row["memory"]["bfloat16"] for row in rows for dtype in row["fits"])
    out, _ = run("models", LC_ALL="pt_BR.UTF-8")
    said = out.splitlines()[-1]
    assert "português" in said
    # Less or more may be free by now.
    assert [row for row in rows if "pt" in row["languages"] and row["name"] in said]


@pytest.mark.parametrize("in_config", [True, False])
def test_a_folders_template_is_checked(tmp_path: Path, in_config: bool) -> None:
    spec = get_model("qwen3-4b")
    tokenizer = shared_checkpoint(spec.name).load()[1]
    folder = tmp_path / "copia"
    # save_pretrained writes a file of its own; older tokenizers have the template in their configuration.
    tokenizer.chat_template = None if in_config else "{# Of its own. #}" + spec.template_text()
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"

    def write(template: str) -> None:
        if in_config:
            values = json.loads(config.read_text()) | {"chat_template": template}
            config.write_text(json.dumps(values))
        else:
            (folder / "chat_template.jinja").write_text(template)

    write("{# Of its own. #}" + spec.template_text())
    out, _ = run("models", "--check", str(folder), LC_ALL="en_US.UTF-8")
    assert out == f"{folder} writes the same prompts as: {spec.name}\n"
    assert json.loads(run("models", "--check", str(folder), "--json")[0]) == {
        "folder": str(folder),
        "same": [spec.name],
    }
    write(spec.template_text().replace("<think>\\n\\n</think>\\n\\n", ""))
    out, _ = run("models", "--check", str(folder), "--model", spec.name, status=1, LC_ALL="en_US.UTF-8")
    assert f"does not write the prompts of {spec.name} (A): one question, from character" in out
    assert out.splitlines()[1:] == ["  A: '<think>\\n\\n</think>\\n\\n'", "  B: ''"]
    found = json.loads(run("models", "--check", str(folder), "--model", spec.name, "--json", status=1)[0])
    assert (found["same"], found["nearest"], found["theirs"]) == ([], spec.name, "")


def test_prompt_is_exact() -> None:
    golden = Path(__file__).parent.parent / "unit_tests" / "golden"
    out, _ = run("prompt", "aira-2-portuguese-1b7", "--question", "Qual é a capital da Alemanha?")
    assert out == "<|startofinstruction|>Qual é a capital da Alemanha?<|endofinstruction|>"
    assert golden.is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["ask", "¿Qué?", "--index", "nowhere"], 2, "No hay ningún índice en"),
        (["ask", "¿Qué?", "--index", "indice", "--model", "lince-cero"], 2, "lince-zero"),
        (["ask", "¿Cuál es la renta mensual?", "--index", "indice", "--model", "lince-zero"], 2, "lince-zero"),
        (["ask", "¿Qué?", "--index", "indices"], 2, "¿Querías decir 'indice'?"),
        (["status", "--index", "lindice"], 2, "¿Querías decir 'indice'?"),
        (["ask", "", "--index", "indice"], 2, "lince-rag: La pregunta está vacía.\n"),
        (["ask", "¿Qué?", "--index", "indice", "--language", "fr"], 2, "fr"),
        (["ask", "¿Qué?", "--index", "indice", "--on-unsupported", "hide"], 2, "hide"),
        (["ask", "¿Qué?", "--index", "indice", "--minimum-confidence", "2"], 2, "--minimum-confidence"),
        (["ask", "¿Qué?", "--index", "indice", "--embeddings", "other/model"], 2, "other/model"),
        (["ask", "¿Qué?", "--index", "documentos"], 2, "contiene otros archivos"),
        (["ask", "¿Qué?", "--index", "indice", "-k", "0"], 2, "-k"),
        (["ask", "¿Qué?", "--indice", "indice"], 2, "--indice"),
        (["mcp", "--index", "indice", "--language", "fr"], 2, "fr"),
        (["mcp", "--index", "indice", "--on-unsupported", "hide"], 2, "hide"),
        (["mcp", "--index", "indice", "--minimum-confidence", "2"], 2, "--minimum-confidence"),
        (["mcp", "--index", "indice", "--models-file", "missing.toml"], 2, "missing.toml"),
        (["ingest", "nothing-there", "--index", "other"], 2, "nothing-there"),
        (["prompt", "lince-zero"], 2, "--question"),
        (["models", "--models-file", "missing.toml"], 2, "missing.toml"),
        (["models", "--model", "lince-zero"], 2, "--check"),
        (["models", "--check", "documentos"], 2, "comes with no chat template"),
        (["models", "--check", "./missing"], 2, "./missing"),
        (["status", "--index", "documentos/ata.md"], 2, "es un archivo"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_use_is_one_readable_line(folder: Path, arguments: list[str], status: int, said: str) -> None:
    out, err = run(*arguments, status=status, cwd=folder)
    assert said in err
    assert "Traceback" not in out + err
    if err.startswith("lince-rag: "):
        assert err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("models", "--json"), ("models",)])
def test_output_that_cannot_be_written_is_one_line(arguments: tuple[str, ...]) -> None:
    # A buffer that is still full would fail once more when Python ends.
    for unbuffered in ("", "1"):
        variables = environment(PYTHONUNBUFFERED=unbuffered)
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=variables, check=False
            )
        assert done.returncode == 1
        assert done.stderr == "lince-rag: No se ha podido leer o escribir: no queda espacio en el disco.\n"


def test_debug_shows_the_traceback(folder: Path) -> None:
    _, err = run("ask", "¿Qué?", "--index", "nowhere", "--debug", status=1, cwd=folder)
    assert "Traceback" in err
    assert "IndexFolderError" in err


def test_a_folder_without_documents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, err = run("ingest", "empty", "--index", "index", status=2, cwd=tmp_path)
    assert "No hay ningún documento" in err
    # What is left is an index, but no answer comes of it.
    for arguments in (["ask", "¿Qué hay?"], ["search", "algo"], ["chat"]):
        out, err = run(*arguments, "--index", "index", status=2, cwd=tmp_path)
        assert out == ""
        assert "no tiene ningún documento. Añade alguno primero: lince-rag ingest" in err


@pytest.mark.parametrize(
    ("locale", "said"),
    [
        ("es", "de tipos sin lector: 3 (.png 2, .jpg 1; las imágenes se leen con --ocr)."),
        ("pt", "de tipos sem leitor: 3 (.png 2, .jpg 1; as imagens são lidas com --ocr)."),
        ("en", "of kinds without a reader: 3 (.png 2, .jpg 1; pictures are read with --ocr)."),
    ],
)
def test_a_folder_with_pictures_only_is_told_how_they_are_read(tmp_path: Path, locale: str, said: str) -> None:
    (tmp_path / "fotos").mkdir()
    for name in ("a.png", "b.jpg", "c.png"):
        (tmp_path / "fotos" / name).write_bytes(b"x")
    out, _ = run("ingest", "fotos", "--index", "i", status=2, cwd=tmp_path, LC_ALL=locale)
    assert said in out


def test_what_is_not_read_is_counted_and_listed(tmp_path: Path) -> None:
    documents = tmp_path / "documentos"
    documents.mkdir()
    for name in ("a.txt", "foto.png", "otra.png", ".oculto.txt"):
        (documents / name).write_text("Hola.")
    (documents / "b\x1b[31m\u202e.txt").write_text("Adiós.")
    (documents / "secreto.txt").symlink_to("/etc/passwd")
    arguments = ["ingest", str(documents), "--index", str(tmp_path / "índice")]
    out, _ = run(*arguments, LC_ALL="es")
    assert "2 nuevos" in out
    assert "de tipos sin lector: 2 (.png 2; las imágenes se leen con --ocr); ocultos: 1; enlaces que" in out
    assert "enlaces que salen de la carpeta: 1." in out
    assert "secreto" not in out
    out, _ = run(*arguments, "--verbose", LC_ALL="es")
    assert all(name in out for name in ("foto.png", ".oculto.txt", "secreto.txt"))
    out, _ = run("status", "--index", str(tmp_path / "índice"), LC_ALL="es")
    assert "passwd" not in out
    out, _ = run(*arguments, "--follow-links", LC_ALL="es")
    assert "1 nuevo," in out
    (documents / "b\x1b[31m\u202e.txt").write_bytes(b"\x89PNG")
    out, error = run(*arguments, status=1)
    assert r"b\x1b[31m\u202e.txt" in error
    assert not {"\x1b", "\u202e"} & {*out, *error}


def test_old_documents_are_named_with_advice(tmp_path: Path) -> None:
    documents = tmp_path / "documentos"
    documents.mkdir()
    for name in ("a.txt", "carta.doc", "Acta.DOC", "charla.ppt", "foto.png"):
        (documents / name).write_text("Hola.")
    out, _ = run("ingest", "documentos", "--index", "i", cwd=tmp_path)
    assert "de tipos sin lector: 4 (" in out
    assert "  Se leen si se guardan como .docx o PDF: documentos/Acta.DOC, documentos/carta.doc\n" in out
    assert "  Se leen si se guardan como .pptx o PDF: documentos/charla.ppt\n" in out
    _, err = run("ingest", "documentos/carta.doc", "--index", "i", status=1, cwd=tmp_path)
    assert "guárdalo como .docx o PDF" in err


def test_limits_of_a_file_are_options(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bytes(["Hola.", "Adiós."]))
    index = ["--index", str(tmp_path / "índice")]
    _, error = run("ingest", str(tmp_path / "a.pdf"), *index, "--file-pages", "1", status=1)
    assert "2 páginas, el límite son 1" in error
    run(
        "ingest", str(tmp_path / "a.pdf"), *index, "--file-seconds", "30", "--file-memory", "300", "--workers", "1"
    )


def test_interrupted_ingestion_keeps_what_it_read_and_goes_on(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(3000):
        text = f"El expediente número {number} vence el día {number % 28 + 1} de mayo. " * 12
        (documents / f"{number:04}.txt").write_text(text)
    process = subprocess.Popen(
        [*COMMAND, "ingest", "documents", "--index", "index"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(),
        # A test run in the background of a shell ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    ledger = tmp_path / "index" / "ledger.sqlite"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _committed(ledger):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Interrumpido" in out
    assert "Traceback" not in err
    kept = _committed(ledger)
    assert 0 < kept < 3000
    out, _ = run("ingest", "documents", "--index", "index", cwd=tmp_path)
    new, unchanged = (f"{count:,}".replace(",", ".") for count in (3000 - kept, kept))
    assert f"{new} nuevos, 0 cambiados, {unchanged} sin cambios" in out
    assert "El índice está en orden." in run("status", "--index", "index", cwd=tmp_path)[0]


def _committed(ledger: Path) -> int:
    import sqlite3

    try:
        with sqlite3.connect(ledger, timeout=5) as connection:
            return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_a_terminal_gets_a_progress_bar_and_a_line_break_after_a_prompt(folder: Path) -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "prompt", "falcon-40b-instruct", "--question", "Hola"],
        stdout=follower, stderr=follower, env=environment(), timeout=60, cwd=folder,
    )  # fmt: skip
    os.close(follower)
    assert done.returncode == 0
    assert os.read(leader, 10_000).endswith(b"Assistant:\r\n")
    os.close(leader)


def test_base_install_without_models_extra(folder: Path) -> None:
    """A missing extra is one line that names the cure."""
    code = (
        "import sys\nsys.modules['sentence_transformers'] = None\nsys.argv = ['lince-rag', *sys.argv[1:]]\n"
        "from lince_rag.cli.app import main\nmain()"
    )
    arguments = ["ingest", "documentos/ata.md", "--index", "otro", "--embeddings", "intfloat/e5-small"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=folder, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    project = Path(lince_rag.errors.__file__).parents[1]
    assert f"pip install -c {project}/constraints.txt -e '{project}[models]'" in done.stderr
    assert "Traceback" not in done.stderr
    # Nothing was written with that embedder, so the folder is still free for another.
    run("ingest", "documentos/ata.md", "--index", "otro", "--embeddings", "embedded", cwd=folder)


def test_help_is_fast() -> None:
    started = time.monotonic()
    out, _ = run("--help")
    assert "ingest" in out
    # A generous bound for a busy machine; the benchmark has the figure.
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", [*KINDS])
def test_ask_a_model(folder: Path, kind: str) -> None:
    """Every registered model from end to end, on a tiny checkpoint of its architecture; its words are random."""
    fields = shared_checkpoint(kind).chat_fields
    weights = ["--model", kind, "--model-path", fields["model_path"]]
    if "base_model_path" in fields:
        weights += ["--base-model-path", fields["base_model_path"]]
    generation = ["--device", "cpu", "--max-tokens", "6", "--seed", "1", "-k", "1", "--json"]
    out, err = run("ask", "¿Cuándo vence el contrato?", "--index", "indice", *weights, *generation, cwd=folder)
    answer = json.loads(out)
    assert answer["text"]
    assert not answer["abstained"]
    assert 0 < answer["usage"]["output_tokens"] <= 6
    assert [Path(document["metadata"]["source"]).name for document in answer["documents"]] == ["contrato.txt"]
    assert "Traceback" not in err


def test_ask_a_model_that_is_not_here(folder: Path) -> None:
    asked = ["ask", "¿Cuánto es la renta mensual?", "--index", "indice"]
    _, err = run(*asked, "--model", "lince-zero", status=2, cwd=folder)
    assert "clibrain/lince-zero" in err
    assert "hf download" in err
    assert err.count("\n") == 1
