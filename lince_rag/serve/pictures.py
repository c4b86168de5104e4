"""The routes that show where a passage stands: its page and heading, and the page of a PDF as a picture."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, Field

from lince_rag.chain.grounding import page_of
from lince_rag.documents import rendering
from lince_rag.serve.collections import Collection, PublicDocument
from lince_rag.serve.guard import Places, RefusedError
from lince_rag.serve.server import Server, key_of

if TYPE_CHECKING:
    from fastapi import APIRouter

# Pages that are drawn at once, and that wait for their turn.
DRAWN: Final = 2
WAITING: Final = 16
SECONDS: Final = 20.0

# Pictures that are kept: who turns back a page, or opens the next citation of the same one, waits for nothing.
KEPT: Final = 24
PICTURE_BYTES: Final = 8 * 2**20

# The longest passage that is looked for on a page, and what of the text around it tells equal ones apart.
QUOTE_CHARACTERS: Final = 4_000
CONTEXT_CHARACTERS: Final = 60


class PlaceOut(BaseModel):
    """Where a position of a document's text is."""

    page: int | None = Field(description="From 1; null if the document has no pages.")
    heading: str = Field(description="Headings above it, outermost first.")
    has_pages: bool = Field(description="Whether its pages can be shown as pictures.")


@dataclass(frozen=True)
class Picture:
    """A page as a picture.

    Attributes:
        png: The picture.
        pages: The pages of the document.
        boxes: The lines of the passage that were found on it.
    """

    png: bytes
    pages: int
    boxes: int


def create_router(server: Server) -> "APIRouter":
    """Return the routes."""
    from fastapi import APIRouter, Query
    from starlette.requests import Request
    from starlette.responses import Response

    router = APIRouter(prefix="/v1", tags=["documents"])
    limits = replace(server.limits, answers=DRAWN, waiting=WAITING, seconds=SECONDS)
    places, kept = Places(limits), _Kept()
    Name = Annotated[str | None, Query(max_length=64)]  # noqa: N806 - a type.
    Offset = Annotated[int, Query(ge=0, le=10**9)]  # noqa: N806 - a type.

    @router.get("/documents/{document}/place")
    async def place(document: str, request: Request, collection: Name = None, start: Offset = 0) -> PlaceOut:
        """Say on which page and below which headings a position of the text is."""
        found = server.collection(key_of(request), collection)
        return await asyncio.to_thread(_place, found, server.document(found, document), start)

    @router.get(
        "/documents/{document}/pages/{page}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}},
    )
    async def page(
        document: str,
        page: int,
        request: Request,
        collection: Name = None,
        start: Offset = 0,
        end: Offset = 0,
    ) -> Response:
        """Return a page of a PDF as a picture, with the passage from `start` to `end` of the text boxed.

        The header `x-pages` has the number of pages, `x-boxes` that of the lines that were found.
        """
        found = server.collection(key_of(request), collection)
        which = server.document(found, document)
        asked = await asyncio.to_thread(_request, found, which, page, start, end)
        picture = kept.get(asked)
        if picture is None:
            async with places.take():
                picture = await asyncio.to_thread(draw, asked)
            kept.put(asked, picture)
        headers = {"x-pages": str(picture.pages), "x-boxes": str(picture.boxes)}
        return Response(picture.png, media_type="image/png", headers=headers)

    return router


def _place(collection: Collection, document: PublicDocument, start: int) -> PlaceOut:
    ledger = collection.index.ledger
    ids = ledger.select_ids("c.source = ? AND c.start <= ? AND c.end > ?", [document.source, start, start], 1)
    metadata = next((each.metadata for each in ledger.chunks(ids).values()), {})
    return PlaceOut(
        page=page_of(metadata, start),
        heading=str(metadata.get("heading") or ""),
        has_pages=_pdf(collection, document) is not None,
    )


def _pdf(collection: Collection, document: PublicDocument) -> Path | None:
    """Return the file of a document, if it is a PDF."""
    path = collection.file(document)
    try:
        if path is not None:
            with path.open("rb") as file:
                return path if b"%PDF-" in file.read(1024) else None
    except OSError:
        pass
    return None


def _request(collection: Collection, document: PublicDocument, page: int, start: int, end: int) -> dict[str, Any]:
    path = _pdf(collection, document)
    if path is None:
        raise RefusedError(404, "no_picture", "The pages of this document cannot be shown as pictures.")
    text = collection.index.text(document.source)
    end = min(end, start + QUOTE_CHARACTERS, len(text))
    # By time and size, a changed file is another one.
    state = path.stat()
    return {
        "path": str(path),
        "version": f"{state.st_mtime_ns} {state.st_size}",
        "page": page,
        "quote": text[start:end],
        "before": text[max(0, start - CONTEXT_CHARACTERS) : start] if start < end else "",
        "after": text[end : end + CONTEXT_CHARACTERS] if start < end else "",
    }


class _Kept:
    """The last pictures, by what was asked for."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, Picture] = OrderedDict()

    def get(self, asked: dict[str, Any]) -> Picture | None:
        key = json.dumps(asked)
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def put(self, asked: dict[str, Any], picture: Picture) -> None:
        self._pictures[json.dumps(asked)] = picture
        while len(self._pictures) > KEPT:
            self._pictures.popitem(last=False)


def draw(asked: dict[str, Any]) -> Picture:
    """Draw a page in a process of its own.

    Args:
        asked: What ``rendering.render`` takes.

    Raises:
        RefusedError: There is no such page (404), or the file cannot be drawn within the limits (422).
    """
    process = subprocess.Popen(
        # -P: the working folder may hold anything; the process imports from where this one does.
        [sys.executable, "-P", "-m", rendering.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
    )
    assert process.stdin
    assert process.stdout
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps(asked).encode())
        process.stdin.close()
        output = process.stdout.read(PICTURE_BYTES)
    except BrokenPipeError:
        output = b""
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    line, newline, png = output.partition(b"\n")
    said: dict[str, Any] = json.loads(line) if newline else {"error": "no_picture"}
    if said.get("error") == "no_page":
        raise RefusedError(404, "no_page", f"The last page of the document is {said['pages']}.")
    if "error" in said or len(output) >= PICTURE_BYTES:
        raise RefusedError(422, "no_picture", "The page cannot be shown as a picture.")
    return Picture(png, said["pages"], said["boxes"])
