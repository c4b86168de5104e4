from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from lince_rag.errors import TemplateError, UnusedDocumentsError
from lince_rag.prompting.content import Segment, compile_patterns, neutralize, restore
from lince_rag.prompting.registry import get_model, load_registry
from lince_rag.prompting.templates import ChatTemplate

GOLDEN = Path(__file__).parent / "golden"

MODELS = [name for name, spec in load_registry().items() if spec.parameters]

QUESTION = "¿Cuándo se fundó la universidad de Coímbra?"
INPUT = "Da el año\ny la ciudad."
TEXT = "Se fundó en 1290, en Lisboa.\n\nEn 1537 pasó a Coímbra."
USER = {"role": "user", "content": QUESTION}
USER_WITH_INPUT = {**USER, "input": INPUT}
SYSTEM = {"role": "system", "content": "Responde en español."}
TURNS = [{"role": "user", "content": "Hola."}, {"role": "assistant", "content": "Hola, ¿qué deseas?"}, USER]
TITLED = [
    {"title": "Historia", "text": TEXT},
    {"title": "", "text": "Otra nota."},
    {"title": "Guía", "text": "Fin."},
]

CASES = {
    "instruction": ([USER], []),
    "input": ([USER_WITH_INPUT], []),
    "context": ([USER], [{"text": TEXT}]),
    "both": ([USER_WITH_INPUT], [{"text": TEXT}]),
    "documents": ([USER], TITLED),
    "system": ([SYSTEM, USER], []),
    "multi-turn": ([SYSTEM, *TURNS], [{"text": TEXT}]),
}


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate.from_spec(get_model(name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_golden(name, case):
    messages, documents = CASES[case]
    # Models with the same template read the same prompt.
    expected = (GOLDEN / f"{get_model(name).template.removesuffix('.jinja')}.{case}.txt").read_bytes()
    assert template(name).render(messages, documents).text.encode() == expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", load_registry())
def test_transformers_renders_the_same(name, case):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>")
    spec = get_model(name)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), **spec.special_tokens
    )
    messages, documents = CASES[case]
    expected = tokenizer.apply_chat_template(
        messages,
        documents=documents or None,
        chat_template=spec.template_text(),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert ChatTemplate.from_spec(spec).render(messages, documents).text == expected


# The references below are written from the cards and papers, not from the templates.


def lince_reference(instruction, entrada=None, contexto=None):
    prompt = (
        "A continuación hay una instrucción que describe una tarea, junto con una entrada que proporciona más "
        "contexto. Escriba una respuesta que complete adecuadamente la solicitud.\n\n"
    )
    for title, content in (("Instrucción", instruction), ("Entrada", entrada), ("Contexto", contexto)):
        if content is not None:
            prompt += f"### {title}:\n{content}\n\n"
    return prompt + "### Respuesta:\n"


@pytest.mark.parametrize("question", [QUESTION, "  con espacios \n"])
@pytest.mark.parametrize("entrada", [None, INPUT])
@pytest.mark.parametrize("contexto", [None, TEXT])
def test_lince_is_the_function_of_its_card(question, entrada, contexto):
    message = {"role": "user", "content": question} | ({"input": entrada} if entrada else {})
    documents = [{"text": contexto}] if contexto else []
    expected = lince_reference(question, entrada, contexto)
    assert template("lince-zero").render([message], documents).text == expected


def test_aira_is_bos_question_sep():
    assert (
        template("aira-2-portuguese-1b7").render([USER]).text
        == "<|startofinstruction|>" + QUESTION + "<|endofinstruction|>"
    )


def test_aira_finished_turn():
    rendered = template("aira-2-portuguese-1b7").render(TURNS[:2], add_generation_prompt=False)
    assert rendered.text == "<|startofinstruction|>Hola.<|endofinstruction|>Hola, ¿qué deseas?<|endofcompletion|>"


@pytest.mark.parametrize("first", ["Hola.", "Hola. \n"])
def test_llama_is_the_reference_implementation(first):
    messages = [SYSTEM, {"role": "user", "content": first}, {"role": "assistant", "content": "\nDime. "}, USER]
    assert template("llama-2-7b-spanish").render(messages).text == (
        "<s>[INST] <<SYS>>\nResponde en español.\n<</SYS>>\n\nHola. [/INST] Dime. </s>"
        f"<s>[INST] {QUESTION} [/INST]"
    )


def test_llama_strips_a_turn_after_the_system_text_is_merged():
    messages = [SYSTEM, {"role": "user", "content": " Hola. "}]
    assert template("llama-2-7b-spanish").render(messages).text.endswith("<</SYS>>\n\n Hola. [/INST]")
    assert template("llama-2-7b-spanish").render(messages[1:]).text == "<s>[INST] Hola. [/INST]"


def test_alpaca_preambles():
    task = "Abaixo está uma instrução que descreve uma tarefa"
    answer = "Escreva uma resposta que conclua adequadamente a solicitação.\n\n### Instruções:\n"
    alpaca = template("alpaca-lora-ptbr-7b")
    assert alpaca.render([USER]).text == f"<s>{task}. {answer}{QUESTION}\n\n### Resposta:"
    with_input = f"<s>{task}, emparelhada com uma entrada que fornece mais contexto. {answer}{QUESTION}\n\n"
    assert alpaca.render([USER_WITH_INPUT]).text == f"{with_input}### Entrada:\n{INPUT}\n\n### Resposta:"
    assert alpaca.render([USER], [{"text": TEXT}]).text == f"{with_input}### Entrada:\n{TEXT}\n\n### Resposta:"
    both = alpaca.render([USER_WITH_INPUT], [{"text": TEXT}]).text
    assert both == f"{with_input}### Entrada:\n{TEXT}\n\n{INPUT}\n\n### Resposta:"


def test_falcon_keeps_blank_lines_between_turns_only():
    messages = [
        {"role": "system", "content": "Sé breve."},
        {"role": "user", "content": "\nuno\r\n\r\n \n\ndos\n\n tres\n"},
    ]
    assert (
        template("falcon-40b-instruct").render(messages).text == "Sé breve.\n\nUser: uno\ndos\n tres\n\nAssistant:"
    )


def chatml(*turns, answer=""):
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + (
        f"<|im_start|>assistant\n{answer}"
    )


@pytest.mark.parametrize("name", ["tucano2-3.7b", "salamandra-7b-rag"])
def test_chatml_without_a_default_system_text(name):
    assert template(name).render([USER]).text == chatml(("user", QUESTION))
    expected = chatml(("system", "Responde en español."), ("user", QUESTION))
    assert template(name).render([SYSTEM, USER]).text == expected


@pytest.mark.parametrize(
    ("name", "start"),
    [("rigochat-7b-v2", "You are Qwen, created by"), ("salamandra-7b-instruct", "I am Salamandra, an AI")],
)
def test_chatml_with_a_default_system_text(name, start):
    text = template(name).render([USER]).text
    assert text.startswith(f"<|im_start|>system\n{start}")
    assert text.endswith(f".<|im_end|>\n{chatml(('user', QUESTION))}")
    # A system text that is given takes its place, even an empty one.
    for system in ("", "Responde en español."):
        messages = [{"role": "system", "content": system}, USER]
        assert template(name).render(messages).text == chatml(("system", system), ("user", QUESTION))


def test_eurollm_always_has_a_system_turn():
    assert template("eurollm-1.7b").render([USER]).text == "<s>" + chatml(("system", ""), ("user", QUESTION))


def test_qwen3_does_not_think():
    thoughts = "<think>\n\n</think>\n\n"
    assert template("qwen3-4b").render([USER]).text == chatml(("user", QUESTION), answer=thoughts)
    turns = [("user", "Hola."), ("assistant", "Hola, ¿qué deseas?"), ("user", QUESTION)]
    assert template("qwen3-4b").render(TURNS).text == chatml(*turns, answer=thoughts)
    ended = template("qwen3-4b").render(TURNS[:2], add_generation_prompt=False).text
    assert ended == chatml(turns[0], answer=f"{thoughts}Hola, ¿qué deseas?<|im_end|>\n")


@pytest.mark.parametrize("name", ["llama-3.1-8b", "latxa-llama-3.1-8b"])
def test_llama_3_trims_every_text(name):
    messages = [{"role": "system", "content": " Sé breve.\n"}, {"role": "user", "content": "\nHola. "}]
    assert template(name).render(messages).text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nSé breve.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHola.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("name", ["gemma-2-9b", "gemma-3-4b"])
def test_gemma_has_its_system_text_in_the_first_user_turn(name):
    messages = [SYSTEM, {"role": "user", "content": " Hola. "}, TURNS[1], USER]
    assert template(name).render(messages).text == (
        "<bos><start_of_turn>user\nResponde en español.\n\nHola.<end_of_turn>\n"
        "<start_of_turn>model\nHola, ¿qué deseas?<end_of_turn>\n"
        f"<start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
    )


def beginnings(name, messages):
    """How often a prompt has the BOS of its model."""
    users = sum(message["role"] == "user" for message in messages)
    if name in {"aira-2-portuguese-1b7", "llama-2-7b-spanish"}:
        return users
    return 1 if "bos_token" in get_model(name).special_tokens else 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_one_beginning(name, case):
    messages, documents = CASES[case]
    text = template(name).render(messages, documents).text
    bos = get_model(name).special_tokens.get("bos_token")
    assert (text.count(bos) if bos else 0) == beginnings(name, messages)
    if bos:
        assert text.startswith(bos)


@pytest.mark.parametrize("name", MODELS)
def test_a_conversation_extends_its_beginning(name):
    """A turn reads the same, whatever follows it, so that an engine can keep what it has read."""
    messages = [SYSTEM, *TURNS]
    begun = template(name).render(messages[:2], add_generation_prompt=False).text
    for end in (3, 4):
        assert template(name).render(messages[:end], add_generation_prompt=False).text.startswith(begun)


@pytest.mark.parametrize("name", load_registry())
def test_segments(name):
    prompt = template(name).render([SYSTEM, USER_WITH_INPUT], TITLED)
    content = [segment.text for segment in prompt.segments if segment.is_content]
    collapsed = TEXT.replace("\n\n", "\n") if name == "falcon-40b-instruct" else TEXT
    assert sorted(content) == sorted(
        [SYSTEM["content"], QUESTION, INPUT, "Historia", collapsed, "Otra nota.", "Guía", "Fin."]
    )
    assert "".join(segment.text for segment in prompt.segments) == prompt.text
    assert prompt.messages == (SYSTEM, USER_WITH_INPUT)
    assert prompt.documents == tuple(TITLED)


@pytest.mark.parametrize("name", load_registry())
@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SYSTEM],
        [TURNS[1]],
        [USER, USER],
        [USER, SYSTEM],
        [SYSTEM, SYSTEM, USER],
        TURNS[:2],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": "x", "tool_calls": "y"}],
        [{"role": "user", "content": "x", "input": 3}],
    ],
)
def test_messages_no_template_takes(name, messages):
    with pytest.raises(TemplateError) as caught:
        template(name).render(messages)
    assert caught.value.hint


@pytest.mark.parametrize("document", [{}, {"text": None}, {"text": "x", "title": 3}])
def test_document_without_text(document):
    with pytest.raises(TemplateError, match="not a document"):
        template("lince-zero").render([USER], [document])


@pytest.mark.parametrize("name", MODELS)
def test_a_template_does_not_differ_from_itself(name):
    spec = get_model(name)
    # As published templates come: without the control tokens of a row, and with a comment more.
    published = ChatTemplate("{# A comment. #}" + spec.template_text(), special_tokens=spec.special_tokens)
    assert template(name).difference(published) is None


def test_the_first_difference():
    def difference(source):
        return template("qwen3-4b").difference(ChatTemplate(source))

    chatml = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    thinking = difference(chatml)
    assert (thinking.conversation, thinking.ours, thinking.theirs) == ("question", "<think>\n\n</think>\n\n", "")
    without = "{{ '<think>\\n\\n</think>\\n\\n' }}"
    assert difference(chatml + without) is None
    trimmed = difference(chatml.replace("m['content']", "m['content'] | trim") + without)
    assert trimmed.conversation == "question"
    assert (trimmed.ours[0], trimmed.theirs[0]) == (" ", "<")
    assert template("qwen3-4b").render([USER]).text.startswith("<|im_start|>user\n")
    # A system text that the other one refuses or leaves out.
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + chatml + without
    assert difference(refusing) is None
    skipping = (
        chatml.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}") + without
    )
    assert difference(skipping).conversation == "system"
    broken = difference("{{ raise_exception('not at all') }}")
    assert (broken.conversation, broken.position) == ("question", 0)
    assert "not at all" in broken.theirs


PLAIN = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def test_documents_that_a_template_never_reads():
    with pytest.raises(UnusedDocumentsError):
        ChatTemplate(PLAIN).render([USER], [{"text": TEXT}])


@pytest.mark.parametrize(
    "use", ["{% if documents %}!{% endif %}", "{{ documents[0]['title'] }}", "{{ documents[0].text }}"]
)
def test_documents_that_a_template_reads_in_part(use):
    with pytest.raises(UnusedDocumentsError):
        ChatTemplate(PLAIN + use).render([USER], TITLED)


def test_message_that_vanishes():
    only_last = "{{ messages[-1]['content'] }}"
    assert ChatTemplate(only_last).render([USER]).text == QUESTION
    with pytest.raises(TemplateError, match="leaves out a message"):
        ChatTemplate(only_last).render(TURNS)
    with pytest.raises(TemplateError, match="leaves out a message"):
        ChatTemplate(only_last).render([USER_WITH_INPUT])


def test_message_that_is_cut():
    with pytest.raises(TemplateError, match="cuts"):
        ChatTemplate("{{ messages[0]['content'][:5] }}").render([USER])


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages[0]['content'] + 3 }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__ }}{{ x.y.z }}",
    ],
)
def test_template_that_fails(source):
    with pytest.raises(TemplateError, match="modelo"):
        ChatTemplate(source, name="modelo").render([USER])


def test_template_cannot_reach_python_through_a_namespace():
    with pytest.raises(TemplateError):
        ChatTemplate("{% set n = namespace(__class__=1) %}{{ messages[0]['content'] }}").render([USER])


def test_extensions_of_hugging_face():
    source = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}{% endif %}{% generation %}"
        "{{ m | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    prompt = ChatTemplate(source).render([{"role": "user", "content": "¿sí?"}])
    assert prompt.text == '{"role": "user", "content": "¿sí?"}4'


def test_private_use_characters_in_content_stay():
    content = "".join(map(chr, range(0xE000, 0xF8F0)))
    assert template("lince-zero").render([{"role": "user", "content": content}]).text == lince_reference(content)


def test_no_private_use_character_left():
    content = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(TemplateError, match="private-use"):
        template("lince-zero").render([{"role": "user", "content": content}])


@pytest.mark.parametrize("content", ["", " \n "])
def test_empty_content(content):
    assert template("lince-zero").render([{"role": "user", "content": content}]).text == lince_reference(content)


def test_special_tokens_and_further_control_tokens_are_broken():
    spec = get_model("lince-zero")
    tokens = (*spec.control_tokens, "<|im_end|>")
    more = ChatTemplate.from_spec(replace(spec, special_tokens={"eos_token": "<fin>"}, control_tokens=tokens))
    assert more.neutralize("<fin> <|im_end|> >>TITLE<<") == r"<\fin> <\|im_end|> >\>TITLE<<"


MARKERS = compile_patterns(["### Instrucción:", "[/INST]"], ["User:"], ["</s>", "<|end|>", "a", "\\x"])


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("### Instrucción:", r"#\## Instrucción:"),
        ("###INSTRUCCION :", r"#\##INSTRUCCION :"),
        ("### Instruccio\u0301n:", "#\\## Instruccio\u0301n:"),
        ("###\u00a0\n Instrucción\u200b:", "#\\##\u00a0\n Instrucción\u200b:"),
        ("##### Instrucción:", r"###\## Instrucción:"),
        (r"#\## Instrucción:", r"#\\## Instrucción:"),
        (r"#\\## Instrucción:", r"#\\\## Instrucción:"),
        (r"\#\#\# Instrucción:", r"\#\\#\# Instrucción:"),
        ("[[/INST]/INST]", r"[[\/INST]/INST]"),
        ("[ / inst ]", r"[\ / inst ]"),
        ("</s></s>", r"<\/s><\/s>"),
        ("</S>", "</S>"),
        ("User: a\n  user : b\r\nel User: c", "U\\ser: a\n  u\\ser : b\r\nel User: c"),
        ("a \\x", "a \\x"),
        ("nada", "nada"),
        ("", ""),
    ],
)
def test_neutralize(text, broken):
    assert neutralize(text, MARKERS) == broken
    assert restore(broken, MARKERS) == text


def test_overlapping_markers_are_undone_too():
    patterns = compile_patterns(["## A", "### A", "<<x>>", "<x>"])
    for text in ("### A", "<<x>>", "#\\## A<\\<x>>"):
        assert restore(neutralize(text, patterns), patterns) == text


def test_marker_across_two_contents_is_broken():
    prompt = template("lince-zero").render([USER], [{"text": "uno ###"}, {"text": "Respuesta: dos"}])
    assert "#\\##\n\nRespuesta: dos" in prompt.text


def test_marker_across_template_and_content_is_broken():
    joined = ChatTemplate("[{{ messages[0]['content'] }}", markers=["[INST]"])
    assert joined.render([{"role": "user", "content": "INST] x"}]).segments == (
        Segment("[", is_content=False),
        Segment(r"\INST] x", is_content=True),
    )


def test_neutralize_takes_linear_time():
    spaces = "### \n" * 20_000 + " " * 100_000 + "User" + "\n" * 100_000 + "[" * 100_000
    assert neutralize(spaces, MARKERS) == spaces
