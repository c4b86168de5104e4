"""Models of real shapes and random weights, made on the GPU, and the peer that runs the same weights.

Nothing is downloaded. The tokenizer is that of the tiny checkpoints, filled up with words of syllables to the real
size of the vocabulary; the models answer in these words alone, so that every token of an answer is text.
"""

import json
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    pipeline,
)

from lince_rag import ChatLince, LinceLLM, NativePrompt
from lince_rag.engines.checkpoints.loading import LoadedModel
from lince_rag.models.native_prompt import NativePromptValue
from tests.checkpoints import RARE, SENTENCES, build_checkpoint

# Tokens of prompt and answer together; Falcon and BLOOM have no more.
WINDOW: Final = 2048
QUESTION: Final = "¿Qué dicen los documentos sobre el contrato de alquiler? Responde en español y da detalles."

# Real sizes, and small ones to try the benchmark with.
_SIZES: Final[dict[str, dict[str, int]]] = {
    "llama-2-7b-spanish": {"vocab": 32_000, "hidden": 4096, "layers": 32, "heads": 32, "inner": 11_008},
    "lince-zero": {"vocab": 65_024, "hidden": 4544, "layers": 32, "heads": 71},
    "aira-2-portuguese-1b7": {"vocab": 250_683, "hidden": 2048, "layers": 24, "heads": 16},
    "falcon-40b-instruct": {"vocab": 65_024, "hidden": 8192, "layers": 60, "heads": 128, "groups": 8},
}
# Made on the device and never written: its 83 GB are more than the disks of machines that are lent.
UNSAVED: Final = ("falcon-40b-instruct",)
SHAPES: Final = tuple(_SIZES)
_TINY: Final = {"vocab": 1500, "hidden": 64, "layers": 2, "heads": 4, "inner": 128, "groups": 2}


@dataclass(frozen=True)
class Load:
    """How much is asked of a model."""

    # Tokens of an answer, of one that is cancelled, and of a prompt with passages.
    tokens: int
    long: int
    prompt: int
    # Prompts of a batch.
    batch: int
    rounds: int


FULL_LOAD: Final = Load(tokens=40, long=80, prompt=1000, batch=32, rounds=3)
TINY_LOAD: Final = Load(tokens=12, long=80, prompt=120, batch=3, rounds=1)


def save_giant(kind: str, folder: Path, device: str, *, tiny: bool) -> tuple[int, Any]:
    """Make a model of a kind's real shape in bfloat16 with random weights, and save it unless it is ``UNSAVED``.

    Returns:
        The number of its weights, and the model if it was not saved.
    """
    sizes = _TINY if tiny else _SIZES[kind]
    build_checkpoint(kind, folder, context_window=WINDOW)
    known = fill_vocabulary(folder, sizes["vocab"])
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            _configuration(kind, sizes, AutoTokenizer.from_pretrained(folder)), dtype=torch.bfloat16
        )
    with torch.no_grad():
        norm = next(part for name, part in model.named_modules() if name.endswith((".ln_f", "model.norm")))
        # Random signs: where the head is tied to the embeddings, the model would repeat its last token for ever.
        norm.weight.normal_()
        head = model.get_output_embeddings().weight
        # Next to never: the tokens of the tiny tokenizer, among them special ones and pieces of a character.
        head[:known] *= RARE
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    count = sum(weights.numel() for weights in model.parameters())
    if kind in UNSAVED:
        model.config.save_pretrained(folder)
        return count, model.eval()
    model.save_pretrained(folder)
    return count, None


def place(chat: ChatLince, model: Any) -> None:
    """Give a chat a model that is nowhere on disk."""
    engine: Any = chat.runtime
    engine.loaded = LoadedModel(model, engine.tokenizer, WINDOW)


def bandwidth(device: str, *, tiny: bool) -> float:
    """Measure how many bytes a second the memory of a device reads and writes, with a copy of 2 GiB."""
    block = torch.empty(2**25 if tiny else 2**31, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    times = []
    for _ in range(7):
        _synchronize(device)
        started = time.perf_counter()
        other.copy_(block)
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * block.nbytes / median(times)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _configuration(kind: str, sizes: dict[str, int], tokenizer: Any) -> PreTrainedConfig:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    hidden, layers, heads = sizes["hidden"], sizes["layers"], sizes["heads"]
    shared = {"vocab_size": sizes["vocab"], "hidden_size": hidden, **ids}
    if kind == "aira-2-portuguese-1b7":
        return BloomConfig(**shared, n_layer=layers, n_head=heads, pad_token_id=tokenizer.pad_token_id)
    shared |= {"num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": WINDOW}
    if "falcon" in kind or kind == "lince-zero":
        shared |= {"parallel_attn": True, "bias": False, "alibi": False}
        if kind == "lince-zero":
            return FalconConfig(**shared, multi_query=True, new_decoder_architecture=False)
        return FalconConfig(**shared, num_kv_heads=sizes["groups"], new_decoder_architecture=True)
    return LlamaConfig(**shared, intermediate_size=sizes["inner"])


def fill_vocabulary(folder: Path, size: int) -> int:
    """Give a tokenizer.json as many tokens as the real one has; the new ones are only ever decoded.

    Returns:
        The number of tokens it had.
    """
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    # Tokens that were added behind the model's own would else move behind the new ones.
    vocabulary.update({token["content"]: token["id"] for token in content["added_tokens"]})
    known = len(vocabulary)
    space = "▁" if "▁" in vocabulary else "Ġ"
    syllables = ["".join(pair) for pair in product("bcdfghjlmnprstvz", "aeiou")]
    words = ("".join(parts) for length in (2, 3) for parts in product(syllables, repeat=length))
    while len(vocabulary) < size:
        vocabulary.setdefault(space + next(words), len(vocabulary))
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return known


def rag_prompt(number: int, tokens: int, count: Any) -> NativePromptValue:
    """Make a question with passages of about a number of tokens; each number has other passages."""
    passages, size = [], 0
    while size < tokens:
        at = 7 * number + 3 * len(passages)
        passages.append(" ".join(SENTENCES[(at + step) % len(SENTENCES)] for step in range(6)))
        size += count(passages[-1])
    prompt = NativePrompt(instruction="{pregunta}", context="{pasajes}")
    return prompt.format_prompt(pregunta=QUESTION, pasajes="\n\n".join(passages))


@dataclass(frozen=True)
class Giant:
    """One model, loaded once, and what runs it: both classes of the package, transformers and the peer."""

    kind: str
    folder: Path
    chat: ChatLince
    llm: LinceLLM
    load: Load

    @property
    def model(self) -> Any:
        return self.chat.runtime.loaded.model  # type: ignore[attr-defined]

    @property
    def tokenizer(self) -> Any:
        return self.chat.runtime.tokenizer  # type: ignore[attr-defined]

    def prompt(self, number: int, share: float = 1.0) -> NativePromptValue:
        """A prompt with passages, of a share of the load's tokens."""
        return rag_prompt(number, int(share * self.load.prompt), self.chat.get_num_tokens)

    def ids(self, prompt: NativePromptValue) -> list[int]:
        return self.chat.encode(prompt.to_messages())

    def text(self, prompt: NativePromptValue) -> str:
        """The rendered prompt as a pipeline needs it: its tokenizer adds a BOS itself."""
        text = self.chat.render(prompt.to_messages()).text
        bos = self.tokenizer.bos_token
        adds = bool(bos) and self.tokenizer("x")["input_ids"][0] == self.tokenizer.bos_token_id
        return text.removeprefix(bos) if adds else text

    def peer(self, tokens: int, batch: int = 1) -> Any:
        """HuggingFacePipeline on the same weights, greedy, set up as its ``from_model_id`` does."""
        from langchain_huggingface import HuggingFacePipeline

        tokenizer = AutoTokenizer.from_pretrained(self.folder, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # A pipeline would write its settings into the model's own.
        before = self.model.generation_config
        runner = pipeline(
            "text-generation",
            model=self.model,
            tokenizer=tokenizer,
            batch_size=batch,
            max_new_tokens=tokens,
            do_sample=False,
        )
        self.model.generation_config = before
        return HuggingFacePipeline(pipeline=runner, batch_size=batch)

    def generate(self, prompts: list[list[int]], tokens: int, streamer: Any = None) -> Any:
        """Bare ``model.generate``, greedy, on prompts padded on the left; the ids of the answers."""
        pad, longest = self.tokenizer.pad_token_id, max(map(len, prompts))
        padded = [[pad] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=torch.tensor(padded, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=pad,
                **({"streamer": streamer} if streamer else {}),
            )
        return found[:, longest:]
