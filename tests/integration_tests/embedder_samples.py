"""A tiny sentence-transformers model with random weights, made when a test asks for it."""

from pathlib import Path

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
