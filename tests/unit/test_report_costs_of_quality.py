"""Fronts, utilisation, scaling lines, CPU work and bytes by stage: pure functions of rows, hidden without them."""

from __future__ import annotations

import runpy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrbench.reports import byte_split, cost_stack, pareto, scaling, utilisation
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context, Section
from ctrbench.reports.filters import CPU, named
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report
from ctrbench.reports.records import Measurement, frame
from ctrbench.reports.tables import groups

synthetic_records = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_report.py"))["synthetic_records"]
DATA = "movielens_1m"
IDS = ("pareto", "utilisation", "scaling", "cost-stack")


def context(rows: list[Measurement], bodies: dict[str, Any] | None = None) -> Context:
    tidied = tidy(frame(rows))
    return Context(tidied, bodies or {}, names_of(tidied, bodies or {}), tuple(groups(tidied)))


def base(model: str, variant: str = "", **kw: Any) -> dict[str, Any]:
    family = "transformer" if model in ("fat", "onetrans") else "legacy"
    return {"run": "r", "model": model, "variant": variant, "family": family, "data": DATA, "split": "time",
            "track": "sequence", "phase": "train", "dtype": "float32", "batch": 200, **kw}  # fmt: skip


def ranker(model: str, flops: float, auc: float, latency: float = 0.01) -> list[Measurement]:
    return [
        make(base(model), "auc", auc, "measured", ci_low=auc - 0.01, ci_high=auc + 0.01, n=3),
        make(base(model, phase="infer"), "flops_fwd_per_sample", flops, "counted"),
        make(base(model, phase="infer"), "infer_latency", latency, "measured", ci_low=latency / 2, ci_high=latency * 2),
    ]


def delta(model: str, other: str, low: float, high: float, variant: str = "", metric: str = "auc_delta") -> Measurement:
    ends = {"ci_low": low, "ci_high": high}
    return make(base(model, variant), metric, (low + high) / 2, "derived", scope=f"vs:{other}", n=3, **ends)


# fronts

COARSE = st.tuples(st.integers(1, 6), st.integers(0, 6)).map(lambda p: (float(p[0]), p[1] / 10))


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(st.lists(COARSE, min_size=1, max_size=12))
def test_nobody_beats_a_front_and_a_front_beats_all_others(points: list[tuple[float, float]]) -> None:
    on = pareto.front(points)
    front = [p for p, is_on in zip(points, on, strict=True) if is_on]
    assert front
    assert not any(beats(q, p) for p in front for q in points)
    assert all(any(beats(q, p) for q in front) for p, is_on in zip(points, on, strict=True) if not is_on)
    order = sorted(set(front))
    assert all(a[1] < b[1] for a, b in pairwise(order)), "a staircase that only rises"


def test_equal_points_share_a_front_and_equal_cost_goes_to_the_better() -> None:
    assert pareto.front([(1.0, 0.7), (1.0, 0.7)]) == [True, True]
    assert pareto.front([(1.0, 0.7), (1.0, 0.8), (2.0, 0.8)]) == [False, True, False]


def test_front_and_beaten_are_two_things() -> None:
    """FAT is off the front by its mean, but its paired interval includes 0; OneTrans is surely below DIN."""
    rows = [*ranker("din", 1e5, 0.79), *ranker("fat", 2e5, 0.785), *ranker("onetrans", 3e5, 0.77),
            *ranker("composite", 4e5, 0.80), delta("fat", "din", -0.02, 0.01), delta("onetrans", "din", -0.03, -0.01),
            delta("composite", "din", 0.005, 0.015)]  # fmt: skip
    c = context(rows)
    table = pareto.table_of(c.frame, DATA, c.names)
    assert dict(zip(table["Model"], table[pareto.FRONT] != "—", strict=True)) == {
        "DIN": True, "Composite (DCN-v2 + DIN)": True, "FAT": False, "OneTrans": False}  # fmt: skip
    assert table.set_index("Model")[pareto.BEATEN].to_dict() == {
        "DIN": "—", "Composite (DCN-v2 + DIN)": "—", "FAT": "—", "OneTrans": "forward FLOPs"}  # fmt: skip


def test_a_pair_is_read_in_either_order_and_only_between_equals() -> None:
    deltas = context([delta("din", "fat", 0.01, 0.03), delta("din", "fat", 0.04, 0.06, "equal_flops")]).frame
    every = [("din", ""), ("din", "equal_flops"), ("fat", ""), ("fat", "equal_flops")]
    assert pareto.paired(deltas, ("din", ""), ("fat", ""), every).low == pytest.approx(0.01)
    assert pareto.paired(deltas, ("fat", ""), ("din", ""), every).high == pytest.approx(-0.01)
    assert pareto.paired(deltas, ("fat", "equal_flops"), ("din", "equal_flops"), every).high == pytest.approx(-0.04)
    assert pareto.paired(deltas, ("din", ""), ("fat", "equal_flops"), every).value is None
    assert pareto.paired(deltas, ("din", "equal_flops"), ("fat", ""), every).value is None


def test_every_pair_of_the_records_counts_with_its_variant() -> None:
    deltas = context([delta("din", "fat,dim=8", 0.01, 0.03, metric="auc_pair")]).frame
    every = [("din", ""), ("fat", "dim=8"), ("fat", "dim=16")]
    assert pareto.paired(deltas, ("fat", "dim=8"), ("din", ""), every).high == pytest.approx(-0.01)
    assert pareto.paired(deltas, ("fat", "dim=16"), ("din", ""), every).value is None


def test_costs_of_an_axis_are_of_one_sample_and_whole() -> None:
    mine = context([
        make(base("din", phase="infer"), "infer_latency", 0.01, "measured", ci_low=0.008, ci_high=0.014),
        make(base("din"), "cpu_core_s_per_million", 3.0, "measured", scope="data"),
    ]).frame  # fmt: skip
    latency, work = (next(a for a in pareto.AXES if a.metric == m).of(mine)
                     for m in ("infer_latency", "cpu_core_s_per_million"))  # fmt: skip
    assert (latency.value, latency.low, latency.high) == pytest.approx((5e-5, 4e-5, 7e-5))
    assert (latency.origin, latency.note) == ("derived", "batch 200")
    assert work.value is None, "half of a sum is no sum"


def test_floors_and_tuned_models_are_on_no_front() -> None:
    rows = [*ranker("din", 1e5, 0.79), *ranker("fat", 2e5, 0.80)]
    tuned = [replace(r, variant="tuned", value=0.9) for r in ranker("fat", 1e4, 0.9) if r.metric == "auc"]
    floor = [replace(r, model="lightgbm", family="floor") for r in ranker("din", 1e3, 0.95)]
    c = context([*rows, *tuned, *floor])
    assert list(pareto.table_of(c.frame, DATA, c.names)["Model"]) == ["DIN", "FAT"]


def test_sentence_of_the_fronts_is_made_from_the_numbers() -> None:
    rows = [*ranker("din", 1e5, 0.79, 0.02), *ranker("fat", 2e5, 0.80, 0.01), delta("fat", "din", 0.001, 0.02)]
    section = pareto.section(context(rows))
    assert section is not None
    assert section.sentence == (
        "On movielens_1m the front of AUC against forward FLOPs is DIN, FAT; against forward latency is FAT (by "
        "medians, orders of magnitude at this level). A paired interval puts 0 of 2 below a model of no more forward "
        "FLOPs."
    )
    turned = pareto.section(context([*ranker("din", 3e5, 0.79, 0.02), *ranker("fat", 2e5, 0.80, 0.01),
                                     delta("fat", "din", 0.001, 0.02)]))  # fmt: skip
    assert turned is not None
    assert "against forward FLOPs is FAT;" in turned.sentence
    assert "puts 1 of 2 below" in turned.sentence
    assert "USD" in section.caveat


def test_one_model_has_no_front() -> None:
    assert pareto.section(context(ranker("din", 1e5, 0.79))) is None


# utilisation


def used(mfu: float, model_flops: float, intensity: float, moved: float, **kw: Any) -> list[Measurement]:
    here = base("din", **kw)
    return [
        make(base("din"), "mfu_cpu", mfu, "derived"),
        make(base("din"), "mbu", 0.5, "derived", scope="bytes_operands"),
        make(here, "flops_train_per_sample", model_flops, "counted"),
        make(here, "ai_operands", intensity, "counted"), make(here, "bytes_operands", moved, "counted"),
    ]  # fmt: skip


def test_hfu_is_mfu_over_the_useful_share() -> None:
    """200 samples x 1 MFLOP are useful of 2 FLOP/B x 200 MB = 400 MFLOP executed: half."""
    c = context(used(0.1, 1e6, 2.0, 2e8))
    executed, share = utilisation.hfu(c.frame)
    assert (share.value, executed.value) == pytest.approx((0.5, 0.2))
    assert executed.origin == "derived"
    table = utilisation.on_cpu(c.frame, DATA, c.names)
    assert table[utilisation.MBU["bytes_operands"]].iloc[0].value == 0.5
    assert table[utilisation.MBU["bytes_compulsory"]].iloc[0].value is None


@pytest.mark.parametrize(("kw", "column"), [({"batch": 400}, "batch"), ({"dtype": "bfloat16"}, "dtype")])
def test_hfu_of_two_configurations_is_withheld(kw: dict[str, Any], column: str) -> None:
    executed, _ = utilisation.hfu(context(used(0.1, 1e6, 2.0, 2e8, **kw)).frame)
    assert executed.value is None
    assert f"another {column}" in executed.reason


def test_hfu_needs_both_and_says_which_is_lost() -> None:
    rows = used(0.1, 1e6, 2.0, 2e8)
    uncounted, _ = utilisation.hfu(context([r for r in rows if r.metric != "ai_operands"]).frame)
    lost = [withheld(base("din"), "mfu_cpu", "coverage_low: x") if r.metric == "mfu_cpu" else r for r in rows]
    untimed, _ = utilisation.hfu(context(lost).frame)
    assert (uncounted.value, untimed.value) == (None, None)
    assert "useful share" in uncounted.reason
    assert untimed.reason == "coverage_low: x"


def test_an_unstable_clock_marks_what_is_derived_from_it() -> None:
    rows = [replace(r, status="unstable", reason="clock_unstable: x") if r.metric == "mfu_cpu" else r
            for r in used(0.1, 1e6, 2.0, 2e8)]  # fmt: skip
    section = utilisation.section(context(rows))
    assert section is not None
    assert section.exhibits[0].table[utilisation.HFU].iloc[0].status == "unstable"
    assert section.flags[0].startswith("movielens_1m: 1 of 1 are unstable")
    fig = section.exhibits[0].figures[0][1]
    assert {t.name: t.marker.symbol[0] for t in fig.data}["MFU"] == "circle-open"


def test_mfu_as_run_on_a_gpu_stands_beside_its_bound() -> None:
    where = {"device": "cuda:0", "dtype": "bf16", "preset": "published:L", "data": "", "scope": "H100 SXM"}
    rows = [
        make(base("fat", **where), "mfu", 0.31, "imported"),
        make(base("fat", **where), "mfu_bound", 0.8, "derived"),
    ]
    section = utilisation.section(context(rows))
    assert section is not None
    row = section.exhibits[0].table.iloc[0]
    assert (row["GPU"], row["MFU"].text, row["MFU bound"].text) == ("H100 SXM", "31.0 %", "80.0 %")
    assert "As run on a GPU, MFU is 31.0 % (FAT)." in section.sentence


# scaling


def sizes(model: str, slope: float, count: int, seeds: int = 3, data: str = DATA) -> tuple[list[Measurement], Any]:
    """AUC on a straight line over log2 FLOPs; every seed has its own start."""
    rows, bodies = [], {}
    for i in range(count):
        variant = f"dim={8 * 2**i}"
        here = base(model, variant, data=data)
        rows.append(make({**here, "phase": "infer"}, "flops_fwd_per_sample", 1e5 * 2.0**i, "counted"))
        for seed in range(seeds):
            rows.append(make(here, "auc", 0.75 + slope * i + 0.0001 * seed, "measured", seed=seed))
            bodies[f"{model}{i}{seed}"] = {"spec": {"kind": "quality", "model": model, "variant": variant, "data": data,
                                                    "config": {"dim": 8 * 2**i}}}  # fmt: skip
    return rows, bodies


def test_line_of_planted_sizes_is_found() -> None:
    rows, bodies = sizes("fat", 0.004, 4)
    section = scaling.section(context(rows, bodies))
    assert section is not None
    points, slopes = (e.table for e in section.exhibits)
    slope = slopes[scaling.SLOPE].iloc[0]
    assert slope.value == pytest.approx(0.004)
    assert slope.low == pytest.approx(0.004)
    assert [c.value for c in points[scaling.FLOPS]] == pytest.approx([1e5, 2e5, 4e5, 8e5])
    assert [c.value for c in points[scaling.LINE]] == pytest.approx([c.value for c in points[scaling.AUC]])
    band, line, _ = section.exhibits[0].figures[0][1].data
    middle = [(a + b) / 2 for a, b in zip(band.y[:25], band.y[:24:-1], strict=True)]
    assert np.allclose(middle, line.y)
    assert min(a - b for a, b in zip(band.y[:25], band.y[:24:-1], strict=True)) > 0
    assert section.sentence == (
        "Per doubling of forward FLOPs, in AUC: FAT on movielens_1m (+0.0040 [+0.0040, +0.0040]) gains."
    )


@pytest.mark.parametrize(
    ("count", "seeds", "data"), [(2, 3, DATA), (4, 2, DATA), (4, 3, "criteo_synthetic")]
)  # fmt: skip
def test_no_line_through_two_sizes_or_two_seeds_or_labels_of_our_making(count: int, seeds: int, data: str) -> None:
    assert scaling.section(context(*sizes("fat", 0.004, count, seeds, data))) is None


# CPU work and bytes


def test_cpu_work_is_stacked_and_summed() -> None:
    rows = [make(base("din"), "cpu_core_s_per_million", v, "measured", scope=s) for s, v in
            (("data", 3.0), ("compute", 57.0))]  # fmt: skip
    section = cost_stack.section(context(rows))
    assert section is not None
    assert section.exhibits[0].table[cost_stack.SUM].iloc[0].value == 60.0
    assert [t.x[0] for t in section.exhibits[0].figures[0][1].data] == [3.0, 57.0]
    assert section.sentence == (
        "On movielens_1m a million training samples take 60.0 (DIN) CPU core-seconds, of which the data path is at "
        "most 5 %."
    )


BLOCKS = [{"module": "embedder", "bytes_own": 60.0}, {"module": "attention", "bytes_own": 30.0},
          {"module": "", "bytes_own": 10.0}]  # fmt: skip


def traced(*scopes: str) -> Context:
    rows = [make(base("din"), "split_host", 0.2, "measured", scope=s) for s in scopes]
    count = {"spec": {"kind": "count", "model": "din", "variant": "", "data": DATA, "split": "time"},
             "extra": {"by_block": BLOCKS}}  # fmt: skip
    return context([*rows, make(base("din"), "bytes_operands", 100.0, "counted")], {"count": count})


def test_bytes_of_blocks_go_to_the_stage_of_their_forward_work() -> None:
    table = byte_split.table_of(
        traced("stage:embedding/block:embedder", "stage:interaction/block:attention", "stage:backward/block:attention"),
        DATA,
    )
    row = table.iloc[0]
    assert [row[s].value for s in (*byte_split.STAGES, byte_split.REST)] == pytest.approx([0.6, 0.3, 0.0, 0.1])
    assert row[byte_split.TOTAL].value == 100.0


def test_bytes_of_a_block_that_no_trace_places_are_not_guessed() -> None:
    row = byte_split.table_of(traced("stage:embedding/block:embedder"), DATA).iloc[0]
    assert {row[s].value for s in (*byte_split.STAGES, byte_split.REST)} == {None}
    assert "attention" in row["embedding"].reason


# the page


def made(**kw: Any) -> dict[str, Section]:
    return {s.id: s for s in make_report(*synthetic_records(0, **kw)).sections}


def test_sections_come_with_their_records_and_go_with_them() -> None:
    assert set(IDS) - set(made()) == {"scaling"}
    assert not set(IDS) & set(made(groups=("trace", "published", "prepare")))
    assert "pareto" not in made(groups=("time", "count"))
    assert not {"utilisation", "cost-stack"} & set(made(groups=("quality", "count")))
    assert not set(IDS) & set(made(groups=()))


def test_every_figure_stands_on_a_table_and_is_known_to_the_filters() -> None:
    found = made()
    for name in ("pareto", "utilisation", "cost-stack"):
        for exhibit in found[name].exhibits:
            assert exhibit.data in (DATA, "criteo_synthetic")
            assert isinstance(exhibit.table, pd.DataFrame)
            assert "Model" in exhibit.table
            marked = [t for _, fig in exhibit.figures for t in fig.data if t.meta]
            assert {"model", "models"} & set().union(*(t.meta for t in marked))
    drawn = [caption for e in found["pareto"].exhibits for caption, _ in e.figures]
    known = make_report(*synthetic_records(0)).facets.hardware
    assert {named(known, c) for c in drawn if "latency" in c or "CPU work" in c} == {CPU}
    assert {named(known, c) for c in drawn if "FLOPs" in c} == {""}
