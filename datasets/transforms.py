"""What becomes of numbers: dense values for the models, by name.

The default keeps zero, negative and missing apart: three different things. The published ones are here by name, since
figures of a benchmark belong to its transform; those of two codes merge missing with zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ctrbench.datasets.errors import BadInput, nearest

TRANSFORMS = {
    "signed_log": "sign(x) log1p(|x|), missing stays missing",
    "none": "as they are, missing stays missing",
    "standard": "(x - mean) / sd of the train rows, missing stays missing",
    "dlrm": "log(1 + max(x, 0)), missing becomes 0 first (facebookresearch/dlrm)",
    "torchrec": "log(x - min + 2), missing becomes 0 first, min of train rows, lower values raised to it (TorchRec)",
}
"""Name -> formula in words."""


def check_transform(name: str, where: str, also: tuple[str, ...] = ()) -> None:
    """Raises BadInput naming the nearest transform if there is none of that name."""
    if name not in (*TRANSFORMS, *also):
        raise BadInput(f"{where}: unknown transform {nearest(name, [*TRANSFORMS, *also])}")


def fit(column: str, transform: str, train: pl.LazyFrame) -> list[float]:
    """What the train rows fix of a transform: mean and standard deviation, a minimum, or nothing.

    Args:
        column: of numbers, null = missing.
        transform: one of `TRANSFORMS`.
        train: only read where the transform needs it.
    """
    x = pl.col(column).cast(pl.Float64)
    if transform == "standard":
        mean, sd = train.select(x.mean().alias("mean"), x.std(ddof=0).alias("sd")).collect().row(0)
        return [mean or 0.0, sd or 1.0]  # a constant column becomes 0
    if transform == "torchrec":
        return [train.select(x.fill_null(0).min()).collect().item()]
    return []


def dense(column: str, transform: str, fitted: Sequence[float]) -> pl.Expr:
    """The transformed column, float32; `fitted` by `fit`."""
    x = pl.col(column).cast(pl.Float64)
    if transform == "signed_log":
        x = x.sign() * x.abs().log1p()
    elif transform == "standard":
        x = (x - fitted[0]) / fitted[1]
    elif transform == "dlrm":
        x = x.fill_null(0).clip(lower_bound=0).log1p()
    elif transform == "torchrec":
        x = (x.fill_null(0).clip(lower_bound=fitted[0]) - fitted[0] + 2).log()
    return x.cast(pl.Float32).alias(column)


def log_square(column: str) -> pl.Expr:
    """Integers as categories, text: floor(ln(x)^2) for x > 2, else x; missing becomes 0 first (FuxiCTR, Criteo_x4)."""
    x = pl.col(column).fill_null(0)
    squared = x.clip(lower_bound=1).cast(pl.Float64).log().pow(2).floor().cast(pl.Int64)
    return pl.when(x > 2).then(squared).otherwise(x).cast(pl.String).alias(column)
