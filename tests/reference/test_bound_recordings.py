"""Recordings with known FLOPs: `mfu_bound` from their own counts is not below what was achieved; kernels a call."""

from __future__ import annotations

import gzip
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrbench.bench.counting.bound import bound_of
from ctrbench.bench.counting.launches import kernels_of
from ctrbench.bench.counting.ops import classify
from ctrbench.bench.hardware import find, peak

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
H100, A100, V100 = (
    "kineto/h100_bert_small.json.gz",
    "kineto/a100_recsys_train.json.gz",
    "kineto/v100_recsys_train_graphs.json.gz",
)
# catalogue entry and the highest peak its kernels may have used; the A100-PG509-200 has 40 GB (traces/README.md)
DEVICES = {H100: ("H100 SXM", "bf16"), A100: ("A100-40 SXM", "bf16"), V100: ("V100 SXM2", "fp16")}


def expected(name: str) -> dict[str, Any]:
    if not (TRACES / "expected.json").is_file():
        pytest.skip("../shared/traces is not beside this checkout: recordings not tested")
    return json.loads((TRACES / "expected.json").read_text())[name]


def events(name: str) -> list[dict[str, Any]]:
    expected(name)
    with gzip.open(TRACES / name) as file:
        return json.load(file)["traceEvents"]


def busy_s(name: str) -> float:
    (device,) = expected(name)["gpu_time_by_device"].values()
    return device["busy_ns"] * 1e-9


@pytest.mark.parametrize("name", DEVICES)
def test_bound_is_not_below_what_the_recording_achieved(name: str) -> None:
    """FLOPs and GEMM calls of the whole recording; GEMMs alone, so the true bound is lower still."""
    gemms = expected(name)["gemm_flops_from_shapes"].values()
    flops, calls = sum(g["flops"] for g in gemms), sum(g["calls"] for g in gemms)
    device, dtype = DEVICES[name]
    gpu = find(device)
    achieved = flops / (busy_s(name) * peak(gpu, dtype))
    bound = bound_of(flops, 0.0, calls, gpu, dtype)
    assert 0 < achieved <= bound.value
    assert expected(name)["kernels"]["launches"] > calls


def test_bound_of_bert_small_counts_attention_and_weights() -> None:
    """60 kernels: 26 GEMMs and 4 flash attentions are not fusable; 57 MB of bf16 weights exceed the L2."""
    ops = [e for e in events(H100) if e.get("cat") == "cpu_op"]
    gemms = [e["args"]["Input Dims"] for e in ops if e["name"] == "aten::addmm"]
    attention = [e["args"]["Input Dims"] for e in ops if e["name"] == "aten::_scaled_dot_product_flash_attention"]
    assert (len(gemms), len(attention)) == (26, 4)
    gemm_flops = sum(2 * prod(a) * b[1] for _, a, b, *_ in gemms)
    assert gemm_flops == 8029194240  # expected.json
    attention_flops = sum(4 * prod(q) * k[2] for q, k, *_ in attention)
    gpu = find(expected(H100)["device"])
    weights = sum(2 * prod(b) for _, _, b, *_ in gemms)
    bound = bound_of(
        gemm_flops + attention_flops, max(0.0, weights - gpu.l2_mb * 1e6), len(gemms) + len(attention), gpu, "bf16"
    )
    achieved = (gemm_flops + attention_flops) / (busy_s(H100) * peak(gpu, "bf16"))
    assert achieved <= bound.value < 0.3
    assert bound.limit == "launch"


@pytest.mark.parametrize(("name", "band"), [(H100, 0.25), (A100, 0.25)])
def test_kernels_modelled_from_operator_calls_are_inside_the_band(name: str, band: float) -> None:
    """Calls that launched something, times the table; on recordings the table was made from (section 6)."""
    trace = events(name)
    launched = {e["args"]["correlation"] for e in trace if e.get("cat") == "kernel"}
    calls = [e for e in trace if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    ops = [e for e in trace if e.get("cat") == "cpu_op" and e["name"].startswith("aten::")]
    innermost = _innermost(ops, [c for c in calls if c["args"].get("correlation") in launched])
    kernels, modelled = 0, 0.0
    for op, n in innermost.values():
        packet = getattr(torch.ops.aten, op.removeprefix("aten::"), None)
        if packet is None:
            continue
        func = getattr(packet, packet.overloads()[0])
        mean, covered = kernels_of(func, classify(func)[1], {}, [], torch.device("cuda"))
        if covered and mean:
            kernels, modelled = kernels + n, modelled + mean
    assert kernels > 0.9 * expected(name)["kernels"]["launches"] * (1.0 if name == H100 else 0.5)
    assert modelled == pytest.approx(kernels, rel=band)


def _innermost(ops: list[dict[str, Any]], calls: list[dict[str, Any]]) -> dict[int, tuple[str, int]]:
    """Operator call -> (name, kernels launched in it and in no operator inside it), by one sweep a thread."""
    threads: dict[Any, list[dict[str, Any]]] = {}
    for event in (*ops, *calls):
        threads.setdefault((event["pid"], event["tid"]), []).append(event)
    found: dict[int, tuple[str, int]] = {}
    for rows in threads.values():
        stack: list[dict[str, Any]] = []
        for event in sorted(rows, key=lambda e: (e["ts"], -e["dur"], e["cat"] != "cpu_op")):
            while stack and stack[-1]["ts"] + stack[-1]["dur"] < event["ts"] + event["dur"]:
                stack.pop()
            if event["cat"] == "cpu_op":
                stack.append(event)
            elif stack:
                found[id(stack[-1])] = (stack[-1]["name"], found.get(id(stack[-1]), ("", 0))[1] + 1)
    return found
