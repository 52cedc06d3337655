"""A verdict never outlives its records: whatever is deleted, what is left decides, and without it nothing is said."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.reports import claims, kernel_rows
from ctrbench.reports.claim_evidence import UNTESTABLE, WORDS

_cases = runpy.run_path(str(Path(__file__).parents[1] / "data" / "claim_cases.py"))
cases = _cases["cases"]
CASES = {c.id: cases(c) for c in claims.claims()}
DECIDED = [(c, w) for c in claims.claims() for w in CASES[c.id]]


@pytest.mark.parametrize(("claim", "word"), DECIDED, ids=[f"{c.id}-{w}" for c, w in DECIDED])
def test_without_the_rows_that_a_rule_needs_it_is_not_testable(claim: claims.Claim, word: str) -> None:
    """One kind of evidence at a time goes: what the verdict rests on takes the verdict with it."""
    case = CASES[claim.id][word]
    assert claims.judge(claim, case.evidence()).word == word
    gone = replace(case, rows=(), bodies={}, kernels=kernel_rows.empty(), sheet={})
    assert claims.judge(claim, gone.evidence()).word == UNTESTABLE
    if case.rows:
        less = replace(case, rows=(), kernels=kernel_rows.empty())
        assert claims.judge(claim, less.evidence()).word == UNTESTABLE
    elif case.bodies:
        assert claims.judge(claim, replace(case, bodies={}).evidence()).word == UNTESTABLE
    else:
        assert claims.judge(claim, replace(case, sheet={}).evidence()).word == UNTESTABLE


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_part_of_the_records_gives_a_verdict_of_that_part(data: st.DataObject) -> None:
    """Rows deleted at random: no error, and every number of the verdict is one of what is left."""
    claim, word = data.draw(st.sampled_from(DECIDED))
    case = CASES[claim.id][word]
    rows = tuple(r for r in case.rows if data.draw(st.booleans()))
    found = claims.judge(claim, replace(case, rows=rows).evidence())
    assert found.word in WORDS
    assert (found.numbers == ()) == (found.word == UNTESTABLE)
    left = {float(r.value) for r in rows if r.value is not None}
    direct = {"mfu", "mfu_bound", "kernels_per_step", "ai_operands", "flops_fwd_per_sample", "option_delta"}
    for number in found.numbers:
        if number.cell.metric in direct and number.of.startswith(
            ("MFU of", "MFU bound", "kernels", "FLOP/B", "forward")
        ):
            assert number.cell.value in left
