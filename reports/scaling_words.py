"""What several sizes say of the law of their loss, in a word: a law is named only where its rival is rejected.

Dims: N sizes, S seeds, D draws
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ctrbench.reports.scaling_laws import DRAWS, LEVEL, POWER, SATURATING, Curve, Floats, Name, curve, cv_squares, drawn

Word = Literal["power", "saturating", "undecided", "flat", "neither"]
NAMED = 0.02
"""p-value of the rival below which a law is named. Draws around a fit are a little narrower than the truth's: at a
nominal 5 of 100 a saturating truth was called a power law 8 times (falling within the first two of five sizes)."""
FAR = 0.01
"""p-value of the lack of fit below which a law does not describe its own points."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which law predicts sizes that it has not seen."""

    word: Word
    power: Curve
    saturating: Curve
    p_if_saturating: float
    """Share of curves of the fitted saturating law on which the power law predicts at least that much better."""
    p_if_power: float
    """Share of curves of the fitted power law on which the saturating law predicts at least that much better."""


def compare(compute_N: Floats, loss_NS: Floats, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Names a law where the other one, were it true, would hardly have looked like this (Cox 1962, by simulation).

    The statistic is the ratio of the two cross-validation errors; its distribution under either law is that of curves
    drawn from that law's fit. `flat`: the sizes differ by no more than the seeds. `neither`: the points lie too far
    from both curves, as where loss rises with size. `undecided`: both laws would look like this.

    Args:
        compute_N: of each size, any unit.
        loss_NS: of each size and seed.
        draws: simulated curves of each law.
        seed: of the draws.
    """
    compute_N, loss_NS = np.asarray(compute_N, np.float64), np.asarray(loss_NS, np.float64)
    sizes, seeds = loss_NS.shape
    curves = {law.name: curve(law, compute_N, loss_NS, draws, seed) for law in (POWER, SATURATING)}
    weight_N, mean_N = np.full(sizes, float(seeds)), loss_NS.mean(1)
    own = float(_lead(compute_N, mean_N[None], weight_N)[0])
    p = {}
    for number, (name, found) in enumerate(curves.items()):
        shown, error = found.fit.at(compute_N)[0], found.seed_sd / np.sqrt(seeds)
        drawn_DN = drawn(shown, error, found.freedom, draws, np.random.default_rng((seed, number)))
        lead_D = _lead(compute_N, drawn_DN, weight_N)
        beyond_D = (lead_D >= own) if name == "saturating" else (lead_D <= own)
        p[name] = float((1 + beyond_D.sum()) / (1 + draws))
    word = _word(curves, p, _flat(loss_NS))
    return Comparison(word, curves["power"], curves["saturating"], p["saturating"], p["power"])


def _word(curves: Mapping[Name, Curve], p: Mapping[Name, float], flat: float) -> Word:
    """From the p-values of each law, and that of no difference at all."""
    if flat >= LEVEL:
        return "flat"
    fits = {name: found.lack >= FAR for name, found in curves.items()}
    if not any(fits.values()):
        return "neither"
    if p["saturating"] < NAMED and p["power"] >= LEVEL and fits["power"]:
        return "power"
    if p["power"] < NAMED and p["saturating"] >= LEVEL and fits["saturating"]:
        return "saturating"
    return "undecided"


def _flat(loss_NS: Floats) -> float:
    """p-value of one-way analysis of variance over sizes; 0 or 1 where the seeds do not differ at all."""
    from scipy.stats import f as fisher

    sizes, seeds = loss_NS.shape
    mean_N = loss_NS.mean(1)
    between = float(seeds * ((mean_N - mean_N.mean()) ** 2).sum() / (sizes - 1))
    within = float(((loss_NS - mean_N[:, None]) ** 2).sum() / (sizes * (seeds - 1)))
    return float(fisher.sf(between / within, sizes - 1, sizes * (seeds - 1))) if within > 0 else float(between == 0)


def _lead(compute_N: Floats, loss_DN: Floats, weight_N: Floats) -> Floats:
    """log of (saturating law's cross-validation error / the power law's) of each draw: above 0 the latter is better."""
    errors = [cv_squares(law, compute_N, loss_DN, weight_N) for law in (SATURATING, POWER)]
    return np.asarray(np.log(np.maximum(errors[0], 1e-300)) - np.log(np.maximum(errors[1], 1e-300)))
