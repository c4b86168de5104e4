"""The data tables of ``prompts/``, and the localised wording among them."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from lince_rag.text.language import Language


@cache
def load_table(name: str) -> dict[str, Any]:
    """Read ``prompts/<name>.toml``, once; callers must not change the table."""
    return tomllib.loads((files("lince_rag.prompts") / f"{name}.toml").read_text(encoding="utf-8"))


def wording(key: str, language: Language, **values: object) -> str:
    """Return a text of ``prompts/wording.toml`` in the reader's language, its ``{placeholders}`` filled in."""
    text: str = load_table("wording")[key][language]
    return text.format(**values)
