"""Random synthetic recordings against a plain twin, and files that were spoiled: a refusal or a right count.

The twin counts with dictionaries and nested loops, straight from the rules of measures.md sections 4 and 10.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctrbench.bench.suites.synthetic_traces import COLUMNS, KERNEL, MEMCPY, RUNTIME, thread_id, write_nsys
from ctrbench.bench.trace import projection
from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.command import figures_of
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.sweep import innermost, parents

Row = dict[str, Any]
STRINGS = ("cudaLaunchKernel_v7000", "cudaGraphLaunch_v10000", "cudaMemcpyAsync", "k0", "k1", "r0", "r1", "r2")
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])

times = st.integers(-40, 160)
processes, threads = st.integers(1, 2), st.integers(1, 3)


@st.composite
def span(draw: Callable[..., Any]) -> tuple[int, int]:
    start = draw(times)
    return start, start + draw(st.integers(0, 60))


@st.composite
def kernels(draw: Callable[..., Any]) -> Row:
    start, end = draw(span())
    return {"start": start, "end": end, "deviceId": draw(st.integers(0, 1)),
            "correlationId": draw(st.integers(0, 9)), "globalPid": thread_id(draw(processes)),
            "shortName": draw(st.integers(3, 4)), "bytes": draw(st.none() | st.integers(0, 99)),
            "copyKind": draw(st.sampled_from((1, 2, 11, 12)))}  # fmt: skip


@st.composite
def calls(draw: Callable[..., Any]) -> Row:
    start, end = draw(span())
    return {"start": start, "end": draw(st.sampled_from((*(end,) * 5, None))), "nameId": draw(st.integers(0, 2)),
            "globalTid": thread_id(draw(processes), draw(threads)),
            "correlationId": draw(st.integers(0, 9))}  # fmt: skip


@st.composite
def ranges(draw: Callable[..., Any]) -> Row:
    start, end = draw(span())
    return {"start": start, "end": draw(st.sampled_from((*(end,) * 3, None))),
            "eventType": draw(st.sampled_from((59, 60))), "textId": draw(st.integers(5, 7)),
            "globalTid": thread_id(draw(processes), draw(threads)),
            "domainId": draw(st.integers(0, 2))}  # fmt: skip


tables = st.fixed_dictionaries({
    KERNEL: st.lists(kernels(), max_size=8), MEMCPY: st.lists(kernels(), max_size=4),
    RUNTIME: st.lists(calls(), max_size=8), "NVTX_EVENTS": st.lists(ranges(), max_size=8),
})  # fmt: skip


# ---------------------------------------------------------------------- the twin


def process(identifier: int) -> int:
    return (identifier >> 24) & 0xFFFFFF


def launch(op: Row, api: list[Row]) -> Row | None:
    same = (c for c in api if process(c["globalTid"]) == process(op["globalPid"]))
    return next((c for c in same if c["correlationId"] == op["correlationId"]), None)


def contains(range_: Row, call: Row | None) -> bool:
    if call is None or call["end"] is None or range_["end"] is None:
        return False
    same = call["globalTid"] == range_["globalTid"]
    return bool(same and range_["start"] <= call["start"] and call["end"] <= range_["end"])


def twin(found: dict[str, list[Row]]) -> dict[str, Any]:
    ops = found[KERNEL] + found[MEMCPY]
    linked = [(op, launch(op, found[RUNTIME])) for op in ops]
    owned = [[op for op, call in linked if contains(r, call)] for r in found["NVTX_EVENTS"]]
    busy = {}
    for device in {op["deviceId"] for op in ops}:
        mine = [op for op in ops if op["deviceId"] == device]
        busy[str(device)] = sum(any(op["start"] <= t < op["end"] for op in mine) for t in range(-40, 230))
    return {
        "launches": len(found[KERNEL]),
        "total_ns": sum(k["end"] - k["start"] for k in found[KERNEL]),
        "linked": sum(call is not None for _, call in linked),
        "busy": busy,
        "owned": [(len(o), sum(op["end"] - op["start"] for op in o)) for o in owned],
        "extent": [
            (min((op["start"] for op in o), default=None), max((op["end"] for op in o), default=None)) for o in owned
        ],
        "inside": sum(any(contains(r, call) for r in found["NVTX_EVENTS"]) for _, call in linked),
    }


def ours(recording: Recording) -> dict[str, Any]:
    summary = recording.summary()
    own = projection.owned(recording, recording.annotations)
    extent = zip(own.first_start.tolist(), own.last_end.tolist(), own.ops.tolist(), strict=True)
    return {
        "launches": int(recording.gpu.is_kernel.sum()),
        "total_ns": int(recording.gpu.ns[recording.gpu.is_kernel].sum()),
        "linked": int((recording.call_of >= 0).sum()),
        "busy": {d: t["busy_ns"] for d, t in (summary["gpu_time_by_device"] or {}).items()},
        "owned": list(zip(own.ops.tolist(), own.gpu_ns.tolist(), strict=True)),
        "extent": [(a, b) if n else (None, None) for a, b, n in extent],
        "inside": (summary["nvtx"]["gpu_ops_inside_a_range"] or 0) if len(recording.gpu) else 0,
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def fresh(folder: Path, suffix: str) -> Path:
    return folder / f"synthetic_{len(list(folder.iterdir()))}{suffix}"


# --------------------------------------------------------------------- the tests


@QUICK
@given(found=tables)
def test_an_export_counts_as_its_plain_twin(folder: Path, found: dict[str, list[Row]]) -> None:
    """Duplicate correlation ids across processes, calls and ranges without an end, negative starts, any overlap."""
    recording = read_nsys(write_nsys(fresh(folder, ".sqlite"), found, STRINGS))
    assert ours(recording) == twin(found)
    open_calls = any(c["end"] is None for c in found[RUNTIME])
    assert ("field_missing" in recording.refused) >= open_calls


@QUICK
@given(
    found=tables,
    gone=st.sets(st.sampled_from([KERNEL, MEMCPY, RUNTIME, "NVTX_EVENTS"])),
    column=st.sampled_from([(t, c) for t in (KERNEL, MEMCPY, RUNTIME, "NVTX_EVENTS") for c in COLUMNS[t]]),
    schema=st.sampled_from(["2.9.1", "3.25.0", "9.1", "later", None]),
)
def test_without_tables_or_a_column_it_refuses_or_counts_what_is_there(
    folder: Path, found: dict[str, list[Row]], gone: set[str], column: tuple[str, str], schema: str | None
) -> None:
    left = {t: rows for t, rows in found.items() if t not in gone}
    path = write_nsys(fresh(folder, ".sqlite"), left, STRINGS, schema=schema, without=[column])
    try:
        recording = read_nsys(path)
    except BadRecording as error:
        lost = column[0] in left and column[1] in str(error)
        nothing = schema is None and not left
        no_times = "has no start" in str(error)
        assert lost or nothing or no_times
        return
    summary = figures_of(recording)
    kernel_rows = left.get(KERNEL, [])
    assert summary["kernels"]["launches"] == (len(kernel_rows) or None)
    assert ("no_kernel_table" in summary["refusals"]) == (not kernel_rows)
    if "start" not in column and "end" not in column:
        assert ours_without_ranges(recording) == twin_without_ranges(found, left)
    if schema not in ("2.9.1", "3.25.0"):
        assert summary["warnings"]


def ours_without_ranges(recording: Recording) -> tuple[int, int]:
    return int((recording.call_of >= 0).sum()), int(recording.gpu.ns.sum())


def twin_without_ranges(found: dict[str, list[Row]], left: dict[str, list[Row]]) -> tuple[int, int]:
    whole = {t: left.get(t, []) for t in found}
    ops = whole[KERNEL] + whole[MEMCPY]
    return twin(whole)["linked"], sum(op["end"] - op["start"] for op in ops)


@QUICK
@given(
    found=tables, table=st.sampled_from([KERNEL, RUNTIME, "NVTX_EVENTS"]), at=st.integers(0, 7),
    value=st.sampled_from([None, "word", 1.5, b"\x00\xff"]), data=st.data(),
)  # fmt: skip
def test_a_spoiled_cell_is_refused_or_flagged(
    folder: Path, found: dict[str, list[Row]], table: str, at: int, value: Any, data: st.DataObject
) -> None:
    if at >= len(found[table]):
        return
    columns = [c for c in COLUMNS[table] if c in found[table][at] and c not in ("shortName", "nameId", "textId")]
    column = data.draw(st.sampled_from(columns))
    found[table][at][column] = value
    path = write_nsys(fresh(folder, ".sqlite"), found, STRINGS)
    allowed = value is None and (table, column) in {
        (RUNTIME, "end"), ("NVTX_EVENTS", "end"), ("NVTX_EVENTS", "domainId"), (KERNEL, "bytes"), (KERNEL, "copyKind"),
    }  # fmt: skip
    if table == KERNEL and column in ("bytes", "copyKind"):
        return  # no columns of this table
    if allowed:
        assert ours(read_nsys(path)) == twin(found)
        return
    with pytest.raises(BadRecording) as caught:
        read_nsys(path)
    assert table in str(caught.value)


def kineto_events(found: dict[str, list[Row]]) -> list[Row]:
    """The same recording as the profiler would write it, in whole and broken microseconds."""

    def event(cat: str, row: Row, name: str, **args: Any) -> Row:
        start, width = row["start"], row["end"] - row["start"]
        ts = start // 1000 if start % 1000 == 0 else start / 1000
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": width / 1000, "pid": 1,
                "tid": row.get("globalTid", 0) & 0xFFFFFF, "args": args}  # fmt: skip

    out = [event("kernel", k, STRINGS[k["shortName"]], device=k["deviceId"], correlation=k["correlationId"])
           for k in found[KERNEL]]  # fmt: skip
    out += [
        event("gpu_memcpy", k, "Memcpy", device=k["deviceId"], correlation=k["correlationId"]) for k in found[MEMCPY]
    ]
    out += [event("cuda_runtime", c, STRINGS[c["nameId"]], correlation=c["correlationId"]) for c in found[RUNTIME]]
    return out + [event("user_annotation", r, STRINGS[r["textId"]]) for r in found["NVTX_EVENTS"]]


def one_process(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Kineto records one process, and only what ended."""
    out: dict[str, list[Row]] = {}
    for table, rows in found.items():
        ended = [dict(row) for row in rows if row["end"] is not None]
        for row in ended:
            for key in ("globalPid", "globalTid"):
                if key in row:
                    row[key] = thread_id(1, row[key] & 0xFFFFFF)
        out[table] = ended
    return out


@QUICK
@given(found=tables, piece=st.integers(1, 3000), indent=st.sampled_from([None, 1]))
def test_kineto_counts_as_the_plain_twin_in_pieces_of_any_size(
    folder: Path, found: dict[str, list[Row]], piece: int, indent: int | None
) -> None:
    found = one_process(found)
    if not any(found.values()):
        return
    path = fresh(folder, ".json")
    path.write_text(json.dumps({"traceEvents": kineto_events(found), "traceName": "]}, {"}, indent=indent))
    recording = read_kineto(path, piece)
    expected, own = twin(found), projection.owned(recording, recording.annotations)
    assert list(zip(own.ops.tolist(), own.gpu_ns.tolist(), strict=True)) == expected["owned"]
    assert int((recording.call_of >= 0).sum()) == expected["linked"]
    summary = recording.summary()
    assert (summary["kernels"]["launches"] or 0) == expected["launches"]
    assert {d: t["busy_ns"] for d, t in (summary["gpu_time_by_device"] or {}).items()} == expected["busy"]


@QUICK
@given(
    at=st.integers(0, 80),
    field=st.sampled_from(["ts", "dur", "name", "cat", "ph", "pid", "tid", "args", "correlation"]),
    value=st.sampled_from([None, "word", 1.5, -3, [], [1], {}, {"a": 1}, 2**70, True]),
    piece=st.sampled_from([60, 10**6]),
)  # fmt: skip
def test_a_spoiled_kineto_event_is_refused_or_loses_itself_only(
    folder: Path, at: int, field: str, value: Any, piece: int
) -> None:
    events = kineto_events(SAMPLE)
    before, event = twin(SAMPLE), events[at]
    (event["args"] if field == "correlation" else event)[field] = value
    path = fresh(folder, ".json")
    path.write_text(json.dumps({"traceEvents": events}))
    try:
        summary = figures_of(read_kineto(path, piece))
    except BadRecording:
        return
    lost = int(field in ("ph", "cat") and at < len(SAMPLE[KERNEL]))
    assert summary["kernels"]["launches"] == before["launches"] - lost
    if field not in ("ts", "dur"):
        assert summary["kernels"]["total_ns"] == before["total_ns"] - 50 * lost


ME = thread_id(1, 1)
SAMPLE: dict[str, list[Row]] = {
    KERNEL: [{"start": 100 * i, "end": 100 * i + 50, "deviceId": 0, "correlationId": i, "globalPid": thread_id(1),
              "shortName": 3} for i in range(40)],
    MEMCPY: [],
    RUNTIME: [{"start": 100 * i - 50, "end": 100 * i - 40, "globalTid": ME, "correlationId": i, "nameId": 0}
              for i in range(40)],
    "NVTX_EVENTS": [{"start": 0, "end": 2000, "eventType": 59, "textId": 5, "globalTid": ME, "domainId": 0}],
}  # fmt: skip


@QUICK
@given(share=st.floats(0, 1, exclude_max=True), piece=st.sampled_from([50, 1000, 10**6]), packed=st.booleans())
def test_kineto_cut_anywhere_is_refused(folder: Path, share: float, piece: int, packed: bool) -> None:
    text = json.dumps({"traceEvents": kineto_events(SAMPLE)}).encode()
    raw = gzip.compress(text, mtime=0) if packed else text
    path = fresh(folder, ".json.gz" if packed else ".json")
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(BadRecording):
        read_kineto(path, piece)


@QUICK
@given(share=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_an_export_cut_anywhere_is_refused(folder: Path, share: float, packed: bool) -> None:
    path = write_nsys(fresh(folder, ".sqlite"), SAMPLE, STRINGS)
    raw = gzip.compress(path.read_bytes(), mtime=0) if packed else path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(BadRecording):
        read_nsys(path)


@QUICK
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@example(at=0.13301206603494786, byte=76)
def test_a_flipped_byte_of_an_export_never_escapes_as_another_error(folder: Path, at: float, byte: int) -> None:
    """Data bytes have no checksum, so the count may be that of the changed file; it is SQLite's count of it.

    A table whose type a flip has changed is none.
    """
    path = write_nsys(fresh(folder, ".sqlite"), SAMPLE, STRINGS)
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] = byte
    path.write_bytes(raw)
    try:
        recording = read_nsys(path)
        summary = recording.summary()
    except BadRecording:
        return
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    held = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    count = connection.execute(f"SELECT count(*) FROM {KERNEL}").fetchone()[0] if KERNEL in held else None
    connection.close()
    assert summary["kernels"]["launches"] == (count or None)


@QUICK
@given(found=st.lists(span(), max_size=12), wanted=st.lists(span(), max_size=12))
def test_innermost_and_parents_are_those_of_a_plain_search(
    found: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    columns = [np.array([s[i] for s in group], np.int64) for group in (found, wanted) for i in (0, 1)]
    order = sorted(range(len(found)), key=lambda i: (found[i][0], -found[i][1]))

    def last(start: int, end: int, below: int) -> int:
        held = [i for n, i in enumerate(order) if n < below and found[i][0] <= start and end <= found[i][1]]
        return held[-1] if held else -1

    assert innermost(*columns).tolist() == [last(a, c, len(order)) for a, c in wanted]
    outer = parents(*columns[:2]).tolist()
    for n, i in enumerate(order):
        if found[i][0] < found[i][1] or outer[i] < 0:
            # an empty range at the end of another one lies beside it
            assert outer[i] == last(*found[i], n) or found[i][0] == found[i][1]
        else:
            assert found[outer[i]][0] <= found[i][0] <= found[i][1] <= found[outer[i]][1]
