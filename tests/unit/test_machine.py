"""Ceilings of this machine: every figure measured small, kept with the machine's identity, measured again on demand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctrbench.bench import machine
from ctrbench.bench.cli import main
from ctrbench.bench.machine import MachineCeilings, Sizes, Spread, cache_file, identity, machine_ceilings

SMALL = Sizes(gemm_m=32, stream_values=1 << 14, table_values=1 << 14, calls=20, samples=5, seconds=0.01)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    return tmp_path / "hardware"


def test_every_figure_is_there_with_its_spread(cache: Path) -> None:
    before = torch.get_num_threads()
    found = machine_ceilings(SMALL)
    assert torch.get_num_threads() == before
    at = sorted({1, found.identity["usable_cpus"]})
    per_thread = ("gemm_fp32", "gemm_bf16", "gemm_fp64", "triad", "triad_cache", "gather_64B", "gather_256B")
    operators = ("add_", "mul", "sum", "mm", "index_select", "view")
    names = {f"{n}_t{t}" for n in per_thread for t in at} | {f"dispatch_{n}" for n in operators}
    if torch.cuda.is_available():
        names.add("cuda_launch")
    else:
        assert found.withheld["cuda_launch"].startswith("device_unknown")
    assert set(found.figures) == names
    for name, spread in found.figures.items():
        assert 0 < spread.low <= spread.median <= spread.high, name
        assert 3 <= spread.n <= 5, name
    # wrong by a factor of 1000, or in the number of bytes, no machine of the last 15 years would be here
    assert 0.001 < found.figures["gemm_fp32_t1"].median < 20_000
    assert 0.01 < found.figures["triad_t1"].median < 2000
    assert 0.001 < found.figures["gather_64B_t1"].median < 2000
    assert 0.05 < found.figures["dispatch_add_"].median < 500


def test_amounts_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances one second a run gives the work of a run itself."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    sizes = replace(SMALL, gemm_m=64, seconds=1e9, samples=3)
    figures = dict(machine._at_threads(sizes))
    assert figures["gemm_fp64"].median == pytest.approx(2 * 64**3 / 1e9)
    assert figures["triad"].median == pytest.approx(3 * (1 << 14) * 4 / 1e9)
    assert figures["gather_64B"].median == pytest.approx((1 << 14) * 4 / 1e9)
    assert figures["gather_256B"].median == pytest.approx((1 << 14) * 4 / 1e9)
    assert machine._dispatch(sizes)["dispatch_mm"].median == pytest.approx(1e6 / 20)


def test_spread_is_of_the_middle_of_the_samples() -> None:
    spread = machine._of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 1000.0], "us")
    assert (spread.median, spread.low, spread.high, spread.n) == (6.0, 2.0, 10.0, 11)
    assert spread.relative == pytest.approx(8 / 6)


def test_figures_are_kept_and_measured_again_on_demand(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def measure(here: dict[str, object], sizes: Sizes) -> MachineCeilings:
        made.append(sizes)
        spread = Spread(unit="us", median=float(len(made)), low=0.5, high=9.0, n=3)
        return MachineCeilings(identity=here, measured_on="2026-01-01", figures={"x": spread})

    monkeypatch.setattr(machine, "measure", measure)
    assert machine_ceilings(SMALL).figures["x"].median == 1
    assert machine_ceilings(SMALL) == machine_ceilings(SMALL)
    assert len(made) == 1
    assert machine_ceilings(SMALL, refresh=True).figures["x"].median == 2
    assert machine_ceilings(SMALL).figures["x"].median == 2
    assert machine_ceilings(replace(SMALL, gemm_m=33)).figures["x"].median == 3, "other sizes are other figures"
    cache_file(identity(), SMALL).write_text("{half a fi")
    assert machine_ceilings(SMALL).figures["x"].median == 4
    monkeypatch.setattr(machine, "identity", lambda: {"cpu": "another"})
    assert machine_ceilings(SMALL).figures["x"].median == 5, "another machine has its own"
    assert len(list(cache.iterdir())) == 3


def test_identity_names_what_the_figures_depend_on_and_nobody() -> None:
    here = identity()
    assert {"cpu", "cores", "memory_gb", "torch", "libraries", "cpu_capability", "llc_bytes"} <= set(here)
    assert here["libraries"]
    text = json.dumps(here)
    assert "/" not in text.replace("N/A", ""), "paths of libraries"
    assert identity() == here


@pytest.mark.parametrize("as_json", [False, True])
def test_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.setattr("ctrbench.bench.hardware_page.machine_ceilings", lambda sizes, refresh: FOUND)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["hardware", "--refresh", *(["--json"] if as_json else [])]) == 0
    shown = capsys.readouterr().out
    if as_json:
        body = json.loads(shown)
        assert body["ceilings"]["figures"]["triad_t1"]["median"] == 20.0
        assert body["catalogue"]["H100 SXM"]["peak_tflops"]["bf16"] == 989.0
        assert set(body["catalogue"]["L4"]["contradicted"]) >= {"fp32"}
        assert "EPYC 9654" in body["cpus"]
    else:
        for text in (
            "triad_t1",
            "20 GB/s",
            "withheld: device_unknown",
            "H100 SXM",
            "L40S, l2_mb: 96, but 48",
            "EPYC 7763",
        ):
            assert text in shown


FOUND = MachineCeilings(
    identity={"cpu": "synthetic"}, measured_on="2026-01-01",
    figures={"triad_t1": Spread(unit="GB/s", median=20.0, low=19.0, high=21.0, n=9)},
    withheld={"cuda_launch": "device_unknown: no CUDA device here"},
)  # fmt: skip
