"""The code of the five model cards, rewritten for this machine: what ours is compared with.

Nothing here uses the package under test. Changed against the cards: the device is the CPU, ``overrides`` of
``generate`` may take the place of a card's settings, and an answer is decoded without special tokens where the
card leaves them in. A format without a field for an input or a context has them inside the instruction, under the
headings that our templates use.
"""

# ruff: noqa: A002, E501 - the names and the lines are the cards' own.

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import GenerationConfig

Turn = tuple[str, str]

# The formats that have a second turn.
WITH_TURNS: Final = ("aira-2-portuguese-1b7", "llama-2-7b-spanish", "falcon-40b-instruct")

_NO_PADDING: Final = {"pad_token_id": 0}


def card_generate(
    kind: str,
    model: Any,
    tokenizer: Any,
    instruction: str,
    input: str | None = None,
    context: str | None = None,
    history: Sequence[Turn] = (),
    **overrides: Any,
) -> tuple[list[int], str]:
    """Answer the way a model's card does.

    Args:
        kind: The registry name of the model.
        model: The model.
        tokenizer: Its tokenizer.
        instruction: The instruction.
        input: What it is about.
        context: Retrieved text.
        history: Earlier questions and answers, where the format has turns.
        **overrides: Arguments of ``generate`` that take the place of the card's.

    Returns:
        The ids of the prompt, and the answer as the card takes it out of the output.
    """
    if history and kind not in WITH_TURNS:
        raise ValueError(f"{kind}: the card shows one turn only")
    arguments = (instruction, input, context, *([history] if kind in WITH_TURNS else []))
    return _CARDS[kind](model, tokenizer, *arguments, **overrides)


# ---------------------------------------------------------------------------------------------------- lince-zero


def create_instruction(instruction: str, input_data: str | None = None, context: str | None = None) -> str:
    """The card's function, as it is."""
    sections = {
        "Instrucción": instruction,
        "Entrada": input_data,
        "Contexto": context,
    }

    system_prompt = "A continuación hay una instrucción que describe una tarea, junto con una entrada que proporciona más contexto. Escriba una respuesta que complete adecuadamente la solicitud.\n\n"
    prompt = system_prompt

    for title, content in sections.items():
        if content is not None:
            prompt += f"### {title}:\n{content}\n\n"

    prompt += "### Respuesta:\n"

    return prompt


def _lince(
    model: Any, tokenizer: Any, instruction: str, input: str | None, context: str | None, **overrides: Any
) -> tuple[list[int], str]:
    prompt = create_instruction(instruction, input, context)
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = {
        "max_new_tokens": 128,
        "temperature": 0.1,
        "top_p": 0.75,
        "top_k": 40,
        "num_beams": 4,
        "early_stopping": True,
        **overrides,
    }
    with torch.no_grad():
        generation_output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=GenerationConfig(
                **settings, eos_token_id=model.generation_config.eos_token_id, **_NO_PADDING
            ),
            return_dict_in_generate=True,
            output_scores=True,
        )
    s = generation_output.sequences[0]
    output = tokenizer.decode(s, skip_special_tokens=True)
    return inputs["input_ids"][0].tolist(), output.split("### Respuesta:")[1].lstrip("\n")


# ----------------------------------------------------------------------------------------- aira-2-portuguese-1b7


def _within(
    instruction: str, input: str | None, context: str | None, *, headings: tuple[str, str], blank: str = "\n\n"
) -> str:
    """An instruction that holds its own input and context."""
    question = instruction if input is None else f"{instruction}{blank}{input}"
    return question if context is None else f"{headings[0]}\n{context}{blank}{headings[1]}\n{question}"


def _aira(
    model: Any,
    tokenizer: Any,
    instruction: str,
    input: str | None,
    context: str | None,
    history: Sequence[Turn],
    **overrides: Any,
) -> tuple[list[int], str]:
    question = _within(instruction, input, context, headings=("### Contexto:", "### Pergunta:"))
    past = "".join(
        tokenizer.bos_token + asked + tokenizer.sep_token + answered + tokenizer.eos_token
        for asked, answered in history
    )
    inputs = tokenizer(
        past + tokenizer.bos_token + question + tokenizer.sep_token, add_special_tokens=False, return_tensors="pt"
    )
    settings = {"do_sample": True, "top_k": 50, "top_p": 0.95, "temperature": 0.7, **overrides}
    responses = model.generate(**inputs, **settings)
    said = "".join(asked + answered for asked, answered in history)
    text = tokenizer.decode(responses[0], skip_special_tokens=True).removeprefix(said).replace(question, "")
    return inputs["input_ids"][0].tolist(), text


# -------------------------------------------------------------------------------------------- llama-2-7b-spanish

B_INST, E_INST = "[INST]", "[/INST]"


def _llama(
    model: Any,
    tokenizer: Any,
    instruction: str,
    input: str | None,
    context: str | None,
    history: Sequence[Turn],
    **overrides: Any,
) -> tuple[list[int], str]:
    """``Llama.chat_completion`` of meta-llama/llama: every turn encoded by itself, BOS and EOS added as ids."""
    question = _within(instruction, input, context, headings=("### Contexto:", "### Pregunta:"))
    tokens: list[int] = []
    for asked, answered in history:
        text = f"{B_INST} {asked.strip()} {E_INST} {answered.strip()} "
        tokens += [
            tokenizer.bos_token_id,
            *tokenizer.encode(text, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
    text = f"{B_INST} {question.strip()} {E_INST}"
    tokens += [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    input_ids = torch.tensor([tokens])
    output = model.generate(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **_NO_PADDING, **overrides
    )
    return tokens, tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)


# ------------------------------------------------------------------------------------------- alpaca-lora-ptbr-7b


def generate_prompt(instruction: str, input: str | None = None) -> str:
    """The function of the evaluation notebook."""
    if input:
        return f"""Abaixo está uma instrução que descreve uma tarefa, emparelhada com uma entrada que fornece mais contexto. Escreva uma resposta que conclua adequadamente a solicitação.

### Instruções:
{instruction}

### Entrada:
{input}

### Resposta:"""
    return f"""Abaixo está uma instrução que descreve uma tarefa. Escreva uma resposta que conclua adequadamente a solicitação.

### Instruções:
{instruction}

### Resposta:"""


def _alpaca(
    model: Any, tokenizer: Any, instruction: str, input: str | None, context: str | None, **overrides: Any
) -> tuple[list[int], str]:
    entered = "\n\n".join(text for text in (context, input) if text is not None)
    inputs = tokenizer(generate_prompt(instruction, entered), return_tensors="pt")
    settings = {"temperature": 0.1, "top_p": 0.75, "num_beams": 4, "max_new_tokens": 256, **overrides}
    generation_output = model.generate(
        input_ids=inputs["input_ids"],
        generation_config=GenerationConfig(
            **settings, eos_token_id=model.generation_config.eos_token_id, **_NO_PADDING
        ),
        attention_mask=inputs["attention_mask"],
        return_dict_in_generate=True,
        output_scores=True,
    )
    output = tokenizer.decode(generation_output.sequences[0], skip_special_tokens=True)
    return inputs["input_ids"][0].tolist(), output.split("### Resposta:")[1].strip()


# ------------------------------------------------------------------------------------------- falcon-40b-instruct


def _falcon(
    model: Any,
    tokenizer: Any,
    instruction: str,
    input: str | None,
    context: str | None,
    history: Sequence[Turn],
    **overrides: Any,
) -> tuple[list[int], str]:
    """What the card's pipeline does, without today's pipeline, which puts a temperature of 0.7 on top."""
    question = _within(instruction, input, context, headings=("### Context:", "### Question:"), blank="\n")
    past = "".join(f"User: {asked}\n\nAssistant: {answered}\n\n" for asked, answered in history)
    prompt = f"{past}User: {question}\n\nAssistant:"
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = {"max_length": 200, "do_sample": True, "top_k": 10, "num_return_sequences": 1, **overrides}
    if "max_new_tokens" in settings:
        del settings["max_length"]
    output = model.generate(**inputs, eos_token_id=tokenizer.eos_token_id, **_NO_PADDING, **settings)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    return inputs["input_ids"][0].tolist(), text[len(prompt) :]


_CARDS: Final = {
    "lince-zero": _lince,
    "aira-2-portuguese-1b7": _aira,
    "llama-2-7b-spanish": _llama,
    "alpaca-lora-ptbr-7b": _alpaca,
    "falcon-40b-instruct": _falcon,
}
