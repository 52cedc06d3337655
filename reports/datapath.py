"""The section on the data path: how fast rows become batches, whether models wait, what its ways of working buy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import DATAPATH, Cell, pick, where
from ctrbench.reports.drawing import blank, errors_of, facets, hover, known, log_axis, origins, safe
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.names import Names
from ctrbench.reports.tables import models_of

TIME, RATIO, STALL, BYTES = "Time", "Times the first way", "Waits", "Bytes touched"
LIMIT = 0.05
"""Share of a step above which the loader is said to hold a model up."""
COLOURS = ("#0072B2", "#D55E00", "#009E73")
PARTS = {
    "transforms": ("Feature transforms", "columns"), "tables": ("Embedding tables", "features"),
    "dedup": ("Distinct ids", "skew of the ids"),
}  # fmt: skip
"""Part -> (title, what its places are)."""
WAYS = {
    "fused": "all columns at once", "looped": "the same, column by column", "plain": "library calls, column by column",
    "stacked": "one merged table", "per_feature": "a table a feature, one operator", "per_table": "each table alone",
    "direct": "ids as they come", "unique": "each distinct id once", "memory": "from memory", "parquet": "from Parquet",
}  # fmt: skip
"""Way in scopes -> how the page calls it."""


def _scopes(rows: pd.DataFrame, metric: str, part: str) -> list[tuple[str, str]]:
    """(way, place) of a part's rows, in the order that they were written."""
    found = where(rows, metric=metric)["scope"]
    split = (str(s).split(":", 2) for s in dict.fromkeys(found) if str(s).startswith(f"{part}:"))
    return [(s[1], s[2]) for s in split if len(s) == 3]


def ways(frame: pd.DataFrame, part: str) -> pd.DataFrame:
    """A row a way and place of a part: time, its ratio to the first way, and bytes where they were counted."""
    mine = where(frame, preset=DATAPATH)
    rows = []
    for way, place in _scopes(mine, "path_time", part):
        scope = f"{part}:{way}:{place}"
        row: dict[str, Any] = {
            "Way": WAYS.get(way, way), "Place": place, TIME: pick(mine, "path_time", scope=scope),
            RATIO: pick(mine, "path_ratio", scope=scope),
        }  # fmt: skip
        if (where(mine, metric="path_bytes")["scope"] == scope).any():
            row[BYTES] = pick(mine, "path_bytes", scope=scope)
        rows.append(row)
    table = pd.DataFrame(rows)
    first = set(table["Way"].iloc[:1]) if rows else set()
    for i in table.index[table["Way"].isin(first)] if rows else ():
        table.at[i, RATIO] = "first way"
    return table


def loading(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a data set, batch and way: rows and bytes a second, core-seconds a million rows."""
    mine = where(frame, preset=DATAPATH)
    rows = []
    for data in dict.fromkeys(where(mine, metric="load_rate")["data"]):
        own = where(mine, data=data)
        for way, place in _scopes(own, "load_rate", "loader"):
            scope = f"loader:{way}:{place}"
            row = {
                "Data": data, "Batch": place.removeprefix("batch "), "Way": WAYS.get(way, way),
                "Rows / s": pick(own, "load_rate", scope=scope), "Batches": pick(own, "load_bytes", scope=scope),
                "Shards": pick(own, "load_bytes", scope=f"loader:shards:{place}") if way == "parquet" else "not read",
                "CPU core-s / million": pick(own, "cpu_core_s_per_million", scope=scope),
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def stalls(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """A row a model: share of its step that waits for a batch, by how many are made ahead."""
    mine = where(frame, preset=DATAPATH)
    rows, index = [], []
    for data in dict.fromkeys(where(mine, metric="loader_stall")["data"]):
        own = where(mine, data=data)
        aheads = sorted({str(s) for s in where(own, metric="loader_stall")["scope"]})
        for model, variant in models_of(where(own, metric="loader_stall"), names):
            of_model = where(own, model=model, variant=variant)
            row: dict[str, Any] = {"Model": names.title(model, variant), "Data": data}
            row |= {f"{STALL}, {a.replace(':', ' ')}": pick(of_model, "loader_stall", scope=a) for a in aheads}
            row |= {
                f"Step, {p} over no loader": pick(of_model, "path_ratio", scope=f"stall:{p}:step")
                for p in ("prefetch 0", "prefetch 1", "prefetch 2")
            }
            rows.append(row)
            index.append(model)
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """Whether the data path starves the models, and what its ways of working buy."""
    exhibits: list[Exhibit] = []
    parts: list[str] = []
    load, held = loading(c.frame), stalls(c.frame, c.names)
    exhibits += exhibit(load, title="The loader alone", hardware="cpu", open=True)
    if not load.empty:
        parts.append(_span(load))
    if not held.empty:
        exhibits += exhibit(held, ("Share of a step that waits for its batch", _stall_figure(held, c.names)),
                            title="Beside a training step", hardware="cpu")  # fmt: skip
        parts.append(_held_up(held))
    for part, (title, place) in PARTS.items():
        table = ways(c.frame, part)
        if table.empty:
            continue
        table = table.rename(columns={"Place": place[0].upper() + place[1:]})
        exhibits += exhibit(table, (f"{title}: time over that of the first way", _ratio_figure(table, place)),
                            title=title, hardware="cpu")  # fmt: skip
        parts += _bought(table, title, place)
    if not exhibits:
        return None
    return Section(
        id="datapath",
        title="Data path (this CPU)",
        sentence=" ".join(p for p in parts if p),
        exhibits=tuple(exhibits),
        caveat="Ratios are of ways that took turns in one process, with a bootstrap interval over rounds; the seconds "
        "are this machine's. Made-up columns and ids: their shares of a real pipeline are not in these figures.",
    )


def _span(load: pd.DataFrame) -> str:
    rows = known(load, "Rows / s")
    if rows.empty:
        return ""
    order = sorted((r["Rows / s"].value, r["Rows / s"].text, r["Data"], r["Way"]) for _, r in rows.iterrows())
    (_, low, *at), (_, high, *to) = order[0], order[-1]
    return f"In one thread the loader makes {low} ({', '.join(at)}) to {high} rows a second ({', '.join(to)})."


def _held_up(held: pd.DataFrame) -> str:
    columns = [str(h) for h in held.columns if str(h).startswith(STALL)]
    last = columns[-1]
    rows = known(held, last)
    if rows.empty:
        return ""
    over = [str(r["Model"]) for _, r in rows.iterrows() if r[last].value >= LIMIT]
    verdict = f"{', '.join(over)} at or above" if over else "none at or above"
    return (f"With {last.removeprefix(f'{STALL}, ')} a step waits for {extremes(held, last)} of its time, {verdict} "
            f"{LIMIT:.0%}.")  # fmt: skip


def _bought(table: pd.DataFrame, title: str, place: str) -> list[str]:
    """A sentence a part, of its other ways at every place; a tie is a tie."""
    rows = known(table, RATIO)
    where_at = place[0].upper() + place[1:]
    said = []
    for way in dict.fromkeys(rows["Way"]):
        each = [f"{_times(r[RATIO])} at {r[where_at]}" for _, r in rows[rows["Way"] == way].iterrows()]
        said.append(f"{way} {', '.join(each)}")
    first = str(table["Way"].iloc[0])
    return [f"{title}, time over that of {first}: {'; '.join(said)}."] if said else []


def _times(cell: Cell) -> str:
    tie = cell.low is not None and cell.high is not None and cell.low <= 1 <= cell.high
    return f"{cell.text}x (tie)" if tie else f"{cell.text}x"


def _ratio_figure(table: pd.DataFrame, place: str) -> go.Figure | None:
    """Bars of every way but the first, a group a place; the line is the first way."""
    rows = known(table, RATIO)
    if rows.empty:
        return None
    at = place[0].upper() + place[1:]
    ends = [e for c in rows[RATIO] for e in (c.value, c.low, c.high, 1.0) if e]
    fig = blank(380, place, f"time over that of the first way, {origins(rows[RATIO])}", yaxis=log_axis(ends),
                xaxis={"type": "category"})  # fmt: skip
    for colour, way in zip(COLOURS, dict.fromkeys(rows["Way"]), strict=False):
        part = rows.loc[np.asarray(rows["Way"] == way, dtype=bool)]
        cells = list(part[RATIO])
        fig.add_trace(go.Scatter(
            x=[str(p) for p in part[at]], y=[c.value for c in cells], mode="markers", name=safe(str(way)),
            marker={"color": colour, "size": 11}, error_y=errors_of(cells),
            hovertemplate=[hover(r.rename({"Way": "Model"}), [at, TIME, RATIO]) for _, r in part.iterrows()],
            meta=facets("", *cells),
        ))  # fmt: skip
    fig.add_hline(y=1.0, line={"dash": "dash", "width": 1})
    return fig


def _stall_figure(held: pd.DataFrame, names: Names) -> go.Figure | None:
    """A mark a model and number of batches ahead; the line is the limit."""
    columns = [str(h) for h in held.columns if str(h).startswith(STALL)]
    fig = blank(380, "batches made ahead", "% of a step, measured", xaxis={"type": "category"})
    drawn = False
    for i, (_, row) in enumerate(held.iterrows()):
        model = str(held.index[i])
        cells = [row[h] for h in columns if isinstance(row[h], Cell) and row[h].value is not None]
        if not cells:
            continue
        drawn = True
        fig.add_trace(go.Scatter(
            x=[h.rsplit(" ", 1)[1] for h in columns if isinstance(row[h], Cell) and row[h].value is not None],
            y=[100 * cell.value for cell in cells], mode="lines+markers",
            name=safe(f"{str(row['Model']).split(' (')[0]} · {row['Data']}"),
            line={"color": names.colour(model)}, marker={"color": names.colour(model), "symbol": names.symbol(model),
                                                         "size": 10},
            error_y=errors_of(cells, 100.0), hovertemplate=[hover(row, ["Data", h]) for h in columns],
            meta=facets(str(row["Model"]), *cells),
        ))  # fmt: skip
    fig.add_hline(y=100 * LIMIT, line={"dash": "dash", "width": 1})
    return fig if drawn else None
