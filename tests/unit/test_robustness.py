"""Every row of docs/robustness.md happens again: an error that helps, or a note; never a traceback, never silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.robust import Case, Outcome, cases, outcome, page

PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"
CASES = cases()
_seen: dict[str, Outcome] = {}


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_bad_input(tmp_path: Path, case: Case) -> None:
    seen = _seen[case.id] = outcome(case, tmp_path)
    assert seen.verdict in ("error", "note"), seen
    assert (seen.code, case.says in seen.message, seen.changed) == (case.code, True, ()), seen
    assert not (seen.code == 2 and seen.left), seen


def test_the_page_says_what_happened() -> None:
    """After the cases, in one process: the page is made of what they did."""
    if len(_seen) < len(CASES):
        pytest.skip("some case was not run, or failed")
    assert page([(c, _seen[c.id]) for c in CASES]) == PAGE.read_text(encoding="utf-8"), "make robustness"


def test_there_are_enough_cases_of_every_kind() -> None:
    assert len(CASES) == len({c.id for c in CASES}) >= 80
    assert {c.area for c in CASES} == {"data", "config", "records", "traces", "checkpoints", "command"}


def test_a_parquet_file_of_wrong_text_is_a_damaged_record(tmp_path: Path) -> None:
    """Found by `make fuzz`: pyarrow has errors that are none of Python's kinds."""
    from tests.data.resealed import resealed
    from tests.data.robust_records import run

    from ctrbench.reports import records

    def spoil(folder: Path) -> None:
        file = folder / "measurements.parquet"
        data = file.read_bytes()
        assert b"criteo_synthetic" in data
        file.write_bytes(data.replace(b"criteo_synthetic", b"criteo\xffsynthetic"))
        resealed(folder)

    run(spoil)(tmp_path)
    with pytest.raises(records.DamagedRecord):
        records.load(tmp_path / "runs" / "one")


@pytest.mark.parametrize(("old", "new"), [('"prepared"', '"preparef"'), ('"model"', '"mode"')])
def test_the_gate_survives_a_specification_of_another_form(tmp_path: Path, old: str, new: str) -> None:
    """Found by `make fuzz`."""
    from tests.data.robust_records import edited, run

    run(edited(old, new))(tmp_path)
    case = Case(area="records", what="x", command="compare runs/one runs/one", make=lambda f: None, says="", code=2)
    seen = outcome(case, tmp_path)
    assert (seen.verdict != "crash", seen.code) == (True, 2)
