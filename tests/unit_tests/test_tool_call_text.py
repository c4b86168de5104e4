"""Tool calls are read the same from a whole answer and from a stream, and only a tool call is read as one."""

from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk

from lince_rag.engines import Generation
from lince_rag.models.answer_formats import read_calls, write_calls
from lince_rag.models.messages import ReplyReader, read_reply

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": st.text(min_size=1), "args": st.dictionaries(st.text(), VALUES, max_size=3)}),
    min_size=1,
    max_size=4,
)


def stream(text: str, cuts: list[int], *, may_call: bool) -> list[AIMessageChunk]:
    """Read an answer that comes in pieces."""
    reader = ReplyReader("m", may_call=may_call)
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {len(text)})
    starts = [0, *ends[:-1]]
    steps = [Generation(text[start:end], 7, 1) for start, end in zip(starts, ends, strict=True)]
    return [reader.read(step) for step in [*steps, Generation("", 7, 0, "stop")]]


def total(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return reduce(add, chunks)


def without_ids(message: AIMessage) -> list[dict[str, Any]]:
    return [{"name": call["name"], "args": call["args"]} for call in message.tool_calls]


@pytest.mark.slow
@given(CALLS, st.lists(st.integers(min_value=0)), st.sampled_from(["", " ", "\n"]))
def test_calls_are_read_whole_and_in_pieces(calls: list[dict[str, Any]], cuts: list[int], blank: str) -> None:
    text = blank + write_calls(calls)
    whole = read_reply("m", Generation(text, 7, 3, "stop"), may_call=True)
    streamed = total(stream(text, cuts, may_call=True))
    for message in (whole, streamed):
        assert without_ids(message) == calls
        assert message.text == ""
        assert len({call["id"] for call in message.tool_calls}) == len(calls)
    assert whole.invalid_tool_calls == []


@pytest.mark.slow
@given(CALLS, st.integers(min_value=0))
def test_a_call_is_complete_when_its_braces_are(calls: list[dict[str, Any]], cut: int) -> None:
    text = write_calls(calls)
    read = list(read_calls(text[: cut % len(text)]))
    assert [call.name for call in read] == [call["name"] for call in calls][: len(read)]
    assert all(call.complete for call in read[:-1])


@given(st.text() | CALLS.map(write_calls), st.lists(st.integers(min_value=0)))
def test_where_there_are_no_tools_everything_is_text(text: str, cuts: list[int]) -> None:
    """A document that quotes a call, repeated by an engine that only quotes, calls nothing."""
    streamed = total(stream(text, cuts, may_call=False))
    assert streamed.text == text
    assert streamed.tool_calls == []
    assert read_reply("m", Generation(text, 7, 3, "stop"), may_call=False).text == text


@given(st.text(), st.lists(st.integers(min_value=0)))
def test_text_is_text_beside_tools(text: str, cuts: list[int]) -> None:
    streamed = total(stream(text, cuts, may_call=True))
    assert (streamed.text, streamed.tool_calls) == (text, [])


def test_an_answer_that_was_cut_off_is_an_invalid_call() -> None:
    text = write_calls([{"name": "f", "args": {"a": "uno"}}])
    message = read_reply("m", Generation(text[:-8], 7, 3, "length"), may_call=True)
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["name"] == "f"


def test_usage_adds_up_over_a_stream() -> None:
    chunks = stream(write_calls([{"name": "f", "args": {}}]), [3, 9, 20], may_call=True)
    assert total(chunks).usage_metadata == {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11}
