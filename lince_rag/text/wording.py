"""The data tables of ``prompts/``, and the localised wording among them."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from lince_rag.text.language import Language


@cache
def load_table(name: str) -> dict[str, Any]:
    """Read a table of ``prompts/``, once; callers must not change it.

    Args:
        name: The file's name without ``.toml``.
    """
    return tomllib.loads((files("lince_rag.prompts") / f"{name}.toml").read_text(encoding="utf-8"))


def wording(key: str, language: Language, **values: object) -> str:
    """Look up a localised text in ``prompts/wording.toml``.

    Args:
        key: The name of the text.
        language: The reader's language.
        **values: Values for the text's ``{placeholders}``.

    Raises:
        KeyError: There is no such text: a programming error.
    """
    text: str = load_table("wording")[key][language]
    return text.format(**values)
