"""From the JSON lines of the injection library to a SQLite file with the tables of an Nsight Systems export.

One reader then serves both (measures.md, section 10). Nothing of a GPU was recorded, so there is no CUPTI table: a
reader withholds what it would say of kernels. Times are ns since the first event.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctrbench.datasets.errors import BadInput

SCHEMA_VERSION = "3.20.2"
"""Of the Nsight Systems export whose columns these are (2025.3)."""
PRODUCT = "ctrbench NVTX recorder"
CATEGORY, MARK, THREAD_NAME, PUSH_POP, START_END, DOMAIN_CREATE, DOMAIN_DESTROY = 33, 34, 39, 59, 60, 75, 76
"""Event types of NVTX_EVENTS."""

_PAYLOAD_COLUMNS = {
    "u64": "uint64Value", "i64": "int64Value", "f64": "doubleValue", "u32": "uint32Value", "i32": "int32Value",
    "f32": "floatValue",
}  # fmt: skip
_COLUMNS = {
    "start": "INTEGER NOT NULL", "end": "INTEGER", "eventType": "INTEGER NOT NULL", "rangeId": "INTEGER",
    "category": "INTEGER", "color": "INTEGER", "text": "TEXT", "globalTid": "INTEGER", "endGlobalTid": "INTEGER",
    "textId": "INTEGER", "domainId": "INTEGER", "uint64Value": "INTEGER", "int64Value": "INTEGER",
    "doubleValue": "REAL", "uint32Value": "INTEGER", "int32Value": "INTEGER", "floatValue": "REAL",
    "jsonTextId": "INTEGER", "jsonText": "TEXT", "binaryData": "TEXT",
}  # fmt: skip
_TABLES = f"""
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE META_DATA_CAPTURE (name TEXT NOT NULL, value TEXT);
CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT);
CREATE TABLE PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT);
CREATE TABLE DIAGNOSTIC_EVENT (timestamp INTEGER NOT NULL, timestampType INTEGER NOT NULL, source INTEGER NOT NULL,
    severity INTEGER NOT NULL, text TEXT NOT NULL, globalPid INTEGER);
CREATE TABLE NVTX_EVENTS ({", ".join(f'"{name}" {kind}' for name, kind in _COLUMNS.items())});
"""
_ALL_PROCESSES = 0
_INFO, _WARNING = 1, 2


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What came out of a recording."""

    events: int
    """Rows of NVTX_EVENTS."""
    open_ranges: int
    """Ranges without an end; theirs is NULL."""
    problems: tuple[str, ...]
    """What makes the recording incomplete or unbalanced; empty for a whole one. Kept in DIAGNOSTIC_EVENT too."""


@dataclass
class _State:
    """Rows so far, and what is still open."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    strings: dict[str, int] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=lambda: {"": 0})
    stacks: dict[tuple[int, int, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    started: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    processes: dict[int, dict[str, Any]] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    exits: dict[int, dict[str, Any]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    origin: int = 0
    """Clock of the first event, ns."""


def convert(lines: Path, out: Path) -> Converted:
    """Writes the SQLite file of a recording; an old file is replaced.

    Args:
        lines: JSON lines of the injection library.
        out: `.sqlite`.

    Raises:
        BadInput: there is no recording, or a line before the last is none of the library's.
    """
    events = list(_read(lines))
    state = _State()
    if events and events[-1] is None:
        state.problems["the last line is cut off: the recorder was stopped while it wrote"] += 1
        events.pop()
    whole = [e for e in events if e is not None]
    if not any(e["kind"] == "process" for e in whole):
        raise BadInput(f"{lines}: no process announced itself; record with the library of `ctrbench profile`")
    # A line's clock is read before the line is written: another thread may come in between.
    whole.sort(key=lambda e: int(e["t"]))
    state.origin = int(whole[0]["t"])
    for number, event in enumerate(whole):
        try:
            _take(state, event)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{lines}: event {number} ({event.get('kind')}): {error} is missing; record again") from None
    _settle(state)
    _write(state, out)
    open_ranges = sum(r["end"] is None for r in state.rows if r["eventType"] in (PUSH_POP, START_END))
    return Converted(events=len(state.rows), open_ranges=open_ranges, problems=_texts(state))


def _read(path: Path) -> Iterator[dict[str, Any] | None]:
    """Events in file order; None for a last line that is cut off.

    Raises:
        BadInput: unreadable, or a line in the middle that is no event.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}: no process with NVTX ranges ran under the recorder") from None
    lines = text.split(b"\n")
    last = len(lines) - 1 if lines[-1] else len(lines) - 2
    for number, line in enumerate(lines[: last + 1]):
        try:
            event = json.loads(line)
            if not (isinstance(event, dict) and isinstance(event.get("t"), int) and "kind" in event):
                raise ValueError("no event")
        except ValueError:
            if number == last and lines[-1] != b"":
                yield None
                return
            raise BadInput(f"{path}:{number + 1}: not a line of the recorder: {line[:40]!r}; record again") from None
        yield event


def global_tid(pid: int, tid: int) -> int:
    """Process and thread in one number, as an export writes them."""
    return (pid << 24) | (tid & 0xFFFFFF)


def _take(state: _State, event: dict[str, Any]) -> None:
    kind, pid = event["kind"], int(event["pid"])
    if kind == "process":
        state.processes[pid] = event
        return
    if kind == "exit":
        state.exits[pid] = event
        return
    state.counted[pid] += 1
    domain, now = str(event["domain"]), int(event["t"]) - state.origin
    thread = global_tid(pid, int(event["tid"]))
    if domain not in state.domains and kind != "domain_create":
        _create_domain(state, domain, now, thread)
    if kind == "domain_create":
        if domain not in state.domains:  # a second handle of the same name is the same domain
            _create_domain(state, domain, now, thread)
    elif kind == "domain_destroy":
        _row(state, DOMAIN_DESTROY, now, thread, domain)
    elif kind == "name_category":
        _row(state, CATEGORY, now, thread, domain, category=event["category"], text=event["text"])
    elif kind == "name_thread":
        _row(state, THREAD_NAME, now, global_tid(pid, int(event["thread"])), domain, text=event["text"])
    elif kind in ("push", "start", "mark"):
        row = _attributed(state, event, now, thread)
        if kind == "push":
            state.stacks[pid, int(event["tid"]), domain].append(row)
        elif kind == "start":
            state.started[pid, int(event["id"])] = row
    elif kind in ("pop", "end"):
        _close(state, event, now, thread)
    elif kind == "register_string":
        _string(state, str(event["text"]))
    else:
        state.problems[f"unknown kind of event {kind!r}: left out"] += 1


def _create_domain(state: _State, name: str, now: int, thread: int) -> None:
    state.domains[name] = len(state.domains)
    _row(state, DOMAIN_CREATE, now, thread, name, text=name)


def _row(state: _State, type_: int, start: int, thread: int, domain: str, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_COLUMNS)
    row |= {"start": start, "eventType": type_, "globalTid": thread, "domainId": state.domains[domain], **more}
    state.rows.append(row)
    return row


def _string(state: _State, text: str) -> int:
    return state.strings.setdefault(text, len(state.strings) + 1)


def _attributed(state: _State, event: dict[str, Any], now: int, thread: int) -> dict[str, Any]:
    type_ = {"push": PUSH_POP, "start": START_END, "mark": MARK}[event["kind"]]
    row = _row(state, type_, now, thread, str(event["domain"]), rangeId=event.get("id"))
    row["category"] = event.get("category") or None
    row["color"] = event.get("color")
    if event["form"] == "registered":
        row["textId"] = _string(state, str(event["text"]))
    else:
        row["text"] = event["text"]
    payload = event.get("payload")
    column = _PAYLOAD_COLUMNS.get(payload["type"]) if payload else None
    if column is not None and payload is not None:
        value = float(payload["value"]) if payload["type"] in ("f64", "f32") else int(payload["value"])
        # SQLite integers are signed: the upper half wraps, as in an export.
        row[column] = value - 2**64 if isinstance(value, int) and value >= 2**63 else value
    return row


def _close(state: _State, event: dict[str, Any], now: int, thread: int) -> None:
    pid = int(event["pid"])
    if event["kind"] == "pop":
        stack = state.stacks[pid, int(event["tid"]), str(event["domain"])]
        row = stack.pop() if stack else None
    else:
        row = state.started.pop((pid, int(event["id"])), None)
        if row is not None:
            row["endGlobalTid"] = thread
    if row is None:
        state.problems[f"a {event['kind']} without its range on thread {event['tid']} of process {pid}"] += 1
    else:
        row["end"] = now


def _settle(state: _State) -> None:
    """Adds what the ends of the processes say, and the ranges that none closed."""
    for pid in state.processes:
        exit_ = state.exits.get(pid)
        if exit_ is None:
            state.problems[f"process {pid} ended without closing its recording (killed, or a forked child)"] += 1
            continue
        if exit_["lost"]:
            state.problems[f"process {pid} could not write {exit_['lost']} events; is the disk full?"] += 1
        written = exit_["events"] - exit_["lost"]
        if written != state.counted[pid]:
            state.problems[f"process {pid} wrote {written} events, the file has {state.counted[pid]}"] += 1
    left = sum(map(len, state.stacks.values())) + len(state.started)
    if left:
        state.problems[f"{left} ranges have no end"] += 1


def _texts(state: _State) -> tuple[str, ...]:
    return tuple(f"{text} ({n} times)" if n > 1 else text for text, n in state.problems.items())


def _write(state: _State, out: Path) -> None:
    out.unlink(missing_ok=True)
    first = min(state.processes.values(), key=lambda p: int(p["t"]))
    began = int(first["utc"]) - (int(first["t"]) - state.origin)
    state.rows.sort(key=lambda r: int(r["start"]))
    notes = [(0, 2, 3, _INFO, f"Number of NVTX events collected: \t{len(state.rows)}.", _ALL_PROCESSES)]
    notes += [(0, 2, 3, _WARNING, text, _ALL_PROCESSES) for text in _texts(state)]
    export = {
        "EXPORT_PRODUCT_NAME": PRODUCT, "EXPORT_PRODUCT_VERSION": f"NVTX {first['nvtx']}",
        "EXPORT_SCHEMA_VERSION": SCHEMA_VERSION,
    }  # fmt: skip
    connection = sqlite3.connect(out)
    try:
        connection.executescript(_TABLES)
        add = connection.executemany
        add("INSERT INTO StringIds VALUES (?, ?)", [(i, text) for text, i in state.strings.items()])
        add("INSERT INTO META_DATA_CAPTURE VALUES (?, ?)", [("CAPTURE_EVENT_TYPE", "NvtxEvents")])
        add("INSERT INTO META_DATA_EXPORT VALUES (?, ?)", list(export.items()))
        add("INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (?, NULL, NULL)", [(began,)])
        add(
            "INSERT INTO PROCESSES VALUES (?, ?, ?)",
            [(global_tid(pid, 0), pid, p["name"]) for pid, p in state.processes.items()],
        )
        add("INSERT INTO DIAGNOSTIC_EVENT VALUES (?, ?, ?, ?, ?, ?)", notes)
        marks = ", ".join("?" * len(_COLUMNS))
        add(f"INSERT INTO NVTX_EVENTS VALUES ({marks})", [tuple(r.values()) for r in state.rows])
        connection.commit()
    finally:
        connection.close()
