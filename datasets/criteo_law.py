"""Statistics of Criteo Kaggle rows that the generator reproduces, and the distributions made from them.

Origin of every figure: 4,584 rows drawn uniformly over the seven days of the public file, except `size`, the full
cardinality, which is published with the data set's benchmarks.

Dims: R rows, N ids of a column
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtri


@dataclass(frozen=True, kw_only=True, slots=True)
class Integer:
    """Marginal of one integer column."""

    missing: float
    zero: float
    """Share of all rows, like `missing`."""
    quantiles: tuple[int, int, int, int, int, int]
    """25, 50, 75, 95, 99 and 100 % of the present values."""
    mean: float
    """Of log1p(max(x, 0)), like `sd`."""
    sd: float
    auc: float
    """Of the raw value alone."""
    negative: tuple[tuple[int, float], ...] = ()
    """(value, share of all rows), lowest first."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """Law of one categorical column: rank 1 has mass top1, rank k >= 2 mass proportional to (k-1+q)^-s up to size."""

    size: int
    """Distinct values, the missing one not counted."""
    missing: float
    top1: float
    top10: float
    distinct: int
    """Of present values in 4,584 rows."""
    q: float
    s: float

    @cached_property
    def cdf_N(self) -> np.ndarray:
        """float64, cumulated mass of ranks 1..size."""
        tail = (np.arange(1, self.size) + self.q) ** -self.s
        cdf: np.ndarray = np.concatenate([[self.top1], self.top1 + (1 - self.top1) * np.cumsum(tail) / tail.sum()])
        cdf[-1] = 1.0
        return cdf

    @cached_property
    def middle_N(self) -> np.ndarray:
        """float64, midpoint of each rank's interval of the cumulated mass."""
        middle: np.ndarray = (self.cdf_N + np.concatenate([[0.0], self.cdf_N[:-1]])) / 2
        return middle

    def rank(self, u_R: np.ndarray) -> np.ndarray:
        """int64, 0-based rank at cumulated mass u (inverse distribution function)."""
        rank_R: np.ndarray = np.minimum(np.searchsorted(self.cdf_N, u_R, side="right"), self.size - 1)
        return rank_R


def _integers() -> dict[str, Integer]:
    text = """
    I1  .4566 .2232    0    1     4    16     44     199  0.913 0.998 .619
    I2  0     .1756    0    3    33   567   2605    5334  2.070 2.112 .508
    I3  .2140 .0017    2    6    16    80    220   10712  2.122 1.187 .439
    I4  .2227 .0436    2    4     9    24     40      96  1.686 0.903 .464
    I5  .0233 .0192  279 2825 10046 53409 351985 1669366  7.238 2.921 .376
    I6  .2258 .0552    8   31   101   451   1262    3889  3.359 1.751 .333
    I7  .0441 .2149    1    3    12    70    217    1426  1.662 1.384 .629
    I8  .0002 .1171    2    7    19    42     48     375  2.026 1.157 .480
    I9  .0441 .0334   10   38   109   436    929    5820  3.530 1.630 .501
    I10 .4566 .2522    0    1     1     2      3       6  0.409 0.403 .610
    I11 .0441 .2219    1    1     3    11     25      84  0.942 0.782 .638
    I12 .7677 .1728    0    0     1     3     19      69  0.281 0.600 .548
    I13 .2227 .0543    2    4    10    28     47     305  1.702 0.968 .391"""
    out = {}
    for name, missing, zero, *rest in (line.split() for line in text.strip().splitlines()):
        negative = ((-2, 6 / 4584), (-1, 477 / 4584)) if name == "I2" else ()
        p25, p50, p75, p95, p99, top = map(int, rest[:6])
        mean, sd, auc = map(float, rest[6:])
        out[name] = Integer(
            missing=float(missing), zero=float(zero), quantiles=(p25, p50, p75, p95, p99, top), mean=mean,
            sd=sd, auc=auc, negative=negative,
        )  # fmt: skip
    return out


_CATEGORIES = """
C1  1460     0     .493 .909  115   2 2.08 | C14 27      0     .356 .987   22   5 5.16
C2  583      0     .117 .413  339  30 2.33 | C15 14992   0     .014 .097 1412 100 1.72
C3  10131227 .0336 .022 .099 3015   5 1.04 | C16 5461306 .0336 .022 .117 2644  10 1.11
C4  2202608  .0336 .035 .162 2321   5 1.12 | C17 10      0     .461 1       9   1 5.01
C5  305      0     .668 .977   42   2 2.78 | C18 5652    0     .032 .228  870  30 1.70
C6  24       .1233 .446 1       7   2 6.00 | C19 2173    .4402 .617 .723  345   5 1.28
C7  12517    0     .024 .092 2074  30 1.12 | C20 4       .4402 .343 1       3   0 0.01
C8  633      0     .585 .954   70   1 2.18 | C21 7046547 .0336 .022 .116 2772   5 1.07
C9  3        0     .907 1       2   0 6.00 | C22 18      .7653 .557 1       6   1 5.75
C10 93145    0     .227 .285 1927  30 1.19 | C23 15      0     .442 .996   13   5 6.00
C11 5683     0     .035 .134 1446  30 1.30 | C24 286181  .0336 .055 .299 1560   5 1.23
C12 8351593  .0336 .022 .114 2868   5 1.05 | C25 105     .4402 .274 .932   31  10 5.50
C13 3194     0     .035 .153 1248  30 1.31 | C26 142572  .4402 .075 .249 1127   5 1.17"""

INTEGERS: Mapping[str, Integer] = _integers()

RANK_CORRELATIONS: Mapping[tuple[str, str], float] = {
    ("I1", "I10"): 0.82, ("I7", "I11"): 0.89, ("I4", "I13"): 0.80, ("I1", "I5"): -0.73, ("I5", "I10"): -0.79,
    ("I6", "I10"): -0.65, ("I4", "I8"): 0.61, ("I1", "I6"): -0.60, ("I5", "I6"): 0.60, ("I8", "I13"): 0.58,
    ("I9", "I11"): 0.51, ("I8", "I9"): 0.50, ("I3", "I4"): 0.45, ("I3", "I13"): 0.45, ("I7", "I9"): 0.45,
    ("I6", "I9"): 0.44, ("I1", "I7"): 0.41, ("I5", "I11"): -0.41, ("I5", "I7"): -0.39, ("I6", "I13"): 0.38,
}  # fmt: skip

MASKS: tuple[tuple[str, ...], ...] = (
    ("I1", "I10"), ("I4", "I13"), ("I7", "I9", "I11"), ("I3",), ("I5",), ("I6",), ("I8",), ("I12",),
    ("C3", "C4", "C12", "C16", "C21", "C24"), ("C19", "C20", "C25", "C26"), ("C6",), ("C22",),
)  # fmt: skip
"""Columns that are missing together."""

CHAINS: tuple[tuple[str, ...], ...] = (
    ("C3", "C12", "C21", "C16", "C4", "C24"), ("C15", "C18", "C2"), ("C7", "C13"), ("C11", "C13"), ("C15", "C14"),
)  # fmt: skip
"""Each column decides the next one exactly."""


def categories(cap: int = 0) -> dict[str, Category]:
    """Laws of C1..C26 by name.

    Args:
        cap: largest number of distinct values of a column, the missing one counted as a value; 0 = as published.
    """
    out: dict[str, Category] = {}
    for cell in _CATEGORIES.replace("|", "\n").strip().splitlines():
        name, size, missing, top1, top10, distinct, q, s = cell.split()
        full = min(int(size), cap) if cap else int(size)
        out[name] = Category(
            size=full - (float(missing) > 0), missing=float(missing), top1=float(top1), top10=float(top10),
            distinct=int(distinct), q=float(q), s=float(s),
        )  # fmt: skip
    return dict(sorted(out.items(), key=lambda item: int(item[0][1:])))


def integer_values(law: Integer, u_R: np.ndarray) -> np.ndarray:
    """int64 values of present rows at cumulated mass u: negatives, zeros, then linear in log1p between quantiles."""
    present = 1 - law.missing
    edge = 0.0
    out_R = np.zeros(len(u_R), np.int64)
    for value, share in law.negative:
        out_R[(u_R >= edge) & (u_R < edge + share / present)] = value
        edge += share / present
    edge += law.zero / present
    knots = [(edge, 1.0)]
    for u, value in zip((0.25, 0.5, 0.75, 0.95, 0.99, 1.0), law.quantiles, strict=True):
        if u > edge and value > 0:
            knots.append((u, float(value)))
    # The maximum of 4,584 rows is one row: most of the last percent lies well below it.
    knots.insert(-1, (0.999, float(law.quantiles[4] ** (2 / 3) * law.quantiles[5] ** (1 / 3))))
    at, height = np.array(knots).T
    positive_R = u_R >= edge
    values_R = np.expm1(np.interp(u_R[positive_R], at, np.log1p(height)))
    # Rounded down: small counts repeat, so a value starts late in its interval.
    out_R[positive_R] = np.maximum(1, np.floor(values_R + 1e-9)).astype(np.int64)
    return out_R


def copula(correlations: Mapping[tuple[str, str], float] = RANK_CORRELATIONS) -> np.ndarray:
    """[13, 13] correlation of the normals below the integers: r = 2 sin(pi rho / 6), made positive definite."""
    names = list(INTEGERS)
    matrix = np.eye(len(names))
    for (a, b), rho in correlations.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = 2 * np.sin(np.pi * rho / 6)
    values, vectors = np.linalg.eigh(matrix)
    matrix = (vectors * np.maximum(values, 0.01)) @ vectors.T
    scale = np.sqrt(np.diag(matrix))
    normed: np.ndarray = matrix / np.outer(scale, scale)
    return normed


def score_weights(correlation: np.ndarray, integers: Mapping[str, Integer] = INTEGERS) -> np.ndarray:
    """[13] weights of the unit-variance integer score: (R + .3 I)^-1 sqrt(2) Phi^-1(AUC)."""
    target = np.sqrt(2) * ndtri(np.array([law.auc for law in integers.values()]))
    weights = np.linalg.solve(correlation + 0.3 * np.eye(len(target)), target)
    unit: np.ndarray = weights / np.sqrt(weights @ correlation @ weights)
    return unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """Everything that the generator follows."""

    integers: Mapping[str, Integer]
    categories: Mapping[str, Category]
    masks: tuple[tuple[str, ...], ...]
    """Columns that are missing together."""
    correlations: Mapping[tuple[str, str], float]
    """Rank correlations of pairs of integers; others are independent."""
    linked: bool
    """Columns decide one another as `CHAINS` says."""
    dominant: tuple[str, ...] = ()
    """Columns whose first value comes in the same rows, `dominant_share` of all."""
    dominant_share: float = 0.0
    salt: int = 0
    """Added to a column's number in its hash: another salt, other tokens and effects."""


def kaggle(cap: int = 0) -> Law:
    """The law of the Kaggle rows; `cap` as in `categories`."""
    return Law(integers=INTEGERS, categories=categories(cap), masks=MASKS, correlations=RANK_CORRELATIONS, linked=True)
