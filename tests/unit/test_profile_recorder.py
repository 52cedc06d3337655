"""`ctrbench profile model=din --tool nvtx` for real: what NVTX emitted in another process, read back from the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.data.plain_ranges import NvtxRange, read_ranges, split_time

from ctrbench.bench.trace import inject
from ctrbench.bench.trace.names import COLORS, DOMAIN, STAGES
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.recorder import convert
from ctrbench.bench.trace.time_split import COVERAGE, split_of
from ctrbench.reports import records

WARMUP, STEPS, BATCH = 2, 6, 128
PROFILE = [
    sys.executable, "-m", "ctrbench.bench.cli", "profile", "model=din", "data=taobao_synthetic",
    "data.options.users=40", "data.options.pool_users=80", "run.threads=1", f"run.warmup={WARMUP}",
    f"run.batch={BATCH}", "run.train_rows=1024",
]  # fmt: skip
STAGES_OF_DIN = ["data", "h2d", "embedding", "interaction", "dense", "loss", "backward", "optimizer"]


@dataclass(frozen=True)
class Recorded:
    """One run: its folder, what it printed, the raw events and the ranges of our domain."""

    out: Path
    folder: Path
    said: str
    events: list[dict[str, Any]]
    ranges: list[NvtxRange]


def run(out: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*PROFILE, "--out", str(out), "--steps", str(STEPS), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=500)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        inject.compiler()
        inject.nvtx_include()
    except inject.RecorderUnavailable as why:
        pytest.skip(f"the recorder cannot be built here: {why}")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recorded(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    for attempt in range(3):  # a step of 5 ms: a busy machine may take the core between two stages
        out = tmp_path_factory.mktemp(f"profile{attempt}")
        done = run(out, "--tool", "nvtx", CTRBENCH_CACHE=str(cache))
        assert done.returncode == 0, done.stdout + done.stderr
        if records.load(out)[0]["value"].notna().all():
            break
    (folder,) = (out / "records").iterdir()
    events = [json.loads(line) for line in (folder / "nvtx.jsonl").read_text(encoding="utf-8").splitlines()]
    return Recorded(out, folder, done.stdout, events, read_ranges(folder / "nvtx.sqlite"))


def test_one_iter_a_step_and_the_step_is_the_payload(recorded: Recorded) -> None:
    iters = [r for r in recorded.ranges if r.name == "iter"]
    assert [r.payload for r in iters] == list(range(WARMUP, WARMUP + STEPS)), "the warm-up is not recorded"
    (config,) = [r for r in recorded.ranges if r.name.startswith("cfg:")]
    assert config.payload == BATCH
    assert config.name == f"cfg:{json.loads((recorded.folder / 'record.json').read_text())['extra']['cfg']}"
    for step in iters:
        inside = [r for r in recorded.ranges if step.start < r.start < (step.end or 0)]
        assert {r.payload for r in inside} == {step.payload}


def test_expected_stages_in_order_in_every_step(recorded: Recorded) -> None:
    for step in (r for r in recorded.ranges if r.name == "iter"):
        inside = [r for r in recorded.ranges if step.start < r.start < (step.end or 0)]
        assert [r.name for r in inside if r.name.startswith("stage:")] == [f"stage:{s}" for s in STAGES_OF_DIN]


def test_nesting_with_forward_and_backward_blocks(recorded: Recorded) -> None:
    """cfg > iter > stage > block, each inside the one before, on its thread."""
    found: Counter[tuple[str, ...]] = Counter()
    for _, path in paths(recorded.ranges):
        found[path] += 1
    forward = {("embedding", "embedder"), ("interaction", "attention"), ("dense", "tower")}
    blocks = forward | {("backward", b) for _, b in forward}
    config = next(r.name for r in recorded.ranges if r.name.startswith("cfg:"))
    assert {p[2:]: n for p, n in found.items() if len(p) == 4} == {
        (f"stage:{stage}", f"block:{block}"): STEPS for stage, block in blocks
    }
    assert all(p[:2] == (config, "iter")[: len(p)] for p in found)


def paths(ranges: list[NvtxRange]) -> Iterator[tuple[NvtxRange, tuple[str, ...]]]:
    """Each range with the names around it on its thread, outermost first; fails where two overlap in part."""
    stacks: dict[int, list[NvtxRange]] = defaultdict(list)
    for r in ranges:
        stack = stacks[r.thread]
        while stack and (stack[-1].end or 0) <= r.start:
            stack.pop()
        assert not stack or (r.end or 0) <= (stack[-1].end or 0), f"{r} overlaps {stack[-1]}"
        stack.append(r)
        yield r, tuple(s.name for s in stack)


def test_balance_per_thread_and_whole_lines(recorded: Recorded) -> None:
    assert all(r.end is not None for r in recorded.ranges)
    first, *middle, last = recorded.events
    assert (first["kind"], last["kind"], last["events"], last["lost"]) == ("process", "exit", len(middle), 0)
    started: dict[int, list[int]] = defaultdict(list)
    for e in middle:
        if e["kind"] == "start":
            started[e["tid"]].append(e["id"])
        elif e["kind"] == "end":
            assert started[e["tid"]].pop() == e["id"]
    assert not any(started.values())
    assert {e["kind"] for e in middle} >= {"start", "end", "register_string", "name_category", "domain_create"}


def test_nothing_in_a_foreign_domain(recorded: Recorded) -> None:
    assert {e["domain"] for e in recorded.events if "domain" in e} == {DOMAIN}


def test_names_are_registered_once_and_free_of_filter_characters(recorded: Recorded) -> None:
    registered = Counter(e["text"] for e in recorded.events if e["kind"] == "register_string")
    assert set(registered.values()) == {1}
    assert {e["form"] for e in recorded.events if e["kind"] == "start"} == {"registered"}
    assert not any(set("@,[]/*+") & set(name) for name in registered)


def test_one_category_and_one_colour_a_stage(recorded: Recorded) -> None:
    seen: dict[str | None, set[int | None]] = defaultdict(set)
    for r in recorded.ranges:
        seen[r.category].add(r.color)
        if r.name.startswith("stage:"):
            assert r.category == r.name.removeprefix("stage:")
    assert set(seen) == {None, *STAGES_OF_DIN}
    assert all(seen[stage] == {COLORS[stage]} for stage in STAGES_OF_DIN)
    assert len(set(COLORS.values())) == len(STAGES)


def test_named_stages_cover_the_step(recorded: Recorded) -> None:
    split = split_of(read_nsys(recorded.folder / "nvtx.sqlite"))
    assert split.steps == STEPS
    twin = split_time(recorded.ranges)
    assert {(r.stage, r.block): r.ns for r in twin.rows} == {
        (stage, block): ns for stage, block, ns in split.table[["stage", "block", "ns"]].values.tolist()
    }
    assert split.coverage >= COVERAGE
    assert f"named stages explain {split.coverage:.1%}" in recorded.said.replace("\n", " ")
    table, _ = records.load(recorded.out)
    stages = table[table["scope"].str.startswith("stage:") & ~table["scope"].str.contains("/")]
    assert stages["value"].sum() == pytest.approx(1)
    assert set(table["origin"]) == {"measured"}
    assert "stage:backward/block:attention" in set(table["scope"])


SYNTHETIC_STEPS = """
import os, nvtx, torch
from ctrbench.bench.registry import model_spec
from ctrbench.bench.step import TrainStep
from ctrbench.bench.trace.capture import captured_steps
from ctrbench.datasets.schema import FeatureSchema, Field, synthetic_batch

torch.set_num_threads(1)
schema = FeatureSchema(name="synthetic", track="tabular", fields=tuple(
    Field(name=f"c{i}", kind="categorical", role="context", cardinality=30) for i in range(3)))
spec = model_spec("deepfm")

def steps(**options):
    model = spec.build(spec.config(), schema)
    return captured_steps(model, [synthetic_batch(schema, 16)] * 7, lambda r: TrainStep(model, ranges=r), steps=6,
                          warmup=1, key="abc", batch=16, **options)

assert steps(every=2, operators=True) is True
os.environ["CTRBENCH_NVTX"] = "0"
nvtx.mark("off from here")
assert steps() is False
nvtx.mark("to here")
"""


@pytest.fixture(scope="module")
def synthetic(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[NvtxRange]]:
    """Six steps with operators, every second one emitted; then six with the switch off."""
    folder = tmp_path_factory.mktemp("synthetic_steps")
    lines, database = folder / "nvtx.jsonl", folder / "nvtx.sqlite"
    assert inject.record([sys.executable, "-c", SYNTHETIC_STEPS], lines) == 0
    convert(lines, database)
    return [json.loads(line) for line in lines.read_text().splitlines()], read_ranges(database)


def test_every_second_step_with_operators(synthetic: tuple[list[dict[str, Any]], list[NvtxRange]]) -> None:
    _, ranges = synthetic
    assert [r.payload for r in ranges if r.name == "iter"] == [1, 3, 5]
    around: dict[str, set[str]] = defaultdict(set)
    for r, path in paths(ranges):
        if r.name.startswith("op:"):
            around[path[-2]].add(r.name)
            stage = next((p.removeprefix("stage:") for p in path if p.startswith("stage:")), None)
            assert r.category == stage, (r.name, path)
    assert {"block:embedder", "block:tower", "stage:loss", "stage:optimizer"} <= set(around)
    assert "op:aten::binary_cross_entropy_with_logits" in around["stage:loss"]
    backward = {r.name for r, path in paths(ranges) if "stage:backward" in path and path[-1].startswith("op:")}
    assert backward, "the operators of the backward are seen too"


def test_switched_off_emits_nothing(synthetic: tuple[list[dict[str, Any]], list[NvtxRange]]) -> None:
    events, _ = synthetic
    texts = [e.get("text") for e in events if e["kind"] != "register_string"]
    assert texts[texts.index("off from here") + 1] == "to here"
