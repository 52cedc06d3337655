"""Bytes of a step on paper against those that TorchRec hands to gloo over two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ctrbench.bench import registry
from ctrbench.bench.at_scale import EXCHANGES, ID_BYTES, VALUE_BYTES, Plan, Table, Work, traffic

SAMPLES, DIM, WORLD, IDS = 64, 8, 2, 166
SCRIPT = Path(__file__).resolve().parents[1] / "data" / "count_exchange.py"


def counted(how: str, folder: Path) -> list[list[tuple[int, str]]]:
    """(bytes to the other, dtype) of every all-to-all of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(WORLD),
              "COUNTED": str(folder / "sent"), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, str(SCRIPT), how, str(SAMPLES)]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(r)}, stderr=subprocess.PIPE, text=True)
        for r in range(WORLD)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=300)
        assert rank.returncode == 0, said[-3000:]
    return [json.loads((folder / f"sent.{r}").read_text()) for r in range(WORLD)]


def on_paper(how: Plan) -> tuple[float, float, float, float]:
    """(lengths, ids, rows, gradients) of DIN on the schema of the published preset, full histories."""
    schema = registry.model_spec("din").published()[0].schema
    read: dict[str, list[int]] = {}
    for f in schema.of_kind("categorical", "sequence"):
        read.setdefault(f.table, []).append(f.max_length or 1)
    tables = tuple(
        Table(rows=schema[t].cardinality, ids=sum(n), features=len(n), width=DIM) for t, n in read.items()
    )  # fmt: skip
    found = traffic(Work(samples=SAMPLES, tables=tables, modules=1, dense=0.0, seconds=(1.0, 1.0)), WORLD, how)
    return found.lengths, found.ids, found.rows, found.gradients


@pytest.mark.slow
@pytest.mark.parametrize("how", ["row_wise", "table_wise"])
def test_bytes_of_a_step_over_two_processes(how: Plan, tmp_path: Path) -> None:
    sent = counted(how, tmp_path)
    lengths, ids, rows, gradients = on_paper(how)
    for mine in sent:
        kinds = [dtype.removeprefix("torch.") for _, dtype in mine]
        assert kinds == ["int64", "int32", "int64", "float32", "float32"]
        assert len(mine) == EXCHANGES, "sizes, lengths, ids, rows, gradients"
    # What one sends as ids the other has received: the busiest accelerator is found in either direction. On paper the
    # rows of a table are read alike; its reserved rows never are, and of small tables the upper block has more. The
    # planner deals tables out by a cost of its own.
    for expected, at in ((ids, 2), (rows, 3), (gradients, 4)):
        assert max(mine[at][0] for mine in sent) == pytest.approx(expected, rel=0.2 if how == "row_wise" else 0.1)
    if how == "row_wise":
        assert {mine[1][0] for mine in sent} == {lengths}
    # Both together send half of what they read, wherever it lies.
    even = SAMPLES * IDS * WORLD / 2
    assert sum(mine[2][0] for mine in sent) == pytest.approx(even * ID_BYTES, rel=0.02)
    for at in (3, 4):
        assert sum(mine[at][0] for mine in sent) == pytest.approx(even * DIM * VALUE_BYTES, rel=0.02)
