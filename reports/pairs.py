"""FAT's weights of field pairs: a heat map a layer, and whether seeds agree on them (claim S19).

Dims: S seeds, L layers, H heads, F fields, P pairs of seeds
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import rankdata

from ctrbench.reports.cells import Cell, absent, data_labels
from ctrbench.reports.drawing import TITLE, blank, safe
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit

AGREE = 0.5
"""Rank correlation from which on two seeds tell the same story; ours."""
RELABELLINGS = 999
SCALE = ((0.0, "#0072B2"), (0.5, "#F2F2F2"), (1.0, "#D55E00"))
"""Blue below the start, vermilion above (Okabe and Ito): told apart with every common colour-vision deficiency."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Pair weights of the seeds of one variant on one data set."""

    model: str
    variant: str
    data: str
    fields: tuple[str, ...]
    start: float
    """What every weight starts around."""
    weight_SLFF: np.ndarray
    """Mean over heads; [query field, key field]."""


@dataclass(frozen=True, slots=True)
class Stability:
    """How far the seeds of one layer agree."""

    pair_P: np.ndarray
    """Spearman's correlation of each pair of seeds."""
    chance: float
    """95th percentile of the mean correlation when each seed's fields are relabelled at random."""
    p: float
    """Share of relabellings, the true labels among them, whose mean correlation is at least the one found."""

    def verdict(self, layers: int) -> str:
        """stable | not stable | inconclusive, at 5 % over all layers."""
        if self.pair_P.max() < AGREE:
            return "not stable"
        return "stable" if self.pair_P.min() >= AGREE and self.p <= 0.05 / layers else "inconclusive"


def learned(bodies: Mapping[str, Mapping[str, Any]]) -> list[Learned]:
    """What the trainings of FAT left in their records, one entry a data set and variant."""
    found: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for body in bodies.values():
        spec, pairs = body.get("spec", {}), body.get("extra", {}).get("pairs")
        if spec.get("kind") == "quality" and pairs:
            found[spec["model"], spec["variant"], spec["data"], spec["split"]][spec["seed"]] = pairs
    labels = data_labels((data, split) for _, _, data, split in found)
    out = []
    for (model, variant, data, split), seeds in sorted(found.items()):
        (first, *_), weights = seeds.values(), [np.array(seeds[s]["weights"]).mean(axis=1) for s in sorted(seeds)]
        fields = tuple(first["fields"])
        out.append(Learned(model, variant, labels[data, split], fields, first["start"], np.stack(weights)))
    return out


def stability(weight_SFF: np.ndarray, seed: int = 0) -> Stability | None:
    """Agreement of two seeds or more on one layer's weights off the diagonal; None with fewer.

    Chance is what is left when the fields of every seed are relabelled at random, rows and columns together: a field
    whose whole row is large stays such a field, so that structure inside one seed does not pass for agreement.
    """
    seeds, fields, _ = weight_SFF.shape
    if seeds < 2 or fields < 3:
        return None
    off = ~np.eye(fields, dtype=bool)
    rank_SFF = np.zeros(weight_SFF.shape)
    rank_SFF[:, off] = rankdata(weight_SFF[:, off], axis=1)
    rank_SFF[:, off] -= rank_SFF[:, off].mean(axis=1, keepdims=True)
    rank_SFF[:, off] /= np.linalg.norm(rank_SFF[:, off], axis=1, keepdims=True).clip(1e-12)

    def pairs(rank: np.ndarray) -> np.ndarray:
        return np.array([(rank[a] * rank[b]).sum() for a, b in combinations(range(seeds), 2)])

    found, draw = pairs(rank_SFF), np.random.default_rng(seed)
    chance = []
    for _ in range(RELABELLINGS):
        order_SF = [draw.permutation(fields) for _ in range(seeds)]
        chance.append(pairs(np.stack([r[np.ix_(o, o)] for r, o in zip(rank_SFF, order_SF, strict=True)])).mean())
    reached = int((np.array(chance) >= found.mean() - 1e-12).sum())
    return Stability(found, float(np.quantile(chance, 0.95)), (1 + reached) / (1 + RELABELLINGS))


def weights_table(one: Learned, layer: int) -> pd.DataFrame:
    """One row a query field, one column a key field."""
    mean_FF, seeds = one.weight_SLFF[:, layer].mean(axis=0), len(one.weight_SLFF)
    return pd.DataFrame([
        {"Query field": name} | {key: Cell(float(w), "pair_weight", "measured", n=seeds)
                                 for key, w in zip(one.fields, row, strict=True)}
        for name, row in zip(one.fields, mean_FF, strict=True)
    ])  # fmt: skip


def heat_map(one: Learned, layer: int) -> go.Figure:
    """Weights of one layer, mean over heads and seeds; grey is the start, both colours reach equally far."""
    mean_FF = one.weight_SLFF[:, layer].mean(axis=0)
    reach = float(np.abs(one.weight_SLFF.mean(axis=0) - one.start).max()) or 1.0
    names = [safe(f) for f in one.fields]
    axis = {"showgrid": False, "zeroline": False, "tickfont": {"size": 11}, "dtick": 1}
    fig = blank(190 + 24 * len(names), "key field", "query field", xaxis={**axis, "tickangle": -60},
                yaxis={**axis, "autorange": "reversed"})  # fmt: skip
    fig.update_xaxes(title_standoff=24)  # the slanted names end there
    bar = {"orientation": "h", "y": 1.01, "yanchor": "bottom", "thickness": 12, "len": 0.9, "outlinewidth": 0,
           "title": {"text": "weight of the pair, measured", "font": TITLE, "side": "top"}, "nticks": 5}  # fmt: skip
    fig.add_trace(go.Heatmap(
        x=names, y=names, z=mean_FF.tolist(), colorscale=SCALE, zmin=one.start - reach, zmax=one.start + reach,
        xgap=1, ygap=1, colorbar=bar, hovertemplate="query %{y}, key %{x}: %{z:.4f} (measured)<extra></extra>",
    ))  # fmt: skip
    return fig


def stability_table(c: Context, found: list[Learned]) -> pd.DataFrame:
    """One row a layer: how far seeds agree, against chance."""
    rows, index = [], []
    for one in found:
        layers = one.weight_SLFF.shape[1]
        for layer in range(layers):
            weight_SFF = one.weight_SLFF[:, layer]
            seeds, spread = len(weight_SFF), float(np.abs(weight_SFF - one.start).mean())
            row: dict[str, Any] = {"Model": c.names.title(one.model, one.variant), "Data": one.data,
                                   "Layer": str(layer + 1), "Seeds": str(seeds),
                                   "Mean distance from start": Cell(spread, "pair_weight", "measured")}  # fmt: skip
            judged = stability(weight_SFF)
            if judged is None:
                why = absent("pair_stability", "needs two seeds" if seeds < 2 else "needs three fields")
                row |= {"Rank correlation": why, "Chance, 95 %": why, "p": "—", "Verdict": "withheld"}
            else:
                rho, (low, high) = judged.pair_P.mean(), (judged.pair_P.min(), judged.pair_P.max())
                row |= {
                    "Rank correlation": Cell(float(rho), "pair_stability", "derived", float(low), float(high),
                                             len(judged.pair_P)),
                    "Chance, 95 %": Cell(judged.chance, "pair_stability", "derived"), "p": f"{judged.p:.3f}",
                    "Verdict": judged.verdict(layers),
                }  # fmt: skip
            rows.append(row)
            index.append(one.model)
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """What FAT's pair weights look like, and whether they are the same from seed to seed."""
    found = learned(c.bodies)
    if not found:
        return None
    table = stability_table(c, found)
    exhibits: list[Exhibit] = [*exhibit(table, title="Agreement of seeds", open=True)]
    for one in found:
        who = f"{c.names.title(one.model, one.variant)} on {one.data}"
        for layer in range(one.weight_SLFF.shape[1]):
            title, folded = f"{who}, layer {layer + 1}", bool(one.variant)  # options and tuned ones wait for a click
            exhibits += exhibit(
                weights_table(one, layer), (f"{title}: mean over heads and seeds", heat_map(one, layer)),
                title=title, group=who if folded else "",
            )  # fmt: skip
    return Section(
        id="pairs",
        title="Field pairs: what FAT's pair weights say, and whether seeds agree",
        sentence=_sentence(table),
        exhibits=tuple(exhibits),
        caveat=f"A weight multiplies the attention score of a query field with a key field before the softmax. Stable: "
        f"every pair of seeds correlates (Spearman, off the diagonal) at {AGREE} or more, and chance reaches the mean "
        f"in less than 5 % of {RELABELLINGS} relabellings of each seed's fields, divided by the number of layers; not "
        f"stable: no pair reaches {AGREE}; else inconclusive. The threshold is ours. The band is the lowest and the "
        "highest pair of seeds, no confidence interval. A stable weight is no explanation yet: its effect hangs on the "
        "scores that it multiplies.",
    )


def _sentence(table: pd.DataFrame) -> str:
    """One clause a model and data set."""
    said = []
    for (model, data), rows in table.groupby(["Model", "Data"], sort=False):
        verdicts = list(dict.fromkeys(rows["Verdict"]))
        if verdicts == ["withheld"]:
            said.append(f"On {data} one training of {model} cannot say whether its pair weights are stable.")
            continue
        call = verdicts[0] if len(verdicts) == 1 else ", ".join(
            f"{r['Verdict']} in layer {r['Layer']}" for _, r in rows.iterrows()
        )  # fmt: skip
        numbers = ", ".join(f"{r['Rank correlation'].text} {r['Rank correlation'].band}" for _, r in rows.iterrows())
        said.append(
            f"On {data} the pair weights of {model} are {call} over {rows['Seeds'].iloc[0]} seeds: rank correlation by "
            f"layer {numbers}, chance up to {', '.join(r['Chance, 95 %'].text for _, r in rows.iterrows())}."
        )
    return " ".join(said)
