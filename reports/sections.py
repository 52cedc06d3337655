"""The sections of the page, each with the sentence that its figure proves, generated from the same table."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from ctrbench.reports import (
    at_scale,
    bands,
    claims,
    controls,
    cost_section,
    cost_stack,
    costs,
    datapath,
    distributed,
    drawing,
    figures,
    gpus,
    grid,
    kernels,
    modes_section,
    options,
    pareto,
    quality,
    retrieval,
    scaling,
    scaling_fits,
    serving,
    step_split,
    sweep,
    tables,
    tuning,
    utilisation,
)
from ctrbench.reports import pairs as field_pairs
from ctrbench.reports.declared import modules_with
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, delta_column, exhibit, extremes


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
    grid.points, quality.summary, claims.section, quality.quality, quality.floors, controls.section, launches, bounds,
    gpus.section, at_scale.section, sweep.section, modes_section.section,
    roofline, utilisation.section, gain, pareto.section, scaling.section, scaling_fits.section, speed,
    datapath.section, distributed.section, serving.section,
    cost_section.section, cost_stack.section, step_split.section, kernels.section, memory, field_pairs.section,
    tuning.pretraining, retrieval.retrieval, options.section, pairing, tuning.tuning, bands.section,
)  # fmt: skip


def build_sections(
    context: Context, builders: Iterable[Callable[[Context], Section | None]] = BUILDERS
) -> list[Section]:
    """All sections that have something to show, in order.

    Those with a file of their own say which section they stand `AFTER`; where it is not shown they come last.
    """
    shown = [s for s in (build(context) for build in builders) if s is not None]
    for module in modules_with("AFTER"):
        made: Section | None = module.section(context)
        if made is not None:
            place = next((n for n, s in enumerate(shown, 1) if s.id == module.AFTER), len(shown))
            shown.insert(place, made)
    return shown
