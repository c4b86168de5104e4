"""Language identification among Spanish, Portuguese and English."""

from functools import cache
from typing import Any, Final, Literal, cast

Language = Literal["es", "pt", "en"]

LANGUAGES: Final[tuple[Language, ...]] = ("es", "pt", "en")

DEFAULT_LANGUAGE: Final[Language] = "es"

# Below this probability the identifier is guessing (mostly on names and single words); the caller's default
# is the better guess then.
MINIMUM_PROBABILITY: Final = 0.6

# The identifier reads the beginning of a text; more characters change no answer and cost time.
MAXIMUM_CHARACTERS: Final = 2_000


@cache
def _identifier() -> Any:
    """The py3langid model (BSD-3-Clause, 4.5 MB, ships in its wheel) restricted to our languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES))
    return identifier


def detect_language(text: str, default: Language = DEFAULT_LANGUAGE) -> Language:
    """Tell which of Spanish, Portuguese and English a text is written in.

    Args:
        text: A question, a sentence or a document.
        default: The answer for a text too short or too odd to tell.

    Returns:
        ``"es"``, ``"pt"`` or ``"en"``.
    """
    if not any(character.isalpha() for character in text):
        return default
    language, probability = identify_language(text)
    return language if probability >= MINIMUM_PROBABILITY else default


def identify_language(text: str) -> tuple[Language, float]:
    """Tell which of our languages a text is most likely written in, and how likely.

    Args:
        text: A text with letters.

    Returns:
        The language and its probability among the three.
    """
    language, probability = _identifier().classify(text[:MAXIMUM_CHARACTERS])
    return cast(Language, language), float(probability)
