"""The section on training over processes: how fast, what collectives take, and where the tables lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ctrbench.reports.cells import PROCESSES, Cell, pick, where
from ctrbench.reports.exhibits import Context, Section, exhibit

RATE, SHARE, HELD, FULLEST = "Rows / s", "In collectives", "Tables a process", "Fullest / mean"


def _bodies(c: Context) -> list[tuple[str, Mapping[str, Any]]]:
    """(key, body) of every such training: by model, data and number of processes."""
    found = [(k, b) for k, b in c.bodies.items() if b.get("spec", {}).get("kind") == "distributed"]
    return sorted(
        found, key=lambda one: [str(one[1]["spec"][n]) for n in ("model", "data")] + [one[1]["spec"]["ranks"]]
    )


def trainings(c: Context) -> pd.DataFrame:
    """A row a training: processes, plan, speed, share of collectives, balance, quality."""
    rows, index = [], []
    frame = where(c.frame, preset=PROCESSES)
    for key, body in _bodies(c):
        spec, held = body["spec"], body["extra"]["balance"]
        mine, by_rank = where(frame, run=key), held["bytes_by_rank"]
        mean = sum(by_rank) / len(by_rank)
        rows.append({
            "Model": c.names.title(spec["model"], spec["variant"]), "Data": spec["data"],
            "Processes": str(spec["ranks"]), "Device": spec["device"], "Plan": spec["sharding"],
            "Global batch": f"{spec['batch']:,}", "Steps": f"{body['extra']['steps']:,}",
            RATE: pick(mine, "throughput"), SHARE: pick(mine, "communication_share"),
            HELD: Cell(mean, "bytes_tables", "counted", min(by_rank), max(by_rank)),
            FULLEST: f"{held['fullest_over_mean']:.2f}", "Test AUC": pick(mine, "auc"),
            "Log loss": pick(mine, "logloss"),
        })  # fmt: skip
        index.append(spec["model"])
    return pd.DataFrame(rows, index=index)


def shards(c: Context) -> pd.DataFrame:
    """A row a shard of a table."""
    rows, index = [], []
    for _, body in _bodies(c):
        spec = body["spec"]
        for piece in body["extra"]["balance"]["shards"]:
            rows.append({
                "Model": c.names.title(spec["model"], spec["variant"]), "Data": spec["data"],
                "Processes": str(spec["ranks"]), "Table": piece["table"], "Cut": piece["sharding"],
                "Process": str(piece["rank"]), "Rows": f"{piece['rows']:,}", "Columns": str(piece["columns"]),
                "Bytes": Cell(4.0 * piece["rows"] * piece["columns"], "bytes_tables", "counted"),
            })  # fmt: skip
            index.append(spec["model"])
    return pd.DataFrame(rows, index=index)


def section(c: Context) -> Section | None:
    """Shown where a training ran through `ctrbench.bench.distributed`."""
    table = trainings(c)
    if table.empty:
        return None
    return Section(
        id="processes",
        title="Training over processes",
        sentence=" ".join(_said(row) for _, row in table.iterrows()),
        exhibits=exhibit(table, title="Trainings", open=True) + exhibit(shards(c), title="Where the tables lie"),
        caveat="Processes of one machine share its cores and memory: rows per second of two of them on one machine say "
        "nothing of two machines. Collectives are timed on the first process, waiting for the others included. Bytes "
        "are those of the weights, with the columns that pad a row to a multiple of four, without the optimizer's.",
    )


def _said(row: pd.Series) -> str:
    name = f"{row['Model']} on {row['Data']}, {row['Processes']} processes, {row['Plan']}"
    parts = [f"{row[RATE].text} rows a second"] if row[RATE].value is not None else []
    parts += [f"{row[SHARE].text} of a step in collectives"] if row[SHARE].value is not None else []
    return f"{name}: {', '.join([*parts, f'fullest process {row[FULLEST]} times the mean'])}."
