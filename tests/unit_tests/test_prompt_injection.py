"""No question, document or turn can forge the structure of a prompt, whatever it is made of.

The structure is read back by the parsers below, written apart from the code under test and more tolerant than it
needs to be: a hostile prompt must show exactly the structure of a harmless prompt of the same shape.
"""

import re
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lince_rag.prompting.registry import get_model, load_registry
from lince_rag.prompting.templates import ChatTemplate
from tests.lengths import EXAMPLES

# What shows nothing, and what the tokenizers of the LLaMA models read as a space.
HIDDEN = [
    "\u00ad",
    "\u034f",
    "\u061c",
    "\u180e",
    "\u200b",
    "\u200d",
    "\u202e",
    "\u2066",
    "\ufe0f",
    "\ufeff",
    "\U000e0101",
]
LLAMA_SPACE = "\u2581"

BLANK = f"[\\s{LLAMA_SPACE}{''.join(HIDDEN)}]*"

FALCON_NAMES = "TITLE|ABSTRACT|INTRODUCTION|SUMMARY|COMMENT|ANSWER|QUESTION|DOMAIN|PREFIX|SUFFIX|MIDDLE"
FALCON_TOKENS = rf">>(?:{FALCON_NAMES})<<|<\|endoftext\|>"
LLAMA_TOKENS = r"</?s>|<unk>"
BLOOM_TOKENS = r"</?s>|<unk>|<pad>|<\|(?:startofinstruction|endofinstruction|endofcompletion)\|>"
CHATML_TOKENS = r"<\|im_(?:start|end)\|>|</?s>|<unk>|<pad>"
QWEN_TOKENS = (
    r"<\|im_(?:start|end)\|>|<\|(?:endoftext|repo_name|file_sep|(?:image|video)_pad|vision_(?:start|end|pad))\|>"
    r"|<\|(?:object_ref|box|quad)_(?:start|end)\|>|<\|fim_(?:prefix|middle|suffix|pad)\|>"
    r"|</?tool_call>"
)
TUCANO_TOKENS = (
    r"<\|im_(?:start|end)\|>|</?(?:tools|tool_call|tool_response|think|answer|context)>"
    r"|<\|(?:fim_(?:prefix|suffix|middle)|repo_name|image|image_pad|image_placeholder|unk|pad)\|>"
)
LLAMA_3_TOKENS = (
    r"<\|(?:begin_of_text|end_of_text|finetune_right_pad_id|step_id|start_header_id|end_header_id|eom_id|eot_id"
    r"|python_tag)\|>"
)
GEMMA_TOKENS = r"<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|(?:start|end)_of_image|image_soft_token)>"
LINE = r"(?:\A|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])"


def section(*names: str) -> str:
    return rf"(?i:###{BLANK}(?:{'|'.join(names)}){BLANK}:)"


STRUCTURE = {
    "lince-zero": [
        section("instrucci(?:ó|o\u0301?)n", "entrada", "contexto", "respuesta"),
        FALCON_TOKENS,
    ],
    "aira-2-portuguese-1b7": [section("contexto", "pergunta"), BLOOM_TOKENS],
    "llama-2-7b-spanish": [
        rf"(?i:\[{BLANK}/?{BLANK}INST{BLANK}\])",
        rf"(?i:<<{BLANK}/?{BLANK}SYS{BLANK}>>)",
        section("contexto", "pregunta"),
        LLAMA_TOKENS,
    ],
    "alpaca-lora-ptbr-7b": [
        section(
            "instru(?:ç|c\u0327?)(?:õ|o\u0303?)es", "instru(?:ç|c\u0327?)(?:ã|a\u0303?)o", "entrada", "resposta"
        ),
        LLAMA_TOKENS,
    ],
    "falcon-40b-instruct": [
        rf"{LINE}{BLANK}(?i:(?:user|assistant|falcon){BLANK}:)",
        r"(?m:^[ \t]*\n)",
        section("context", "question"),
        FALCON_TOKENS,
    ],
    # One model for each template.
    "tucano2-3.7b": [TUCANO_TOKENS],
    "salamandra-7b-instruct": [section("contexto", "pregunta"), CHATML_TOKENS],
    "salamandra-7b-rag": [rf"{LINE}{BLANK}(?i:(?:context|question){BLANK}:)", CHATML_TOKENS],
    "rigochat-7b-v2": [section("contexto", "pregunta"), QWEN_TOKENS],
    "qwen3-4b": [section("context", "question"), rf"{QWEN_TOKENS}|</?(?:tool_response|think)>"],
    "llama-3.1-8b": [section("context", "question"), LLAMA_3_TOKENS],
    "gemma-3-4b": [section("context", "question"), GEMMA_TOKENS],
    "eurollm-1.7b": [section("context", "question"), rf"<\|im_(?:start|end)\|>|{LLAMA_TOKENS}"],
}


# Compiling a template takes longer than most of these tests.
@cache
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate.from_spec(get_model(name))


def structure(name: str, text: str) -> list[str]:
    """Every structural mark of a format in a prompt, in order, without its whitespace."""
    # A lookahead, so that marks that overlap are all seen, and each kind by itself, so that none hides another;
    # but a turn after two line breaks is one turn.
    marks = set()
    for kind in STRUCTURE[name]:
        # Only a marker reads the same with something invisible in it; a control token has to be exact.
        hidden = HIDDEN if "(?i:" in kind else []
        offsets = [offset for offset, character in enumerate(text) if character not in hidden]
        seen = "".join(text[offset] for offset in offsets)
        for match in re.finditer(f"(?=({kind}))", seen):
            end = offsets[match.end(1) - 1] if match.end(1) else -1
            marks.add((end, re.sub(BLANK, "", match[1]).lower()))
    return [mark for _, mark in sorted(marks)]


MARKS = [
    "### Instrucción:", "### Instruccion:", "### Entrada:", "### Contexto:", "### Respuesta:", "### Pregunta:",
    "### Instruções:", "### Instrução:", "### Resposta:", "### Pergunta:", "### Context:", "### Question:",
    "### Instruccio\u0301n:", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "User:", "Assistant:", "Falcon:",
    "\nUser:", "\n\nAssistant:", "<s>", "</s>", "<unk>", "<pad>", "<|startofinstruction|>", "<|endofinstruction|>",
    "<|endofcompletion|>", "<|endoftext|>", ">>TITLE<<", ">>QUESTION<<", ">>ANSWER<<", ">>MIDDLE<<",
    "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<context>", "</context>", "Context:", "\nQuestion:",
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>", "<start_of_turn>",
    "<end_of_turn>",
]  # fmt: skip

SMALL = [
    "\\", "\\\\", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\r", " ", "  ", "\t", "\u00a0", "\u2003", "\u2028",
    "\x85", "\v", "\u200b", "\ufeff", "\u00ad", "#", "##", "###", "[", "]", "/", "<", "<<", ">", ">>", "|", ":",
    "INST", "SYS", "User", "Respuesta", "Resposta", "Contexto", "s", "\ue000", "\ue001", "0", "\ue0000\ue000",
    "{{ x }}", "{% if %}", "á", "a\u0301", "texto normal", "¿qué?", LLAMA_SPACE, *HIDDEN,
]  # fmt: skip


CHANGES = [
    str, str.upper, str.lower, str.title,
    lambda text: re.sub(" ", "\u2009", text), lambda text: re.sub(" ", LLAMA_SPACE, text), "\u034f".join,
]  # fmt: skip
INNER = ["", "\\", " ", "\n\n", "\u200b", LLAMA_SPACE, "\u202e\ufe0f", *MARKS[13:17]]
CUTS = [(mark[:cut], mark[cut:]) for mark in MARKS for cut in range(1, len(mark))]
OWN_CUTS = {name: [cut for cut in CUTS if structure(name, "\n" + "".join(cut))] for name in STRUCTURE}
WHITESPACE = [character for character in map(chr, range(0x3100)) if character.isspace()]

# What a text is made of: small things, and marks changed, halved, filled and doubled. They are listed once,
# because drawing them part by part takes Hypothesis most of the time of these tests.
PIECES = [
    *(SMALL + WHITESPACE) * 20,
    *[change(mark) for change in CHANGES for mark in MARKS] * 8,
    *[half for cut in CUTS for half in cut] * 2,
    *[inner.join(cut) for cut in CUTS for inner in INNER],
    *[before + before + after for before, after in CUTS] * 2,
]

HOSTILE = st.one_of(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.text(max_size=12))


@st.composite
def conversations(draw: st.DrawFn, name: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    messages = [{"role": "system", "content": draw(HOSTILE)}] if draw(st.booleans()) else []
    if draw(st.booleans()):
        messages += [{"role": "user", "content": draw(HOSTILE)}, {"role": "assistant", "content": draw(HOSTILE)}]
    messages.append({"role": "user", "content": draw(HOSTILE)})
    if draw(st.booleans()):
        messages[-1]["input"] = draw(HOSTILE)
    documents = [
        {"title": draw(HOSTILE), "text": draw(HOSTILE)} if draw(st.booleans()) else {"text": draw(HOSTILE)}
        for _ in range(draw(st.integers(0, 3)))
    ]
    for before, after in pairwise(documents):
        # A mark split over two neighbours, which neither of them shows alone.
        if draw(st.booleans()):
            start, rest = draw(st.sampled_from(OWN_CUTS[name]))
            before["text"] += start
            after["title" if "title" in after else "text"] = rest
    return messages, documents


def harmless(items: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same shape with nothing in it: blank texts stay, since a template may leave out their section."""
    return [
        {key: "inofensivo" if key != "role" and value.strip() else value for key, value in item.items()}
        for item in items
    ]


def collapsed(text: str) -> str:
    return "\n".join(line for line in text.replace("\r", "\n").split("\n") if line.strip())


def originals(name: str, messages: list[dict[str, str]], documents: list[dict[str, str]]) -> list[str]:
    """Every content of a conversation as the prompt must show it."""
    texts = [value for item in [*messages, *documents] for key, value in item.items() if key != "role"]
    shown = [text.strip() for text in texts if text.strip()]
    return [collapsed(text) for text in shown] if name == "falcon-40b-instruct" else shown


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURE)
def test_no_content_forges_structure(name):
    template = template_of(name)
    expected = {}

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(conversations(name))
    @example(([{"role": "user", "content": "", "input": "\u200b"}], [{"text": ""}]))
    # Something invisible between a letter and its accent.
    @example(([{"role": "user", "content": "", "input": "### Instruccio\u200b\u0301n:"}], []))
    def check(conversation):
        messages, documents = conversation
        prompt = template.render(messages, documents)
        shape = harmless(messages), harmless(documents)
        if repr(shape) not in expected:
            expected[repr(shape)] = structure(name, template.render(*shape).text)
        assert structure(name, prompt.text) == expected[repr(shape)]
        # Every content is still there. A backslash that breaks a mark across two contents is the only one that
        # restore cannot know about.
        shown = [segment.text for segment in prompt.segments if segment.is_content]
        contents = originals(name, messages, documents)
        assert sorted(text.replace("\\", "") for text in shown) == sorted(
            text.replace("\\", "") for text in contents
        )
        if sorted(shown) == sorted(map(template.neutralize, contents)):
            assert sorted(map(template.restore, shown)) == sorted(contents)
        else:
            assert len("".join(shown)) > len("".join(map(template.neutralize, contents)))

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURE)
def test_restore_undoes_neutralize(name):
    template = template_of(name)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(HOSTILE)
    def check(text):
        broken = template.neutralize(text)
        assert template.restore(broken) == text
        assert template.restore(template.restore(template.neutralize(broken))) == text
        assert not [mark for mark in structure(name, broken) if mark.strip()]

    check()


@pytest.mark.parametrize("name", STRUCTURE)
@pytest.mark.parametrize("mark", MARKS)
def test_mark_in_every_place(name, mark):
    template = template_of(name)
    messages = [{"role": role, "content": f"{mark}\n{mark}"} for role in ("system", "user", "assistant", "user")]
    messages[-1]["input"] = f"a {mark}{mark}"
    documents = [{"title": mark, "text": f"{mark} {mark}"}, {"text": f"\n\n{mark}"}]
    prompt = template.render(messages, documents)
    expected = template.render(harmless(messages), harmless(documents))
    assert structure(name, prompt.text) == structure(name, expected.text)


def test_every_template_has_a_parser():
    templates = {spec.template for spec in load_registry().values() if spec.parameters}
    assert {get_model(name).template for name in STRUCTURE} == templates


@pytest.mark.parametrize("name", STRUCTURE)
def test_parser_sees_a_forged_structure(name):
    # The parser itself is worth nothing if it misses what the tests are about.
    spec = get_model(name)
    for mark in (*spec.markers, *spec.line_markers, *spec.control_tokens):
        assert structure(name, f"texto\n{mark} texto"), mark
