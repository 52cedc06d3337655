"""Dense values and integer categories against formulas written out by hand."""

from __future__ import annotations

import math

import polars as pl
import pytest

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.transforms import TRANSFORMS, check_transform, dense, fit, log_square

TRAIN = pl.DataFrame({"x": [4, -1, None, 0, 9]}, schema={"x": pl.Int64})
LATER = pl.DataFrame({"x": [-7, 100, None]}, schema={"x": pl.Int64})


def _apply(name: str, table: pl.DataFrame) -> list[float | None]:
    column = table.select(dense("x", name, fit("x", name, TRAIN.lazy())))["x"]
    assert column.dtype == pl.Float32
    return column.to_list()


def _near(expected: list[float | None]) -> list[object]:
    return [None if x is None else pytest.approx(x, rel=1e-6) for x in expected]


def test_formulas() -> None:
    log = math.log
    mean, sd = 3.0, math.sqrt((1 + 16 + 9 + 36) / 4)  # of 4, -1, 0, 9
    expected = {
        "signed_log": ([log(5), -log(2), None, 0.0, log(10)], [-log(8), log(101), None]),
        "none": ([4, -1, None, 0, 9], [-7, 100, None]),
        "standard": ([(4 - mean) / sd, -4 / sd, None, -3 / sd, 6 / sd], [-10 / sd, 97 / sd, None]),
        "dlrm": ([log(5), 0.0, 0.0, 0.0, log(10)], [0.0, log(101), 0.0]),
        "torchrec": ([log(7), log(2), log(3), log(3), log(12)], [log(2), log(103), log(3)]),  # min of train: -1
    }
    assert set(expected) == set(TRANSFORMS)
    for name, (train, later) in expected.items():
        assert _apply(name, TRAIN) == _near(train), name
        assert _apply(name, LATER) == _near(later), name


def test_constant_and_empty_columns_stay_finite() -> None:
    for values in ([5, 5], [None, None]):
        train = pl.DataFrame({"x": values}, schema={"x": pl.Int64})
        for name in TRANSFORMS:
            column = train.select(dense("x", name, fit("x", name, train.lazy())))["x"]
            assert column.drop_nulls().is_finite().all(), (name, values)


def test_log_square_categories() -> None:
    values = [None, -2, 0, 1, 2, 3, 7, 100, 2**40]
    got = pl.DataFrame({"x": values}, schema={"x": pl.Int64}).select(log_square("x"))["x"].to_list()
    assert got == ["0", "-2", "0", "1", "2", *(str(math.floor(math.log(x) ** 2)) for x in (3, 7, 100, 2**40))]
    assert got[5:8] == ["1", "3", "21"]  # ln(3)^2 = 1.21, ln(7)^2 = 3.79, ln(100)^2 = 21.2


def test_unknown_name() -> None:
    with pytest.raises(BadInput, match="here: unknown transform 'signedlog': did you mean 'signed_log'"):
        check_transform("signedlog", "here")
