"""How much of a machine a training step uses: MFU, HFU and bandwidth use side by side, each against its own ceiling."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ctrbench.reports import figures
from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.costs import sizes
from ctrbench.reports.drawing import known
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit, extremes
from ctrbench.reports.names import Names
from ctrbench.reports.sweep import USEFUL, useful_share
from ctrbench.reports.tables import models_of

MFU, HFU = "MFU", "HFU"
MBU = {"bytes_operands": "MBU (operand bytes)", "bytes_compulsory": "MBU (compulsory bytes)"}
"""Byte figure -> column; never one figure for both."""
DRAWN = (MFU, HFU, *MBU.values())
COUNTS = ("flops_train_per_sample", "ai_operands", "bytes_operands")
"""What the useful share is made of."""


def hfu(mine: pd.DataFrame) -> tuple[Cell, Cell]:
    """(HFU, useful share of FLOPs) of the training rows of one configuration.

    MFU counts model FLOPs, HFU executed ones, over the same time and ceiling: HFU = MFU / useful share. Withheld where
    the share was counted at another batch or dtype than MFU was timed at.
    """
    use, share = pick(mine, "mfu_cpu"), useful_share(mine)
    if use.value is None or share.value is None:
        return absent(
            "hfu_cpu", use.reason if use.value is None else f"no useful share of FLOPs: {share.reason}"
        ), share
    timed, counted = where(mine, metric="mfu_cpu"), mine[mine["metric"].isin(COUNTS)]
    for column in ("batch", "dtype"):
        if set(timed[column]) != set(counted[column]):
            return absent("hfu_cpu", f"FLOPs were counted at another {column} than the step was timed at"), share
    return use.over(share, "hfu_cpu"), share


def on_cpu(frame: pd.DataFrame, data: str, names: Names) -> pd.DataFrame:
    """One row a model trained here; none where nobody timed a step."""
    rows, index = [], []
    train = where(frame, data=data, trained=True, phase="train")
    for model, variant in models_of(where(train, metric="mfu_cpu"), names):
        mine = where(train, model=model, variant=variant)
        executed, share = hfu(mine)
        rows.append({
            "Model": names.title(model, variant), "Camp": names.camp(model), MFU: pick(mine, "mfu_cpu"),
            HFU: executed, USEFUL: share, **{head: pick(mine, "mbu", scope=s) for s, head in MBU.items()},
        })  # fmt: skip
        index.append(model)
    return pd.DataFrame(rows, index=index)


def on_gpu(frame: pd.DataFrame, names: Names) -> pd.DataFrame:
    """MFU as run on GPUs, beside the bound of the same size, phase, batch and GPU."""
    run = where(frame, metric="mfu")
    run = run[~run["device"].str.startswith("cpu").to_numpy(dtype=bool)]
    rows, index = [], []
    for model, variant, preset, batch in sizes(run, names):
        point: dict[str, Any] = {"model": model, "variant": variant, "preset": preset, "batch": batch}
        mine = where(run, **point)
        for phase, gpu in mine[["phase", "scope"]].drop_duplicates().itertuples(index=False):
            bound = pick(frame, "mfu_bound", scope=str(gpu), phase=phase, **point)
            rows.append({
                "Model": names.title(model, variant), "Camp": names.camp(model),
                "Preset": preset.removeprefix("published:"), "Phase": phase, "Batch": f"{batch:,.0f}", "GPU": gpu,
                MFU: pick(mine, "mfu", scope=str(gpu), phase=phase), "MFU bound": bound,
            })  # fmt: skip
            index.append(model)
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """Shown where a step was timed."""
    exhibits: list[Exhibit] = []
    said, flags = [], []
    for track, data in c.data:
        table = on_cpu(c.frame, data, c.names)
        if table.empty:
            continue
        drawn = figures.marks(table, DRAWN, "% of this CPU's ceiling", scale=100, unit="%")
        exhibits += exhibit(table, (f"Share of this CPU's measured ceilings on {data}", drawn),
                            title=f"{data} ({track} track)", data=data, hardware="cpu")  # fmt: skip
        said.append(_sentence(table, data))
        cells = list(known(table, MFU)[MFU])
        if shaky := sum(x.status == "unstable" for x in cells):
            flags.append(f"{data}: {shaky} of {len(cells)} are unstable (open markers): the ceilings moved while they "
                         "were timed, so no order of these is a result")  # fmt: skip
    gpus = on_gpu(c.frame, c.names)
    exhibits += exhibit(gpus, title="On GPUs", open=True)
    if not exhibits:
        return None
    said.append(f"As run on a GPU, MFU is {span}." if (span := extremes(gpus, MFU)) else "")
    return Section(
        id="utilisation",
        title="MFU, HFU and MBU",
        sentence=" ".join(s for s in said if s) or "No utilisation is known.",
        exhibits=tuple(exhibits),
        flags=tuple(flags),
        caveat="MFU counts model FLOPs, HFU executed ones with padding and masked pairs, both against the largest "
        "matrix product that this CPU was measured at; MBU is against its measured copy. Operand bytes count what "
        "every operator reads and writes, so that MBU above what memory can move means reuse in cache; compulsory "
        "bytes cross memory once. Use of a CPU is no figure of a GPU.",
    )


def _sentence(table: pd.DataFrame, data: str) -> str:
    use, executed, moved = (extremes(table, head) for head in (MFU, HFU, MBU["bytes_operands"]))
    if not use:
        return f"On {data} no utilisation of this CPU is known."
    said = f"On {data} models use {use} of this CPU's measured GEMM ceiling for model FLOPs"
    said += f", {executed} for executed FLOPs" if executed else ""
    return said + (f", and {moved} of its copy bandwidth by operand bytes." if moved else ".")
