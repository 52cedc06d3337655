"""`ctrbench trace --table`: the rows of every file, whatever its format; all files synthetic."""

from __future__ import annotations

import runpy
from pathlib import Path

import polars as pl
import pytest
from tests.data.synthetic_ncu import counters, nvtx_cell, raw_form

from ctrbench.bench.cli import main

_nsys = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_nsys.py"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    _nsys["write_nsys"](tmp_path / "a.sqlite")
    (tmp_path / "b.csv").write_text(raw_form([counters()], cc="9.0", ranges=[(nvtx_cell("step", "attention"), "")]))
    return [str(tmp_path / "a.sqlite"), str(tmp_path / "b.csv")]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_of_all_files_in_one_table(files: list[str], tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"table{suffix}"
    assert main(["trace", *files, "--table", str(out)]) == 0
    found = pl.read_parquet(out) if suffix == ".parquet" else pl.read_csv(out)
    assert found["file"].to_list() == [files[0]] * 3 + [files[1]]
    assert found["kind"].to_list() == ["kernel", "kernel", "memcpy", None]
    assert found["name"].to_list()[0] == "gemm_kernel"
    assert None not in found["name"].to_list()
    assert found["ns"].to_list() == [100, 150, 100, None]
    assert found["launch_api"].to_list()[:2] == ["cudaLaunchKernel"] * 2
    assert found["path"].to_list()[0] == "ctrbench/stage:embedding"
    assert found["nvtx"].to_list() == [None, None, None, "step > attention"]
    assert found["dram_bytes"].to_list() == [None, None, None, 1.5e6]


def test_a_damaged_file_leaves_the_rows_of_the_others(files: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "c.json"
    broken.write_text('{"traceEvents": [')
    assert main(["trace", *files, str(broken), "--table", str(tmp_path / "t.parquet")]) == 2
    assert len(pl.read_parquet(tmp_path / "t.parquet")) == 4
    assert main(["trace", str(broken), "--table", str(tmp_path / "none.parquet")]) == 2
    assert not (tmp_path / "none.parquet").exists()


def test_a_table_of_no_known_kind_is_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *files, "--table", str(tmp_path / "t.xlsx")]) == 2
    assert "ends in .parquet or .csv" in capsys.readouterr().err
