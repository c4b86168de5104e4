"""An index that is damaged or cannot be written: messages that are true, and repair from the ledger."""

from pathlib import Path

import pytest

from tests.damage import Outcome, make_index, outcomes


@pytest.mark.slow
def test_every_damage_is_noticed_and_repaired(tmp_path: Path) -> None:
    make_index(tmp_path / "index")
    seen: list[Outcome] = []
    for outcome in outcomes(tmp_path / "index", tmp_path):
        seen.append(outcome)
        print(outcome)
    for outcome in seen:
        if outcome.status == "ok":
            assert outcome.asking == "same answers", outcome
        elif outcome.file.startswith("ledger"):
            assert outcome.repaired == "no", outcome
            assert "restore it from a backup" in outcome.status or outcome.status.startswith("ledger: "), outcome
        else:
            assert outcome.repaired == "exactly", outcome
