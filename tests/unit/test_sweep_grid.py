"""The grid of `ctrbench sweep`: which settings are axes, and what cannot be read."""

from __future__ import annotations

import pytest

from ctrbench.bench.multirun import Point, points
from ctrbench.datasets.errors import UnknownName


def test_a_comma_makes_an_axis_and_quotes_do_not() -> None:
    grid = points(["suite=ci", "run.lr=1e-3,3e-3", "model='deepfm,fat'", "deepfm.mlp=[64,32],[128,64]"])
    assert [p.settings for p in grid] == [
        ("suite=ci", f"run.lr={lr}", "model=deepfm,fat", f"deepfm.mlp={mlp}")
        for lr in ("0.001", "0.003") for mlp in ("[64,32]", "[128,64]")
    ]  # fmt: skip
    assert len({p.name for p in grid}) == 4
    assert Point(grid[0].settings[::-1]).name == grid[0].name


def test_one_value_stays_as_typed() -> None:
    assert points(["data.path=some/007.csv", "run.lr=1e-3", "+run.seeds=5"])[0].settings == (
        "data.path=some/007.csv", "run.lr=1e-3", "run.seeds=5",
    )  # fmt: skip


def test_ranges_are_axes() -> None:
    assert [p.settings for p in points(["run.seeds=range(1,4)"])] == [(f"run.seeds={n}",) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [("suite", "suite"), ("run.lr=[1", "'run.lr=\\[1'"), ("run.out=x", "run.out: a sweep sets it"),
     ("run.resume=true", "run.resume: a sweep sets it")],
)  # fmt: skip
def test_settings_that_cannot_be_read(setting: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        points([setting])
    with pytest.raises(UnknownName, match=r"run\.lr: given twice"):
        points(["run.lr=1", "run.lr=2"])
