"""Feature transforms over all columns at once against a column at a time, with and without the lookup of their rows.

Dims: B rows, F hashed and bucketised columns, L logged columns, D width of a table row
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from ctrbench.bench.alternate import alternate
from ctrbench.bench.datapath.timed import Found, made_up
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.fused_transforms import Columns, Made, Way

COLUMNS = (40, 200, 600)
ROWS, WIDTH, TABLE_ROWS, EDGES = 2_048, 8, 5_000, 15
LIMIT_S = 6.0
WAYS = ("fused", "looped", "plain")


def transforms_part(spec: RunSpec, columns: tuple[int, ...] = COLUMNS, rows: int = ROWS) -> Found:
    """Half of the columns are hashed, a quarter bucketised, a quarter logged."""
    samples = {}
    for many in columns:
        made, given = _columns(many, rows, spec.seed)
        ways = {way: getattr(made, way) for way in WAYS}
        samples[str(many)] = alternate({w: _call(f, given) for w, f in ways.items()}, limit_s=LIMIT_S)
        table = torch.randn(made.table_rows, WIDTH, generator=torch.Generator().manual_seed(spec.seed))
        looked = {w: _with_lookup(f, given, table, w == "fused") for w, f in ways.items()}
        samples[f"{many} + lookup"] = alternate(looked, limit_s=LIMIT_S)
    sizes = {"rows": rows, "width": WIDTH, "table_rows": TABLE_ROWS, "edges": EDGES}
    return Found(base=made_up(spec), phase="prepare", samples=samples, extra={"sizes": sizes})


Given = tuple[np.ndarray, np.ndarray, np.ndarray]


def _columns(many: int, rows: int, seed: int) -> tuple[Columns, Given]:
    rng = np.random.default_rng(seed)
    hashed, quarter = many - 2 * (many // 4), many // 4
    edges_UE = np.cumsum(rng.random((quarter, EDGES)) + 0.1, axis=1)
    numbers = rng.lognormal(1.0, 1.5, (2, quarter, rows)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    ids = rng.integers(0, 1 << 40, (hashed, rows))
    return Columns(np.full(hashed, TABLE_ROWS), edges_UE, quarter), (ids, numbers[0], numbers[1])


def _call(way: Way, given: Given) -> Callable[[], Made]:
    return lambda: way(*given)


def _with_lookup(way: Way, given: Given, table: Tensor, together: bool) -> Callable[[], object]:
    """A way and the rows of what it found: one gather, or one a column."""

    def run() -> object:
        rows_FB = torch.from_numpy(way(*given).rows_FB)
        return embedding(rows_FB, table) if together else [embedding(rows_B, table) for rows_B in rows_FB]

    return run
