"""Which search a call asks for: the model card's, unless the call says otherwise."""

from typing import Any, Final

from lince_rag.engines.base import GenerationSettings
from lince_rag.prompting.registry import ModelSpec

# Tokens of answer when neither the caller nor the model's card says: the cards' own limits are 128 to 256.
DEFAULT_ANSWER_TOKENS: Final = 256

_SAMPLING: Final = ("temperature", "top_p", "top_k")


def generation_options(spec: ModelSpec, settings: GenerationSettings) -> dict[str, Any]:
    """Merge a call's settings into the model card's.

    ``num_beams`` asks for a beam search; ``temperature=0`` for a greedy one; a temperature, ``top_p`` or
    ``top_k`` for sampling; nothing for what the card does.

    Args:
        spec: The model, with its card's settings.
        settings: The call's settings.

    Returns:
        Keyword arguments of transformers' ``GenerationConfig``, with ``max_new_tokens``, ``num_beams`` and
        ``do_sample`` always there.
    """
    options: dict[str, Any] = {
        "max_new_tokens": DEFAULT_ANSWER_TOKENS, "num_beams": 1, "do_sample": False, **spec.generation
    }  # fmt: skip
    if settings.max_tokens is not None:
        options["max_new_tokens"] = settings.max_tokens
    elif settings.json_schema is not None:
        # The cards' limits are for text; a call of a tool takes a third of them before it says anything.
        options["max_new_tokens"] = max(options["max_new_tokens"], DEFAULT_ANSWER_TOKENS)
    if settings.repetition_penalty is not None:
        options["repetition_penalty"] = settings.repetition_penalty
    asked = {name: value for name in _SAMPLING if (value := getattr(settings, name)) is not None}
    if settings.temperature == 0:
        options |= {"do_sample": False, "num_beams": settings.num_beams or 1}
    elif asked:
        options |= {"do_sample": True, "num_beams": settings.num_beams or 1, **asked}
    elif settings.num_beams is not None:
        options |= {"do_sample": False, "num_beams": settings.num_beams}
    if not options["do_sample"]:
        for name in _SAMPLING:
            options.pop(name, None)
    if options["num_beams"] == 1:
        options.pop("early_stopping", None)
    return options


def without_beams(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that differ in nothing but that there is one beam."""
    return {name: value for name, value in options.items() if name != "early_stopping"} | {"num_beams": 1}


def is_sampling(options: dict[str, Any]) -> bool:
    """Tell whether these options draw at random."""
    return bool(options["do_sample"])


def is_beam_search(options: dict[str, Any]) -> bool:
    """Tell whether these options search with several beams."""
    return int(options["num_beams"]) > 1
