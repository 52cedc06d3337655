"""The points of a `ctrbench sweep`: which finished, and which are gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ctrbench.reports.exhibits import Context, Section, exhibit

KEY = "sweep"
"""Of the body that lists the points, in `extra` under the same name: settings, status, reason, folder of each."""
GRID = "grid.json"
"""In the folder of a sweep: the settings of every point."""
SHOWN = ("done", "failed")
"""Statuses of points whose numbers are on the page."""


def _listed(bodies: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [p for body in bodies.values() for p in body.get("extra", {}).get(KEY, ())]


def gaps(bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a point that has no number here."""
    return [f"gap: {' '.join(p['settings'])}: {p['status']}, {p['reason']}" for p in _listed(bodies)
            if p["status"] not in SHOWN]  # fmt: skip


def points(c: Context) -> Section | None:
    """Every point of the grid with how it ended."""
    listed = _listed(c.bodies)
    if not listed:
        return None
    table = pd.DataFrame(
        {"Point": " ".join(p["settings"]), "Status": p["status"], "Reason": p["reason"] or "—", "Folder": p["folder"]}
        for p in listed
    )
    done, shown = (sum(p["status"] in kinds for p in listed) for kinds in (("done",), SHOWN))
    missing = len(listed) - shown
    return Section(
        id="points",
        title="Points of the sweep",
        sentence=f"{done} of {len(listed)} points ran to their end without a failed run; {missing} are gaps, of which "
        "this page has no number.",
        flags=tuple(gaps(c.bodies)),
        exhibits=exhibit(table, open=True),
        caveat="Models are compared within a point. Between points settings differ, so no pair is drawn and no "
        "interval is given; each point's own report lies in its folder. `ctrbench sweep` with the same arguments runs "
        "the gaps.",
    )
