"""What a step would cost on many accelerators, on paper: bytes between them, and the time that these take.

Tables are spread by row or by table and rows travel unpooled, dense weights are on every accelerator: the plans of
`bench/distributed`, and by row with small tables on every accelerator, TorchRec's data-parallel kind. A step sends
lengths and ids to where the rows are, rows back, their gradients there again, and averages dense gradients. Bytes
follow from the same counts as FLOPs; times are `modelled`: bytes over stated link rates at a stated range of
efficiency, latencies of NCCL's own tuning model, and compute of the kernel-time model. Nothing here has been measured
on more than one accelerator. Formulas: docs/at_scale.md.

Dims: W accelerators, m of them in each of M machines
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

WORLDS = (8, 64, 512)
ID_BYTES, LENGTH_BYTES, VALUE_BYTES = 8, 4, 4
"""As this project's batches and tables hold them: int64, int32, fp32."""
EXCHANGES = 5
"""All-to-alls of a step and module of tables in TorchRec: sizes, lengths, ids, rows, gradients of rows."""
USABLE = 0.7
"""Share of an accelerator's memory that tables and their optimizer may take: an assumption, the rest is for weights,
activations and buffers."""
Plan = Literal["row_wise", "table_wise", "small_replicated"]
PLANS: tuple[Plan, ...] = get_args(Plan)
Band = tuple[float, float]
"""(low, high)."""
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """Links of one kind of cluster; rates of one direction, in 1e9 bytes a second."""

    name: str
    gpu: str
    """Of the catalogue."""
    machine: int
    """m, accelerators that share the fast links."""
    inside_gbs: float
    """Of one accelerator to the others of its machine."""
    between_gbs: float
    """Of one accelerator to other machines."""
    efficiency: Band
    """Share of a link's rate that large collectives reach: an assumption."""
    start_us: Band
    """Of any collective."""
    inside_us: Band
    """Of one message inside a machine."""
    between_us: Band
    """Of one message between machines."""
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What one sample reads of one table."""

    rows: int
    """Of the table."""
    ids: float
    """Rows, repeated ones counted again."""
    features: float
    """Features that read it: one length each."""
    width: int
    """Values of a row as stored."""
    trained: bool = True
    """Whether gradients go back to its rows."""

    @property
    def values(self) -> float:
        """Bytes of its rows for one sample."""
        return self.ids * self.width * VALUE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One training step on one accelerator."""

    samples: int
    """Of one accelerator, whatever W: the batch of all grows with W."""
    tables: tuple[Table, ...]
    modules: int
    """Modules of tables; each has its own exchanges."""
    dense: float
    """Dense parameters that are trained."""
    seconds: Band
    """Compute of the step; `inf` where nothing bounds it from above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes in a step through the busiest accelerator, in the busier direction."""

    lengths: float
    ids: float
    rows: float
    gradients: float
    dense: float
    """Of dense gradients, those of replicated tables among them."""

    @property
    def exchanged(self) -> float:
        """Of the all-to-alls."""
        return self.lengths + self.ids + self.rows + self.gradients

    @property
    def total(self) -> float:
        return self.exchanged + self.dense


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step at one number of accelerators."""

    traffic: Traffic
    compute: Band
    exchange: Band
    """Seconds of the all-to-alls."""
    reduce: Band
    """Seconds of the all-reduce."""

    @property
    def communication(self) -> Band:
        """Seconds of all collectives, one after the other."""
        return self.exchange[0] + self.reduce[0], self.exchange[1] + self.reduce[1]

    @property
    def seconds(self) -> Band:
        """Low: all communication hidden that compute can hide. High: none."""
        low, high = self.communication
        return max(self.compute[0], low), self.compute[1] + high

    @property
    def share(self) -> Band:
        """Of the step that waits for communication. Low: fast links beside slow compute, all hidden that can be. High:
        slow links beside fast compute, nothing hidden."""
        fast, slow = self.communication
        least = 1 - self.compute[1] / fast if fast > self.compute[1] else 0.0
        return least, slow / (self.compute[0] + slow)


@cache
def fabrics() -> Mapping[str, Fabric]:
    """Links of `hardware.toml` by name."""
    tables = tomllib.loads((_HERE / "hardware.toml").read_text(encoding="utf-8"))
    shared: dict[str, Any] = {k: tuple(v) for k, v in tables["collective"].items() if k != "source"}
    return {name: Fabric(name=name, **row, **shared) for name, row in tables["fabric"].items()}


def traffic(work: Work, world: int, plan: Plan) -> Traffic:
    """Bytes of a step; what stays on an accelerator is not sent.

    By row every table is cut into blocks of ceil(rows / W) rows, and one of fewer rows than accelerators lies on the
    first ones: ids are taken to meet all rows of a table alike, the first accelerator holds a block of each and is
    waited for. Every accelerator sends every other one all its lengths, as TorchRec's bucketised tensors have them. By
    table whole tables are dealt out, the largest first to the emptiest, and the fullest accelerator is waited for.
    """
    others, away = world - 1, (world - 1) / world
    held, copied = _placed(work, world, plan)
    return Traffic(
        lengths=work.samples * others * LENGTH_BYTES * sum(t.features for t, _ in held),
        ids=work.samples * others * ID_BYTES * sum(t.ids * share for t, share in held),
        rows=work.samples * others * sum(t.values * share for t, share in held),
        gradients=work.samples * others * sum(t.values * share for t, share in held if t.trained),
        # A ring, or a tree: every byte of the gradient is sent on twice, once summed and once spread.
        dense=2 * away * VALUE_BYTES * (work.dense + copied),
    )


def _placed(work: Work, world: int, plan: Plan) -> tuple[list[tuple[Table, float]], float]:
    """(tables on the busiest accelerator and its share of their lookups, trained values of tables on all)."""
    if plan == "table_wise":
        return [(t, 1.0) for t in _fullest(work.tables, world)], 0.0
    blocks = [(t, math.ceil(t.rows / world) / t.rows) for t in work.tables]
    if plan == "row_wise":
        return blocks, 0.0
    cut = [(t, share) for t, share in blocks if _as_rows(t, share, work.samples, world) < _as_copy(t, world)]
    kept = {id(t) for t, _ in cut}
    return cut, float(sum(t.rows * t.width for t in work.tables if t.trained and id(t) not in kept))


def _as_rows(table: Table, share: float, samples: int, world: int) -> float:
    """Bytes that a table by row adds to the busiest accelerator."""
    values = table.values * (2 if table.trained else 1)
    return samples * (world - 1) * (table.features * LENGTH_BYTES + share * (table.ids * ID_BYTES + values))


def _as_copy(table: Table, world: int) -> float:
    """Bytes that a table on every accelerator adds: its gradients, averaged as those of dense weights. A frozen one
    adds none; what it would add says whether it is small."""
    return 2 * (world - 1) / world * table.rows * table.width * VALUE_BYTES


def _fullest(tables: Iterable[Table], world: int) -> list[Table]:
    """Tables of the accelerator that sends most rows."""
    shares: list[list[Table]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for table in sorted(tables, key=lambda t: -t.values):
        at = loads.index(min(loads))
        shares[at].append(table)
        loads[at] += table.values
    return shares[loads.index(max(loads))]


def step(work: Work, world: int, fabric: Fabric, plan: Plan) -> Step:
    """One step of `world` accelerators.

    Raises:
        ValueError: more than a machine that is not made of whole machines.
    """
    sent = traffic(work, world, plan)
    if world == 1:
        return Step(traffic=sent, compute=work.seconds, exchange=(0.0, 0.0), reduce=(0.0, 0.0))
    m, machines = _split(world, fabric)
    dense = sent.dense / (2 * (world - 1) / world)
    exchange, reduce = [], []
    for fast in (True, False):
        end, join = (0, max) if fast else (1, sum)  # both kinds of links work at once, or one after the other
        efficiency = fabric.efficiency[1 - end]
        start, near_us, far_us = (us[end] * 1e-6 for us in (fabric.start_us, fabric.inside_us, fabric.between_us))
        # All messages on their way at once, or to each other accelerator of the machine and each other machine in turn.
        hops = max(near_us, far_us if machines > 1 else 0.0) if fast else (m - 1) * near_us + (machines - 1) * far_us
        wait = EXCHANGES * work.modules * (start + hops) if sent.exchanged else 0.0
        exchange.append(join(_all_to_all(sent.exchanged, world, fabric, efficiency)) + wait)
        tree = 2 * ((m - 1) * near_us + math.ceil(math.log2(machines)) * far_us)
        reduce.append(join(_all_reduce(dense, world, fabric, efficiency)) + start + tree if dense else 0.0)
    return Step(
        traffic=sent, compute=work.seconds, exchange=(exchange[0], exchange[1]), reduce=(reduce[0], reduce[1])
    )  # fmt: skip


def least_seconds(work: Work, world: int, fabric: Fabric) -> float:
    """Time that communication cannot beat under any mix of the plans, however overlapped: no latency, full link rates,
    no lengths, every accelerator equally busy, each table exchanged or copied, whichever takes less."""
    if world == 1:
        return 0.0
    away = work.samples * (world - 1) / world
    seconds = list(_all_reduce(work.dense * VALUE_BYTES, world, fabric, 1.0))
    for table in work.tables:
        even = away * (table.ids * ID_BYTES + table.values * (2 if table.trained else 1))
        copy = table.rows * table.width * VALUE_BYTES if table.trained else 0.0
        ways = _all_to_all(even, world, fabric, 1.0), _all_reduce(copy, world, fabric, 1.0)
        seconds = [total + min(way) for total, way in zip(seconds, zip(*ways, strict=True), strict=True)]
    return max(seconds)


def _split(world: int, fabric: Fabric) -> tuple[int, int]:
    """(m, M)."""
    if world > fabric.machine and world % fabric.machine:
        raise ValueError(f"world={world}: not a multiple of the {fabric.machine} accelerators of a machine")
    m = min(world, fabric.machine)
    return m, world // m


def _all_to_all(sent: float, world: int, fabric: Fabric, efficiency: float) -> Band:
    """Seconds (inside, between): each other accelerator gets the same."""
    m, _ = _split(world, fabric)
    inside = (m - 1) / (world - 1)
    return (
        sent * inside / (fabric.inside_gbs * 1e9 * efficiency),
        sent * (1 - inside) / (fabric.between_gbs * 1e9 * efficiency),
    )


def _all_reduce(size: float, world: int, fabric: Fabric, efficiency: float) -> Band:
    """Seconds (inside, between): summed inside a machine, each accelerator's part between machines, spread inside."""
    m, machines = _split(world, fabric)
    return (
        2 * (m - 1) / m * size / (fabric.inside_gbs * 1e9 * efficiency),
        2 * (machines - 1) / machines * size / m / (fabric.between_gbs * 1e9 * efficiency),
    )


def accelerators_for(nbytes: float, memory_gb: float, machine: int = 1, usable: float = USABLE) -> int:
    """Fewest accelerators, in whole machines, whose memory holds so many bytes of tables and their optimizer.

    Args:
        nbytes: of rows and optimizer.
        memory_gb: of one accelerator, 1e9 bytes.
        machine: accelerators that come together.
        usable: share that tables may take.
    """
    each = memory_gb * 1e9 * usable * machine
    return max(1, math.ceil(nbytes / each)) * machine
