"""Points of a sweep over width and length, from the few lines of a suite's job to one entry each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from ctrbench.bench.hardware import bf16_units
from ctrbench.datasets.random_batches import TRACKS

PLAIN = ("eager", "float32")
NO_UNITS = "no bf16 units: this CPU emulates such products in float32, so their rate says nothing; see suite=modes"
NO_LENGTH = "no history in the batches: what a step costs does not depend on a length"


def sweep_points(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of `plan.Entry`, a point each: every width at one length, then every length at one width.

    A job has `sweep: {width, length, at: {width, length}}`. A model of its list has
    `scaled`, fields of its config as multiples of the width d;
    `options`, fields that stay;
    `label`, put before the label `d=64,T=50`;
    `events`, for a model whose batch must hold a fixed number of events: its batch is events / T;
    `batch`, its batch, instead;
    `width`, `length`, its own instead of the sweep's;
    `dtype`, that it is timed in; bfloat16 points are skipped where the CPU has no units for them.
    """
    sweep, at = job["sweep"], job["sweep"]["at"]
    tabular = TRACKS[job["data"]] == "tabular"
    points = []
    for listed in job["models"]:
        widths, lengths = (listed.get(size, sweep[size]) for size in ("width", "length"))
        narrow = listed.get("dtype", "float32") != "float32"
        for d, t in dict.fromkeys([(d, at["length"]) for d in widths] + [(at["width"], t) for t in lengths]):
            if d not in widths and t == at["length"]:
                continue
            skip = NO_LENGTH if tabular and t != at["length"] else NO_UNITS if narrow and not bf16_units() else ""
            points.append(_point(listed, d, t, skip))
    return points


def mode_points(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of `plan.Entry`: every model of a job in every mode; what it counts is counted once, eager in float32.

    They are brief: no published size is counted beside them.

    A job has `modes: {compile, dtype}`, lists of values of `run.compile` and `run.dtype`.
    A model of its list has `options` and `batch`, where they are not its defaults and the run's.
    """
    points = []
    for listed in job["models"]:
        batch = {"batch": listed["batch"]} if "batch" in listed else {}
        for compile, dtype in product(job["modes"]["compile"], job["modes"]["dtype"]):
            run = {"compile": compile, "dtype": dtype, **batch}
            points.append({
                "model": listed["model"], "options": listed.get("options", {}), "run": run, "brief": True,
                "label": f"{compile},{dtype}", "uncounted": (compile, dtype) != PLAIN,
            })  # fmt: skip
    return points


def _point(listed: Mapping[str, Any], d: int, t: int, skip: str) -> dict[str, Any]:
    run: dict[str, Any] = {"history_length": t}
    if "events" in listed:
        run["batch"] = max(1, listed["events"] // t)
    run |= {name: listed[name] for name in ("batch", "dtype") if name in listed}
    scaled = {name: times_d(value, d) for name, value in listed.get("scaled", {}).items()}
    label = ",".join(part for part in (listed.get("label", ""), f"d={d}", f"T={t}") if part)
    return {"model": listed["model"], "options": {**scaled, **listed.get("options", {})}, "run": run, "label": label,
            "skip": skip}  # fmt: skip


def times_d(value: Any, d: int) -> Any:
    """A multiple of d, or every multiple of a list, as a tuple."""
    return tuple(times_d(v, d) for v in value) if isinstance(value, list | tuple) else int(value * d)
