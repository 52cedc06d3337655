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
