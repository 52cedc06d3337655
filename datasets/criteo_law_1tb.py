"""Statistics of Criteo 1TB Click Logs that the generator reproduces: masks, cardinalities, largest shares, marginals.

Published are the cardinalities of columns below 40 million values, at which tables are capped; measured on real rows,
rounded: shares missing and zero, medians and 95th percentiles of the integers, the share of the largest value of
most columns, which columns are missing together and which share their dominant rows. Ours, for want of a figure: tails
(q = 5, s = 1.1), largest shares below .1 (.05), percentiles other than 50 and 95 (log-normal through those two),
independence of the integers, and what single integers tell of the label.
"""

from __future__ import annotations

import math

from ctrbench.datasets.criteo_law import Category, Integer, Law

CTR = 0.032
LARGEST = 40_000_000
"""Cap of a column: published tables are cut there."""
TAIL = {"q": 5.0, "s": 1.1}
JOINT, JOINT_SHARE, JOINT_MISSING = ("C1", "C10", "C11", "C20", "C21", "C22"), 0.20, 0.04
SPARSE, SPARSE_MISSING = ("C14", "C16", "C17", "C23"), 0.42
MASKS: tuple[tuple[str, ...], ...] = (
    ("I3", "I13"), ("I5", "I11"), ("I6", "I10"), ("I1",), ("I2",), ("I4",), ("I7",), ("I12",), JOINT, SPARSE,
)  # fmt: skip
SIZES = (
    LARGEST, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, LARGEST, 3067956, 405282, 10, 2209, 11938, 155, 4, 976, 14,
    LARGEST, LARGEST, LARGEST, 590152, 12973, 108, 36,
)  # fmt: skip
TOP1 = {
    "C6": 0.87, "C14": 0.63, "C16": 0.63, "C17": 0.59, "C19": 0.54, "C9": 0.50, "C18": 0.50, "C13": 0.39, "C25": 0.37,
    "C23": 0.33, "C26": 0.33, "C4": 0.29, "C5": 0.20, "C12": 0.20,
}  # fmt: skip
OTHER_TOP1 = 0.05
INTEGER_ROWS = """
     I1  I2   I3   I4   I5  I6   I7   I8   I9   I10  I11 I12   I13
miss .20 .10  .23  .26  .41 .07  .02  0    0    .07  .41 .01   .23
zero 0   0    .05  .05  0   .69  .94  .19  .19  .72  0   .01   .05
p50  7   220  4    37   6   0    0    4    6    0    2   3000  4
p95  77  1700 25   530  90  9    1    540  40   1    15  81000 28"""
"""`zero` is a share of the present values."""
NEGATIVE = {"I8": 0.06}
"""Column -> share of rows that hold -1."""


def law(cap: int = 0) -> Law:
    """The law; `cap` is the largest number of distinct values of a column, 0 = as published."""
    categories = {}
    for number, size in enumerate(SIZES, 1):
        name = f"C{number}"
        missing = JOINT_MISSING if name in JOINT else SPARSE_MISSING if name in SPARSE else 0.0
        full = min(size, cap) if cap else size
        categories[name] = Category(
            # Rows of the joint value come on top, so that the law itself has next to nothing at its first rank.
            size=full - (missing > 0), missing=missing, top1=0.001 if name in JOINT else TOP1.get(name, OTHER_TOP1),
            top10=math.nan, distinct=0, **TAIL,
        )  # fmt: skip
    return Law(
        integers=_integers(), categories=categories, masks=MASKS, correlations={}, linked=False, dominant=JOINT,
        dominant_share=JOINT_SHARE, salt=100,
    )  # fmt: skip


def _integers() -> dict[str, Integer]:
    names, *rows = (line.split() for line in INTEGER_ROWS.strip().splitlines())
    table = {row[0]: [float(x) for x in row[1:]] for row in rows}
    out = {}
    for i, name in enumerate(names):
        missing, zero, p50, p95 = (table[key][i] for key in ("miss", "zero", "p50", "p95"))
        negative = ((-1, NEGATIVE[name]),) if name in NEGATIVE else ()
        out[name] = Integer(
            missing=missing, zero=zero * (1 - missing), quantiles=_quantiles(p50, p95), mean=math.nan, sd=math.nan,
            auc=0.56 if i % 2 else 0.44, negative=negative,
        )  # fmt: skip
    return out


def _quantiles(p50: float, p95: float) -> tuple[int, int, int, int, int, int]:
    """25, 50, 75, 95, 99 and 100 % of a log-normal through two of them; a median of 0 leaves the lower ones at 0."""
    middle = math.log1p(p50)
    sd = (math.log1p(p95) - middle) / 1.645

    def at(normal: float) -> int:
        return round(math.expm1(middle + normal * sd))

    low = (at(-0.674), round(p50), at(0.674)) if p50 else (0, 0, 0)
    return (*low, round(p95), at(2.326), at(3.5))
