"""What the page can and cannot say, worked out from the origins and levels of its rows, never written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ctrbench.reports.cells import where
from ctrbench.reports.costs import published
from ctrbench.reports.tables import CONTROL_METRICS, flatten, skipped_tracks

CPU_KEYS = ("cpu", "cpu_model", "cpu_name", "processor", "model_name", "cpu.model", "cpu.name")
GENERATED = ("synthetic", "generated")


@dataclass(frozen=True, slots=True)
class Limits:
    """The first box of the page."""

    can: tuple[str, ...]
    cannot: tuple[str, ...]
    skipped: tuple[str, ...]


def levels(bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Levels that the run specifications state."""
    return sorted({str(b["spec"]["level"]) for b in bodies.values() if b.get("spec", {}).get("level")})


def cpu_name(bodies: Mapping[str, Mapping[str, Any]]) -> str:
    """The processor that the manifests name."""
    found: list[str] = []
    for body in bodies.values():
        flat = flatten(body.get("environment", {}))
        name = next((flat[k] for k in CPU_KEYS if flat.get(k)), "")
        name = name or next((v for k, v in flat.items() if k.split(".")[-1] in CPU_KEYS and v), "")
        if name and name not in found:
            found.append(name)
    return " and ".join(found) or "a CPU that the records do not name"


def untuned(bodies: Mapping[str, Mapping[str, Any]]) -> bool:
    """True if no tuning trial ran: every training is one of defaults."""
    return not any(b.get("spec", {}).get("kind") == "tune" or b.get("spec", {}).get("tuned") for b in bodies.values())


def limits(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The statements of the box."""
    known = frame[frame["value"].notna()]
    on_gpu = known[(known["origin"] == "measured") & known["device"].str.startswith("cuda")]
    can, cannot = _origins(known, bodies), []
    if on_gpu.empty:
        cannot.append("No number on this page was measured on a GPU. Every CUDA path is unproven here.")
    cannot += _modelled(frame)
    cannot += _level(bodies)
    if untuned(bodies) and len(where(known, metric="auc")):
        cannot.append("Untuned: every model ran with its defaults and no tuning trial, so each difference of quality "
                      "is one of defaults.")  # fmt: skip
    if len(where(known, metric="auc_delta")):
        can.append("Models are compared only by the paired difference on the same rows and seeds; an interval that "
                   "includes 0 is a tie, and overlap of separate intervals decides nothing.")  # fmt: skip
    cannot += _data(known) + _sampled(frame, bodies)
    cannot += _controls(frame)
    skipped = tuple(f"{track} track, {data}: {reason}" for track, data, reason in skipped_tracks(frame))
    if skipped:
        cannot.append(f"Nothing is said of {len(skipped)} skipped data set(s); see the notice below.")
    return Limits(tuple(can), tuple(cannot), skipped)


def _origins(known: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    counts = known["origin"].value_counts()
    out = []
    if counts.get("measured"):
        shared = any("benchmark" in body.get("extra", {}) for body in bodies.values())
        each = "the benchmarks of a pytest file in one process, all others each in its own," if shared else \
            "each in its own process"  # fmt: skip
        if any(body.get("spec", {}).get("kind") == "distributed" for body in bodies.values()):
            each += " (those of a training over processes in as many as it had)"
        out.append(f"{counts['measured']:,} numbers are measured, on {cpu_name(bodies)}, {each} "
                   "without a tracer or counter, except the time split, which is traced.")  # fmt: skip
    if counts.get("counted"):
        out.append(f"{counts['counted']:,} are counted from the operators and shapes that really execute.")
    if counts.get("derived"):
        out.append(f"{counts['derived']:,} are derived from such inputs.")
    if counts.get("imported"):
        out.append(f"{counts['imported']:,} are imported from recordings made elsewhere.")
    return out


def _modelled(frame: pd.DataFrame) -> list[str]:
    known = frame[frame["value"].notna()]
    out = []
    modelled = int((known["origin"] == "modelled").sum())
    if modelled:
        out.append(f"{modelled:,} numbers are modelled (CUDA kernel counts among them): a formula with assumptions, "
                   "to be read with its band.")  # fmt: skip
    gpus = sorted(set(where(known, metric="mfu_bound")["scope"]))
    if gpus:
        named = ", ".join(gpus) if len(gpus) <= 4 else f"{len(gpus)} catalogued GPUs"
        out.append(f"MFU on {named} is an upper bound. It can refute a claim of higher use; "
                   "it never shows that the bound is reached.")  # fmt: skip
    if len(published(known)):
        here = known["trained"] & (known["model"] != "")
        trained = sorted(set(known.loc[here, "preset"]))
        out.append("Published presets were traced on the meta device and never trained: no AUC here belongs to one."
                   + (f" What ran is the preset {', '.join(trained)}." if trained else ""))  # fmt: skip
    withheld = int(frame["value"].isna().sum())
    if withheld:
        out.append(f"{withheld:,} numbers are withheld, each with its reason, listed near the end.")
    return out


def _level(bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = levels(bodies)
    if "smoke" in found:
        return ["Level smoke: one process a number. It shows that every part runs; nothing is claimed from it."]
    if found and found != ["publish"]:
        return [f"Level {', '.join(found)}: few processes. Times are orders of magnitude; there is no test of "
                "significance and no ranking by time, and P99 is withheld (it needs 1,000 steps)."]  # fmt: skip
    return [] if found else ["The records state no level: take every time as an order of magnitude."]


def _data(known: pd.DataFrame) -> list[str]:
    out = []
    for data in sorted(set(where(known, metric="auc")["data"])):
        if any(word in data for word in GENERATED):
            out.append(f"{data} is generated data: its labels follow a law of our making, so its quality numbers "
                       "show that training works and support no claim about models.")  # fmt: skip
        elif data.startswith("movielens"):
            out.append(f"{data} holds ratings, not impressions: a verdict on click-through needs a real log.")
    return out


def _controls(frame: pd.DataFrame) -> list[str]:
    """Models that find a signal where there is none."""
    rows = frame[frame["metric"].isin(CONTROL_METRICS) & (frame["status"] == "unstable")]
    columns = rows[["model", "variant", "data", "reason"]].itertuples(index=False)
    return [f"A control failed, {' '.join((m, v)).strip()} on {d}: {reason}. Its quality there is in doubt."
            for m, v, d, reason in columns]  # fmt: skip


def _sampled(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What sampled negatives are, and where their pool spoils the numbers."""
    samplers: dict[str, Mapping[str, Any]] = {}
    for body in bodies.values():
        samplers |= body.get("spec", {}).get("samplers", {})
    out = []
    for data, s in sorted(samplers.items()):
        own = "own items excluded" if s["exclude_own"] else "own items allowed"
        out.append(
            f"{data}: every negative is sampled ({s['ratio']} a positive, by {s['weighting']}, {own}, seed {s['seed']},"
            f" from {s['pool']}: {s['pool_events']:,} events for {s['positive_events']:,} positives). An AUC holds "
            "against this sampler only."
        )
        doubt = where(frame, data=data, metric="auc", status="unstable")["reason"]
        if len(doubt):
            out.append(f"{data}: {doubt.iloc[0]}. No quality number of it is a result.")
    return out
