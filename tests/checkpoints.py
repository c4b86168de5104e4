"""Tiny checkpoints of the true architectures: random weights, and a tokenizer of the same kind as the model's.

Each one is a folder of the files a user would download (safetensors, tokenizer.json, the configurations), and
loads through the same ``from_pretrained`` calls. What is true to the model: its architecture and its switches, its
kind of tokenizer, its special tokens, no padding token where it has none. What is not: its size and what it says,
which is word salad. The salad is made readable: unless they are asked for, special tokens, control characters and
pieces of a character are next to impossible.
"""

import atexit
import json
import shutil
import string
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

KINDS: Final = (
    "lince-zero",
    "aira-2-portuguese-1b7",
    "llama-2-7b-spanish",
    "alpaca-lora-ptbr-7b",
    "falcon-40b-instruct",
)

# Models of 2024 and later, one for each kind of tokenizer and architecture. The suites for every kind take long
# enough with the five above; tests/integration_tests/test_later_models.py has those for these.
LATER_KINDS: Final = ("tucano2-0.5b", "qwen3-4b", "llama-3.1-8b", "gemma-2-9b", "gemma-3-4b")

# Matrices this small gain nothing from a second thread, and on a busy machine the threads wait for one another.
torch.set_num_threads(1)

# The class whose forward computes the tokens of a kind.
MODEL_CLASSES: Final[dict[str, type[PreTrainedModel]]] = {
    "lince-zero": FalconForCausalLM,
    "aira-2-portuguese-1b7": BloomForCausalLM,
    "llama-2-7b-spanish": LlamaForCausalLM,
    "alpaca-lora-ptbr-7b": LlamaForCausalLM,
    "falcon-40b-instruct": FalconForCausalLM,
}

CONTEXT_WINDOW: Final = 512

# How likely what a trained model would not say is made: next to impossible.
RARE: Final = 0.01

_VOCABULARY_SIZE: Final = 900
_HIDDEN_SIZE: Final = 64
_LAYERS: Final = 2
_HEADS: Final = 4

_FALCON_TOKENS: Final = (
    ">>TITLE<<",
    ">>ABSTRACT<<",
    ">>INTRODUCTION<<",
    ">>SUMMARY<<",
    ">>COMMENT<<",
    ">>ANSWER<<",
    ">>QUESTION<<",
    ">>DOMAIN<<",
    ">>PREFIX<<",
    ">>SUFFIX<<",
    ">>MIDDLE<<",
    "<|endoftext|>",
)
_BLOOM_TOKENS: Final = ("<unk>", "<s>", "</s>", "<pad>")
_AIRA_TOKENS: Final = ("<|startofinstruction|>", "<|endofinstruction|>", "<|endofcompletion|>")
_LLAMA_TOKENS: Final = ("<unk>", "<s>", "</s>")
_QWEN_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA_3_TOKENS: Final = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_GEMMA_TOKENS: Final = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

SENTENCES: Final = (
    "La universidad de Coímbra se fundó en Lisboa y pasó a Coímbra dos siglos después.",
    "El contrato de alquiler vence el treinta de mayo, según la cláusula séptima.",
    "¿Cuándo es la reunión de la junta de vecinos? Es el martes por la tarde.",
    "Mañana lloverá en el norte de España, pero en Sevilla hará sol todo el día.",
    "El gato duerme en el sofá mientras el perro ladra en el jardín.",
    "Dame una lista de lugares que visitar en España durante el verano.",
    "La caldera pierde presión cuando la válvula de seguridad está abierta.",
    "Los niños comen pan con aceite y una pizca de sal antes de ir al colegio.",
    "El médico le recetó un jarabe para la tos y tres días de descanso.",
    "¿Qué documentos necesito para renovar el pasaporte en la oficina?",
    "La sesión comenzó con la lectura del acta anterior, que se aprobó sin cambios.",
    "El río nace en la montaña, cruza el valle y desemboca en el océano.",
    "El señor Núñez compró una bicicleta pequeña para su sobrina.",
    "La biblioteca abre de lunes a viernes, de nueve de la mañana a ocho de la tarde.",
    "Hay que pagar la factura de la luz antes del final de mes.",
    "Escribe una carta breve y amable para pedir un presupuesto.",
    "El tren sale a las siete y llega a Madrid poco después del mediodía.",
    "Según la póliza, el seguro cubre los daños por agua y por incendio.",
    "A veces, la solución más sencilla es también la mejor.",
    "Responde en español, con una frase corta, y cita el documento.",
    "A continuación hay una instrucción que describe una tarea, junto con una entrada que da más contexto.",
    "Escriba una respuesta que complete adecuadamente la solicitud.",
    "A capital do Brasil é Brasília, mas a maior cidade do país é São Paulo.",
    "Você sabe alguma coisa sobre a história da língua portuguesa?",
    "Explique o que é a aprendizagem de máquina com um exemplo simples.",
    "O pão de queijo é uma receita tradicional de Minas Gerais.",
    "Amanhã não haverá aula, porque é feriado em toda a região.",
    "O coração bombeia o sangue para todos os órgãos do corpo.",
    "As eleições municipais acontecem em outubro, de quatro em quatro anos.",
    "A anatomia de uma abelha é bastante intrincada: cabeça, tórax e abdômen.",
    "Meu irmão trabalha em uma padaria perto da estação de trem.",
    "Quais são os órgãos sensoriais que ficam na cabeça da abelha?",
    "A chuva começou de manhã e só parou depois do jantar.",
    "O regulamento diz que os livros devem ser devolvidos em quinze dias.",
    "Uma alimentação saudável inclui frutas, legumes e muita água.",
    "Ela viajou para o Alentejo com a mãe, a avó e dois primos.",
    "A conta de eletricidade subiu por causa do aquecimento.",
    "Escreva um poema curto sobre o mar, o vento e a saudade.",
    "Não encontro essa informação nos documentos que me deste.",
    "O menino pôs o chapéu, pegou a mochila e foi à escola.",
    "Abaixo está uma instrução que descreve uma tarefa, emparelhada com uma entrada que fornece mais contexto.",
    "Escreva uma resposta que conclua adequadamente a solicitação.",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        kind: Its name in the registry.
        path: The folder of the model, or of the adapter.
        base_path: The folder of the model that the adapter is applied to, if it is one.
        context_window: The tokens of prompt and answer that its configuration allows.
    """

    kind: str
    path: Path
    base_path: Path | None
    context_window: int

    @property
    def chat_fields(self) -> dict[str, Any]:
        """The fields of ``ChatLince`` that name this checkpoint."""
        fields = {"model": self.kind, "model_path": str(self.path), "device": "cpu"}
        return fields | ({"base_model_path": str(self.base_path)} if self.base_path else {})

    def load(self) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
        """Load model and tokenizer the way the cards do, without this package."""
        folder = self.base_path or self.path
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if self.base_path:
            model = PeftModel.from_pretrained(model, self.path)
        return model.eval(), AutoTokenizer.from_pretrained(folder)


def build_checkpoint(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    context_window: int = CONTEXT_WINDOW,
    eos_scale: float = RARE,
    special_scale: float = RARE,
    fragment_scale: float = RARE,
    layers: int = _LAYERS,
    hidden: int = _HIDDEN_SIZE,
) -> Checkpoint:
    """Build a tiny checkpoint.

    The scales say how strongly the model is drawn to some tokens, or away from them: 1 is like any other token, 2
    is a favourite, ``RARE`` is next to never.

    Args:
        kind: The registry name of the model that it stands for.
        folder: Where to write it; the base of an adapter goes beside it.
        seed: Seed of the weights.
        context_window: The window that its configuration says.
        eos_scale: How soon answers end by themselves.
        special_scale: How often answers hold the other special tokens.
        fragment_scale: How often answers hold control characters and pieces of a character's bytes.
        layers: Its layers.
        hidden: Its hidden size, a multiple of 64.

    Returns:
        The checkpoint.
    """
    tokenizer = _TOKENIZERS[kind](context_window)
    tokenizer.save_pretrained(folder)
    _complete_tokenizer_config(folder, kind)
    eos = tokenizer.eos_token_id
    scales = dict.fromkeys(_fragments(tokenizer), fragment_scale)
    scales |= dict.fromkeys(set(tokenizer.added_tokens_decoder), special_scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _MODELS[kind](tokenizer, _Sizes(context_window, layers, hidden)).float().eval()
        _spread(model, scales | {eos: eos_scale})
        model.generation_config = GenerationConfig(
            bos_token_id=model.config.bos_token_id, eos_token_id=eos, pad_token_id=model.config.pad_token_id
        )
        if kind != "alpaca-lora-ptbr-7b":
            model.save_pretrained(folder)
            return Checkpoint(kind, folder, None, context_window)
        base = folder.with_name(f"{folder.name}-base")
        shutil.rmtree(base, ignore_errors=True)
        folder.rename(base)
        model.save_pretrained(base)
        _save_adapter(model, folder)
    return Checkpoint(kind, folder, base, context_window)


@cache
def shared_checkpoint(kind: str, **options: Any) -> Checkpoint:
    """Build a checkpoint once for all tests of a run; the options are those of ``build_checkpoint``."""
    return build_checkpoint(kind, _shared_folder() / kind, **options)


@cache
def converted_checkpoint(kind: str, quantization: str = "float32", **options: Any) -> dict[str, Any]:
    """Convert a checkpoint to CTranslate2 once for all tests of a run.

    Args:
        kind: The registry name of the model that it stands for.
        quantization: That of ``lince-rag convert``.
        **options: Those of ``build_checkpoint``.

    Returns:
        The fields of ``ChatLince`` that name the converted folder.
    """
    from lince_rag.engines.checkpoints.conversion import convert_to_ctranslate2

    original = shared_checkpoint(kind, **options)
    base = str(original.base_path) if original.base_path else None
    folder = convert_to_ctranslate2(
        str(original.path), _shared_folder() / kind, quantization=quantization, base_source=base
    )
    return {"model": kind, "model_path": str(folder)}


def _shared_folder() -> Path:
    """Make a folder that is deleted when the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="lince-checkpoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# ---------------------------------------------------------------------------------------------------- tokenizers


def _train(
    tokenizer: Tokenizer, special_tokens: Sequence[str], alphabet: Sequence[str]
) -> tuple[dict[str, int], list[Any]]:
    """Learn merges on the sentences.

    Returns:
        Vocabulary and merges.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        special_tokens=list(special_tokens),
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@cache
def _byte_level(kind: str) -> str:
    """Train the byte-level BPE of Falcon or BLOOM, with its own way of splitting words.

    Returns:
        A tokenizer.json.
    """
    splitters = {
        "falcon": [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ],
        "bloom": [
            pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }
    special_tokens = _FALCON_TOKENS if kind == "falcon" else _BLOOM_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters[kind])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind == "falcon")
    _train(tokenizer, special_tokens, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer.to_str()


def _falcon_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_level("falcon")),
        eos_token="<|endoftext|>",
        additional_special_tokens=list(_FALCON_TOKENS[:-1]),
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=context_window,
    )


def _aira_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer.from_str(_byte_level("bloom"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _AIRA_TOKENS])
    bos, sep, eos = _AIRA_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token=bos,
        sep_token=sep,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=["<s>", "</s>"],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=context_window,
    )


@cache
def _sentencepiece() -> tuple[dict[str, int], list[Any]]:
    """Train the BPE of LLaMA: words start with "▁", and what has no piece falls back to its bytes."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    # LLaMA's own pieces hold all of printable ASCII; a newline falls back to its byte.
    printable = string.ascii_letters + string.digits + string.punctuation
    return _train(tokenizer, [*_LLAMA_TOKENS, *byte_tokens], ["▁", *printable])


def _llama_tokenizer(context_window: int, legacy: bool = False) -> PreTrainedTokenizerBase:
    vocabulary, merges = _sentencepiece()
    return LlamaTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        legacy=legacy,
        add_bos_token=True,
        model_max_length=context_window,
    )


def _legacy_llama_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    """Of the first LLaMA: a text after a special token gets a "▁" before it, not only a text at the start."""
    return _llama_tokenizer(context_window, legacy=True)


def _tucano_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    """Of LLaMA's kind; its BOS and EOS are those of ChatML, and all its tokens are special."""
    vocabulary, merges = _sentencepiece()
    renamed = dict(zip(_LLAMA_TOKENS, ("<|unk|>", "<|im_start|>", "<|im_end|>"), strict=True))
    tokenizer = LlamaTokenizer(
        vocab={renamed.get(token, token): number for token, number in vocabulary.items()},
        merges=list(merges),
        unk_token="<|unk|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        add_bos_token=True,
        model_max_length=context_window,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<context>", "</context>", "<think>", "</think>"]})
    return tokenizer


def _qwen_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    """Byte-level without a BOS; the tags of thoughts and tools are added tokens that are not special."""
    tokenizer = Tokenizer.from_str(_byte_level("bloom"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _QWEN_TOKENS])
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=context_window,
    )


def _llama_3_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    """Byte-level with a BOS that the tokenizer adds by itself, and no padding token."""
    tokenizer = Tokenizer.from_str(_byte_level("bloom"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _LLAMA_3_TOKENS])
    bos = _LLAMA_3_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="<|eot_id|>", model_max_length=context_window
    )


def _gemma_tokenizer(context_window: int) -> PreTrainedTokenizerBase:
    """Spaces are "▁" and none is added in front; runs of white space and HTML tags are added tokens."""
    vocabulary, merges = _sentencepiece()
    renamed = dict(zip(_LLAMA_TOKENS, ("<unk>", "<bos>", "<eos>"), strict=True))
    vocabulary = {renamed.get(token, token): number for token, number in vocabulary.items()}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _GEMMA_TOKENS])
    runs = ("\n\n", "▁▁", "▁▁▁▁", "<h1>", "</h1>")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in runs])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=context_window,
    )


_TOKENIZERS: Final = {
    "lince-zero": _falcon_tokenizer,
    "aira-2-portuguese-1b7": _aira_tokenizer,
    "llama-2-7b-spanish": _llama_tokenizer,
    "alpaca-lora-ptbr-7b": _legacy_llama_tokenizer,
    "falcon-40b-instruct": _falcon_tokenizer,
    "tucano2-0.5b": _tucano_tokenizer,
    "qwen3-4b": _qwen_tokenizer,
    "llama-3.1-8b": _llama_3_tokenizer,
    "gemma-2-9b": _gemma_tokenizer,
    "gemma-3-4b": _gemma_tokenizer,
}

# What published tokenizer_config.json files say and save_pretrained does not write.
_TOKENIZER_CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "lince-zero": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "aira-2-portuguese-1b7": {"tokenizer_class": "BloomTokenizerFast"},
    "llama-2-7b-spanish": {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    "alpaca-lora-ptbr-7b": {"tokenizer_class": "LlamaTokenizer", "legacy": True},
    "falcon-40b-instruct": {"tokenizer_class": "PreTrainedTokenizerFast"},
}


def _complete_tokenizer_config(folder: Path, kind: str) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | _TOKENIZER_CONFIGS.get(kind, {})
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")


def _fragments(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that are not whole printable characters: pieces of UTF-8 and control characters."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    return [
        token
        for token, text in enumerate(texts)
        if not text.replace("\n", " ").replace("▁", " ").isprintable() or "\ufffd" in text
    ]


# -------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class _Sizes:
    window: int
    layers: int
    hidden: int

    @property
    def heads(self) -> int:
        return max(_HEADS, self.hidden // 64)


def _falcon_7b(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    """Falcon-7B, and so LINCE: one key and value head, one layer norm for attention and MLP."""
    return FalconForCausalLM(
        FalconConfig(
            **_falcon_sizes(tokenizer, sizes),
            new_decoder_architecture=False,
            multi_query=True,
        )
    )


def _falcon_40b(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    """Falcon-40B: several key and value heads, a layer norm each for attention and MLP."""
    return FalconForCausalLM(
        FalconConfig(
            **_falcon_sizes(tokenizer, sizes),
            new_decoder_architecture=True,
            num_kv_heads=sizes.heads // 2,
        )
    )


def _falcon_sizes(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.window,
        "parallel_attn": True,
        "alibi": False,
        "bias": False,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _bloom(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.hidden,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            seq_length=sizes.window,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _llama(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.hidden,
            intermediate_size=2 * sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            max_position_embeddings=sizes.window,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _later_sizes(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden,
        "intermediate_size": 2 * sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads // 2,
        "max_position_embeddings": sizes.window,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen_3(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    shared = _later_sizes(tokenizer, sizes)
    return Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=16, tie_word_embeddings=True))


def _llama_3(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": sizes.window // 8,
    }
    return LlamaForCausalLM(LlamaConfig(**_later_sizes(tokenizer, sizes), rope_parameters=scaling))


def _gemma_2(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    """Layers that see the whole text and layers that see a part take turns, and scores are capped."""
    shared = _later_sizes(tokenizer, sizes)
    return Gemma2ForCausalLM(Gemma2Config(**shared, head_dim=16, query_pre_attn_scalar=16, sliding_window=64))


def _gemma_3(tokenizer: PreTrainedTokenizerBase, sizes: _Sizes) -> PreTrainedModel:
    """With the part that reads images, as published; nothing here gives it one."""
    shared = _later_sizes(tokenizer, sizes)
    text = {
        **shared,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    ids = {"boi_token_index": 4, "eoi_token_index": 5, "image_token_index": 6, "mm_tokens_per_image": 4}
    special = {name: shared[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **ids, **special))


_MODELS: Final = {
    "lince-zero": _falcon_7b,
    "aira-2-portuguese-1b7": _bloom,
    "llama-2-7b-spanish": _llama,
    "alpaca-lora-ptbr-7b": _llama,
    "falcon-40b-instruct": _falcon_40b,
    "tucano2-0.5b": _qwen_3,
    "qwen3-4b": _qwen_3,
    "llama-3.1-8b": _llama_3,
    "gemma-2-9b": _gemma_2,
    "gemma-3-4b": _gemma_3,
}


@torch.no_grad()
def _spread(model: PreTrainedModel, scales: dict[int, float]) -> None:
    """Make the model talkative.

    Where the head is tied to the embeddings, a random model repeats its last token for ever: the token's own
    embedding is still in the state that the head multiplies. A final norm with random signs hides it.
    """
    final_norm = next(
        module
        for name, module in model.named_modules()
        if name.endswith(("transformer.ln_f", "model.norm", "language_model.norm")) and hasattr(module, "weight")
    )
    # Gemma adds 1 to the weights of its norms.
    added = 1 if type(final_norm).__name__.startswith("Gemma") else 0
    final_norm.weight.copy_(torch.randn_like(final_norm.weight) - added)
    head = model.get_output_embeddings().weight
    head.copy_(torch.randn_like(head) * 0.25)
    for token, scale in scales.items():
        head[token] *= scale


def _save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Save a LoRA adapter that changes what the model says; it names its base as the published one does."""
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 0.5)
    adapted.peft_config["default"].base_model_name_or_path = "decapoda-research/llama-7b-hf"
    # Else peft looks for the base's own configuration on the hub.
    adapted.save_pretrained(folder, save_embedding_layers=False)
