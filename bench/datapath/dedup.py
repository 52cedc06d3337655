"""Ids looked up as they come, or each distinct one once: forward, backward and row-wise Adagrad, over skew.

Dims: N ids, U distinct ids, D width of a row, R rows of the table
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ctrbench.bench.alternate import alternate
from ctrbench.bench.datapath.timed import Found, made_up
from ctrbench.bench.runspec import RunSpec
from ctrbench.models.table_lookups import fused_tables

ALPHAS = (0.0, 1.05, 1.5)
"""Exponents of the popularity law; 0 is uniform."""
IDS, ROWS, WIDTH, LIMIT_S = 65_536, 1_000_000, 16, 8.0


def dedup_part(spec: RunSpec, ids: int = IDS, rows: int = ROWS) -> Found:
    """Seconds of both ways at every skew, and the bytes that each must touch."""
    samples, plain = {}, []
    shares = {}
    for alpha in ALPHAS:
        ids_N = zipf_ids(ids, rows, alpha, spec.seed)
        grad_ND = torch.randn(ids, WIDTH, generator=torch.Generator().manual_seed(spec.seed))
        place = f"alpha {alpha:g}"
        ways = {w: step_of(table(rows), ids_N, grad_ND, w == "unique") for w in ("direct", "unique")}
        samples[place] = alternate(ways, limit_s=LIMIT_S)
        distinct = int(torch.unique(ids_N).numel())
        shares[place] = distinct / ids
        for way, size in bytes_touched(ids, distinct, WIDTH).items():
            plain.append(("path_bytes", float(size), "counted", {"scope": f"dedup:{way}:{place}", "n": ids}))
        plain.append(("unique_row_ratio", distinct / ids, "counted", {"scope": f"dedup:{place}", "n": ids}))
    sizes = {"ids": ids, "rows": rows, "width": WIDTH, "optimizer": "rowwise_adagrad", "distinct": shares}
    return Found(base=made_up(spec), phase="train", samples=samples, plain=plain, extra={"sizes": sizes})  # type: ignore[arg-type]


def zipf_ids(count: int, rows: int, alpha: float, seed: int) -> Tensor:
    """Ids of a table; the row of popularity rank r is drawn with weight r^-alpha, ranks lie scattered over the rows."""
    rng = np.random.default_rng(seed)
    weight_R = np.arange(1, rows + 1, dtype=np.float64) ** -alpha
    edge_R = np.cumsum(weight_R)
    rank_N = np.searchsorted(edge_R, rng.random(count) * edge_R[-1])
    return torch.from_numpy(rng.permutation(rows)[np.minimum(rank_N, rows - 1)])


def table(rows: int) -> nn.Module:
    """One table under row-wise Adagrad, all rows 0.01."""
    made = fused_tables([rows], WIDTH, None, "rowwise_adagrad", 0.02, 1e-8, "cpu")
    for weight in made.split_embedding_weights():
        weight.fill_(0.01)
    return made


def step_of(lookup: nn.Module, ids_N: Tensor, grad_ND: Tensor, unique: bool) -> Callable[[], Tensor]:
    """Rows [N, D] of the ids, backward from a fixed gradient, update; what is distinct is found in the step."""

    def run() -> Tensor:
        if not unique:
            rows_ND = lookup(ids_N, torch.arange(len(ids_N) + 1))
        else:
            ids_U, place_N = torch.unique(ids_N, return_inverse=True)
            rows_ND = lookup(ids_U, torch.arange(len(ids_U) + 1)).index_select(0, place_N)
        rows_ND.backward(grad_ND)
        return rows_ND.detach()

    return run


def bytes_touched(ids: int, distinct: int, width: int) -> dict[str, int]:
    """Bytes that each way reads and writes if every array is touched once: 4 a value, 8 an id, 4 of state a row.

    Both read ids and gradient, write the rows [N, D], and read and write the distinct rows with their state in the
    update. Direct reads a table row for every id. Unique writes and reads the inverse, reads every distinct row once,
    writes and reads it in an array between, whose gradient it writes and reads too. Sorting is left out of both.
    """
    row = 4 * width
    both = ids * (8 + 2 * row) + distinct * 2 * (row + 4)
    return {"direct": both + ids * row, "unique": both + ids * (16 + row) + distinct * (8 + 5 * row)}
