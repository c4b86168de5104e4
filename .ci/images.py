"""Makes the images of the README from a real index of the demonstration: `make images`.

``docs/images/page.webp`` is the page of ``lince-rag serve`` in headless Chromium, after a question, with its first
citation open. ``docs/images/terminal.svg`` is what the commands print, shown one line after the other.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from io import BytesIO, StringIO
from pathlib import Path
from typing import Final

import httpx
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from rich.console import Console
from rich.text import Text

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LINCE: Final = [sys.executable, "-m", "lince_rag.cli.app"]
ENVIRONMENT: Final = {**os.environ, "LC_ALL": "es_ES.UTF-8", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}

COLUMNS: Final = 92
COMMANDS: Final = (
    ["ingest", "papeles", "--index", "casa"],
    ["ask", "¿Cuánto es la fianza del contrato de alquiler?", "--index", "casa"],
    ["ask", "Quem ganhou o concurso de matemática da escola?", "--index", "casa"],
    ["ask", "¿Qué equipo ganó la liga de fútbol en 2019?", "--index", "casa"],
)
PAGE_QUESTION: Final = "¿Qué presión debe tener la caldera en frío?"
# Of the page on the screen; the picture has 1.5 times as many pixels.
WINDOW: Final = {"width": 1320, "height": 700}
# How long the server and the page may take, and the longest wait that the terminal shows.
SECONDS: Final = 60
SHOWN_SECONDS: Final = 2.0

# Rich's own form loads a font from another machine; this one does not, and its lines appear one after the other.
SVG: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(arguments: list[str], folder: Path) -> tuple[str, float]:
    """Run the command line as on a terminal; return what it prints, and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [*LINCE, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
        env={**ENVIRONMENT, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
    )  # fmt: skip
    # Links to files of this machine are of no use to others.
    return re.sub(r"\x1b\]8;[^\x1b]*\x1b\\", "", done.stdout), time.monotonic() - started


def typed(arguments: list[str]) -> str:
    """Return a command as a person types it."""
    return " ".join(f'"{each}"' if " " in each else each for each in arguments)


def draw_terminal(folder: Path) -> str:
    """Run the commands; return an SVG of what they print, each line shown when it would be."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, highlight=False)
    # When each line appears: a second to read what is there, and the time of the command.
    moments: list[float] = []
    clock = 0.5
    for arguments in COMMANDS:
        shown, seconds = run(arguments, folder)
        for number, line in enumerate([f"\x1b[32m$\x1b[0m lince-rag {typed(arguments)}", *shown.splitlines(), ""]):
            text = Text.from_ansi(line)
            console.print(text)
            clock += min(seconds, SHOWN_SECONDS) if number == 1 else 0.1
            moments += [clock] * len(text.wrap(console, COLUMNS) or [text])
        clock += 1.0
    svg = console.export_svg(title="lince-rag", code_format=SVG, unique_id="lince")
    delays = "".join(f".l{number}{{animation-delay:{moment:.1f}s}}" for number, moment in enumerate(moments))
    style = (
        "@media (prefers-reduced-motion: no-preference) {"
        "[class*=' l'] { animation: lince-appear .1s both; } @keyframes lince-appear { from { opacity: 0 } }\n"
        f"{delays}}}\n</style>"
    )
    svg = svg.replace("</style>", style, 1)
    line = r'<text class="(\S+)"([^>]*?)clip-path="url\(#lince-line-(\d+)\)"'
    return re.sub(line, r'<text class="\1 l\3"\2', svg)


@contextmanager
def served(index: Path) -> Iterator[str]:
    """Run ``lince-rag serve``; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*LINCE, "serve", "--index", str(index), "--port", str(port)]
    server = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(SECONDS * 10):
            try:
                if httpx.get(f"{address}/readyz").is_success:
                    break
            except httpx.TransportError:
                pass  # It does not listen yet.
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


def photograph_page(index: Path) -> bytes:
    """Ask a question on the page and open its citation; return a picture of the window (WebP)."""
    with served(index) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW, device_scale_factor=1.5, locale="es-ES", color_scheme="light")
        page.goto(address)
        expect(page.locator("#collection option").first).to_be_attached(timeout=SECONDS * 1000)
        page.get_by_role("textbox", name=re.compile("pregunta")).fill(PAGE_QUESTION)
        page.keyboard.press("Enter")
        found = page.locator("article.answered").first
        expect(found.locator(".answer-tools")).to_be_visible(timeout=SECONDS * 1000)
        found.locator(".marker").first.click()
        page.get_by_role("button", name="Página", exact=True).click()
        expect(page.locator("#passage-picture img")).to_be_visible(timeout=SECONDS * 1000)
        page.wait_for_timeout(500)
        picture = page.screenshot()
        browser.close()
    target = BytesIO()
    Image.open(BytesIO(picture)).save(target, "WEBP", quality=82, method=6)
    return target.getvalue()


def main() -> None:
    """Make both images and print their sizes."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, as_file(files("lince_rag.cli") / "demo_documents") as documents:
        shutil.copytree(documents, Path(folder, "papeles"))
        (IMAGES / "terminal.svg").write_text(draw_terminal(Path(folder)), encoding="utf-8")
        (IMAGES / "page.webp").write_bytes(photograph_page(Path(folder, "casa")))
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
