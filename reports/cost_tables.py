"""Tables of USD by term, and what follows from them: shares of the accelerator, AUC beside cost. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.names import Names
from ctrbench.reports.serving_rows import REUSE, form_of, kept, of_point, points, served, times, usual_batch
from ctrbench.reports.tables import models_of

REQUESTS, SAMPLES = "usd_per_million_requests", "usd_per_million_samples"
CPU = "cpu"
"""The deployment without an accelerator; every other is the name of a GPU."""
ACCELERATOR, STORAGE, TRAINING = "accelerator", "storage", "training"
TERMS: Mapping[str, str] = {
    ACCELERATOR: "Accelerator", "host_cpu": "CPU of the model", "feature_cpu": "CPU of the features", "dram": "Memory",
    STORAGE: "Storage", "network": "Network", TRAINING: "Share of training",
}  # fmt: skip
"""Term of a scope -> its column, in the order of the stack."""
TOTAL = "Total"
SHARE, EQUAL = "Accelerator / total", "Half at a price of, times"
LONGER = "history="
"""Variant of a workload that is no model of its own."""


def head_of(term: str) -> str:
    """Column of a term; one that we do not know by name is shown all the same."""
    return TERMS.get(term, term.replace("_", " ").capitalize())


def deployments(frame: pd.DataFrame, data: str | None = None) -> list[str]:
    """`cpu` first, then GPUs by name."""
    rows = where(served(frame, data), metric=REQUESTS)
    found = {str(s).partition("/")[2].partition(":")[0] for s in rows["scope"]} - {""}
    return sorted(found, key=lambda d: (d != CPU, d))


def terms_of(rows: pd.DataFrame, place: str) -> list[str]:
    """Terms that any row of a deployment names, in the order of the stack, the total left out."""
    found = {str(s).rpartition(":")[2] for s in rows["scope"] if str(s).rpartition(":")[0].endswith(place)}
    order = list(TERMS)
    return sorted(found - {"total", ""}, key=lambda t: (order.index(t) if t in order else len(order), t))


def whole(mine: pd.DataFrame, metric: str, place: str, terms: list[str]) -> Cell:
    """The recorded total, withheld with the reason of a term that is: never the sum of those that are known."""
    parts = {t: pick(mine, metric, scope=f"{place}:{t}") for t in terms}
    lost = next((t for t, x in parts.items() if x.value is None), "")
    total = pick(mine, metric, scope=f"{place}:total")
    return absent(metric, f"{head_of(lost)}: {parts[lost].reason}") if lost else total


def by_term(frame: pd.DataFrame, data: str, names: Names, deployment: str, batch: float | None = None) -> pd.DataFrame:
    """USD of a million requests by term, one row a model, form and number of candidates.

    Args:
        frame: tidy rows.
        data: data set.
        names: titles.
        deployment: `cpu` or a GPU.
        batch: where given, only rows that are set side by side (`compared`).
    """
    rows = where(served(frame, data), metric=REQUESTS, batch=batch)
    rows = kept(rows, (f"/{deployment}:" in str(s) for s in rows["scope"]))
    if batch is not None:
        rows = kept(rows, (form_of(str(s)) == REUSE for s in rows["scope"]))
        rows = rows[~rows["variant"].str.startswith(LONGER)]
    terms = terms_of(rows, f"/{deployment}")
    out, index = [], []
    for point in points(rows, names, [REQUESTS]):
        model, variant, form, batch = point
        mine, place = of_point(rows, point), f"{form}/{deployment}"
        out.append({
            "Model": names.title(model, variant), "Camp": names.camp(model), "Form": form,
            "Candidates": f"{batch:,.0f}",
            **{head_of(t): pick(mine, REQUESTS, scope=f"{place}:{t}") for t in terms},
            TOTAL: whole(mine, REQUESTS, place, terms),
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(out, index=index)


def compared(table: pd.DataFrame, batch: float | None) -> pd.DataFrame:
    """The best form of each model at one number of candidates; longer workloads are no models."""
    if table.empty or batch is None:
        return table.iloc[:0]
    kept = (table["Form"] == REUSE) & (table["Candidates"] == f"{batch:,.0f}")
    return table[kept & ~table["Model"].str.contains(f"· {LONGER}", regex=False)]


def only_longer(frame: pd.DataFrame, data: str) -> bool:
    """Whether nothing but longer workloads was priced on a data set."""
    return bool(where(served(frame, data), metric=REQUESTS)["variant"].str.startswith(LONGER).all())


def batch_of(frame: pd.DataFrame, data: str) -> float | None:
    """The candidates at which costs are set side by side."""
    rows = where(served(frame, data), metric=REQUESTS)
    return usual_batch(kept(rows, (form_of(str(s)) == REUSE for s in rows["scope"])))


def training(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """USD of a million training samples by term, one row a model and deployment."""
    rows = where(frame, data=data, metric=SAMPLES, phase="train")
    found = sorted({str(s).rpartition(":")[0] for s in rows["scope"]}, key=lambda d: (d != CPU, d))
    terms = terms_of(rows, "")
    out, index = [], []
    for model, variant in models_of(rows, names):
        mine = where(rows, model=model, variant=variant)
        for place in found:
            out.append({
                "Model": names.title(model, variant), "Camp": names.camp(model), "Deployment": place,
                **{head_of(t): pick(mine, SAMPLES, scope=f"{place}:{t}") for t in terms},
                TOTAL: whole(mine, SAMPLES, place, terms),
            })  # fmt: skip
            index.append(model)
    return pd.DataFrame(out, index=index)


def share(part: Cell, total: Cell) -> Cell:
    """Part / total over the box: its low end has the part low and the rest high, its high end the other way round."""
    lost = next((c for c in (part, total) if c.value is None), None)
    if lost is not None or not total.value:
        return absent("usd_accelerator_share", lost.reason if lost else "a total of 0")
    assert part.value is not None
    origin = "modelled" if "modelled" in (part.origin, total.origin) else "derived"
    low = high = None
    if part.low is not None and part.high is not None and total.low is not None and total.high is not None:
        low, high = _part(part.low, total.high - part.high), _part(part.high, total.low - part.low)
    return Cell(part.value / total.value, "usd_accelerator_share", origin, low, high)


def _part(part: float, rest: float) -> float:
    return part / (part + max(0.0, rest)) if part else 0.0


def accelerator(mine: pd.DataFrame, form: str, gpu: str, trained: pd.DataFrame) -> Cell:
    """USD of accelerators in a million requests: those of serving and those in the share of training.

    Args:
        mine: rows of one model at its candidates.
        form: of serving.
        gpu: deployment.
        trained: `usd_per_million_samples` of the same model. The share of training is split as its terms are; none
            of it counts where the model was trained on CPUs alone, all of it where the terms are not known, which errs
            against a small share.
    """
    serving = pick(mine, REQUESTS, scope=f"{form}/{gpu}:{ACCELERATOR}")
    shared = pick(mine, REQUESTS, scope=f"{form}/{gpu}:{TRAINING}")
    if serving.value is None or shared.reason == "no row":
        return serving
    if shared.value is None:
        return absent(REQUESTS, shared.reason)
    on_gpu = pick(trained, SAMPLES, scope=f"{gpu}:total")
    if on_gpu.reason == "no row" and pick(trained, SAMPLES, scope=f"{CPU}:total").reason != "no row":
        return serving  # trained on CPUs, and priced there
    parts = [pick(trained, SAMPLES, scope=f"{gpu}:{t}").value for t in (ACCELERATOR, "total", STORAGE)]
    part = 1.0
    if None not in parts:
        used, total, stored = (float(p or 0.0) for p in parts)
        part = used / (total - stored) if total > stored else 0.0
    moved = times(shared, part, REQUESTS)
    low = None if serving.low is None or moved.low is None else serving.low + moved.low
    high = None if serving.high is None or moved.high is None else serving.high + moved.high
    return Cell(serving.value + (moved.value or 0.0), REQUESTS, serving.origin, low, high)


def shares(frame: pd.DataFrame, data: str, names: Names, batch: float | None = None) -> pd.DataFrame:
    """Share of accelerators in what a million requests cost, by GPU, and the price at which it would be half.

    Args:
        frame: tidy rows.
        data: data set.
        names: titles.
        batch: candidates, None for all; the best form of each model, without its longer workloads.
    """
    rows = where(served(frame, data), metric=REQUESTS)
    gpus = [d for d in deployments(rows, data) if d != CPU]
    samples = where(frame, data=data, metric=SAMPLES)
    out, index = [], []
    for point in points(rows, names, [REQUESTS]):
        model, variant, form, at = point
        if form != REUSE or variant.startswith(LONGER) or (batch is not None and at != batch):
            continue
        mine, trained = of_point(rows, point), where(samples, model=model, variant=variant)
        for gpu in gpus:
            place = f"{form}/{gpu}"
            total = whole(mine, REQUESTS, place, terms_of(mine, place))
            part = accelerator(mine, form, gpu, trained)
            out.append({"Model": names.title(model, variant), "Camp": names.camp(model), "GPU": gpu,
                        "Candidates": f"{at:,.0f}", "Accelerators": part, TOTAL: total, SHARE: share(part, total),
                        EQUAL: half_at(part, total)})  # fmt: skip
            index.append(model)
    return pd.DataFrame(out, index=index)


def side_by_side(frame: pd.DataFrame, data: str, names: Names, gpus: list[str], batch: float | None) -> pd.DataFrame:
    """USD by term of the best form of each model, one row a model and GPU."""
    parts = [by_term(frame, data, names, g, batch).assign(GPU=g) for g in gpus] if batch is not None else []
    if not parts or all(p.empty for p in parts):
        return pd.DataFrame()
    joined = pd.concat([p for p in parts if len(p)])
    heads = [h for h in joined.columns if h not in ("Model", "GPU", "Form", "Candidates")]
    return joined[["Model", "GPU", *heads]]


def half_at(part: Cell, total: Cell) -> Cell:
    """By what the price of the accelerator would have to be multiplied for it to be half of the total."""
    lost = next((c for c in (part, total) if c.value is None), None)
    if lost is not None or not part.value:
        return absent("usd_half_factor", lost.reason if lost else "no accelerator is paid")
    assert total.value is not None
    origin = "modelled" if "modelled" in (part.origin, total.origin) else "derived"
    return Cell((total.value - part.value) / part.value, "usd_half_factor", origin)


def against_auc(frame: pd.DataFrame, data: str, names: Names, chosen: list[str]) -> pd.DataFrame:
    """AUC of the models trained here beside the total of a million requests, a column a deployment."""
    batch = batch_of(frame, data)
    totals = {d: by_term(frame, data, names, d, batch) for d in chosen} if batch is not None else {}
    out, index = [], []
    for model, variant in models_of(where(served(frame, data), metric=REQUESTS), names):
        title = names.title(model, variant)
        auc = pick(where(frame, data=data, model=model, variant=variant, trained=True), "auc")
        found = {f"USD, {d}": _of_title(t, title) for d, t in totals.items()}
        if auc.value is None or all(x.value is None for x in found.values()):
            continue
        out.append({"Model": title, "Camp": names.camp(model), "AUC": auc, **found})
        index.append(model)
    return pd.DataFrame(out, index=index)


def _of_title(table: pd.DataFrame, title: str) -> Cell:
    mine = table[table["Model"] == title] if "Model" in table else table
    found: Cell = mine[TOTAL].iloc[0] if len(mine) else absent(REQUESTS, "no row")
    return found
