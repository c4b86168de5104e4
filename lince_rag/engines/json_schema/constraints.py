"""Constrained decoding: tokens that do not lead to valid JSON of a schema are never sampled."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from lince_rag.engines.json_schema.building import SchemaBuilder, TooLargeError
from lince_rag.engines.json_schema.grammar import LEADING_BLANKS, Grammar, Node, is_object, to_json
from lince_rag.engines.json_schema.scalars import Bounds
from lince_rag.errors import ConfigurationError, EngineError, require

# If an answer may be JSON or text, it is JSON if and only if it begins with this.
OBJECT_START: Final = "{"

# Bounds that are tried in this order: items of a list, nesting, digits.
_SHAPES: Final = (
    (8, 3, 12), (4, 3, 12), (8, 2, 12), (4, 2, 12), (2, 2, 12), (4, 1, 12), (2, 1, 9), (1, 1, 9), (1, 1, 3),
    (0, 1, 3), (0, 0, 2),
)  # fmt: skip

# Bytes that every string should have room for; all shapes are tried with the first before the next.
_STRING_ROOMS: Final = (48, 16, 4, 0)

# Maximum number of compiled grammars in each cache.
_CACHE_SIZE: Final = 64


class Constraints:
    """Compiles schemas for one tokenizer, which must have a tokenizer.json with the bytes of its tokens."""

    def __init__(self, tokenizer: Any, end_ids: Sequence[int]) -> None:
        require("models", "llguidance")
        from llguidance.hf import from_tokenizer

        if not tokenizer.is_fast:
            raise ConfigurationError(
                f"A tokenizer of type {type(tokenizer).__name__} allows neither schemas nor logprobs.",
                hint="Use a checkpoint with a tokenizer.json.",
            )
        self.end_ids = sorted(end_ids)
        self.vocabulary = from_tokenizer(tokenizer, eos_token=self.end_ids)
        self._compiled: Callable[..., Any] = lru_cache(_CACHE_SIZE)(self._compile)

    def processor(
        self, schema: str, limit: int, forbidden: tuple[str, ...] = (), *, text_allowed: bool = False
    ) -> "SchemaProcessor":
        """Return the logits processor of one batch.

        The answer, a JSON value or, with ``text_allowed``, a text that does not begin with ``OBJECT_START``, has
        at most ``limit`` tokens with its end. The free strings of the JSON contain no ``forbidden`` text.
        """
        start = self._compiled(schema, limit, tuple(filter(None, forbidden)), text_allowed)
        return SchemaProcessor(start, self.end_ids)

    def _compile(self, schema: str, limit: int, forbidden: tuple[str, ...], text_allowed: bool) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        # Ten times the usual limits: waiting for a token is better than giving up in the middle of an answer.
        limits = LLParserLimits(step_lexer_fuel=2_000_000, step_max_items=500_000)
        grammar = schema_grammar(schema, limit, forbidden, text_allowed=text_allowed)
        matcher = LLMatcher(self.vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConfigurationError(
                f"The JSON schema {schema[:80]!r} cannot be enforced within {limit} tokens: {_reason(matcher)}.",
                hint="Check its patterns and limits, or set max_tokens higher.",
            )
        return matcher


class SchemaProcessor:
    """Masks the tokens that would violate a schema: a logits processor for one call of ``generate``."""

    def __init__(self, start: Any, end_ids: Sequence[int]) -> None:
        # The compiled schema at its beginning; each row gets a copy.
        self._start = start
        self._end_ids = list(end_ids)
        self._matchers: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Set the scores of the masked tokens to minus infinity."""
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
        # If other processors have excluded all allowed tokens, all of them are equally good.
        lost = torch.isneginf(masked).all(dim=-1, keepdim=True)
        return masked.masked_fill(lost & allowed, 0.0)

    def _consume(self, row: int, token: int) -> None:
        """Advance the matcher of a row, and drop it when the answer has ended, because padding follows."""
        matcher = self._matchers[row]
        # The mask excludes every other token, so one that the matcher rejects is padding after a stop text.
        if matcher and (token in self._end_ids or not matcher.consume_token(token)):
            self._matchers[row] = None

    def _mask(self, matcher: Any) -> Any:
        """Return the tokens that may come next, as a tensor of booleans."""
        import numpy
        import torch

        bits = numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8)
        if matcher.is_error() or not bits.any():
            raise EngineError(f"The JSON schema is too complex: {_reason(matcher)}.", hint="Use a simpler schema.")
        return torch.from_numpy(numpy.unpackbits(bits, bitorder="little").astype(bool))


def _reason(matcher: Any) -> str:
    lines: list[str] = matcher.get_error().splitlines() or ["no token can follow"]
    return lines[0].rstrip(".")


@lru_cache(_CACHE_SIZE)
def schema_grammar(
    schema: str,
    limit: int,
    forbidden: tuple[str, ...] = (),
    *,
    text_allowed: bool = False,
    notation: type[Grammar] = Grammar,
) -> str:
    """Write the grammar of a schema, which is the same for every tokenizer; see ``Constraints.processor``."""
    # The last token of the answer is its end.
    node = bound_schema(read_schema(schema), limit, 1 + LEADING_BLANKS)
    if text_allowed and not is_object(node):
        raise ConfigurationError(
            f"With text_allowed, the JSON schema {schema[:80]!r} must allow only objects.",
            hint='Set its type to "object".',
        )
    return notation(forbidden).write(node, text_allowed=text_allowed)


def read_schema(text: str) -> Any:
    """Read and check a JSON schema of draft 2020-12."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(text)
        # Half a surrogate pair, NaN and infinite numbers are not valid JSON either.
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigurationError(
            f"{text[:80]!r} is not a valid JSON schema: at {error.json_path}, {error.message}.",
            hint="Follow JSON Schema draft 2020-12.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The JSON schema {text[:80]!r} is not valid JSON: {error}.", hint="Give an object, true or false."
        ) from error
    return schema


def bound_schema(schema: Any, limit: int, reserved: int = 1) -> Node:
    """Bound a schema so that its longest value fits into ``limit`` tokens and its strings are as long as possible.

    A token has at least one byte. ``reserved`` tokens are not for the value, such as the end of the answer.
    """
    room = limit - reserved
    costs = []
    for text in _STRING_ROOMS:
        for items, depth, digits in _SHAPES:
            bounds = Bounds(text, items, depth, digits, min(4, digits - 1))
            node = _build(schema, bounds)
            if node is None:
                continue
            costs.append(node.cost)
            if node.cost <= room:
                return _widen(schema, bounds, node, room)
    if not costs:
        raise ConfigurationError(
            f"The JSON schema {to_json(schema)[:200]} allows no value, or only values that nest too deeply.",
            hint="Check its types, limits and references.",
        )
    raise ConfigurationError(
        f"The JSON schema does not fit into {limit} tokens: its shortest form may take {min(costs) + reserved}.",
        hint="Set max_tokens higher, or restrict the schema with maxLength, maxItems or fewer properties.",
    )


def _widen(schema: Any, bounds: Bounds, node: Node, room: int) -> Node:
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


def _build(schema: Any, bounds: Bounds) -> Node | None:
    try:
        return SchemaBuilder(schema, bounds).build(schema, ())
    except (TooLargeError, RecursionError):
        return None
