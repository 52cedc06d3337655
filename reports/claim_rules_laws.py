"""The rule about laws: whether 1 - AUC falls with the size of a model by a power law; on observed labels alone."""

from __future__ import annotations

from ctrbench.reports.cells import Cell
from ctrbench.reports.claim_evidence import (
    OPEN,
    REFUTED,
    SEEDS,
    SUPPORTED,
    Claim,
    Evidence,
    Number,
    Verdict,
    Word,
    listed,
    untestable,
)
from ctrbench.reports.claim_rules_scaling import interval
from ctrbench.reports.scaling_series import Series, series


def follows(e: Evidence, claim: Claim) -> Verdict:
    """Each named model's law is the power law; another law, or points that fit neither, refute it."""
    models, sizes = list(claim.options["models"]), int(claim.options["sizes"])
    logs = {data for _, data in e.logs}
    found = [
        one for one in series(e)
        if one.axis == "size" and one.metric == "auc" and one.model in models and one.data in logs
        and len(one.at_N) >= sizes
    ]  # fmt: skip
    if lost := [e.title(m) for m in models if m not in {one.model for one in found}]:
        return untestable(
            f"AUC of {listed(lost)} at {sizes} sizes or more with {SEEDS} seeds each on observed labels: "
            "`suite=scaling`"
        )
    words = [one.compared.word for one in found]
    word: Word = OPEN
    if set(words) & {"saturating", "neither"}:
        word = REFUTED
    elif set(words) == {"power"}:
        word = SUPPORTED
    numbers = tuple(_number(e, one) for one in found)
    said = "; ".join(f"{_name(e, one)}: {_SAID[one.compared.word]}" for one in found)
    return Verdict(word=word, reason=f"{said}.", numbers=numbers, caps=e.caps(one.data for one in found))


_SAID = {
    "power": "a power law; a saturating one is rejected",
    "saturating": "a saturating law; a power law is rejected",
    "undecided": "a power law and a saturating one both fit",
    "flat": "sizes differ by no more than seeds",
    "neither": "neither a power law nor a saturating one fits",
}


def _name(e: Evidence, one: Series) -> str:
    return f"{e.title(one.model)} on {one.data}"


def _number(e: Evidence, one: Series) -> Number:
    """The exponent; where no law fits, what the largest size has more than the smallest."""
    if one.compared.word in ("flat", "neither"):
        return Number(f"1 - AUC of the largest size less the smallest, {_name(e, one)}",
                      interval(one.loss_NS[-1] - one.loss_NS[0]))  # fmt: skip
    value, low, high = one.compared.power.exponent()
    cell = Cell(value, "scaling_exponent", "derived", low, high, one.loss_NS.shape[1])
    return Number(f"exponent of 1 - AUC over training FLOPs, {_name(e, one)}", cell)
