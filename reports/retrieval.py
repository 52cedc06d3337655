"""Retrieval from the full catalogue: models and floors on the same users, and what was published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.table import Table as RichTable

from ctrbench.reports.cells import RETRIEVAL, Cell, absent, data_labels, pick, tidy, where
from ctrbench.reports.costs import cited
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.names import names_of
from ctrbench.reports.tables import console_table, groups, models_of, verdict

MODEL = "model"
CONSOLE = ("Model", "Recall@10", "NDCG@10")
FLOORS = {
    "popularity": "popularity", "item_knn": "item-kNN", "popularity_in_condition": "popularity in the asked condition",
    "item_knn_in_condition": "item-kNN in the asked condition",
}  # fmt: skip
"""Scope of a floor -> how it is called."""


def retrieval(c: Context) -> Section | None:
    """Recall and NDCG of every retriever, beside floors that know as much."""
    exhibits: list[Exhibit] = []
    said: list[str] = []
    frame = where(c.frame, preset=RETRIEVAL)
    for track, data in c.data:
        mine = where(frame, data=data)
        found = _found(c, mine, data)
        if found.empty:
            continue
        runs = _runs(c, data)
        exhibits += exhibit(found, title=f"{data} ({track} track), {_protocol(runs)}", open=True)
        exhibits += exhibit(
            _gains(c, mine), title=f"Recall@10 over each floor, the same users, {data}", open=True,
            note="tied: the 95 % interval holds 0.",
        )  # fmt: skip
        exhibits += exhibit(_ids(c, mine, data), title=f"Semantic IDs that models retrieve by, {data}, measured")
        said += [
            s for who in _who(c, mine) if (s := _sentence(c, where(mine, model=who[0], variant=who[1]), who, data))
        ]
    if not exhibits:
        return None
    return Section(
        id="retrieval",
        title="Retrieval: each user's last event in the full catalogue",
        sentence=" ".join(said) or "No retriever finished.",
        exhibits=tuple(exhibits),
        caveat="Mean over seeds, 95 % interval over users and seeds resampled jointly. Items of a user's own history "
        "are in no list. A model that is asked under the event's condition is told something that the event alone "
        "would give away: only floors that are told it too count against it. The epoch is chosen by each user's event "
        "before the last, which training does not see. " + _differences(c),
    )


def console(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> list[RichTable]:
    """Models and floors of each data set for a terminal; nothing where nobody retrieved."""
    rows = tidy(frame)
    context = Context(rows, bodies, names_of(rows, bodies), tuple(groups(rows)))
    found = [(data, _found(context, where(rows, preset=RETRIEVAL, data=data), data)) for _, data in context.data]
    return [console_table(f"{data}, retrieval (95 % intervals)", body, CONSOLE) for data, body in found if len(body)]


def _who(c: Context, mine: pd.DataFrame) -> list[tuple[str, str]]:
    return models_of(mine, c.names, metric="recall_at_k")


def _runs(c: Context, data: str, model: str = "", variant: str = "") -> list[Mapping[str, Any]]:
    """Records of the retrievers of a data set, or of one of them."""
    specs = [b.get("spec", {}) for b in c.bodies.values()]
    labels = data_labels((s["data"], s.get("split", "")) for s in specs if s.get("data"))
    return [
        b for b in c.bodies.values()
        if (s := b.get("spec", {})).get("kind") == "retrieve" and data in (s["data"], labels[s["data"], s["split"]])
        and (not model or (s["model"], s.get("variant", "")) == (model, variant))
    ]  # fmt: skip


def _protocol(runs: Iterable[Mapping[str, Any]]) -> str:
    first = next((b["extra"] for b in runs), None)
    if first is None:
        return "nothing finished"
    return f"{first['protocol']}: {first['users']:,} users, an item table of {first['items']:,} rows"


def _found(c: Context, mine: pd.DataFrame, data: str) -> pd.DataFrame:
    """One row a model and a floor."""
    rows, index = [], []
    floors: dict[str, dict[str, Any]] = {}
    for model, variant in _who(c, mine):
        own = where(mine, model=model, variant=variant)
        runs = _runs(c, data, model, variant)
        claim = _claim(data, model)
        rows.append({
            "Model": c.names.title(model, variant), "Camp": c.names.camp(model),
            "Asked under the condition": "yes" if _conditioned(own) else "no",
            "Recall@10": pick(own, "recall_at_k", scope=MODEL), "NDCG@10": pick(own, "ndcg_at_k", scope=MODEL),
            "Published Recall@10": _published(claim, "recall", "recall_at_k"),
            "Published NDCG@10": _published(claim, "ndcg", "ndcg_at_k"),
            "Seeds": str(len(runs)), "Epochs": ", ".join(str(b["extra"]["chosen"]) for b in runs) or "—",
            "Events a history": _listed(b["spec"]["history_length"] for b in runs),
        })  # fmt: skip
        index.append(model)
        for floor, title in FLOORS.items():
            recall = pick(own, "recall_at_k", scope=floor)
            if recall.value is not None and floor not in floors:
                floors[floor] = {
                    "Model": title, "Camp": "floor",
                    "Asked under the condition": "yes" if floor.endswith("_in_condition") else "no",
                    "Recall@10": recall, "NDCG@10": pick(own, "ndcg_at_k", scope=floor),
                    "Published Recall@10": absent("recall_at_k", "a floor"),
                    "Published NDCG@10": absent("ndcg_at_k", "a floor"), "Seeds": "—", "Epochs": "—",
                    "Events a history": "all",
                }  # fmt: skip
    return pd.DataFrame(rows + list(floors.values()), index=index + list(floors))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values))) or "—"


def _conditioned(own: pd.DataFrame) -> bool:
    return bool((own["scope"] == "popularity_in_condition").any())


def _gains(c: Context, mine: pd.DataFrame) -> pd.DataFrame:
    """One row a model and floor: what the model finds beyond it."""
    rows, index = [], []
    for model, variant in _who(c, mine):
        own = where(mine, model=model, variant=variant)
        for floor, title in FLOORS.items():
            gain = pick(own, "recall_gain", scope=f"vs:{floor}", signed=True)
            if gain.value is not None:
                rows.append({"Model": c.names.title(model, variant), "Floor": title, "Recall@10 over it": gain,
                             "Verdict": verdict(gain)})  # fmt: skip
                index.append(model)
    return pd.DataFrame(rows, index=index)


def _ids(c: Context, mine: pd.DataFrame, data: str) -> pd.DataFrame:
    """One row a model that retrieves by semantic IDs: what they are made of and how well they are used."""
    rows = []
    for model, variant in _who(c, mine):
        ids = next((i for b in _runs(c, data, model, variant) if (i := b["extra"].get("semantic_ids"))), None)
        if ids is None:
            continue
        rows.append({
            "Model": c.names.title(model, variant), "Content": ids["content"], "Method": ids["method"],
            "Items": f"{ids['items']:,}", "Codes in use, by level": ", ".join(f"{u:.1%}" for u in ids["code_use"]),
            "Mean square left, by level": ", ".join(
                f"{left / ids['mean_square']:.1%}" for left in ids["mean_square_left"]
            ),
            "Items that share all codes": f"{ids['collisions']:,}", "Told apart by": ids["collision"],
            "Left": f"{ids['unresolved']:,}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _claim(data: str, model: str) -> Mapping[str, Any] | None:
    """The published figure of this model on these data; `data` may carry the split behind it."""
    name = data.split(" · ")[0]
    return next((r for r in cited()["retrieval"] if (r["data"], r.get("key")) == (name, model)), None)


def _published(claim: Mapping[str, Any] | None, key: str, metric: str) -> Cell:
    return absent(metric, "none published") if claim is None else Cell(claim[key], metric, "cited")


def _sentence(c: Context, own: pd.DataFrame, who: tuple[str, str], data: str) -> str:
    found = pick(own, "recall_at_k", scope=MODEL)
    plain = pick(own, "recall_at_k", scope="popularity")
    if found.value is None or not plain.value:
        return ""
    last = "_in_condition" if _conditioned(own) else ""
    calls = {
        f: verdict(pick(own, "recall_gain", scope=f"vs:{f}"))
        for f in FLOORS
        if f.endswith("_in_condition") == bool(last)
    }
    told = " told the condition" if last else ""
    return (
        f"On {data} {c.names.title(*who)}{told} finds {found.text} {found.band} of last events among 10, "
        f"{found.value / plain.value:.1f} times popularity ({plain.text}); against "
        + ", ".join(f"{FLOORS[f]} ({pick(own, 'recall_at_k', scope=f).text}) it is {call}" for f, call in calls.items())
        + "."
    )


def _differences(c: Context) -> str:
    """What keeps the published figures from being ours to compare with; empty where none is shown."""
    bodies = [b for b in c.bodies.values() if b.get("spec", {}).get("kind") == "retrieve"]
    claims = [r for r in cited()["retrieval"] if r["data"] in {b["spec"]["data"] for b in bodies}]
    shown = {r.get("key") for r in claims} & {b["spec"]["model"] for b in bodies}
    if not shown:
        return ""
    others = ", ".join(f"{r['title']} {r['recall']:.4f}" for r in claims if "key" not in r)
    why = cited()["retrieval_protocol"]["differences"]
    return f"Published figures stand beside ours, not against them: {why} Others published there: {others}."
