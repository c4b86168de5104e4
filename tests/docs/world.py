"""What the pages take for granted: a person's home with documents, an index of them, and the models they name.

The documents are small, and the models tiny ones of the true architectures with random weights. Only what the text
of a page names is made.
"""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import gguf
from huggingface_hub.constants import HF_HUB_CACHE

from lince_rag.prompting.registry import get_model
from tests.checkpoints import shared_checkpoint
from tests.gguf_files import shared_gguf
from tests.integration_tests.classifier_samples import save_tiny_classifier
from tests.integration_tests.embedder_samples import save_tiny_embedder
from tests.servers import API_KEY, llama_server

# Long enough for prompts with documents.
WINDOW: Final = 2048

RENT: Final = """\
Contrato de alquiler de vivienda

El contrato de alquiler vence el 31 de agosto de 2027.

El alquiler es de 950 euros al mes. La fianza es de 1.900 euros y se devuelve un mes después de dar las llaves.
"""
LIFT: Final = "Ata da assembleia de condóminos\n\nO novo elevador custa 41.500 euros e é instalado em setembro.\n"

# A phrase of a page → what it expects to find there.
CHECKPOINTS: Final = {
    "models/lince-zero": "lince-zero",
    "models/aira": "aira-2-portuguese-1b7",
    "models/alpaca-lora-ptbr-7b": "alpaca-lora-ptbr-7b",
    "models/alpaca-lora": "alpaca-lora-ptbr-7b",
    "models/gemma-3-4b-it": "gemma-3-4b",
    "models/gemma": "gemma-3-4b",
    "models/tucano": "tucano2-0.5b",
    "models/my-llama": "llama-2-7b-spanish",
}
GGUF_FILES: Final = {
    "models/llama-7b-spanish.Q4_K_M.gguf": "llama-2-7b-spanish",
    "lince-zero.Q8_0.gguf": "lince-zero",
}
# Folders that have a chat template of their own: that of the registry's model, and what is different in it.
PUBLISHED: Final = {
    "models/gemma-3-4b-it": ("gemma-3-4b", "", ""),
    "models/gemma": ("gemma-3-4b", "", ""),
    "models/tucano": (
        "tucano2-0.5b",
        r"message['content'] ~ '<|im_end|>\n'",
        r"(message['content'] | trim) ~ '<|im_end|>\n\n'",
    ),
}
HUB: Final[dict[str, Callable[[Path], object]]] = {
    "intfloat/multilingual-e5-large": lambda folder: save_tiny_embedder(
        folder, {"query": "query: ", "document": "passage: "}
    ),
    "BAAI/bge-reranker-v2-m3": lambda folder: save_tiny_classifier(
        folder, [("La fianza es de 1.900 euros.", 1.0), ("El alquiler es de 950 euros.", 0.0)], steps=0
    ),
    "clibrain/lince-zero": lambda folder: _copy("lince-zero", folder),
}
MODEL_SERVER: Final = "http://localhost:8000"


def make_world(home: Path, text: str, run: Callable[..., Any]) -> dict[str, str]:
    """Put into a folder what a page expects.

    Args:
        home: The folder, which is the home and the working folder of the page's reader.
        text: The page.
        run: Runs `lince-rag` there, given its arguments.

    Returns:
        What the addresses and keys of servers stand for.
    """
    _write_documents(home / "Documents")
    for index in ("contracts", "atas"):
        if f"--index {index}" in text or f'"{index}"' in text:
            run("ingest", f"Documents/{index}", "--index", index)
    if "~/Scans" in text:
        _write_scan(home / "Scans" / "recibo.png")
    _make_models(home, text)
    if MODEL_SERVER not in text:
        return {}
    server = llama_server(_gguf("lince-zero"), get_model("lince-zero").template_text())
    return {MODEL_SERVER: server.base_url, "secret-key": API_KEY}


def _make_models(home: Path, text: str) -> None:
    for path, kind in CHECKPOINTS.items():
        if re.search(rf"{re.escape(path)}(?![\w.-])", text):
            _copy(kind, home / path)
            if path in PUBLISHED:
                _publish_template(home / path, *PUBLISHED[path])
    if "alpaca-lora" in text:
        base = shared_checkpoint("alpaca-lora-ptbr-7b", context_window=WINDOW).base_path
        assert base is not None
        shutil.copytree(base, home / "models" / "llama-7b")
    for path, kind in GGUF_FILES.items():
        if path in text:
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_gguf(kind), home / path)
    for name, make in HUB.items():
        if name in text:
            _into_hub(name, make)


def _gguf(kind: str) -> Path:
    return shared_gguf(kind, context_window=WINDOW, quantization=gguf.GGMLQuantizationType.F16)


def _copy(kind: str, folder: Path) -> None:
    shutil.copytree(shared_checkpoint(kind, context_window=WINDOW).path, folder, dirs_exist_ok=True)


def _publish_template(folder: Path, model: str, ours: str, theirs: str) -> None:
    template = get_model(model).template_text()
    assert ours in template
    template = template.replace(ours, theirs) if ours else template
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_documents(folder: Path) -> None:
    from fpdf import FPDF

    for name in ("contracts", "atas", "contracts/2024"):
        (folder / name).mkdir(parents=True)
    (folder / "contracts" / "contrato-de-alquiler.txt").write_text(RENT, encoding="utf-8")
    (folder / "atas" / "ata.txt").write_text(LIFT, encoding="utf-8")
    for name, lines in (
        ("contrato.pdf", ["El seguro del coche vence el 3 de mayo de 2027."]),
        ("contrato-2019.pdf", ["El contrato de la luz es de 2019."]),
        (
            "2024/poliza.pdf",
            [
                # Long enough for a passage of each page.
                " ".join(f"El punto {number} de la póliza trata de la habitación {number}." for number in numbers)
                for numbers in (range(1, 31), range(31, 61), range(61, 91))
            ],
        ),
    ):
        pdf = FPDF()
        pdf.set_font("helvetica", size=12)
        for line in lines:
            pdf.add_page()
            pdf.multi_cell(0, text=line)
        pdf.output(str(folder / "contracts" / name))


def _write_scan(file: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    file.parent.mkdir()
    picture = Image.new("L", (1000, 200), 255)
    ImageDraw.Draw(picture).text((20, 60), "El recibo es de 45 euros.", font=ImageFont.load_default(60))
    picture.save(file)


@cache
def _into_hub(name: str, make: Callable[[Path], object]) -> None:
    """Put a model where the hub's library keeps what it has downloaded."""
    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    revision = "0" * 40
    snapshot = folder / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    make(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision, encoding="ascii")
