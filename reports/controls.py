"""Controls of each model: shuffled training labels and target ids alone, as a section, a table and console lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table as RichTable

from ctrbench.reports.cells import Cell, pick, tidy, where
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.names import Names, names_of
from ctrbench.reports.tables import CONTROL_METRICS, console_table, groups, models_of

SHUFFLED, IDS_ONLY = CONTROL_METRICS
HEADS = ("Model", "AUC, labels shuffled", "Standard deviation", "Verdict", "AUC, target ids alone")
OFF = "NOT AT .5"
CAVEAT = (
    "Training and validation labels are permuted among the rows used, test labels are true; weights, order of rows and "
    "permutation differ from shuffle to shuffle. The interval is Student's at 99 % over five shuffles: one clean model "
    "in a hundred is flagged, and a mean is told from .5 only from about two standard deviations on. A shuffle finds "
    "labels that arrive by another way than as training labels. It does not find a field that equals the label: a "
    "model then ranks by it with either sign, which widens the spread and leaves the mean at .5. At a positive rate "
    "far from .5 a mean off .5 need not be a leak: learning the rate alone moves some rows' scores more than others'. "
    "Target ids alone: item fields without user, context, dense values and history; where labels were observed that "
    "is what popularity gives, and where negatives were sampled it must stay near .5."
)


def table(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """One row a model: mean over shuffles with its own interval, spread, verdict, and AUC on target ids alone."""
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, controls=True):
        own = where(frame, data=data, model=model, variant=variant)
        shuffled = pick(own, SHUFFLED)
        rows.append({
            "Model": names.title(model, variant), "Camp": names.camp(model), "AUC, labels shuffled": shuffled,
            "Standard deviation": _spread(own), "Each shuffle": _each(own), "Verdict": verdict(shuffled),
            "AUC, target ids alone": pick(own, IDS_ONLY),
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def verdict(shuffled: Cell) -> str:
    """Whether the interval of the mean over shuffles holds .5."""
    if shuffled.value is None:
        return "—"
    return "at .5" if shuffled.status == "ok" else OFF


def _spread(own: pd.DataFrame) -> str:
    rows = where(own, metric=SHUFFLED, scope="")
    rows = rows[rows["sd"].notna()]
    return f"{rows['sd'].iloc[0]:.4f}" if len(rows) else "—"


def _each(own: pd.DataFrame) -> str:
    rows = where(own, metric=SHUFFLED)
    rows = rows[rows["scope"].str.startswith("shuffle:") & rows["value"].notna()].sort_values("seed")
    return ", ".join(f"{v:.4f}" for v in rows["value"]) or "—"


def doubts(frame: pd.DataFrame, names: Names) -> list[str]:
    """One line a control that failed, with the reason."""
    rows = frame[frame["metric"].isin(CONTROL_METRICS) & (frame["status"] == "unstable")]
    columns = rows[["model", "variant", "data", "reason"]].itertuples(index=False)
    return [f"{names.title(str(m), str(v))} on {d}: {reason}" for m, v, d, reason in columns]


def console_tables(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[RichTable]:
    """The controls of each data set that has any, for a terminal."""
    rows = tidy(frame)
    names = names_of(rows, bodies)
    found = [(f"{track}: {data}, controls (99 % intervals)", table(rows, data, names)) for track, data in groups(rows)]
    return [console_table(title, body, HEADS) for title, body in found if len(body)]


def section(c: Context) -> Section | None:
    """Whether any model finds a signal where there is none."""
    exhibits: list[Exhibit] = []
    said = []
    for track, data in c.data:
        body = table(c.frame, data, c.names)
        if body.empty:
            continue
        exhibits += exhibit(body, title=f"{data} ({track} track)", open=True, data=data)
        said.append(_sentence(body, data))
    if not exhibits:
        return None
    return Section(
        id="controls",
        title="Controls: shuffled labels, target ids alone",
        sentence=" ".join(said),
        exhibits=tuple(exhibits),
        flags=tuple(doubts(c.frame, c.names)),
        caveat=CAVEAT,
    )


def _sentence(body: pd.DataFrame, data: str) -> str:
    judged: list[Any] = [v for v in body["Verdict"] if v != "—"]
    if not judged:
        return f"On {data} no model finished its five shuffles."
    held = judged.count("at .5")
    return f"On {data} {held} of {len(judged)} models trained on shuffled labels have a mean AUC at .5 by their spread."
