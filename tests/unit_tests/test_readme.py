"""The README in three languages: the same in each, short, and true of the registry, the results and the files."""

import re
from pathlib import Path
from typing import Final

import pytest

import lince_rag.errors
from lince_rag.prompting.registry import load_registry

PROJECT: Final = Path(__file__).parents[2]
READMES: Final = ("README.md", "README.es.md", "README.pt.md")
TRANSLATIONS: Final = READMES[1:]
RESULTS: Final = (PROJECT / "tests" / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")

LINES: Final = 170
# Pages to which the README's details went; their links are checked, too.
PAGES: Final = sorted(path.relative_to(PROJECT).as_posix() for path in (PROJECT / "docs").glob("*.md"))


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "```", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The code blocks, without what a translation changes: comments and the prose in quotes."""
    found = re.findall(r"^```\w*\n.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    found = [re.sub(r"\s+#\s.*", "", block) for block in found]
    return [re.sub(r'"[^"\n]* [^"\n]*"', '"…"', block) for block in found]


def shape(text: str) -> list[str]:
    """What a translation leaves alone, in order: headings and paragraphs by their kind, items, rows."""
    kinds = {"#": r"#+(?= )", "|": r"\|", "-": r"- ", "```": "```", "!": r"!\[", "": r"$"}
    found = []
    for line in without_code(text).splitlines():
        kind = next((re.match(form, line)[0] for form in kinds.values() if re.match(form, line)), "text")  # type: ignore[index]
        if kind != "text" or found[-1:] != ["text"]:
            found.append(kind)
    # A paragraph may be wrapped otherwise, and the lines of an item, too.
    return [each for each in found if each]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def numbers(text: str) -> list[list[str]]:
    """The numbers of each row of the tables; a decimal comma is a point."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[each.replace(",", ".") for each in re.findall(r"\d+(?:[.,]\d+)?", row)] for row in rows]


def code_words(text: str) -> list[str]:
    return re.findall(r"`[^`\n]+`", without_code(text).replace("```", ""))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", READMES)
def test_it_is_short(name: str) -> None:
    assert len(read(name).splitlines()) <= LINES


@pytest.mark.parametrize("name", TRANSLATIONS)
@pytest.mark.parametrize("part", [blocks, shape, numbers, code_words], ids=lambda part: part.__name__)
def test_translations_are_in_step(name: str, part: object) -> None:
    assert callable(part)
    assert part(read(name)) == part(read("README.md"))


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_translations_have_the_same_links(name: str) -> None:
    own = [link for link in links(read(name)) if link not in READMES]
    assert own == [link for link in links(read("README.md")) if link not in READMES]


@pytest.mark.parametrize("name", READMES)
def test_each_names_the_other_two_first(name: str) -> None:
    first = read(name).splitlines()[0]
    assert links(first) == [other for other in READMES if other != name]
    assert first.count("**") == 2


@pytest.mark.parametrize(
    "change",
    [
        ("--index contracts", "--index other"),
        ("k=5", "k=6"),
        ("| 6.9 |", "| 6.8 |"),
        ("| `tucano2-0.5b`", "| `new` | es | 1.0 | 2.2 | 0.6 | MIT |\n| `tucano2-0.5b`"),
        ("## Limits", "### Limits"),
        ("- Scanned pages", "Scanned pages"),
        ("`--watch`", "`--follow`"),
    ],
    ids=lambda change: change[1][:20],
)  # fmt: skip
def test_a_change_of_one_language_is_noticed(change: tuple[str, str]) -> None:
    before = read("README.md")
    after = before.replace(*change)
    assert after != before
    assert any(part(after) != part(before) for part in (blocks, shape, numbers, code_words))


def test_the_models_are_those_of_the_registry() -> None:
    wanted = [
        f"| `{spec.name}` | {' '.join(spec.languages)} | {spec.parameters / 1e9:.1f} |"
        f" {spec.memory['bfloat16'] / 1e9:.1f} | {spec.memory['int4'] / 1e9:.1f} | {spec.licence} |"
        for spec in load_registry().values()
        if spec.parameters
    ]
    assert [
        line for line in read("README.md").splitlines() if line.startswith("| `") and "ask" not in line
    ] == wanted


def result(section: str, row: str, *columns: str) -> list[str]:
    """Numbers of a row of RESULTS.md, from the columns named (as their heads begin)."""
    body = RESULTS.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    line = next(line for line in body.splitlines() if line.startswith(f"| {row} |"))
    table = body[: body.index(line)].strip().split("\n\n")[-1].splitlines()[0]
    heads = [each.strip() for each in table.strip("|").split("|")]
    cells = [each.strip().split(" ")[0] for each in line.strip("|").split("|")]
    return [cells[next(i for i, head in enumerate(heads) if head.startswith(column))] for column in columns]


def test_the_figures_are_those_of_the_results() -> None:
    section = RESULTS.split("\n## Learning from real questions again\n")[1]
    unseen = [line.split("|")[2:6] for line in section.split("\n\n")[1].splitlines()[2:]]
    refused = [row[3].split(" / ") for row in unseen]
    passages = "Passages and confidence"
    retrieval = "Retrieval by embedder and language"
    wanted = [
        [f"0{row[0].strip()}" for row in unseen],
        [f"0{wrongly.strip()}" for wrongly, _ in refused],
        [f"0{rightly.strip()}" for _, rightly in refused],
        [
            *result(passages, "multilingual-e5-small | XQuAD-es", "gold in the answer"),
            *result(passages, "multilingual-e5-small | FaQuAD", "gold in the answer"),
        ],
        [
            *result(retrieval, "XQuAD, es → es | multilingual-e5-small", "recall@5"),
            *result(retrieval, "FaQuAD, pt → pt | multilingual-e5-small", "recall@5"),
        ],
        result(
            "Serving: a question from the command line",
            "multilingual-e5-small",
            "`lince-rag ask`",
            "with a server",
        ),
    ]
    table = read("README.md").split("\n## Figures\n")[1].split("\n## ")[0]
    assert [[each for each in row if re.match(r"\d\.\d{3}", each)] for row in numbers(table)[2:]] == wanted


@pytest.mark.parametrize("name", [*READMES, *PAGES, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    for link in links(read(name)):
        # Pages of the site that are written when it is built; `make docs` checks links to them.
        if re.match(r"\w+:|reference/|(\.\./)?explanation/prompt-formats", link):
            continue
        path, _, anchor = link.partition("#")
        target = (PROJECT / name).parent / path if path else PROJECT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_images_are_small_and_ask_no_other_machine() -> None:
    images = PROJECT / "docs" / "images"
    assert (images / "page.webp").stat().st_size <= 150_000
    terminal = (images / "terminal.svg").read_text(encoding="utf-8")
    assert len(terminal) <= 60_000
    assert set(re.findall(r"\w+://[^\s\"')]+", terminal)) == {"http://www.w3.org/2000/svg"}
    assert "No&#160;lo&#160;encuentro" in terminal


def test_a_missing_extra_is_installed_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert f"$ {lince_rag.errors.installation('e5,serve')}\n" in read("README.md")
    monkeypatch.chdir(tmp_path)
    said = lince_rag.errors.installation("ocr")
    assert said == f"pip install -c {PROJECT}/constraints.txt -e '{PROJECT}[ocr]'"
    monkeypatch.setattr(lince_rag.errors, "__file__", str(tmp_path / "lince_rag" / "errors.py"))
    assert lince_rag.errors.installation("ocr") == "pip install 'lince-rag[ocr]'"
