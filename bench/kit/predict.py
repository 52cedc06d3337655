"""Writes what this code predicts of the GPU kit on every catalogued GPU, before any GPU has been seen.

`python -m ctrbench.bench.kit.predict --date 2026-11-26` writes `bench/predictions/<date>.json`: kernels with their
band, FLOPs, `mfu_bound`, a lower bound of time, and the kernels' modelled time with its band or why it is withheld. The
file follows from the code alone. It is committed and never written again: later code predicts in a later file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from ctrbench.bench import registry
from ctrbench.bench.counting.kernel_time import parameter_sets
from ctrbench.bench.counting.projection import Interval, project
from ctrbench.bench.counting.published import PublishedPoint
from ctrbench.bench.hardware import catalogue, this_machine
from ctrbench.bench.kit.cases import candidates, kit_dtype
from ctrbench.bench.kit.predicted import FOLDER, SCHEMA, SCHEMA_VERSION
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.records import write_atomic

DIGITS = 4
"""Significant digits; intervals and bounds are rounded outwards."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 2 where the code is not committed."""
    parser = argparse.ArgumentParser(prog="python -m ctrbench.bench.kit.predict", description=__doc__)
    parser.add_argument("--date", required=True, help="ISO day of the commit that will hold the file")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    given = parser.parse_args(argv)
    try:
        print(write(given.date, given.out))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(day: str, folder: Path) -> Path:
    """Writes a file of a day beside those that are there: `<day>.json`, later `<day>.2.json` and so on.

    Raises:
        BadInput: no ISO day, or the tree holds changes, so that no commit names the code.
    """
    try:
        date.fromisoformat(day)
    except ValueError:
        raise BadInput(f"--date {day}: give an ISO day, e.g. 2026-11-26") from None
    names = (f"{day}.json" if n == 1 else f"{day}.{n}.json" for n in count(1))
    out, here = next(folder / name for name in names if not (folder / name).exists()), this_machine()
    if here["dirty"] is not False:
        raise BadInput("the tree is no clean checkout: commit first, so that the file can name the code behind it")
    body = predictions(registry.model_names())
    head = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "date": day, "commit": here["commit"]}
    write_atomic(out, dumps({**head, **body}).encode())
    return out


def dumps(body: Mapping[str, Any]) -> str:
    """JSON with one step a line."""
    steps = ",\n".join(json.dumps(step, separators=(",", ":")) for step in body["steps"])
    head = {key: value for key, value in body.items() if key != "steps"}
    return json.dumps(head, indent=1)[:-2] + f',\n "steps": [\n{steps}\n]\n}}\n'


def gpu_dtypes() -> dict[str, str | None]:
    """Catalogued GPU -> dtype of the kit on it; None where the catalogue has no peak for that."""
    found = {name: (gpu, kit_dtype(gpu)) for name, gpu in catalogue().items()}
    return {name: dtype if dtype in gpu.peak_tflops else None for name, (gpu, dtype) in found.items()}


def predictions(models: Iterable[str]) -> dict[str, Any]:
    """Everything but date and commit, of these models."""
    gpus, reasons = gpu_dtypes(), dict[str, int]()
    known = {name: dtype for name, dtype in gpus.items() if dtype is not None}
    steps = [
        _step(point, gpus, reasons)
        for model in models
        for point in candidates(registry.model_spec(model), known)
    ]  # fmt: skip
    used = {name: fit.id for name, fit in parameter_sets().items() if gpus.get(name) == fit.dtype}
    return {"gpus": gpus, "parameters": used, "reasons": list(reasons), "steps": steps}


def _step(point: PublishedPoint, gpus: Mapping[str, str | None], reasons: dict[str, int]) -> list[Any]:
    def why(text: str) -> int:
        return reasons.setdefault(text, len(reasons))

    k = point.kernels
    if k.value is None or k.low is None or k.high is None:
        kernels: Any = why(k.reason)
    else:
        kernels = _band(Interval(k.value, k.low, k.high))
    flops = None if point.withheld else rounded(point.flops_per_sample * point.batch)
    rows = [_on_gpu(point, gpu, dtype, why) for gpu, dtype in gpus.items()]
    return [point.model, point.preset, point.batch, point.phase, flops, kernels, rows]


def _on_gpu(point: PublishedPoint, gpu: str, dtype: str | None, why: Any) -> Any:
    if dtype is None:
        return why(f"peak_missing_for_dtype: {gpu} has neither a tf32 nor an fp32 peak in bench/hardware.toml")
    if point.withheld:
        return why(point.withheld)
    bound = point.bounds[gpu]
    idle = point.counts.flops() - point.flops_per_sample * point.batch
    found = project(point.counts, catalogue()[gpu], dtype, uncachable=bound.bytes, idle_flops=idle)
    time = _band(found.time_s) if found.time_s else why(found.reason)
    return [rounded(bound.value, 1), rounded(found.bound_s, -1), time]


def _band(found: Interval) -> list[float]:
    return [rounded(found.low, -1), rounded(found.value), rounded(found.high, 1)]


def rounded(value: float, side: int = 0) -> float:
    """`DIGITS` significant digits: the nearest, or towards -1 down, +1 up."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1)
    steps = value / unit
    whole = round(steps) if side == 0 or abs(steps - round(steps)) < 1e-9 else math.floor(steps) + (side > 0)
    return float(f"{whole * unit:.{DIGITS}g}")


if __name__ == "__main__":
    sys.exit(main())
