"""Tables of quality and bookkeeping, pure functions of tidy rows (`cells.tidy`). Costs are in `costs.py`.

Every table is a frame whose entries are text or `Cell`; its index is the model's key, for figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table as RichTable

from ctrbench.reports.cells import BANDED, KNOWN, Cell, absent, data_labels, pick, tidy, where
from ctrbench.reports.measures import OF_SCORES
from ctrbench.reports.names import REFERENCES, Names, names_of
from ctrbench.reports.records import ORIGINS

HISTORY_FLOOR = "lightgbm_history"
CONTROL_METRICS = ("auc_shuffled", "auc_ids_only")
"""A model with nothing but these has a row in the table of controls and in no other."""
NO_BETTER = "uses its history no better than six counts"

Bodies = Mapping[str, Mapping[str, Any]]


def groups(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(track, data) of everything that ran or should have run; sequence first."""
    pairs = frame.loc[(frame["track"] != "") & (frame["data"] != ""), ["track", "data"]].drop_duplicates()
    return sorted((str(t), str(d)) for t, d in pairs.itertuples(index=False))


def models_of(frame: pd.DataFrame, names: Names, *, controls: bool = False, **wanted: Any) -> list[tuple[str, str]]:
    """(model, variant) among the chosen rows, in the order of every table; those of controls, or all others."""
    rows = where(frame, **wanted)
    rows = rows[rows["metric"].isin(CONTROL_METRICS) == controls]
    pairs = {(str(m), str(v)) for m, v in rows[["model", "variant"]].itertuples(index=False) if m}
    return sorted(pairs, key=lambda p: names.order(*p))


def presets(frame: pd.DataFrame, data: str) -> str:
    """Sizes of the models trained on the data, e.g. `small`."""
    return ", ".join(sorted(set(where(frame, data=data, trained=True)["preset"])))


def reference_of(frame: pd.DataFrame, data: str) -> str:
    """The model that differences on this data are taken against; empty if none."""
    scopes = set(where(frame, data=data, metric="auc_delta")["scope"])
    present = [s.removeprefix("vs:") for s in scopes if s.startswith("vs:")]
    return next((m for m in (*REFERENCES, *sorted(present)) if m in present), "")


def verdict(delta: Cell) -> str:
    """`better`, `worse` or `tied` by the paired interval alone."""
    if delta.value is None:
        return "—"
    if delta.low is None or delta.high is None:
        return "no interval"
    return "better" if delta.low > 0 else "worse" if delta.high < 0 else "tied"


def is_reference(model: str, variant: str, other: str) -> bool:
    """Whether a row is what others are compared with: the reference as it is, and in each group the group's."""
    return model == other and variant in ("", "tuned", "equal_flops")


def delta_of(frame: pd.DataFrame, data: str, model: str, variant: str, other: str) -> Cell:
    """Paired difference of AUC against another model."""
    if not other:
        return absent("auc_delta", "no reference ran")
    if is_reference(model, variant, other):
        return absent("auc_delta", "reference")
    return pick(frame, "auc_delta", scope=f"vs:{other}", data=data, model=model, variant=variant, signed=True)


def headline(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Quality and cost of each model of one data set, as trained here, side by side."""
    other = reference_of(frame, data)
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, trained=True):
        mine = where(frame, data=data, model=model, variant=variant, trained=True)
        delta = delta_of(frame, data, model, variant, other)
        train = where(mine, phase="train")
        row: dict[str, Any] = {
            "Model": names.title(model, variant),
            "Camp": names.camp(model),
            "Parameters": pick(mine, "parameters"),
            "AUC": pick(mine, "auc"),
            f"ΔAUC vs {names.title(other)}" if other else "ΔAUC": delta,
            "Paired verdict": "reference" if is_reference(model, variant, other) else verdict(delta),
            "Log loss": pick(mine, "logloss"),
            "Forward FLOPs / sample": pick(mine, "flops_fwd_per_sample"),
            "Training FLOPs / sample": pick(train, "flops_train_per_sample"),
            "Step time": pick(train, "step_time"),
            "Samples / s": pick(train, "throughput"),
            "Operators / step": pick(train, "ops_per_step"),
            "CUDA kernels / step": pick(train, "kernels_per_step"),
            "MFU on this CPU": pick(train, "mfu_cpu"),
            "Peak RSS": pick(train, "rss_peak"),
        }
        rows.append(row if names.camp(model) != "floor" else _floor_row(row))
        index.append(model)
    return pd.DataFrame(rows, index=index)


def _floor_row(row: dict[str, Any]) -> dict[str, Any]:
    """A floor owes no cost measures: it is no network. Say so instead of 'no row'."""
    return {
        k: absent(v.metric, "floor") if isinstance(v, Cell) and v.value is None and v.reason == "no row" else v
        for k, v in row.items()
    }


def quality(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """All quality measures of one data set, with the paired difference and the spread over seeds."""
    other = reference_of(frame, data)
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, metric="auc", trained=True):
        mine = where(frame, data=data, model=model, variant=variant, trained=True)
        auc, delta = pick(mine, "auc"), delta_of(frame, data, model, variant, other)
        rows.append({
            "Model": names.title(model, variant), "Camp": names.camp(model),
            "AUC": auc,
            "Each seed": _seeds(mine),
            f"ΔAUC vs {names.title(other)}" if other else "ΔAUC": delta,
            "Paired verdict": "reference" if is_reference(model, variant, other) else verdict(delta),
            "Detectable ΔAUC": _detectable(mine, model, variant, other),
            "GAUC": pick(mine, "gauc"),
            "Users without GAUC": pick(mine, "gauc_dropped"),
            "Log loss": pick(mine, "logloss"),
            "Normalised entropy": pick(mine, "ne"),
            "Calibration": pick(mine, "calibration"),
            "Calibration by score bin": _bins(mine),
            **{m.title: pick(mine, m.id) for m in OF_SCORES if m.id in set(frame["metric"])},
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def _bins(mine: pd.DataFrame) -> str:
    """Least and greatest of the score bins."""
    rows = where(mine, metric="calibration")
    found = rows[rows["scope"].str.startswith("bin:") & rows["value"].notna()]["value"]
    return f"{found.min():.3f} to {found.max():.3f}" if len(found) else "—"


def _detectable(mine: pd.DataFrame, model: str, variant: str, other: str) -> Cell:
    """What the paired comparison could have found; a tie below it says nothing."""
    if not other or is_reference(model, variant, other):
        return absent("auc_mdd", "reference" if other else "no reference ran")
    return pick(mine, "auc_mdd", scope=f"vs:{other}")


def _seeds(mine: pd.DataFrame) -> str:
    rows = where(mine, metric="auc")
    rows = rows[rows["seed"].notna() & rows["value"].notna()].sort_values("seed")
    return ", ".join(f"{v:.4f}" for v in rows["value"]) or "—"


def floors(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """Every model against the floors of its data set; the last column flags those that fall below LightGBM-history."""
    ran = [m for m, _ in models_of(frame, names, data=data, family="floor") if _value(frame, data, m) is not None]
    rows, index = [], []
    for model, variant in models_of(frame, names, data=data, metric="auc", trained=True):
        if names.camp(model) == "floor" or variant.startswith("equal_flops"):  # the floors read all rows
            continue
        auc = pick(frame, "auc", data=data, model=model, variant=variant, trained=True)
        row: dict[str, Any] = {"Model": names.title(model, variant), "Camp": names.camp(model), "AUC": auc}
        for floor in ran:
            row[f"minus {names.title(floor)}"] = _difference(frame, data, model, variant, floor, auc)
        last = _difference(frame, data, model, variant, HISTORY_FLOOR, auc) if HISTORY_FLOOR in ran else None
        row["Flag"] = _flag(last)
        rows.append(row)
        index.append(model)
    return pd.DataFrame(rows, index=index)


def _value(frame: pd.DataFrame, data: str, model: str) -> float | None:
    return pick(frame, "auc", data=data, model=model).value


def _difference(frame: pd.DataFrame, data: str, model: str, variant: str, floor: str, auc: Cell) -> Cell:
    """The paired difference where it was made, else the plain one, said to be unpaired."""
    paired = delta_of(frame, data, model, variant, floor)
    base = _value(frame, data, floor)
    if paired.value is not None or auc.value is None or base is None:
        return paired if paired.value is not None else absent("auc_delta", auc.reason or paired.reason)
    return Cell(auc.value - base, "auc_delta", "derived", note="unpaired, no interval", signed=True)


def _flag(delta: Cell | None) -> str:
    if delta is None or delta.value is None or delta.value >= 0:
        return ""
    resolved = delta.high is not None and delta.high < 0
    return NO_BETTER if resolved else f"{NO_BETTER} (below, interval includes 0)"


def pairing(bodies: Bodies, names: Names) -> pd.DataFrame:
    """Which trainings are compared, and whether they are equal in all that a fair pair must share."""
    shared = {"Fingerprint": "fingerprint", "Split": "split", "History length": "history_length",
              "Training rows": "train_rows", "Dtype": "dtype", "Mode": "compile", "Threads": "threads"}  # fmt: skip
    runs: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    specs = [b.get("spec", {}) for b in bodies.values()]
    labels = data_labels((str(s["data"]), str(s.get("split", ""))) for s in specs if s.get("data"))
    for body in bodies.values():
        spec = body.get("spec", {})
        if not spec.get("model") or not spec.get("data") or spec.get("kind", "quality") not in ("quality", "floor"):
            continue
        label = labels[str(spec["data"]), str(spec.get("split", ""))]
        key = label, str(spec["model"]), str(spec.get("variant", ""))
        mine = runs.setdefault(key, {"seeds": set(), "tuned": set(), "flops": set(), **{h: set() for h in shared}})
        mine["seeds"].add(str(spec.get("seed", "")))
        mine["tuned"].add("yes" if spec.get("tuned") else "no")
        mine["flops"].add(f"{float(spec.get('flops_budget') or 0):.3g}")
        for head, field in shared.items():
            mine[head].add(str(spec.get(field, "n/k")))
    order = sorted(runs, key=lambda k: (k[0], names.order(k[1], k[2])))
    by_rows = [k for k in order if runs[k]["flops"] == {"0"}] or order
    usual = {d: _usual([runs[k] for k in by_rows if k[0] == d], tuple(shared)) for d in {k[0] for k in by_rows}}
    rows = []
    for data, model, variant in order:
        mine = runs[data, model, variant]
        budget = mine["flops"] - {"0"}
        others = usual.get(data, {})
        odd = [h for h in shared if mine[h] != {others.get(h)} and not (budget and h == "Training rows")]
        equal = f"equal FLOPs ({', '.join(sorted(budget))})" if budget else "equal"
        rows.append({
            "Data": data, "Model": names.title(model, variant), "Camp": names.camp(model),
            **{h: _short(mine[h]) for h in shared}, "Seeds": str(len(mine["seeds"])),
            "Tuned": "/".join(sorted(mine["tuned"])),
            "Pair": equal if not odd else "UNEQUAL: " + ", ".join(odd).lower(),
        })  # fmt: skip
    return pd.DataFrame(rows, index=[m for _, m, _ in order])


def _usual(runs: Sequence[Mapping[str, set[str]]], heads: tuple[str, ...]) -> dict[str, str]:
    """The most frequent value of each head."""
    counts = {h: Counter(value for run in runs for value in run[h]) for h in heads}
    return {h: max(c, key=lambda v: (c[v], v)) for h, c in counts.items()}


def _short(values: set[str]) -> str:
    return ", ".join(v[:12] + "…" if len(v) > 24 else f"{int(v):,}" if v.isdigit() else v for v in sorted(values))


def origins(frame: pd.DataFrame) -> pd.DataFrame:
    """How many rows are known in which way."""
    words = {
        "measured": "read from a clock or counter of this run",
        "derived": "computed from measured, counted or cited inputs",
        "counted": "enumerated exactly from executed operators and shapes",
        "modelled": "a formula with assumed parameters; read its band",
        "imported": "read from a recording made elsewhere",
        "cited": "from a paper or datasheet, not ours",
        "abstained": "withheld, with a reason",
    }
    counts = frame["origin"].value_counts()
    rows = [
        {"Origin": o, "Rows": f"{int(counts.get(o, 0)):,}", "Meaning": words[o]} for o in ORIGINS if counts.get(o, 0)
    ]
    return pd.DataFrame(rows, columns=["Origin", "Rows", "Meaning"])


def lost(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Everything that is not there or not steady, with the reason; one line a model and reason."""
    rows = frame[(frame["status"] != "ok") | (frame["origin"] == "abstained")]
    out = []
    for (data, model, variant, preset, status, reason), part in rows.groupby(
        ["data", "model", "variant", "preset", "status", "reason"], sort=True
    ):
        metrics = sorted(set(part["metric"]))
        out.append({
            "Status": str(status), "Data": str(data) or "—", "Model": names.title(str(model), str(variant)),
            "Preset": str(preset), "Measures": f"{len(metrics)}: {', '.join(metrics)}", "Reason": str(reason) or "—",
        })  # fmt: skip
    rank = {"failed": 0, "oom": 1, "timeout": 2, "unstable": 3, "skipped": 4}
    out.sort(key=lambda r: (rank.get(r["Status"], 9), r["Data"], r["Model"]))
    return pd.DataFrame(out, columns=["Status", "Data", "Model", "Preset", "Measures", "Reason"])


def skipped_tracks(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(track, data, reason) of each data set on which no model has a single number."""
    out = []
    for track, data in groups(frame):
        mine = where(frame, track=track, data=data)
        mine = mine[mine["phase"] != "prepare"]
        if len(mine) and not mine["status"].isin(KNOWN).any():
            out.append((track, data, str(mine["reason"].mode().iloc[0])))
    return out


def environment(bodies: Bodies) -> pd.DataFrame:
    """The machine manifests, flattened; a value on which records disagree lists all."""
    seen: dict[str, list[str]] = {}
    for body in bodies.values():
        for key, value in flatten(body.get("environment", {})).items():
            values = seen.setdefault(key, [])
            if value not in values:
                values.append(value)
    rows = [{"Key": k, "Value": " | ".join(v[:4]) + (" | …" if len(v) > 4 else "")} for k, v in sorted(seen.items())]
    return pd.DataFrame(rows, columns=["Key", "Value"])


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping -> dotted keys and text."""
    out: dict[str, str] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            out |= flatten(inner, f"{name}.")
        else:
            out[name] = ", ".join(map(str, inner)) if isinstance(inner, list | tuple) else str(inner)
    return out


CAPTION = "unmarked: measured; c counted, d derived, ~ modelled; ! unstable"
QUALITY_HEADS = ("Model", "AUC", "ΔAUC", "Paired verdict", "Log loss")
COST_HEADS = ("Model", "Training FLOPs / sample", "Step time", "Samples / s", "Operators / step",
              "CUDA kernels / step", "MFU on this CPU", "Peak RSS")  # fmt: skip


def console_tables(frame: pd.DataFrame, bodies: Bodies | None = None) -> list[RichTable]:
    """Quality and cost of each data set, for a terminal of 80 columns."""
    rows = tidy(frame)
    names = names_of(rows, bodies or {})
    skipped = {data: reason for _, data, reason in skipped_tracks(rows)}
    out = []
    for track, data in groups(rows):
        title = f"{track}: {data}"
        if data in skipped:
            table = RichTable(title=title, title_justify="left")
            table.add_column("SKIPPED", style="yellow", overflow="fold")
            table.add_row(_console_text(skipped[data]))
            out.append(table)
            continue
        body = headline(rows, data, names)
        if body.empty:
            continue
        out.append(console_table(f"{title}, quality (95 % intervals)", body, QUALITY_HEADS))
        # A tuned variant is trained, neither timed nor counted: it has no row of costs.
        costly = [
            row["Camp"] != "floor" and any(row[h].reason != "no row" for h in ("Step time", "Training FLOPs / sample"))
            for _, row in body.iterrows()
        ]
        if any(costly):
            out.append(console_table(f"{title}, cost", body[costly], COST_HEADS, CAPTION))
    return out


MARKDOWN_HEADS = (
    "Model", "AUC", "ΔAUC", "Paired verdict", "Forward FLOPs / sample", "Samples / s", "CUDA kernels / step",
)  # fmt: skip


def markdown(frame: pd.DataFrame, bodies: Bodies) -> str:
    """The headline of each data set as pipe tables, for README."""
    rows = tidy(frame)
    names = names_of(rows, bodies)
    out = []
    for track, data in groups(rows):
        body = headline(rows, data, names)
        if body.empty:
            continue
        chosen = _columns(body, MARKDOWN_HEADS)
        out += [f"**{data}** ({track} track)", "", "| " + " | ".join(chosen) + " |", "|---" * len(chosen) + "|"]
        out += ["| " + " | ".join(plain_text(row[c]) for c in chosen) + " |" for _, row in body.iterrows()] + [""]
    return "\n".join([*out, CAPTION])


def _columns(body: pd.DataFrame, heads: tuple[str, ...]) -> list[str]:
    return [c for h in heads for c in body.columns if c == h or (h == "ΔAUC" and c.startswith(h))]


def console_table(title: str, body: pd.DataFrame, heads: tuple[str, ...], caption: str | None = None) -> RichTable:
    """The columns whose heads begin as given, for a terminal."""
    table = RichTable(title=title, caption=caption, title_justify="left", caption_justify="left")
    chosen = _columns(body, heads)
    for head in chosen:
        table.add_column(head, justify="left" if head in ("Model", "Paired verdict") else "right")
    for _, row in body.iterrows():
        table.add_row(*(_console_text(row[c]) for c in chosen))
    return table


def _console_text(entry: Any) -> str:
    """Markup is escaped: a model's title is not ours."""
    return escape(plain_text(entry))


def plain_text(entry: Any) -> str:
    """A value with its band and the mark of its origin."""
    if not isinstance(entry, Cell):
        return str(entry)
    if entry.value is None:
        return "—"
    mark = {"counted": " c", "derived": " d", "modelled": " ~"}.get(entry.origin, "")
    band = f" {entry.band}" if entry.metric in BANDED and entry.band else ""
    return entry.text + band + mark + ("!" if entry.status == "unstable" else "")
