"""What the page's filters know: which model, track and hardware a row, a column or a figure speaks of.

Only what a table prints is used, so that a filter and the reader agree. What names none of them passes every filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell
from ctrbench.reports.limits import cpu_name
from ctrbench.reports.names import Names
from ctrbench.reports.records import ORIGINS

CPU = "CPU of these runs"
MODEL_HEADS, DATA_HEADS = ("Model",), ("Data", "Track")
OTHER_HEAD = "Against"
"""The second model of a row."""
HARDWARE_HEADS = ("GPU", "Hardware", "Recorded on")
PER_GPU = ("mfu_bound", "gpu_time_bound", "gpu_time_modelled")
"""Measures whose scope is a GPU."""
PER_FORM_AND_GPU = "gpu_request_time"
"""Its scope is a form of serving and a GPU: `reuse:H100 SXM`."""


@dataclass(frozen=True, slots=True)
class Facets:
    """How models, data sets and devices are printed, and what each is called in its filter."""

    models: Mapping[str, str] = field(default_factory=dict)
    """Printed title, with its variant or without -> title of the model."""
    tracks: Mapping[str, str] = field(default_factory=dict)
    """Data set, or track itself -> track."""
    hardware: Mapping[str, str] = field(default_factory=dict)
    """GPU, `cpu` or name of the processor -> its name in the filter."""
    origins: tuple[str, ...] = ()

    def options(self) -> list[dict[str, Any]]:
        """Filters with more than one choice, in order."""
        found = (
            ("model", "Model", dict.fromkeys(self.models.values())),
            ("track", "Track", dict.fromkeys(self.tracks.values())),
            ("hardware", "Hardware", dict.fromkeys(self.hardware.values())),
            ("origin", "Origin", dict.fromkeys(self.origins)),
        )
        return [{"kind": k, "title": t, "options": list(o)} for k, t, o in found if len(o) > 1]

    def of_row(self, heads: Sequence[str], row: Sequence[Any]) -> dict[str, str]:
        """Attributes of a table's row: model and the one it is set against, track, hardware, origins of its numbers."""
        found: dict[str, str] = {}
        texts = [(h, x) for h, x in zip(heads, row, strict=True) if not isinstance(x, Cell)]
        for kind, wanted, known in (
            ("model", MODEL_HEADS, self.models), ("track", DATA_HEADS, self.tracks),
            ("hardware", HARDWARE_HEADS, self.hardware),
        ):  # fmt: skip
            if name := next((n for h, x in texts if h in wanted and (n := named(known, str(x)))), ""):
                found[kind] = name
        if found.get("model") and (other := next((str(x) for h, x in texts if h == OTHER_HEAD), "")):
            found["against"] = named(self.models, other)
        if origins := {x.origin for x in row if isinstance(x, Cell) and x.value is not None}:
            found["origins"] = " ".join(sorted(origins))
        return found


def named(known: Mapping[str, str], text: str) -> str:
    """What a filter calls a printed name, which may have a remark in brackets behind it; empty if it knows none."""
    return known.get(text) or known.get(text.split(" (")[0], "") if text else ""


def facets_of(
    rows: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]], names: Names, groups: Sequence[tuple[str, str]]
) -> Facets:
    """Facets of tidy rows.

    Args:
        rows: of `cells.tidy`.
        bodies: record.json by key.
        names: titles and order of models.
        groups: (track, data) of everything that is shown.
    """
    pairs = {(str(m), str(v)) for m, v in rows[["model", "variant"]].itertuples(index=False) if m}
    models: dict[str, str] = {}
    for model, variant in sorted(pairs, key=lambda p: names.order(*p)):
        for title in (names.title(model), names.title(model, variant)):
            models.setdefault(title, names.title(model))
    asked = {str(s).partition(":")[2] for s in rows.loc[rows["metric"] == PER_FORM_AND_GPU, "scope"]}
    gpus = sorted((set(rows.loc[rows["metric"].isin(PER_GPU), "scope"]) | asked) - {""})
    recorded = {str(b.get("extra", {}).get("kernels", {}).get("device", "")) for b in bodies.values()}
    devices = sorted((set(rows["device"]) | recorded) - {"", "cpu", "meta"} - set(gpus))
    return Facets(
        models=models,
        tracks={d: t for t, d in groups} | {t: t for t, _ in groups},
        hardware={"cpu": CPU, "this CPU": CPU, cpu_name(bodies): CPU} | {x: x for x in (*gpus, *devices)},
        origins=tuple(o for o in ORIGINS if o != "abstained" and (rows["origin"] == o).any()),
    )
