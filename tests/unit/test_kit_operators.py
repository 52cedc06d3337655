"""Operators on a device: the committed page is that of the committed record; what needs a device says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from ctrbench.bench.kit import operators as timing
from ctrbench.bench.kit.operator_page import main, page
from ctrbench.bench.kit.record import ROOT

RECORDS = sorted((ROOT / "docs" / "records" / "operators").glob("*.json"))


def test_the_page_is_that_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert len(RECORDS) == 1, "one page, one record: give the second a page of its own"
    assert main([str(RECORDS[0].relative_to(ROOT)), "-o", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "performance" / "triton_h100.md").read_text()


def test_a_row_names_the_fastest_rival_and_what_is_missing() -> None:
    way = {"eager_ms": 3.0, "graph_ms": 2.0, "graph_over_run": [2.0, 1.9, 2.1], "reason": ""}
    slow = way | {"graph_ms": 4.0, "graph_over_run": [4.0, 3.9, 4.1]}
    none = {"eager_ms": 5.0, "graph_ms": None, "reason": "RuntimeError: it waits"}
    run = {"eager_ms": 1.5, "graph_ms": 1.0, "reason": ""}
    row = {"operator": "fm", "shape": "B1", "dtype": "bf16", "pass": "fwd", "error": "",
           "ways": {"twin": none, "slow": slow, "sum": way, "run": run}}  # fmt: skip
    late = {"operator": "fm", "shape": "B2", "dtype": "bf16", "pass": "fwd", "error": "budget: 1 s were used up"}
    device = {"catalogue": None, "name": "Some GPU", "driver": "1"}
    text = page({"device": device, "environment": {"torch": "2", "commit": "abc"}, "rows": [row, late]}, "r.json")
    assert text.startswith("# Operators on Some GPU\n")
    assert "| fm | B1 | bf16 | fwd | 5.000 / - | sum: 3.000 / 2.000 | 1.500 | 1.000 | 2.00 [1.90, 2.10] |" in text
    assert "- 1 times: RuntimeError: it waits" in text
    assert "- 1 times: budget: 1 s were used up" in text
    alone = row | {"ways": {"twin": way, "run": run}}
    text = page({"device": device, "environment": {"torch": "2", "commit": "abc"}, "rows": [alone]}, "r.json")
    assert "| 3.000 / 2.000 | - | 1.500 | 1.000 | 2.00 [1.90, 2.10] of the twin |" in text


def test_a_broken_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text('{"rows": []}')
    assert main([str(tmp_path / "r.json"), "-o", str(tmp_path / "page.md")]) == 2
    assert "r.json: KeyError: 'device'; give a record that" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


class Ticks:
    """A clock whose calls take as long as they count."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self, run: object) -> tuple[float, float]:
        before = self.now
        run()  # type: ignore[operator]
        return 0.0, self.now - before

    def call(self, way: str) -> object:
        def run() -> None:
            self.now += self.seconds[way]

        return run


def test_ways_are_timed_by_turns_and_set_against_what_models_call() -> None:
    clock = Ticks({"twin": 4e-3, "sum": 1e-5, "run": 2e-3})
    row = {"ways": {way: {"graph_ms": None} for way in clock.seconds}}
    timing.compare(row, "graph", {way: clock.call(way) for way in clock.seconds}, clock)  # type: ignore[arg-type, misc]
    assert row["ways"]["twin"]["graph_ms"] == pytest.approx(4.0)
    assert row["ways"]["sum"]["graph_ms"] == pytest.approx(0.01)
    assert row["ways"]["twin"]["graph_over_run"] == pytest.approx([2.0, 2.0, 2.0])  # type: ignore[comparison-overlap]
    assert "graph_over_run" not in row["ways"]["run"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_the_remedy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert timing.main(["--out", str(tmp_path / "r.json")]) == 2
    assert "no CUDA device is visible" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="TRITON IS NOT INSTALLED: no tiles to choose")
def test_a_chosen_tile_is_what_a_file_launches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ctrbench.bench.kit import tiles
    from ctrbench.kernels.gpu import field_linear, kernel, pair_attention

    monkeypatch.setattr(field_linear, "product_tiles", kernel.product_tiles)
    monkeypatch.setattr(pair_attention, "_tiles", pair_attention._tiles)
    tiles.choose("field_linear", (128, 64, 32, 4, 3))
    assert field_linear.product_tiles("bf16") == kernel.product_tiles("tf32")
    tiles.choose("pair_attention", (32, 2))
    found = pair_attention._tiles("fp32", 39, 8)
    assert (found["BLOCK_I"], found["BLOCK_F"], found["BLOCK_D"], found["num_warps"]) == (32, 64, 16, 2)
    if not torch.cuda.is_available():
        assert tiles.main(["time"]) == 2
        assert "needs a CUDA device" in capsys.readouterr().err
