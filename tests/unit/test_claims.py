"""Claims on trial: every verdict that a rule can give, none without its records, none from the wrong ones."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctrbench.reports import claims
from ctrbench.reports.cells import Cell, tidy
from ctrbench.reports.claim_evidence import (
    LEVELS,
    OPEN,
    RATINGS,
    REFUTED,
    SUPPORTED,
    UNTESTABLE,
    WORDS,
    Claim,
    Number,
    Verdict,
    minus,
)
from ctrbench.reports.claim_rules_quality import difference
from ctrbench.reports.claim_rules_scaling import holm
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import frame

DATA = Path(__file__).parents[1] / "data"
_cases = runpy.run_path(str(DATA / "claim_cases.py"))
cases, Case, ran, traced, trained, kernels_of = (
    _cases[n] for n in ("cases", "Case", "ran", "traced", "trained", "kernels_of")
)
synthetic_records = runpy.run_path(str(DATA / "synthetic_report.py"))["synthetic_records"]
ALL = {c.id: c for c in claims.claims()}
CASES = {name: cases(claim) for name, claim in ALL.items()}
NEVER = {"hold": SUPPORTED, "fall": REFUTED, "open": OPEN}
QUALITY = {"auc_above", "fields_control", "both_parts", "option_costs", "joint", "weights_agree", "grows",
           "module_costs", "fades", "follows"}  # fmt: skip
NOTHING = Case(sheet={})


def judged(claim: Claim, case: Any) -> Verdict:
    return claims.judge(claim, case.evidence())


@pytest.mark.parametrize(("name", "word"), [(n, w) for n in ALL for w in WORDS])
def test_every_verdict_that_a_rule_can_give(name: str, word: str) -> None:
    claim = ALL[name]
    if word == UNTESTABLE:
        found = judged(claim, NOTHING)
        assert found.word == UNTESTABLE
        assert found.reason.startswith("Missing: ")
        assert (found.confidence, found.numbers) == ("none", ())
        return
    case = CASES[claim.id].get(word)
    if case is None:
        (key,) = (k for k, w in NEVER.items() if w == word)
        assert claim.cannot[key]  # the file says why
        return
    found = judged(claim, case)
    assert found.word == word, found.reason
    assert found.reason
    assert found.numbers
    assert all(n.cell.value is not None and n.cell.origin in n.text for n in found.numbers)
    assert (found.confidence == "undecided") == (word == OPEN)
    if word != OPEN:
        assert found.confidence.split(":")[0] in LEVELS[1:]


def test_a_verdict_that_the_file_excludes_has_no_case() -> None:
    for claim in ALL.values():
        assert set(claim.cannot) <= set(NEVER)
        assert {NEVER[k] for k in claim.cannot} == set(WORDS[:3]) - set(CASES[claim.id]), claim.id


def test_every_claim_has_a_rule_and_a_case_and_every_rule_a_claim() -> None:
    assert {c.rule for c in ALL.values()} == set(claims.RULES) == set(_cases["BUILDERS"])
    assert len(ALL) == len(claims.claims())
    assert {f"S{i}" for i in range(1, 23)} <= set(ALL)
    for paper in ("FAT", "OneTrans", "LUM", "HSTU", "RankMixer"):
        assert any(name.startswith(paper) for name in ALL), paper


def test_no_verdict_is_typed_in_the_file() -> None:
    text = (Path(claims.__file__).parent / "claims.toml").read_text().lower()
    assert not re.search(r"\b(supported|refuted|inconclusive|not testable|verdict\s*=)", text)


@pytest.mark.parametrize("name", [n for n, c in ALL.items() if c.rule in QUALITY])
@pytest.mark.parametrize("word", [SUPPORTED, REFUTED])
def test_generated_labels_decide_no_claim_about_quality(name: str, word: str) -> None:
    case = CASES[name][word]
    assert judged(ALL[name], case.on("taobao_synthetic")).word == UNTESTABLE
    assert judged(ALL[name], case.on("random_sequence")).word == UNTESTABLE


@pytest.mark.parametrize("name", [n for n, c in ALL.items() if c.rule in QUALITY])
def test_ratings_lower_the_confidence(name: str) -> None:
    case = CASES[name][SUPPORTED]
    assert RATINGS in judged(ALL[name], case).caps
    assert judged(ALL[name], case).confidence.startswith("low: ")
    if "data" not in ALL[name].options:
        assert RATINGS not in judged(ALL[name], case.on("a_log")).caps


@pytest.mark.parametrize("name", ["S1", "S2", "S3", "S8", "S20", "RankMixer-mfu", "OneTrans-mfu"])
def test_a_cpu_decides_nothing_about_gpus(name: str) -> None:
    case = CASES[name][SUPPORTED]
    used = [r for r in case.rows if r.metric == "mfu"] or [
        traced("dcn_v2", "mfu", 0.9, origin="imported", scope="H100 SXM")
    ]
    on_cpu = Case(tuple(replace(r, device="cpu") for r in used))
    as_cpu = Case(tuple(replace(r, metric="mfu_cpu", device="cpu") for r in used))
    assert judged(ALL[name], on_cpu).word == judged(ALL[name], as_cpu).word == UNTESTABLE


def test_a_bound_can_exclude_and_never_shows_a_use() -> None:
    s1, s3 = ALL["S1"], ALL["S3"]
    assert judged(s1, CASES[s1.id][OPEN]).word == OPEN  # a bound of 100 % is no use of 10 %
    high = tuple(replace(r, value=0.99) for r in CASES[s3.id][REFUTED].rows)
    assert judged(s3, Case(high)).word == OPEN
    said = judged(s1, CASES[s1.id][SUPPORTED])
    assert said.confidence == "good: an upper bound from counts and datasheet peaks"
    assert "puts 4 of 4 traced points" in said.reason


def test_the_best_batch_decides_a_bound() -> None:
    s3 = ALL["S3"]
    rows = tuple(replace(r, value=0.9) if r.batch == 1024 else r for r in CASES[s3.id][REFUTED].rows)
    assert judged(s3, Case(rows)).word == OPEN


def test_an_interval_across_the_limit_is_open() -> None:
    s8 = ALL["S8"]
    (row, *_) = CASES[s8.id][SUPPORTED].rows
    assert judged(s8, Case((replace(row, ci_low=0.29, ci_high=0.4),))).word == OPEN
    assert judged(s8, Case((replace(row, ci_low=0.31, ci_high=0.4),))).word == SUPPORTED


def test_the_ratio_needs_one_gpu_and_one_precision() -> None:
    s2 = ALL["S2"]
    rows = CASES[s2.id][SUPPORTED].rows
    assert judged(s2, Case((replace(rows[0], dtype="fp8"), *rows[1:]))).word == OPEN
    assert judged(s2, Case((rows[0], *(replace(r, value=0.1) for r in rows[1:])))).word == REFUTED
    wide = tuple(replace(r, ci_low=0.9 * r.value, ci_high=1.2 * r.value) for r in rows)
    assert judged(s2, Case(wide)).word == OPEN


def test_long_kernels_refute_whatever_their_number() -> None:
    s4 = ALL["S4"]
    rows, bodies = kernels_of("dcn_v2", 200_000)
    found = judged(s4, Case(CASES[s4.id][OPEN].rows, bodies, rows))
    assert found.word == REFUTED
    assert "Launches of at most 10 µs: 0 %" in found.reason


def test_kernels_of_a_transformer_say_nothing_of_legacy() -> None:
    rows, bodies = kernels_of("fat", 5_000)
    fat = (traced("fat", "kernels_per_step", 4000.0, origin="modelled"),)
    assert judged(ALL["S4"], Case(fat, bodies, rows)).word == UNTESTABLE


def test_fewer_kernels_at_a_lower_auc_are_no_like_for_like() -> None:
    s17 = ALL["S17"]
    case = CASES[s17.id][SUPPORTED]
    rows = tuple(
        replace(r, value=-0.02, ci_low=-0.03, ci_high=-0.01) if r.metric == "auc_delta" else r for r in case.rows
    )
    found = judged(s17, Case(rows))
    assert found.word == OPEN
    assert "not rankers of the same AUC" in found.reason


def test_defaults_against_defaults_are_no_verdict() -> None:
    claim = ALL["OneTrans-auc"]
    rows = tuple(replace(r, variant="") for r in CASES[claim.id][SUPPORTED].rows)
    found = judged(claim, Case(rows))
    assert found.word == OPEN
    assert "no order is a verdict" in found.reason
    both = judged(claim, Case((*rows, *CASES[claim.id][REFUTED].rows)))
    assert both.word == REFUTED  # the tuned pair wins over the defaults
    assert "both tuned, below 0" in both.reason


def test_data_sets_that_disagree_are_open() -> None:
    claim = ALL["OneTrans-auc"]
    up, down = CASES[claim.id][SUPPORTED], CASES[claim.id][REFUTED].on("a_log")
    assert judged(claim, Case((*up.rows, *down.rows))).word == OPEN


@pytest.mark.parametrize("name", ["OneTrans-auc", "OneTrans-mixed", "S21", "HSTU-SASRec"])
def test_two_seeds_are_too_few(name: str) -> None:
    case = CASES[name][SUPPORTED]
    assert judged(ALL[name], replace(case, rows=tuple(replace(r, n=2) for r in case.rows))).word == UNTESTABLE


def test_models_paired_with_a_third_get_the_widest_interval() -> None:
    case = Case((ran("onetrans", "", "auc_delta", 0.01, 0.002, scope="vs:composite"),
                 ran("din", "", "auc_delta", 0.004, 0.001, scope="vs:composite")))  # fmt: skip
    found = difference(case.evidence(), "movielens_1m", "onetrans", "", "din")
    assert (found.value, found.low, found.high) == pytest.approx((0.006, 0.003, 0.009))
    # Where the two were paired themselves that is asked, whichever way round it is stored.
    own = Case((*case.rows, ran("din", "", "auc_pair", -0.006, 0.0005, scope="vs:onetrans")))
    found = difference(own.evidence(), "movielens_1m", "onetrans", "", "din")
    assert (found.value, found.low, found.high) == pytest.approx((0.006, 0.0055, 0.0065))
    a, b = Cell(1.0, "auc", "measured"), Cell(0.5, "auc", "measured", 0.4, 0.6)
    assert (minus(a, b, "auc_delta").value, minus(a, b, "auc_delta").low) == (0.5, None)


def test_a_control_that_ranks_worse_proves_nothing_where_fat_fails() -> None:
    s18 = ALL["S18"]
    rows = tuple(replace(r, value=-0.02, ci_low=-0.03, ci_high=-0.01) if r.scope == "vs:lightgbm_history" else r
                 for r in CASES[s18.id][SUPPORTED].rows)  # fmt: skip
    found = judged(s18, Case(rows))
    assert found.word == OPEN
    assert "no place where it works" in found.reason


def test_as_good_within_the_margin_refutes() -> None:
    s18 = ALL["S18"]
    rows = tuple(replace(r, value=0.0, ci_low=-0.0004, ci_high=0.0004) if r.scope == "vs:composite" else r
                 for r in CASES[s18.id][OPEN].rows)  # fmt: skip
    assert judged(s18, Case(rows)).word == REFUTED


def test_variants_that_differ_in_more_than_size_are_no_sizes() -> None:
    claim = ALL["FAT-law"]
    case = CASES[claim.id][SUPPORTED]
    odd = {k: {**b, "spec": {**b["spec"], "config": {**b["spec"]["config"], "pairs": i % 2 == 0}}}
           for i, (k, b) in enumerate(case.bodies.items())}  # fmt: skip
    assert judged(claim, replace(case, bodies=odd)).word == UNTESTABLE


def test_a_legacy_gain_that_grows_refutes() -> None:
    s6 = ALL["S6"]
    case = CASES[s6.id][SUPPORTED]
    rows, bodies = _cases["sizes_of"]("din", (0.001, 0.002, 0.004))
    assert judged(s6, replace(case, rows=(*case.rows, *rows), bodies={**case.bodies, **bodies})).word == REFUTED


def test_holm_stops_at_the_first_that_holds() -> None:
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert holm([]) == []


def test_confidence_is_that_of_the_weakest_number() -> None:
    counted = Number("a", Cell(1.0, "x", "counted"))
    sure = Number("b", Cell(1.0, "auc_delta", "derived", 0.5, 1.5))
    shaky = Number("c", Cell(1.0, "mfu", "measured", 0.5, 1.5, status="unstable"))
    said = Number("d", Cell(1.0, "mfu", "cited"))

    def confidence(*numbers: Number, caps: tuple[str, ...] = ()) -> str:
        return Verdict(word=SUPPORTED, reason="", numbers=numbers, caps=caps).confidence

    assert confidence(sure) == "high: derived with an interval"
    assert confidence(sure, counted) == "good: counted"
    assert confidence(sure, shaky) == "low: an unstable number"
    assert confidence(sure, said) == "low: arithmetic on cited figures"
    assert confidence(sure, replace(said, beside=True)) == "high: derived with an interval"
    assert confidence(sure, caps=(RATINGS,)) == f"low: derived with an interval; {RATINGS}"


def test_the_sentence_counts_the_verdicts() -> None:
    rows, bodies = synthetic_records(0)
    plain = tidy(rows)
    section = claims.section(Context(plain, bodies, names_of(plain, bodies), ()))
    table = section.exhibits[0].table
    assert section.sentence.startswith(f"Of {len(ALL)} claims ")
    for word, count in table["Verdict"].value_counts().items():
        assert f"{count} {word}" in section.sentence
    assert list(table["Id"]) == list(ALL)
    published = next(e for e in section.exhibits if e.title.startswith("Published MFU")).table
    assert {c.origin for c in published["Published MFU"]} == {"cited"}
    assert {c.origin for c in published["Our bound"]} <= {"derived", "abstained"}


def test_it_stands_after_the_summary_even_without_evidence() -> None:
    row = make({"run": "r", "model": "din", "phase": "train", "data": "d", "track": "sequence"}, "auc", 0.6, "measured")
    ids = [s.id for s in make_report(frame([row]), {}).sections]
    assert ids[:2] == ["summary", "claims"]


UGLY = "<img src=x onerror=alert(1)>{{7*7}}\u202e\"'|"


def test_names_in_a_verdict_come_out_inert() -> None:
    rows = [ran("lum", UGLY, "joint_gain", 0.0, 0.0005, scope=s) for s in ("auc", "recall")]
    bodies = trained("lum", UGLY, frozen=False, objective="joint")
    page = render(make_report(frame(rows), bodies))
    assert "LUM · &lt;img src=x" in page
    assert "<img src=x" not in page
    assert "{{7*7}}" in page


def test_a_row_without_a_key_of_a_claim_is_refused() -> None:
    with pytest.raises(TypeError, match="claim"):
        Claim(id="x")  # type: ignore[call-arg]


def test_no_row_is_read_that_was_withheld() -> None:
    case = CASES["S1"][SUPPORTED]
    rows = [replace(r, value=None, origin="abstained", status="skipped", reason="coverage_low") for r in case.rows]
    assert judged(ALL["S1"], Case(tuple(rows))).word == UNTESTABLE


def test_a_size_served_with_sharing_decides_for_itself() -> None:
    """Unshared, OneTrans seems to need 100 candidates; served with sharing its record says 1,500, or 375."""
    s9 = ALL["S9"]
    unshared = traced("onetrans", "flops_fwd_per_sample", 1e10, origin="counted", phase="infer")
    assert judged(s9, Case((unshared,))).word == OPEN
    far, near = (traced("onetrans", "tflop_candidates", v, origin="counted", phase="serve", scope=f"reuse:{h}")
                 for v, h in ((1500.0, 1024), (375.0, 4096)))  # fmt: skip
    assert judged(s9, Case((unshared, far))).word == REFUTED
    found = judged(s9, Case((unshared, far, near)))
    assert found.word == SUPPORTED
    assert "375 candidates of OneTrans x" in found.reason
    assert found.numbers[0].cell.note == "history 4096"
    whole = replace(near, scope="whole:4096")  # more FLOPs by sharing nothing mobilise nothing
    assert judged(s9, Case((unshared, far, whole))).word == REFUTED


def test_cost_by_class_without_time_is_open_however_small_the_money() -> None:
    s10 = ALL["S10"]
    rows = CASES["S10"][SUPPORTED].rows
    found = judged(s10, Case(tuple(r for r in rows if r.metric != "feature_cpu")))
    assert found.word == OPEN
    assert "Time by class is not known" in found.reason
    assert judged(s10, CASES["S10"][SUPPORTED]).confidence.startswith("low: ")


@pytest.mark.parametrize("usd", [None, 60.0])
def test_cost_by_class_is_not_refuted_by_small_tables_alone(usd: float | None) -> None:
    """Accelerators take 5 of 6 USD; with large tables they are 5 of 60, or nobody priced large tables."""
    refuted = CASES["S10"][REFUTED]
    what_if = [{**w, "usd": usd} for w in refuted.bodies["cost"]["extra"]["cost"]["what_if"]]
    bodies = {"cost": {"spec": {"kind": "cost"}, "extra": {"cost": {"what_if": what_if}}}}
    money_alone = tuple(r for r in refuted.rows if r.metric == "usd_per_million_requests")
    assert judged(ALL["S10"], replace(refuted, rows=money_alone)).word == REFUTED
    assert judged(ALL["S10"], replace(refuted, rows=money_alone, bodies=bodies)).word == OPEN


def test_cost_by_class_is_read_of_the_gpu_that_serves_cheapest() -> None:
    """A dearer GPU that is idle most of the time says nothing of a model which a cheaper one serves."""
    s10 = ALL["S10"]
    cheap, dear = CASES["S10"][SUPPORTED].rows, CASES["S10"][REFUTED].rows
    other = tuple(replace(r, scope=r.scope.replace("H100 SXM", "L4")) for r in dear if r.metric.startswith("usd"))
    assert judged(s10, Case((*cheap, *other))).word == SUPPORTED
    transformer = tuple(replace(r, model="fat", family="transformer") if r.model else r for r in dear)
    assert judged(s10, Case(transformer)).word == UNTESTABLE


def test_a_total_with_a_hole_is_no_evidence_of_cost() -> None:
    rows = [replace(r, value=None, ci_low=None, ci_high=None, origin="abstained", status="skipped", reason="no price")
            if r.scope.endswith(":dram") else r for r in CASES["S10"][SUPPORTED].rows]  # fmt: skip
    assert judged(ALL["S10"], Case(tuple(rows))).word == UNTESTABLE


def test_one_model_that_shares_a_cache_and_one_that_does_not_leave_it_open() -> None:
    s14 = ALL["S14"]
    good = CASES["S14"][SUPPORTED].rows
    bad = tuple(replace(r, model="hstu") for r in CASES["S14"][REFUTED].rows)
    found = judged(s14, Case((*good, *bad)))
    assert found.word == OPEN
    assert "HSTU" in found.reason
    nothing = tuple(replace(r, value=0.0) if r.metric == "stages_saved" else r for r in good)
    assert judged(s14, Case(nothing)).word == REFUTED
    assert judged(s14, Case(tuple(replace(r, dtype="bfloat16") for r in good))).word == OPEN


def test_served_flops_stand_beside_the_launches_of_fat() -> None:
    s17 = ALL["S17"]
    rows = [_cases["served"]("fat", "flops_request", v, s, origin="counted")
            for s, v in (("reuse", 1e9), ("on_the_fly", 3e9))]  # fmt: skip
    found = judged(s17, Case((*CASES["S17"][SUPPORTED].rows, *rows)))
    assert found.word == SUPPORTED
    assert "128 candidates, its weights written once: 1.00 GFLOP." in found.reason
    assert [n.beside for n in found.numbers if n.of.startswith("FLOPs of a request")] == [True, True]
