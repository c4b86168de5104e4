"""The same folders read into an index by this package and by others: seconds, memory, and reading them again.

Every contender has a process of its own, and the same hashed embedder, whose time is measured apart. What each
writes differs: ours has terms for BM25, a ledger and vectors on disk; LangChain's Chroma has texts and vectors on
disk; LlamaIndex persists JSON; Haystack's store is in memory. Memory is without our reading workers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.benchmarks.squad import write_folder
from tests.benchmarks.tables import table

# Files.
SIZES: Final = (250, 2_500, 25_000)
CHUNK_CHARACTERS: Final = 1_200

# What all of them run first: a clock for the embedder, and what is printed at the end.
START: Final = """
import json, resource, sys, time
from pathlib import Path
from lince_rag import LinceEmbeddings

folder, index, characters = sys.argv[1], sys.argv[2], int(sys.argv[3])
embedder, spent = LinceEmbeddings("embedded"), [0.0]

def embed(texts):
    begun = time.perf_counter()
    vectors = embedder.embed_documents(list(texts))
    spent[0] += time.perf_counter() - begun
    return vectors

def end(chunks, begun, **more):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"chunks": chunks, "seconds": time.perf_counter() - begun, "embedding": spent[0],
                      "memory": memory, **more}))
"""

CONTENDERS: Final = {
    "lince_rag": """
from lince_rag import Index
begun = time.perf_counter()
with Index.open(index, embeddings="embedded") as opened:
    chunks = opened.ingest(folder).chunks
    first = time.perf_counter() - begun
    again = time.perf_counter()
    assert not opened.ingest(folder).added
    again = time.perf_counter() - again
end(chunks, time.perf_counter() - first, again=again)
""",
    'lince_rag, terms (`vectors="later"`)': """
from lince_rag import Index
begun = time.perf_counter()
with Index.open(index, embeddings="multilingual-e5-small") as opened:
    chunks = opened.ingest(folder, vectors="later").chunks
end(chunks, begun)
""",
    "LangChain, `Chroma.from_documents`": """
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

class Clocked(Embeddings):
    def embed_documents(self, texts):
        return embed(texts)
    def embed_query(self, text):
        return embed([text])[0]

begun = time.perf_counter()
documents = [Document(path.read_text(), metadata={"source": str(path)}) for path in sorted(Path(folder).iterdir())]
splitter = RecursiveCharacterTextSplitter(chunk_size=characters, chunk_overlap=0)
pieces = splitter.split_documents(documents)
# In calls that Chroma takes.
store = Chroma.from_documents(pieces[:5_000], Clocked(), persist_directory=index)
for first in range(5_000, len(pieces), 5_000):
    store.add_documents(pieces[first : first + 5_000])
end(len(pieces), begun)
""",
    "LlamaIndex, `VectorStoreIndex`": """
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter

class Clocked(BaseEmbedding):
    def _get_text_embedding(self, text):
        return embed([text])[0]
    def _get_text_embeddings(self, texts):
        return embed(texts)
    def _get_query_embedding(self, query):
        return embed([query])[0]
    async def _aget_query_embedding(self, query):
        return embed([query])[0]

begun = time.perf_counter()
paths = sorted(Path(folder).iterdir())
documents = [Document(text=path.read_text(), metadata={"source": str(path)}) for path in paths]
# Tokens; about four characters each.
nodes = SentenceSplitter(chunk_size=characters // 4, chunk_overlap=0).get_nodes_from_documents(documents)
made = VectorStoreIndex(nodes, embed_model=Clocked())
made.storage_context.persist(index)
end(len(nodes), begun)
""",
    "Haystack, `InMemoryDocumentStore`": """
from dataclasses import replace
from haystack import Document
from haystack.components.preprocessors import DocumentSplitter
from haystack.document_stores.in_memory import InMemoryDocumentStore

begun = time.perf_counter()
paths = sorted(Path(folder).iterdir())
documents = [Document(content=path.read_text(), meta={"source": str(path)}) for path in paths]
splitter = DocumentSplitter(split_by="word", split_length=characters // 6)
splitter.warm_up()
pieces = splitter.run(documents)["documents"]
store = InMemoryDocumentStore()
for first in range(0, len(pieces), 1_000):
    part = pieces[first : first + 1_000]
    vectors = embed([piece.content for piece in part])
    store.write_documents([replace(piece, embedding=vector) for piece, vector in zip(part, vectors)])
end(len(pieces), begun)
""",
}


def run(code: str, folder: Path, index: Path) -> dict[str, Any] | None:
    """Run a contender in a process of its own; ``None`` if its package is not there."""
    arguments = [sys.executable, "-c", START + code, str(folder), str(index), str(CHUNK_CHARACTERS)]
    finished = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if "ModuleNotFoundError" in finished.stderr:
        return None
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.strip().split("\n")[-1])
    return found


@pytest.mark.parametrize("files", SIZES, ids=lambda files: f"{files}-files")
def test_ingestion(data: Path, tmp_path: Path, results: list[str], files: int) -> None:
    folder = tmp_path / "documents"
    characters = write_folder(data, folder, files)
    rows: list[list[object]] = []
    for name, code in CONTENDERS.items():
        found = run(code, folder, tmp_path / f"index{len(rows)}")
        if found is None:
            rows.append([name, *["not installed"] * 7])
            continue
        rest = found["seconds"] - found["embedding"]
        cells = [found["chunks"], f"{found['seconds']:.1f}", f"{found['chunks'] / found['seconds']:.0f}"]
        cells += [f"{found['embedding']:.1f}", f"{found['chunks'] / rest:.0f}", f"{found['memory']:.0f}"]
        rows.append([name, *cells, f"{found['again']:.2f} s" if "again" in found else "–"])
    header = ["", "chunks", "seconds", "chunks/s", "of it embedding, s", "chunks/s without it", "most memory, MiB"]
    header.append("again, unchanged")
    note = "Ours embeds inside its own writing, from terms that it has already; its seconds are not apart."
    title = f"## Ingestion of {files:,} files of {characters / 1e6:.1f} million characters"
    results.append(f"{title}\n\n{table(header, rows)}\n\n{note}")
