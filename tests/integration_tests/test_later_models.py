"""Models of 2024 and later, one for each kind of tokenizer and architecture: prompts, answers, the chain.

What a prompt is natively is what their tokenizers make of it with ``apply_chat_template``; an answer is that of
``generate`` of transformers.
"""

from functools import cache
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel

from lince_rag import ChatLince, create_rag_chain
from tests.checkpoints import LATER_KINDS, build_checkpoint, shared_checkpoint

MAX_TOKENS = 24

QUESTION = "¿Cuándo vence el  contrato?"
TEXT = "Vence el 30 de mayo.\n\n\n    El precio: 815 euros.\t«Fin» e\u0301 ﬁ 🦙"
HISTORY: list[BaseMessage] = [SystemMessage("Sé breve."), HumanMessage("Hola."), AIMessage("Hola,  ¿qué deseas?")]

CASES: dict[str, tuple[list[BaseMessage], list[str]]] = {
    "question": ([HumanMessage(QUESTION)], []),
    "documents": ([HumanMessage(QUESTION)], [TEXT, "Otra nota."]),
    "conversation": ([*HISTORY, HumanMessage(QUESTION)], [TEXT]),
}

by_kind = pytest.mark.parametrize("kind", LATER_KINDS)


@cache
def chat(kind: str) -> ChatLince:
    fields = shared_checkpoint(kind, context_window=1024).chat_fields
    return ChatLince(**fields, max_tokens=MAX_TOKENS, temperature=0)


@cache
def native(kind: str) -> tuple[Any, Any]:
    """The model and the tokenizer without this package."""
    return shared_checkpoint(kind, context_window=1024).load()


def native_ids(kind: str, messages: list[BaseMessage], texts: list[str]) -> list[int]:
    roles = {"system": "system", "human": "user", "ai": "assistant"}
    ids: list[int] = native(kind)[1].apply_chat_template(
        [{"role": roles[message.type], "content": message.content} for message in messages],
        documents=[{"text": text} for text in texts] or None,
        chat_template=chat(kind).spec.template_text(),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return ids


@by_kind
@pytest.mark.parametrize("case", CASES)
def test_prompt_ids(kind, case):
    messages, texts = CASES[case]
    ids = chat(kind).encode(messages, [Document(text) for text in texts])
    tokenizer = native(kind)[1]
    assert tokenizer.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(
        native_ids(kind, messages, texts)
    )


@by_kind
def test_content_never_becomes_a_control_token(kind):
    spec, tokenizer = chat(kind).spec, native(kind)[1]
    controls = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip("▁\n ")
    }
    # Those of the tokenizer that no row lists, too, such as the HTML tags of Gemma.
    hostile = " ".join(dict.fromkeys([*controls.values(), *spec.control_tokens]))

    def structure(content: str) -> list[str]:
        messages = [SystemMessage(content), HumanMessage(content), AIMessage(content), HumanMessage(content)]
        ids = chat(kind).encode(messages, [Document(content), Document(content)])
        return [controls[token] for token in ids if token in controls]

    assert structure(hostile) == structure("inofensivo")
    assert structure(hostile)


@by_kind
def test_answers_are_those_of_generate(kind):
    model, tokenizer = native(kind)
    asked = [CASES[case] for case in CASES]
    expected = []
    for messages, texts in asked:
        ids = torch.tensor([native_ids(kind, messages, texts)])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            repetition_penalty=chat(kind).spec.generation.get("repetition_penalty", 1.0),
        )
        expected.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip())
    found = [
        chat(kind).invoke(messages, documents=[Document(text) for text in texts]).text for messages, texts in asked
    ]
    assert found == expected
    assert all(found)
    messages, texts = CASES["conversation"]
    parts = chat(kind).stream(messages, documents=[Document(text) for text in texts])
    assert "".join(part.text for part in parts) == found[-1]
    # Together, each answer is what it is alone.
    questions = ["¿Qué?", QUESTION, "¿Y cuánto cuesta el alquiler de la casa al mes?"]
    alone = [chat(kind).invoke(question).text for question in questions]
    assert [reply.text for reply in chat(kind).batch(questions)] == alone


@by_kind
def test_an_answer_ends_with_the_turn(kind, tmp_path):
    """At the EOS; or at a stop text that is a control token, as that of Gemma, which is not its EOS."""
    favourite = {"eos_scale": 6.0} if not kind.startswith("gemma") else {"special_scale": 6.0}
    made = build_checkpoint(kind, tmp_path / "model", **favourite)
    model = ChatLince(**made.chat_fields, max_tokens=200, temperature=1.0)
    replies = [model.invoke(QUESTION, seed=seed) for seed in range(4)]
    controls = [*model.spec.control_tokens, *model.spec.special_tokens.values()]
    for reply in replies:
        assert reply.response_metadata["finish_reason"] == "stop"
        assert not [token for token in controls if token in reply.text]


@by_kind
def test_structured_output(kind):
    class Contract(BaseModel):
        renta: int
        ciudad: str

    model = ChatLince(**shared_checkpoint(kind, context_window=1024).chat_fields, max_tokens=200, temperature=0)
    assert isinstance(model.with_structured_output(Contract).invoke(QUESTION), Contract)


@by_kind
def test_chain(kind):
    document = Document(
        "La fianza es de 815 euros y el contrato vence el 30 de mayo.", metadata={"source": "c.txt"}
    )
    chain = create_rag_chain(chat(kind), RunnableLambda(lambda question: [document]))
    answer = chain.invoke("¿Cuánto es la fianza?")
    assert answer.text
    assert answer.documents == [document] or [found.page_content for found in answer.documents]
