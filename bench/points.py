"""Points of a sweep over width and length, from the few lines of a suite's job to one entry each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctrbench.datasets.random_batches import TRACKS

NO_LENGTH = "no history in the batches: what a step costs does not depend on a length"


def sweep_points(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of `plan.Entry`, a point each: every width at one length, then every length at one width.

    A job has `sweep: {width, length, at: {width, length}}`. A model of its list has
    `scaled`, fields of its config as multiples of the width d;
    `options`, fields that stay;
    `label`, put before the label `d=64,T=50`;
    `events`, for a model whose batch must hold a fixed number of events: its batch is events / T.
    """
    sweep, at = job["sweep"], job["sweep"]["at"]
    pairs = dict.fromkeys([(d, at["length"]) for d in sweep["width"]] + [(at["width"], t) for t in sweep["length"]])
    tabular = TRACKS[job["data"]] == "tabular"
    points = []
    for listed in job["models"]:
        widths = listed.get("width", sweep["width"])
        for d, t in pairs:
            if d not in widths and t == at["length"]:
                continue
            points.append(_point(listed, d, t, skip=NO_LENGTH if tabular and t != at["length"] else ""))
    return points


def _point(listed: Mapping[str, Any], d: int, t: int, skip: str) -> dict[str, Any]:
    run: dict[str, Any] = {"history_length": t}
    if "events" in listed:
        run["batch"] = max(1, listed["events"] // t)
    scaled = {name: times_d(value, d) for name, value in listed.get("scaled", {}).items()}
    label = ",".join(part for part in (listed.get("label", ""), f"d={d}", f"T={t}") if part)
    return {"model": listed["model"], "options": {**scaled, **listed.get("options", {})}, "run": run, "label": label,
            "skip": skip}  # fmt: skip


def times_d(value: Any, d: int) -> Any:
    """A multiple of d, or every multiple of a list, as a tuple."""
    return tuple(times_d(v, d) for v in value) if isinstance(value, list | tuple) else int(value * d)
