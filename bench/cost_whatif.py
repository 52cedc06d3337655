"""Which price or assumption flips a ranking, what other traffic and fleets cost, and where two ways cost the same."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any, cast

from ctrbench.bench.cost_amounts import Amount
from ctrbench.bench.cost_prices import GPU, OBJECT, RAM, SSD, VCPU, Prices
from ctrbench.bench.cost_terms import ACCELERATOR, HOST, TOTAL, Assumptions, request_terms
from ctrbench.bench.cost_workloads import CPU, HISTORY, Workload

REUSE = "reuse"
RANGES = {
    "qps": (10.0, 1e5), "utilisation": (0.2, 0.9), "peak_to_mean": (1.0, 10.0), "replicas": (1.0, 16.0),
    "users": (1e5, 1e9), "cache_resident": (0.0, 1.0), "retention_days": (1.0, 365.0),
    "training_samples": (1e6, 1e10), "requests_before_retraining": (1e6, 1e10), "tables_gb": (10.0, 1e4),
}  # fmt: skip
"""Assumption -> range that it is moved over."""
GRID = {
    "qps": (10.0, 100.0, 1e3, 1e4, 1e5), "tables_gb": (10.0, 100.0, 1e3, 1e4),
    "replicas": (1.0, 2.0, 4.0, 8.0, 16.0), "peak_to_mean": (1.0, 2.0, 3.0, 5.0, 10.0),
}  # fmt: skip
"""Assumption -> values of the what-if tables."""
WIDE = 10.0
"""How far beyond its range the price of an accelerator is searched for a break-even."""
STEPS, HALVINGS = 32, 40


@dataclass(frozen=True, slots=True)
class Knob:
    """A price or an assumption that is moved over its range while all others stay."""

    name: str
    kind: str
    """`price` or `assumption`."""
    unit: str
    now: float | None
    """None: as measured."""
    low: float
    high: float

    def distance(self, value: float) -> float:
        """How far a value is from where the knob stands, in factors (as logarithm) where both are above 0."""
        now = self.low if self.now is None else self.now
        return abs(math.log(value / now)) if min(value, now) > 0 else abs(value - now) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where two costs are equal, and which of the two is cheaper on either side."""

    at: float
    below: str
    above: str


class Curves:
    """Totals of workloads as functions of a knob, each value priced once."""

    def __init__(self, prices: Prices, a: Assumptions) -> None:
        self.prices, self.a = prices, a
        self._kept: dict[tuple[int, str], tuple[Workload, Callable[[float], float]]] = {}

    def of(self, w: Workload, knob: Knob) -> Callable[[float], float]:
        """value -> USD a million requests with the knob at it; nan where that is not known."""

        @cache
        def usd(value: float) -> float:
            moved = knob.kind == "price"
            prices = self.prices.at(knob.name, value) if moved else self.prices
            found = _total(w, prices, self.a if moved else _with(self.a, knob.name, value)).value
            return math.nan if found is None else found

        return self._kept.setdefault((id(w), knob.name), (w, usd))[1]

    def _now(self, w: Workload) -> float:
        found = _total(w, self.prices, self.a).value
        return math.nan if found is None else found

    def crossing(self, knob: Knob, x: Workload, y: Workload) -> Crossing | None:
        """The value of the knob nearest to where it stands at which both cost the same; None where there is none."""
        one, other = self.of(x, knob), self.of(y, knob)
        found = crossings(lambda value: one(value) - other(value), knob.low, knob.high)
        start = knob.low
        if knob.now is None and (gap := self._now(x) - self._now(y)) * (one(start) - other(start)) < 0:
            found = [(start, gap), *found]  # the ranking turns between what was measured and the range
        sides = [Crossing(at, *(("a", "b") if before < 0 else ("b", "a"))) for at, before in found]
        return min(sides, key=lambda c: knob.distance(c.at), default=None)


def sensitivities(
    known: Iterable[Workload], prices: Prices, a: Assumptions
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(pairs, their flips) as `cost.cost_extra` says; the cheaper one of a pair is `a`."""
    pairs, flips, curves = [], [], Curves(prices, a)
    for left, right in _model_pairs(_compared(known)):
        totals = [(_total(w, prices, a), w) for w in (left, right)]
        if any(t.value is None for t, _ in totals):
            continue
        (cheap, one), (dear, other) = sorted(totals, key=lambda x: cast(float, x[0].value))
        who = {**_place(one), "deployment": one.deployment, "a": _model(one), "b": _model(other),
               "usd_a": cheap.value, "usd_b": dear.value}  # fmt: skip
        found = []
        for knob in knobs(one, prices, a):
            crossing = curves.crossing(knob, one, other)
            if crossing is not None:
                found.append((knob.distance(crossing.at), _flip(who, knob, crossing)))
        found.sort(key=lambda x: x[0])
        flips += [record for _, record in found]
        apart = cheap.high < dear.low
        pairs.append({**who, "apart": apart, "flipped_by": [record["knob"] for _, record in found]})
    return pairs, flips


def _flip(who: dict[str, Any], knob: Knob, crossing: Crossing) -> dict[str, Any]:
    return {
        **who, "knob": knob.name, "kind": knob.kind, "unit": knob.unit, "value": knob.now, "low": knob.low,
        "high": knob.high, "break_even": crossing.at,
    }  # fmt: skip


def knobs(w: Workload, prices: Prices, a: Assumptions) -> list[Knob]:
    """Prices that this deployment pays, over the range seen, and the assumptions over `RANGES`."""
    paid = [VCPU, RAM, SSD, OBJECT, a.network] + ([GPU + w.deployment] if w.deployment != CPU else [])
    found = [p for name in paid if (p := prices.get(name)) is not None and p.low < p.high]
    out = [Knob(p.name, "price", p.unit, p.value, p.low, p.high) for p in found]
    return out + [Knob(name, "assumption", _UNITS[name], getattr(a, name), *ends) for name, ends in RANGES.items()]


_UNITS = {
    "qps": "requests/s", "utilisation": "ratio", "peak_to_mean": "ratio", "replicas": "copies", "users": "users",
    "cache_resident": "ratio", "retention_days": "days", "training_samples": "samples",
    "requests_before_retraining": "requests", "tables_gb": "GB",
}  # fmt: skip


def what_ifs(known: Iterable[Workload], prices: Prices, a: Assumptions) -> list[dict[str, Any]]:
    """Totals at other traffic, table sizes and fleets, and what longer histories compute; see `cost.cost_extra`."""
    known, out = list(known), []
    for w in _compared(known):
        for knob, values in GRID.items():
            out += [{**_keys(w), "knob": knob, "at": v, **_usd(_total(w, prices, _with(a, knob, v)))} for v in values]
    for w in known:
        events = _events(w)
        if events is not None:
            terms = request_terms(w, prices, a)
            out.append({**_keys(w), "knob": "history", "at": events, **_usd(terms[ACCELERATOR] + terms[HOST])})
    return out


def break_evens(known: Iterable[Workload], prices: Prices, a: Assumptions) -> list[dict[str, Any]]:
    """Traffic and accelerator prices at which two deployments of a model, or two models, cost the same."""
    chosen = _compared(known)
    deployments = [
        ("deployments", x, y) for x, y in combinations(chosen, 2) if _model_of(x) == _model_of(y)
        and CPU in (x.deployment, y.deployment)
    ]  # fmt: skip
    out, curves = [], Curves(prices, a)
    for kind, x, y in [*deployments, *(("models", x, y) for x, y in _model_pairs(chosen))]:
        totals = [_total(w, prices, a) for w in (x, y)]
        reason = next((t.reason for t in totals if t.value is None), "")
        for knob in _axes((x, y), prices, a):
            found = None if reason else curves.crossing(knob, x, y)
            below, above = (found.below, found.above) if found else (_cheaper(totals),) * 2
            out.append({
                "kind": kind, **_place(x), "a": _model(x), "b": _model(y), "deployment_a": x.deployment,
                "deployment_b": y.deployment, "axis": knob.name, "unit": knob.unit, "low": knob.low, "high": knob.high,
                "at": found and found.at, "cheaper_below": below, "cheaper_above": above,
                "reason": reason or ("" if found else "the same one is cheaper over the whole range"),
            })  # fmt: skip
    return out


def _cheaper(totals: Sequence[Amount]) -> str | None:
    one, other = (t.value for t in totals)
    return None if one is None or other is None else "a" if one < other else "b"


def _axes(pair: Sequence[Workload], prices: Prices, a: Assumptions) -> list[Knob]:
    """Traffic, and the price of each accelerator of the pair far beyond its range."""
    out = [Knob("qps", "assumption", _UNITS["qps"], a.qps, *RANGES["qps"])]
    for name in dict.fromkeys(GPU + w.deployment for w in pair if w.deployment != CPU):
        price = prices.get(name)
        if price is not None and price.value > 0:
            out.append(Knob(name, "price", price.unit, price.value, price.low / WIDE, price.high * WIDE))
    return out


def crossings(f: Callable[[float], float], low: float, high: float) -> list[tuple[float, float]]:
    """(value at which a continuous function changes its sign, the function before it) between two ends.

    Two changes closer than one of `STEPS` steps, of equal factors where the range spans more than ten, are not seen.
    """
    by_factor = low > 0 and high / low > 10
    ends = [
        low * (high / low) ** (i / STEPS) if by_factor else low + (high - low) * i / STEPS for i in range(STEPS + 1)
    ]
    values = [f(x) for x in ends]
    out = []
    for left, right, before, after in zip(ends, ends[1:], values, values[1:], strict=False):
        if before * after < 0:
            out.append((_halved(f, left, right, before), before))
        elif after == 0 and before != 0:
            out.append((right, before))
    return out


def _halved(f: Callable[[float], float], left: float, right: float, before: float) -> float:
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        if f(middle) * before > 0:
            left = middle
        else:
            right = middle
    return (left + right) / 2


def _with(a: Assumptions, name: str, value: float) -> Assumptions:
    changes: dict[str, Any] = {name: value}
    return replace(a, **changes)


def _total(w: Workload, prices: Prices, a: Assumptions) -> Amount:
    return request_terms(w, prices, a)[TOTAL]


def _usd(amount: Amount) -> dict[str, Any]:
    known = amount.value is not None
    return {"usd": amount.value, "low": amount.low if known else None, "high": amount.high if known else None,
            "reason": amount.reason}  # fmt: skip


def _compared(known: Iterable[Workload]) -> list[Workload]:
    """Form `reuse` of plain workloads at the middle one of the batches of each data set."""
    reuse = [w for w in known if w.form == REUSE and _events(w) is None]
    batches: dict[Any, set[int]] = defaultdict(set)
    for w in reuse:
        batches[w.columns["data"]].add(w.batch)
    middle = {data: sorted(found)[len(found) // 2] for data, found in batches.items()}
    return [w for w in reuse if w.batch == middle[w.columns["data"]]]


def _model_pairs(chosen: Sequence[Workload]) -> list[tuple[Workload, Workload]]:
    return [
        (x, y) for x, y in combinations(chosen, 2)
        if _model_of(x) != _model_of(y) and _place(x) == _place(y) and x.deployment == y.deployment
    ]  # fmt: skip


def _model_of(w: Workload) -> tuple[Any, ...]:
    return tuple(w.columns[c] for c in ("data", "split", "model", "variant", "preset"))


def _model(w: Workload) -> str:
    """Name of a model in a record: with its variant where it has one."""
    return " ".join(filter(None, (str(w.columns["model"]), str(w.columns["variant"] or ""))))


def _place(w: Workload) -> dict[str, Any]:
    return {"data": w.columns["data"], "form": w.form, "batch": w.batch}


def _keys(w: Workload) -> dict[str, Any]:
    return {**{c: w.columns[c] for c in ("data", "model", "variant", "preset")}, "form": w.form,
            "deployment": w.deployment, "batch": w.batch}  # fmt: skip


def _events(w: Workload) -> int | None:
    """Events of a longer workload, as its variant says."""
    said = str(w.columns["variant"] or "")
    return int(said.removeprefix(HISTORY)) if said.startswith(HISTORY) and said[len(HISTORY) :].isdigit() else None
