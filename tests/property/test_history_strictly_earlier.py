"""Histories against a brute-force twin that knows nothing of sorting or slices."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.movielens_1m import LIKED, NOT_LIKED, with_history
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared, history_index

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
movielens_folder, random_events = (_tiny["movielens_folder"], _tiny["random_events"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_slices_hold_exactly_the_last_strictly_earlier_events(log: list[tuple[int, int]], length: int) -> None:
    table = pl.DataFrame({
        "user_id": [u for u, _ in log], "time": [t for _, t in log], "position": range(len(log)),
    })  # fmt: skip
    ordered = with_history(table)
    index_N, n_B = history_index(ordered["hist_begin"].to_numpy(), ordered["hist_end"].to_numpy(), length)
    at = 0
    for row, n in zip(ordered.iter_rows(named=True), n_B, strict=True):
        got = ordered["position"].to_numpy()[index_N[at : at + n]].tolist()
        at += n
        user, time = log[row["position"]]
        earlier = sorted((t, p) for p, (u, t) in enumerate(log) if u == user and t < time)
        assert got == [p for _, p in earlier][-length:]
    assert at == len(index_N)


def _twin(events: list[tuple[int, int, int, int]], user: int, time: int, length: int) -> list[tuple[int, int, int]]:
    """(item, liked, time) of the last `length` events of the user strictly before `time`, oldest first."""
    earlier = [(t, p, i, r) for p, (u, i, r, t) in enumerate(events) if u == user and t < time]
    return [(i, int(r >= 4), t) for t, _, i, r in sorted(earlier)][-length:]


@given(st.integers(0, 10_000), st.sampled_from(["global_time", "per_user"]), st.integers(1, 9))
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_prepared_histories_against_the_raw_log(seed: int, rule: str, length: int) -> None:
    events = random_events(seed)
    with tempfile.TemporaryDirectory() as folder:
        raw = movielens_folder(Path(folder) / "raw", events)
        prepared = prepare("movielens_1m", raw, Path(folder) / "out", split=rule, history=length)
        item_of = dict(prepared.vocabulary("item").select("id", "value").iter_rows())
        seen = 0
        for split in SPLITS:
            for row in prepared.frame(split).iter_rows(named=True):
                twin = _twin(events, row["user_id"], row["time"], length)
                assert row["hist_time"] == [t for _, _, t in twin]
                assert all(t < row["time"] for t in row["hist_time"])
                assert row["hist_action"] == [LIKED if liked else NOT_LIKED for _, liked, _ in twin]
                for got, (item, _, _) in zip(row["hist_item"], twin, strict=True):
                    assert item_of.get(got, "OOV") in (f"Film {item} (1990)", "OOV")
                seen += 1
        assert seen == len(events) == prepared.manifest["rows"]["kept"]


def test_history_length_is_checked(tmp_path: Path) -> None:
    raw = movielens_folder(tmp_path / "raw", random_events(1))
    prepared = prepare("movielens_1m", raw, tmp_path / "out", history=8)
    assert prepared.schema_for(3)["hist_item"].max_length == 3
    assert isinstance(prepared, Prepared)
    for length in (0, 9):
        with pytest.raises(BadInput, match=rf"history_length={length}: movielens_1m was prepared with 1..8"):
            prepared.schema_for(length)
