"""The split of a step by stage and block, joined from a real CPU recording and from hand-made events.

Dims: B batch, I dense fields, F fields, D width
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctrbench.bench.step import Ranges, TrainStep
from ctrbench.bench.trace.columns import HostEvent
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.split import traced_steps
from ctrbench.bench.trace.time_split import COVERAGE, exclusive, open_at, self_times, split_of
from ctrbench.datasets.schema import Batch, FeatureSchema, Field, synthetic_batch
from ctrbench.legacy_baselines import deepfm

SCHEMA = FeatureSchema(
    name="tiny",
    track="tabular",
    fields=(
        *(Field(name=f"i{i}", kind="dense", role="context") for i in range(4)),
        *(Field(name=f"c{i}", kind="categorical", role="context", cardinality=500) for i in range(6)),
    ),
)
ROWS = 8192


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TinyDeepFM(nn.Module):
    """DeepFM's shape with plain torch parts."""

    phases: Mapping[str, tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6 * 500, 16)
        self.fm = nn.Bilinear(16, 16, 1)
        self.towers = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 1))})
        self.unused = nn.Linear(1, 1)
        self.phases = {"embedding": ("table",), "interaction": ("fm",), "dense": ("towers.deep", "unused")}

    def forward(self, batch: Batch) -> Tensor:
        ids_FB = batch.ids.values().view(6, -1) + 500 * torch.arange(6).unsqueeze(1)
        rows_BFD = self.table(ids_FB.t())
        second_B = self.fm(rows_BFD.sum(1), rows_BFD.mean(1)).squeeze(1)
        deep_B = self.towers["deep"](torch.cat([rows_BFD.flatten(1), batch.dense_BI], dim=1)).squeeze(1)
        return second_B + deep_B


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TinyDeepFM() if name == "tiny" else deepfm.SPEC.build(deepfm.SPEC.config(), SCHEMA)


@pytest.mark.parametrize("name", ["tiny", "deepfm"])
def test_named_stages_cover_the_step(tmp_path: Path, name: str) -> None:
    batches = [synthetic_batch(SCHEMA, ROWS, seed=i) for i in range(8)]
    out = tmp_path / "run" / "trace.json.gz"
    model = build(name)

    def factory(ranges: Ranges) -> TrainStep:
        return TrainStep(model, ranges=ranges)

    for _ in range(3):  # a neighbour may take the core between two ranges; three in a row is no accident
        split, _ = traced_steps(model, batches, factory, steps=5, warmup=3, out=out)
        if split.complete:
            break
    assert split.coverage >= COVERAGE, split.table.to_string()
    assert split.steps == 5
    shares = split.shares()
    assert sum(v for k, v in shares.items() if "/" not in k) == pytest.approx(1)
    stages = {k.removeprefix("stage:") for k in shares if "/" not in k}
    assert stages == {"data", "h2d", "embedding", "interaction", "dense", "loss", "backward", "optimizer", "other"}
    blocks = {b for names in model.phases.values() for b in names} - {"unused"}  # type: ignore[union-attr, operator]
    for block in blocks:
        assert shares[f"stage:backward/block:{block}"] > 0, block
    assert split.silent_blocks == (("unused",) if name == "tiny" else ())
    if name == "tiny":
        _check_operators(
            split.operators(), {(s, b): n for s, b, n in split.table[["stage", "block", "calls"]].values.tolist()}
        )
        _check_file(out)
        again = split_of(read_kineto(out))
        assert again.table.equals(split.table)


def _check_operators(rows: list[dict[str, object]], calls: dict[tuple[str, str], int]) -> None:
    by_key = {(row["key"], row["op"]): row for row in rows}
    assert by_key["ctrbench/dense/towers.deep", "aten::addmm"]["calls"] == 2 * 5
    assert by_key["ctrbench/backward/towers.deep", "aten::mm"]["calls"] == 4 * 5  # the input needs a gradient too
    assert ("ctrbench/backward/table", "aten::embedding_dense_backward") in by_key
    assert calls["interaction", "fm"] == calls["backward", "fm"] == 5


def _check_file(path: Path) -> None:
    """Nothing of the machine is left in it."""
    text = gzip.decompress(path.read_bytes()).decode()
    assert str(path.parent) not in text
    assert socket.gethostname() not in text
    assert json.loads(text)["traceName"] == path.name


def test_too_few_batches_and_zero_steps_are_named(tmp_path: Path) -> None:
    model = build("tiny")
    batches = [synthetic_batch(SCHEMA, 8)] * 3
    with pytest.raises(ValueError, match="batches ran out at step 3"):
        traced_steps(
            model, batches, lambda r: TrainStep(model, ranges=r), steps=5, warmup=2, out=tmp_path / "a.json.gz"
        )
    with pytest.raises(ValueError, match="steps=0"):
        traced_steps(model, batches, lambda r: TrainStep(model, ranges=r), steps=0, out=tmp_path / "a.json.gz")
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def host(name: str, start: int, end: int, thread: int = 1) -> HostEvent:
    return HostEvent(name, start, end, (1, thread), None, None)


def test_exclusive_time_counts_every_instant_once() -> None:
    ranges = [
        host("ctrbench/iter", 0, 100),
        host("ctrbench/stage:dense", 10, 50), host("ctrbench/stage:dense/block:a", 20, 30),
        host("ctrbench/stage:backward", 60, 90), host("ctrbench/stage:backward", 62, 88, 2),
        host("ctrbench/stage:backward/block:a", 70, 80, 2), host("ctrbench/stage:data", 200, 300),
    ]  # fmt: skip
    assert exclusive(ranges) == {
        "ctrbench/iter": 30, "ctrbench/stage:dense": 30, "ctrbench/stage:dense/block:a": 10,
        "ctrbench/stage:backward": 20, "ctrbench/stage:backward/block:a": 10,
    }  # fmt: skip


def test_self_time_leaves_out_what_runs_inside() -> None:
    assert self_times([host("b", 10, 20), host("a", 0, 100), host("c", 12, 15), host("d", 20, 25)]) == [7, 85, 3, 5]


def test_an_operator_belongs_to_the_range_open_when_it_ends() -> None:
    """Autograd opens `evaluate_function` before the node's hook opens the block."""
    first, second = host("first", 0, 50), host("second", 52, 90)
    found = open_at([second, first], [10, 50, 51, 60, 90, 91])
    assert [r.name if r else None for r in found] == ["first", "first", None, "second", "second", None]


def test_a_recording_without_our_ranges_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.json"
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 2, "pid": 1, "tid": 1}
    path.write_text(json.dumps({"traceEvents": [event]}))
    with pytest.raises(ValueError, match="no ctrbench/iter range"):
        split_of(read_kineto(path))
