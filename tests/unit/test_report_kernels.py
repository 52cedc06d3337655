"""Sections of launches and of GPUs: sums that agree, reasons of what is withheld, names that cannot break a page."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ctrbench.reports import gpus, kernels
from ctrbench.reports import kernel_rows as schema
from ctrbench.reports.exhibits import Context, Section
from ctrbench.reports.kernel_figures import DRAWN_LAUNCHES, lanes, short, timeline, treemap
from ctrbench.reports.markdown import build_markdown
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import frame

DATA = Path(__file__).parents[1] / "data"
synthetic_records = runpy.run_path(str(DATA / "synthetic_report.py"))["synthetic_records"]
_synthetic = runpy.run_path(str(DATA / "synthetic_kernels.py"))
synthetic_kernels, counted_body, UGLY = (_synthetic[n] for n in ("synthetic_kernels", "counted_body", "UGLY"))
ML = "movielens_1m"


def context(
    *, groups: tuple[str, ...] = ("time", "count", "trace"), **kw: Any
) -> tuple[pd.DataFrame, dict[str, Any], pd.DataFrame]:
    """(frame, bodies, kernels) of one traced model beside the synthetic records."""
    rows, bodies = synthetic_records(0, groups=groups)
    launches, body = synthetic_kernels(ML, "composite", **kw)
    bodies |= {f"{ML}-composite-trace": body, f"{ML}-composite-count": counted_body(ML, "composite")}
    return rows, bodies, launches


def section_of(rows: pd.DataFrame, bodies: dict[str, Any], launches: pd.DataFrame) -> Section:
    report = make_report(rows, bodies, launches)
    return next(s for s in report.sections if s.id == "kernels")


def recording_of(rows: pd.DataFrame, bodies: dict[str, Any], launches: pd.DataFrame) -> kernels.Recording:
    (found,) = kernels.recordings(Context(rows, bodies, names_of(rows, bodies), (), launches))
    return found


def test_no_launches_no_section() -> None:
    rows, bodies, _ = context()
    assert "kernels" not in {s.id for s in make_report(rows, bodies).sections}
    assert "kernels" not in {s.id for s in make_report(rows, bodies, schema.empty()).sections}


def test_the_overview_counts_what_the_rows_hold() -> None:
    rows, bodies, launches = context()
    section = section_of(rows, bodies, launches)
    row = section.exhibits[0].table.iloc[0]
    work = launches[(launches["view"] == "total") & (launches["kind"] == "operator")]
    assert row["Launches / step"].value == float(work["launches"].sum()) / 4 == 12.0
    single = launches[(launches["view"] == "step") & (launches["kind"] == "operator")]
    assert len(single) == 12
    short_ones = work[work["bin_ns"] <= 10_000]
    assert row["Launches of at most 10 µs"].value == pytest.approx(float(short_ones["launches"].sum()) / 48)
    assert row["Launches of at most 10 µs"].text in section.sentence
    assert row["Recorded on"] == "this CPU (torch.profiler)"
    assert "Note" not in section.exhibits[0].table


def test_ranges_alone_are_a_timeline_and_reasons() -> None:
    rows, bodies, launches = context()
    bodies[f"{ML}-composite-trace"]["extra"]["kernels"]["withheld"] = {"launches": "neither kernels nor operators"}
    section = section_of(rows, bodies, launches[launches["kind"] == "range"])
    assert section.sentence == "In 1 recorded configurations no launch is recorded, ranges alone."
    row = section.exhibits[0].table.iloc[0]
    assert row["Launches / step"].reason == row["Launches of at most 10 µs"].reason == "neither kernels nor operators"
    assert row["Note"] == "no launches: neither kernels nor operators"
    assert {e.title for e in section.exhibits} == {"Recordings", "Timeline", "Roofline by block"}


def test_parts_of_the_treemap_add_up_to_the_step() -> None:
    found = recording_of(*context())
    parts = kernels.leaves(found)
    assert sum(ns for _, ns, _, _ in parts) == pytest.approx(_synthetic["STEP_NS"], abs=len(parts))
    assert {p[-1] for p, *_ in parts} >= {"aten::mm", "between operators"}
    fig = treemap([(p, ns, s) for p, ns, _, s in parts], "Composite")
    trace = fig.data[0]
    value = dict(zip(trace.ids, trace.values, strict=True))
    for at in trace.ids:
        inside = [value[i] for i, p in zip(trace.ids, trace.parents, strict=True) if p == at]
        assert not inside or sum(inside) == value[at], "Plotly draws nothing where parts exceed their whole"


def test_small_names_are_summed_and_counted() -> None:
    rows, bodies, launches = context()
    tiny = schema.frame({
        "run": f"{ML}-composite-trace", "model": "composite", "data": ML, "split": "time", "view": "total",
        "kind": "operator", "device": "cpu", "stage": "dense", "block": "tower", "family": "copy",
        "name": [f"tiny{i}" for i in range(7)], "duration_ns": 100, "bin_ns": 100, "launches": 4, "steps": 4,
        "origin": "measured", "variant": "",
    })  # fmt: skip
    found = recording_of(rows, bodies, pd.concat([launches, tiny], ignore_index=True))
    (part,) = [p for p in kernels.leaves(found) if p[0][:3] == ("dense", "tower", "copy")]
    assert part[0][-1] == "7 smaller names"
    assert part[1:3] == (175, 28)


def test_shares_of_the_sizes_sum_to_one() -> None:
    table = kernels.sizes(recording_of(*context()))
    for column in ("Share of launches", "Share of time"):
        assert sum(c.value for c in table[column]) == pytest.approx(1)
    assert "10 µs" in set(table["At most"])


def test_blocks_of_a_cpu_lie_under_its_measured_ceilings() -> None:
    rows, bodies, launches = context()
    roof = next(e for e in section_of(rows, bodies, launches).exhibits if e.title == "Roofline by block")
    table = roof.table.set_index("Block")
    assert list(table.index) == ["tower", "cross"], "a block without FLOPs has no point"
    step = float(rows[(rows["model"] == "composite") & (rows["metric"] == "step_time")]["value"].iloc[0])
    assert table.loc["tower", "Time / step"].value == pytest.approx(step / 2), "forward and backward ranges"
    assert table.loc["tower", "Achieved FLOP/s"].value == pytest.approx(4e8 / (step / 2))
    assert table.loc["tower", "Achieved FLOP/s"].origin == "derived"
    assert table.loc["tower", "Intensity"].value == pytest.approx(8)
    assert "aten::" in table.loc["tower", "Largest"] or "gemm" in table.loc["tower", "Largest"]
    lines = [t for t in roof.figures[0][1].data if t.mode == "lines"]
    peak = float(rows[(rows["model"] == "composite") & (rows["metric"] == "ceiling_gemm")]["value"].iloc[0])
    assert max(lines[0].y) == pytest.approx(peak * 1e9)


def test_blocks_of_a_device_are_counted_work_over_recorded_time() -> None:
    rows, bodies, launches = context(device="Tesla T4")
    facts = bodies[f"{ML}-composite-trace"]["extra"]["kernels"]
    facts["roofs"] = [
        {"name": "fp32", "unit": "FLOP/s", "value": 8.1e12, "origin": "cited", "level": ""},
        {"name": "DRAM", "unit": "B/s", "value": 3.2e11, "origin": "cited", "level": "dram"},
    ]
    roof = next(e for e in section_of(rows, bodies, launches).exhibits if e.title == "Roofline by block")
    table = roof.table.set_index("Block")
    assert list(table.index) == ["tower", "cross"]
    found = recording_of(rows, bodies, launches)
    mine = found.launches[found.launches["block"] == "tower"]
    spent = float(mine["duration_ns"].sum()) / 4 * 1e-9
    assert table.loc["tower", "Time / step"].value == pytest.approx(spent), "forward and backward, one of four steps"
    assert table.loc["tower", "Time / step"].origin == "imported"
    assert table.loc["tower", "Achieved FLOP/s"].value == pytest.approx(4e8 / spent)
    assert table.loc["tower", "Intensity"].origin == "counted"
    assert [t.name for t in roof.figures[0][1].data if t.mode == "lines"] == ["fp32 (cited), DRAM (cited)"]
    assert "not read from the device" in roof.note


def test_work_that_the_record_itself_carries_comes_first() -> None:
    rows, bodies, launches = context(device="Tesla T4")
    block = {"module": "cross", "calls": 1, "flops": 7e9, "bytes_own": 1e9, "bytes_half": 5e8, "kernels": 1.0}
    bodies[f"{ML}-composite-trace"]["extra"]["counted"] = {"withheld": "", "by_block": [block]}
    roof = next(e for e in section_of(rows, bodies, launches).exhibits if e.title == "Roofline by block")
    assert roof.table["FLOPs / step"].iloc[0].value == 7e9
    assert len(roof.table) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no count", "no counting process"),
        ("uncounted", "uncounted_op: mine::fused x1"),
        ("no time", "no step time of the untraced process"),
        ("no split", "coverage_low: the named stages explain 0.900"),
        ("gpu", "the recording names no block"),
    ],
)
def test_a_roofline_that_is_not_known_is_withheld_with_the_reason(change: str, reason: str) -> None:
    groups = ("count", "trace") if change == "no time" else ("time", "count", "trace")
    rows, bodies, launches = context(groups=groups, device="Tesla T4" if change == "gpu" else "cpu")
    if change == "no count":
        del bodies[f"{ML}-composite-count"]
    if change == "uncounted":
        bodies[f"{ML}-composite-count"]["extra"]["withheld"] = reason
    if change == "gpu":
        bodies[f"{ML}-composite-trace"]["extra"]["kernels"]["withheld"] = {"blocks": reason}
    if change == "no split":
        base = {"run": "x", "model": "composite", "family": "legacy", "data": ML, "track": "sequence", "split": "time",
                "phase": "train"}  # fmt: skip
        rows = rows[~((rows["metric"] == "split_host") & (rows["model"] == "composite"))]
        rows = pd.concat([rows, frame([withheld(base, "split_host", reason)])], ignore_index=True)
    made = [e for e in section_of(rows, bodies, launches).exhibits if e.title.startswith("Roofline")]
    assert [e.title for e in made] == ["Roofline by block: withheld"]
    assert not made[0].figures
    assert reason in made[0].table["Reason"].iloc[0]


def test_kernels_have_lanes_of_their_own() -> None:
    _, _, launches = context(device="Tesla T4")
    step = launches[launches["view"] == "step"]
    assert [lane.name for lane in lanes(step)] == ["blocks", "device 0, stream 7"]
    assert [lane.name for lane in lanes(context()[2][lambda k: k["view"] == "step"])] == ["blocks", "operators"]
    many = pd.concat([step[step["kind"] == "kernel"]] * 200, ignore_index=True)
    assert sum(len(lane.rows) for lane in lanes(many)) == DRAWN_LAUNCHES
    assert timeline(step.iloc[:0]) is None


def test_names_of_others_cannot_break_the_page(tmp_path: Path) -> None:
    rows, bodies, launches = context()
    evil = "</script><img src=x onerror=alert(1)> %{x}"
    launches = launches.replace({"aten::mm": evil, "tower": "<b>tower</b>"})
    bodies[f"{ML}-composite-trace"]["extra"]["kernels"]["device"] = "<i>cpu</i>"
    report = make_report(rows, bodies, launches)
    page = render(report)
    own = page.split('<script type="application/json"')[0]
    assert "<img" not in own
    assert "<i>cpu" not in own
    assert "<b>tower" not in own
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    for name, drawn in figures.items():
        body = json.dumps(drawn)
        assert "<img" not in body, name
        assert "%{x}" not in json.dumps([t.get("hovertemplate", "") for t in drawn["data"] if t["type"] == "treemap"])
    text = build_markdown(rows, bodies, tmp_path / "r.md", ["kernels"], launches).read_text()
    assert "Composite (DCN-v2 + DIN) on movielens_1m" in text


def test_a_name_of_a_page_is_cut() -> None:
    assert len(short(UGLY)) == 90
    assert short("aten::mm") == "aten::mm"


def test_groups_are_folded_and_neighbours_stay_together() -> None:
    rows, bodies, launches = context()
    page = render(make_report(rows, bodies, launches))
    part = page[page.index('<section id="kernels">') :].split("</section>")[0]
    assert part.count('<details class="group"') == 1
    group = part.split('<details class="group"')[1]
    assert group.count('class="plot"') == 4
    assert part.count("<details") == part.count("</details>")


# ----------------------------------------------------------------------- GPUs


def published(metric: str, value: float | None, gpu: str, batch: int = 4096, **kw: Any) -> Any:
    base = {"run": "p", "model": "fat", "preset": "published:d1", "family": "transformer", "device": "meta",
            "dtype": kw.pop("dtype", "bf16"), "batch": batch, "phase": "train", "scope": gpu}  # fmt: skip
    if value is None:
        return withheld(base, metric, "coverage_low: too little")
    return make(base, metric, value, "modelled", **kw)


def gpu_section(rows: list[Any], costliest: list[dict[str, Any]] | None = None) -> Section | None:
    body = {"spec": {"kind": "published", "model": "fat"}, "extra": {"costliest": costliest or []}}
    found = make_report(frame(rows), {"p": body}).sections
    return next((s for s in found if s.id == "gpus"), None)


def test_gpus_stand_side_by_side_at_the_largest_batch() -> None:
    rows = [published("gpu_time_bound", 1e-3, "H100 SXM", batch=256)]
    for gpu, least in (("L4", 5e-3), ("H100 SXM", 1e-3), ("V100 SXM2", 3e-3)):
        rows += [published("gpu_time_bound", least, gpu, dtype="fp32" if gpu == "V100 SXM2" else "bf16"),
                 published("mfu_bound", 0.5, gpu)]  # fmt: skip
    rows += [
        published("gpu_time_modelled", 8e-3, "V100 SXM2", ci_low=4e-3, ci_high=16e-3),
        published("gpu_time_modelled", None, "H100 SXM"),
    ]
    worst = {"preset": "published:d1", "batch": 4096, "phase": "train", "gpu": "V100 SXM2", "block": "layers.0",
             "share": 0.6, "term": "launches"}  # fmt: skip
    section = gpu_section(rows, [worst, {**worst, "batch": 256, "block": "wrong"}])
    assert section is not None
    (made,) = section.exhibits
    table = made.table.set_index("GPU")
    assert made.title == "Training step, batch 4,096"
    assert list(table.index) == ["V100 SXM2", "H100 SXM", "L4"], "those with a time first"
    assert table.loc["V100 SXM2", gpus.TIME].band == "[4.00, 16.0]"
    assert table.loc["V100 SXM2", "Dtype"] == "bf16, times fp32"
    assert tuple(table.loc["V100 SXM2", ["Costliest block", "Mostly"]]) == ("layers.0 60 %", "launches")
    assert table.loc["H100 SXM", gpus.TIME].reason == "coverage_low: too little"
    assert table.loc["L4", gpus.TIME].reason == gpus.NO_TIME
    assert tuple(table.loc["L4", ["Dtype", "Costliest block"]]) == ("bf16", "—")
    assert "mostly to launches, not to work, on some GPU for FAT d1" in section.sentence
    assert "On H100 SXM the bound of such a step is 1.00 ms (FAT d1)" in section.sentence


def test_without_a_projection_there_is_no_comparison_of_gpus() -> None:
    assert gpu_section([published("mfu_bound", 0.5, "L4")]) is None
