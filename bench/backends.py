"""One attention of a model through every back end that torch has, side by side.

Dims: B batch, H heads, T tokens, d width of a head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ctrbench.bench.alternate import alternate, ratio
from ctrbench.bench.assemble import as_record, base_columns, lookup, model_config
from ctrbench.bench.mode_timing import fresh_cache
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets import random_batches
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import RunRecord

ATTENTION = "attention"
"""Variant of the rows."""
KERNELS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
BASELINE, FLEX = "math", "flex"
ROUNDS, LIMIT_S = 15, 20.0
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def backend(name: str, tokens: int, device: str) -> Run:
    """Causal attention [B, H, T, d] of three tensors of that shape through one back end."""
    if name == FLEX:
        return _flex(tokens, device)

    def run(q_BHTd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor) -> Tensor:
        with sdpa_kernel(KERNELS[name]):
            return torch.nn.functional.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True)

    return run


def _flex(tokens: int, device: str) -> Run:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, tokens, tokens, device=device)
    program = torch.compile(flex_attention)
    return lambda q_BHTd, k_BHTd, v_BHTd: program(q_BHTd, k_BHTd, v_BHTd, block_mask=mask)


def step_of(run: Run, inputs: tuple[Tensor, Tensor, Tensor], grad_BHTd: Tensor) -> Callable[[], None]:
    """Forward and backward of one call."""

    def step() -> None:
        for x in inputs:
            x.grad = None
        run(*inputs).backward(grad_BHTd)

    return step


def run_backends(spec: RunSpec, folder: Path) -> RunRecord:
    """Forward and backward by turns; a back end that this device or this torch refuses is a row with the reason."""
    model_spec = lookup(spec)
    config = model_config(spec, model_spec)
    shape = (spec.batch, config.heads, spec.history_length, config.width // config.heads)
    torch.manual_seed(spec.seed)
    q, k, v = (torch.randn(shape, device=spec.device, requires_grad=True) for _ in range(3))
    grad = torch.randn(shape, device=spec.device)
    base = base_columns(spec, model_spec.family, random_batches.TRACKS[spec.data]) | {"phase": "train"}
    sides: dict[str, Callable[[], object]] = {}
    rows = []
    with fresh_cache("compile"):
        for name in (*KERNELS, FLEX):
            try:
                step = step_of(backend(name, spec.history_length, spec.device), (q, k, v), grad)
                step()
                sides[name] = step
            except Exception as error:  # what is refused, and by whom, differs from back end to back end
                rows.append(withheld(base, "attention_time", _reason(error), scope=name))
        samples = alternate(sides, rounds=ROUNDS, limit_s=LIMIT_S)
    found: dict[str, Any] = {n: asdict(ratio(s, samples[BASELINE])) for n, s in samples.items()}
    for name, r in found.items():
        known = {"ci_low": r["low"], "ci_high": r["high"], "n": r["rounds"]}
        rows.append(make(base, "attention_time", r["value"], "measured", scope=name, **known))
    extra = {"shape": list(shape), "samples": samples, "family": model_spec.family}
    return as_record(spec, rows, extra)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"refused: {type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
