"""Rules that are arithmetic on cited figures, and the one for claims of which nothing is recorded yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctrbench.reports.cells import Cell
from ctrbench.reports.claim_evidence import (
    OPEN,
    REFUTED,
    SUPPORTED,
    Claim,
    Evidence,
    Number,
    Verdict,
    Word,
    untestable,
)

ROUNDING = 0.01
"""Datasheets round to two or three digits; a ratio closer to its limit than this says nothing."""


def _row(e: Evidence, kind: str, name: str) -> Mapping[str, Any]:
    return next((r for r in e.sheet.get(kind, ()) if r["name"] == name), {})


def _figure(of: str, value: float, metric: str, source: str) -> Number:
    return Number(of, Cell(value, metric, "cited", note=source))


def _ratio(of: str, value: float) -> Number:
    return Number(of, Cell(value, "ratio", "derived", value * (1 - ROUNDING), value * (1 + ROUNDING)))


def _side(value: float, limit: float) -> bool | None:
    """Whether a ratio reaches the limit; None within rounding."""
    return None if abs(value / limit - 1) < ROUNDING else value > limit


def _word(calls: list[bool | None]) -> Word:
    return REFUTED if False in calls else SUPPORTED if all(calls) else OPEN


def peak_growth(e: Evidence, claim: Claim) -> Verdict:
    """Peak of the new GPU over the old one's at the dtypes of the claim, and the bandwidths; like with like beside."""
    options = claim.options
    old, new = (_row(e, "gpu", options[k]) for k in ("old", "new"))
    then, now = (f"{options[k]}_tflops" for k in ("old_dtype", "new_dtype"))
    if any(key not in row for row, key in ((old, then), (new, now), (new, then), (old, "gbs"), (new, "gbs"))):
        return untestable(f"peaks and bandwidths of {options['old']} and {options['new']} in reports/cited.toml")
    peak, alike, bandwidth = new[now] / old[then], new[then] / old[then], new["gbs"] / old["gbs"]
    numbers = (
        _figure(f"{options['old']}, {options['old_dtype']}, TFLOP/s", old[then], "peak_tflops", old["source"]),
        _figure(f"{options['new']}, {options['new_dtype']}, TFLOP/s", new[now], "peak_tflops", new["source"]),
        _ratio("peak, times", peak),
        _ratio(f"peak at {options['old_dtype']} on both, times", alike),
        _ratio("bandwidth, times", bandwidth),
    )
    calls = [_side(peak, options["peak"]), abs(bandwidth / options["bandwidth"] - 1) < 2 * ROUNDING]
    said = (
        f"The peak rose {peak:.0f} times and the bandwidth {bandwidth:.1f} times; at one precision "
        f"({options['old_dtype']}) the peak rose {alike:.1f} times."
    )
    return Verdict(word=_word(calls), reason=said, numbers=numbers)


def price_fall(e: Evidence, claim: Claim) -> Verdict:
    """Price of a TFLOP/s then over now as the source prints both; at the same width of numbers beside."""
    options = claim.options
    old, new = (_row(e, "price", options[k]) for k in ("old", "new"))
    if not old or not new:
        return untestable(f"prices of a TFLOP/s of {options['old']} and {options['new']} in reports/cited.toml")
    fall = old["usd_per_tflops"] / new["usd_per_tflops"]
    per_wide = new["usd_per_tflops"] * new["tflops"] / new["tflops_wide"]
    alike = old["usd_per_tflops"] / per_wide
    numbers = (
        _figure(f"{options['old']}, USD per TFLOP/s", old["usd_per_tflops"], "", old["source"]),
        _figure(f"{options['new']}, USD per TFLOP/s", new["usd_per_tflops"], "", new["source"]),
        _ratio("price as printed, times", fall), _ratio("price at 16 bits on both, times", alike),
    )  # fmt: skip
    said = (
        f"As printed a TFLOP/s became {fall:.1f} times cheaper, across precisions ({old['dtype']} to "
        f"{new['dtype']}); at 16 bits on both, {alike:.1f} times (USD {per_wide:.1f})."
    )
    return Verdict(word=_word([_side(fall, options["times"])]), reason=said, numbers=numbers)


def value_growth(e: Evidence, claim: Claim) -> Verdict:
    """Peak per price of GPUs and of CPUs, each from then to now, within the ranges of the claim."""
    numbers, calls, missing = [], [], []
    for kind, (least, most) in claim.options["ranges"].items():
        rows = [r for r in e.sheet.get("value", ()) if r["kind"] == kind]
        if len(rows) != 2:
            missing.append(f"a cited price and peak of a {kind.upper()} then and now")
            continue
        old, new = sorted(rows, key=lambda r: r["year"])
        growth = (new["tflops"] / new["usd"]) / (old["tflops"] / old["usd"])
        numbers += [_figure(f"{r['name']}, USD", r["usd"], "", r["source"]) for r in (old, new)]
        numbers.append(_ratio(f"{kind.upper()}: peak per price, {new['name']} over {old['name']}, times", growth))
        ends = [_side(growth, least), _side(most, growth)]
        calls.append(False if False in ends else None if None in ends else True)
    if missing:
        return untestable(f"{' and '.join(missing)} ([[value]] rows in reports/cited.toml)")
    return Verdict(
        word=_word(calls),
        numbers=tuple(numbers),
        reason="; ".join(f"{n.of} {n.cell.text}" for n in numbers if n.cell.origin == "derived") + ".",
    )


def unrecorded(e: Evidence, claim: Claim) -> Verdict:
    """No measure of the catalogue holds what the claim is about, so there is nothing to read."""
    return untestable(str(claim.options["needs"]))
