"""Bytes of each format → blocks of text with headings and pages → one text with its sections.

A reader takes the whole file as bytes and returns a ``Content``. What it refuses it reports as
``Unreadable``, which ``documents.FileLoader`` turns into a ``DocumentError`` that names the file.
"""

from lince_rag.documents.readers.blocks import Block, Content, Unreadable, assemble, squeeze
from lince_rag.documents.readers.formats import FORMATS, Format, check_kind

__all__ = ["FORMATS", "Block", "Content", "Format", "Unreadable", "assemble", "check_kind", "squeeze"]
