"""Work that is not done twice: questions on one context, retries and candidates, and answers that quote."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage

from lince_rag import ChatLince, LinceLLM
from tests.benchmarks.giants import Giant, Load
from tests.benchmarks.llamas import interleave
from tests.benchmarks.tables import table
from tests.checkpoints import SENTENCES, build_checkpoint
from tests.teaching import teach

WINDOW: Final = 2048
LAYERS: Final = 6
HIDDEN: Final = 512

QUESTIONS: Final = [
    "¿Cuándo vence el contrato?", "¿Dónde se fundó la universidad?", "¿Qué come el gato?", "¿Quién fue a Madrid?",
    "¿Cuándo abre la biblioteca?", "¿Qué cubre el seguro?", "¿Cuándo sale el tren?", "¿Qué hay que pagar?",
    "¿Dónde nace el río?", "¿Qué recetó el médico?",
]  # fmt: skip

OURS: Final = "ChatLince"
OFF: Final = "ChatLince, prefix_cache_bytes=0"
PEER: Final = "HuggingFacePipeline"

# The formats with the documents before the question, and those with the question first.
DOCUMENTS_FIRST: Final = ("llama-2-7b-spanish", "aira-2-portuguese-1b7", "falcon-40b-instruct")
QUESTION_FIRST: Final = ("lince-zero", "alpaca-lora-ptbr-7b")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make the times of such small layers a matter of luck."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def models(kind: str, folder: Path, tokens: int, **fields: Any) -> tuple[ChatLince, ChatLince, Giant]:
    """A chat that keeps what it has read, one that does not, and what runs the peer; all on the same weights."""
    made = build_checkpoint(kind, folder, context_window=WINDOW, layers=LAYERS, hidden=HIDDEN)
    fields = {**made.chat_fields, "max_tokens": tokens, **fields}
    keeps, forgets = ChatLince(**fields), ChatLince(**fields, prefix_cache_bytes=0)
    load = Load(tokens=tokens, long=0, prompt=0, batch=1, rounds=1)
    return keeps, forgets, Giant(kind, made.base_path or made.path, keeps, LinceLLM(**fields), load)


def context_of(chat: ChatLince, tokens: int) -> list[Document]:
    """Passages of about a number of tokens."""
    passages: list[Document] = []
    while sum(chat.get_num_tokens(each.page_content) for each in passages) < tokens:
        at = 5 * len(passages)
        text = " ".join(SENTENCES[(at + step) % len(SENTENCES)] for step in range(5))
        passages.append(Document(f"{len(passages)}. {text}"))
    return passages


def forget(chat: ChatLince) -> None:
    """Let a model begin anew."""
    chat.runtime._decoder.reader.prefixes.clear()  # type: ignore[attr-defined]


def first_text(chunks: Iterator[Any]) -> float:
    """Milliseconds until a stream has its first text; then it is closed."""
    started = time.perf_counter()
    next(text for chunk in chunks if (text := getattr(chunk, "text", chunk)))
    milliseconds = 1000 * (time.perf_counter() - started)
    chunks.close()  # type: ignore[attr-defined]
    return milliseconds


def test_questions_on_one_context(tmp_path: Path, results: list[str]) -> None:
    pytest.importorskip("langchain_huggingface")
    rows = [row for kind in DOCUMENTS_FIRST for row in ask_on_one_context(kind, tmp_path / kind)]
    header = [
        "format", "tokens", "by", "ten questions, s", "times as long", "first text, ms", "the next question's, ms",
        "times as soon", "same answers",
    ]  # fmt: skip
    note = (
        "Ten questions on the same passages; tokens: of the first prompt; 16 tokens of answer "
        f"each, greedy, one after the other; the true architectures with {LAYERS} layers of {HIDDEN}, random "
        "weights, float32, one thread; medians of 3 rounds in turns, each from an empty cache; first texts of 5 "
        f"questions, and of 5 others on the same passages. Load of the machine {os.getloadavg()[0]:.1f}."
    )
    results.append(f"## Reuse: questions on one context\n\n{table(header, rows)}\n\n{note}")


def ask_on_one_context(kind: str, folder: Path) -> list[list[object]]:
    """The rows of a format."""
    keeps, forgets, giant = models(kind, folder, 16, temperature=0)
    documents, peer = context_of(keeps, 1500), giant.peer(16)
    texts = [text_for_peer(giant, keeps.render([HumanMessage(each)], documents).text) for each in QUESTIONS]
    said: dict[str, list[str]] = {}

    def ask(name: str, call: Callable[[int], str]) -> None:
        forget(keeps)
        said[name] = [call(number).strip() for number in range(len(QUESTIONS))]

    calls: dict[str, Callable[[int], str]] = {
        OURS: lambda number: keeps.invoke(QUESTIONS[number], documents=documents).text,
        OFF: lambda number: forgets.invoke(QUESTIONS[number], documents=documents).text,
        PEER: lambda number: peer.invoke(texts[number]),
    }
    streams: dict[str, Callable[[int], Iterator[Any]]] = {
        OURS: lambda number: keeps.stream(QUESTIONS[number], documents=documents),
        OFF: lambda number: forgets.stream(QUESTIONS[number], documents=documents),
        PEER: lambda number: peer.stream(texts[number]),
    }
    forgets.invoke("Hola")
    clock, _ = interleave([partial(ask, *each) for each in calls.items()], 3)
    firsts = {name: first_texts(stream, partial(forget, keeps)) for name, stream in streams.items()}
    length = keeps.count_prompt_tokens([HumanMessage(QUESTIONS[0])], documents)
    rows: list[list[object]] = []
    for name, times in zip(calls, clock, strict=True):
        ratio = median(theirs / mine for mine, theirs in zip(clock[0], times, strict=True))
        same = sum(mine == its for mine, its in zip(said[OURS], said[name], strict=True))
        cold, warm = firsts[name]
        row = [kind, length, name, median(times) / 1000, ratio, f"{cold:.0f}", f"{warm:.0f}", f"{cold / warm:.1f}"]
        rows.append([*row, f"{same} of {len(QUESTIONS)}"])
    return rows


def text_for_peer(giant: Giant, text: str) -> str:
    """A rendered prompt as a pipeline needs it, whose tokenizer may add a BOS itself."""
    bos = giant.tokenizer.bos_token
    adds = bool(bos) and giant.tokenizer("x")["input_ids"][0] == giant.tokenizer.bos_token_id
    return text.removeprefix(bos) if adds else text


def first_texts(stream: Callable[[int], Iterator[Any]], anew: Callable[[], None]) -> tuple[float, float]:
    """Median milliseconds until the first text, on passages that are new and on those read before."""
    cold, warm = [], []
    for number in range(5):
        anew()
        cold.append(first_text(stream(number)))
        warm.append(first_text(stream(number + 5)))
    return median(cold), median(warm)


def test_retries_and_candidates(tmp_path: Path, results: list[str]) -> None:
    rows = [row for kind in QUESTION_FIRST for row in ask_again(kind, tmp_path / kind)]
    header = [
        "format",
        "tokens",
        "asked",
        "without",
        "without, s",
        "ChatLince, s",
        "times as fast",
        "by processor time",
    ]
    note = (
        f"Answers of 48 tokens; {LAYERS} layers of {HIDDEN}, random weights, float32, one thread; medians of 3 "
        "rounds in turns, each from an empty cache. Without a cache, ChatLince still reads the prompt of several "
        f"candidates once, so these stand beside model.generate. Load of the machine {os.getloadavg()[0]:.1f}."
    )
    results.append(f"## Reuse: retries and candidates\n\n{table(header, rows)}\n\n{note}")


def ask_again(kind: str, folder: Path) -> list[list[object]]:
    """The rows of a format."""
    keeps, forgets, giant = models(kind, folder, 48)
    documents = context_of(keeps, 800)
    messages = [HumanMessage(QUESTIONS[0])]
    ids = torch.tensor([keeps.encode(messages, documents)])
    forgets.invoke("Hola", temperature=0)

    def attempts(chat: ChatLince, **options: Any) -> None:
        forget(keeps)
        for seed in range(4):
            chat.invoke(messages, documents=documents, seed=seed, **options)

    def candidates() -> None:
        forget(keeps)
        several = keeps.model_copy(update={"n": 4})
        several.generate([messages], documents=documents, temperature=0.7, seed=1)

    def bare() -> None:
        with torch.inference_mode():
            giant.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=0.7,
                num_return_sequences=4,
                max_new_tokens=48,
                pad_token_id=giant.tokenizer.pad_token_id,
            )

    sampled = {"temperature": 0.7}
    asked: list[tuple[str, str, Callable[[], None], Callable[[], None]]] = [
        (
            "four attempts, sampled",
            OFF,
            partial(attempts, keeps, **sampled),
            partial(attempts, forgets, **sampled),
        ),
        ("four attempts, beams of the card", OFF, partial(attempts, keeps), partial(attempts, forgets)),
        ("four candidates, sampled", "model.generate", candidates, bare),
    ]
    rows: list[list[object]] = []
    for name, other, ours, theirs in asked:
        clock, processor = interleave([theirs, ours], 3)
        before, after = (median(times) / 1000 for times in clock)
        ratio = median(its / mine for its, mine in zip(*processor, strict=True))
        rows.append([kind, ids.shape[1], name, other, before, after, before / after, ratio])
    return rows


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Note how many tokens each pass of a model computes."""
    passes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield passes
    hook.remove()


def test_prompt_lookup(tmp_path: Path, results: list[str]) -> None:
    rows: list[list[object]] = []
    kind = "llama-2-7b-spanish"
    for layers, hidden in ((2, 64), (4, 256)):
        made = build_checkpoint(kind, tmp_path / f"{hidden}", context_window=1024, layers=layers, hidden=hidden)
        fields = {**made.chat_fields, "temperature": 0, "max_tokens": 96}
        looks, does_not = (ChatLince(**fields, prompt_lookup=each) for each in (True, False))
        documents = [Document(" ".join(SENTENCES[:10]))]
        asked = {
            "quotes": ("¿Qué dice el documento?", " ".join(SENTENCES[2:5])),
            "never quotes": ("¿Y además?", never_said(looks, documents)),
        }
        teach(
            looks,
            [(looks.encode([HumanMessage(question)], documents), text) for question, text in asked.values()],
        )
        for name, (question, expected) in asked.items():
            calls = [partial(chat.invoke, question, documents=documents) for chat in (looks, does_not)]
            texts = [call().text for call in calls]
            assert texts == [expected] * 2
            with counting(looks.runtime.loaded.model) as passes:  # type: ignore[attr-defined]
                tokens = calls[0]().usage_metadata["output_tokens"]
            clock, processor = interleave(calls, 21)
            ours, theirs = map(median, clock)
            paired = median(its / mine for mine, its in zip(*processor, strict=True))
            rows.append(
                [f"{layers} layers of {hidden}", name, tokens, len(passes), theirs, ours, theirs / ours, paired]
            )
    header = [
        "Llama", "answer", "tokens", "passes", "prompt_lookup=False, ms", "prompt_lookup, ms", "times as fast",
        "by processor time",
    ]  # fmt: skip
    note = (
        "A tiny model that was taught to answer one question with sentences of its document, and another one with "
        "words whose neighbours are nowhere in it; greedy, the prompt is kept; medians of 21 rounds in turns, of "
        f"the processor's time the median of each round's ratio. Load of the machine {os.getloadavg()[0]:.1f}."
    )
    results.append(f"## Prompt lookup\n\n{table(header, rows)}\n\n{note}")


def never_said(chat: ChatLince, documents: list[Document]) -> str:
    """Words of the documents in an order in which no two of them stand together there, or twice in the text."""
    words = sorted({word for each in documents for word in each.page_content.split() if word.isalpha()})
    return " ".join(words[::2][:24])
