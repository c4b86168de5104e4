"""The five formats on a GPU: the same tokens as bare ``model.generate`` there, and what else must hold there too.

The checkpoints are the tiny ones of the tests, in float32. Everything is asserted; the table says what was.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
import torch
from langchain_core.messages import HumanMessage
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoModelForSequenceClassification

from lince_rag import ChatLince, LinceLLM, LinceReranker
from tests.benchmarks.llamas import QUESTION, interleave
from tests.benchmarks.tables import GPU_PACKAGES, installed, machine, table
from tests.benchmarks.watching import recorded
from tests.checkpoints import KINDS, SENTENCES, shared_checkpoint
from tests.integration_tests.classifier_samples import save_tiny_classifier

TOKENS: Final = 24
CHECKS: Final = (
    "greedy", "four beams", "batch of three", "stream", "seed", "stop", "JSON schema"
)  # fmt: skip
SCHEMA: Final = {
    "type": "object",
    "properties": {"vence": {"type": "string", "maxLength": 12}, "firmado": {"type": "boolean"}},
    "required": ["vence", "firmado"],
    "additionalProperties": False,
}

# The shape of bge-reranker-base; its vocabulary does not matter to the speed.
BASE_RERANKER: Final = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 514,
}  # fmt: skip


class Subject:
    """A tiny checkpoint on the device."""

    def __init__(self, kind: str, device: str) -> None:
        fields = shared_checkpoint(kind).chat_fields | {"device": device, "temperature": 0, "max_tokens": TOKENS}
        self.chat, self.llm = ChatLince(**fields), LinceLLM(**fields)
        engine: Any = self.chat.runtime
        self.model, self.tokenizer = engine.loaded.model, engine.tokenizer

    def bare(self, questions: list[str], **options: Any) -> list[list[int]]:
        """The ids that ``model.generate`` answers with; the prompts are padded by hand."""
        prompts = [self.chat.encode([HumanMessage(question)]) for question in questions]
        longest, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        gaps = [longest - len(ids) for ids in prompts]
        rows = zip(gaps, prompts, strict=True)
        device = self.model.device
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=torch.tensor([[pad] * gap + ids for gap, ids in rows], device=device),
                attention_mask=torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device),
                **{"do_sample": False, "max_new_tokens": TOKENS, "pad_token_id": pad, **options},
            )
        answers: list[list[int]] = found[:, longest:].tolist()
        return answers

    def random_state(self) -> list[int]:
        on_gpu = self.model.device.type == "cuda"
        state = torch.cuda.get_rng_state(self.model.device) if on_gpu else torch.get_rng_state()
        found: list[int] = state.tolist()
        return found


def check_tokens(subject: Subject) -> None:
    """Greedy, with beams and in a batch: the ids of bare ``model.generate``."""
    questions = [QUESTION, "¿Cuándo?", f"{QUESTION} Y {QUESTION}"]
    calls: list[tuple[Callable[[], Any], list[list[int]]]] = [
        (lambda: subject.chat.invoke(QUESTION), subject.bare([QUESTION])),
        (lambda: subject.chat.invoke(QUESTION, num_beams=4), subject.bare([QUESTION], num_beams=4)),
        (lambda: subject.llm.batch(questions), subject.bare(questions)),
    ]
    for call, expected in calls:
        with recorded(subject.model) as answers:
            call()
        assert answers == expected


def check_texts(subject: Subject) -> None:
    chat = subject.chat
    whole = chat.invoke(QUESTION).text
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == whole
    stop = whole[len(whole) // 2 :].split()[0]
    assert chat.invoke(QUESTION, stop=[stop]).text == whole[: whole.find(stop)].rstrip()
    options = {"response_format": SCHEMA, "max_tokens": 4 * TOKENS}
    assert set(json.loads(chat.invoke(QUESTION, **options).text)) == {"vence", "firmado"}
    for text in subject.llm.batch([QUESTION, "¿Sí?"], **options):
        assert set(json.loads(text)) == {"vence", "firmado"}


def check_seed(subject: Subject) -> None:
    """A seed repeats an answer, another one does not, and the device's random numbers go on as before."""
    before = subject.random_state()
    one, again, other = (subject.chat.invoke(QUESTION, temperature=1.0, seed=seed).text for seed in (1, 1, 2))
    assert one == again != other
    assert subject.random_state() == before


@pytest.fixture(scope="module")
def passed(device: str, results: list[str]) -> Iterator[list[str]]:
    """The formats whose checks passed."""
    kinds: list[str] = []
    yield kinds
    if kinds:
        rows: list[list[object]] = [[kind, *("yes" for _ in CHECKS)] for kind in kinds]
        note = (
            "Tiny checkpoints of the true architectures, float32. Greedy, beams and batch: the same token ids as "
            "bare model.generate. Stream: the text of invoke. Seed: the same text again, and the random state of "
            f"the GPU untouched. {machine(device)}; {installed(GPU_PACKAGES)}."
        )
        results.append(f"## GPU: answers\n\n{table(['format', *CHECKS], rows)}\n\n{note}")


@pytest.mark.parametrize("kind", KINDS)
def test_answers(kind: str, device: str, passed: list[str]) -> None:
    subject = Subject(kind, device)
    assert str(subject.model.device).startswith(device)
    check_tokens(subject)
    check_texts(subject)
    check_seed(subject)
    passed.append(kind)


def save_reranker(folder: Path, *, tiny: bool) -> str:
    """Save a cross-encoder of random weights and a real shape."""
    save_tiny_classifier(folder, [((QUESTION, text), 0.5) for text in SENTENCES], steps=0, max_length=512)
    if not tiny:
        config = AutoConfig.from_pretrained(folder)
        config.update(BASE_RERANKER)
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def test_reranker(device: str, tiny: bool, tmp_path: Path, results: list[str]) -> None:
    folder = save_reranker(tmp_path / "reranker", tiny=tiny)
    passages = [" ".join(SENTENCES[(at + step) % len(SENTENCES)] for step in range(8)) for at in range(64)]
    pairs = [(QUESTION, passage[: None if not tiny else 40]) for passage in passages * (1 if tiny else 4)]
    ours, theirs = LinceReranker(folder, device=device), CrossEncoder(folder, device=device)
    assert ours.score(pairs) == pytest.approx(theirs.predict([list(pair) for pair in pairs]).tolist(), abs=1e-5)
    calls = [lambda: ours.score(pairs), lambda: theirs.predict([list(pair) for pair in pairs])]
    clock, _ = interleave(calls, 1 if tiny else 7)
    mine, other = (median(times) for times in clock)
    speeds = [f"{1000 * len(pairs) / milliseconds:.0f}" for milliseconds in (mine, other)]
    header = ["shape", "LinceReranker, pairs a second", "CrossEncoder, pairs a second", "ratio of time"]
    note = (
        f"{len(pairs)} pairs of one question and a passage, float32, 32 a pass; medians in turns; the same "
        f"scores. {machine(device)}; {installed(GPU_PACKAGES)}."
    )
    row: list[object] = ["tiny" if tiny else "bge-reranker-base", *speeds, mine / other]
    results.append(f"## GPU: reranker\n\n{table(header, [row])}\n\n{note}")
