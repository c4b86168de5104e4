"""What happens to an index when one of its files is damaged."""

import re
from pathlib import Path

from tests.benchmarks.tables import table
from tests.damage import DOCUMENTS, assert_true, make_index, outcomes


def test_damage(tmp_path: Path, results: list[str]) -> None:
    """Every file, damaged in four ways: the answers, the status, the repaired index."""
    make_index(tmp_path / "index")
    rows: list[list[object]] = []
    for each in outcomes(tmp_path / "index", tmp_path):
        assert_true(each)
        rows.append([each.file, each.damage, _short(each.asking), _short(each.status), each.repaired or "–"])
    header = ["file", "damage", "asking", "`status`", "repaired as before"]
    note = (
        f"{DOCUMENTS:,} documents of one chunk, of which one was deleted. An error ends with a hint: "
        "`lince-rag status --repair`, or, for the ledger, a backup or a new index. “Exactly”: the same chunks, "
        "and the same answers in the same order."
    )
    results.append(f"## Damage\n\n{table(header, rows)}\n\n{note}")


def _short(text: str) -> str:
    # tantivy names its files at random.
    text = re.sub(r"[0-9a-f]{32}", "*", text)
    line = text.split(". Build it again")[0].split(". The ledger cannot")[0].replace("|", "/").replace("\n", " ")
    return line if len(line) <= 140 else line[:140] + " …"
