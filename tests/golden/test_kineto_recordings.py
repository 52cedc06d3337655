"""Five recordings of real GPUs against the values computed from the original files (../shared/traces)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.table import kernel_table

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
NAMES = (
    "h100_bert_small",
    "a100_recsys_train",
    "v100_recsys_train_graphs",
    "mi250_toy_train",
    "recsys_sampled_ops",
)
# Verdict and host-late share of the span: traces/README.md, section 4.
VERDICTS = {
    "h100_bert_small": ("launch-bound", 0.904),
    "a100_recsys_train": ("mixed", 0.140),
    "v100_recsys_train_graphs": ("gpu-bound", 0.001),
    "mi250_toy_train": ("launch-bound", 0.978),
    "recsys_sampled_ops": ("mixed", 0.231),
}


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[str, Recording, dict[str, Any], dict[str, Any]]:
    """(name, recording, its summary, expected)."""
    path = TRACES / "kineto" / f"{request.param}.json.gz"
    if not path.is_file():
        pytest.skip(f"the recorded traces are not beside this checkout: {path} is missing")
    expected = json.loads((TRACES / "expected.json").read_text())[f"kineto/{request.param}.json.gz"]
    start = time.perf_counter()
    recording = read_kineto(path)
    summary = recording.summary()
    assert time.perf_counter() - start < 60, "reading takes about 3 s on an idle core"
    return request.param, recording, summary, expected


Case = tuple[str, Recording, dict[str, Any], dict[str, Any]]


def test_file_facts(case: Case) -> None:
    _, _, summary, expected = case
    for field in ("device", "num_sms", "devices_listed", "distributed", "whole_microseconds", "categories", "ops"):
        assert summary[field] == expected[field], field
    assert sum(summary["categories"].values()) <= expected["events"]


def test_kernels(case: Case) -> None:
    _, _, summary, expected = case
    mine, theirs = summary["kernels"], expected["kernels"]
    for field in ("launches", "total_ns", "distinct_names", "le_10us", "min_ns", "max_ns"):
        assert mine[field] == theirs[field], field
    top = [(name[:80], count, ns) for name, count, ns in mine["top_by_time"][:3]]
    assert top == [tuple(row) for row in theirs["top3_by_time"]]
    assert summary["families"] == expected["families"]


def test_copies_and_sets(case: Case) -> None:
    _, _, summary, expected = case
    for kind in ("memcpy", "memset"):
        mine, theirs = summary[kind], expected[kind]
        for field in ("count", "without_bytes", "total_ns"):
            assert mine[field] == theirs[field], (kind, field)
        assert mine["bytes"] == (None if theirs["without_bytes"] else theirs["bytes"]), kind
    assert summary["memcpy"]["by_name"] == expected["memcpy"]["by_name"]


def test_device_time_and_idle_split(case: Case) -> None:
    _, _, summary, expected = case
    assert summary["idle_split_by_device"] == expected["idle_split_by_device"]
    assert summary["gpu_time_by_device"].keys() == expected["gpu_time_by_device"].keys()
    for device, theirs in expected["gpu_time_by_device"].items():
        mine = summary["gpu_time_by_device"][device]
        assert {k: mine[k] for k in ("ops", "busy_ns", "span_ns")} == {
            k: theirs[k] for k in ("ops", "busy_ns", "span_ns")
        }
        assert mine["idle_share"] == pytest.approx(theirs["idle_share"], abs=1e-6)


def test_links(case: Case) -> None:
    _, _, summary, expected = case
    mine, theirs = dict(summary["link"]), dict(expected["link"])
    assert mine.pop("unlinked_share") == pytest.approx(theirs.pop("unlinked_share"), abs=1e-6)
    assert mine.pop("unified_memory") == 0
    assert mine == theirs


def test_ops_and_flops(case: Case) -> None:
    _, recording, summary, expected = case
    mine, theirs = summary["kernels_by_innermost_op"], expected["kernels_by_innermost_op"]
    for field in ("from_graph_launch", "outside_any_op", "inside_an_op", "distinct_ops"):
        assert mine[field] == theirs[field], field
    assert [list(row) for row in mine["top12"]] == theirs["top12"]
    assert summary["gemm_flops_from_shapes"] == expected["gemm_flops_from_shapes"]
    assert recording.thinned == (case[0] == "recsys_sampled_ops")


def test_annotations(case: Case) -> None:
    _, _, summary, expected = case
    mine, theirs = summary["user_annotations"], expected["user_annotations"]
    assert (mine["events"], mine["distinct"]) == (theirs["events"], theirs["distinct"])
    for name, *values in theirs["top12"]:
        assert list(mine["by_name"][name].values()) == values, name


def test_verdict(case: Case) -> None:
    name, _, summary, _ = case
    (verdict,) = summary["launch_verdict"].values()
    word, late = VERDICTS[name]
    assert verdict["verdict"] == word
    assert verdict["host_late"] == pytest.approx(late, abs=6e-4)


def test_kernel_table_adds_up(case: Case) -> None:
    _, recording, summary, expected = case
    table = kernel_table(recording)
    kernels = table[table["kind"] == "kernel"]
    assert int(kernels["ns"].sum()) == expected["kernels"]["total_ns"]
    assert int(kernels["launch_api"].isna().sum()) == summary["link"]["kernels_unlinked"]
    top_op, count = expected["kernels_by_innermost_op"]["top12"][0]
    assert int((kernels["op"] == top_op).sum()) == count
