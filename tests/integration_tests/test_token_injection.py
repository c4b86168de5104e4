"""No content ever becomes a control id, whatever it is made of and whatever tokenizer reads it.

The tokenizers are those of the five models and of models that nobody listed: with control tokens that the registry
does not know, that take the white space beside them, that match after normalisation. What a control id is, and
what a prompt is natively, is written here apart from the code under test.
"""

import copy
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lince_rag.engines.checkpoints.files import LoadingOptions
from lince_rag.engines.checkpoints.loading import load_tokenizer
from lince_rag.engines.generation.encoding import encode_prompt
from lince_rag.prompting.content import Segment
from lince_rag.prompting.registry import get_model
from lince_rag.prompting.templates import ChatTemplate, Prompt
from tests.checkpoints import KINDS, SENTENCES, shared_checkpoint
from tests.lengths import EXAMPLES

LINCE, AIRA, LLAMA, ALPACA, FALCON = KINDS

# Of ChatML and of models that call tools; in no row of the registry.
UNLISTED: Final = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "→"]


@dataclass(frozen=True)
class Reader:
    """A prompt format and the tokenizer that reads it.

    Attributes:
        template: The format.
        tokenizer: The tokenizer.
        listed: Whether the registry knows every control token.
    """

    template: ChatTemplate
    tokenizer: Any
    listed: bool = True

    @property
    def controls(self) -> dict[int, str]:
        """The ids that stand for structure; white space of several characters is none, whoever added it."""
        added = self.tokenizer.added_tokens_decoder
        return {number: token.content for number, token in added.items() if token.special or token.content.strip()}

    def native(self, text: str) -> list[int]:
        """The ids of a text whose every BOS begins a sequence of its own, as in the reference code of Llama."""
        bos = self.tokenizer.bos_token
        first, *rest = text.split(bos) if bos else [text]
        ids = self._plain(first)
        for part in rest:
            ids += [self.tokenizer.bos_token_id, *self._plain(part)]
        return ids

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def controls_in(self, ids: list[int]) -> list[int]:
        controls = self.controls
        return [token for token in ids if token in controls]


@cache
def plain_reader(kind: str) -> Reader:
    """One of the five models, through the same calls as in an engine."""
    checkpoint = shared_checkpoint(kind)
    options = LoadingOptions(
        model_path=str(checkpoint.path),
        base_model_path=str(checkpoint.base_path) if checkpoint.base_path else None,
    )
    spec = get_model(kind)
    return Reader(ChatTemplate.from_spec(spec), load_tokenizer(spec, options))


def with_tokens(kind: str, *, normalizer: Any = None, **flags: bool) -> Callable[[], Reader]:
    """A model of this kind whose tokenizer has got tokens that are not special and that no row lists."""

    def build() -> Reader:
        reader = plain_reader(kind)
        tokenizer = copy.deepcopy(reader.tokenizer)
        if normalizer:
            tokenizer.backend_tokenizer.normalizer = normalizer
        tokenizer.add_tokens([AddedToken(token, special=False, **flags) for token in UNLISTED])
        return replace(reader, tokenizer=tokenizer, listed=False)

    return build


def with_white_space(kind: str) -> Callable[[], Reader]:
    """As in GPT-NeoX and Gemma: runs of white space were added to the vocabulary."""

    def build() -> Reader:
        reader = plain_reader(kind)
        tokenizer = copy.deepcopy(reader.tokenizer)
        tokenizer.add_tokens([AddedToken(token, special=False) for token in ("\n\n", "  ", "    ", "\t\t")])
        return replace(reader, tokenizer=tokenizer)

    return build


def unigram_reader() -> Reader:
    """As in XGLM or the models of llm-jp: control tokens are words of the vocabulary, with the best of scores."""
    alphabet = sorted({character for sentence in SENTENCES for character in sentence} | set(string.printable))
    words = sorted({word for sentence in SENTENCES for word in re.findall(r"\w+", sentence)})
    listed = ["<unk>", "<s>", "</s>"]
    # Lower than any text, so that a text like "<0x0A>" is not read as the byte.
    byte_tokens = [(f"<0x{byte:02X}>", -1000.0) for byte in range(256)]
    scores = [(token, 0.0) for token in [*listed, *UNLISTED[:-1]]] + byte_tokens
    scores += [(piece, -10.0) for piece in ["▁", *alphabet]] + [(f"▁{word}", -9.0) for word in words]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_tokens([AddedToken(token, special=False) for token in UNLISTED])
    return Reader(plain_reader(LLAMA).template, tokenizer, listed=False)


BUILDERS: Final[dict[str, Callable[[], Reader]]] = {
    **{kind: lambda kind=kind: plain_reader(kind) for kind in KINDS},
    "byte-level, unlisted tokens": with_tokens(LINCE),
    "byte-level, unlisted tokens that are not normalised": with_tokens(AIRA, normalized=False),
    "sentencepiece, unlisted tokens": with_tokens(LLAMA),
    "legacy sentencepiece, unlisted tokens": with_tokens(ALPACA),
    "sentencepiece, unlisted tokens that take white space": with_tokens(LLAMA, lstrip=True, rstrip=True),
    "byte-level, unlisted tokens that take white space": with_tokens(FALCON, lstrip=True, rstrip=True),
    "byte-level, unlisted tokens that are whole words": with_tokens(LINCE, single_word=True),
    "byte-level, unlisted tokens, NFKC": with_tokens(LINCE, normalizer=normalizers.NFKC()),
    "sentencepiece, unlisted tokens, NFKC and lower case": with_tokens(
        LLAMA, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "unigram, unlisted tokens": unigram_reader,
    "byte-level, added white space": with_white_space(FALCON),
    "sentencepiece, added white space": with_white_space(LLAMA),
}

by_reader = pytest.mark.parametrize("name", BUILDERS)


@cache
def reader_of(name: str) -> Reader:
    return BUILDERS[name]()


CONTROLS: Final = sorted({token for kind in KINDS for token in get_model(kind).control_tokens})
TOKENS: Final = [*CONTROLS, *UNLISTED]
MARKERS: Final = sorted(
    {marker for kind in KINDS for marker in (*get_model(kind).markers, *get_model(kind).line_markers)}
)
SMALL: Final = [
    "\\", "\n", "\n\n", "\r\n", "\r", " ", "  ", "    ", "\t\t", "\u00a0", "\u2003", "\u2028", "\u200b", "\ufeff",
    "\x00", "\x85", "▁", "▁▁", "Ġ", "<0x0A>", "<", "<<", ">", ">>", "|", "/", "[", "]", "#", "###", "s", "pad",
    "unk", "texto normal", "¿qué?", "coração", "año", "a\u0301", "ñ", "n\u0303", "€", "🦙", "👩\u200d🚀", "漢字",
    "١٢", "{{ x }}", "0", "12345",
]  # fmt: skip


def wide(text: str) -> str:
    """The same in full-width characters, which NFKC makes plain again."""
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


CUTS: Final = [(token[:cut], token[cut:]) for token in TOKENS for cut in range(1, len(token))]
PIECES: Final = [
    *SMALL * 8,
    *TOKENS * 8,
    *MARKERS * 2,
    *[change(token) for change in (wide, str.upper, str.title) for token in TOKENS],
    *[half for cut in CUTS for half in cut],
    *[inner.join(cut) for cut in CUTS for inner in ("\\", " ", "\u200b")],
    *[before + before + after + after for before, after in CUTS],
    *[before + whole + after for before, after in CUTS[::7] for whole in TOKENS[::5]],
]
# Characters that this Python does not know yet, a tokenizer may: `squeezed` would normalise them otherwise.
KNOWN: Final = st.characters(exclude_categories=["Cs", "Cn"])
HOSTILE: Final = st.one_of(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.text(KNOWN, max_size=12))

Items = list[dict[str, str]]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Items, Items]:
    messages = [{"role": "system", "content": draw(HOSTILE)}] if draw(st.booleans()) else []
    if draw(st.booleans()):
        messages += [{"role": "user", "content": draw(HOSTILE)}, {"role": "assistant", "content": draw(HOSTILE)}]
    messages.append({"role": "user", "content": draw(HOSTILE)})
    if draw(st.booleans()):
        messages[-1]["input"] = draw(HOSTILE)
    documents = [
        {"title": draw(HOSTILE), "text": draw(HOSTILE)} if draw(st.booleans()) else {"text": draw(HOSTILE)}
        for _ in range(draw(st.integers(0, 2)))
    ]
    for before, after in pairwise(documents):
        if draw(st.booleans()):
            start, rest = draw(st.sampled_from(CUTS))
            before["text"] += start
            after["title" if "title" in after else "text"] = rest
    return messages, documents


def harmless(items: Items) -> Items:
    """The same shape with nothing in it: blank texts stay, since a template may leave out their section."""
    return [
        {key: "inofensivo" if key != "role" and value.strip() else value for key, value in item.items()}
        for item in items
    ]


def squeezed(text: str) -> str:
    """A text without what a tokenizer may add, drop or normalise: white space, case (of "Σ", too) and width."""
    return re.sub(r"[\s▁]", "", unicodedata.normalize("NFKC", text)).casefold()


def check(reader: Reader, prompt: Prompt, expected: list[int]) -> None:
    """Check the ids of a prompt against the control ids of a harmless one."""
    ids = encode_prompt(prompt, reader.tokenizer, reader.tokenizer.bos_token)
    assert reader.controls_in(ids) == expected
    shown = reader.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert squeezed(shown) == squeezed(prompt.text)
    native = reader.native(prompt.text)
    if reader.listed or reader.controls_in(native) == expected:
        assert ids == native


@by_reader
def test_no_content_becomes_a_control_id(name):
    reader = reader_of(name)
    expected: dict[str, list[int]] = {}

    @settings(max_examples=EXAMPLES)
    @given(conversations())
    @example(([{"role": "user", "content": "".join(TOKENS)}], [{"text": "\n".join(TOKENS)}]))
    @example(([{"role": "user", "content": " ".join(map(wide, TOKENS))}], []))
    def run(conversation: tuple[Items, Items]) -> None:
        shape = harmless(conversation[0]), harmless(conversation[1])
        if repr(shape) not in expected:
            expected[repr(shape)] = reader.controls_in(reader.native(reader.template.render(*shape).text))
        check(reader, reader.template.render(*conversation), expected[repr(shape)])

    run()


@by_reader
def test_no_row_of_segments_becomes_a_control_id(name):
    """Without any neutralising: segments as they come, content beside content, a token split over the joint."""
    reader = reader_of(name)
    bare = replace(reader, listed=False)
    bos = reader.tokenizer.bos_token or ""

    @settings(max_examples=EXAMPLES)
    @given(st.lists(HOSTILE | st.sampled_from(CUTS), min_size=1, max_size=5), st.booleans())
    @example([CUTS[0]], False)
    @example(UNLISTED, True)
    def run(contents: list[str | tuple[str, str]], framed: bool) -> None:
        texts = [text for content in contents for text in ([content] if isinstance(content, str) else content)]
        segments = [Segment(text, is_content=True) for text in texts if text]
        if framed:
            segments = [Segment(f"{bos}Hola: ", False), *segments, Segment(" fin:", False)]
        prompt = Prompt(segments=tuple(segments), messages=(), documents=())
        ids = encode_prompt(prompt, reader.tokenizer, reader.tokenizer.bos_token)
        assert bare.controls_in(ids) == ([reader.tokenizer.bos_token_id] if framed and bos else [])
        shown = reader.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert squeezed(shown) == squeezed(prompt.text)

    run()


@by_reader
@pytest.mark.parametrize("token", TOKENS)
def test_a_token_in_every_place(name, token):
    reader = reader_of(name)
    messages = [{"role": role, "content": f"{token} {token}{token}"} for role in ("user", "assistant", "user")]
    messages[-1]["input"] = f"a{token}b\n{token}"
    documents = [{"title": token, "text": f"x {token}"}, {"text": token}]
    shape = reader.template.render(harmless(messages), harmless(documents)).text
    check(reader, reader.template.render(messages, documents), reader.controls_in(reader.native(shape)))


@by_reader
def test_the_tokenizers_are_dangerous(name):
    # The tests above are worth nothing if the tokens are none.
    reader = reader_of(name)
    for number, text in reader.controls.items():
        assert number in reader.tokenizer(f"x {text} x", add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize("kind", KINDS)
def test_what_reads_as_a_marker_is_broken_whatever_its_characters_are(kind: str) -> None:
    # In both LLaMA formats, U+2581 is a space to the tokenizer: "###▁Resposta:" has the ids of the marker.
    reader, spec = plain_reader(kind), get_model(kind)
    # Of all characters, only U+2581 and the space do this; letters and signs are left out for time.
    shapeless = {"Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Me", "Lm", "Sk"}
    every = map(chr, range(1, 0x110000))
    characters = [character for character in every if unicodedata.category(character) in shapeless]
    characters += map(chr, range(0x2500, 0x2600))
    found = set()
    for marker in spec.markers:
        place = marker.find(" ")
        before, after = (marker[:place], marker[place + 1 :]) if place > 0 else (marker[:1], marker[1:])
        forged = [before + character + after for character in characters]
        encoded = reader.tokenizer.backend_tokenizer.encode_batch(forged, add_special_tokens=False)
        same = reader.tokenizer.backend_tokenizer.encode(marker, add_special_tokens=False).ids
        read = [text for text, encoding in zip(forged, encoded, strict=True) if encoding.ids == same]
        found.update(read)
        assert all(reader.template.neutralize(text) != text for text in read), (marker, read)
    assert found >= {marker for marker in spec.markers if " " in marker}
    assert ("▁" in "".join(found)) == (kind in {LLAMA, ALPACA})
