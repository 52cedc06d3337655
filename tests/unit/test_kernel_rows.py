"""The columns of recorded launches: duration classes, sums against a plain twin, the file and its errors."""

from __future__ import annotations

import random
import runpy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ctrbench.bench.cli import main
from ctrbench.reports import kernel_rows as schema
from ctrbench.reports.records import RunRecord, save

synthetic_kernels = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_kernels.py"))[
    "synthetic_kernels"
]


def test_an_edge_belongs_to_the_class_below_it() -> None:
    assert schema.bins([1, 100, 101, 9_999, 10_000, 10_001, 20_000, 10**15]).tolist() == [
        100, 100, 200, 10_000, 10_000, 20_000, 20_000, schema.EDGES[-1],
    ]  # fmt: skip


def random_events(seed: int, n: int = 400) -> pd.DataFrame:
    rng = random.Random(seed)
    rows = [
        {"kind": "kernel", "device": "G", "stage": rng.choice("ab"), "block": rng.choice(["", "x"]), "family": "gemm",
         "name": rng.choice("klm"), "duration_ns": rng.choice([5, 10_000, 10_001, 70_000]), "origin": "imported",
         "launches": rng.choice([0, 1]), "flops": rng.choice([None, *[7.0, 8.0, 9.0] * 4]), "l2_bytes": 32.0}
        for _ in range(n)
    ]  # fmt: skip
    return schema.frame(pd.DataFrame(rows), {"run": "r", "model": "m"})


def plain_sums(events: pd.DataFrame) -> dict[tuple[Any, ...], list[Any]]:
    """What `totals` sums, by a loop over rows."""
    out: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    for row in events.to_dict("records"):
        edge = next(int(e) for e in schema.EDGES if row["duration_ns"] <= e)
        sums = out[row["stage"], row["block"], row["name"], edge]
        sums[0] += row["duration_ns"]
        sums[1] += row["launches"]
        sums[2] = None if sums[2] is None or pd.isna(row["flops"]) else sums[2] + row["flops"]
        sums[3] += row["l2_bytes"]
    return dict(out)


@pytest.mark.parametrize("seed", range(3))
def test_totals_are_those_of_a_plain_loop(seed: int) -> None:
    events = random_events(seed)
    found = schema.totals(events, 4)
    mine = {
        (r["stage"], r["block"], r["name"], r["bin_ns"]): [
            r["duration_ns"], r["launches"], None if pd.isna(r["flops"]) else r["flops"], r["l2_bytes"],
        ]
        for r in found.to_dict("records")
    }  # fmt: skip
    assert mine == plain_sums(events)
    assert {v[2] is None for v in mine.values()} == {True, False}, "a sum of which a part is unknown is unknown"
    assert found["dram_bytes"].isna().all()
    assert set(found["view"]) == {"total"}
    assert set(found["steps"]) == {4}


def test_share_of_short_launches() -> None:
    rows = schema.totals(schema.frame({
        "kind": ["operator"] * 4, "name": list("abcd"), "duration_ns": [10_000, 10_001, 1, 1], "launches": [1, 1, 1, 0],
    }, {}), 1)  # fmt: skip
    assert schema.short_share(rows) == pytest.approx(2 / 3), "what is no launch does not count"
    assert schema.short_share(rows, "duration_ns") == pytest.approx(10_001 / 20_002)
    assert schema.short_share(schema.empty()) is None


def test_the_file_keeps_every_column(tmp_path: Path) -> None:
    rows, _ = synthetic_kernels("d", "din")
    save(RunRecord(key="k", spec={}, rows=()), tmp_path)
    schema.save(rows, tmp_path / "records" / "k")
    again = schema.load([tmp_path])
    pd.testing.assert_frame_equal(again, rows)
    assert tuple(again.columns) == schema.COLUMNS


def test_a_record_that_is_not_whole_has_no_kernels(tmp_path: Path) -> None:
    schema.save(synthetic_kernels("d", "din")[0], tmp_path / "records" / "k")
    assert schema.load([tmp_path]).empty
    assert list(schema.load([]).columns) == list(schema.COLUMNS)


@pytest.mark.parametrize("damage", ["text", "column"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = synthetic_kernels("d", "din")
    save(RunRecord(key="k", spec={"model": "din"}, rows=()), tmp_path)
    path = schema.save(rows, tmp_path / "records" / "k")
    if damage == "text":
        path.write_text("no Parquet")
    else:
        rows.drop(columns="lane").to_parquet(path)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err.replace("\n", "")
    assert str(path) in said
    assert "record the run again" in said
    assert ("lacks lane" in said) == (damage == "column")
