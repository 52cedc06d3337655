"""Sets records of real GPUs against what was predicted: hits, misses, violated bounds, coverage of the bands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scipy.stats import binomtest

from ctrbench.bench.hardware import HardwareUnknown, find
from ctrbench.bench.kit import record as records
from ctrbench.bench.kit.predicted import Band, Key, Prediction, Predictions
from ctrbench.datasets.errors import BadInput

Verdict = Literal["hit", "miss", "held", "violated"]
BANDS = ("kernels per step", "kernel time s")
"""Quantities with a two-sided interval; all others are bounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One predicted quantity of one step and what was measured."""

    record: str
    gpu: str
    model: str
    preset: str
    batch: int
    phase: str
    quantity: str
    low: float | None
    """None: no lower limit."""
    high: float | None
    measured: float
    verdict: Verdict
    before: bool
    """Predicted before the record was begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unscored:
    """What a record holds, or owed, and nothing can be said of."""

    record: str
    what: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A record as the page names it."""

    name: str
    body: Mapping[str, Any]
    gpu: str | None
    predictions: str
    before: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How often measured values lay in the predicted intervals."""

    quantity: str
    before: bool
    hits: int
    n: int
    low: float
    high: float
    """95 % Wilson interval of the share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Everything the ledger shows."""

    sources: tuple[Source, ...] = ()
    rows: tuple[Row, ...] = ()
    unscored: tuple[Unscored, ...] = ()

    @property
    def violated(self) -> list[Row]:
        """Bounds that a measurement broke: faults of the counting or of the catalogue."""
        return [row for row in self.rows if row.verdict == "violated"]

    @property
    def coverage(self) -> list[Coverage]:
        """By quantity with a band, predictions before the record apart from those after it."""
        return [
            wilson(quantity, before, [r.verdict == "hit" for r in rows])
            for quantity in BANDS
            for before in (True, False)
            if (rows := [r for r in self.rows if r.quantity == quantity and r.before == before])
        ]


def wilson(quantity: str, before: bool, hits: Sequence[bool]) -> Coverage:
    """Coverage of at least one prediction with its interval."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(confidence_level=0.95, method="wilson")
    return Coverage(
        quantity=quantity, before=before, hits=sum(hits), n=len(hits), low=float(interval.low),
        high=float(interval.high),
    )  # fmt: skip


def score(paths: Sequence[Path], predicted: Sequence[Predictions]) -> Score:
    """Scores record files.

    Args:
        paths: the files.
        predicted: committed predictions, oldest first.

    Raises:
        BadInput: a file that is no record, a dry run, two records of one name, or there are no predictions.
    """
    if not predicted:
        raise BadInput("no predictions are committed: python -m ctrbench.bench.kit.predict writes them")
    sources: list[Source] = []
    rows: list[Row] = []
    unscored: list[Unscored] = []
    for path in paths:
        with records.readable(path):
            source, chosen = _source(path, predicted)
            judged = list(_record(source, chosen))
        if any(s.name == source.name for s in sources):
            raise BadInput(f"{path}: two records are named {source.name}; rename one, the ledger tells them by name")
        sources.append(source)
        for found in judged:
            if isinstance(found, Row):
                rows.append(found)
            else:
                unscored.append(found)
    return Score(sources=tuple(sources), rows=tuple(rows), unscored=tuple(unscored))


def _source(path: Path, predicted: Sequence[Predictions]) -> tuple[Source, Predictions]:
    body = records.load(path)
    if body["dry_run"] or any(m.get("dry_run") for m in body["models"].values()):
        raise BadInput(f"{path}: a dry run: it measured no GPU and is never scored; run `make gpu-kit` on a CUDA box")
    earlier = [p for p in predicted if _before(p, body)]
    chosen = earlier[-1] if earlier else predicted[-1]
    try:
        gpu = find(body["device"]["name"]).name
    except HardwareUnknown:
        gpu = None
    name = path.stem if path.stem != "record" else path.resolve().parent.name
    return Source(name=name, body=body, gpu=gpu, predictions=chosen.name, before=bool(earlier)), chosen


def _before(predictions: Predictions, body: Mapping[str, Any]) -> bool:
    """Dated before the record's day, or in its checkout when it was begun, byte for byte."""
    listed = body.get("predictions", {}).get(predictions.name) == predictions.sha256
    return listed or predictions.date < str(body["started"])[:10]


def _record(source: Source, predictions: Predictions) -> Iterator[Row | Unscored]:
    if source.gpu is None:
        reason = f"device_unknown: {source.body['device']['name']!r} is not in bench/hardware.toml"
        yield Unscored(record=source.name, what="every model", reason=reason)
        return
    for model, body in source.body["models"].items():
        if not body["phases"]:
            yield Unscored(record=source.name, what=model, reason=body.get("reason", "") or body["status"])
            continue
        for phase, timing in body["phases"].items():
            yield from _step(source, predictions, (model, body["preset"], body["batch"], phase), body, timing)


def _step(
    source: Source, predictions: Predictions, key: Key, body: Mapping[str, Any], timing: Mapping[str, Any]
) -> Iterator[Row | Unscored]:
    assert source.gpu is not None
    step = f"{key[0]} {key[1]}, batch {key[2]}, {key[3]}"
    p = predictions.find(source.gpu, key)
    if p is None:
        yield Unscored(record=source.name, what=step, reason=f"{predictions.name} has no prediction for it")
        return
    counted = (body.get("flops") or {}).get("value", {}).get(key[3])
    if p.flops and counted and abs(counted / p.flops - 1) > 1e-3:
        reason = f"the record counts {counted:.4g} FLOPs, {p.flops:.4g} were predicted: not the same model any more"
        yield Unscored(record=source.name, what=step, reason=reason)
        return
    if p.dtype is not None and p.dtype != source.body["dtype"]:
        reason = f"predicted for {p.dtype}, recorded in {source.body['dtype']}"
        yield Unscored(record=source.name, what=step, reason=reason)
        return
    measured, lost = _measured(key[3], body, timing)
    for quantity, limits, why in _predicted(p):
        value = measured.get(quantity)
        if limits is None or value is None:
            reason = f"not predicted: {why}" if limits is None else f"not measured: {lost[quantity]}"
            yield Unscored(record=source.name, what=f"{step}: {quantity}", reason=reason)
            continue
        yield _row(source, key, quantity, limits, value)


Limits = tuple[float | None, float | None]


def _predicted(p: Prediction) -> Iterator[tuple[str, Limits | None, str]]:
    def band(found: Band | None) -> Limits | None:
        return (found.low, found.high) if found else None

    least = (p.bound_s, None) if p.bound_s is not None else None
    yield BANDS[0], band(p.kernels), p.reasons.get("kernels", "")
    yield BANDS[1], band(p.time_s), p.reasons.get("time_s", "")
    yield "step time s, at least", least, p.reasons.get("bound_s", "")
    yield "kernel time s, at least", least, p.reasons.get("bound_s", "")
    yield (
        "MFU, at most", (None, p.mfu_bound) if p.mfu_bound is not None else None, p.reasons.get("mfu_bound", "")
    )  # fmt: skip


def _measured(
    phase: str, body: Mapping[str, Any], timing: Mapping[str, Any]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """(quantity -> value or None, quantity -> why it is None)."""
    trace = body.get("trace") or {"status": "skipped", "reason": "not traced"}
    kernels: Mapping[str, Any] = trace["phases"][phase] if trace["status"] == "ok" else {}
    clock = timing["event_s"] if timing["status"] == "ok" else None
    mfu = timing["mfu"]
    time_s = kernels["kernel_ns"]["median"] * 1e-9 if kernels else None
    found = {
        BANDS[0]: kernels["kernels"]["median"] if kernels else None, BANDS[1]: time_s,
        "step time s, at least": clock["p50"] if clock else None, "kernel time s, at least": time_s,
        "MFU, at most": mfu["value"],
    }  # fmt: skip
    untraced, untimed = trace["reason"], timing["reason"] or "no event"
    lost = {
        BANDS[0]: untraced, BANDS[1]: untraced, "kernel time s, at least": untraced, "step time s, at least": untimed,
        "MFU, at most": mfu.get("reason", ""),
    }  # fmt: skip
    return found, lost


def _row(source: Source, key: Key, quantity: str, limits: Limits, value: float) -> Row:
    low, high = limits
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{quantity} of {key[0]} is {value}")
    inside = (low is None or value >= low) and (high is None or value <= high)
    verdict: Verdict = ("hit" if inside else "miss") if quantity in BANDS else ("held" if inside else "violated")
    assert source.gpu is not None
    return Row(
        record=source.name, gpu=source.gpu, model=key[0], preset=key[1], batch=key[2], phase=key[3], quantity=quantity,
        low=low, high=high, measured=value, verdict=verdict, before=source.before,
    )  # fmt: skip
