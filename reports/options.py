"""What an option of a model is worth, e.g. a mechanism that is switched off (`suite=ablation`)."""

from __future__ import annotations

import pandas as pd

from ctrbench.reports.cells import pick, where
from ctrbench.reports.exhibits import Context, Section, exhibit
from ctrbench.reports.tables import models_of, verdict

METRIC = "option_delta"


def section(c: Context) -> Section | None:
    """Every variant beside the nearest variant of the same model."""
    found = [(data, track, options_table(c, data)) for track, data in c.data]
    shown = [(data, track, table) for data, track, table in found if len(table)]
    if not shown:
        return None
    return Section(
        id="options",
        title="Options: what each mechanism is worth",
        sentence=" ".join(_sentence(table, data) for data, _, table in shown),
        exhibits=tuple(
            e
            for data, track, table in shown
            for e in exhibit(table, title=f"{data} ({track} track)", open=True, data=data)
        ),
        caveat="Each variant against the nearest variant of the same model, whose options are a part of its own; the "
        "same rows, seeds and budget, nothing tuned. Tied: the 95 % interval holds 0. An option may change size and "
        "cost with the mechanism: parameters and FLOPs stand in the tables above.",
    )


def options_table(c: Context, data: str) -> pd.DataFrame:
    """One row a variant that has a nearest one."""
    rows, index = [], []
    for model, variant in models_of(c.frame, c.names, data=data, metric=METRIC):
        mine = where(c.frame, data=data, model=model, variant=variant)
        (scope, *_) = where(mine, metric=METRIC)["scope"]
        gain = pick(mine, METRIC, scope=scope, signed=True)
        other = str(scope).removeprefix("vs:")
        rows.append({
            "Model": c.names.title(model, variant), "Camp": c.names.camp(model), "Against": c.names.title(model, other),
            "AUC": pick(mine, "auc"), "AUC of that": pick(c.frame, "auc", data=data, model=model, variant=other),
            "ΔAUC": gain, "Verdict": verdict(gain),
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def _sentence(table: pd.DataFrame, data: str) -> str:
    calls = {call: table[table["Verdict"] == call] for call in ("worse", "better", "tied")}
    said = [f"{len(rows)} {call} ({', '.join(rows['Model'])})" for call, rows in calls.items() if len(rows)]
    return f"On {data}, of {len(table)} options against the same model without them: {'; '.join(said)}." if said else ""
