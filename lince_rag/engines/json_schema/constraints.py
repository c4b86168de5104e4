"""Constrained decoding: tokens that do not lead to valid JSON of the schema are never sampled."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from lince_rag.engines.json_schema.building import SchemaBuilder, TooLargeError
from lince_rag.engines.json_schema.grammar import LEADING_BLANKS, Piece, is_object, to_json, write_grammar
from lince_rag.engines.json_schema.scalars import Bounds
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError

# The roomier first: items of a list, nesting, digits.
_SHAPES: Final = (
    (8, 3, 12), (4, 3, 12), (8, 2, 12), (4, 2, 12), (2, 2, 12), (4, 1, 12), (2, 1, 9), (1, 1, 9), (1, 1, 3),
    (0, 1, 3), (0, 0, 2),
)  # fmt: skip

# Bytes of a string that a shape had better leave room for; with less room, less will do.
_COMFORTABLE: Final = (48, 16, 4, 0)


def read_schema(text: str) -> Any:
    """Read a JSON schema.

    Args:
        text: The schema, as JSON.

    Returns:
        The schema.

    Raises:
        ConfigurationError: It is no JSON, or no JSON schema.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(text)
        # Half a surrogate pair, NaN and numbers without end are none either.
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigurationError(
            f"The JSON schema is none: at {error.json_path}, {error.message}.",
            hint="Write it as draft 2020-12 says.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The JSON schema {text[:80]!r} is no JSON: {error}.", hint="Give an object, true or false, as JSON."
        ) from error
    return schema


def bound_schema(schema: Any, limit: int, beside: int = 1) -> Piece:
    """Bound a schema so that its longest value fits, with as much room for its strings as there is.

    Args:
        schema: A JSON schema.
        limit: Tokens at most; every one is at least one byte.
        beside: How many of them are not for the value, such as the end of the answer.

    Returns:
        What the schema allows within the limit.

    Raises:
        ConfigurationError: The schema has a keyword that cannot be held to, or no value of it fits.
    """
    room = limit - beside
    costs = []
    for comfortable in _COMFORTABLE:
        for items, depth, digits in _SHAPES:
            bounds = Bounds(comfortable, items, depth, digits, min(4, digits - 1))
            node = _build(schema, bounds)
            if node is None:
                continue
            costs.append(node.cost)
            if node.cost <= room:
                return _roomiest(schema, bounds, node, room)
    if not costs:
        raise ConfigurationError(
            f"The JSON schema {to_json(schema)[:200]} allows no value, or only values that nest too deep.",
            hint="Check its types, limits and references.",
        )
    raise ConfigurationError(
        f"The JSON schema does not fit into {limit} tokens: its shortest form may take {min(costs) + beside}.",
        hint="Set max_tokens higher, or bound the schema tighter with maxLength, maxItems or fewer properties.",
    )


def _roomiest(schema: Any, bounds: Bounds, node: Piece, room: int) -> Piece:
    """Give the strings as many bytes as fit."""
    low, high = bounds.text, room + 1
    while high - low > 1:
        middle = (low + high) // 2
        larger = _build(schema, replace(bounds, text=middle))
        if larger is not None and larger.cost <= room:
            low, node = middle, larger
        else:
            high = middle
    return node


def _build(schema: Any, bounds: Bounds) -> Piece | None:
    try:
        return SchemaBuilder(schema, bounds).build(schema, ())
    except (TooLargeError, RecursionError):
        return None


# What the JSON of an answer begins with, and its text does not, where it may be either.
OBJECT_START: Final = "{"

# Grammars that are kept compiled.
_KEPT: Final = 64


class Constraints:
    """Compiles schemas for one tokenizer.

    Args:
        tokenizer: A transformers tokenizer.
        end_ids: The tokens that end an answer.

    Raises:
        MissingExtraError: llguidance is not installed.
        ConfigurationError: The tokenizer has no tokenizer.json to read the bytes of its tokens from.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int]) -> None:
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise MissingExtraError("llguidance", "models") from error
        if not tokenizer.is_fast:
            raise ConfigurationError(
                f"A tokenizer of type {type(tokenizer).__name__} cannot be constrained.",
                hint="Use a checkpoint with a tokenizer.json.",
            )
        self.end_ids = sorted(end_ids)
        self._tokens = from_tokenizer(tokenizer, eos_token=self.end_ids)
        self._compiled: Callable[..., Any] = lru_cache(_KEPT)(self._compile)

    def processor(
        self, schema: str, limit: int, forbidden: tuple[str, ...] = (), *, text_allowed: bool = False
    ) -> "SchemaProcessor":
        """Make what masks the scores of one batch.

        Args:
            schema: A JSON schema, as JSON.
            limit: Tokens of the answer at most, its end included.
            forbidden: Texts that the free strings of the JSON must not hold.
            text_allowed: Whether the answer may also be text that does not begin with ``OBJECT_START``.

        Returns:
            A logits processor for transformers.

        Raises:
            ConfigurationError: The schema cannot be held to, or not within the limit.
        """
        start = self._compiled(schema, limit, tuple(filter(None, forbidden)), text_allowed)
        return SchemaProcessor(start, self.end_ids)

    def _compile(self, schema: str, limit: int, forbidden: tuple[str, ...], text_allowed: bool) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        # Ten times what is usual: it is better to wait for a token than to give up an answer in its middle.
        limits = LLParserLimits(step_lexer_fuel=2_000_000, step_max_items=500_000)
        grammar = _grammar(schema, limit, forbidden, text_allowed)
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConfigurationError(
                f"The JSON schema cannot be held to within {limit} tokens: {_reason(matcher)}.",
                hint="Check its patterns and limits, or set max_tokens higher.",
            )
        return matcher


class SchemaProcessor:
    """Masks the tokens that would lead away from a schema: a logits processor for one call of ``generate``.

    Args:
        start: The compiled schema, at its beginning; it stays there.
        end_ids: The tokens that end an answer.
    """

    def __init__(self, start: Any, end_ids: Sequence[int]) -> None:
        self._start = start
        self._end_ids = list(end_ids)
        self._matchers: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Set the scores of the other tokens to minus infinity."""
        import torch

        if self._matchers:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._consume(row, token)
        else:
            self._matchers = [self._start.deep_copy() for _ in range(len(input_ids))]
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        for row, matcher in enumerate(self._matchers):
            if matcher is None:
                allowed[row, self._end_ids] = True
            else:
                mask = self._mask(matcher)[: scores.shape[1]]
                allowed[row, : len(mask)] = mask
        allowed = allowed.to(scores.device)
        masked = scores.masked_fill(~allowed, float("-inf"))
        # Where other processors have ruled out all that is left, all of it is as good.
        lost = torch.isneginf(masked).all(dim=-1, keepdim=True)
        return masked.masked_fill(lost & allowed, 0.0)

    def _consume(self, row: int, token: int) -> None:
        """Follow an answer; one that has ended is followed by padding, and no longer looked at."""
        matcher = self._matchers[row]
        # No token of an answer gets past the mask: what the matcher does not take pads what a stop text ended.
        if matcher and (token in self._end_ids or not matcher.consume_token(token)):
            self._matchers[row] = None

    def _mask(self, matcher: Any) -> Any:
        """Return the tokens that may come next, as booleans."""
        import numpy
        import torch

        bits = numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8)
        if matcher.is_error() or not bits.any():
            raise EngineError(f"The JSON schema is too complex: {_reason(matcher)}.", hint="Use a simpler one.")
        return torch.from_numpy(numpy.unpackbits(bits, bitorder="little").astype(bool))


@lru_cache(_KEPT)
def _grammar(schema: str, limit: int, forbidden: tuple[str, ...], text_allowed: bool) -> str:
    """Write the grammar of a schema, which is the same for every tokenizer."""
    # The last token of the answer is its end.
    node = bound_schema(read_schema(schema), limit, 1 + LEADING_BLANKS)
    if text_allowed and not is_object(node):
        raise ConfigurationError(
            f"With text_allowed, all that the JSON schema {schema[:80]!r} allows must be objects.",
            hint='Give it the type "object".',
        )
    return write_grammar(node, forbidden, text_allowed=text_allowed)


def _reason(matcher: Any) -> str:
    lines: list[str] = matcher.get_error().splitlines() or ["no token can follow"]
    return lines[0].rstrip(".")
