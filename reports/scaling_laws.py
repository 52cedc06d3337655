"""Laws of loss against compute: a power law with a floor, and one that saturates; fitted, banded and told apart.

    power        L(C) = a + b * C^-c          (Kaplan et al. 2020 with a floor; Hoffmann et al. 2022, equation 2)
    saturating   L(C) = a + b * exp(-C / c)

Of AUC the same with L = 1 - AUC. Given c both are straight lines in (a, b), so every fit is closed form on a grid of c:
the least squares over all c are found, not a local one, and thousands of draws are one matrix product. b >= 0: loss
does not rise with compute. Which law it is: `scaling_words`.

Dims: N sizes, S seeds, D draws, G places of the grid, M places to predict at
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Name = Literal["power", "saturating"]
LEVEL = 0.05
GRID = 200
DRAWS = 400
LEAST_SIZES = 4
"""Sizes: three parameters and one left to be wrong about."""


@dataclass(frozen=True, slots=True)
class Law:
    """A family of curves."""

    name: Name
    shape: Callable[[Floats, Floats], Floats]
    """(compute_N over the smallest, c_G) -> curve_GN without a and b."""
    places: Callable[[Floats], Floats]
    """compute_N over the smallest -> grid of c, in equal steps of log c."""


POWER = Law("power", lambda x_N, c_G: x_N ** -c_G[:, None], lambda x_N: np.geomspace(0.005, 4.0, GRID))
SATURATING = Law(
    "saturating", lambda x_N, c_G: np.exp(-(x_N - 1.0) / c_G[:, None]),
    lambda x_N: np.geomspace(0.1, 30.0 * float(x_N.max()), GRID),
)  # fmt: skip
LAWS = {law.name: law for law in (POWER, SATURATING)}


@dataclass(frozen=True, slots=True)
class Fit:
    """Least squares of a law, one curve a draw."""

    law: Law
    start: float
    """Smallest compute: the unit of C in `b` and `c`."""
    a_D: Floats
    b_D: Floats
    c_D: Floats
    squares_D: Floats
    """Weighted sum of squared residuals."""

    def at(self, compute_M: Floats) -> Floats:
        """Loss at each compute [D, M]."""
        x_M = np.asarray(compute_M, dtype=np.float64) / self.start
        return np.asarray(self.a_D[:, None] + self.b_D[:, None] * self.law.shape(x_M, self.c_D))


def fit(law: Law, compute_N: Floats, loss_DN: Floats, weight_N: Floats) -> Fit:
    """Least squares over all c, every draw at once: the best place of the grid, then the vertex of the parabola there.

    Args:
        law: which family.
        compute_N: of each size, any unit.
        loss_DN: mean loss of each size, one row a draw.
        weight_N: seeds behind each mean.

    Raises:
        ValueError: fewer than three different sizes.
    """
    loss_DN, start = np.atleast_2d(np.asarray(loss_DN, np.float64)), float(np.min(compute_N))
    x_N = np.asarray(compute_N, np.float64) / start
    if len(np.unique(x_N)) < 3:
        raise ValueError(f"{len(np.unique(x_N))} sizes; a law of three parameters needs three")
    weight_N = np.asarray(weight_N, np.float64)
    w_N, c_G = weight_N / weight_N.sum(), law.places(x_N)
    off_GN, spread_G, _ = _centred(law, x_N, w_N, c_G)
    mean_D = loss_DN @ w_N
    explained_DG = ((loss_DN - mean_D[:, None]) * w_N) @ (off_GN / np.sqrt(spread_G)[:, None]).T
    best_D, rows_D = explained_DG.argmax(1).clip(1, GRID - 2), np.arange(len(loss_DN))
    before_D, at_D, after_D = (explained_DG[rows_D, best_D + i] for i in (-1, 0, 1))
    bend_D = np.minimum(before_D - 2.0 * at_D + after_D, -1e-300)
    c_D = c_G[best_D] * (c_G[1] / c_G[0]) ** np.clip((before_D - after_D) / (2.0 * bend_D), -1.0, 1.0)
    off_DN, spread_D, middle_D = _centred(law, x_N, w_N, c_D)
    around_DN = loss_DN - mean_D[:, None]
    b_D = np.maximum(((around_DN * w_N) * off_DN).sum(1), 0.0) / spread_D
    squares_D = (around_DN - b_D[:, None] * off_DN) ** 2 @ weight_N
    return Fit(law, start, mean_D - b_D * middle_D, b_D, c_D, squares_D)


def _centred(law: Law, x_N: Floats, w_N: Floats, c_G: Floats) -> tuple[Floats, Floats, Floats]:
    """(curve less its weighted mean [G, N], its weighted variance, that mean) at every c."""
    curve_GN = law.shape(x_N, c_G)
    middle_G = curve_GN @ w_N
    off_GN = curve_GN - middle_G[:, None]
    return off_GN, np.maximum(off_GN**2 @ w_N, 1e-300), middle_G


@dataclass(frozen=True)
class Curve:
    """A law fitted to the seeds of every size, with what its seeds allow it to be instead."""

    compute_N: Floats
    loss_NS: Floats
    fit: Fit
    """Of the means: one draw."""
    draws: Fit
    """Of means drawn around the fitted curve with the seeds' spread."""
    seed_sd: float

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `seed_sd`."""
        return self.loss_NS.shape[0] * (self.loss_NS.shape[1] - 1)

    @cached_property
    def lack(self) -> float:
        """p-value of the means lying as far from the curve as they do, were the law true (F test against the seeds)."""
        from scipy.stats import f as fisher

        more = len(self.compute_N) - 3
        if self.seed_sd == 0:
            return 1.0
        return float(fisher.sf(self.fit.squares_D[0] / more / self.seed_sd**2, more, self.freedom))

    @cached_property
    def cv_error(self) -> float:
        """Root mean square error of the loss of a size that was left out, over all but the smallest."""
        sizes, seeds = self.loss_NS.shape
        left = cv_squares(self.fit.law, self.compute_N, self.loss_NS.mean(1)[None], np.full(sizes, float(seeds)))
        return float(np.sqrt(left[0] / (sizes - 1)))

    def exponent(self) -> tuple[float, float, float]:
        """(c, low, high): every c that the means do not reject at 95 %; an end of the grid is an open end."""
        return float(self.fit.c_D[0]), *self._ranges[0]

    def floor(self) -> tuple[float, float, float]:
        """(a, low, high): every loss at endless compute that the means do not reject at 95 %, whatever c is."""
        return float(self.fit.a_D[0]), *self._ranges[1]

    @cached_property
    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Profiles of c and of a: where the sum of squares rises by less than F allows (Bates & Watts 1988, 6.1).

        The first pass finds the held places on the grid of all c, the second their ends on a grid around those.
        """
        from scipy.stats import f as fisher

        law, sizes, seeds = self.fit.law, *self.loss_NS.shape
        x_N, w_N, around_N = self.compute_N / self.fit.start, np.full(sizes, 1.0 / sizes), self.loss_NS.mean(1)
        mean = float(around_N.mean())
        around_N = around_N - mean
        allowed = float(self.seed_sd**2 * fisher.ppf(1 - LEVEL, 1, self.freedom))
        places_G = c_G = law.places(x_N)
        for _ in range(2):
            off_GN, spread_G, middle_G = _centred(law, x_N, w_N, c_G)
            b_G = np.maximum(off_GN @ (around_N * w_N), 0.0) / spread_G
            squares_G = ((around_N - b_G[:, None] * off_GN) ** 2).sum(1) * seeds
            more_G = squares_G - float(self.fit.squares_D[0])
            held = more_G <= allowed
            ends = [*c_G[held], float(self.fit.c_D[0])]
            step = places_G[1] / places_G[0]
            c_G = np.geomspace(
                max(min(ends) / step, places_G[0]), min(max(ends) * step, places_G[-1]), GRID
            )  # of the next pass
        half_G = np.sqrt(np.maximum(allowed - more_G[held], 0.0) * (1.0 + middle_G[held] ** 2 / spread_G[held]))
        a_G, half_G = mean - b_G[held] * middle_G[held], half_G / np.sqrt(sizes * seeds)
        floors = [*(a_G - half_G), *(a_G + half_G), float(self.fit.a_D[0])]
        return (float(min(ends)), float(max(ends))), (float(min(floors)), float(max(floors)))

    def band(self, compute_M: Floats) -> tuple[Floats, Floats, Floats]:
        """(loss, low, high) of the curve at each compute, 95 % of the draws at each by itself."""
        low_M, high_M = np.percentile(self.draws.at(compute_M), [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)], axis=0)
        return self.fit.at(compute_M)[0], low_M, high_M


def curve(law: Law, compute_N: Floats, loss_NS: Floats, draws: int = DRAWS, seed: int = 0) -> Curve:
    """Fits a law to every size's seeds.

    Raises:
        ValueError: fewer than `LEAST_SIZES` sizes or two seeds.
    """
    compute_N, loss_NS = np.asarray(compute_N, np.float64), np.asarray(loss_NS, np.float64)
    sizes, seeds = loss_NS.shape
    if sizes < LEAST_SIZES or seeds < 2:
        raise ValueError(f"{sizes} sizes of {seeds} seeds; a law needs {LEAST_SIZES} sizes and two seeds")
    weight_N, mean_N, freedom = np.full(sizes, float(seeds)), loss_NS.mean(1), sizes * (seeds - 1)
    seed_sd = float(np.sqrt(((loss_NS - mean_N[:, None]) ** 2).sum() / freedom))
    found = fit(law, compute_N, mean_N, weight_N)
    drawn_DN = drawn(found.at(compute_N)[0], seed_sd / np.sqrt(seeds), freedom, draws, np.random.default_rng(seed))
    return Curve(compute_N, loss_NS, found, fit(law, compute_N, drawn_DN, weight_N), seed_sd)


def drawn(mean_N: Floats, error: float, freedom: int, draws: int, rng: np.random.Generator) -> Floats:
    """Means of sizes around a curve [D, N], their standard error as uncertain as few seeds leave it (Student's t)."""
    scale_D = np.sqrt(freedom / rng.chisquare(freedom, draws))
    return np.asarray(mean_N + error * scale_D[:, None] * rng.standard_normal((draws, len(mean_N))))


def cv_squares(law: Law, compute_N: Floats, loss_DN: Floats, weight_N: Floats) -> Floats:
    """Sum over all sizes but the smallest of the squared error of its loss by a fit to the others, for every draw.

    The smallest is never left out: a steep power law has no bound below the sizes that it was fitted to.
    """
    total_D = np.zeros(len(loss_DN))
    for left in np.flatnonzero(compute_N > compute_N.min()):
        kept = np.arange(len(compute_N)) != left
        other = fit(law, compute_N[kept], loss_DN[:, kept], weight_N[kept])
        total_D += (other.at(compute_N[left : left + 1])[:, 0] - loss_DN[:, left]) ** 2
    return total_D


def extrapolated(law: Law, compute_N: Floats, loss_NS: Floats, **options: Any) -> tuple[float, float, float, float]:
    """(predicted, low, high, measured) mean loss of the largest size, by the curve of the smaller ones.

    The interval is of a mean of as many seeds: the curve's band and the seeds' spread.
    """
    order_N = np.argsort(compute_N)
    smaller, largest = order_N[:-1], order_N[-1]
    found = curve(law, np.asarray(compute_N)[smaller], np.asarray(loss_NS)[smaller], **options)
    at_M = np.asarray(compute_N)[[largest]]
    rng = np.random.default_rng(1)
    noise_D = rng.standard_normal(len(found.draws.a_D)) * found.seed_sd / np.sqrt(np.shape(loss_NS)[1])
    low, high = np.percentile(found.draws.at(at_M)[:, 0] + noise_D, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    return float(found.fit.at(at_M)[0, 0]), float(low), float(high), float(np.asarray(loss_NS)[largest].mean())
