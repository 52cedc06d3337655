"""What is written in C against the operators that it replaces, forward + backward: it stays while it is worth 1.5x.

Dims: B rows, E events, C width of an event, O width of the layer, F features, D columns of a table's row
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.alternate import alternate, ratio
from ctrbench.bench.targets.outcome import Outcome, at_least
from ctrbench.kernels.cpu import din_blocks, table_rows
from ctrbench.kernels.cpu.first_layer import FirstLayer, NativeFirstLayer, rows_of
from ctrbench.kernels.dice import BlockAct
from ctrbench.models.embedding import EmbeddingTables, TableConfig
from ctrbench.models.table_lookups import Optimizer

WANTED = 1.5
STEPS = "steps of DIN's unit between its products, 64 wide, forward + backward: ATen / C"
ROWS, EVENTS, WIDTH, OUT = 328, 50, 32, 64
"""A block of `din_attention` at these widths."""
TABLES = "lookup and Adagrad, 26 tables, B4096 D16: FBGEMM / C"
OPTIMIZERS: tuple[Optimizer, ...] = ("rowwise_adagrad", "adagrad")
FEATURES, BATCH, DIM = 26, 4096, 16
SIZES = (57_000, 200_000)
"""Rows of a table: 1.48 M and 5.2 M in all, as in the race against the peers."""
HELD = 8


def written_in_c(rounds: int, limit_s: float) -> Iterator[Outcome]:
    """Each in turn with what it replaces, at the caller's number of threads."""
    sides = {STEPS: (din_blocks.available(), lambda: {"theirs": steps(native=False), "c": steps(native=True)})}
    for size in SIZES:
        for optimizer in OPTIMIZERS:
            title = f"{TABLES}, {size:,} rows a table, {optimizer}"
            sides[title] = table_rows.available(), partial(lookups, size, optimizer)
    for title, (built, made) in sides.items():
        if not built:
            yield Outcome(
                group="kernels", target=title, wanted=f">= {WANTED:g}x", measured="", verdict="not testable here",
                how="no C compiler here",
            )  # fmt: skip
            continue
        times = alternate(made(), rounds=rounds, limit_s=limit_s)
        found = ratio(times["theirs"], times["c"])
        how = f"{found.rounds} rounds, float32, {torch.get_num_threads()} threads"
        yield at_least("kernels", title, WANTED, found.value, how, interval=(found.low, found.high))


def lookups(size: int, optimizer: Optimizer) -> dict[str, Callable[[], object]]:
    """One lookup and its backward in tables of `size` rows, ids skewed to the first of them, a batch after another."""
    names = [f"f{i}" for i in range(FEATURES)]
    configs = [
        EmbeddingBagConfig(name=n, embedding_dim=DIM, num_embeddings=size, feature_names=[n]) for n in names
    ]  # fmt: skip
    lengths = torch.ones(FEATURES * BATCH, dtype=torch.int32)
    batches = [
        KeyedJaggedTensor(
            keys=names, values=(torch.rand(FEATURES * BATCH) ** 3 * size).long(), lengths=lengths, stride=BATCH,
            length_per_key=[BATCH] * FEATURES,
        )
        for _ in range(HELD)
    ]  # fmt: skip
    gradient_BFD = torch.randn(BATCH, FEATURES * DIM)
    return {side: _looked_up(EmbeddingTables(configs, TableConfig(optimizer=optimizer)), side, batches, gradient_BFD)
            for side in ("theirs", "c")}  # fmt: skip


def _looked_up(
    tables: EmbeddingTables, side: str, batches: list[KeyedJaggedTensor], gradient_BFD: torch.Tensor
) -> Callable[[], object]:
    if side == "theirs":
        tables.in_c = None
    turn = cycle(batches)

    def run() -> None:
        tables(next(turn)).values().backward(gradient_BFD)

    return run


def steps(native: bool) -> Callable[[], object]:
    """All of them once, as `din_attention` calls them with Dice."""
    rows, each, width, out = ROWS, EVENTS, WIDTH, OUT
    events = rows * each
    first = NativeFirstLayer() if native else FirstLayer()
    act = BlockAct(torch.randn(out), None)
    act.native = native
    q_BC, du_BC, h_EC, dh_EC = torch.randn(rows, width), torch.randn(rows, width), *torch.randn(2, events, width)
    at_B1 = torch.arange(0, events + 1, each)
    row_E, a_E, by_row_BO = rows_of(at_B1, events), torch.randn(events), torch.randn(rows, out)
    x_EO, into_EO = torch.randn(2, events, out)
    dx_EO, dpair_E2C, sums_3O = torch.randn(events, out), torch.randn(events, 2 * width), torch.zeros(3, out)
    work = [torch.empty(events * max(out, 2 * width)) for _ in range(3)]
    act.see(x_EO)
    act.close(1e-9)

    def run() -> None:
        first.pairs(q_BC, h_EC, row_E, work[0])
        first.add_rows(by_row_BO, row_E, into_EO)
        act.out(x_EO, work[0])
        first.scores_back(du_BC, h_EC, row_E, a_E)
        act.back(x_EO, dx_EO, sums_3O, work)
        act.finish(x_EO, into_EO, sums_3O, events)
        first.first_back(
            dpair_E2C, dx_EO, q_BC, h_EC, at_B1, a_E, du_BC, dh_EC, torch.empty_like(q_BC), torch.empty_like(by_row_BO)
        )

    return run
