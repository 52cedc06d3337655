"""Rows made from the test scores of all seeds: users without GAUC, calibration by bin, reasons for no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctrbench.bench.score_rows import score_rows
from ctrbench.reports.declared import Scored
from ctrbench.reports.records import Measurement

NOBODY = -1
BASE: dict[str, Any] = {"run": "r", "model": "din", "data": "d", "track": "sequence"}


def _rows(label: list[int], user: list[int], *scores: list[float]) -> dict[tuple[str, str], Measurement]:
    seeds = [
        Scored(label_N=np.array(label), score_N=np.array(s), user_N=np.array(user), train_rate=0.5) for s in scores
    ]
    return {(r.metric, r.scope): r for r in score_rows(BASE, seeds)}


def test_users_with_one_label_are_a_share_and_gauc_is_not_withheld() -> None:
    rows = _rows([0, 1, 1, 0], [1, 1, 2, 3], [0.1, 0.9, 0.4, 0.2])
    assert rows["gauc_dropped", ""].value == pytest.approx(2 / 3)
    assert ("gauc", "") not in rows  # every training has written its own


def test_where_no_user_has_two_labels_gauc_says_so_and_not_that_there_is_no_user() -> None:
    rows = _rows([0, 1, 1], [1, 2, 3], [0.1, 0.9, 0.4])
    assert rows["gauc", ""].reason == "every user's rows have one label"
    assert rows["gauc_dropped", ""].value == 1.0


def test_without_users_there_is_a_reason_and_no_share() -> None:
    rows = _rows([0, 1], [NOBODY, NOBODY], [0.1, 0.9])
    assert rows["gauc", ""].reason == "field_missing: the data has no user"
    assert ("gauc_dropped", "") not in rows


def test_calibration_by_bin_is_the_mean_over_seeds_with_its_spread() -> None:
    """Two seeds of two scores each: the low bin has 1 of 4 positives, the high one 3 of 4."""
    label, user = [0, 0, 0, 1, 1, 1, 1, 0], [1] * 8
    rows = _rows(label, user, [0.2] * 4 + [0.6] * 4, [0.3] * 4 + [0.9] * 4)
    low, high = rows["calibration", "bin:1/2"], rows["calibration", "bin:2/2"]
    assert low.value == pytest.approx((0.2 + 0.3) / 2 / 0.25)
    assert high.value == pytest.approx((0.6 + 0.9) / 2 / 0.75)
    assert low.sd == pytest.approx(np.std([0.8, 1.2], ddof=1))
    assert (low.n, low.phase) == (2, "train")


def test_a_bin_without_a_positive_is_withheld() -> None:
    rows = _rows([0, 0, 1, 1], [1] * 4, [0.2, 0.2, 0.7, 0.7])
    assert rows["calibration", "bin:1/2"].value is None
    assert rows["calibration", "bin:1/2"].reason == "no positive in this bin"
    assert rows["calibration", "bin:2/2"].value == pytest.approx(0.7)
