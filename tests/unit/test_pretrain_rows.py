"""What step 1 of LUM may see: each user's own earlier events, whatever way the data keeps its logs."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrbench.bench.last_rows import event_log, last_rows, windows
from ctrbench.bench.pretrain import packed_rows
from ctrbench.datasets.prepare import prepare
from ctrbench.models.lum_backbone import event_fields

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
movielens_folder, random_events = _tiny["movielens_folder"], _tiny["random_events"]


@pytest.mark.parametrize("split", ["global_time", "per_user"])
def test_spans_are_the_users_events_before_the_last_train_row(tmp_path: Path, split: str) -> None:
    events = random_events(1, count=600, seconds=5000)
    prepared = prepare("movielens_1m", str(movielens_folder(tmp_path / "ml", events)), str(tmp_path / "p"), split=split)
    roles = event_fields(prepared.schema)
    rows, log = last_rows(prepared, roles), event_log(prepared, roles)
    train = prepared.frame("train", columns=["user_id", "time", "item"])
    users = sorted(train["user_id"].unique())
    at = 0
    for user in users:
        mine = train.filter(pl.col("user_id") == user)
        newest = mine["time"].max()
        earlier = sorted(t for u, _, _, t in events if u == user and t < newest)
        if not earlier:
            continue
        begin, end = rows.spans_U2[at]
        times = prepared.events(roles.history)["time"][int(begin) : int(end)].to_list()
        assert times == earlier  # so no validation or test event of anybody is among them
        assert rows.item_U[at] in mine.filter(pl.col("time") == newest)["item"].to_list()
        at += 1
    assert at == len(rows.spans_U2)
    packed = packed_rows(log, windows(rows.spans_U2, 8), 8)
    assert int((packed.segment_RL > 0).sum()) == int(np.diff(rows.spans_U2, axis=1).sum())
