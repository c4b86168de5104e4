"""Ours against the model cards' own code, on the same checkpoints: the same prompt ids, the same answer.

The answers are compared without the white space around them, which ours never have and the cards trim each in its
own way. Prints a table of what is equal (``pytest -s``).
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pytest
import transformers
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from lince_rag import ChatLince
from tests.checkpoints import KINDS, Checkpoint, shared_checkpoint
from tests.integration_tests.cards import WITH_TURNS, card_generate

SEED: Final = 7
MAX_TOKENS: Final = 24

INPUT: Final = "Da el año\ny la ciudad 🦙."
CONTEXT: Final = "Se fundó en 1290, en Lisboa.\nEn 1537 pasó a Coímbra, «para sempre»."
HISTORY: Final = [("Hola.", "Hola, ¿qué deseas?"), ("Una cita.", "«Não há pressa.»")]

CASES: Final[dict[str, dict[str, Any]]] = {
    "instruction": {"instruction": "¿Cuándo se fundó la universidad de Coímbra?"},
    "input": {"instruction": "Responde a la pregunta.", "input": INPUT},
    "context": {"instruction": "Quais são as datas?", "context": CONTEXT},
    "both": {"instruction": "¿Cuándo se fundó la universidad?", "input": INPUT, "context": CONTEXT},
    "multi-turn": {"instruction": "E depois, o que aconteceu?", "history": HISTORY},
    "multi-turn with context": {"instruction": "¿Y después?", "context": CONTEXT, "history": HISTORY},
}

# What is asked of the card's code, and of ours. "Card's default" leaves the decoding to both.
DECODINGS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "card's default": ({}, {}),
    "greedy": ({"do_sample": False, "num_beams": 1, "early_stopping": False}, {"temperature": 0}),
    "4 beams": ({"do_sample": False, "num_beams": 4}, {"num_beams": 4}),
    "seeded sampling": (
        {
            "do_sample": True,
            "num_beams": 1,
            "early_stopping": False,
            "temperature": 0.8,
            "top_p": 0.9,
            "top_k": 20,
        },
        {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
    ),
}

PAIRS: Final = [
    (kind, case) for kind in KINDS for case in CASES if kind in WITH_TURNS or "history" not in CASES[case]
]


@cache
def card(kind: str) -> tuple[Any, Any]:
    """The model and the tokenizer as the card loads them."""
    return shared_checkpoint(kind).load()


@cache
def ours(kind: str) -> ChatLince:
    checkpoint: Checkpoint = shared_checkpoint(kind)
    return ChatLince(**checkpoint.chat_fields, max_tokens=MAX_TOKENS, seed=SEED)


def as_messages(case: dict[str, Any]) -> tuple[list[BaseMessage], list[Document]]:
    messages: list[BaseMessage] = []
    for asked, answered in case.get("history", ()):
        messages += [HumanMessage(asked), AIMessage(answered)]
    entered = {"input": case["input"]} if "input" in case else {}
    messages.append(HumanMessage(case["instruction"], additional_kwargs=entered))
    return messages, [Document(case["context"])] if "context" in case else []


@pytest.fixture(scope="module")
def equal() -> Iterator[Any]:
    """Takes note of what was equal, and prints the table after the last test."""
    counts: dict[tuple[str, str], list[bool]] = {}

    def note(kind: str, column: str, is_equal: bool) -> None:
        counts.setdefault((kind, column), []).append(is_equal)

    yield note
    columns = ["prompt ids", *DECODINGS]
    rows = [["model", *columns], ["---"] * (len(columns) + 1)]
    for kind in KINDS:
        cells = [counts.get((kind, column), []) for column in columns]
        rows.append([kind, *(f"{sum(cell)} of {len(cell)}" for cell in cells)])
    print("\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))


@pytest.mark.parametrize(("kind", "case"), PAIRS)
def test_prompt_ids(kind, case, equal):
    model, tokenizer = card(kind)
    expected, _ = card_generate(kind, model, tokenizer, **CASES[case], max_new_tokens=1)
    ids = ours(kind).encode(*as_messages(CASES[case]))
    equal(kind, "prompt ids", ids == expected)
    assert tokenizer.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(expected)
    assert ids == expected


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize(("kind", "case"), PAIRS)
def test_answer(kind, case, decoding, equal):
    of_card, of_ours = DECODINGS[decoding]
    model, tokenizer = card(kind)
    transformers.set_seed(SEED)
    _, expected = card_generate(kind, model, tokenizer, **CASES[case], **{"max_new_tokens": MAX_TOKENS, **of_card})
    messages, documents = as_messages(CASES[case])
    text = ours(kind).invoke(messages, documents=documents, **of_ours).text
    equal(kind, decoding, text == expected.strip())
    assert text == expected.strip()
    assert text


@pytest.mark.parametrize("kind", KINDS)
def test_the_decodings_differ(kind):
    """Else their parity would show nothing."""
    question = CASES["instruction"]["instruction"]
    texts = {
        name: ours(kind).invoke(question, **of_ours).text
        for name, (_, of_ours) in DECODINGS.items()
        if name != "card's default"
    }
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_one_bos(kind):
    _, tokenizer = card(kind)
    ids = ours(kind).encode(*as_messages(CASES["both"]))
    bos = tokenizer.bos_token_id
    assert ids.count(bos) == (0 if bos is None else 1)
