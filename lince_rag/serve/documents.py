"""The routes of the HTTP API for documents: lists, texts, uploads, deletions, and how far an ingestion is."""

import asyncio
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from lince_rag.documents.files import FORMATS
from lince_rag.errors import IndexLockedError
from lince_rag.serve.collections import Collection, PublicDocument
from lince_rag.serve.guard import RefusedError
from lince_rag.serve.jobs import safe_name
from lince_rag.serve.messages import DocumentOut, DocumentsOut, JobOut, TextOut, public_document
from lince_rag.serve.server import Server, key_of
from lince_rag.serve.state import Job

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.requests import Request

MOST_FILES: Final = 100
DOCUMENTS_PER_PAGE: Final = 200
TEXT_CHARACTERS: Final = 200_000
JOBS_LISTED: Final = 50

# How often a deletion waits for another process that writes, in tenths of a second.
LOCK_TRIES: Final = 50

_UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}


def create_router(server: Server) -> "APIRouter":
    """Return the routes."""
    from fastapi import APIRouter, Query
    from starlette.requests import Request

    router = APIRouter(prefix="/v1", tags=["documents"])
    Name = Annotated[str | None, Query(max_length=64)]  # noqa: N806 - a type.

    @router.get("/documents")
    async def documents(
        request: Request,
        collection: Name = None,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=DOCUMENTS_PER_PAGE)] = 50,
        name: Annotated[str, Query(max_length=200, description="What the name or title contains.")] = "",
    ) -> DocumentsOut:
        """List documents by name, in pages."""
        found = server.collection(key_of(request), collection)
        every = await asyncio.to_thread(found.documents)
        wanted = name.casefold()
        matching = [each for each in every if wanted in each.name.casefold() or wanted in each.title.casefold()]
        listed = [public_document(found, each) for each in matching[offset : offset + limit]]
        return DocumentsOut(documents=listed, total=len(matching), offset=offset)

    @router.post("/documents", status_code=202, openapi_extra=_UPLOAD)
    async def upload(request: Request, collection: Name = None) -> JobOut:
        """Send files; they are read in the background, and a file of the same name is replaced."""
        found = server.collection(key_of(request), collection, "write")
        files = await _receive(request, found)
        job = await asyncio.to_thread(server.state.add_job, found.name, files)
        server.ingestion.notice()
        return _job_out(job)

    @router.get("/documents/{document}")
    async def document(document: str, request: Request, collection: Name = None) -> DocumentOut:
        """Describe a document."""
        found = server.collection(key_of(request), collection)
        return public_document(found, server.document(found, document))

    @router.get("/documents/{document}/text")
    async def text(
        document: str,
        request: Request,
        collection: Name = None,
        start: Annotated[int, Query(ge=0, le=10**9)] = 0,
        end: Annotated[int | None, Query(ge=0, le=10**9)] = None,
    ) -> TextOut:
        """Return the text of a document, at most 200,000 characters at once."""
        found = server.collection(key_of(request), collection)
        which = server.document(found, document)
        whole = await asyncio.to_thread(found.index.text, which.source)
        stop = min(len(whole), start + TEXT_CHARACTERS, len(whole) if end is None else end)
        described = {name: getattr(which, name) for name in ("id", "name", "title", "language")}
        part = whole[start:stop]
        return TextOut(**described, start=start, end=start + len(part), characters=len(whole), text=part)

    _add_changes(router, server)
    return router


def _add_changes(router: "APIRouter", server: Server) -> None:
    """Add the routes that change or follow documents that are there."""
    from fastapi import Query
    from starlette.requests import Request
    from starlette.responses import Response

    Name = Annotated[str | None, Query(max_length=64)]  # noqa: N806 - a type.

    @router.post("/documents/{document}/read", status_code=202)
    async def read_again(document: str, request: Request, collection: Name = None) -> JobOut:
        """Read the file of a document again."""
        found = server.collection(key_of(request), collection, "write")
        file = found.file(server.document(found, document))
        if file is None:
            raise RefusedError(409, "no_file", "The file of the document is not there any more.")
        job = await asyncio.to_thread(server.state.add_job, found.name, [str(file)])
        server.ingestion.notice()
        return _job_out(job)

    @router.delete("/documents/{document}", status_code=204)
    async def delete(document: str, request: Request, collection: Name = None) -> Response:
        """Delete a document; what is left of it in the files of the index is deleted in the background."""
        found = server.collection(key_of(request), collection, "write")
        which = server.document(found, document)
        await _delete(found, which)
        await asyncio.to_thread(server.state.add_job, found.name, [])
        server.ingestion.notice()
        return Response(status_code=204)

    @router.get("/jobs")
    async def jobs(request: Request, collection: Name = None) -> list[JobOut]:
        """List the last ingestions, newest first."""
        found = server.collection(key_of(request), collection)
        return [_job_out(each) for each in await asyncio.to_thread(server.state.jobs, found.name, JOBS_LISTED)]

    @router.get("/jobs/{job}")
    async def job(job: str, request: Request) -> JobOut:
        """Say how far an ingestion is."""
        found = await asyncio.to_thread(server.state.job, job)
        if found is None or not key_of(request).may("read", found.collection):
            raise RefusedError(404, "no_job", f"There is no job {job!r}.")
        return _job_out(found)


def _job_out(job: Job) -> JobOut:
    return JobOut(**{name: value for name, value in asdict(job).items() if name != "files"})


async def _receive(request: "Request", collection: Collection) -> list[str]:
    """Keep the files of an upload, each under its name at once; return their paths."""
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    try:
        async with request.form(max_files=MOST_FILES, max_fields=1) as form:
            given = [each for each in form.getlist("files") if isinstance(each, UploadFile)]
            names = [safe_name(each.filename) for each in given]
            if not given:
                raise RefusedError(422, "no_files", "The form has no files in its field 'files'.")
            if wrong := [each for each in names if Path(each).suffix.lower() not in FORMATS]:
                raise RefusedError(415, "unsupported", f"Files of this kind are not read: {', '.join(wrong)}.")
            return [
                await asyncio.to_thread(_keep, each, collection.uploads, name)
                for each, name in zip(given, names, strict=True)
            ]
    except HTTPException as error:
        raise RefusedError(error.status_code, "wrong_form", str(error.detail)) from error


def _keep(file: Any, folder: Path, name: str) -> str:
    """Write an uploaded file; a crash leaves either the old or the new one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, part = folder / name, folder / f".{uuid.uuid4().hex}.part"
    try:
        with part.open("xb") as target:
            os.fchmod(target.fileno(), 0o600)
            while block := file.file.read(1 << 20):
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return str(path)


async def _delete(collection: Collection, document: PublicDocument) -> None:
    for tried in range(LOCK_TRIES):
        try:
            await asyncio.to_thread(collection.index.delete, document.source, purge=False)
            break
        except IndexLockedError:
            if tried == LOCK_TRIES - 1:
                raise
            await asyncio.sleep(0.1)
    file = Path(document.source)
    if file.is_relative_to(collection.uploads):
        await asyncio.to_thread(file.unlink, missing_ok=True)
