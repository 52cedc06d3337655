"""LUM's user model beyond its answers: what its embedding tells of users, and one model for ranking and retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.exhibits import Context
from ctrbench.reports.tables import models_of, verdict

HEADS = ("embedding", "counts", "majority")
PROBE_CAVEAT = (
    "Probes: logistic regressions on standardised columns, fitted on 70 % of the users and judged on the rest; the "
    "counts are shares of categories in the history and the newest one. Numbers are means over seeds, bands the widest "
    "span of the seeds' own intervals, so a verdict holds in every seed."
)
JOINT_CAVEAT = (
    "Joint against separate: retrieval after training asks each test user's last event, on which nothing was trained; "
    "the recall of step 1 asks the last train event, which the ranker has seen."
)


def probe_table(c: Context, data: str) -> pd.DataFrame:
    """One row an attribute: the embedding's head beside that of the counts and the majority class."""
    rows, index = [], []
    for model, variant in models_of(c.frame, c.names, data=data, metric="probe_accuracy"):
        mine = where(c.frame, data=data, model=model, variant=variant)
        scopes = where(mine, metric="probe_accuracy")["scope"]
        for name in dict.fromkeys(str(s).rsplit(":", 1)[0] for s in scopes):
            accuracy = {h: over_seeds(mine, "probe_accuracy", f"{name}:{h}") for h in HEADS}
            auc = {h: over_seeds(mine, "probe_auc", f"{name}:{h}") for h in HEADS}
            rows.append({
                "Model": c.names.title(model, variant), "Camp": c.names.camp(model), "Told of the user": name,
                "Test users": str(accuracy["embedding"].n or "—"), "Accuracy": accuracy["embedding"],
                "Accuracy, counts": accuracy["counts"], "Accuracy, majority": accuracy["majority"],
                "Accuracy over counts": over_seeds(mine, "probe_gain", f"{name}:accuracy", signed=True),
                "Macro AUC": auc["embedding"], "Macro AUC, counts": auc["counts"],
                "AUC over counts": over_seeds(mine, "probe_gain", f"{name}:auc", signed=True),
            })  # fmt: skip
            index.append(model)
    return pd.DataFrame(rows, index=index)


def over_seeds(mine: pd.DataFrame, metric: str, scope: str, *, signed: bool = False) -> Cell:
    """Mean over seeds with the widest span of their own intervals; n is that of one seed."""
    rows = where(mine, metric=metric, scope=scope)
    known = rows[rows["value"].notna()]
    if known.empty:
        return absent(metric, str(rows["reason"].iloc[0]) if len(rows) else "no row")
    low, high, n = float(known["ci_low"].min()), float(known["ci_high"].max()), int(known["n"].max())
    return Cell(float(known["value"].mean()), metric, str(known["origin"].iloc[0]), low, high, n, signed=signed)


def probe_sentence(table: pd.DataFrame, data: str) -> str:
    """What the embedding of the first pre-training tells better than counts, as well, and worse; by macro AUC."""
    if table.empty:
        return ""
    first = table[table["Model"] == table["Model"].iloc[0]]
    calls: dict[str, list[str]] = {}
    for _, row in first.iterrows():
        gain = row["AUC over counts"]
        calls.setdefault(verdict(gain), []).append(f"{row['Told of the user']} ({gain.text} {gain.band})")
    said = [f"{call} in {', '.join(calls[call])}" for call in ("better", "tied", "worse") if call in calls]
    if not said:
        return ""
    who = first["Model"].iloc[0]
    return f"On {data} a head on {who}'s frozen embedding, against category counts, is {'; '.join(said)}."


def joint_table(c: Context, data: str) -> pd.DataFrame:
    """One row a ranker: how its user model was trained, and what both heads reach against a separate one."""
    rows, index = [], []
    if where(c.frame, data=data, metric="joint_gain").empty:
        return pd.DataFrame()
    for model, variant in models_of(c.frame, c.names, data=data, metric="recall_after"):
        mine, how = where(c.frame, data=data, model=model, variant=variant), training_of(c.bodies, model, variant)
        gains = [
            absent("joint_gain", "is separate") if how == "separate" else pick(mine, "joint_gain", scope=s, signed=True)
            for s in ("auc", "recall")
        ]
        rows.append({
            "Model": c.names.title(model, variant), "Camp": c.names.camp(model), "User model": how,
            "AUC": pick(mine, "auc"), "AUC over separate": gains[0], "Recall@10 after": pick(mine, "recall_after"),
            "Recall over separate": gains[1],
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def training_of(bodies: Mapping[str, Mapping[str, Any]], model: str, variant: str) -> str:
    """How the user model of a ranker was trained, in words."""
    wanted = (model, variant, "quality")
    specs = (b.get("spec", {}) for b in bodies.values())
    found = [s for s in specs if (s.get("model"), s.get("variant"), s.get("kind")) == wanted]
    options = found[0].get("config", {}) if found else {}
    scratch = options.get("pretrain_epochs", 1) == 0
    if options.get("frozen", True):
        return "random, frozen" if scratch else "separate"
    if options.get("objective") == "joint":
        return "joint, from scratch" if scratch else "joint, after step 1"
    return "ranking alone, from scratch" if scratch else "ranking alone, after step 1"


def joint_sentence(table: pd.DataFrame, data: str) -> str:
    """Whether one user model ranks and retrieves as well as separate ones, trained on both or on one (claim S21)."""
    if table.empty:
        return ""
    said = []
    for _, row in table[table["User model"].str.startswith(("joint", "ranking"))].iterrows():
        auc, recall = row["AUC over separate"], row["Recall over separate"]
        if auc.value is None or recall.value is None:
            continue
        said.append(
            f"On {data} one user model for both ({row['User model']}) ranks {verdict(auc)} "
            f"({auc.text} {auc.band}) and retrieves {verdict(recall)} ({recall.text} {recall.band}) against separate "
            "ones."
        )
    return " ".join(said)
