"""Errors of kernel counts and modelled times: `python -m ctrbench.bench.counting.validate FOLDER` of the recordings.

Prints the tables of docs/projection.md: (1) recorded models rebuilt on meta, counted and projected like any model;
(2) kernel counts predicted from the operator calls of every recording, by a table made without it; (3) table operators
with the parameters of another device.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ctrbench.bench.counting.fit import SEED, SPLITS, fit_family, gemm_dtype, pick, shapes_of
from ctrbench.bench.counting.kernel_time import FamilyFit, ParameterSet, parameter_sets
from ctrbench.bench.counting.launches import table_entry
from ctrbench.bench.counting.ops import classify_name
from ctrbench.bench.counting.projection import project, step_seconds
from ctrbench.bench.counting.rebuilt import (
    Recorded,
    bert_small_counts,
    dense_counts,
    dense_part,
    table_counts,
    table_part,
)
from ctrbench.bench.counting.recorded import OpCall, RecordedCalls, recorded_calls
from ctrbench.bench.counting.rows import Part, StepCounts
from ctrbench.bench.hardware import Gpu, find, peak
from ctrbench.bench.trace.columns import BadRecording

BERT, A100, V100 = "h100_bert_small", "a100_recsys_train", "v100_recsys_train_graphs"
MI250, SAMPLED = "mi250_toy_train", "recsys_sampled_ops"
NAMES = (BERT, A100, V100, MI250, SAMPLED)
GPU_OF = {BERT: "H100 SXM", A100: "A100-40 SXM", V100: "V100 SXM2"}
"""Catalogue entries; the catalogue has no A100-PG509-200, as the driver of that one says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """A recorded part beside its prediction, a step."""

    part: str
    gpu: str
    counts: StepCounts
    ops: int
    kernels: float
    """Predicted."""
    kernels_recorded: float
    seconds: float
    """Predicted with the device's parameters."""
    seconds_recorded: float
    half_fits: tuple[float, float] | None
    """Lowest and highest prediction by parameters of random halves of the shapes; None for cited parameters."""
    carried: Mapping[str, float]
    """Prediction by another device's parameters, by device."""
    share_of_kernels: float
    """Of the recording without communication."""
    share_of_time: float
    projection_reason: str
    """Why a projection of it would be withheld, or ''."""

    @property
    def kernel_error(self) -> float:
        """predicted / recorded - 1."""
        return self.kernels / self.kernels_recorded - 1

    @property
    def time_error(self) -> float:
        """predicted / recorded - 1."""
        return self.seconds / self.seconds_recorded - 1


def rebuilt(recorded: RecordedCalls) -> Rebuilt:
    """BERT-small whole, or the dense part of a recommender."""
    gpu = find(GPU_OF[recorded.name])
    if recorded.name == BERT:
        counts, steps, kernels, seconds = bert_small_counts(), 1, recorded.kernels, recorded.kernels_ns * 1e-9
        of_all = (recorded.kernels, recorded.kernels_ns * 1e-9)
    else:
        layers, found = dense_part(recorded)
        counts, steps, kernels, seconds = dense_counts(layers), found.steps, found.kernels, found.seconds
        of_all = (found.kernels_of_all, found.seconds_of_all)
    mine = parameter_sets()[gpu.name]
    others = (p for p in parameter_sets().values() if p.gpu != gpu.name and p.origin == "fitted")
    return Rebuilt(
        part="BERT-small, all of it" if recorded.name == BERT else f"{recorded.name}, dense part",
        gpu=gpu.name, counts=counts, ops=counts.ops, kernels=sum(r.kernels for r in counts.rows),
        kernels_recorded=kernels / steps, seconds=step_seconds(counts, mine, gpu), seconds_recorded=seconds / steps,
        half_fits=_half_fits(recorded, counts, mine, gpu) if mine.origin == "fitted" else None,
        carried={p.gpu: step_seconds(counts, replace(p, dtype=mine.dtype), gpu) for p in others},
        share_of_kernels=kernels / of_all[0], share_of_time=seconds / of_all[1],
        projection_reason=project(counts, gpu, mine.dtype).reason,
    )  # fmt: skip


def _half_fits(recorded: RecordedCalls, counts: StepCounts, parameters: ParameterSet, gpu: Gpu) -> tuple[float, float]:
    """The recording supplies fit and test: half of its shapes, drawn at random, show what the other half adds."""
    rng = np.random.default_rng(SEED)
    top, bandwidth = peak(gpu, gemm_dtype(recorded)), gpu.bandwidth_gbs * 1e9
    data, seconds = shapes_of(recorded), []
    for _ in range(SPLITS):
        families = {}
        for family, shapes in data.items():
            groups = np.unique(shapes.group_S)
            half = rng.permutation(groups)[: max(1, len(groups) // 2)]
            e_c, e_m, c_us = fit_family(pick(shapes, np.isin(shapes.group_S, half)), top, bandwidth)
            families[family] = FamilyFit(e_c=e_c, e_m=e_m, c_us=c_us, shapes=0, groups=0)
        seconds.append(step_seconds(counts, replace(parameters, families=families), gpu))
    return min(seconds), max(seconds)


# ----------------------------------------------------------- kernels from calls


@dataclass(frozen=True, kw_only=True, slots=True)
class FromCalls:
    """Kernels of a recording predicted from its operator calls."""

    recording: str
    kernels: int
    """Recorded kernels of operators in the table."""
    without_it: float
    """Predicted for calls that launched, by means of the other recordings."""
    shipped: float
    """The same by the table of `launches`, which recordings like these, and these, went into."""
    every_call: float
    """Predicted by `launches` for all calls, those on CPU tensors included."""
    outside: int
    """Kernels in no call of the table: graph launches, communication, custom operators."""

    def error(self, predicted: float) -> float:
        """predicted / recorded - 1."""
        return predicted / self.kernels - 1


def from_calls(recordings: Sequence[RecordedCalls]) -> list[FromCalls]:
    """Each recording predicted from the others."""
    means = {r.name: _kernels_a_call(r) for r in recordings}
    out = []
    for recorded in recordings:
        known = [c for c in recorded.launching() if _in_table(c.name)]
        others = [m for name, m in means.items() if name != recorded.name]
        kernels = sum(len(c.kernels) for c in known)
        out.append(
            FromCalls(
                recording=recorded.name, kernels=kernels,
                without_it=sum(_mean_of(c.name, others) for c in known),
                shipped=sum(_entry(c.name)[0] for c in known),
                every_call=sum(_entry(c.name)[0] for c in innermost(recorded.calls)),
                outside=recorded.kernels - kernels,
            )
        )  # fmt: skip
    return out


def _in_table(op: str) -> bool:
    kernels, covered = _entry(op)
    return covered and kernels > 0


@cache
def _entry(op: str) -> tuple[float, bool]:
    kind, family = classify_name(op)
    return table_entry(op.rstrip("_"), family) if kind in ("F", "Z") else (0.0, False)


def _kernels_a_call(recorded: RecordedCalls) -> dict[str, tuple[int, int]]:
    """Operator -> (kernels, calls that launched)."""
    out: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for call in recorded.launching():
        kernels, calls = out[call.name]
        out[call.name] = (kernels + len(call.kernels), calls + 1)
    return dict(out)


def _mean_of(op: str, others: Sequence[Mapping[str, tuple[int, int]]]) -> float:
    """Mean over the calls of the other recordings; one kernel where none has the operator."""
    kernels = sum(m[op][0] for m in others if op in m)
    calls = sum(m[op][1] for m in others if op in m)
    return kernels / calls if calls else 1.0


def innermost(calls: Sequence[OpCall]) -> list[OpCall]:
    """Calls of operators in the table that hold no other such call and touch at least one element."""
    holders: set[int] = set()
    stacks: dict[object, list[int]] = defaultdict(list)
    known = sorted((c for c in calls if _in_table(c.name)), key=lambda c: (c.start, -c.end))
    for i, call in enumerate(known):
        stack = stacks[call.thread]
        while stack and known[stack[-1]].end < call.end:
            stack.pop()
        holders.update(stack[-1:])
        stack.append(i)
    return [c for i, c in enumerate(known) if i not in holders and not any(0 in d for d in c.dims if d)]


# -------------------------------------------------------------- table operators


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """Table operators of one recording by the bandwidth share that another device's reached."""

    recording: str
    part: str
    kernels: float
    """Predicted, all steps, as the seconds are."""
    kernels_recorded: int
    seconds: float
    seconds_recorded: float
    e_m: float
    """Of the other device: above 1, because repeated ids are read from cache."""

    @property
    def kernel_error(self) -> float:
        """predicted / recorded - 1."""
        return self.kernels / self.kernels_recorded - 1

    @property
    def error(self) -> float:
        """predicted / recorded - 1."""
        return self.seconds / self.seconds_recorded - 1


def carried_tables(recordings: Sequence[RecordedCalls]) -> list[Carried]:
    """Each of two recommenders by the other: two kinds of lookup each, so no set of parameters is made of them."""
    found: dict[str, dict[Part, tuple[float, float, Recorded]]] = {}
    for recorded in recordings:
        lookups, *parts = table_part(recorded)
        counts = [table_counts(x) for x in lookups]
        found[recorded.name] = {
            part: (
                sum(c.bytes_operands(part=part) for c in counts),
                sum(r.kernels for c in counts for r in c.rows if r.part == part),
                there,
            )
            for part, there in zip(_PARTS, parts, strict=True)
        }  # fmt: skip
    out = []
    for mine, other in ((a.name, b.name) for a in recordings for b in recordings if a is not b):
        for part, (nbytes, kernels, there) in found[mine].items():
            their_bytes, _, theirs = found[other][part]
            e_m = their_bytes / theirs.seconds / (find(GPU_OF[other]).bandwidth_gbs * 1e9)
            said = nbytes / (e_m * find(GPU_OF[mine]).bandwidth_gbs * 1e9)
            out.append(
                Carried(recording=mine, part=part, kernels=kernels, kernels_recorded=there.kernels, seconds=said,
                        seconds_recorded=there.seconds, e_m=e_m)
            )  # fmt: skip
    return out


_PARTS: tuple[Part, Part] = ("forward", "backward")


# --------------------------------------------------------------------- printing


def tables_of(recordings: Mapping[str, RecordedCalls]) -> list[Table]:
    """The tables of docs/projection.md."""
    first = _table("rebuilt on meta, one step", "part, device", "ops", "kernels", "recorded", "error", "us", "recorded",
                   "error", "half fits", "carried", "share of kernels / time", "projected")  # fmt: skip
    for name in (BERT, A100, V100):
        r = rebuilt(recordings[name])
        half = "-" if r.half_fits is None else " to ".join(f"{x / r.seconds_recorded - 1:+.0%}" for x in r.half_fits)
        carried = ", ".join(f"{g} {x / r.seconds_recorded - 1:+.0%}" for g, x in r.carried.items())
        first.add_row(
            f"{r.part}, {r.gpu}", str(r.ops), f"{r.kernels:.0f}", f"{r.kernels_recorded:.0f}", f"{r.kernel_error:+.1%}",
            f"{r.seconds * 1e6:.0f}", f"{r.seconds_recorded * 1e6:.0f}", f"{r.time_error:+.1%}", half, carried,
            f"{r.share_of_kernels:.0%} / {r.share_of_time:.0%}", r.projection_reason.split(":")[0] or "yes",
        )  # fmt: skip
    second = _table("kernels from operator calls", "recording", "kernels", "without it", "error", "shipped table",
                    "every call", "outside the table")  # fmt: skip
    for c in from_calls(list(recordings.values())):
        second.add_row(
            c.recording, str(c.kernels), f"{c.without_it:.0f}", f"{c.error(c.without_it):+.1%}",
            f"{c.error(c.shipped):+.1%}", f"{c.error(c.every_call):+.1%}", str(c.outside),
        )  # fmt: skip
    third = _table("table operators, all steps, by the other device's e_m", "recording, part", "kernels", "recorded",
                   "error", "e_m", "us", "recorded", "error")  # fmt: skip
    for t in carried_tables([recordings[A100], recordings[V100]]):
        third.add_row(f"{t.recording} {t.part}", f"{t.kernels:.0f}", str(t.kernels_recorded), f"{t.kernel_error:+.1%}",
                      f"{t.e_m:.2f}", f"{t.seconds * 1e6:.0f}", f"{t.seconds_recorded * 1e6:.0f}",
                      f"{t.error:+.1%}")  # fmt: skip
    return [first, second, third]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 if a recording cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m ctrbench.bench.counting.validate", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the five Kineto recordings, named as in its README")
    options = parser.parse_args(argv)
    try:
        recordings = {name: recorded_calls(options.folder / f"{name}.json.gz") for name in NAMES}
    except BadRecording as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for table in tables_of(recordings):
        Console(width=170).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
