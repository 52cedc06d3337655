"""The section on serving: every number from its row, a reason where there is none, no section without records."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctrbench.reports import pareto, serving
from ctrbench.reports import serving_states as states
from ctrbench.reports import serving_tables as tables
from ctrbench.reports.cells import Cell, tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import withheld
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import Measurement, frame
from ctrbench.reports.serving_rows import amount, in_order, usual_batch
from ctrbench.reports.tables import groups

_made = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_serving.py"))
DATA, SIZES = _made["DATA"], _made["SIZES"]
request_rows, state_rows, feature_rows = (_made[n] for n in ("request_rows", "state_rows", "feature_rows"))
serving_rows, quality_rows, base = (_made[n] for n in ("serving_rows", "quality_rows", "base"))


def context(rows: list[Measurement], bodies: dict[str, Any] | None = None) -> Context:
    tidied = tidy(frame(rows))
    return Context(tidied, bodies or {}, names_of(tidied, bodies or {}), tuple(groups(tidied)))


def row_of(table: Any, model: str, form: str, candidates: str) -> Any:
    return table[(table["Model"] == model) & (table["Form"] == form) & (table["Candidates"] == candidates)].iloc[0]


@pytest.fixture(scope="module")
def whole() -> Context:
    return context(serving_rows())


def test_percentiles_are_those_of_the_row_and_p99_needs_requests() -> None:
    many, few = (context(request_rows("din", 128, n)) for n in (2000, 500))
    found = row_of(tables.latency(many.frame, DATA, many.names), "DIN", "reuse", "128")
    assert [found[p].value for p in ("p50", "p90", "p99")] == pytest.approx([0.04612, 0.09224, 0.13836])
    assert found["p50"].n == 2000
    short = row_of(tables.latency(few.frame, DATA, few.names), "DIN", "reuse", "128")
    assert short["p50"].value == pytest.approx(0.04612)
    assert short["p99"].value is None
    assert short["p99"].reason == "p99 of 500 requests; from 1,000"


def test_no_rate_within_the_budget_has_a_reason_beside_the_p99_of_a_request_alone(whole: Context) -> None:
    found = row_of(tables.rate(whole.frame, DATA, whole.names), "OneTrans", "whole", "512")
    assert found[tables.QPS].value is None
    assert "above the budget" in found[tables.QPS].reason
    assert found[tables.ALONE99].value == pytest.approx(6.147)


@pytest.mark.parametrize(
    ("over", "word"),
    [
        (Cell(1.2, "", "measured", 1.1, 1.4), tables.WITHIN),
        (Cell(2.0, "", "measured", 1.6, 2.4), tables.ABOVE),
        (Cell(1.4, "", "measured", 1.2, 1.6), tables.OPEN),
        (Cell(1.4, "", "measured"), f"{tables.WITHIN} (no interval)"),
        (Cell(None, "", "abstained"), "—"),
    ],
)
def test_the_promise_of_flops_is_judged_by_the_interval(over: Cell, word: str) -> None:
    assert tables.promise(over) == word


def test_time_over_what_flops_predict_keeps_the_band_of_the_times(whole: Context) -> None:
    """128 candidates: FLOPs (100 + 12.8) / 128 of unshared, the time 1.2 times that, DIN's twice."""
    table = tables.reuse(whole.frame, DATA, whole.names)
    found, slow = row_of(table, "FAT", "reuse", "128"), row_of(table, "DIN", "reuse", "128")
    assert found[tables.FLOPS].value == pytest.approx(0.88125)
    assert found[tables.OVER].value == pytest.approx(1.2)
    assert (found[tables.OVER].low, found[tables.OVER].high) == pytest.approx((1.2 / 1.05, 1.2 * 1.05))
    assert (found[tables.WORD], slow[tables.WORD]) == (tables.WITHIN, tables.ABOVE)
    assert set(zip(table["Form"], table["Over form"], strict=True)) == {("reuse", "whole")}
    pairs = tables.reuse(whole.frame, "random_sequence", whole.names).set_index("Form")
    assert list(pairs["Over form"]) == ["on_the_fly"] * 2
    assert pairs[tables.OVER]["reuse"].value == pytest.approx(1.2)
    assert pairs[tables.WORD].to_dict() == {"reuse": tables.WITHIN, "cached": tables.ABOVE}


def test_flops_and_bytes_of_a_request(whole: Context) -> None:
    found = row_of(tables.work(whole.frame, DATA, whole.names), "DCN-v2", "reuse", "512")
    assert found[tables.REQUEST].value == pytest.approx(2e6 * 151.2)
    assert found[tables.USER].value == pytest.approx(2e8)
    assert found[tables.CANDIDATE].value == pytest.approx(2e6 * 151.2 / 512)
    assert found[tables.WIRE].value == 51200.0


def test_gpu_times_have_a_column_a_gpu_and_their_band(whole: Context) -> None:
    table = tables.gpu(whole.frame, DATA, whole.names)
    assert [c for c in table.columns if c in ("H100 SXM", "L4")] == ["H100 SXM", "L4"]
    cell = row_of(table, "FAT", "whole", "16")["L4"]
    assert (cell.low, cell.high) == pytest.approx((cell.value / 2, cell.value * 2))
    assert cell.origin == "modelled"


def test_states_of_serving(whole: Context) -> None:
    c = whole
    hits = states.hits(c.frame, DATA, c.names)
    assert [x.value for x in hits[states.HITS]] == [0.1, 0.5, 0.9, 0.2]
    assert list(hits[states.BUDGET]) == ["8 MB", "64 MB", "1 GB", "8 MB"]
    assert list(hits[states.USERS]) == [states.OF_DATA] * 3 + ["Zipf 1, 100 users"]
    drift = states.drift(c.frame, DATA, c.names)
    assert list(drift[states.EVENTS]) == ["1", "4", "16"]
    assert drift[states.DRIFT_AUC].iloc[2].text == "-0.0016"
    stages = states.stages(c.frame, DATA, c.names).iloc[0]
    assert stages["Scores"] == "equal within 1e-05"
    sizes = states.one_tflop(c.frame, c.names)
    assert list(sizes["Model"].unique()) == ["DCN-v2", "OneTrans"]
    assert list(sizes[sizes["Model"] == "OneTrans"]["History"]) == ["256", "1024", "4096"] * 2


@pytest.mark.parametrize(("differences", "word"), [
    ((1e-6, 1e-6), "equal within 1e-05"), ((1e-6, 1e-3), "they differ"), ((1e-6, None), "a stage is not known"),
])  # fmt: skip
def test_equal_scores_need_every_stage(differences: tuple[float | None, ...], word: str) -> None:
    assert states.equal([Cell(d, "stages_diff", "measured") for d in differences]) == word


def test_a_feature_path_with_an_unknown_step_has_no_total() -> None:
    """The recorded total of the legacy path stands; the transformer's steps are summed where all are known."""
    table = states.feature_path(context(feature_rows()).frame, DATA).set_index("Path")
    assert table[states.TOTAL]["legacy · training samples"].value == 11.0
    assert table[states.TOTAL]["transformer · training samples"].value == 5.0
    lost = table[states.TOTAL]["transformer · candidates of requests, 512 a request"]
    assert (lost.value, lost.reason) == (None, "too_few_repeats")
    assert table[states.TOTAL]["legacy · events taken in"].value == 0.5
    assert table["statistics"]["transformer · training samples"].reason == "no step of this path"


def test_scopes_are_ordered_by_their_amount() -> None:
    assert [amount(t) for t in ("64 MB", "1024", "1 GiB", "16 users", "all")] == [64e6, 1024.0, 2.0**30, 16.0, None]
    assert in_order(["1 GB", "all", "8 MB", "64 MB"]) == ["8 MB", "64 MB", "1 GB", "all"]


def test_models_are_compared_where_most_of_them_have_a_number() -> None:
    rows = [r for m in ("din", "fat") for n in SIZES for r in request_rows(m, n)]
    some = [r for r in rows if not (r.model == "fat" and r.batch == 128)]
    assert usual_batch(tidy(frame(rows))) == 128
    assert usual_batch(tidy(frame(some))) == 512  # of 16 and 512, which both have


def test_the_sentence_is_made_from_the_numbers() -> None:
    rows = [r for m in ("din", "fat") for r in request_rows(m, 128)]
    section = serving.section(context(rows))
    assert section is not None
    assert section.sentence == (
        "On movielens_1m a request of 128 candidates takes at the median 46.1 ms (DIN) to 114 ms (FAT) with the user's "
        "side once; 52.2 ms (DIN) to 129 ms (FAT) with nothing shared; 155 ms (DIN) to 385 ms (FAT) row after row. Of "
        "2 forms held against another 1 are within 1.5x of what FLOPs predict, 1 take more than 1.5x what FLOPs "
        "predict. Within the budget one process answers 4.39 (FAT) to 10.8 (DIN) requests per second."
    )


def test_without_rows_there_is_no_section_and_no_console_table() -> None:
    assert serving.section(context(quality_rows())) is None
    assert serving.console(frame(quality_rows()), {}) == []


def test_every_row_may_be_withheld() -> None:
    """Each measure with its reason in place of its number: nothing is drawn, every reason is shown."""
    gone = [replace(r, value=None, p50=None, p90=None, p99=None, ci_low=None, ci_high=None, origin="abstained",
                    status="skipped", reason=f"lost {r.metric}") for r in serving_rows()]  # fmt: skip
    section = serving.section(context(gone))
    assert section is not None
    assert section.sentence == "No latency of a request is known."
    assert not any(e.figures for e in section.exhibits)
    shown = {x.reason for e in section.exhibits for column in e.table for x in e.table[column] if isinstance(x, Cell)}
    for metric in ("serve_latency", "serve_qps", "reuse_time", "flops_request", "gpu_request_time", "bytes_user_cache",
                   "cache_hit_rate", "stream_drift", "stages_diff", "tflop_candidates", "feature_cpu"):  # fmt: skip
        assert f"lost {metric}" in shown, metric


def test_what_a_lost_process_owed_is_flagged_with_its_reason() -> None:
    """Such rows name neither form nor candidates, so no table of requests could show them."""
    owed = [withheld(base("lum"), m, "step 1 was lost", status="failed") for m in ("serve_latency", "serve_qps")]
    section = serving.section(context([*request_rows("din", 16), *owed]))
    assert section is not None
    assert section.flags == ("movielens_1m: LUM: failed, step 1 was lost (serve_latency, serve_qps)",)


def test_any_single_measure_stands_alone() -> None:
    """A run that wrote one measure only: the section shows it and does not fail."""
    rows = serving_rows()
    for metric in dict.fromkeys(r.metric for r in rows if r.phase == "serve" and not r.metric.startswith("usd")):
        section = serving.section(context([r for r in rows if r.metric == metric]))
        if metric not in ("serve_cpu", "serve_mfu_cpu", "bytes_wire"):  # columns beside others
            assert section is not None, metric


def test_served_rows_enter_no_table_of_training(whole: Context) -> None:
    assert not whole.frame[whole.frame["phase"] == "serve"]["trained"].any()
    longer = [replace(r, variant="history=1024") for r in request_rows("din", 16)]
    report = make_report(frame([*quality_rows(), *longer]), {})
    quality = next(s for s in report.sections if s.id == "quality")
    assert not any("history=1024" in str(m) for e in quality.exhibits for m in e.table["Model"])


def test_console_has_percentiles_rate_flops_and_price(whole: Context) -> None:
    console = Console(width=140, record=True)
    for table in serving.console(frame(serving_rows()), {}):
        console.print(table)
    said = console.export_text()
    line = next(x for x in said.splitlines() if "DeepFM" in x)
    for text in ("11.2/33.5", "12.3/36.8", "16.1/48.4", "40.7", "113 MFLOP", "2.65"):
        assert text in line, text
    assert "—/—" in next(x for x in said.splitlines() if "LUM" in x)


def test_fronts_of_latency_and_usd_are_drawn_at_one_number_of_candidates(whole: Context) -> None:
    table = pareto.table_of(whole.frame, DATA, whole.names).set_index("Model")
    assert table["Latency of a request"]["DeepFM"].value == pytest.approx(0.01228)
    assert table["USD / million requests, CPU only"]["DeepFM"].value == pytest.approx(2.65)
    section = pareto.section(whole)
    assert section is not None
    assert "USD" not in section.caveat.split("A front of energy")[1]


def test_names_come_out_inert() -> None:
    ugly = "<img src=x onerror=alert(1)>"
    rows = [replace(r, variant=ugly, scope=r.scope.replace("exact", ugly)) for r in
            (*request_rows("onetrans", 16), *state_rows())]  # fmt: skip
    page = render(make_report(frame([*rows, *quality_rows()]), {}))
    assert "&lt;img src=x" in page
    assert "<img src=x" not in page
