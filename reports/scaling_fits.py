"""Which law the loss of several sizes follows, the best size at equal FLOPs, and what LUM finds at each size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell, absent, pick
from ctrbench.reports.claim_evidence import SEEDS, Evidence, listed
from ctrbench.reports.claim_rules_scaling import interval
from ctrbench.reports.drawing import DASHES, blank, errors_of, facets, hover, log_axis, marker_of, safe
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.names import Names
from ctrbench.reports.scaling_laws import LAWS, LEAST_SIZES, LEVEL, extrapolated
from ctrbench.reports.scaling_series import AXES, LOSSES, Series, Training, series, slices
from ctrbench.reports.scaling_words import FAR, Comparison

SLOPE, LAW, EXPONENT, FLOOR, MISSED = "At ten times", "Law", "Exponent c", "Floor a", "Largest size, predicted"
LOSS, RECALL, PARAMETERS = "Loss", "Recall@10", "Parameters"
FULL = 5
"""Sizes of a full fit: one is left to be predicted by the others."""
WORDS = {"undecided": "undecided, both laws fit", "flat": "flat, sizes differ by no more than seeds",
         "neither": "neither law fits"}  # fmt: skip
"""Where no law is named: what is said instead."""
CAVEAT = (
    f"{SLOPE}: what loss changes by, a least-squares line over all sizes for each seed, 95 % interval over seeds; "
    "it is given whatever the curve is. "
    "A power law a + b C^-c and a saturating one a + b exp(-C / c), of log loss and of 1 - AUC, least squares "
    "over all c. Bands of curves are 95 % of curves drawn with the seeds' spread around the fit; those of c and a "
    "hold every value that an F test against the seeds does not reject, and are open where c ends at 0.005 or 4. "
    "A law is named when the other, were it true, would in fewer than 2 of 100 draws predict left-out sizes this "
    f"much worse, when it itself would not, and when the points lie near it (p of {FAR:g} or more). Flat: analysis "
    f"of variance sees no difference between sizes (p of {LEVEL:g} or more). At least {LEAST_SIZES} sizes by "
    f"{SEEDS} seeds; beyond the sizes that ran nothing is known. One learning rate served all sizes; all are "
    "judged on the same test rows, which are not resampled; one spread over seeds is taken for all sizes."
)


def law_table(found: list[Series], names: Names) -> pd.DataFrame:
    """One row a series: the word, the exponent, the floor, what each law misses by, and the largest size predicted."""
    rows = []
    for one in found:
        known = one.compared
        rows.append({
            "Model": names.title(one.model), "Camp": names.camp(one.model), "Data": one.data,
            "Along": AXES[one.axis][0], "Loss": LOSSES[one.metric], "Held": one.label,
            "Sizes": str(len(one.at_N)), "Seeds": str(one.loss_NS.shape[1]), SLOPE: slope(one), LAW: _word(known),
            **_fitted(one, known), **_predicted(one),
        })  # fmt: skip
    return pd.DataFrame(rows, index=[one.model for one in found])


def slope(one: Series) -> Cell:
    """Change of loss at ten times the compute, rows or length: a least-squares line a seed, interval over seeds."""
    lines_S = np.polyfit(np.log10(one.at_N), one.loss_NS, 1)[0]
    mean = interval(lines_S)
    return Cell(mean.value, "scaling_slope", "derived", mean.low, mean.high, mean.n, signed=True)


def _word(known: Comparison) -> str:
    if known.word == "power":
        return f"power (p of saturating = {known.p_if_saturating:.3f})"
    if known.word == "saturating":
        return f"saturating (p of power = {known.p_if_power:.3f})"
    return WORDS[known.word]


def _fitted(one: Series, known: Comparison) -> dict[str, Cell]:
    """Exponent, floor and errors of left-out sizes; withheld where the sizes follow no law that falls."""
    heads = {EXPONENT: "scaling_exponent", FLOOR: "logloss", "Left-out sizes, power law": "logloss",
             "Left-out sizes, saturating law": "logloss"}  # fmt: skip
    if known.word in ("flat", "neither"):
        return {head: absent(metric, WORDS[known.word]) for head, metric in heads.items()}
    seeds = one.loss_NS.shape[1]
    values = [(*known.power.exponent(), seeds), (*known.power.floor(), seeds)]
    cells = [Cell(v, m, "derived", low, high, n) for (v, low, high, n), m in zip(values, heads.values(), strict=False)]
    errors = [Cell(law.cv_error, "logloss", "derived") for law in (known.power, known.saturating)]
    return dict(zip(heads, [*cells, *errors], strict=True))


def _predicted(one: Series) -> dict[str, Cell]:
    """The largest size as the power law of the others predicts it, and as it was."""
    head, seen_head = MISSED, "Largest size, seen"
    if one.compared.word in ("flat", "neither"):
        reason = WORDS[one.compared.word]
    elif len(one.at_N) < FULL:
        reason = f"{len(one.at_N)} sizes; {FULL} leave one to be predicted"
    else:
        predicted, low, high, seen = extrapolated(LAWS["power"], one.at_N, one.loss_NS)
        return {head: Cell(predicted, "logloss", "derived", low, high), seen_head: Cell(seen, "logloss", "derived")}
    return {h: absent("logloss", reason) for h in (head, seen_head)}


def points_table(found: list[Series], names: Names) -> pd.DataFrame:
    """One row a size: its mean over seeds and what both laws say there."""
    rows, index = [], []
    for one in found:
        known = one.compared
        said = [law.fit.at(one.at_N)[0] for law in (known.power, known.saturating)]
        for at, loss_S, *fitted in zip(one.at_N, one.loss_NS, *said, strict=True):
            mean = interval(loss_S)
            rows.append({
                "Model": names.title(one.model), "Camp": names.camp(one.model), "Held": one.label,
                AXES[one.axis][0]: Cell(float(at), "budget_flops", "derived") if one.axis == "size" else f"{at:,.0f}",
                LOSS: Cell(mean.value, "logloss", "derived", mean.low, mean.high, mean.n),
                "Power law": Cell(float(fitted[0]), "logloss", "derived"),
                "Saturating law": Cell(float(fitted[1]), "logloss", "derived"),
            })  # fmt: skip
            index.append(one.model)
    return pd.DataFrame(rows, index=index)


def figure(found: list[Series], table: pd.DataFrame, names: Names) -> go.Figure:
    """Points of every series on one axis; where loss falls the power law with its band, the saturating one dashed.

    Args:
        found: series along one axis, of one loss.
        table: of `points_table`, for the pointer.
        names: colours and shapes.
    """
    head, title = AXES[found[0].axis]
    fig = blank(430, title, f"test {LOSSES[found[0].metric]}, derived",
                xaxis=log_axis(np.concatenate([one.at_N for one in found])))  # fmt: skip
    for one in found:
        name, colour, known = names.title(one.model), names.colour(one.model), one.compared
        part = table[(table["Model"] == name) & (table["Held"] == one.label)]
        meta = {"legendgroup": name, "meta": facets(name, *part[LOSS])}
        if known.word not in ("flat", "neither"):
            at = np.geomspace(one.at_N[0], one.at_N[-1], 40)
            curve, low, high = known.power.band(at)
            fig.add_trace(go.Scatter(
                x=[*at, *at[::-1]], y=[*high, *low[::-1]], fill="toself", mode="none", fillcolor=colour, opacity=0.18,
                hoverinfo="skip", showlegend=False, **meta,
            ))  # fmt: skip
            for y, dash in ((curve, DASHES[0]), (known.saturating.fit.at(at)[0], DASHES[1])):
                fig.add_trace(go.Scatter(x=at, y=y, mode="lines", hoverinfo="skip", showlegend=False,
                                         line={"color": colour, "dash": dash}, **meta))  # fmt: skip
        fig.add_trace(go.Scatter(
            x=one.at_N.tolist(), y=[c.value for c in part[LOSS]], mode="markers", name=safe(name),
            marker=marker_of(names, one.model, 10), error_y=errors_of(list(part[LOSS])),
            hovertemplate=[hover(r, [head, LOSS, "Power law", "Saturating law"]) for _, r in part.iterrows()], **meta,
        ))  # fmt: skip
    return fig


def slice_table(found: list[list[Training]], names: Names) -> pd.DataFrame:
    """One row a size of every slice of equal FLOPs."""
    rows, index = [], []
    for group in found:
        best = min(float(t.losses["logloss"].mean()) for t in group)
        for one in group:
            loss, auc = (interval(one.losses[m].to_numpy()) for m in ("logloss", "auc"))
            rows.append({
                "Model": names.title(one.model), "Camp": names.camp(one.model), "Data": one.data,
                "Training FLOPs": Cell(one.flops, "budget_flops", "derived"), "Size": one.size,
                "Training rows": f"{one.rows:,.0f}",
                "Log loss": Cell(loss.value, "logloss", "derived", loss.low, loss.high, loss.n),
                "1 - AUC": Cell(auc.value, "logloss", "derived", auc.low, auc.high, auc.n),
                "Lowest log loss": "yes" if float(one.losses["logloss"].mean()) == best else "",
            })  # fmt: skip
            index.append(one.model)
    return pd.DataFrame(rows, index=index)


def recall_table(e: Evidence, names: Names) -> pd.DataFrame:
    """One row a size of a model with a pre-training that retrieves, where there are as many sizes as a law needs."""
    rows, index = [], []
    found = e.rows("recall_at_k", scope="model")
    found = found[found["seed"].notna() & (found["preset"] == "small")]
    sized: dict[tuple[str, str], list[tuple[float, Cell, np.ndarray]]] = {}
    for (model, variant, data), part in found.groupby(["model", "variant", "data"], sort=False):
        count = pick(e.rows("parameters", model=model, variant=variant, data=data), "parameters")
        if count.value and len(part) >= SEEDS:
            sized.setdefault((str(model), str(data)), []).append((count.value, count, part["value"].to_numpy()))
    for (model, data), points in sized.items():
        if len({n for n, _, _ in points}) < LEAST_SIZES:
            continue
        for _, count, recall_S in sorted(points, key=lambda p: p[0]):
            mean = interval(recall_S)
            rows.append({
                "Model": names.title(model), "Camp": names.camp(model), "Data": data, PARAMETERS: count,
                RECALL: Cell(mean.value, "recall_at_k", "derived", mean.low, mean.high, mean.n),
            })  # fmt: skip
            index.append(model)
    return pd.DataFrame(rows, index=index)


def recall_figure(table: pd.DataFrame, names: Names) -> go.Figure | None:
    """Recall of each size against its parameters."""
    if table.empty:
        return None
    fig = blank(360, "parameters, tables among them, counted", "Recall@10, derived",
                xaxis=log_axis([c.value for c in table[PARAMETERS]]))  # fmt: skip
    for model, part in table.groupby(level=0, sort=False):
        name = part["Model"].iloc[0]
        fig.add_trace(go.Scatter(
            x=[c.value for c in part[PARAMETERS]], y=[c.value for c in part[RECALL]], mode="markers", name=safe(name),
            marker=marker_of(names, str(model), 10), error_y=errors_of(list(part[RECALL])),
            hovertemplate=[hover(r, [PARAMETERS, RECALL]) for _, r in part.iterrows()],
            legendgroup=name, meta=facets(name, *part[RECALL]),
        ))  # fmt: skip
    return fig


def section(c: Context) -> Section | None:
    """Shown where some model was trained at four sizes, row counts or history lengths."""
    e = Evidence.of(c)
    found = series(e)
    if not found:
        return None
    laws = law_table(found, c.names)
    recall = recall_table(e, c.names)
    more = (
        *exhibit(slice_table(slices(e), c.names), title="Equal training FLOPs: larger on fewer rows", open=True),
        *exhibit(recall, ("Recall@10 against parameters", recall_figure(recall, c.names)),
                 title="What a pre-training finds, by size", open=True),
    )  # fmt: skip
    return Section(
        id="scaling-laws",
        title="Scaling: which law the loss follows",
        sentence=_sentence(laws),
        exhibits=(*_drawn(found, c.names), *exhibit(laws, title="Laws", open=True), *more),
        caveat=CAVEAT,
    )


def _drawn(found: list[Series], names: Names) -> list[Exhibit]:
    """An exhibit a data set, axis and loss."""
    out: list[Exhibit] = []
    for data in dict.fromkeys(one.data for one in found):
        for axis, (head, _) in AXES.items():
            for metric, loss in LOSSES.items():
                here = [one for one in found if (one.data, one.axis, one.metric) == (data, axis, metric)]
                if here:
                    table = points_table(here, names)
                    against = f"{loss} against {head[:1].lower()}{head[1:]}"
                    drawn = ("What was seen, and both laws where loss moves", figure(here, table, names))
                    out += exhibit(table, drawn, title=f"{data}: {against}", data=data)
    return out


def _sentence(laws: pd.DataFrame) -> str:
    """Who follows which law, by log loss; laws that are named come first."""
    calls: dict[str, list[str]] = {word: [] for word in ("power", "saturating", *WORDS.values())}
    for _, row in laws[laws["Loss"] == LOSSES["logloss"]].iterrows():
        along = row["Along"][:1].lower() + row["Along"][1:]
        calls[row[LAW].split(" (")[0]].append(f"{row['Model']} along {along}")
    said = "; ".join(f"{word} ({listed(who, most=12)})" for word, who in calls.items() if who)
    return f"By log loss: {said}."
