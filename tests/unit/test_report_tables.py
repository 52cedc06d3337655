"""Tables against numbers worked out by hand."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from ctrbench.reports import costs, gpus, sections, step_split, tables
from ctrbench.reports.cells import Cell, pick, tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import Names, names_of
from ctrbench.reports.records import Measurement, frame

synthetic_records = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))["synthetic_records"]
NAMES = Names({}, {"din": "legacy", "composite": "legacy", "fat": "transformer", "lightgbm_history": "floor"})


def base(model: str, **kw: Any) -> dict[str, Any]:
    family = {"fat": "transformer", "lightgbm_history": "floor"}.get(model, "legacy")
    return {"run": "r", "model": model, "family": family, "data": "ml", "track": "sequence", "phase": "train"} | kw


def rows_of(*rows: Measurement) -> pd.DataFrame:
    return tidy(frame(rows))


def test_pick_takes_the_row_over_seeds_not_single_seeds() -> None:
    rows = rows_of(
        make(base("din"), "auc", 0.70, "measured", seed=0),
        make(base("din"), "auc", 0.80, "measured", seed=1),
        make(base("din"), "auc", 0.75, "measured", n=2, ci_low=0.74, ci_high=0.76),
    )
    cell = pick(rows, "auc")
    assert (cell.value, cell.low, cell.high, cell.n) == (0.75, 0.74, 0.76, 2)
    assert cell.band == "[0.7400, 0.7600]"


def test_pick_takes_the_median_over_processes_with_the_range() -> None:
    rows = rows_of(*(make(base("din"), "step_time", t, "measured") for t in (0.03, 0.01, 0.02)))
    cell = pick(rows, "step_time")
    assert (cell.value, cell.low, cell.high, cell.n) == (0.02, 0.01, 0.03, 3)
    assert cell.band == "[10.0, 30.0]"


def test_pick_says_how_many_repeats_were_lost() -> None:
    rows = rows_of(
        make(base("din"), "step_time", 0.01, "measured"), withheld(base("din"), "step_time", "died", status="failed")
    )
    assert pick(rows, "step_time").note == "1 of 2 withheld"


def test_pick_never_mixes_batches() -> None:
    rows = rows_of(*(make(base("din", batch=b), "infer_latency", t, "measured") for b, t in ((1, 0.001), (512, 0.01))))
    assert (pick(rows, "infer_latency").value, pick(rows, "infer_latency").note) == (0.01, "batch 512")


def test_a_missing_and_a_withheld_number_say_why() -> None:
    rows = rows_of(withheld(base("din"), "mfu_cpu", "coverage_low"))
    assert pick(rows, "mfu_cpu").text == "— (coverage_low)"
    assert pick(rows, "auc").text == "— (no row)"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.001, 0.003, "better"),
        (-0.003, -0.001, "worse"),
        (-0.001, 0.003, "tied"),
        (0.0, 0.003, "tied"),
        (None, None, "no interval"),
    ],
)
def test_verdict_is_the_interval_alone(low: float | None, high: float | None, said: str) -> None:
    assert tables.verdict(Cell(0.001, "auc_delta", "derived", low, high)) == said


def deltas() -> pd.DataFrame:
    return rows_of(
        make(base("composite"), "auc", 0.790, "measured"),
        make(base("din"), "auc", 0.780, "measured"),
        make(base("fat"), "auc", 0.791, "measured"),
        make(base("lightgbm_history"), "auc", 0.788, "measured"),
        make(base("fat"), "auc_delta", 0.001, "derived", scope="vs:composite", ci_low=-0.001, ci_high=0.003),
        make(base("din"), "auc_delta", -0.010, "derived", scope="vs:composite", ci_low=-0.012, ci_high=-0.008),
        make(base("din"), "auc_delta", -0.008, "derived", scope="vs:lightgbm_history", ci_low=-0.010, ci_high=-0.006),
        make(base("fat"), "auc_delta", 0.003, "derived", scope="vs:lightgbm_history", ci_low=0.001, ci_high=0.005),
    )


def test_headline_reads_differences_against_the_reference() -> None:
    table = tables.headline(deltas(), "ml", NAMES)
    assert list(table.index) == ["din", "composite", "fat", "lightgbm_history"]
    assert list(table["Paired verdict"]) == ["worse", "reference", "tied", "—"]
    column = "ΔAUC vs Composite (DCN-v2 + DIN)"
    assert table.loc["din", column].text == "-0.0100"
    assert table.loc["fat", column].band == "[-0.0010, +0.0030]"
    assert table.loc["lightgbm_history", "Step time"].text == "— (floor)"


def test_a_sequence_model_below_the_history_floor_is_flagged() -> None:
    table = tables.floors(deltas(), "ml", NAMES)
    assert table.loc["din", "Flag"] == "uses its history no better than six counts"
    assert table.loc["fat", "Flag"] == ""
    # composite - floor = .790 - .788, no paired row: said so, never given an interval
    plain = table.loc["composite", "minus LightGBM-history"]
    assert plain.value == pytest.approx(0.002)
    assert plain.note == "unpaired, no interval"
    assert plain.band == ""


def body(model: str, **spec: Any) -> dict[str, Any]:
    shared = {
        "kind": "quality",
        "model": model,
        "data": "ml",
        "split": "time",
        "fingerprint": "f",
        "history_length": 50,
        "train_rows": 1000,
        "dtype": "float32",
        "threads": 1,
        "seed": 0,
    }
    return {"spec": shared | spec}


def test_an_unequal_pair_is_flagged_and_names_what_differs() -> None:
    bodies = {
        "a": body("din"),
        "b": body("composite"),
        "c": body("fat", train_rows=2000, threads=2),
        "d": body("din", seed=1),
    }
    table = tables.pairing(bodies, NAMES)
    assert list(table["Pair"]) == ["equal", "equal", "UNEQUAL: training rows, threads"]
    assert table.loc["din", "Seeds"] == "2"
    assert set(table["Tuned"]) == {"no"}


def test_flops_per_kernel_by_hand() -> None:
    here = base("fat", preset="published:S", batch=100, data="", track="")
    rows = rows_of(
        make(here, "kernels_per_step", 50, "modelled", ci_low=40, ci_high=100),
        make(here, "flops_train_per_sample", 2e6, "counted"),
        make(here, "ai_operands", 10.0, "counted"),
        make(here | {"phase": "infer"}, "kernels_per_step", 10, "modelled"),
    )
    row = costs.launches(rows, NAMES).iloc[0]
    cell = row["FLOPs / kernel"]
    assert (cell.value, cell.low, cell.high, cell.origin) == (4e6, 2e6, 5e6, "modelled")  # 100 * 2e6 / {50, 100, 40}
    assert row["CUDA kernels / sample"].value == 0.5
    assert row["H100 SXM ridge"].text == "295"  # 989 TFLOP/s over 3.35 TB/s


def test_roof_of_the_gpu_is_the_lower_of_two_limits() -> None:
    rows = rows_of(
        *(make(base("fat", preset=f"published:{ai}", batch=1), "ai_operands", ai, "counted") for ai in (100.0, 1000.0))
    )
    table = costs.gpu_roof(rows, NAMES)
    assert sorted(c.value for c in table["Roof by operands bytes, TFLOP/s"]) == [335.0, 989.0]  # 100 * 3.35; the peak


def test_achieved_gflops_is_flops_times_throughput() -> None:
    rows = rows_of(
        make(base("fat"), "flops_train_per_sample", 2e6, "counted"), make(base("fat"), "throughput", 1e4, "measured")
    )
    cell = costs.cpu_roof(rows, NAMES).iloc[0]["Achieved GFLOP/s"]
    assert cell.value == pytest.approx(20.0)
    assert cell.origin == "derived"


def test_bound_table_keeps_phases_apart_and_shows_why_one_is_withheld() -> None:
    here = base("fat", preset="published:S", batch=64)
    rows = rows_of(
        make(here, "mfu_bound", 0.2, "derived", scope="H100 SXM"),
        make(here | {"phase": "infer"}, "mfu_bound", 0.1, "derived", scope="H100 SXM"),
        withheld(here | {"batch": 128}, "mfu_bound", "coverage_low"),
    )
    cells = list(costs.bounds(rows, "train", NAMES)["H100 SXM"])
    assert [c.text for c in cells] == ["20.0 %", "— (coverage_low)"]


def test_bounds_of_many_gpus_are_all_in_the_table_and_four_are_drawn() -> None:
    gpus = ("A10", "H100 PCIe", "H100 SXM", "L4", "T4")
    here = base("fat", preset="published:S", batch=64)
    rows = rows_of(*(make(here, "mfu_bound", 0.2, "derived", scope=gpu) for gpu in gpus))
    section = sections.bounds(Context(rows, {}, NAMES, (("sequence", "ml"),)))
    assert section is not None
    (exhibit,) = section.exhibits
    assert set(gpus) <= set(exhibit.table.columns)
    assert [caption for caption, _ in exhibit.figures] == ["H100 SXM", "L4"]
    assert "H100 SXM" in section.sentence


def test_split_lists_the_largest_blocks() -> None:
    rows = rows_of(
        make(base("fat"), "split_host", 0.6, "measured", scope="stage:dense"),
        make(base("fat"), "split_host", 0.2, "measured", scope="stage:dense/block:mlp"),
        make(base("fat"), "split_host", 0.3, "measured", scope="stage:backward/block:mlp"),
        make(base("fat"), "split_host", 0.4, "measured", scope="stage:embedding/block:embedder"),
    )
    row = step_split.by_stage(rows, "ml", NAMES).iloc[0]
    # A block is slow with its backward, which is a stage of its own.
    assert (row["dense"].value, row["Largest blocks"]) == (
        0.6, "mlp 50 % (backward 30 %), embedder 40 % (backward 0 %)"
    )  # fmt: skip
    found = step_split.section(Context(rows, {}, NAMES, (("sequence", "ml"),)))
    assert found is not None
    assert "The slowest block with its backward on ml: mlp in FAT (50 %)." in found.sentence


def test_skipped_track_is_found_and_prepare_rows_do_not_hide_it() -> None:
    rows = rows_of(
        withheld(base("din"), "auc", "no network"),
        make(base("", phase="prepare"), "bytes_raw", 1.0, "measured"),
        make(base("fat", data="criteo", track="tabular"), "auc", 0.7, "measured"),
    )
    assert tables.skipped_tracks(rows) == [("sequence", "ml", "no network")]


def test_lost_rows_are_one_line_a_reason_with_failures_first() -> None:
    rows = rows_of(
        withheld(base("din"), "gauc", "field_missing"),
        withheld(base("fat"), "auc", "boom", status="failed"),
        withheld(base("fat"), "logloss", "boom", status="failed"),
        make(base("din"), "auc", 0.7, "measured"),
    )
    table = tables.lost(rows, NAMES)
    assert list(table["Status"]) == ["failed", "skipped"]
    assert table.iloc[0]["Measures"] == "2: auc, logloss"


def test_cell_arithmetic_withholds_and_remembers_the_weakest_origin() -> None:
    counted, modelled = Cell(4.0, "", "counted"), Cell(2.0, "", "modelled")
    assert (counted.over(modelled, "ridge").value, counted.over(modelled, "ridge").origin) == (2.0, "modelled")
    gone = Cell(None, "", "abstained", reason="coverage_low")
    assert gone.over(counted, "ridge").reason == "coverage_low"
    assert counted.over(Cell(0.0, "", "counted"), "ridge").value is None


def test_console_marks_origins_and_escapes_markup() -> None:
    rows, bodies = synthetic_records(0, skip=("movielens_1m",))
    bodies["x"] = {"spec": {"model": "fat"}, "extra": {"title": "[red]FAT"}}
    out = Console(file=io.StringIO(), width=110)
    for table in tables.console_tables(rows, bodies):
        out.print(table)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "SKIPPED" in text
    assert "could not be fetched" in text
    assert "[red]FAT" in text
    assert " ~" in text
    assert " c" in text


@pytest.mark.parametrize("groups", [(), ("quality",), ("time",), ("count",), ("trace",), ("published",), ("prepare",)])
def test_every_table_survives_missing_measures(groups: tuple[str, ...]) -> None:
    rows, bodies = synthetic_records(0, groups=groups)
    tidied = tidy(rows)
    names = names_of(tidied, bodies)
    for data in ("movielens_1m", "criteo_synthetic"):
        for build in (
            tables.headline,
            tables.quality,
            tables.floors,
            costs.gain_per_flop,
            step_split.by_stage,
            step_split.by_component,
            costs.memory,
            costs.speed,
        ):
            assert isinstance(build(tidied, data, names), pd.DataFrame)
    for whole in (costs.launches, costs.cpu_roof, costs.gpu_roof, costs.storage):
        assert isinstance(whole(tidied, names), pd.DataFrame)
    assert isinstance(costs.bounds(tidied, "train", names), pd.DataFrame)
    # Two data sets, a table of quality each, and one of costs where something was timed or counted.
    expected = {("quality",): 2, ("time",): 4, ("count",): 4, ("trace",): 2}
    assert len(tables.console_tables(rows, bodies)) == expected.get(groups, 0)


def test_components_are_seen_twice_and_doubts_are_named() -> None:
    apart = {"status": "unstable", "reason": "disagree: data: 2 % and 15 %"}
    section = step_split.section(
        Context(
            rows_of(
                make(base("fat"), "split_host", 1.0, "measured", scope="stage:dense"),
                make(base("fat"), "split_component", 0.02, "measured", scope="ranges:data", **apart),
                make(base("fat"), "split_component", 0.15, "measured", scope="left_out:data", ci_low=0.1, ci_high=0.2,
                     **apart),
                make(base("fat"), "split_component", 0.8, "measured", scope="ranges:dense"),
                make(base("fat"), "split_component", 0.81, "measured", scope="left_out:dense"),
                make(base("din"), "split_component", 0.8, "measured", scope="ranges:dense", status="unstable",
                     reason="noise: wide"),
                withheld(base("composite"), "split_component", "n/a: L2 penalty"),
            ),
            {}, NAMES, (("sequence", "ml"),),
        )
    )  # fmt: skip
    assert section is not None
    assert (
        "contradicts the ranges for FAT (data); for 1 of 3 components the machine was too busy to tell."
        in section.sentence
    )
    table = section.exhibits[1].table
    assert list(table["Seen by"]) == ["ranges", "leaving out"] * 3
    assert list(table.columns)[3:] == ["data", "dense"]
    fat = table[table["Model"] == "FAT"].iloc[1]
    assert (fat["data"].value, fat["data"].low, fat["data"].status) == (0.15, 0.1, "unstable")
    assert table.loc["composite", "dense"].iloc[0].reason == "n/a: L2 penalty"


def test_a_size_that_could_not_be_counted_is_no_gpu_table() -> None:
    rows = rows_of(
        make(base("fat", preset="published:S", batch=64), "gpu_time_bound", 1e-3, "modelled", scope="H100 SXM"),
        withheld(base("din", preset="published:S", batch=64), "gpu_time_bound", "unknown_op: aten::stft"),
    )
    section = gpus.section(Context(rows, {}, NAMES, (("sequence", "ml"),)))
    assert section is not None
    assert [e.group for e in section.exhibits] == ["FAT S"]
    assert section.sentence.startswith("1 published sizes")


def test_table_of_quality_says_whom_gauc_leaves_out_and_how_far_bins_are_off() -> None:
    rows, bodies = synthetic_records(0)
    tidied = tidy(rows)
    table = tables.quality(tidied, "movielens_1m", names_of(tidied, bodies)).loc["din"]
    assert table["Users without GAUC"].value == 0.31
    assert table["Calibration by score bin"] == "0.920 to 1.100"
    no_users = tables.quality(tidied, "criteo_synthetic", names_of(tidied, bodies)).loc["deepfm"]
    assert no_users["Users without GAUC"].value is None
