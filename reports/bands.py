"""Reproduction of a published benchmark: our mean AUC beside the published mean and its spread, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.costs import cited
from ctrbench.reports.exhibits import Context, Section, exhibit
from ctrbench.reports.records import Measurement

METRIC = "auc_vs_published"
WIDTH = 3.0
"""Half the band, in published standard deviations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A published mean over seeds."""

    title: str
    """The model's name in the source."""
    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison came to."""

    word: Literal["inside", "outside", "skipped"]
    distance: float | None
    """(our mean - published mean) / published standard deviation; None where skipped."""
    reason: str = ""
    """Why skipped."""


def published_band(model: str) -> Band | None:
    """The cited band of a model by its key here; None if none is cited."""
    row = next((a for a in cited()["auc"] if a.get("key") == model), None)
    return Band(title=row["model"], mean=row["auc"], sd=row["sd"]) if row else None


def judge(auc: float | None, band: Band | None, departed: Sequence[str] = (), missing: str = "") -> Verdict:
    """Compares the mean AUC of our seeds with a published mean.

    Args:
        auc: mean over our seeds; None where nothing was trained.
        band: the published mean and standard deviation; None where none is cited.
        departed: how the runs leave the published protocol, see `departures`; any makes them incomparable.
        missing: why nothing was trained; that the data is not here if not given.

    Raises:
        ValueError: a band without spread.
    """
    if band is None:
        return Verdict("skipped", None, "no published mean over seeds is cited for this model")
    if band.sd <= 0:
        raise ValueError(f"{band.title}: a standard deviation of {band.sd} makes no band; correct reports/cited.toml")
    if auc is None:
        return Verdict("skipped", None, missing or f"the data does not ship: {cited()['bars']['files']}")
    if departed:
        return Verdict("skipped", None, "not the published protocol: " + "; ".join(departed))
    distance = (auc - band.mean) / band.sd
    return Verdict("inside" if abs(distance) <= WIDTH else "outside", distance)


def departures(given: Mapping[str, Any]) -> list[str]:
    """What of the cited protocol `given` does otherwise, `seeds` being a minimum."""
    out = []
    for name, value in cited()["bars"]["protocol"].items():
        mine = given.get(name)
        if mine is None or (mine < value if name == "seeds" else mine != value):
            out.append(f"{name}={mine if mine is not None else 'n/k'}, published {value}")
    return out


def word_of(distance: float | None) -> str:
    """The verdict of a recorded distance."""
    if distance is None:
        return "skipped"
    return "inside" if abs(distance) <= WIDTH else "outside"


def outside(rows: Iterable[Measurement]) -> bool:
    """Whether any judged AUC is outside its band."""
    return any(word_of(r.value) == "outside" for r in rows)


def lines(rows: Iterable[Measurement]) -> list[str]:
    """A line a judged model, for the console."""
    return [
        f"{r.model} on {r.data}: {word_of(r.value)}"
        + (f" the published band, {r.value:+.1f} sd of at most {WIDTH:.0f}" if r.value is not None else f": {r.reason}")
        for r in rows
    ]


def table(c: Context) -> pd.DataFrame:
    """Our AUC, the published one and the verdict, a row a judged model."""
    rows, index = [], []
    for _, judged in where(c.frame, metric=METRIC).iterrows():
        band = published_band(str(judged["model"]))
        mine = {n: judged[n] for n in ("data", "model", "variant")}
        distance = pick(c.frame, METRIC, scope=None, signed=True, **mine)
        rows.append({
            "Model": c.names.title(str(judged["model"]), str(judged["variant"])), "Data": judged["data"],
            "AUC": pick(c.frame, "auc", **mine),
            "Published AUC": Cell(band.mean, "auc", "cited") if band else absent("auc", "none cited"),
            "sd over 5 seeds": Cell(band.sd, "sd", "cited") if band else absent("sd", "none cited"),
            "Distance, sd": distance, "Verdict": word_of(distance.value),
        })  # fmt: skip
        index.append(str(judged["model"]))
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """Shown where a suite judged anything."""
    body = table(c)
    if body.empty:
        return None
    count = body["Verdict"].value_counts()
    said = [f"{count[word]} of {len(body)} models {text}" for word, text in WORDS.items() if word in count]
    return Section(
        id="published-band",
        title="Reproduction: our AUC in the published band",
        sentence="; ".join(said) + ".",
        exhibits=exhibit(body, title=f"Criteo_x1, {cited()['bars']['source']}", open=True),
        flags=tuple(f"{r['Model']}: {r['Verdict']} the published band" for _, r in body.iterrows()
                    if r["Verdict"] == "outside"),
        caveat=f"The band is the published mean of five seeds +- {WIDTH:.0f} of their standard deviations, wide for a "
        "mean of five. Our seeds, start of the dense weights and last batch of an epoch are not the published ones.",
    )  # fmt: skip


WORDS = {
    "inside": "lie inside the band", "outside": "lie outside it", "skipped": "were not judged, with the reason given",
}  # fmt: skip
