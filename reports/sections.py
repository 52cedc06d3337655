"""The sections of the page, each with the sentence that its figure proves, generated from the same table."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from ctrbench.reports import (
    bands,
    claims,
    controls,
    cost_stack,
    costs,
    drawing,
    figures,
    gpus,
    kernels,
    options,
    pareto,
    retrieval,
    scaling,
    step_split,
    sweep,
    tables,
    ties,
    tuning,
    utilisation,
)
from ctrbench.reports import pairs as field_pairs
from ctrbench.reports.cells import pick, where
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, by_group, delta_column, exhibit, extremes
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
        said = _quality_sentence(table, data, c.names.title(tables.reference_of(c.frame, data)))
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
        parts.append(_quality_sentence(table, data, other))
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


def _quality_sentence(table: pd.DataFrame, data: str, other: str) -> str:
    models = known(table[table["Camp"] != "floor"], "AUC")
    if models.empty:
        return f"On {data} no model finished training." if (table["Camp"] != "floor").any() else ""
    best = max((row for _, row in models.iterrows()), key=lambda r: r["AUC"].value)
    said = f"On {data} the highest mean AUC of a model is {best['AUC'].text} {best['AUC'].band} ({best['Model']})."
    floors = known(table[table["Camp"] == "floor"], "AUC")
    top = max((row for _, row in floors.iterrows()), key=lambda r: r["AUC"].value, default=None)
    if top is not None and top["AUC"].value > best["AUC"].value:
        said += f" The floor {top['Model']} has more: {top['AUC'].text} {top['AUC'].band}."
    for group, rows in by_group(table[table["Camp"] != "floor"]):
        counts = rows["Paired verdict"].value_counts()
        calls = [f"{counts[v]} {v}" for v in ("better", "tied", "worse") if v in counts]
        said += f" Against {other}{group}: {', '.join(calls)}." if calls else ""
    return said


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


def launches(c: Context) -> Section | None:
    """Kernels, their size, and intensity over the ridge, for the published sizes."""
    table = costs.launches(c.frame, c.names)
    if table.empty:
        return None
    last = drawing.largest_batch(table)
    parts = []
    for camp in ("legacy", "transformer"):
        mine = last[last["Camp"] == camp]
        span, size = extremes(mine, "CUDA kernels / step"), extremes(mine, "FLOPs / kernel")
        if span and size:
            parts.append(f"At the largest batch {camp} presets launch {span} kernels a step of {size} each.")
    for kind in ("operands", "compulsory"):
        rows = known(last, f"Intensity ({kind})")
        over = sum(r[f"Intensity ({kind})"].value >= r[f"{costs.RIDGE_GPU} ridge"].value for _, r in rows.iterrows())
        if len(rows):
            parts.append(
                f"By {kind.removesuffix('s')} bytes {over} of {len(rows)} sizes reach the ridge of {costs.RIDGE_GPU}."
            )
    return Section(
        id="launches",
        title="Launches, FLOPs per launch and intensity (published presets)",
        sentence=" ".join(parts),
        exhibits=exhibit(
            table,
            ("Kernels per step against FLOPs per kernel; batch grows along each line", figures.kernels(table, c.names)),
            ("Intensity at the largest batch; dashed: ridge of H100 (cited)", figures.intensity(table, c.names)),
        ),
        caveat="Traced on the meta device. Kernel counts are modelled with a band; operand bytes assume no "
        "fusion and no cache: fusion moves a point to the right.",
    )


def bounds(c: Context) -> Section | None:
    """The highest MFU that a GPU could reach, batch by batch."""
    table = costs.bounds(c.frame, "train", c.names)
    gpus = [str(x) for x in table.columns if x not in ("Model", "Camp", "Preset", "Batch")]
    if table.empty or not gpus:
        return None
    said = [_bound_sentence(table, camp, gpus[0]) for camp in ("legacy", "transformer", "control")]
    serve = costs.bounds(c.frame, "infer", c.names)
    drawn = [(g, figures.bound_of(table, g, c.names)) for g in gpus if g in costs.DRAWN_GPUS]
    return Section(
        id="mfu-bound",
        title="Upper bound of MFU against batch (published presets)",
        sentence=" ".join(s for s in said if s),
        exhibits=exhibit(table, *drawn, title="Training step")
        + exhibit(serve, (gpus[0], figures.bound_of(serve, gpus[0], c.names)), title="Forward only"),
        caveat="A bound, not an estimate: it counts only bytes that cannot stay in cache and kernels that no fusion "
        "removes, on one stream at datasheet peaks. A claim above it is refuted; one below it is not supported by it.",
    )


def _bound_sentence(table: pd.DataFrame, camp: str, gpu: str) -> str:
    rows = known(table[table["Camp"] == camp], gpu)
    if rows.empty:
        return ""
    top = max((r for _, r in rows.iterrows()), key=lambda r: r[gpu].value)
    if top[gpu].value > 0.995:
        return (
            f"For {camp} presets the bound excludes nothing on {gpu}: it reaches 100 % ({top['Model']}, batch "
            f"{top['Batch']})."
        )
    return (
        f"On {gpu} no {camp} preset can exceed {top[gpu].text} at a traced batch ({top['Model']}, batch "
        f"{top['Batch']})."
    )


def roofline(c: Context) -> Section | None:
    """Two rooflines, never on one axis: this CPU measured, H100 as a bound."""
    small, large = costs.cpu_roof(c.frame, c.names), costs.gpu_roof(c.frame, c.names)
    peak, bandwidth, ridge = costs.gpu_limits(c.frame)
    exhibits = exhibit(
        small,
        ("This CPU, models trained here: measured ceilings and derived points", figures.cpu_roofline(small, c.names)),
        title="This CPU",
        hardware="cpu",
    ) + exhibit(
        large,
        (
            f"{costs.RIDGE_GPU}, published presets at their largest batch: no point is measured",
            figures.gpu_roofline(large, peak.value or 0.0, bandwidth.value or 0.0, c.names),
        ),
        title=costs.RIDGE_GPU,
        hardware=costs.RIDGE_GPU,
        note=f"Peak {peak.text} TFLOP/s, {bandwidth.text} GB/s, ridge {ridge.text} FLOP/B ({peak.origin}). {peak.note}",
    )
    if not exhibits:
        return None
    return Section(
        id="roofline",
        title="Roofline",
        exhibits=exhibits,
        sentence=_ridge_sentence(small),
        caveat="The operand bytes behind the CPU points count every operator's inputs and outputs, as if nothing "
        "stayed in cache: "
        "a point above the slanted roof means reuse in cache, not an error. GPU points lie on the roof by "
        "construction; by operand bytes "
        "it is the roof of unfused execution, and only the MFU bound is a bound. The two machines have their own "
        "axes on purpose.",
    )


def _ridge_sentence(small: pd.DataFrame) -> str:
    """On which side of this CPU's ridge the models lie."""
    rows = small
    for column in ("Intensity (operands)", "GEMM ceiling, GFLOP/s", "Copy ceiling, GB/s"):
        rows = known(rows, column)
    if rows.empty:
        return "No model trained here has a place under the ceilings of this CPU."
    ridges = [r["GEMM ceiling, GFLOP/s"].value / r["Copy ceiling, GB/s"].value for _, r in rows.iterrows()]
    left = sum(x.value < ridge for x, ridge in zip(rows["Intensity (operands)"], ridges, strict=True))
    return (
        f"By operand bytes {left} of {len(rows)} trained configurations lie left of this CPU's ridge (about "
        f"{sorted(ridges)[len(ridges) // 2]:.2g} FLOP per byte), where bandwidth is the limit unless a cache helps; "
        f"intensity is {extremes(rows, 'Intensity (operands)')}."
    )


def gain(c: Context) -> Section | None:
    """What quality the extra FLOPs bought."""
    exhibits: list[Exhibit] = []
    parts = []
    for track, data in c.data:
        table = costs.gain_per_flop(c.frame, data, c.names)
        drawn = figures.gain(table, c.names) if not table.empty else None
        if drawn is None:
            continue
        exhibits += exhibit(
            table, (f"ΔAUC against forward FLOPs on {data}", drawn), title=f"{data} ({track} track)", data=data
        )
        column = delta_column(table)
        won = [str(r["Model"]) for _, r in table.iterrows() if tables.verdict(r[column]) == "better"]
        span = extremes(table, "Forward FLOPs / sample")
        parts.append(
            f"On {data} forward work is {span} a sample; "
            + (
                f"an interval above 0 was bought by {', '.join(won)}."
                if won
                else "no model bought an interval above 0."
            )
        )
    if not exhibits:
        return None
    return Section(
        id="gain",
        title="AUC per extra GFLOP (models trained here)",
        sentence=" ".join(parts),
        exhibits=tuple(exhibits),
        caveat="The ratio is withheld where a model spends no more FLOPs than the reference. A tie stays a tie "
        "whatever its ratio.",
    )


def speed(c: Context) -> Section | None:
    """Step time and latency on this CPU."""
    exhibits: list[Exhibit] = []
    parts = []
    for track, data in c.data:
        table = costs.speed(c.frame, data, c.names)
        if table.empty:
            continue
        step = drawing.dots(table, "Step time", "training step, ms", c.names, scale=1e3, log=True)
        call = drawing.dots(table, "Forward latency", "forward call, ms", c.names, scale=1e3, log=True)
        exhibits += exhibit(
            table,
            ("Training step", step),
            ("Forward call", call),
            title=f"{data} ({track} track)",
            data=data,
            hardware="cpu",
        )
        span = extremes(table, "Samples / s")
        parts.append(f"On {data} training runs at {span} samples per second." if span else "")
    if not exhibits:
        return None
    return Section(
        id="speed",
        title="Time on this CPU (models trained here)",
        sentence=" ".join(p for p in parts if p),
        exhibits=tuple(exhibits),
        caveat="Median over processes of the per-process P50, data wait included; the line is the 95 % interval. "
        "CPU times say "
        "nothing of a GPU.",
    )


def memory(c: Context) -> Section | None:
    """Bytes in memory and on disk."""
    exhibits: list[Exhibit] = []
    parts = []
    columns = ("Peak RSS", "Embedding tables", "Optimizer state", "Checkpoint")
    for track, data in c.data:
        table = costs.memory(c.frame, data, c.names)
        if table.empty:
            continue
        exhibits += exhibit(
            table,
            (f"Memory on {data}", figures.byte_dots(table, columns)),
            title=f"{data} ({track} track)",
            data=data,
            hardware="cpu",
        )
        span = extremes(table, "Peak RSS")
        parts.append(f"On {data} the process peaks at {span}." if span else "")
    disk = costs.storage(c.frame, c.names)
    if not disk.empty:
        drawn = figures.byte_dots(disk, ("Raw data", "Prepared shards"), heading="Data")
        exhibits += exhibit(disk, ("Data on disk", drawn), title="Data on disk")
    if not exhibits:
        return None
    return Section(
        id="memory",
        title="Memory and storage",
        sentence=" ".join(p for p in parts if p) or "Bytes of the data as found and prepared.",
        exhibits=tuple(exhibits),
        caveat="MB are 10⁶ bytes. Peak RSS includes the libraries, several hundred MB for every model.",
    )


def pairing(c: Context) -> Section | None:
    """Which runs are compared, and whether the pair is fair."""
    table = tables.pairing(c.bodies, c.names)
    if table.empty:
        return None
    odd = table[table["Pair"].str.startswith("UNEQUAL")]
    return Section(
        id="pairing",
        title="Pairing: who is compared on what",
        exhibits=exhibit(table, open=True),
        sentence=f"{len(table) - len(odd)} of {len(table)} trainings share fingerprint, split, history length, "
        f"training rows (or FLOPs, where those are the budget), dtype and threads with the others of their data set.",
        flags=tuple(f"{r['Model']} on {r['Data']}: {r['Pair']}" for _, r in odd.iterrows()),
        caveat="Early stopping may end a training before its rows are used up; the budget is the same.",
    )


BUILDERS: tuple[Callable[[Context], Section | None], ...] = (
    summary, claims.section, quality, floors, controls.section, launches, bounds, gpus.section, sweep.section,
    roofline, utilisation.section, gain, pareto.section, scaling.section, speed, cost_stack.section,
    step_split.section, kernels.section, memory, field_pairs.section, tuning.pretraining, retrieval.retrieval,
    options.section, pairing, tuning.tuning, bands.section,
)  # fmt: skip


def build_sections(
    context: Context, builders: Iterable[Callable[[Context], Section | None]] = BUILDERS
) -> list[Section]:
    """All sections that have something to show, in order."""
    return [s for s in (build(context) for build in builders) if s is not None]
