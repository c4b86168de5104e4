"""Files that would take all memory or time of a reader, made when a test asks for them."""

import io
import random
import struct
import zipfile
import zlib
from typing import Final

import docx

MEBIBYTE: Final = 2**20
_DOCUMENT: Final = "word/document.xml"


def _pdf(*objects: bytes) -> bytes:
    """A PDF of these objects, numbered from 1; the first is the catalog."""
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return bytes(out) + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, table)


def _stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), entries, content)


def _page(resources: bytes, content: bytes, *more: bytes) -> bytes:
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<<%s>>>>" % resources
    return _pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page, content, *more)


def recursive_pdf() -> bytes:
    """A page whose form draws itself twenty times."""
    form = _stream(
        b"/F Do " * 20, b"/Type/XObject/Subtype/Form/BBox[0 0 600 800]/Resources<</XObject<</F 5 0 R>>>>"
    )
    return _page(b"/XObject<</F 5 0 R>>", _stream(b"/F Do " * 20), form)


def inflating_pdf() -> bytes:
    """A page of 80 MB of text operators, in 240 kB."""
    content = zlib.compress(b"BT /F1 9 Tf (Hola, que tal) Tj ET\n" * (80 * MEBIBYTE // 34), 9)
    font = b"/Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>"
    return _page(font, _stream(content, b"/Filter/FlateDecode"))


def _docx_with(text: bytes) -> bytes:
    saved = io.BytesIO()
    docx.Document().save(saved)
    out = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data.replace(b"<w:body>", b"<w:body>" + text))
    return out.getvalue()


def lying_docx() -> bytes:
    """A Word file whose text declares 1,000 bytes and inflates to 200 MB."""
    size = 200 * MEBIBYTE
    data = bytearray(_docx_with(b"<w:p/>" * (size // 6)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        local = archive.getinfo(_DOCUMENT).header_offset
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(_DOCUMENT.encode()))
    for place in (local + 22, central + 24):
        data[place : place + 4] = struct.pack("<I", 1000)
    return bytes(data)


def crowded_docx() -> bytes:
    """A Word file with ten million empty elements, in 60 kB."""
    return _docx_with(b"<w:p/>" * 10_000_000)


# A file of each kind, and what its report says.
HOSTILE: Final = {
    "recursion.pdf": (recursive_pdf, "takes more than"),
    "inflating.pdf": (inflating_pdf, "takes more than"),
    "lying.docx": (lying_docx, "not what the archive declares"),
    "crowded.docx": (crowded_docx, "takes more than"),
}


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Change a file as a bad disk or transfer does: other bytes, a piece missing, doubled or zeroed, a cut."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 3, 30))):
        start = generator.randrange(len(changed))
        stop = start + generator.choice((1, 4, 100, len(changed) // 4))
        kind = generator.randrange(5)
        if kind == 0:
            changed[start] = generator.randrange(256)
        elif kind == 1:
            changed[start:stop] = bytes(len(changed[start:stop]))
        elif kind == 2:
            del changed[start:stop]
        elif kind == 3:
            changed[start:start] = changed[start:stop]
        else:
            del changed[start:]
        if not changed:
            return b"\0"
    return bytes(changed)
