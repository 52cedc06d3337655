"""docs/gate.md: its tables are what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy.stats import norm

from ctrbench.bench.power import Design
from ctrbench.bench.significance import processes_needed

PAGE = (Path(__file__).parents[2] / "docs" / "gate.md").read_text()


def rows(columns: int) -> list[list[int]]:
    """Table rows that are whole numbers, percent signs left out."""
    found = re.findall(r"^\|((?: *\d+(?: %)? *\|)+)$", PAGE, re.MULTILINE)
    cells = [[int(c.strip(" %")) for c in row.strip("|").split("|")] for row in found]
    return [c for c in cells if len(c) == columns]


def test_processes_needed() -> None:
    table = rows(3)
    assert len(table) == 5
    assert table == [[m, processes_needed(m), processes_needed(m, 0.01)] for m, _, _ in table]


def test_detectable_slowdowns() -> None:
    table = rows(5)
    assert [row[0] for row in table] == [5, 6, 7, 9]
    for n, *percents in (table[0], table[-1]):
        for cv, percent in zip((0.01, 0.02, 0.05, 0.10), percents, strict=True):
            size = Design(processes=n, cv=cv, trials=300, draws=200).detectable()
            assert size is not None
            assert 100 * (size - 1) == pytest.approx(percent, rel=0.12, abs=0.6)


def test_standard_errors_of_an_auc_drop() -> None:
    first, alone = norm.isf(0.05 / 3 / 2), norm.isf(0.05 / 2)
    assert f"{first + norm.ppf(0.9):.1f} standard errors of the paired" in PAGE
    assert f"{alone + norm.ppf(0.9):.1f} were it the only test" in PAGE
    assert f"in {norm.cdf(3 - first):.0%} and {norm.cdf(3 - alone):.0%}".replace("%", " %") in PAGE.replace("\n", " ")
