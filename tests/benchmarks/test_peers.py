"""Side by side with langchain-huggingface on the same checkpoint: what each does, measured in the run.

Only what is ours is asserted; of the peers, whatever happens is written down.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest
from langchain_core.messages import HumanMessage
from transformers import AutoTokenizer, LlamaForCausalLM

import lince_rag
from lince_rag import ChatLince, LinceLLM
from tests.benchmarks.tables import table
from tests.checkpoints import build_checkpoint

peers = pytest.importorskip("langchain_huggingface")

KIND: Final = "llama-2-7b-spanish"
TOKENS: Final = 32
QUESTION: Final = "Dame una lista de lugares que visitar en España."
NAMES: Final = ["ChatLince", "LinceLLM", "ChatHuggingFace", "HuggingFacePipeline"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer has the format's chat template, which ChatHuggingFace needs."""
    checkpoint = build_checkpoint(KIND, tmp_path_factory.mktemp("peers") / "llama", context_window=2048)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    template = Path(lince_rag.__file__).parent.parent / "prompts" / f"{KIND}.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(checkpoint.path)
    return checkpoint.path


@dataclass(frozen=True)
class Subject:
    """A model to look at.

    Attributes:
        model: The chat model or text model.
        prompt: What to ask it: a question, or for a text model without a template the whole prompt.
    """

    model: Any
    prompt: str

    def invoke(self, **options: Any) -> str:
        return text_of(self.model.invoke(self.prompt, **options))

    def stream(self, **options: Any) -> Iterator[str]:
        return map(text_of, self.model.stream(self.prompt, **options))

    async def astream(self) -> list[str]:
        return [text_of(chunk) async for chunk in self.model.astream(self.prompt)]


def text_of(reply: Any) -> str:
    return reply if isinstance(reply, str) else reply.text


@pytest.fixture(scope="module")
def subjects(folder: Path) -> dict[str, Subject]:
    """The four, on one checkpoint, all greedy and with answers of the same length."""
    ours = {
        "model": KIND, "model_path": str(folder), "device": "cpu", "temperature": 0, "max_tokens": TOKENS,
    }  # fmt: skip
    chat = ChatLince(**ours)
    pipeline = peers.HuggingFacePipeline.from_model_id(
        model_id=str(folder),
        task="text-generation",
        pipeline_kwargs={"max_new_tokens": TOKENS, "do_sample": False},
    )
    native = chat.render([HumanMessage(QUESTION)]).text
    return {
        "ChatLince": Subject(chat, QUESTION),
        "LinceLLM": Subject(LinceLLM(**ours), QUESTION),
        "ChatHuggingFace": Subject(peers.ChatHuggingFace(llm=pipeline), QUESTION),
        "HuggingFacePipeline": Subject(pipeline, native),
    }


@dataclass
class Meter:
    """What reached the model: forward passes, and the prompts of ``model.generate``."""

    passes: int
    prompts: list[list[int]]


@contextmanager
def metered(delay: float = 0.0) -> Iterator[Meter]:
    """Watch every Llama of this process."""
    meter = Meter(0, [])
    forward, generate = LlamaForCausalLM.forward, LlamaForCausalLM.generate

    def slow_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        meter.passes += 1
        time.sleep(delay)
        return forward(self, *args, **kwargs)

    def watched_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        meter.prompts += ids.tolist()
        return generate(self, *args, **kwargs)

    LlamaForCausalLM.forward, LlamaForCausalLM.generate = slow_forward, watched_generate
    try:
        yield meter
    finally:
        LlamaForCausalLM.forward, LlamaForCausalLM.generate = forward, generate


def attempted(action: Callable[[], str]) -> str:
    """What an action finds out, or how it fails."""
    try:
        return action()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def yes(value: bool) -> str:
    return "yes" if value else "no"


def echo(subject: Subject) -> str:
    return yes(QUESTION in subject.invoke())


def answer_of(subject: Subject) -> str:
    """The answer by itself, whether the prompt comes with it or not."""
    return subject.invoke().rpartition("[/INST]")[2].strip()


def stop_in(answer: str) -> str:
    """Four characters from the middle of an answer, with no white space around them."""
    for start in range(len(answer) // 2, len(answer) - 4):
        stop = answer[start : start + 4]
        if not any(character.isspace() for character in answer[answer.find(stop) - 1 :][:5]):
            return stop
    raise AssertionError(f"no stop text in {answer!r}")


def stopped(whole: str, stop: str, text: str) -> str:
    """Whether a stop text ended an answer where it should."""
    text = text.rpartition("[/INST]")[2].strip()
    return f"{yes(text == whole[: whole.find(stop)])}: {len(text)} characters, {whole.find(stop)} before the stop"


def stop_invoke(subject: Subject) -> str:
    answer = answer_of(subject)
    stop = stop_in(answer)
    return stopped(answer, stop, subject.invoke(stop=[stop]))


def stop_stream(subject: Subject) -> str:
    answer = answer_of(subject)
    stop = stop_in(answer)
    return stopped(answer, stop, "".join(subject.stream(stop=[stop])))


def bos_in_prompt(subject: Subject) -> str:
    with metered() as meter:
        subject.invoke()
    (prompt,) = meter.prompts
    return str(prompt.count(1))


def first_chunk(subject: Subject) -> str:
    with metered(delay=0.02) as meter:
        chunks = subject.stream()
        while not next(chunks):
            pass
        first = meter.passes
        rest = [chunk for chunk in chunks if chunk]
    return f"after {first} of {meter.passes} passes, then {len(rest)} more chunks"


def asynchronous(subject: Subject) -> str:
    async def run() -> str:
        return text_of(await subject.model.ainvoke(subject.prompt))

    return yes(asyncio.run(run()) == subject.invoke())


def asynchronous_stream(subject: Subject) -> str:
    chunks = [chunk for chunk in asyncio.run(subject.astream()) if chunk]
    return f"{len(chunks)} chunks"


def usage(subject: Subject) -> str:
    reply = subject.model.invoke(subject.prompt)
    found = getattr(reply, "usage_metadata", None)
    if isinstance(reply, str):
        found = (subject.model.generate([subject.prompt]).llm_output or {}).get("token_usage")
    return f"{found['input_tokens']} + {found['output_tokens']} tokens" if found else "none"


def one_batch(subject: Subject) -> str:
    with metered() as meter:
        subject.model.batch([subject.prompt] * 2)
    return str(meter.passes)


def test_side_by_side(subjects: dict[str, Subject], results: list[str]) -> None:
    checks: dict[str, Callable[[Subject], str]] = {
        "answer repeats the prompt (invoke)": echo,
        "stop honoured in invoke": stop_invoke,
        "stop honoured in stream": stop_stream,
        "BOS ids that reach model.generate": bos_in_prompt,
        "stream: first text": first_chunk,
        "ainvoke answers as invoke": asynchronous,
        "astream": asynchronous_stream,
        "usage": usage,
        "forward passes of a batch of two": one_batch,
    }
    found = {
        label: {name: attempted(lambda check=check, name=name: check(subjects[name])) for name in NAMES}
        for label, check in checks.items()
    }
    rows: list[list[object]] = [[label, *(row[name] for name in NAMES)] for label, row in found.items()]
    note = (
        f"langchain-huggingface {version('langchain-huggingface')}, transformers {version('transformers')}; one "
        f"tiny Llama, greedy, {TOKENS} tokens of answer. The stop text is taken from the middle of each one's own "
        "answer. HuggingFacePipeline has no template and gets the rendered prompt."
    )
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    results.append(f"## Peers: behaviour\n\n{table(['', *NAMES], escaped)}\n\n{note}")
    for name in NAMES[:2]:
        ours = [row[name] for row in found.values()]
        assert ours[0] == "no"
        assert ours[1] == ours[2]
        assert ours[1].startswith("yes")
        assert ours[3] == "1"
        assert int(re.findall(r"\d+", ours[4])[0]) < TOKENS / 2
        assert ours[5] == "yes"
        assert not any("Error" in cell for cell in ours)


SUITE: Final = '''
import json, os
from langchain_tests.integration_tests import ChatModelIntegrationTests

PARAMETERS = json.loads(os.environ["SUITE_PARAMETERS"])


class TestModel(ChatModelIntegrationTests):
    """Switched off for both: what models of text do not have."""

    has_tool_calling = has_tool_choice = has_structured_output = supports_json_mode = True
    supports_image_inputs = supports_image_urls = supports_pdf_inputs = supports_audio_inputs = False
    supports_video_inputs = supports_image_tool_message = supports_pdf_tool_message = False
    supports_anthropic_inputs = supports_model_override = enable_vcr_tests = False

    @property
    def chat_model_class(self):
        if PARAMETERS["peer"]:
            from langchain_huggingface import ChatHuggingFace

            return ChatHuggingFace
        from lince_rag import ChatLince

        return ChatLince

    @property
    def chat_model_params(self):
        if not PARAMETERS["peer"]:
            return PARAMETERS["fields"]
        from langchain_huggingface import HuggingFacePipeline

        return {"llm": HuggingFacePipeline.from_model_id(**PARAMETERS["fields"])}
'''


# The suite describes its tools and reads JSON, so it needs more tokens than the rest.
SUITE_TOKENS: Final = 128

# What asks for the right words, not the right form.
JUDGEMENT: Final = (
    "test_tool_calling",
    "test_tool_calling_async",
    "test_agent_loop",
    "test_unicode_tool_call_integration",
)


def run_suite(folder: Path, fields: dict[str, Any], *, peer: bool) -> tuple[dict[str, int], list[str]]:
    """Run LangChain's integration tests of chat models.

    Returns:
        How many passed, failed and were skipped, and the names of those that failed.
    """
    path = folder / "test_suite.py"
    path.write_text(SUITE, encoding="utf-8")
    options = ["-q", "-rfE", "--tb=no", "--color=no", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path), "--rootdir", str(folder), "-c", os.devnull],
        capture_output=True,
        text=True,
        env={**os.environ, "SUITE_PARAMETERS": json.dumps({"peer": peer, "fields": fields})},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    *_, last = (line for line in done.stdout.splitlines() if " in " in line)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", done.stdout, re.MULTILINE)
    return counts, failed


def test_standard_suite(folder: Path, tmp_path: Path, results: list[str]) -> None:
    ours = {"model": KIND, "model_path": str(folder), "device": "cpu", "max_tokens": SUITE_TOKENS}
    theirs = {
        "model_id": str(folder), "task": "text-generation",
        "pipeline_kwargs": {"max_new_tokens": SUITE_TOKENS, "do_sample": False},
    }  # fmt: skip
    found = {
        "ChatLince": run_suite(tmp_path, ours, peer=False),
        "ChatHuggingFace(HuggingFacePipeline)": run_suite(tmp_path, theirs, peer=True),
    }
    rows: list[list[object]] = [
        [name, *(counts.get(word, 0) for word in ("passed", "failed", "skipped")), ", ".join(failed) or "none"]
        for name, (counts, failed) in found.items()
    ]
    header = ["", "passed", "failed", "skipped", "which failed"]
    note = (
        f"ChatModelIntegrationTests of langchain-tests {version('langchain-tests')}, the same features switched "
        "on for both (tools, tool choice, structured output, JSON mode) and off (images, audio, PDF); "
        "HuggingFacePipeline by itself is no chat model. Both have the same chat template, in which the roles "
        f"must alternate, and random weights: {', '.join(JUDGEMENT)} ask for the right words, which these cannot "
        "find (a checkpoint that is taught them passes all: tests/integration_tests/test_chat_suites.py)."
    )
    results.append(f"## Peers: LangChain's standard suite\n\n{table(header, rows)}\n\n{note}")
    counts, failed = found["ChatLince"]
    assert counts["passed"] > 30
    assert {name.partition("[")[0] for name in failed} <= set(JUDGEMENT)
