"""What the models are worth: the summary, AUC with its paired differences and ties, and the floors below them."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from ctrbench.reports import drawing, figures, sweep, tables, ties
from ctrbench.reports.cells import pick, where
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, by_group, exhibit, extremes
from ctrbench.reports.limits import untuned


def summary(c: Context) -> Section:
    """Quality and cost side by side."""
    exhibits: list[Exhibit] = []
    parts = []
    for track, data in c.data:
        table = tables.headline(c.frame, data, c.names)
        if table.empty:
            continue
        exhibits += exhibit(
            table, title=f"{data} ({track} track, preset {tables.presets(c.frame, data)})", open=True, data=data
        )
        said = _quality_sentence(c, table, data)
        span = extremes(table, "Step time")
        parts.append(said + (f" The median training step takes {span}." if span else ""))
    return Section(
        id="summary",
        title="Summary",
        sentence=" ".join(parts) or sweep.nothing_trained(c),
        exhibits=tuple(exhibits),
        caveat="Quality and cost come from the same configuration. AUC: mean over seeds, 95 % interval over "
        "users and seeds "
        "resampled jointly. CUDA kernels are modelled from the operators that this CPU executed.",
    )


def quality(c: Context) -> Section | None:
    """AUC with its interval, and what decides: the paired difference."""
    exhibits: list[Exhibit] = []
    parts = []
    for track, data in c.data:
        pairs = ties.ties(c.frame, data)
        table = ties.lettered(tables.quality(c.frame, data, c.names), pairs, c.names)
        if table.empty:
            continue
        other = c.names.title(tables.reference_of(c.frame, data))
        exhibits += exhibit(
            table,
            ("AUC on the test rows, floors included", figures.auc(table, c.names)),
            (f"Paired difference of AUC against {other}", figures.deltas(table, c.names)),
            title=f"{data} ({track} track)",
            data=data,
        )
        parts.append(_quality_sentence(c, table, data))
        for kind, found in pairs.items():
            parts.append(f"Model by model{f' ({kind})' if kind else ''} {ties.sentence(found, c.names)}")
            exhibits += exhibit(
                ties.table(found, c.names),
                ("The model at the side against the one above: > better, = tied, < worse", ties.figure(found, c.names)),
                title=f"Every pair on {data}{f', {kind}' if kind else ''}",
                data=data,
            )
    if not exhibits:
        return None
    caveat = (
        "An interval that includes 0 is a tie; tuned and equal_flops pair with the reference of their kind. Models "
        "that share a letter in 'Tied group' are tied with each other. Each interval is a 95 % one: of twenty pairs "
        "that do not differ one is called on average."
    )
    return Section(
        id="quality",
        title="Quality: paired differences and ties",
        sentence=" ".join(p for p in parts if p),
        exhibits=tuple(exhibits),
        caveat=("Untuned comparison: defaults against defaults. " if untuned(c.bodies) else "") + caveat,
    )


def _quality_sentence(c: Context, table: pd.DataFrame, data: str) -> str:
    trained = table[table["Camp"] != "floor"]
    equal, apart = _on_equal_data(c, trained, data)
    models, other = known(equal, "AUC"), c.names.title(tables.reference_of(c.frame, data))
    if models.empty:
        return f"On {data} no model finished training." if len(trained) else ""
    best = max((row for _, row in models.iterrows()), key=lambda r: r["AUC"].value)
    auc = best["AUC"]
    said = f"On {data} the highest mean AUC of a model{apart} is {auc.text} {auc.band} ({best['Model']})."
    floors = known(table[table["Camp"] == "floor"], "AUC")
    top = max((row for _, row in floors.iterrows()), key=lambda r: r["AUC"].value, default=None)
    if top is not None and top["AUC"].value > auc.value:
        said += f" The floor {top['Model']} has more: {top['AUC'].text} {top['AUC'].band}."
    for group, rows in by_group(equal):
        counts = rows["Paired verdict"].value_counts()
        calls = [f"{counts[v]} {v}" for v in ("better", "tied", "worse") if v in counts]
        said += f" Against {other}{group}: {', '.join(calls)}." if calls else ""
    return said


def _on_equal_data(c: Context, trained: pd.DataFrame, data: str) -> tuple[pd.DataFrame, str]:
    """Trainings on the rows and histories that most have (of several the most rows); what is said of the others."""
    name, _, split = data.partition(" · ")
    seen = {}
    for body in c.bodies.values():
        spec = body.get("spec", {})
        if spec.get("kind") == "quality" and spec.get("data") == name and split in ("", spec.get("split")):
            title = c.names.title(spec["model"], spec["variant"])
            seen[title] = (int(spec.get("train_rows") or 0), int(spec.get("history_length") or 0))
    counts = Counter(seen[title] for title in known(trained, "AUC")["Model"] if title in seen)
    if len(counts) < 2:
        return trained, ""
    rows, length = most = max(counts, key=lambda one: (counts[one], one))
    equal = trained[[seen.get(title) == most for title in trained["Model"]]]
    at = f"{rows:,} rows" + (f" and histories of {length}" if length else "")
    return equal, f" among the {len(equal)} trained on {at} ({len(trained) - len(equal)} on others are not compared)"


def floors(c: Context) -> Section | None:
    """Models against floors, above all LightGBM on six history counts."""
    exhibits: list[Exhibit] = []
    parts, flags = [], []
    for track, data in c.data:
        table = tables.floors(c.frame, data, c.names)
        column = f"minus {c.names.title(tables.HISTORY_FLOOR)}"
        if table.empty or len(table.columns) < 5:
            continue
        plain = table if track == "sequence" else table.drop(columns="Flag")
        drawn = drawing.dots(table, column, "paired ΔAUC", c.names, zero=True) if column in table else None
        exhibits += exhibit(plain, (f"AUC {column} on {data}", drawn), title=data, open=True, data=data)
        if track == "sequence":
            parts.append(_history_sentence(c, table, data, column))
            flags += [f"{r['Model']} ({data}): {r['Flag']}" for _, r in table.iterrows() if r["Flag"]]
    if not exhibits:
        return None
    return Section(
        id="floors",
        title="Floors: what no deep model should fall below",
        sentence=" ".join(parts),
        exhibits=tuple(exhibits),
        flags=tuple(flags),
        caveat="LightGBM-history sees exactly the events and actions that the sequence models see, as six "
        "counts. A model below a floor is first a reason to suspect the code.",
    )


def _history_sentence(c: Context, table: pd.DataFrame, data: str, column: str) -> str:
    floor = pick(where(c.frame, data=data, model=tables.HISTORY_FLOOR), "auc")
    if floor.value is None or column not in table:
        return f"On {data} LightGBM-history gave no number ({floor.reason}), so no model is shown to use its history."
    calls = [tables.verdict(x) for x in table[column] if x.value is not None]
    below = sum(bool(f) for f in table["Flag"])
    return (
        f"On {data} LightGBM-history reaches AUC {floor.text} {floor.band}. Of {len(calls)} models "
        f"{calls.count('better')} "
        f"are better by the paired interval, {calls.count('tied')} tied, {calls.count('worse')} worse; {below} "
        f"lie below it."
    )
