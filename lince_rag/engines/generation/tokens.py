"""What engines with a tokenizer share: native token ids, stop texts, and the checks before decoding."""

import logging
from dataclasses import replace
from functools import cached_property
from typing import Any

from lince_rag.engines.base import (
    Engine,
    GenerationSettings,
    check_window,
    generation_options,
    is_beam_search,
    without_beams,
)
from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.checkpoints.loading import load_tokenizer
from lince_rag.engines.generation.encoding import encode_prompt
from lince_rag.engines.json_schema.constraints import OBJECT_START
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import Prompt

logger = logging.getLogger(__name__)


class TokenEngine(Engine):
    """An engine whose prompts are token ids of the model's own tokenizer."""

    def __init__(self, spec: ModelSpec, options: LoadingOptions) -> None:
        self.spec = spec
        self.options = options
        self._beam_warnings: set[str] = set()

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded without the weights."""
        return load_tokenizer(self.spec, self.options)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without those that the tokenizer adds around it."""
        # verbose: a text longer than the window is normal here and needs no warning.
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def measure(self, prompt: Prompt) -> Prompt:
        """Return the prompt with its token ids and their number; a measured prompt as it is."""
        ids = self.encode(prompt)
        return replace(prompt, length=len(ids), ids=tuple(ids))

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids that the model reads."""
        return encode_prompt(prompt, self.tokenizer) if prompt.ids is None else list(prompt.ids)

    def _options(self, settings: GenerationSettings) -> dict[str, Any]:
        options = generation_options(self.spec, settings)
        return options if settings.json_schema is None else self._with_one_beam(options, "follow a JSON schema")

    def _with_one_beam(self, options: dict[str, Any], purpose: str) -> dict[str, Any]:
        """Replace a beam search by one beam, with a warning the first time."""
        if not is_beam_search(options):
            return options
        if purpose not in self._beam_warnings:
            logger.warning("%s: a beam search cannot %s; using one beam.", self.spec.name, purpose)
            self._beam_warnings.add(purpose)
        return without_beams(options)

    def _stops(self, settings: GenerationSettings) -> tuple[tuple[str, ...], str]:
        """Return the texts that cut an answer, and the beginning of an answer that they do not cut.

        JSON is never cut; instead, its strings cannot contain a stop text.
        """
        texts = (*settings.stop, *self.spec.stop)
        if settings.json_schema is None:
            return texts, ""
        return (texts, OBJECT_START) if settings.text_allowed else ((), "")

    def _encode_checked(self, prompt: Prompt) -> list[int]:
        ids = self.encode(prompt)
        check_window(self.spec.name, len(ids), self.context_window)
        return ids
