"""Learn ``lince_rag/prompts/evidence.toml`` from questions over documents, and measure it on documents left out.

    python -m tests.benchmarks.train_evidence --real FOLDER --real FOLDER --squad FILE --squad FILE --work FOLDER

A ``--real`` folder has ``corpus/`` and ``questions.jsonl`` (see the README of the development set); a ``--squad``
file is in SQuAD's form. After "=" may follow its translation, whose questions are asked instead. ``--write`` keeps
the weights. What a question retrieves is kept in the ``--work`` folder, so that a second run is fast. ``--only``
learns one part: "words", "vectors" or "reader" (if passages were read with the question, which is learned from all
questions about the articles that the reader was not trained on). ``--common-parts`` learns nothing and prints what
``prompts/embedders.toml`` says all questions in a language have in common.
"""

import argparse
import base64
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from lince_rag import Index, LinceEmbeddings
from lince_rag.chain.question import read_request, rewrite_by_rules
from lince_rag.index.retriever import COMPARED_PASSAGES, passage_text
from lince_rag.text import evidence as evidence_module
from lince_rag.text.evidence import MINIMUM_CONFIDENCE, Evidence
from lince_rag.text.language import LANGUAGES, detect_language, fold, load_table
from tests.benchmarks.train_reader import is_held_back

WORDS, VECTORS = "embedded", "multilingual-e5-small"
PARTS = ((WORDS, "words"), (VECTORS, "vectors"), (VECTORS, "reader"))
TABLE = Path(evidence_module.__file__).parents[1] / "prompts" / "evidence.toml"

# Questions that repeat the words of the text teach little about others, and there are many of them.
SQUAD_WEIGHT = 0.3
SQUAD_STEP = 4

# Strengths of the regularization, from which those with the best figures on documents left out were taken.
CHOICE_L2 = 5.0
CONFIDENCE_C = 0.3

# What a question counts that nothing answers because its sources were hidden, or because it is about the documents
# of another set: every OTHER_STEP-th is asked. They are easier to tell than what people ask and documents leave
# out: of those, with .3, .51 are refused where .08 are wrongly; with .1 .54, and with .6 .47.
HIDDEN_WEIGHT = 0.1
OTHER_STEP = 12

# What the reader is to learn from: so many of the likeliest passages of a question and all compared ones with the
# answer, and, of the questions whose sources were hidden, every HIDDEN_STEP-th.
SAMPLED_PASSAGES = 6
HIDDEN_STEP = 3

FOLDS = 5

# How much of the mean vector of questions in a language is subtracted, and of how many questions there is a mean.
# In the mean of sets, one of four times as many questions counts twice as much.
COMMON_SHARE = 0.7
LEAST_QUESTIONS = 4


@dataclass
class Asked:
    """A question, what was retrieved for it, and what answers it."""

    group: str
    question: str
    language: Any
    documents: list[dict[str, Any]]
    # Empty if the documents do not answer it.
    answers: list[str]
    right: set[str]
    # Whether the documents of the index answer it; and if not, whether it was made so (see HIDDEN_WEIGHT).
    answerable: bool
    hidden: bool
    # The name of its set, and what it counts.
    data: str
    weight: float
    evidence: Any = field(default=None, repr=False)


def plain(text: str) -> str:
    """Lower case, no accents, single spaces."""
    return " ".join(fold(text).lower().split())


def retrieve(index: Index, question: str, **options: Any) -> list[dict[str, Any]]:
    chunks = index.as_retriever(k=5).invoke(question, **options)
    return [{"text": chunk.page_content, **chunk.metadata} for chunk in chunks]


def read_rows(folder: Path) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The questions of a folder, as standalone ones, and their languages."""
    for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = read_request({"question": row["question"], "history": row.get("history") or []}, None)
        yield row, rewrite_by_rules(asked.question, asked.history, asked.language), asked.language


def real_questions(folder: Path, options: argparse.Namespace, embedder: str) -> Iterator[Asked]:
    corpus = (folder / "corpus").resolve()
    with Index.open(options.work / f"{folder.name}.{embedder}", embeddings=embedder) as index:
        index.ingest([corpus])
        for row, question, language in read_rows(folder):
            right = {str(corpus / each) for each in [row.get("source"), *row.get("also_in", [])] if each}
            group = f"{folder.name} {row.get('source') or row.get('near') or row['id']}"
            answers = [plain(answer) for answer in row.get("answers") or []]
            found = (group, question, language)
            common = {"right": right, "data": folder.name, "weight": 1.0}
            documents = retrieve(index, question)
            yield Asked(*found, documents, answers, answerable=row["answerable"], hidden=False, **common)
            if row["answerable"]:
                others = retrieve(index, question, filter={"source": {"$nin": sorted(right)}})
                yield Asked(*found, others, [], answerable=False, hidden=True, **common)
        for other in options.real:
            for row, question, language in list(read_rows(other))[::OTHER_STEP] if other != folder else []:
                found = (f"{other.name} {row['id']}", question, language)
                common = {"right": set(), "data": folder.name, "weight": 1.0}
                yield Asked(*found, retrieve(index, question), [], answerable=False, hidden=True, **common)


def squad_questions(
    given: Path, options: argparse.Namespace, embedder: str, *, held_back: bool
) -> Iterator[Asked]:
    """Half of the articles are asked about all of them; a translation has the same questions in the same order."""
    file, _, translation = str(given).partition("=")
    articles, asked = (
        json.loads(Path(each).read_text(encoding="utf-8"))["data"] for each in (file, translation or file)
    )
    texts = [row["question"] for article in asked for part in article["paragraphs"] for row in part["qas"]]
    for half in (0, 1):
        with Index.open(options.work / f"{Path(file).stem}.{half}.{embedder}", embeddings=embedder) as index:
            index.ingest(
                Document(paragraph["context"], metadata={"source": f"{number}-{place}"})
                for number, article in enumerate(articles)
                if number % 2 == half
                for place, paragraph in enumerate(article["paragraphs"])
            )
            rows = [
                (number, place, row)
                for number, article in enumerate(articles)
                for place, paragraph in enumerate(article["paragraphs"])
                for row in paragraph["qas"]
            ]
            both = list(zip(rows, texts, strict=True))
            if held_back:
                both = [each for each in both if is_held_back(Path(file), each[0][0])]
            for (number, place, row), text in both if held_back else both[half::SQUAD_STEP]:
                request = read_request(text, None)
                answerable = number % 2 == half
                answers = [plain(answer["text"]) for answer in row["answers"]] if answerable else []
                documents = retrieve(index, text)
                right = {f"{number}-{place}"}
                # Translations of an article are in one group.
                group = f"{Path(file).stem.partition('.')[0]} {number}"
                yield Asked(
                    group, text, request.language, documents, answers, right, answerable, hidden=False,
                    data=name_of(given), weight=SQUAD_WEIGHT,
                )  # fmt: skip


def name_of(given: Path) -> str:
    return "-".join(Path(part).stem for part in str(given).split("="))


def collect(options: argparse.Namespace, embedder: str, *, reader: bool) -> list[Asked]:
    found: list[Asked] = []
    readers: list[tuple[Path, Callable[..., Iterator[Asked]]]] = [(each, real_questions) for each in options.real]
    readers += [(each, partial(squad_questions, held_back=reader)) for each in options.squad]
    for path, read in readers:
        part = ".held-back" if reader and path in options.squad else ""
        kept = options.work / f"{name_of(path)}.{embedder}{part}.pickle"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(list(read(path, options, embedder))))
            print("read", path, embedder, flush=True)
        found += pickle.loads(kept.read_bytes())
    spread = LinceEmbeddings(embedder).similarity_spread
    for asked in found:
        for document in () if reader else asked.documents:
            # What the reader says of a passage is the fourth number.
            document["passages"] = [passage[:3] for passage in document.get("passages") or ()]
        asked.evidence = Evidence(asked.question, asked.language, asked.documents, spread or 1.0)
    return [asked for asked in found if asked.evidence.candidates]


def labels(asked: Asked) -> list[float | None]:
    """For each candidate 1 if it holds an answer, 0 if not, None if it does by chance, in another document."""
    found: list[float | None] = []
    evidence = asked.evidence
    for candidate in evidence.candidates:
        document = asked.documents[candidate.document]
        reading, position = evidence.readings[candidate.document], candidate.position
        text = plain(candidate.sentence.text)
        around = [
            plain(reading.sentences[each].text)
            for each in (position - 1, position + 1)
            if 0 <= each < len(reading.sentences)
        ]
        holds = any(
            answer in text
            or any(
                answer in f"{one} {two}" and answer not in one and answer not in two
                for other in around
                for one, two in ((text, other), (other, text))
            )
            for answer in asked.answers
        )
        here = asked.right & {document["source"], *document.get("also_in", [])}
        found.append(1.0 if holds and here else None if holds else 0.0)
    return found


def samples(questions: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """Yield real questions with their likeliest passages, for ``train_reader --samples``.

    A passage that holds the answer in another document may answer or not: it is left out.
    """
    hidden = 0
    for asked in questions:
        hidden += asked.hidden
        if asked.weight == SQUAD_WEIGHT or (asked.hidden and hidden % HIDDEN_STEP):
            continue
        found: list[dict[str, Any]] = []
        for rank, (number, place) in enumerate(asked.evidence.likeliest_compared(COMPARED_PASSAGES)):
            document = asked.documents[number]
            start, end, *_ = document["passages"][place]
            metadata = {name: value for name, value in document.items() if name != "text"}
            text = passage_text(Document(document["text"], metadata=metadata), start, end)
            holds = any(answer in plain(document["text"][start:end]) for answer in asked.answers)
            here = asked.right & {document["source"], *document.get("also_in", [])}
            if (rank < SAMPLED_PASSAGES and not holds) or (holds and here):
                found.append({"text": text, "right": holds})
        yield {"set": asked.data, "question": asked.evidence.last_question, "passages": found}


def fit_choice(rows: Sequence[Any], wanted: Sequence[Any], weights: Sequence[float]) -> Any:
    """Weights of a softmax over the candidates of each question, for the chance of those wanted."""
    everything = np.concatenate(rows)
    mean, deviation = everything.mean(axis=0), everything.std(axis=0) + 1e-9
    scaled, labels_ = (everything - mean) / deviation, np.concatenate(wanted)
    lengths = np.array([len(each) for each in rows])
    starts, weight = np.concatenate([[0], np.cumsum(lengths)[:-1]]), np.array(weights)

    def loss(parameters: Any) -> tuple[float, Any]:
        scores = scaled @ parameters
        powers = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), lengths))
        total = np.add.reduceat(powers, starts)
        right = np.maximum(np.add.reduceat(powers * labels_, starts), 1e-30)
        slope = (powers * labels_ / np.repeat(right, lengths) - powers / np.repeat(total, lengths)) * np.repeat(
            weight, lengths
        )
        value = ((np.log(right) - np.log(total)) * weight).sum()
        penalty = CHOICE_L2 * (parameters @ parameters)
        return float(penalty - value), 2 * CHOICE_L2 * parameters - scaled.T @ slope

    return minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="L-BFGS-B").x / deviation


def choice_rows(asked: Asked, left_out: Set[str]) -> tuple[list[str], Any]:
    rows = asked.evidence.choice_rows
    names = [name for name in rows[0] if name not in left_out]
    return names, np.array([[row[name] for name in names] for row in rows])


def train_choice(questions: Sequence[Asked], left_out: Set[str] = frozenset()) -> dict[str, float]:
    rows, wanted, weights, names = [], [], [], []
    for asked in questions:
        if not asked.answers:
            continue
        names, found = choice_rows(asked, left_out)
        known = labels(asked)
        kept = [number for number, label in enumerate(known) if label is not None]
        values = np.array([known[number] for number in kept])
        if 0 < values.sum() < len(values):
            rows.append(found[kept])
            wanted.append(values)
            weights.append(asked.weight)
    return dict(zip(names, map(float, fit_choice(rows, wanted, weights)), strict=True))


def use(name: str, weights: dict[str, float]) -> None:
    """Make the package use some weights from now on."""
    load_table("evidence")[name] = weights


def answer_of(asked: Asked) -> str:
    texts = [asked.documents[p.document]["text"][p.start : p.end] for p in asked.evidence.passages()]
    return " ".join(texts)


def refresh(asked: Asked) -> None:
    """Forget what depends on the weights."""
    for name in ("_unread_scores", "scores", "chances", "chosen", "confidence", "confidence_unread", "_measured"):
        asked.evidence.__dict__.pop(name, None)


def train_confidence(questions: Sequence[Asked], right: Sequence[bool]) -> dict[str, float]:
    rows = [asked.evidence.confidence_features() for asked in questions]
    names = [name for name in rows[0] if name != "constant"]
    values = np.array([[row[name] for name in names] for row in rows])
    scaler = StandardScaler().fit(values)
    scaled = scaler.transform(values)
    weights = np.array([asked.weight * (HIDDEN_WEIGHT if asked.hidden else 1.0) for asked in questions])
    # Half is for an answer that is there but was not chosen. So it also learns when to abstain.
    answerable = [asked.answerable for asked in questions]
    model = LogisticRegression(C=CONFIDENCE_C, max_iter=2_000)
    model.fit(np.vstack([scaled, scaled]), [*right, *answerable], sample_weight=[*weights, *weights])
    # The scale is that of right answers, of which each counts the same: with SQUAD_WEIGHT, those of that form are
    # right more often than said.
    shown = [number for number, asked in enumerate(questions) if not asked.hidden]
    raw = model.decision_function(scaled)[shown].reshape(-1, 1)
    scale = LogisticRegression(C=1e6).fit(raw, [right[n] for n in shown])
    slope, constant = float(scale.coef_[0, 0]), float(scale.intercept_[0])
    learned = slope * model.coef_[0] / scaler.scale_
    constant += slope * float(model.intercept_[0]) - float(learned @ scaler.mean_)
    return {"constant": constant} | dict(zip(names, map(float, learned), strict=True))


def is_right(asked: Asked) -> bool:
    text = plain(answer_of(asked))
    return any(answer in text for answer in asked.answers)


def report(name: str, questions: Sequence[Asked], right: Sequence[bool], confidence: Sequence[float]) -> None:
    """Print a Markdown row for each set: what documents left out of the training gave."""
    flags, score = np.array(right, float), np.array(confidence)
    for data in dict.fromkeys(asked.data for asked in questions):
        kept = [n for n, asked in enumerate(questions) if asked.data == data and not asked.hidden]
        yes = [n for n in kept if questions[n].answerable]
        no = [n for n in kept if not questions[n].answerable]
        sampled = np.random.default_rng(0).choice(flags[yes], (2_000, len(yes))).mean(axis=1)
        low, high = np.percentile(sampled, [2.5, 97.5])
        cells = [
            name,
            data,
            f"{flags[yes].mean():.3f} [{low:.3f}, {high:.3f}]",
            f"{np.median([len(answer_of(questions[n])) for n in yes]):.0f}",
            f"{roc_auc_score(flags[kept], score[kept]):.3f}",
            f"{brier_score_loss(flags[kept], score[kept]):.3f}",
            f"{calibration_error(flags[kept], score[kept]):.3f}",
            *(f"{(score[group] < MINIMUM_CONFIDENCE).mean():.3f}" for group in (yes, no)),
        ]
        print("|", " | ".join(cells), "|", flush=True)


def calibration_error(right: Any, score: Any) -> float:
    """The expected calibration error over ten bins."""
    bins = np.minimum((score * 10).astype(int), 9)
    gaps = [abs(right[bins == n].mean() - score[bins == n].mean()) * (bins == n).mean() for n in set(bins)]
    return float(sum(gaps))


def report_bins(name: str, questions: Sequence[Asked], right: Sequence[bool], confidence: Sequence[float]) -> None:
    """Print how often answers of about the same confidence are right."""
    flags, score = np.array(right, float), np.array(confidence)
    for kind in (False, True):
        kept = np.array([(asked.weight == SQUAD_WEIGHT) == kind and not asked.hidden for asked in questions])
        bins = [kept & (score >= n / 5) & (score < (n + 1) / 5) for n in range(5)]
        cells = [f"{score[each].mean():.2f} → {flags[each].mean():.2f} ({each.sum()})" for each in bins]
        print("|", name, "|", "SQuAD form" if kind else "real", "|", " | ".join(cells), "|", flush=True)


FEATURES = {
    "nothing": set(),
    "title, lead-ins, neighbour": {"introduced", "covered_with_title", "covered_with_neighbour"},
    "rank of the chunk": {"inverse_rank"},
    "form": {"length", "new_words", "unfinished", "item", "digits", "instruction"},
    "what is asked for": {"kind", "quantity", "how_instruction", "how_menu", "why_reason", "what_definition"},
    "similarity": {"similarity", "largest_similarity", "mean_similarity"},
}


def report_features(suffix: str, questions: Sequence[Asked], folds: Sequence[Any]) -> None:
    """Print what the choice is without each group of features."""
    for left_out, names in FEATURES.items():
        right = np.zeros(len(questions))
        for train, test in folds:
            known = [questions[number] for number in train]
            use(f"choice_{suffix}", train_choice(known, names))
            for number in test:
                refresh(questions[number])
                right[number] = is_right(questions[number])
        groups: dict[str, list[int]] = {}
        for number, asked in enumerate(questions):
            if asked.answerable:
                groups.setdefault(asked.data, []).append(number)
        cells = [f"{right[numbers].mean():.3f}" for numbers in groups.values()]
        print("|", suffix, "|", left_out, "|", " | ".join(cells), "|", flush=True)


def learn(questions: Sequence[Asked], suffix: str) -> None:
    """Learn both models and use them."""
    use(f"choice_{suffix}", train_choice(questions))
    for asked in questions:
        refresh(asked)
    use(f"confidence_{suffix}", train_confidence(questions, [is_right(asked) for asked in questions]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, action="append", default=[])
    parser.add_argument("--squad", type=Path, action="append", default=[])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--features", action="store_true", help="measure what each group of features adds")
    parser.add_argument("--samples", type=Path, help="write what the reader can learn from, and nothing else")
    parser.add_argument("--common-parts", action="store_true", help="print these, and nothing else")
    parser.add_argument("--only", choices=[suffix for _, suffix in PARTS])
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.common_parts:
        print_common_parts(options)
        return
    for embedder, suffix in PARTS:
        if options.only not in (None, suffix):
            continue
        reader = suffix == "reader"
        questions = collect(options, embedder, reader=reader)
        if options.samples and reader:
            lines = (json.dumps(each, ensure_ascii=False) for each in samples(questions))
            options.samples.write_text("\n".join(lines), encoding="utf-8")
        if options.samples:
            continue
        right, confidence = [False] * len(questions), [0.0] * len(questions)
        groups = [asked.group for asked in questions]
        folds = list(GroupKFold(FOLDS).split(questions, groups=groups))
        if options.features and not reader:
            report_features(suffix, questions, folds)
        for train, test in folds:
            known = [questions[number] for number in train]
            learn(known, suffix)
            for number in test:
                refresh(questions[number])
                right[number] = is_right(questions[number])
                confidence[number] = questions[number].evidence.confidence
        learn(questions, suffix)
        report(suffix, questions, right, confidence)
        report_bins(suffix, questions, right, confidence)
        if options.write:
            write()


def print_common_parts(options: argparse.Namespace) -> None:
    """Print the rows of ``common_parts`` for ``prompts/embedders.toml``."""
    sets = [[question for _, question, _ in read_rows(folder)] for folder in options.real]
    for file in options.squad:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        rows = [row for article in articles for part in article["paragraphs"] for row in part["qas"]]
        sets.append([row["question"] for row in rows[1::2]])
    embeddings = LinceEmbeddings(VECTORS)
    means: dict[str, list[tuple[float, Any]]] = {language: [] for language in LANGUAGES}
    for questions in sets:
        for language, found in means.items():
            vectors = [embeddings.embed_query(each) for each in questions if detect_language(each) == language]
            if len(vectors) >= LEAST_QUESTIONS:
                found.append((len(vectors) ** 0.5, np.mean(vectors, axis=0)))
    parts = {
        language: COMMON_SHARE * np.average([mean for _, mean in found], axis=0, weights=[w for w, _ in found])
        for language, found in means.items()
    }
    scale = float(f"{max(np.abs(part).max() for part in parts.values()) / 127 + 5e-8:.3e}")
    print(f"scale = {scale}")
    for language, part in parts.items():
        numbers = base64.b64encode(np.round(part / scale).astype(np.int8).tobytes()).decode()
        lines = "\\\n".join(numbers[start : start + 108] for start in range(0, len(numbers), 108))
        print(f'{language} = """\\\n{lines}"""')


def write() -> None:
    table = load_table("evidence")
    text = "\n".join(
        f"[{name}]\n" + "".join(f"{feature} = {weight:.4f}\n" for feature, weight in row.items())
        for name, row in table.items()
    )
    TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
