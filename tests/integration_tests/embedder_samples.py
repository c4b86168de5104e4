"""Embedders for tests: a tiny sentence-transformers model with random weights, and one that counts as slow."""

import time
from pathlib import Path

from langchain_core.embeddings import Embeddings

from lince_rag import LinceEmbeddings
from lince_rag.index.embeddings import TRIAL_TEXT

SENTENCES = [
    "El contrato de alquiler vence en mayo.",
    "O contrato de aluguel vence em maio.",
    "query: passage: task: search result | title: none | text: Instruct: pregunta: pasaje: consulta",
    "foo bar baz",
]
DIMENSION = 32


def save_tiny_embedder(
    folder: Path, prompts: dict[str, str] | None = None, default_prompt_name: str | None = None
) -> str:
    """Save a BertModel with a WordPiece tokenizer as a sentence-transformers folder; the same one every time."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=DIMENSION,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        model = BertModel(config)
    inner = folder.with_name(folder.name + "-transformer")
    model.save_pretrained(inner)
    wrapped.save_pretrained(inner)
    transformer = Transformer(str(inner))
    SentenceTransformer(
        modules=[transformer, Pooling(DIMENSION, pooling_mode="mean")],
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        device="cpu",
    ).save(str(folder))
    return str(folder)


class SlowEmbeddings(Embeddings):
    """Embeds as the hashed embedder, but counts as one that takes its time; keeps the texts of the documents.

    Args:
        seconds: How long a text takes.
        interrupt_after: Raise ``KeyboardInterrupt`` when this number of texts has been embedded.
    """

    model = "slow"

    def __init__(self, seconds: float = 0.0, interrupt_after: int | None = None) -> None:
        self.seconds = seconds
        self.interrupt_after = interrupt_after
        self.texts: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if self.interrupt_after is not None and len(self.texts) >= self.interrupt_after:
            raise KeyboardInterrupt
        time.sleep(self.seconds * len(texts))
        self.texts += [text for text in texts if text != TRIAL_TEXT]
        return LinceEmbeddings().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        return LinceEmbeddings().embed_query(text)
