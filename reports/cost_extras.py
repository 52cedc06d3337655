"""What stands behind the USD, from `extra["cost"]` of the summary: prices, assumptions, what flips a ranking, what-ifs.

The keys are those that `ctrbench.bench.cost.cost_extra` documents. A key that a record lacks gives no table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent
from ctrbench.reports.cost_tables import CPU, REQUESTS
from ctrbench.reports.names import Names

Record = Mapping[str, Any]
KNOBS: Mapping[str, str] = {
    "qps": "mean requests per second", "tables_gb": "size of the embedding tables, GB", "replicas": "replicas",
    "peak_to_mean": "peak over mean traffic", "history": "events of the history (accelerator and CPU of the model)",
}  # fmt: skip
"""What a what-if moves -> how it is called."""


def extra_of(bodies: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """`extra["cost"]` of the first record that has one; empty without."""
    return next((e for b in bodies.values() if isinstance(e := b.get("extra", {}).get("cost"), Mapping)), {})


def records(extra: Mapping[str, Any], key: str, data: str = "") -> list[Record]:
    """Records of a list, of one data set where they name theirs."""
    plain = data.split(" · ", maxsplit=1)[0]
    return [r for r in extra.get(key, ()) if not plain or str(r.get("data", plain)) == plain]


def usd(record: Record, key: str = "usd") -> Cell:
    """A number of USD that the page's rows do not hold: modelled where an accelerator is in it."""
    value = record.get(key)
    if value is None:
        return absent(REQUESTS, str(record.get("reason") or "not known"))
    origin = "derived" if str(record.get("deployment", CPU)) == CPU else "modelled"
    low, high = (record.get(k) for k in ("low", "high")) if key == "usd" else (None, None)
    return Cell(float(value), REQUESTS, origin, _maybe(low), _maybe(high))


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)


def _cited(value: Any, low: Any = None, high: Any = None) -> Cell:
    return absent("", "not known") if value is None else Cell(float(value), "", "cited", _maybe(low), _maybe(high))


def prices(extra: Mapping[str, Any]) -> pd.DataFrame:
    """Every price with its range, its source and when it was read."""
    return pd.DataFrame([
        {
            "Price": str(p["name"]), "Value": _cited(p["value"], p["low"], p["high"]), "Unit": str(p["unit"]),
            "Provider": ", ".join(filter(None, (str(p["provider"]), str(p["region"])))), "Term": str(p["term"]),
            "Read on": str(p["read_on"]), "Source": str(p["source"]), "Note": str(p.get("note") or "—"),
        }
        for p in records(extra, "prices")
    ])  # fmt: skip


def assumptions(extra: Mapping[str, Any]) -> pd.DataFrame:
    """What no record can say."""
    found = extra.get("assumptions", {})
    return pd.DataFrame([{"Assumption": k.replace("_", " "), "Value": _plain(v)} for k, v in found.items()])


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.6g}" if isinstance(value, (int, float)) else "as measured" if value is None else str(value)


def named(names: Names, said: Any) -> str:
    """Title of `model variant`."""
    model, _, variant = str(said).partition(" ")
    return names.title(model, variant)


def pairs(extra: Mapping[str, Any], data: str, names: Names, chosen: Iterable[str]) -> pd.DataFrame:
    """Which price or assumption, moved within its range, makes the dearer of two models the cheaper one."""
    flips = records(extra, "sensitivity", data)
    out = []
    for pair in records(extra, "pairs", data):
        if pair["deployment"] not in set(chosen):
            continue
        same = ("deployment", "batch", "a", "b")
        mine = {f["knob"]: f for f in flips if all(f[k] == pair[k] for k in same)}
        by = [_flip(mine[k]) for k in pair["flipped_by"] if k in mine]
        out.append({
            "Model": named(names, pair["a"]), "Against": named(names, pair["b"]), "Deployment": str(pair["deployment"]),
            "Candidates": f"{pair['batch']:,.0f}", "USD": usd(pair, "usd_a"), "USD, the other": usd(pair, "usd_b"),
            "Bands apart": "yes" if pair["apart"] else "no: no order",
            "Flipped by": "; ".join(by) or "nothing in range",
        })  # fmt: skip
    return pd.DataFrame(out)


def _flip(f: Record) -> str:
    now = "as measured" if f["value"] is None else _plain(f["value"])
    return f"{str(f['knob']).replace('_', ' ')} at {_plain(f['break_even'])} {f['unit']} (now {now})"


def what_if(extra: Mapping[str, Any], data: str, names: Names, knob: str, chosen: Iterable[str]) -> pd.DataFrame:
    """Totals over the values of a knob: one row a model, variant and deployment, a column a value."""
    mine = [r for r in records(extra, "what_if", data) if r["knob"] == knob and r["deployment"] in set(chosen)]
    ats = sorted({float(r["at"]) for r in mine})
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for r in mine:
        # A longer history is a variant of its own: its rows are one line of the model.
        variant = "" if knob == "history" else str(r["variant"] or "")
        key = str(r["model"]), variant, str(r["form"]), str(r["deployment"]), f"{r['batch']:,.0f}"
        rows.setdefault(key, {})[f"{float(r['at']):,.6g}"] = usd(r)
    order = sorted(rows, key=lambda k: (k[3] != CPU, k[3], names.order(k[0], k[1]), k[2], k[4]))
    return pd.DataFrame([
        {
            "Model": names.title(k[0], k[1]), "Form": k[2], "Deployment": k[3], "Candidates": k[4],
            **{(h := f"{at:,.6g}"): rows[k].get(h, absent(REQUESTS, "not asked")) for at in ats},
        }
        for k in order
    ], index=[k[0] for k in order])  # fmt: skip


def break_even(extra: Mapping[str, Any], data: str, names: Names, chosen: Sequence[str]) -> pd.DataFrame:
    """Traffic, or price of an accelerator, at which two ways cost the same, and which is cheaper on either side."""
    out = []
    for r in records(extra, "break_even", data):
        if not {r["deployment_a"], r["deployment_b"]} <= set(chosen):
            continue
        sides = {s: _side(r, s, names) for s in ("a", "b")}
        at = absent("", str(r["reason"])) if r["at"] is None else Cell(float(r["at"]), "", "derived")
        out.append({
            "Model": named(names, r["a"]), "On": str(r["deployment_a"]), "Against": named(names, r["b"]),
            "Against, on": str(r["deployment_b"]), "Along": f"{r['axis']}, {r['unit']}",
            "Searched": f"{_plain(r['low'])} to {_plain(r['high'])}", "Equal at": at,
            "Cheaper below": sides.get(str(r["cheaper_below"]), "—"),
            "Cheaper above": sides.get(str(r["cheaper_above"]), "—"),
        })  # fmt: skip
    return pd.DataFrame(out)


def _side(r: Record, side: str, names: Names) -> str:
    model, place = named(names, r[side]), str(r[f"deployment_{side}"])
    return place if r["kind"] == "deployments" else model


def crossings(extra: Mapping[str, Any], data: str, names: Names, gpu: str) -> dict[str, float]:
    """Title of a model -> traffic at which the CPU and the GPU cost the same."""
    return {
        named(names, r["a"]): float(r["at"]) for r in records(extra, "break_even", data)
        if r["kind"] == "deployments" and r["axis"] == "qps" and r["at"] is not None
        and {r["deployment_a"], r["deployment_b"]} == {CPU, gpu}
    }  # fmt: skip


def price_of_compute(extra: Mapping[str, Any]) -> pd.DataFrame:
    """USD of one TFLOP/s for an hour, by GPU and precision."""
    return pd.DataFrame([
        {
            "GPU": str(r["gpu"]), "Dtype": str(r["dtype"]), "Peak, TFLOP/s": _cited(r["tflops"]),
            "USD / TFLOP/s-hour": _cited(r["usd_per_tflops_hour"], r["low"], r["high"]),
            "Times V100 fp16": _cited(r["times_v100_fp16"]), "Reason": str(r.get("reason") or "—"),
        }
        for r in records(extra, "usd_per_tflops")
    ])  # fmt: skip
