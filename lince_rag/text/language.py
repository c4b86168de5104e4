"""Spanish, Portuguese and English: which one a text is in, the data of ``prompts/``, and the localised wording."""

import tomllib
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Final, Literal, cast

from lince_rag.errors import LinceError

Language = Literal["es", "pt", "en"]

LANGUAGES: Final[tuple[Language, ...]] = ("es", "pt", "en")

DEFAULT_LANGUAGE: Final[Language] = "es"

# Below this probability the identifier is guessing (mostly on names and single words), and the caller's default
# is the better guess.
MINIMUM_PROBABILITY: Final = 0.6

# The identifier reads only the beginning of a text: more characters do not change the result and cost time.
MAXIMUM_CHARACTERS: Final = 2_000


@cache
def _identifier() -> Any:
    """The py3langid model (BSD-3-Clause, 4.5 MB, included in its wheel), restricted to our languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    try:
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as error:
        # It is unpacked into a temporary file.
        raise LinceError(
            f"The language identifier cannot be loaded: {error}.",
            hint="Free space in the folder for temporary files, or set TMPDIR to another one.",
        ) from error
    identifier.set_languages(list(LANGUAGES))
    return identifier


def detect_language(text: str, default: Language = DEFAULT_LANGUAGE) -> Language:
    """Return the language of a text, or the default if the text is too short or too unusual to identify."""
    if not any(character.isalpha() for character in text):
        return default
    language, probability = identify_language(text)
    return language if probability >= MINIMUM_PROBABILITY else default


def identify_language(text: str) -> tuple[Language, float]:
    """Return the most likely language of a text with letters, and its probability among our three."""
    return _identify(text[:MAXIMUM_CHARACTERS])


# A question is identified by every part that it passes (1 ms each time).
@lru_cache(maxsize=256)
def _identify(text: str) -> tuple[Language, float]:
    language, probability = _identifier().classify(text)
    return cast(Language, language), float(probability)


@cache
def load_table(name: str) -> dict[str, Any]:
    """Read ``prompts/<name>.toml``, once; callers must not change the table."""
    return tomllib.loads((files("lince_rag.prompts") / f"{name}.toml").read_text(encoding="utf-8"))


def wording(key: str, language: Language, **values: object) -> str:
    """Return a text of ``prompts/wording.toml`` in the reader's language, its ``{placeholders}`` filled in."""
    text: str = load_table("wording")[key][language]
    return text.format(**values)
