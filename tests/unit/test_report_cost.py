"""The section on money: totals, shares and break-evens by hand, no sum with a hole in it, no order within a band."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctrbench.reports import cost_extras as extras
from ctrbench.reports import cost_section, cost_stack
from ctrbench.reports import cost_tables as tables
from ctrbench.reports.cells import Cell, tidy
from ctrbench.reports.cost_words import manager
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import Measurement, frame
from ctrbench.reports.tables import groups

_made = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_serving.py"))
DATA, MODELS = _made["DATA"], _made["MODELS"]
cost_rows, quality_rows, base = (_made[n] for n in ("cost_rows", "quality_rows", "base"))
GPU = "H100 SXM"
EXTRA: dict[str, Any] = _made["COST_EXTRA"]


def context(rows: list[Measurement], extra: dict[str, Any] | None = None) -> Context:
    tidied = tidy(frame(rows))
    bodies = {"summary": {"spec": {"kind": "summary"}, "extra": {"cost": extra} if extra else {}}}
    return Context(tidied, bodies, names_of(tidied, bodies), tuple(groups(tidied)))


def priced(*models: str, **kw: Any) -> list[Measurement]:
    return [r for m in models for r in cost_rows(m, 512, **kw)]


def priced_on_gpu(accelerator: float, rest: float, *, factor: float = 1.25, model: str = "din") -> list[Measurement]:
    """Requests on a GPU with two terms."""
    here = base(model, batch=512)
    usd = {"accelerator": accelerator, "dram": rest, "total": accelerator + rest}
    return [make(here, tables.REQUESTS, v, "modelled", scope=f"reuse/{GPU}:{t}", ci_low=v / factor, ci_high=v * factor)
            for t, v in usd.items()]  # fmt: skip


def test_terms_and_total_are_those_of_the_rows() -> None:
    """Accelerator 0, features 2, CPU of the model 1, memory .25, storage .1, network .05: 3.40."""
    c = context(priced("deepfm"))
    row = tables.compared(tables.by_term(c.frame, DATA, c.names, "cpu"), 512).iloc[0]
    heads = ("Accelerator", "CPU of the model", "CPU of the features", "Memory", "Storage", "Network", tables.TOTAL)
    assert [row[h].value for h in heads] == pytest.approx([0.0, 1.0, 2.0, 0.25, 0.1, 0.05, 3.4])
    assert (row[tables.TOTAL].low, row[tables.TOTAL].high) == pytest.approx((2.72, 4.25))


def test_a_total_with_an_unknown_term_is_unknown_and_has_no_bar() -> None:
    """Even if a row claims a total: what a term withholds is never summed over."""
    rows = priced("deepfm", "din", missing="storage")
    lie = [replace(r, value=1.0, status="ok", origin="derived", reason="") if r.scope.endswith(":total") else r
           for r in rows if r.model == "din"]  # fmt: skip
    c = context([*priced("fat"), *[r for r in rows if r.model == "deepfm"], *lie])
    table = tables.compared(tables.by_term(c.frame, DATA, c.names, "cpu"), 512).set_index("Model")
    for model in ("DeepFM", "DIN"):
        assert table[tables.TOTAL][model].value is None
        assert table[tables.TOTAL][model].reason == "Storage: no price of it"
        assert table["CPU of the features"][model].value == 2.0
    section = cost_section.section(c)
    assert section is not None
    bars = section.exhibits[0].figures[0][1].data
    assert all(list(t.y) == ["FAT"] for t in bars)
    assert "Not known is the total of DeepFM and DIN (Storage: no price of it)." in section.sentence


def test_bars_of_one_form_and_one_number_of_candidates() -> None:
    rows = [r for n in (16, 128, 512) for r in cost_rows("fat", n)]
    section = cost_section.section(context(rows))
    assert section is not None
    bars = {t.name: list(t.x) for t in section.exhibits[0].figures[0][1].data}
    assert bars["CPU of the model"] == [2.5]  # 10 units of work at 128 of 512 candidates
    assert "128 candidates" in section.exhibits[0].figures[0][0]


def test_share_of_accelerators_over_the_box() -> None:
    """1 of 5, each 1.25 up or down: .8 / (.8 + 5) to 1.25 / (1.25 + 3.2); half of it at 4 times the price."""
    c = context(priced_on_gpu(1.0, 4.0))
    row = tables.shares(c.frame, DATA, c.names).iloc[0]
    share = row[tables.SHARE]
    assert (share.value, share.low, share.high) == pytest.approx((0.2, 0.8 / 5.8, 1.25 / 4.45))
    assert share.origin == "modelled"
    assert row[tables.EQUAL].value == pytest.approx(4.0)


def test_the_share_of_training_is_split_as_its_terms_are() -> None:
    """Training 2 of a request; of a million samples the accelerator is 3 of 5 - 1 stored: 1.5 of the 2 are its."""
    here, trained = base("din", batch=512), base("din", phase="train")
    usd = {"accelerator": 1.0, "training": 2.0, "total": 3.0}
    rows = [make(here, tables.REQUESTS, v, "modelled", scope=f"reuse/{GPU}:{t}") for t, v in usd.items()]
    samples = [make(trained, tables.SAMPLES, v, "modelled", scope=f"{GPU}:{t}")
               for t, v in {"accelerator": 3.0, "storage": 1.0, "host_cpu": 1.0, "total": 5.0}.items()]  # fmt: skip
    known, unknown = context([*rows, *samples]), context(rows)
    assert tables.shares(known.frame, DATA, known.names)["Accelerators"].iloc[0].value == pytest.approx(2.5)
    assert tables.shares(unknown.frame, DATA, unknown.names)["Accelerators"].iloc[0].value == pytest.approx(3.0)


def test_break_even_in_the_price_of_the_accelerator() -> None:
    """FAT on a GPU: 10 of accelerators + 2.9 of all else; CPUs cost 12.4: equal at .95 of the price."""
    c = context(priced("fat", "deepfm"))
    table = cost_section.price_lines(c, DATA, GPU).set_index("Model")
    equal = table["Equal at a price of, times"]
    assert equal["FAT"].value == pytest.approx(0.95)
    assert equal["DeepFM"].value == pytest.approx((3.4 - 2.9) / 1.0)
    section = cost_section.section(c)
    assert section is not None
    (drawn,) = (f for e in section.exhibits for caption, f in e.figures if "price of H100" in caption)
    crosses = [(t.x[0], t.y[0]) for t in drawn.data if t.name == "FAT: equal"]
    assert crosses == [pytest.approx((0.95, 12.4))]


def test_no_break_even_where_the_other_terms_alone_cost_more() -> None:
    total, part = Cell(5.0, "", "modelled"), Cell(1.0, "", "modelled")
    found = cost_section._equal(Cell(3.0, "", "derived"), total, part)
    assert (found.value, found.reason) == (None, "its other terms alone cost more than the CPUs")


def test_the_paragraph_ranks_nobody_within_a_band() -> None:
    rows = [*priced("deepfm", "dcn_v2", "onetrans"), *quality_rows()]
    said = manager(context(rows), DATA, ["cpu"])
    assert said == (
        "On movielens_1m, for a million requests of 512 candidates, each model in its best form: On CPUs alone the "
        "lowest figure is USD 3.40 [2.72, 4.25] (DeepFM); DCN-v2 (USD 4.40 [3.52, 5.50]) cannot be told from it, since "
        "the bands overlap; surely dearer than DeepFM, whatever the prices within their ranges, is OneTrans (12 "
        "times). The largest term is CPU of the features for DeepFM (59 %); CPU of the model or CPU of the features, "
        "together, for DCN-v2 (91 %); CPU of the model for OneTrans (94 %). Against DeepFM, DCN-v2 is tied in AUC at a "
        "cost that is not told apart; OneTrans ranks better (ΔAUC "
        "+0.0100 [+0.0080, +0.0120]) at 12 times the cost."
    )  # fmt: skip


def test_the_paragraph_without_any_total_says_why() -> None:
    said = manager(context(priced("deepfm", missing="dram")), DATA, ["cpu"])
    assert "no total is known" in said
    assert "Memory: no price of it" in said
    gone = [replace(r, value=None, ci_low=None, ci_high=None, origin="abstained", status="skipped", reason="no prices")
            for r in priced("deepfm")]  # fmt: skip
    assert manager(context(gone), DATA, ["cpu"]) == "On movielens_1m no cost of a request is known: no prices."


def test_a_total_without_a_band_is_told_from_nothing() -> None:
    rows = [replace(r, ci_low=None, ci_high=None) for r in priced("deepfm", "onetrans")]
    said = manager(context(rows), DATA, ["cpu"])
    assert "OneTrans (USD 42.4) cannot be told from it" in said


def test_prices_carry_their_date_and_source_and_come_out_inert() -> None:
    rows = [*priced("deepfm", "fat", "onetrans"), *quality_rows()]
    table = extras.prices(EXTRA)
    assert (table["Read on"].iloc[0], table["Source"].iloc[0]) == ("2026-11-26", "<b>a page</b>")
    assert (table["Value"].iloc[0].origin, table["Value"].iloc[0].band) == ("cited", "[0.01, 0.04]")
    bodies = {"summary": {"spec": {"kind": "summary"}, "extra": {"cost": EXTRA}}}
    page = render(make_report(frame(rows), bodies))
    assert "&lt;b&gt;a page&lt;/b&gt;" in page
    assert "<b>a page</b>" not in page


def test_what_flips_and_what_if_come_from_the_record() -> None:
    c = context(priced("deepfm", "fat", "onetrans"), EXTRA)
    pair = extras.pairs(EXTRA, DATA, c.names, ["cpu"]).iloc[0]
    assert (pair["Model"], pair["Against"], pair["Bands apart"]) == ("DeepFM", "OneTrans", "yes")
    assert pair["Flipped by"] == "utilisation at 0.3 ratio (now 0.5)"
    traffic = extras.what_if(EXTRA, DATA, c.names, "qps", ["cpu", GPU])
    assert list(traffic["Deployment"]) == ["cpu", GPU]
    assert [x.value for x in traffic.iloc[1][["10", "100", "1,000"]]] == [60.0, 15.0, 10.5]
    lost = extras.what_if(EXTRA, DATA, c.names, "replicas", ["cpu"])["2"].iloc[0]
    assert (lost.value, lost.reason) == (None, "no price of ram")
    assert list(extras.what_if(EXTRA, DATA, c.names, "history", ["cpu"])["Model"]) == ["OneTrans"]
    even = extras.break_even(EXTRA, DATA, c.names, ["cpu", GPU]).iloc[0]
    assert (even["Equal at"].value, even["Cheaper below"], even["Cheaper above"]) == (100.0, "cpu", GPU)


def test_the_crossing_in_traffic_lies_on_the_line() -> None:
    section = cost_section.section(context(priced("fat", "din"), EXTRA))
    assert section is not None
    (drawn,) = (f for e in section.exhibits for caption, f in e.figures if "against traffic" in caption)
    (cross,) = (t for t in drawn.data if t.name == "FAT: equal")
    assert (cross.x[0], cross.y[0]) == pytest.approx((100.0, 10.0))
    titles = {e.title for e in section.exhibits}
    assert {"Prices", "Assumptions", "USD of a TFLOP/s for an hour", "What flips the order of two models"} <= titles


def test_without_prices_there_is_no_section_and_others_say_so() -> None:
    assert cost_section.section(context(quality_rows())) is None
    here = base("din", phase="train")
    work = [make(here, "cpu_core_s_per_million", v, "measured", scope=s) for s, v in (("data", 3.0), ("compute", 57.0))]
    without, with_ = cost_stack.section(context(work)), cost_stack.section(context([*work, *priced("din")]))
    assert without is not None
    assert with_ is not None
    assert "withheld" in without.caveat
    assert "withheld" not in with_.caveat


def test_pairs_of_forms_on_random_requests_are_offered_at_no_price() -> None:
    longer = [replace(r, variant="history=1024", data="random_sequence") for r in priced("onetrans")]
    assert cost_section.section(context(longer)) is None
    section = cost_section.section(context([*longer, *priced("fat")]))
    assert section is not None
    assert "random_sequence" not in section.sentence
