"""From a prompt to token ids: exactly those of the native format, and content never becomes a control token."""

import re
from collections.abc import Sequence
from typing import Any

from lince_rag.prompting.content import Segment
from lince_rag.prompting.templates import Prompt


def encode_prompt(prompt: Prompt, tokenizer: Any, bos: str | None) -> list[int]:
    """Return the ids that the model was trained to read for a prompt.

    The text after each BOS of the template (``bos``) is encoded in one piece. So tokens may span the boundary
    between template and content as they natively do, and a tokenizer that adds a space at the beginning of a text
    does so there, as the reference code of LLaMA does for every turn. The tokenizer's automatic special tokens are
    off: the only BOS is the template's. Then the ids are checked. If content still became a control id (of a token
    that the registry does not know), only the template spans of that piece are searched for control tokens and the
    rest is encoded as plain text.
    """
    ids: list[int] = []
    for number, segments in enumerate(_split_at_bos(prompt.segments, bos if bos == tokenizer.bos_token else None)):
        if number:
            ids.append(tokenizer.bos_token_id)
        ids += _encode_piece(segments, tokenizer)
    return ids


def _split_at_bos(segments: Sequence[Segment], bos: str | None) -> list[list[Segment]]:
    """Split the prompt at the BOS tokens of its template, and drop them."""
    pieces: list[list[Segment]] = [[]]
    for segment in segments:
        parts = [segment.text] if segment.is_content or not bos else segment.text.split(bos)
        for number, part in enumerate(parts):
            if number:
                pieces.append([])
            if part:
                pieces[-1].append(Segment(part, segment.is_content))
    return pieces


def _encode_piece(segments: Sequence[Segment], tokenizer: Any) -> list[int]:
    text = "".join(segment.text for segment in segments)
    if not text:
        return []
    if not tokenizer.is_fast:
        return [token for segment in segments for token in _encode_segment(segment, tokenizer)]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    controls = control_ids(tokenizer)
    if not _has_content_control(ids, encoding["offset_mapping"], segments, controls):
        return ids
    return _encode_by_segment(segments, tokenizer, controls)


def control_ids(tokenizer: Any) -> set[int]:
    """Return every id that stands for structure: special tokens and all other added tokens."""
    # Some vocabularies were extended with runs of white space, which SentencePiece writes as U+2581; they are not
    # control tokens.
    added = {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip("\u2581 \t\r\n")
    }
    return {*tokenizer.all_special_ids, *added}


def _has_content_control(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], segments: Sequence[Segment], controls: set[int]
) -> bool:
    """Return whether a control id covers a character of content."""
    found = [span for token, span in zip(ids, offsets, strict=True) if token in controls]
    position = 0
    for segment in segments:
        end = position + len(segment.text)
        if segment.is_content and any(start < end and stop > position for start, stop in found):
            return True
        position = end
    return False


def _encode_by_segment(segments: Sequence[Segment], tokenizer: Any, controls: set[int]) -> list[int]:
    """Find control tokens in each template span separately, and encode all other text as plain text."""
    ids: list[int] = []
    text = ""
    for segment in segments:
        start = 0
        if not segment.is_content:
            encoding = tokenizer(segment.text, add_special_tokens=False, return_offsets_mapping=True)
            for token, span in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
                if token in controls:
                    ids += [*_encode_plain(text + segment.text[start : span[0]], tokenizer, controls), token]
                    text, start = "", span[1]
        text += segment.text[start:]
    return ids + _encode_plain(text, tokenizer, controls)


def _encode_plain(text: str, tokenizer: Any, controls: set[int]) -> list[int]:
    """Encode a text as the tokenizer does, but without its added tokens."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer:
        text = backend.normalizer.normalize_str(text)
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
    return [token for word in words for token in _encode_word(word, backend.model, controls)]


def _encode_word(word: str, model: Any, controls: set[int]) -> list[int]:
    """Encode a word, splitting a control token that is in the vocabulary, too, after its first character."""
    tokens = model.tokenize(word)
    found = (token.value for token in tokens if token.id in controls)
    control = next((text for text in found if len(text) > 1 and text in word), None)
    if control is None:
        return [token.id for token in tokens]
    parts = re.split(f"(?<={re.escape(control[0])})(?={re.escape(control[1:])})", word)
    return [token for part in parts for token in _encode_word(part, model, controls)]


def _encode_segment(segment: Segment, tokenizer: Any) -> list[int]:
    if not segment.is_content:
        ids: list[int] = tokenizer(segment.text, add_special_tokens=False)["input_ids"]
        return ids
    encoded: list[int] = []
    for piece in _split_added_tokens(segment.text, tokenizer):
        encoded += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return encoded


def _split_added_tokens(text: str, tokenizer: Any) -> list[str]:
    """Split every added token after its first character: `split_special_tokens` leaves some of them whole."""
    tokens = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    dangerous = [re.escape(token) for token in tokens if len(token) > 1]
    if not dangerous:
        return [text]
    pieces, start = [], 0
    for match in re.finditer(f"(?=(?:{'|'.join(dangerous)}))", text):
        pieces.append(text[start : match.start() + 1])
        start = match.start() + 1
    return [piece for piece in [*pieces, text[start:]] if piece]
