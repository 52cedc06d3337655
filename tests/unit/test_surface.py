"""What users may build on does not change unseen."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FROZEN = TESTS / "golden" / "surface.txt"
lines = runpy.run_path(str(TESTS / "data" / "surface.py"))["lines"]


@pytest.fixture(scope="module")
def found() -> list[str]:
    return list(lines())


def test_the_surface_is_the_frozen_one(found: list[str]) -> None:
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    gone, new = sorted(set(frozen) - set(found)), sorted(set(found) - set(frozen))
    said = [*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)]
    assert not said, "\n".join([
        "what users may build on has changed:", *said,
        "if it was meant: python -m tests.data.surface tests/golden/surface.txt, and a line in CHANGELOG.md. What is "
        "gone (-) must have been deprecated for one minor version: CONTRIBUTING.md, What goes away.",
    ])  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "command ctrbench report -o, --out",
        "setting run.lr",
        "setting suite=quick",
        "model onetrans.pyramid: ",
        "data criteo_synthetic option rows = ",
        "measure auc in ratio, better up",
        "export measurement.value",
        "fixture ctr_benchmark",
        "class models.spec.ModelSpec(*, name: ",
        "class datasets.schema.Batch(",
        "method datasets.schema.Batch.to(self, device: ",
        "function reports.cells.pick(frame: ",
        "type models.spec.Family = legacy, transformer",
    ],
)
def test_every_kind_of_thing_is_frozen(found: list[str], line: str) -> None:
    assert [one for one in found if one.startswith(line)], line


def test_no_line_depends_on_the_machine(found: list[str]) -> None:
    assert [one for one in found if " at 0x" in one or "/site-packages/" in one or str(Path.home()) in one] == []
