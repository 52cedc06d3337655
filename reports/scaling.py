"""AUC against forward FLOPs over several sizes of one model, with the straight line that its seeds fit and its band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell
from ctrbench.reports.claim_evidence import SEEDS, Evidence, listed
from ctrbench.reports.claim_rules_scaling import Curve, curves, interval
from ctrbench.reports.drawing import DASHES, blank, errors_of, facets, hover, log_axis, marker_of, safe
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.names import Names
from ctrbench.reports.tables import models_of

SIZES = 3
"""Fewest sizes behind a line: two always fit."""
FLOPS, AUC, LINE, SLOPE = "Forward FLOPs / sample", "AUC", "AUC of the line", "ΔAUC per doubling"


def found_in(c: Context) -> list[Curve]:
    """Curves of all models with enough sizes, in table order."""
    models = dict.fromkeys(m for m, _ in models_of(c.frame, c.names, trained=True, metric="auc"))
    return curves(Evidence.of(c), models, SIZES)


def titles(found: Sequence[Curve], names: Names) -> list[str]:
    """Name of each curve; those of one model on one data set differ in options, which are named then."""
    out = []
    for one in found:
        others = [dict(o.options) for o in found if (o.model, o.data) == (one.model, one.data)]
        own = [f"{k}={v}" for k, v in one.options if any(o.get(k) != v for o in others)]
        out.append(names.title(one.model, ",".join(own)))
    return out


def sizes_table(found: Sequence[Curve], named: Sequence[str], names: Names) -> pd.DataFrame:
    """One row a size: its mean over seeds, and the line there."""
    rows, index = [], []
    for one, title in zip(found, named, strict=True):
        line = one.line(one.doublings_N)
        for at, auc_S, fitted in zip(one.doublings_N, one.auc_NS, line, strict=True):
            mean = replace(interval(auc_S), metric="auc", signed=False)
            rows.append({
                "Model": title, "Camp": names.camp(one.model),
                FLOPS: Cell(float(2**at), "flops_fwd_per_sample", "counted"), AUC: mean, LINE: fitted,
            })  # fmt: skip
            index.append(one.model)
    return pd.DataFrame(rows, index=index)


def slopes_table(found: Sequence[Curve], named: Sequence[str], names: Names) -> pd.DataFrame:
    """One row a curve: what a doubling of FLOPs brings, and how that changes along it."""
    rows = [
        {"Model": title, "Camp": names.camp(one.model), "Data": one.data, "Sizes": str(len(one.doublings_N)),
         "Seeds": str(one.auc_NS.shape[1]), SLOPE: one.slope(), "Last doubling less first": one.bend()}
        for one, title in zip(found, named, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, index=[one.model for one in found])


def figure(found: Sequence[Curve], named: Sequence[str], table: pd.DataFrame, names: Names) -> go.Figure:
    """Points with their interval over seeds, lines and bands of one data set.

    Args:
        found: curves, not empty.
        named: title of each.
        table: of `sizes_table`, for the pointer.
        names: colours and shapes.
    """
    fig = blank(430, "forward FLOP per sample, counted", "test AUC, derived",
                xaxis=log_axis([c.value for c in table[FLOPS]]))  # fmt: skip
    seen: dict[str, int] = {}
    for one, title in zip(found, named, strict=True):
        seen[one.model] = seen.get(one.model, -1) + 1
        part, at = table[table["Model"] == title], np.linspace(one.doublings_N[0], one.doublings_N[-1], 25)
        band, x, colour = one.line(at), (2**at).tolist(), names.colour(one.model)
        meta = {"legendgroup": title, "meta": facets(title, *part[AUC])}
        fig.add_trace(go.Scatter(
            x=[*x, *x[::-1]], y=[*(c.high for c in band), *(c.low for c in band[::-1])], fill="toself", mode="none",
            fillcolor=colour, opacity=0.18, hoverinfo="skip", showlegend=False, **meta,
        ))  # fmt: skip
        fig.add_trace(go.Scatter(
            x=x, y=[c.value for c in band], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": colour, "dash": DASHES[seen[one.model] % len(DASHES)]}, **meta,
        ))  # fmt: skip
        fig.add_trace(go.Scatter(
            x=[c.value for c in part[FLOPS]], y=[c.value for c in part[AUC]], mode="markers", name=safe(title),
            marker=marker_of(names, one.model, 10), error_y=errors_of(list(part[AUC])),
            hovertemplate=[hover(r, [FLOPS, AUC, LINE]) for _, r in part.iterrows()], **meta,
        ))  # fmt: skip
    return fig


def section(c: Context) -> Section | None:
    """Shown where one model was trained at several sizes."""
    found = found_in(c)
    if not found:
        return None
    exhibits: list[Exhibit] = []
    for data in dict.fromkeys(one.data for one in found):
        here = [one for one in found if one.data == data]
        named = titles(here, c.names)
        table = sizes_table(here, named, c.names)
        exhibits += exhibit(table, (f"AUC against size on {data}", figure(here, named, table, c.names)), title=data,
                            data=data)  # fmt: skip
    slopes = slopes_table(found, titles(found, c.names), c.names)
    return Section(
        id="scaling",
        title="Scaling: AUC against the size of one model",
        sentence=_sentence(slopes),
        exhibits=(*exhibits, *exhibit(slopes, title="What a doubling of forward FLOPs brings", open=True)),
        caveat=f"Sizes are variants that differ in nothing but widths, depths and heads, at least {SIZES} of them with "
        f"{SEEDS} seeds each on observed labels; fewer sizes get no line. One straight line over log2 of FLOPs is "
        "fitted to every seed; the band is Student's 95 % interval over these lines, at each size by itself, inside "
        "the sizes that ran. It says how far seeds agree, not that a straight line is the law; users are not "
        "resampled.",
    )


def _sentence(slopes: pd.DataFrame) -> str:
    calls: dict[str, list[str]] = {}
    for _, row in slopes.iterrows():
        said = f"{row['Model']} on {row['Data']} ({row[SLOPE].text} {row[SLOPE].band})"
        calls.setdefault(_sign(row[SLOPE]), []).append(said)
    return f"Per doubling of forward FLOPs, in AUC: {'; '.join(f'{listed(who)} {w}' for w, who in calls.items())}."


def _sign(slope: Cell) -> str:
    assert slope.low is not None
    assert slope.high is not None
    return "gains" if slope.low > 0 else "loses" if slope.high < 0 else "gains nothing that is resolved"
