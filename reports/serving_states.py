"""Tables of what serving keeps and prepares: caches, drift, stages, one TFLOP a request, the feature path."""

from __future__ import annotations

import pandas as pd

from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.names import Names
from ctrbench.reports.serving_rows import amount, in_order, order_of, served, times
from ctrbench.reports.tables import models_of

CACHE, ANSWERS = "Cache / user", "Stored answers / user"
BUDGET, HITS = "Memory budget", "Hit rate of the cache"
USERS, OF_DATA = "Users", "as popular as in the data"
EVENTS, DRIFT, DRIFT_AUC = "Events appended", "Drift of streaming", "ΔAUC of streaming"
SAME = 1e-5
"""Largest difference of scores in float32 that counts as equal."""
STAGES = {"retrieve": "Score difference, retrieval", "rank": "Score difference, ranking"}
SAVED = {"flops": "FLOPs saved", "bytes": "Bytes saved"}
NEEDS, TFLOP = "Candidates for 1 TFLOP", 1e12
PATHS = {("prepare", False): "training samples", ("serve", True): "candidates of requests",
         ("serve", False): "events taken in"}  # fmt: skip
"""(phase of the records, whether they name the candidates of a request) -> what a million are of."""
TOTAL = "total"


def _scopes(rows: pd.DataFrame) -> list[str]:
    return in_order(str(s) for s in rows["scope"])


def kept(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Bytes that serving keeps of one user between requests."""
    rows = served(frame, data)
    rows = rows[rows["metric"].isin(["bytes_user_cache", "bytes_knowledge"])]
    out, index = [], []
    for model, variant in models_of(rows, names):
        mine = where(rows, model=model, variant=variant)
        for scope in _scopes(mine):
            out.append({
                "Model": names.title(model, variant), "Camp": names.camp(model), "Kept": scope or "—",
                CACHE: pick(mine, "bytes_user_cache", scope=scope),
                ANSWERS: pick(mine, "bytes_knowledge", scope=scope),
            })  # fmt: skip
            index.append(model)
    return pd.DataFrame(out, index=index)


def _by_scope(frame: pd.DataFrame, data: str, names: Names, head: str, columns: dict[str, str]) -> pd.DataFrame:
    """One row a model and scope of the measures; `columns`: head -> measure."""
    rows = served(frame, data)
    rows = rows[rows["metric"].isin(list(columns.values()))]
    keys = {(str(m), str(v)) for m, v in rows[["model", "variant"]].itertuples(index=False)}
    out, index = [], []
    for model, variant in sorted(keys, key=lambda k: names.order(*k)):
        mine = where(rows, model=model, variant=variant)
        for scope in _scopes(mine):
            found = {h: pick(mine, m, scope=scope, signed=m.endswith("_auc")) for h, m in columns.items()}
            out.append({"Model": names.title(model, variant), "Camp": names.camp(model), head: scope, **found})
            index.append(model)
    return pd.DataFrame(out, index=index)


def hits(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Hit rate by memory budget and by the users that ask: a scope may name them before the budget."""
    table = _by_scope(frame, data, names, BUDGET, {HITS: "cache_hit_rate"})
    if table.empty:
        return table
    parts = [str(s).rpartition(": ") for s in table[BUDGET]]
    table.insert(2, USERS, [who or OF_DATA for who, _, _ in parts])
    table[BUDGET] = [budget for *_, budget in parts]
    return table


def drift(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """What old states cost in score and in AUC, by events appended since they were computed."""
    return _by_scope(frame, data, names, EVENTS, {DRIFT: "stream_drift", DRIFT_AUC: "stream_drift_auc"})


def stages(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Retrieval and ranking one after the other on one user-side cache: are the scores equal, and what is saved."""
    rows = served(frame, data)
    out, index = [], []
    for model, variant in models_of(rows[rows["metric"].isin(["stages_diff", "stages_saved"])], names):
        mine = where(rows, model=model, variant=variant)
        differ = {head: pick(mine, "stages_diff", scope=s) for s, head in STAGES.items()}
        saved = {head: pick(mine, "stages_saved", scope=s) for s, head in SAVED.items()}
        out.append({"Model": names.title(model, variant), "Camp": names.camp(model), **differ, **saved,
                    "Scores": equal(list(differ.values()))})  # fmt: skip
        index.append(model)
    return pd.DataFrame(out, index=index)


def equal(differ: list[Cell]) -> str:
    """`equal within 1e-05`, `they differ`, or that a stage is not known."""
    values = [c.value for c in differ if c.value is not None]
    if any(v > SAME for v in values):
        return "they differ"
    return f"equal within {SAME:g}" if len(values) == len(differ) else "a stage is not known"


def one_tflop(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Candidates at which a request of a published size costs one TFLOP, by history and form."""
    rows = where(frame, metric="tflop_candidates")
    keys = rows[["model", "variant", "preset", "scope"]].drop_duplicates()
    found = []
    for model, variant, preset, scope in keys.itertuples(index=False):
        form, _, history = str(scope).partition(":")
        found.append((str(preset), (str(model), str(variant), form, amount(history) or 0.0), history, str(scope)))
    out, index = [], []
    ranks = [(order_of(names, point), preset) for preset, point, _, _ in found]
    order = sorted(range(len(found)), key=lambda i: (ranks[i][0][:4], ranks[i][1], ranks[i][0][4:]))
    for preset, point, history, scope in (found[i] for i in order):
        model, variant, form, _ = point
        mine = where(rows, model=model, variant=variant, preset=preset)
        out.append({"Model": names.title(model, variant), "Camp": names.camp(model), "Preset": preset, "Form": form,
                    "History": history, NEEDS: pick(mine, "tflop_candidates", scope=scope)})  # fmt: skip
        index.append(model)
    return pd.DataFrame(out, index=index)


def feature_path(frame: pd.DataFrame, data: str) -> pd.DataFrame:
    """CPU of the feature path a million, one row a path and paradigm, a column a step; the sum where all are known."""
    rows = where(frame, metric="feature_cpu", data=data)
    steps = list(dict.fromkeys(str(s).partition(":")[2] for s in rows["scope"]))
    steps = [s for s in steps if s not in ("", TOTAL)]
    keys = rows.assign(who=[str(s).partition(":")[0] for s in rows["scope"]])
    keys = keys[["phase", "batch", "variant", "who"]].fillna({"batch": 0.0}).drop_duplicates()
    out = []
    for phase, batch, variant, who in sorted(keys.itertuples(index=False, name=None)):
        mine = where(rows, phase=phase, variant=variant)
        mine = mine[mine["batch"].fillna(0.0) == batch]
        own = {str(s) for s in mine["scope"]}
        found = {s: pick(mine, "feature_cpu", scope=f"{who}:{s}") if f"{who}:{s}" in own
                 else absent("feature_cpu", "no step of this path") for s in steps}  # fmt: skip
        sort = PATHS.get((str(phase), batch > 0), str(phase)) + (f", {batch:,.0f} a request" if batch else "")
        out.append({"Path": " · ".join(t for t in (who, variant, sort) if t),
                    **found, TOTAL: _sum(mine, who, [found[s] for s in steps if f"{who}:{s}" in own])})  # fmt: skip
    return pd.DataFrame(out)


def _sum(mine: pd.DataFrame, who: str, cells: list[Cell]) -> Cell:
    """The recorded total; without one the sum of the steps, which a step that is not known withholds."""
    whole = pick(mine, "feature_cpu", scope=f"{who}:{TOTAL}")
    if whole.reason != "no row":
        return whole
    if lost := next((c for c in cells if c.value is None), None):
        return absent("feature_cpu", lost.reason)
    return Cell(sum(c.value for c in cells if c.value is not None), "feature_cpu", "derived")


def per_request(feature: Cell, candidates: float) -> Cell:
    """CPU seconds of one request from those of a million candidates."""
    return times(feature, candidates / 1e6, "serve_cpu")
