"""Synthetic JSON lines of the recorder become the tables of an Nsight Systems export; broken ones never pass."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.data.plain_ranges import read_ranges

from ctrbench.bench.trace.recorder import convert
from ctrbench.datasets.errors import BadInput

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
PID, TID = 1000, 1001
HEADER = {"kind": "process", "t": 50, "utc": 10**18, "pid": PID, "name": "synthetic", "nvtx": 3}


def event(kind: str, t: int, **more: Any) -> dict[str, Any]:
    base = {"t": t, "pid": PID, "tid": TID, "kind": kind, "domain": "ctrbench"}
    if kind in ("push", "start", "mark"):
        base |= {"text": "r", "form": "registered", "category": 0, "color": None, "payload": None}
    return base | more


def leave(events: int, lost: int = 0, pid: int = PID) -> dict[str, Any]:
    return {"kind": "exit", "t": 10_000, "pid": pid, "events": events, "lost": lost}


def write(path: Path, *events: dict[str, Any], tail: str = "\n") -> Path:
    lines = path / "synthetic.jsonl"
    lines.write_text("\n".join(json.dumps(e) for e in events) + tail)
    return lines


def table(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


WHOLE = (
    HEADER,
    event("domain_create", 40),  # its clock was read before the header was written
    event("name_category", 60, category=4, text="backward", form="ascii"),
    event("start", 100, id=1, category=4, color=0xFFD62728, payload={"type": "i64", "value": 7}),
    event("push", 200, text="plain", form="ascii", payload={"type": "u64", "value": 2**64 - 1}),
    event("mark", 250, text="m", form="wide", payload={"type": "f64", "value": "-nan"}),
    event("name_thread", 260, thread=77, text="loader", form="ascii"),
    event("pop", 300),
    event("end", 400, id=1, tid=TID + 1),
    leave(8),
)


def test_rows_of_an_export(tmp_path: Path) -> None:
    out = tmp_path / "o.sqlite"
    done = convert(write(tmp_path, *WHOLE), out)
    assert (done.events, done.open_ranges, done.problems) == (6, 0, ())
    thread = (PID << 24) | TID
    names = dict(table(out, "SELECT id, value FROM StringIds"))
    rows = table(
        out,
        "SELECT start, end, eventType, category, color, text, textId, globalTid, endGlobalTid, domainId, int64Value,"
        " uint64Value, doubleValue FROM NVTX_EVENTS",
    )
    text_id = rows[2][6]
    assert names[text_id] == "r"
    assert rows == [
        (0, None, 75, None, None, "ctrbench", None, thread, None, 1, None, None, None),
        (20, None, 33, 4, None, "backward", None, thread, None, 1, None, None, None),
        (60, 360, 60, 4, 0xFFD62728, None, text_id, thread, thread + 1, 1, 7, None, None),
        (160, 260, 59, None, None, "plain", None, thread, None, 1, None, -1, None),  # the upper half of u64 wraps
        (210, None, 34, None, None, "m", None, thread, None, 1, None, None, None),  # NaN is NULL in SQLite
        (220, None, 39, None, None, "loader", None, (PID << 24) | 77, None, 1, None, None, None),
    ]
    assert table(out, "SELECT * FROM PROCESSES") == [(PID << 24, PID, "synthetic")]
    assert table(out, "SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME") == [(10**18 - 10,)]
    export = dict(table(out, "SELECT * FROM META_DATA_EXPORT"))
    assert export["EXPORT_SCHEMA_VERSION"] == "3.20.2"
    collected = table(out, "SELECT text FROM DIAGNOSTIC_EVENT")
    assert collected == [("Number of NVTX events collected: \t6.",)]


def test_tables_and_columns_are_those_of_a_real_export(tmp_path: Path) -> None:
    real_gz = TRACES / "nsys" / "t4_power_iteration.sqlite.gz"
    if not real_gz.is_file():
        pytest.skip(f"the recorded traces are not beside this checkout: {real_gz} is missing")
    real, ours = tmp_path / "real.sqlite", tmp_path / "ours.sqlite"
    real.write_bytes(gzip.decompress(real_gz.read_bytes()))
    convert(write(tmp_path, *WHOLE), ours)
    for (name,) in table(ours, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        columns = [row[1:3] for row in table(ours, f"PRAGMA table_info({name})")]
        assert columns == [row[1:3] for row in table(real, f"PRAGMA table_info({name})")], name
    assert len(read_ranges(real, "CCCL")) == 565
    assert len(read_ranges(real, "")) == 221


@pytest.mark.parametrize(
    ("events", "tail", "problem", "rows", "open_ranges"),
    [
        ([event("start", 100, id=1), event("end", 200, id=2), leave(2)], "\n", "an? end without its range", 2, 1),
        ([event("push", 100), event("pop", 200, tid=5), leave(2)], "\n", "a pop without its range on thread 5", 2, 1),
        ([event("push", 100), event("pop", 200, domain="other"), leave(2)], "\n", "a pop without its range", 3, 1),
        ([event("push", 100), event("pop", 200)], "\n", "ended without closing its recording", 2, 0),
        ([event("push", 100), event("pop", 200)], '\n{"t":3', "the last line is cut off", 2, 0),
        ([event("push", 100), event("pop", 200), leave(5)], "\n", "wrote 5 events, the file has 2", 2, 0),
        ([event("push", 100), event("pop", 200), leave(4, lost=2)], "\n", "could not write 2 events", 2, 0),
        ([event("sync", 100), leave(1)], "\n", "unknown kind of event 'sync'", 1, 0),
    ],
)  # fmt: skip
def test_what_is_missing_is_flagged(
    tmp_path: Path, events: list[dict[str, Any]], tail: str, problem: str, rows: int, open_ranges: int
) -> None:
    out = tmp_path / "o.sqlite"
    done = convert(write(tmp_path, HEADER, *events, tail=tail), out)
    assert (done.events, done.open_ranges) == (rows, open_ranges)
    assert any(re.search(problem, p) for p in done.problems), done.problems
    notes = [text for (text,) in table(out, "SELECT text FROM DIAGNOSTIC_EVENT WHERE severity = 2")]
    assert notes == list(done.problems)


def test_many_alike_are_one_note(tmp_path: Path) -> None:
    pops = [event("pop", 100 + i) for i in range(50)]
    done = convert(write(tmp_path, HEADER, *pops, leave(50)), tmp_path / "o.sqlite")
    assert done.problems == (f"a pop without its range on thread {TID} of process {PID} (50 times)",)


def test_processes_with_the_same_range_id_stay_apart(tmp_path: Path) -> None:
    other = {"pid": 2000, "tid": 2001}
    events = [
        HEADER, HEADER | {"pid": 2000},
        event("start", 100, id=1, text="a"), event("start", 110, id=1, text="b", **other),
        event("end", 120, id=1), event("end", 150, id=1, **other), leave(2), leave(2, pid=2000),
    ]  # fmt: skip
    done = convert(write(tmp_path, *events), tmp_path / "o.sqlite")
    assert done.problems == ()
    found = [(r.name, r.end - r.start, r.thread >> 24) for r in read_ranges(tmp_path / "o.sqlite") if r.end is not None]
    assert found == [("a", 20, PID), ("b", 40, 2000)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no process announced itself"),
        (json.dumps(event("pop", 3)) + "\n", "no process announced itself"),
        (json.dumps(HEADER) + "\nnot json\n" + json.dumps(leave(0)) + "\n", r"synthetic.jsonl:2: not a line"),
        (json.dumps(HEADER) + "\n[1]\n", r"synthetic.jsonl:2: not a line"),
        (json.dumps(HEADER) + '\n{"t": 60, "kind": "start", "pid": 1}\n', "event 1 .start.: 'domain' is missing"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    lines = tmp_path / "synthetic.jsonl"
    lines.write_text(text)
    with pytest.raises(BadInput, match=message):
        convert(lines, tmp_path / "o.sqlite")
    assert not (tmp_path / "o.sqlite").exists()


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no process with NVTX ranges ran under the recorder"):
        convert(tmp_path / "missing.jsonl", tmp_path / "o.sqlite")
