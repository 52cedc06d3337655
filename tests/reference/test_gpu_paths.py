"""CUDA against what is known without it: loss curves of every model, and kernels by two profilers.

Without a device these skip; the same helpers are run on the CPU, where they must find no difference, and a planted one.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrbench.bench import registry
from ctrbench.bench.gpu_kit import run_nsys
from ctrbench.bench.kit.cases import dry_case
from ctrbench.bench.kit.curves import STEPS, TOLERANCE, difference, loss_curve
from ctrbench.bench.kit.record import PHASES
from ctrbench.bench.kit.traced import STEPS as TRACED
from ctrbench.bench.kit.traced import kernels_of, trace_figures
from ctrbench.bench.kit.worker import Job, build, traced
from ctrbench.bench.suites.synthetic_traces import KERNEL, RUNTIME, thread_id, write_nsys
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.train import seed_everything
from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.spec import ModelSpec

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false"
)
needs_nsys = pytest.mark.skipif(shutil.which("nsys") is None, reason="nsys is not on PATH")


def case(name: str, schema_of: dict[str, FeatureSchema]) -> tuple[ModelSpec, FeatureSchema]:
    """A model and the small features that it is trained on here: with a history where it can read one."""
    spec = registry.model_spec(name)
    return spec, schema_of["tabular" if spec.tracks == ("tabular",) else "sequence"]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", registry.model_names())
def test_loss_curve_on_cuda_is_that_of_the_cpu(name: str, schema_of: dict[str, FeatureSchema]) -> None:
    spec, schema = case(name, schema_of)
    cpu, cuda = loss_curve(spec, schema, "cpu"), loss_curve(spec, schema, "cuda")
    found, rounding = difference(cpu, cuda), 0.0
    if found >= TOLERANCE:  # rounding alone may do as much, where a ReLU stands on its edge
        noisy = (loss_curve(spec, schema, "cpu", noise=2.0**-bits) for bits in (24, 22, 20))
        rounding = max(difference(cpu, curve) for curve in noisy)
    assert found < max(TOLERANCE, 2 * rounding), f"CPU {cpu[-1]}, CUDA {cuda[-1]} at the last of {STEPS} steps"


@pytest.mark.gpu
@needs_cuda
@needs_nsys
@pytest.mark.parametrize("name", ["deepfm", "din", "gpt_block"])
def test_kernels_by_kineto_are_those_by_nsys(name: str, tmp_path: Path) -> None:
    job = Job(
        model=name, device="cuda:0", dtype="fp32", gpu=None, seconds=120.0, dry_run=True, parent=os.getpid(),
        out=str(tmp_path),
    )  # fmt: skip
    spec = registry.model_spec(name)
    seed_everything(0)
    by_kineto = traced(*build(spec, dry_case(spec), job), job)
    by_nsys = run_nsys(job, tmp_path, 300.0, tmp_path / "log")
    assert (by_kineto["status"], by_nsys["status"]) == ("ok", "ok"), (by_kineto["reason"], by_nsys["reason"])
    for phase in PHASES:
        assert by_kineto["phases"][phase]["kernels"] == by_nsys["phases"][phase]["kernels"], phase


# ------------------------------------------------- the same helpers, on the CPU


@pytest.mark.parametrize("name", ["deepfm", "din", "lum_step1"])
def test_the_curve_repeats_exactly_and_shows_a_planted_change(name: str, schema_of: dict[str, FeatureSchema]) -> None:
    spec, schema = case(name, schema_of)
    one = loss_curve(spec, schema, "cpu")
    assert len(one) == STEPS
    assert difference(one, loss_curve(spec, schema, "cpu")) == 0.0
    assert difference(one, loss_curve(spec, schema, "cpu", lr=1.2e-3)) > TOLERANCE, "the tolerance hides a wrong rate"
    rounding = difference(one, loss_curve(spec, schema, "cpu", noise=2.0**-24))
    assert 0 < rounding < TOLERANCE / 10, "what rounding does must be far below the tolerance"


def kernel_times(step: int) -> list[int]:
    """ns of the kernels of one synthetic step: three in training, two in inference, some longer than 10 us."""
    return [2_000, 4_000 + step, 30_000] if step < TRACED else [2_000, 12_000]


def synthetic_nsys(path: Path, lost_steps: int = 0) -> Path:
    thread = thread_id(7, 7)
    kernels: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    ranges: list[dict[str, Any]] = [
        {"eventType": 75, "text": "ctrbench", "domainId": 1, "start": 0, "globalTid": thread}
    ]
    for step in reversed(range(2 * TRACED - lost_steps)):  # rows of a file need not be in the order of time
        at = step * 1_000_000
        ranges.append(
            {"eventType": 60, "start": at, "end": at + 900_000, "text": "iter", "domainId": 1, "globalTid": thread,
             "rangeId": step, "endGlobalTid": thread}
        )  # fmt: skip
        for i, ns in enumerate(kernel_times(step)):
            call, number = at + 1_000 + i * 50_000, step * 10 + i
            calls.append(
                {"start": call, "end": call + 3_000, "globalTid": thread, "correlationId": number, "nameId": 0}
            )
            kernels.append(
                {"start": call + 5_000, "end": call + 5_000 + ns, "deviceId": 0, "streamId": 7, "correlationId": number,
                 "globalPid": thread_id(7), "shortName": 1}
            )  # fmt: skip
    tables = {
        KERNEL: kernels, RUNTIME: calls, "NVTX_EVENTS": ranges,
        "TARGET_INFO_GPU": [{"id": 0, "name": "Synthetic GPU"}],
        "TARGET_INFO_CUDA_DEVICE": [{"gpuId": 0, "cudaId": 0, "pid": 7}],
    }  # fmt: skip
    return write_nsys(path, tables, ["cudaLaunchKernel_v7000", "synthetic_kernel"])


def synthetic_kineto(path: Path) -> Path:
    events: list[dict[str, Any]] = []
    for step in range(2 * TRACED):
        at = step * 1_000
        base = {"ph": "X", "pid": 7, "tid": 7}
        events.append(base | {"cat": "user_annotation", "name": "ctrbench/iter", "ts": at, "dur": 900, "args": {}})
        for i, ns in enumerate(kernel_times(step)):
            call, number = at + 1 + i * 50, step * 10 + i
            link = {"correlation": number}
            events.append(
                base | {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": call, "dur": 3, "args": link}
            )
            events.append(
                base | {"cat": "kernel", "name": "synthetic_kernel", "pid": 0, "ts": call + 5, "dur": ns / 1e3,
                        "args": {"device": 0, "stream": 7, **link}}
            )  # fmt: skip
    body = {"deviceProperties": [{"id": 0, "name": "Synthetic GPU"}], "traceEvents": events, "hostname": "secret-box"}
    path.write_bytes(gzip.compress(json.dumps(body).encode()))
    return path


def test_two_tools_give_the_same_figures_of_the_same_steps(tmp_path: Path) -> None:
    by_nsys = kernels_of(read_nsys(synthetic_nsys(tmp_path / "a.sqlite")))
    by_kineto = kernels_of(read_kineto(synthetic_kineto(tmp_path / "a.json.gz")))
    assert by_nsys == by_kineto
    assert by_nsys["phases"]["train"]["kernels"] == {"median": 3, "low": 3, "high": 3}
    assert by_nsys["phases"]["infer"]["kernels"] == {"median": 2, "low": 2, "high": 2}
    assert by_nsys["phases"]["train"]["kernel_ns"] == {"median": 36_002, "low": 36_000, "high": 36_004}
    assert by_nsys["launches"] == 5 * TRACED
    assert by_nsys["share_le_10us"] == pytest.approx(3 / 5)


def test_a_recording_that_lacks_steps_gives_no_figure(tmp_path: Path) -> None:
    found = kernels_of(read_nsys(synthetic_nsys(tmp_path / "a.sqlite", lost_steps=1)))
    assert found == {"status": "skipped", "reason": "field_missing: 9 step ranges in the recording, 10 were run"}


FAKE_NSYS = """
import os, shutil, sys
out = sys.argv[sys.argv.index("-o") + 1]
if os.environ.get("FAKE_FAILS") == sys.argv[1]:
    print("no space left"); sys.exit(4)
if sys.argv[1] == "profile":
    open(out + ".nsys-rep", "w").close()
    assert '"part": "captured"' in sys.argv[-2]
else:
    shutil.copy(os.environ["FAKE_EXPORT"], out)
"""


@pytest.mark.parametrize("fails", ["", "profile", "export"])
def test_nsys_around_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    tool = tmp_path / "bin" / "nsys"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\n{FAKE_NSYS}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setenv("FAKE_EXPORT", str(synthetic_nsys(tmp_path / "export.sqlite")))
    monkeypatch.setenv("FAKE_FAILS", fails)
    job = Job(
        model="din", device="cuda:0", dtype="tf32", gpu=None, seconds=1.0, dry_run=False, parent=os.getpid(), out="x",
    )  # fmt: skip
    (tmp_path / "raw").mkdir()
    found = run_nsys(job, tmp_path, 60.0, tmp_path / "logs" / "din.log")
    if fails:
        assert (found["status"], found["reason"]) == ("failed", f"{fails}: no space left")
        return
    assert (found["status"], found["file"]) == ("ok", "din.sqlite.gz")
    assert found["phases"]["train"]["kernels"]["median"] == 3
    assert (tmp_path / "traces" / "din.sqlite.gz").is_file()


def test_the_kept_recording_is_scrubbed(tmp_path: Path) -> None:
    kept = tmp_path / "traces" / "din.json.gz"
    found = trace_figures(synthetic_kineto(tmp_path / "din.json.gz"), kept, "kineto")
    assert "secret-box" not in gzip.decompress(kept.read_bytes()).decode()
    assert found["phases"] == kernels_of(read_kineto(kept))["phases"]
