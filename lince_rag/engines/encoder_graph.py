"""Converting a BERT encoder to an ONNX graph of 8-bit matrix products, and writing protocol buffers.

The format is that of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); the field numbers below
are from there. Operators without a domain are those of ONNX; the others are onnxruntime's own
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

Field = tuple[int, int | float | str | bytes]
Attribute = int | float | tuple[int, ...]

# Change it when the graph or its numbers change, so that a graph that is on disk is written again.
GRAPH_VERSION: Final = 1

# Names of the input (embeddings of the tokens: 1 × tokens × hidden) and of the two outputs: the mean of the last
# layer (1 × hidden, of unit length) or the last layer itself (1 × tokens × hidden).
INPUT: Final = "embeddings"
OUTPUT: Final = "vector"
STATES: Final = "states"

_OWN: Final = "com.microsoft"

# The largest weight. Without VNNI instructions onnxruntime adds two products of 8 bits in 16 bits and cuts what is
# larger. With weights up to 127 that happens often: the mean cosine to float32 over XQuAD-es paragraphs was .9966;
# with 95 it was .9973; smaller weights have larger rounding errors (63: .9970).
_LARGEST_WEIGHT: Final = 95

# The exponent of SmoothQuant (https://arxiv.org/abs/2211.10438, formula 4), with the value of that paper: how much
# of the spread of a channel goes from the activations to the weights.
_SMOOTHING: Final = 0.5

# A row of activations is not divided by less, so that one without positive numbers does not become noise: GELU is
# never below -0.17.
_SMALLEST_ROW_MAXIMUM: Final = 0.25

_64_BITS: Final = (1 << 64) - 1
_ONE_BYTE: Final = [bytes((number,)) for number in range(128)]

_NUMBER_TYPES: Final = {"float32": 1, "uint8": 2, "int8": 3}


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT encoder."""

    hidden: int
    layers: int
    heads: int
    inner: int
    epsilon: float


def message(*fields: Field) -> bytes:
    """Encode a protocol buffer message (https://protobuf.dev/programming-guides/encoding): numbers and values."""
    return b"".join(_field(number, value) for number, value in fields)


def _field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, int):
        return _variable_length(number << 3) + _variable_length(value)
    if isinstance(value, float):
        return _variable_length(number << 3 | 5) + struct.pack("<f", value)
    content = value.encode() if isinstance(value, str) else value
    return _variable_length(number << 3 | 2) + _variable_length(len(content)) + content


def _variable_length(number: int) -> bytes:
    number &= _64_BITS  # a negative number has ten bytes
    if number < 128:
        return _ONE_BYTE[number]
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


class _Graph:
    """The nodes and constants of a graph; each method returns the name of a tensor."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []

    def constant(self, array: Any) -> str:
        name = f"constant{len(self._constants)}"
        dimensions: list[Field] = [(1, size) for size in array.shape]
        kind = _NUMBER_TYPES[str(array.dtype)]
        self._constants.append(message(*dimensions, (2, kind), (8, name), (9, array.tobytes())))
        return name

    def node(self, operator: str, inputs: Sequence[str], domain: str = "", **attributes: Attribute) -> str:
        return self.nodes(operator, inputs, 1, domain, **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Attribute
    ) -> list[str]:
        names = [f"tensor{len(self._nodes)}.{number}" for number in range(outputs)]
        fields: list[Field] = [(1, name) for name in inputs]
        fields += [(2, name) for name in names]
        fields += [(4, operator), (7, domain)]
        fields += [(5, _attribute(name, value)) for name, value in attributes.items()]
        self._nodes.append(message(*fields))
        return names

    def rename(self, tensor: str, name: str) -> None:
        self._nodes.append(message((1, tensor), (2, name), (4, "Identity")))

    def model(self, output: str, hidden: int) -> bytes:
        """The whole model, with one input and one output of float32."""
        sizes = (1, "tokens", hidden) if output == STATES else (1, hidden)
        parts: list[Field] = [(1, node) for node in self._nodes]
        parts += [(2, "encoder"), *((5, constant) for constant in self._constants)]
        parts += [(11, _value(INPUT, (1, "tokens", hidden))), (12, _value(output, sizes))]
        # Version 8 of the format and 17 of the operators are those of ONNX 1.12 of 2022: all that is used here.
        operators: list[Field] = [(8, message((1, ""), (2, 17))), (8, message((1, _OWN), (2, 1)))]
        return message((1, 8), (7, message(*parts)), *operators)


def _attribute(name: str, value: Attribute) -> bytes:
    # The kinds (field 20): 1 a float, 2 an integer, 7 a list of integers.
    if isinstance(value, float):
        return message((1, name), (2, value), (20, 1))
    if isinstance(value, int):
        return message((1, name), (3, value), (20, 2))
    numbers: list[Field] = [(8, number) for number in value]
    return message((1, name), *numbers, (20, 7))


def _value(name: str, dimensions: Sequence[int | str]) -> bytes:
    # A dimension is a number (field 1) or has a name (field 2).
    sizes: list[Field] = [(1, message((2 if isinstance(size, str) else 1, size))) for size in dimensions]
    return message((1, name), (2, message((1, message((1, 1), (2, message(*sizes)))))))


def build_graph(tensor: Callable[[str], Any], shape: Shape, samples: Sequence[Any], output: str = OUTPUT) -> bytes:
    """Convert an encoder to a graph of 8-bit matrix products.

    Activations are quantized when the graph runs, with one scale for each tensor, so a text must run alone. That
    is exact enough only if no channel is much larger than the others: SmoothQuant divides each channel of the
    activations by a factor and multiplies the weights by it. The factors are measured on a few texts, which the
    encoder reads here in float32, layer by layer.

    Args:
        tensor: Returns a tensor by its name in the weights file, in float32.
        shape: The sizes of the encoder.
        samples: Embeddings of the tokens of the texts to measure on (tokens × hidden each).
        output: What the graph returns: ``OUTPUT`` or ``STATES``.

    Returns:
        The ONNX model, with its weights.
    """
    converter = _Converter(tensor, shape, samples)
    for layer in range(shape.layers):
        converter.add_layer(f"l{layer}.")
    return converter.finish(output)


class _Converter:
    """Adds layer after layer to a graph, and runs the samples through each."""

    def __init__(self, tensor: Callable[[str], Any], shape: Shape, samples: Sequence[Any]) -> None:
        import numpy as np

        self._tensor, self._shape = tensor, shape
        self._graph = _Graph()
        self._lengths = [len(sample) for sample in samples]
        self._normalize(INPUT, np.concatenate(samples), "emb.ln")

    def add_layer(self, prefix: str) -> None:
        self._add_block(prefix + "aln", *self._attention(prefix))
        self._add_block(prefix + "oln", *self._feed_forward(prefix))

    def finish(self, output: str) -> bytes:
        found = self._output
        if output == OUTPUT:
            mean = self._graph.node("ReduceMean", [found], keepdims=0, axes=(1,))
            found = self._graph.node("LpNormalization", [mean], axis=-1, p=2)
        self._graph.rename(found, output)
        return self._graph.model(output, self._shape.hidden)

    def _linear(self, name: str) -> tuple[Any, Any]:
        """The weights (outputs × inputs) and the bias of a matrix product."""
        bias = self._tensor(name + ".b")
        return self._tensor(name + ".w").reshape(len(bias), -1), bias

    def _attention(self, prefix: str) -> tuple[str, Any]:
        import numpy as np

        graph, rows = self._graph, self._rows
        parts = [self._linear(prefix + name) for name in ("q", "k", "v")]
        query, key, value = (rows @ weights.T + bias for weights, bias in parts)
        mixed = _attend(query, key, value, self._lengths, self._shape.heads)
        weights, bias = self._linear(prefix + "ao")
        # What attention mixes are the values, so that their weights can hold the factors.
        factors = _smoothing_factors(mixed, weights)
        parts[2] = (parts[2][0] / factors[:, None], parts[2][1] / factors)
        joined, joined_bias = (np.concatenate([part[each] for part in parts]) for each in (0, 1))
        projected = self._product(self._output, rows, joined, joined_bias)
        attended = graph.node(
            "MultiHeadAttention", graph.nodes("Split", [projected], 3, axis=-1), _OWN, num_heads=self._shape.heads
        )
        return self._quantized(attended, weights * factors, bias), mixed @ weights.T + bias

    def _feed_forward(self, prefix: str) -> tuple[str, Any]:
        import numpy as np

        graph, rows = self._graph, self._rows
        weights, bias = self._linear(prefix + "fi")
        inner = graph.node("Gelu", [self._product(self._output, rows, weights, bias)], _OWN)
        active = _gelu(rows @ weights.T + bias)
        weights, bias = self._linear(prefix + "fo")
        factors = _smoothing_factors(active, weights)
        # The rows of these activations differ too much for one scale: each is divided by its maximum.
        inner = graph.node("Mul", [inner, graph.constant(1 / factors)])
        smallest = graph.constant(np.array([_SMALLEST_ROW_MAXIMUM], np.float32))
        maxima = graph.node("Max", [graph.node("ReduceMax", [inner], axes=(2,)), smallest])
        inner = self._quantized(graph.node("Div", [inner, maxima]), weights * factors)
        outer = graph.node("Add", [graph.node("Mul", [inner, maxima]), graph.constant(bias)])
        return outer, active @ weights.T + bias

    def _add_block(self, name: str, output: str, rows: Any) -> None:
        """Add what a block returned to what it was given, and normalize the sum."""
        # Two nodes take a third of the time that onnxruntime's SkipLayerNormalization does.
        self._normalize(self._graph.node("Add", [output, self._output]), self._rows + rows, name)

    def _normalize(self, output: str, rows: Any, name: str) -> None:
        gain, shift = self._tensor(name + ".w"), self._tensor(name + ".b")
        inputs = [output, self._graph.constant(gain), self._graph.constant(shift)]
        self._output = self._graph.node("LayerNormalization", inputs, axis=-1, epsilon=self._shape.epsilon)
        rows = rows - rows.mean(axis=-1, keepdims=True)
        deviations = ((rows * rows).mean(axis=-1, keepdims=True) + self._shape.epsilon) ** 0.5
        self._rows = rows / deviations * gain + shift

    def _product(self, name: str, rows: Any, weights: Any, bias: Any) -> str:
        factors = _smoothing_factors(rows, weights)
        smooth = self._graph.node("Mul", [name, self._graph.constant(1 / factors)])
        return self._quantized(smooth, weights * factors, bias)

    def _quantized(self, name: str, weights: Any, bias: Any = None) -> str:
        """A product with weights of 8 bits, one scale for each output."""
        import numpy as np

        scales = np.maximum(np.abs(weights).max(axis=1), np.finfo(np.float32).tiny) / np.float32(_LARGEST_WEIGHT)
        whole = np.rint(weights / scales[:, None]).astype(np.int8)
        arrays = [np.ascontiguousarray(whole.T), scales, np.zeros(len(scales), np.int8)]
        arrays += [] if bias is None else [bias]
        inputs = [name, *map(self._graph.constant, arrays)]
        return self._graph.node("DynamicQuantizeMatMul", inputs, _OWN)


def _smoothing_factors(rows: Any, weights: Any) -> Any:
    """What to divide each channel of the activations by: powers of two, so that nothing is rounded."""
    import numpy as np

    spread = np.maximum(np.abs(rows).max(axis=0), 1e-3) ** _SMOOTHING
    spread /= np.maximum(np.abs(weights).max(axis=0), 1e-4) ** (1 - _SMOOTHING)
    logarithms = np.log2(spread)
    return np.exp2(np.rint(logarithms - logarithms.mean())).astype(np.float32)


def _attend(query: Any, key: Any, value: Any, lengths: Sequence[int], heads: int) -> Any:
    """Attention within each of the texts whose rows follow each other."""
    import numpy as np

    mixed, size, start = np.empty_like(query), query.shape[1] // heads, 0
    for length in lengths:
        text = slice(start, start + length)
        for head in range(heads):
            part = (text, slice(head * size, (head + 1) * size))
            scores = query[part] @ key[part].T / math.sqrt(size)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[part] = scores / scores.sum(axis=-1, keepdims=True) @ value[part]
        start += length
    return mixed


def _gelu(rows: Any) -> Any:
    """GELU by its formula with tanh, exact to a thousandth: enough to measure with, and numpy has no erf."""
    import numpy as np

    return rows * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (rows + 0.044715 * rows**3)))
