"""One number of a table: value, band, how it is known; how it is found among the rows and how it is printed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ctrbench.reports.declared import Style
from ctrbench.reports.measures import MEASURES

Array = npt.NDArray[Any]
KNOWN = ("ok", "unstable")
BANDED = (
    "auc", "auc_delta", "auc_shuffled", "joint_gain", "probe_gain", "pair_stability", "recall_at_k", "ndcg_at_k",
    "recall_gain", "option_delta", "auc_pair", "scaling_exponent", "scaling_slope",
)  # fmt: skip
"""Measures that stand with their band outside the page too."""
SWEEP = "sweep"
"""Preset of the points of a sweep: they have a section of their own and enter no other table."""
RETRIEVAL = "retrieval"
"""Preset of models that are trained to retrieve and ranked by nobody; a section of their own too."""
DATAPATH = "datapath"
"""Preset of rows that say how data reaches a model; a section of their own too."""
PROCESSES = "processes"
"""Preset of trainings over processes: they are timed otherwise and have a section of their own too."""
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Cell:
    """A number, or why there is none."""

    value: float | None
    metric: str
    """Id in the catalogue; decides how it is printed."""
    origin: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    status: str = "ok"
    reason: str = ""
    note: str = ""
    """Shown small beside the number: the batch, how many repeats failed."""
    signed: bool = False

    @property
    def text(self) -> str:
        """`0.7896`, `12.3 ms`, or `— (reason)`."""
        if self.value is None:
            return f"— ({self.reason or 'no row'})"
        return ("+" if self.signed and self.value > 0 else "") + text_of(self.value, self.metric)

    @property
    def band(self) -> str:
        """`[low, high]` in the unit of `text`, empty where there is none."""
        if self.value is None or self.low is None or self.high is None:
            return ""
        ends = (text_of(v, self.metric, like=self.value).split(" ")[0] for v in (self.low, self.high))
        low, high = (("+" if self.signed and not t.startswith("-") else "") + t for t in ends)
        return f"[{low}, {high}]"

    def negated(self) -> Cell:
        """The same difference the other way round."""
        assert self.value is not None
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return replace(self, value=-self.value, low=low, high=high)

    def over(self, other: Cell, metric: str, scale: float = 1.0) -> Cell:
        """`scale * self / other` as a derived cell; modelled if an input is, withheld if an input is."""
        missing = next((c for c in (self, other) if c.value is None), None)
        if missing is not None or not other.value:
            return absent(metric, missing.reason if missing else "division by zero")
        assert self.value is not None
        origin = "modelled" if "modelled" in (self.origin, other.origin) else "derived"
        shaky = next((c for c in (self, other) if c.status == "unstable"), self)
        low = scale * self.value / other.high if other.high else None
        high = scale * self.value / other.low if other.low else None
        return Cell(
            scale * self.value / other.value, metric, origin, low, high, status=shaky.status, reason=shaky.reason
        )


def absent(metric: str, reason: str) -> Cell:
    """A withheld number."""
    return Cell(None, metric, "abstained", status="skipped", reason=reason)


def text_of(value: float, metric: str, like: float | None = None) -> str:
    """A value in the style of its measure. `like` fixes the prefix, so that a band reads like its middle."""
    if metric not in MEASURES:
        return f"{value:.4g}"
    m, base = MEASURES[metric], value if like is None else like
    if not math.isfinite(value):
        return "∞" if value > 0 else "n/k"
    return str(_STYLES[m.style](value, base, m.unit))


def _time(value: float, base: float, _: str) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(base) >= factor:
            return f"{_figures(value / factor)} {unit}"
    return f"{_figures(value * 1e9)} ns"


def _prefixed(value: float, base: float, unit: str) -> str:
    short = unit.split("/")[0]
    short = short if short in ("FLOP", "B") else ""
    for factor, prefix in PREFIXES:
        if abs(base) >= factor:
            return f"{_figures(value / factor)} {prefix}{short}".rstrip()
    return f"{_figures(value)} {short}".rstrip()


def _count(value: float, base: float, _: str) -> str:
    return f"{value:,.0f}"


def _percent(value: float, base: float, _: str) -> str:
    v = 100 * value
    return f"{v:.1f} %" if abs(100 * base) >= 1 else f"{v:.2g} %"


def _auc(value: float, base: float, _: str) -> str:
    return f"{value:.4f}"


def _number(value: float, base: float, _: str) -> str:
    return _figures(value)


def _figures(value: float) -> str:
    """Three significant digits without an exponent where that stays short."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits <= 5 else f"{value:.2e}"


_STYLES: Mapping[Style, Any] = {
    "time": _time,
    "bytes": _prefixed,
    "si": _prefixed,
    "count": _count,
    "percent": _percent,
    "auc": _auc,
    "number": _number,
}


TEXT = ("run", "model", "variant", "preset", "family", "data", "split", "track", "phase", "scope", "device", "dtype",
        "metric", "unit", "origin", "better", "status", "reason")  # fmt: skip
NUMBERS = ("value", "sd", "p10", "p50", "p90", "p99", "ci_low", "ci_high", "seed", "threads", "batch", "n")


def data_labels(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(data, split) -> how tables name it: the split is said where one data set ran under several."""
    known = set(pairs)
    splits = {d: {s for e, s in known if e == d and s} for d, _ in known}
    return {(d, s): f"{d} · {s}" if s and len(splits[d]) > 1 else d for d, s in known}


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with empty text for missing text and plain floats, so that filters need no missing-value logic.

    `trained` marks the rows of rankers that ran here, of whatever size; the others were traced at published sizes, are
    points of a sweep on random batches, say how data reaches them, are of trainings over processes, retrieve, probe a
    pre-training, which is no variant of a ranker, or are of requests that were served, whose batch and scope mean other
    things.

    Two blocks of memory, objects and floats: a page filters thousands of times, and a frame of separate
    Arrow-backed columns makes each filter ten times as slow.
    """
    text = frame[list(TEXT)].astype(object)
    text = text.where(text.notna(), "").map(str)
    text.loc[text["preset"] == "", "preset"] = "small"
    pairs = list(zip(text["data"], text["split"], strict=True))
    labels = data_labels(pairs)
    text["data"] = [labels[p] for p in pairs]
    numbers = frame[list(NUMBERS)].apply(pd.to_numeric, errors="coerce").astype("float64")
    left = pd.DataFrame(np.array(text.to_numpy(), dtype=object), columns=list(TEXT), dtype=object)
    body = pd.concat([left, pd.DataFrame(numbers.to_numpy(dtype="float64"), columns=list(NUMBERS))], axis=1)
    aside = text["preset"].str.startswith(("published", SWEEP, RETRIEVAL, DATAPATH, PROCESSES))
    aside |= text["metric"].str.startswith("probe_")
    aside |= text["phase"] == "serve"
    return body.assign(trained=~aside.to_numpy(dtype=bool))


class _Columns:
    """Columns of a frame as arrays, and where the rows of each measure lie: a page asks tens of thousands of times."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.rows = len(frame)
        self._arrays: dict[str, Array] = {}
        self._by_metric: dict[str, Array] | None = None

    def array(self, frame: pd.DataFrame, name: str) -> Array:
        if name not in self._arrays:
            self._arrays[name] = frame[name].to_numpy()
        return self._arrays[name]

    def find(self, frame: pd.DataFrame, wanted: Mapping[str, Any]) -> Array:
        """Numbers of the rows whose columns equal the wanted values; None asks for nothing."""
        asked = {name: value for name, value in wanted.items() if value is not None}
        metric = asked.pop("metric", None)
        at = np.arange(self.rows) if metric is None else self._of(frame, metric)
        for name, value in asked.items():
            if not len(at):
                break
            at = at[np.asarray(self.array(frame, name)[at] == value, dtype=bool)]
        return at

    def _of(self, frame: pd.DataFrame, metric: str) -> Array:
        if self._by_metric is None:
            found: dict[str, list[int]] = {}
            for i, name in enumerate(self.array(frame, "metric").tolist()):
                found.setdefault(name, []).append(i)
            self._by_metric = {name: np.asarray(rows) for name, rows in found.items()}
        return self._by_metric.get(metric, _NONE)


_NONE = np.empty(0, dtype=np.int64)
_known: dict[int, tuple[weakref.ref[pd.DataFrame], _Columns]] = {}
"""Frames that live, by identity: they cannot be hashed. Nobody changes the rows of a tidy frame in place."""


def _columns(frame: pd.DataFrame) -> _Columns:
    key = id(frame)
    if key not in _known:
        _known[key] = weakref.ref(frame, lambda _: _known.pop(key, None)), _Columns(frame)
    return _known[key][1]


def where(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows whose columns equal the wanted values; None asks for nothing."""
    return frame.take(_columns(frame).find(frame, wanted))


def pick(frame: pd.DataFrame, metric: str, *, scope: str | None = "", signed: bool = False, **wanted: Any) -> Cell:
    """The one number that the rows of a measure say.

    A row over all seeds wins over rows of single seeds; several processes give their median with the range;
    of several batches the largest is taken and named. Rows that failed beside others are counted in the note.

    Args:
        frame: tidy rows.
        metric: id of the measure.
        scope: scope wanted, None for any.
        signed: print a plus sign.
        **wanted: values of other columns.
    """
    columns = _columns(frame)
    rows = columns.find(frame, {"metric": metric, "scope": scope, **wanted})
    if not len(rows):
        return absent(metric, "no row")

    def of(name: str, at: Array) -> Array:
        return columns.array(frame, name)[at]

    sound = np.isin(of("status", rows), KNOWN)
    known = rows[sound & ~np.isnan(of("value", rows))]
    if not len(known):
        status = str(of("status", rows)[0])
        return Cell(None, metric, "abstained", status=status, reason=str(of("reason", rows)[0]) or status)
    seeded = ~np.isnan(of("seed", rows))
    repeats = sound[seeded] if seeded.any() else sound
    lost = int((~repeats).sum())
    notes = [f"{lost} of {len(repeats)} withheld"] if lost else []
    over_seeds = known[np.isnan(of("seed", known))]
    known = over_seeds if len(over_seeds) else known
    batches = of("batch", known)
    batches = batches[~np.isnan(batches)]
    if len(batches) and batches.min() < batches.max():
        known = known[of("batch", known) == batches.max()]
        notes.append(f"batch {batches.max():,.0f}")
    return replace(_merge(of, known, metric), note=", ".join(notes), signed=signed)


def _merge(of: Callable[[str, Array], Array], known: Array, metric: str) -> Cell:
    origin, values = str(of("origin", known)[0]), of("value", known)
    shaky = known[of("status", known) == "unstable"]
    status, reason = ("unstable", str(of("reason", shaky)[0])) if len(shaky) else ("ok", "")
    if len(known) == 1:
        low, high, n = (_maybe(of(c, known)[0]) for c in ("ci_low", "ci_high", "n"))
        return Cell(float(values[0]), metric, origin, low, high, int(n) if n else None, status, reason)
    return Cell(
        float(np.median(values)), metric, origin, float(values.min()), float(values.max()), len(known), status, reason
    )


def _maybe(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
