"""Every two models of a kind: who is told apart from whom by the paired interval, and the groups that are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx
import pandas as pd
import plotly.graph_objects as go

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.drawing import blank, facets, hover, origins, pitch, row_labels
from ctrbench.reports.names import GREY, Names
from ctrbench.reports.tables import verdict

METRIC, LEAST = "auc_pair", "auc_pair_mdd"
LOOKS = {"better": ("#0072B2", "square", ">"), "tied": (GREY, "square-open", "="), "worse": ("#D55E00", "square", "<")}
"""Verdict -> colour, shape and the sign in it: no meaning hangs on colour alone."""
Who = tuple[str, str]
"""(model, variant)"""


@dataclass(frozen=True, slots=True)
class Ties:
    """The pairs of one data set and one kind of training."""

    auc: Mapping[Who, Cell]
    """Best mean first."""
    pairs: Mapping[tuple[Who, Who], Cell]
    """Difference of the first less the second, both ways round."""
    found: Mapping[tuple[Who, Who], Cell] = field(default_factory=dict)
    """Smallest true difference that the pair would have shown, both ways round."""

    def letters(self) -> dict[Who, str]:
        """Models that share a letter are tied with each other, and no group could be larger; `a` has the best model."""
        order = list(self.auc)
        graph = networkx.Graph()
        graph.add_nodes_from(order)
        graph.add_edges_from(key for key, delta in self.pairs.items() if verdict(delta) == "tied")
        groups = sorted(sorted(map(order.index, clique)) for clique in networkx.find_cliques(graph))
        return {
            who: ",".join(_letter(g) for g, group in enumerate(groups) if i in group) for i, who in enumerate(order)
        }


def _letter(number: int) -> str:
    letter = chr(ord("a") + number % 26)
    return letter if number < 26 else f"{letter}{number // 26}"


def ties(frame: pd.DataFrame, data: str) -> dict[str, Ties]:
    """Kind of training (`` for defaults, tuned, equal_flops) -> its pairs, where records hold any."""
    rows = where(frame, data=data, metric=METRIC)
    found: dict[str, dict[tuple[Who, Who], Cell]] = {}
    sizes: dict[tuple[Who, Who], Cell] = {}
    for model, variant, scope in rows[["model", "variant", "scope"]].drop_duplicates().itertuples(index=False):
        mine, other = (str(model), str(variant)), _who(str(scope))
        delta = pick(rows, METRIC, scope=scope, model=model, variant=variant, signed=True)
        if delta.value is not None:
            kind = mine[1].partition(",")[0]
            pairs = found.setdefault(kind if kind in ("tuned", "equal_flops") else "", {})
            pairs[mine, other], pairs[other, mine] = delta, delta.negated()
            least = pick(where(frame, data=data), LEAST, scope=scope, model=model, variant=variant)
            sizes[mine, other] = sizes[other, mine] = least
    out = {}
    for kind, pairs in found.items():
        whos = dict.fromkeys(who for key in pairs for who in key)
        aucs = {who: pick(frame, "auc", data=data, model=who[0], variant=who[1], trained=True) for who in whos}
        best = sorted(aucs, key=lambda who: -(aucs[who].value or 0.0))
        out[kind] = Ties({who: aucs[who] for who in best}, pairs, sizes)
    return out


def pair_of(rows: pd.DataFrame, mine: Who, other: Who) -> Cell:
    """AUC of one less that of the other; records hold a pair one way round. `rows` are of one data set."""
    for who, against, turned in ((mine, other, False), (other, mine, True)):
        scope = f"vs:{','.join(filter(None, against))}"
        cell = pick(rows, METRIC, scope=scope, model=who[0], variant=who[1], signed=True)
        if cell.value is not None:
            return cell.negated() if turned else cell
    return absent(METRIC, "the two were not paired")


def _who(scope: str) -> Who:
    model, _, variant = scope.removeprefix("vs:").partition(",")
    return model, variant


def lettered(quality: pd.DataFrame, found: Mapping[str, Ties], names: Names) -> pd.DataFrame:
    """`tables.quality` with the letters of every model that has pairs."""
    letters = {names.title(*who): text for kind in found.values() for who, text in kind.letters().items()}
    if not letters or quality.empty:
        return quality
    out = quality.copy()
    at = list(out.columns).index("Paired verdict") + 1
    out.insert(at, "Tied group", [letters.get(str(m), "—") for m in out["Model"]])
    return out


def table(found: Ties, names: Names) -> pd.DataFrame:
    """A row a pair, the model of the higher mean first: nobody has to read a difference backwards."""
    order = list(found.auc)
    shown = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if (a, b) in found.pairs]
    rows = [
        {
            "Model": names.title(*a), "Against": names.title(*b), "AUC": found.auc[a], "AUC of the other": found.auc[b],
            "ΔAUC, Model minus Against": found.pairs[a, b], "Paired verdict": verdict(found.pairs[a, b]),
            "Detectable ΔAUC": found.found.get((a, b)) or absent(LEAST, "no row"),
        }
        for a, b in shown
    ]  # fmt: skip
    return pd.DataFrame(rows, index=[a[0] for a, _ in shown])


def figure(found: Ties, names: Names) -> go.Figure | None:
    """A square a pair: the model at the side is better (>), tied (=) or worse (<) than the one above."""
    order = list(found.auc)
    if len(order) < 3:
        return None
    shown = dict(zip(order, row_labels(names.title(*who) for who in order), strict=True))
    fig = blank(150 + pitch(list(shown.values())) * len(order), f"against, {origins(found.pairs.values())}")
    for who in order:
        others = [other for other in order if (who, other) in found.pairs]
        cells = [found.pairs[who, other] for other in others]
        looks = [LOOKS[verdict(c)] for c in cells]
        rows = [pd.Series({"Model": f"{names.title(*who)} less {names.title(*other)}", "ΔAUC": c})
                for other, c in zip(others, cells, strict=True)]  # fmt: skip
        fig.add_trace(
            go.Scatter(
                x=[shown[o] for o in others],
                y=[shown[who]] * len(others),
                mode="markers+text",
                text=[sign for _, _, sign in looks],
                textfont={"color": ["white" if s == "square" else GREY for _, s, _ in looks], "size": 12},
                marker={"color": [c for c, _, _ in looks], "symbol": [s for _, s, _ in looks], "size": 20},
                showlegend=False,
                hovertemplate=[hover(r, ["ΔAUC"]) for r in rows],
                meta=facets(names.title(*who), *cells),
            )
        )
    marks = list(shown.values())
    fig.update_xaxes(categoryorder="array", categoryarray=marks, side="top", tickangle=-60, showgrid=False)
    fig.update_yaxes(categoryorder="array", categoryarray=marks[::-1], showgrid=False)
    return fig


def sentence(found: Ties, names: Names) -> str:
    """Who shares the first place, and how many pairs are told apart."""
    letters, order = found.letters(), list(found.auc)
    first = [names.title(*who) for who in order if "a" in letters[who].split(",")]
    apart = sum(verdict(d) in ("better", "worse") for d in found.pairs.values()) // 2
    said = f"{apart} of {len(found.pairs) // 2} pairs are told apart"
    return f"{said}; {', '.join(first)} are not, at the top." if len(first) > 1 else f"{said}; {first[0]} leads alone."
