"""Targets of the operators: fast path against plain twin, forward + backward, float32, two threads, by turns.

    DIN's activation unit           >= 3x its twin at batch 4096, history 50, 32 wide
    FAT's projections and FFN       >= 1.5x the einsum twin
    jagged causal attention         >= 0.8 / fill times as fast as padded attention, at fills of 20, 50 and 80 %
    what is written in C            >= 1.5x the operators of ATen and FBGEMM that it replaces (targets/in_c.py)

Every other operator stands beside them without a target. The share of the GEMM ceiling, measured in the same turns,
says how much of the machine was left: products alone would take that share of the time.

Dims: B rows, L cap of histories, H heads, d width of a head, M queries of all rows, R = B + 1 offsets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch

from ctrbench.bench.alternate import Ratio, alternate, ratio
from ctrbench.bench.ceilings import gemm_runs, thread_count
from ctrbench.bench.operator_calls import TWIN, Pass, arguments, call_of, count_call, operators
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.targets.in_c import written_in_c
from ctrbench.bench.targets.outcome import Outcome, at_least
from ctrbench.kernels.attention import attention_fused, lower_right
from ctrbench.kernels.operator import Operator

GROUP, THREADS, GEMM_M = "kernels", 2, 1024
DIN, FAT, JAGGED = "din_attention", "field_linear", "jagged_attention"
DIN_SHAPE = {"batch": 4096, "history": 50, "width": 32}
WANTED = {DIN: 3.0, FAT: 1.5}
OF_PADDED = 0.8
"""Jagged attention may lose this share of what padding costs."""
FILLS = (0.2, 0.5, 0.8)
ROUNDS, LIMIT_S = 15, 8.0
CONTEXT_S = 2.0
PADDED = {
    "masked": "at the left under a mask made once, as the models pad", "bare": "at the right, hidden by the triangle",
}  # fmt: skip
"""Ways of torch's fused operator on [B, H, L, d]."""
Sides = Mapping[str, Callable[[], object]]


def outcomes() -> Iterator[Outcome]:
    """The three targets, then all other operators for context."""
    keep_freed_memory()
    with thread_count(THREADS):
        found = operators()
        for name, wanted in WANTED.items():
            yield from against_twin(name, found[name], wanted)
        yield from jagged(found[JAGGED])
        yield from written_in_c(ROUNDS, CONTEXT_S)
        for name, op in found.items():
            if name not in (*WANTED, JAGGED):
                yield from beside(name, op)


def against_twin(name: str, op: Operator, wanted: float) -> Iterator[Outcome]:
    """What models call against the twin, at every shape that the target names.

    Raises:
        LookupError: the operator has no such shape.
    """
    shapes = {n: s for n, s in op.shapes.items() if name != DIN or DIN_SHAPE.items() <= s.items()}
    if not shapes:
        raise LookupError(f"{name}: no benchmarked shape is {DIN_SHAPE}; it has {', '.join(op.shapes)}")
    for label, shape in shapes.items():
        args = arguments(op, shape)
        sides = {TWIN: call_of(op.twin, args, "fwd+bwd"), "run": call_of(op.run, args, "fwd+bwd")}
        times = by_turns(sides, LIMIT_S)
        found = ratio(times[TWIN], times["run"])
        work = {side: count_call(op, way, shape, "fwd+bwd").flops() for side, way in ((TWIN, op.twin), ("run", op.run))}
        yield at_least(
            GROUP, f"{op.title}, {label}, forward + backward: twin / run", wanted, found.value,
            f"{_rounds(found)}; {_shares(times, work)}", interval=(found.low, found.high),
        )  # fmt: skip


def jagged(op: Operator) -> Iterator[Outcome]:
    """Against padded attention of the same rows: the faster of a mask for padding at the left, as models pad, and of
    padding at the right, which the triangle alone hides; the other stands beside it.
    """
    for label, shape in op.shapes.items():
        if shape["fill"] not in FILLS:
            continue
        args = arguments(op, shape)
        length, wanted = int(shape["history"]), OF_PADDED / shape["fill"]
        sides = {"run": call_of(op.run, args, "fwd+bwd"), **padded_sides(args, length)}
        times = by_turns(sides, LIMIT_S)
        faster, slower = sorted(PADDED, key=lambda side: median(times[side]))
        judged, other = (ratio(times[side], times["run"]) for side in (faster, slower))
        title = f"{op.title}, {label}, forward + backward"
        tokens = f"{len(args[1])} real tokens of {len(args[4]) - 1} x {length}"
        yield at_least(
            GROUP, f"{title}: padded / run", wanted, judged.value,
            f"{_rounds(judged)}; {tokens}; padded {PADDED[faster]}, the faster; wanted is {OF_PADDED:g} / fill",
            interval=(judged.low, judged.high),
        )  # fmt: skip
        yield _context(f"{title}: padded the slower way / run", other, f"{_rounds(other)}; padded {PADDED[slower]}")


def padded_sides(args: tuple[Any, ...], length: int) -> dict[str, Callable[[], object]]:
    """Padded attention at the numbers of rows, heads and widths of a jagged call whose queries are all tokens.

    `masked` pads at the left to the length that histories are capped at, as the models do, whatever the longest of the
    batch; both give the padded output's gradient for every position.
    """
    q_MHd, offsets_R = args[0], args[4]
    lengths_B = offsets_R.diff()
    like = (len(lengths_B), q_MHd.shape[1], length, q_MHd.shape[2])
    q, k, v = (torch.randn(like, requires_grad=True) for _ in range(3))
    real_BL = torch.arange(length) >= (length - lengths_B).unsqueeze(1)
    seen_B1LL = real_BL.view(-1, 1, 1, length) & lower_right(length, length)
    mask_B1LL = torch.zeros(seen_B1LL.shape).masked_fill_(~seen_B1LL, -torch.inf)
    # rows of padding see nothing: torch's operator gives zeros there, and no NaN gradient, for one visible key
    mask_B1LL[..., 0].masked_fill_(~real_BL.unsqueeze(1), 0.0)
    return {
        "masked": call_of(lambda a, b, c: attention_fused(a, b, c, mask_B1LL), (q, k, v), "fwd+bwd"),
        "bare": call_of(lambda a, b, c: attention_fused(a, b, c, causal=True), (q, k, v), "fwd+bwd"),
    }


def beside(name: str, op: Operator) -> Iterator[Outcome]:
    """Twin / run of an operator without a target."""
    passes: Pass = "fwd" if op.served else "fwd+bwd"
    for label, shape in op.shapes.items():
        args = arguments(op, shape)
        sides = {TWIN: call_of(op.twin, args, passes), "run": call_of(op.run, args, passes)}
        times = by_turns(sides, CONTEXT_S)
        found = ratio(times[TWIN], times["run"])
        work = {"run": count_call(op, op.run, shape, passes).flops()}
        yield _context(
            f"{op.title}, {label}, {'forward' if op.served else 'forward + backward'}: twin / run", found,
            f"{name}: {_rounds(found)}; {_shares(times, work)}",
        )  # fmt: skip


def by_turns(sides: Sides, limit_s: float) -> dict[str, list[float]]:
    """Seconds of the sides and of `gemm`, a square product by the faster library."""
    products = dict(enumerate(gemm_runs(GEMM_M, torch.float32)))
    with torch.no_grad():
        tried = alternate({str(i): run for i, run in products.items()}, rounds=3)
        fastest = products[min(products, key=lambda i: min(tried[str(i)]))]
    return alternate({**sides, "gemm": fastest}, rounds=ROUNDS, limit_s=limit_s)


def _shares(times: Mapping[str, list[float]], work: Mapping[str, float]) -> str:
    """Executed FLOPs over time, as a share of the ceiling."""
    parts = []
    for side, flops in work.items():
        share = flops / (2.0 * GEMM_M**3) * ratio(times["gemm"], times[side]).value
        parts.append(f"{side} executes {flops / 1e9:.3g} GFLOP at {share:.0%} of the GEMM ceiling")
    return ", ".join(parts)


def _rounds(found: Ratio) -> str:
    return f"{found.rounds} rounds, float32, {THREADS} threads"


def _context(target: str, found: Ratio, how: str) -> Outcome:
    measured = f"{found.value:.3g}x [{found.low:.3g}, {found.high:.3g}]"
    return Outcome(group=GROUP, target=target, wanted="", measured=measured, verdict="context", how=how)
