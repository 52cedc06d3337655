"""Where the time of one training step goes, against its floor: what the pages of docs/performance are made of.

    python -m ctrbench.bench.breakdown onetrans           one model, as Markdown
    python -m ctrbench.bench.breakdown --write docs/performance

The floor is the sum of two times that no code can beat at these counts: model FLOPs over the rate of the fastest
product, and the bytes that operators without products read and write over the rate of a copy. They are added, not the
larger taken: on this side of a fused kernel the two do not overlap. The second is the floor of the operators as they
are cut; a fusion lowers it. Shares are torch.profiler's, of a run of its own: recording costs time, so they are shares.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from ctrbench.bench.assemble import fed
from ctrbench.bench.ceilings import measure_ceilings, thread_count
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counting.ops import classify_name
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.step import TrainStep
from ctrbench.bench.targets.mfu import POINTS, THREADS, Point, alone, flops_of, spec_of, timed

STEPS, WARMUP, HELD, TOP = 5, 2, 4, 8
PAGES = (
    *POINTS,
    Point(title="DIN dim 16 T=50 B4096", model="din", data="random_sequence", batch=4096, wanted={}),
    Point(title="DeepFM dim 16, MLP 400-400-400, B4096", model="deepfm", data="random_tabular", batch=4096,
          config={"dim": 16, "mlp": (400, 400, 400)}, wanted={}),
)  # fmt: skip
"""One page each."""
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Operators of one family, or one operator."""

    name: str
    share: float
    """Of the time of all operators."""
    calls: float
    """A step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Breakdown:
    """One model's step."""

    point: Point
    step_s: float
    mfu: float
    flops: float
    gemm_gflops: float
    bytes: float
    """Operand bytes of operators without products, counted."""
    copy_gbs: float
    families: tuple[Share, ...]
    operators: tuple[Share, ...]

    @property
    def floor_s(self) -> tuple[float, float]:
        """(products, everything else)."""
        return self.flops / self.gemm_gflops / 1e9, self.bytes / self.copy_gbs / 1e9


def shares(point: Point) -> tuple[float, tuple[Share, ...], tuple[Share, ...]]:
    """In a process of its own: (bytes of operators without products, families, operators), largest first."""
    keep_freed_memory()
    spec = spec_of(point)
    with thread_count(spec.threads):
        _, _, _, model, _, batches = fed(spec)
        step, held = TrainStep(model.train(), lr=spec.lr), cycle(islice(batches, HELD))
        counted = count_step(model, next(held), train=True)
        for _ in range(WARMUP):
            step(next(held))
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(STEPS):
                step(next(held))
    moved = sum(r.bytes_own for r in counted.rows if not r.flops)
    families, operators = (
        defaultdict[str, list[float]](lambda: [0.0, 0.0]),
        defaultdict[str, list[float]](lambda: [0.0, 0.0]),
    )
    for event in recorded.key_averages():
        if event.device_type != DeviceType.CPU or event.self_cpu_time_total <= 0:
            continue
        kind, family = classify_name(event.key) if "::" in event.key else ("U", "python and autograd")
        name = "python and autograd" if kind == "U" and "evaluate_function" in event.key else family
        for table, key in ((families, name), (operators, event.key)):
            table[key][0] += event.self_cpu_time_total
            table[key][1] += event.count
    return moved, _ranked(families), _ranked(operators)[:TOP]


def _ranked(table: dict[str, list[float]]) -> tuple[Share, ...]:
    whole = sum(time for time, _ in table.values())
    made = [Share(name=n, share=time / whole, calls=calls / STEPS) for n, (time, calls) in table.items()]
    return tuple(sorted(made, key=lambda s: -s.share))


def breakdown(point: Point) -> Breakdown:
    """Counts, times and profiles a point, each in a process of its own."""
    flops = flops_of(point)
    found = alone(timed, spec_of(point), flops)
    moved, families, operators = alone(shares, point)
    copy = measure_ceilings(THREADS, quick=True).copy_gbs
    return Breakdown(
        point=point, step_s=found["step_s"], mfu=found["mfu"], flops=flops, gemm_gflops=found["gemm_gflops"],
        bytes=moved, copy_gbs=copy, families=families, operators=operators,
    )  # fmt: skip


def markdown(b: Breakdown) -> str:
    """The measured part of a page."""
    machine = this_machine()
    products, rest = b.floor_s
    lines = [
        f"Measured by `python -m ctrbench.bench.breakdown {b.point.model}` on {machine['cpu']}, {THREADS} threads, "
        f"torch {machine['torch']}, commit {machine['commit']}: {b.point.title}, float32, eager.",
        "",
        "| | | how it is known |",
        "|---|---:|---|",
        f"| step | {1e3 * b.step_s:.0f} ms | measured, by turns with the product |",
        f"| model FLOPs a step | {b.flops / 1e9:.1f} G | counted |",
        f"| rate of the fastest product | {b.gemm_gflops:.0f} GFLOP/s | measured in the same process |",
        f"| mfu_cpu | {100 * b.mfu:.0f} % | derived, round by round |",
        f"| floor: products | {1e3 * products:.0f} ms | FLOPs / rate |",
        f"| bytes of operators without products | {b.bytes / 1e6:.0f} MB | counted operands |",
        f"| floor: the rest as it is cut | {1e3 * rest:.0f} ms | bytes / {b.copy_gbs:.1f} GB/s of a copy |",
        f"| floor / step | {100 * (products + rest) / b.step_s:.0f} % | derived |",
        "",
        "| family of operators | share of operator time | calls a step |",
        "|---|---:|---:|",
        *(f"| {s.name} | {100 * s.share:.1f} % | {s.calls:.0f} |" for s in b.families if s.share >= 0.01),
        "",
        "| operator | share | calls a step |",
        "|---|---:|---:|",
        *(f"| `{s.name}` | {100 * s.share:.1f} % | {s.calls:.0f} |" for s in b.operators),
    ]
    return "\n".join(lines)


def write(text: str, file: Path) -> None:
    """Replaces what stands between the marks of a page; the text around it is somebody's own."""
    page = file.read_text(encoding="utf-8") if file.is_file() else f"# {file.stem}\n\n{BEGIN}\n{END}\n"
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{file}: no `{BEGIN}` ... `{END}`; put the marks where the table belongs")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    file.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page), encoding="utf-8")


def main(arguments: Iterable[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="breakdown", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(p.model for p in PAGES)}")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="put the tables into FOLDER/<model>.md")
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    known = {p.model: p for p in PAGES}
    for model in options.models or known:
        if model not in known:
            print(f"no page of {model!r}; pages are {', '.join(known)}", file=sys.stderr)
            return 2
        text = markdown(breakdown(known[model]))
        if options.write:
            write(text, options.write / f"{model}.md")
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
