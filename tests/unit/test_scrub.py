"""`ctrbench scrub`: nothing private is left, and the figures are those of the input; all files here are synthetic."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.data.synthetic_ncu import METRIC, WHO, counters, line, long_form, raw_form, who
from tests.data.synthetic_nsys import FOREIGN_RANGE, OWN_RANGE, SECRETS, write_nsys

from ctrbench.bench.cli import main
from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.ncu import read_ncu
from ctrbench.bench.trace.scrub import scrub

USER, HOME, HOST, TOKEN, FLAG, WORD = SECRETS


def content(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def assert_no_secret(path: Path) -> None:
    found = content(path)
    for secret in SECRETS:
        for form in (secret.encode(), secret.encode("utf-16-le"), json.dumps(secret)[1:-1].encode()):
            assert form not in found, secret


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


# ---------------------------------------------------------------------- nsys


def test_the_synthetic_export_does_hold_every_secret(tmp_path: Path) -> None:
    raw = write_nsys(tmp_path / "in.sqlite").read_bytes()
    assert all(secret.encode() in raw for secret in SECRETS)
    assert raw.count(TOKEN.encode()) > 100, "free pages"


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_nsys_secrets_are_gone_and_figures_stay(tmp_path: Path, redact: bool, packed: bool) -> None:
    source = write_nsys(tmp_path / "in.sqlite")
    out = tmp_path / ("out.sqlite.gz" if packed else "out.sqlite")
    scrub(source, out, redact)
    assert_no_secret(out)
    plain = tmp_path / "plain.sqlite"
    plain.write_bytes(content(out))
    for query in (
        "SELECT start, end, deviceId, streamId, correlationId, globalPid, graphNodeId FROM CUPTI_ACTIVITY_KIND_KERNEL",
        "SELECT start, end, globalTid, correlationId, nameId FROM CUPTI_ACTIVITY_KIND_RUNTIME",
        "SELECT start, end, bytes, copyKind FROM CUPTI_ACTIVITY_KIND_MEMCPY",
        "SELECT start, end, eventType, textId, globalTid, domainId, int64Value, doubleValue FROM NVTX_EVENTS",
        "SELECT name, memoryBandwidth, smCount FROM TARGET_INFO_GPU",
        "SELECT value FROM StringIds WHERE id IN (1, 2, 3)",
        "SELECT text FROM NVTX_EVENTS WHERE eventType = 75",
        "SELECT text FROM DIAGNOSTIC_EVENT WHERE timestamp = 1",
        "SELECT value FROM META_DATA_EXPORT WHERE name = 'EXPORT_SCHEMA_VERSION'",
    ):
        assert rows(plain, query) == rows(source, query), query
    assert rows(plain, "SELECT value FROM StringIds WHERE id > 3") == [("redacted",)] * 3
    assert rows(plain, "PRAGMA freelist_count") == [(0,)]
    assert rows(plain, "PRAGMA integrity_check") == [("ok",)]


def test_nsys_range_names_are_kept_or_hashed(tmp_path: Path) -> None:
    source = write_nsys(tmp_path / "in.sqlite")
    scrub(source, tmp_path / "kept.sqlite")
    assert rows(tmp_path / "kept.sqlite", "SELECT text FROM NVTX_EVENTS WHERE eventType = 59") == [(FOREIGN_RANGE,)]
    dropped = scrub(source, tmp_path / "hashed.sqlite", redact_names=True)
    ((name,),) = rows(tmp_path / "hashed.sqlite", "SELECT text FROM NVTX_EVENTS WHERE eventType = 59")
    assert name.startswith("range-")
    assert FOREIGN_RANGE.encode() not in content(tmp_path / "hashed.sqlite")
    assert rows(tmp_path / "hashed.sqlite", "SELECT value FROM StringIds WHERE id = 3") == [(OWN_RANGE,)]
    assert dropped.counts["range names (hashed)"] == 1


def test_nsys_registered_names_outside_our_domain_are_hashed(tmp_path: Path) -> None:
    source = write_nsys(tmp_path / "in.sqlite")
    with closing(sqlite3.connect(source)) as db:
        db.execute("INSERT INTO StringIds VALUES (9, 'secret plan')")
        db.execute("INSERT INTO NVTX_EVENTS (start, end, eventType, textId, domainId) VALUES (1, 2, 59, 9, 0)")
        db.commit()
    scrub(source, tmp_path / "out.sqlite", redact_names=True)
    assert b"secret plan" not in content(tmp_path / "out.sqlite")
    assert rows(tmp_path / "out.sqlite", "SELECT value FROM StringIds WHERE id = 9")[0][0].startswith("range-")


def test_nsys_account_names_tables_and_columns(tmp_path: Path) -> None:
    counts = scrub(write_nsys(tmp_path / "in.sqlite"), tmp_path / "out.sqlite").counts
    assert counts["table META_DATA_CAPTURE"] == 2
    assert counts["table SOME_TABLE_OF_A_LATER_VERSION"] == 1
    assert counts["NVTX_EVENTS.text"] == 1
    assert counts["PROCESSES.name"] == 2
    assert counts["CUPTI_ACTIVITY_KIND_KERNEL.someLaterColumn"] == 1
    assert counts["StringIds.value"] == 3


# -------------------------------------------------------------------- kineto


def kineto(path: Path) -> Path:
    """Two operators, a kernel, a range; secrets in every text."""
    common = {"pid": 4242, "tid": 7}
    args = {"External id": 1, "correlation": 5, "Module Hierarchy": HOME, "Call stack": f"{HOME}/train.py(3): main"}
    who = {"ph": "M", "pid": 4242, "tid": 0, "ts": 0}
    events: list[dict[str, Any]] = [
        who | {"name": "process_name", "args": {"name": f"python {FLAG}"}},
        who | {"name": "process_labels", "args": {"labels": "CPU"}},
        who | {"name": "thread_name", "args": {"name": f"thread 7 ({USER})"}},
        who | {"name": USER, "args": {USER: TOKEN, "note": HOST}},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1.5, "dur": 8.25, **common, "args": args | {
            "Input Dims": [[4, 8], [8, 2]], "Input type": ["float", "float"], "Concrete Inputs": ["1", HOME, "[2, 3]"],
        }},
        {"ph": "X", "cat": "user_annotation", "name": FOREIGN_RANGE, "ts": 1, "dur": 20, **common, "args": {}},
        {"ph": "X", "cat": "user_annotation", "name": "ctrbench/stage:dense", "ts": 1, "dur": 20, **common, "args": {}},
        {"ph": "X", "cat": "python_function", "name": f"{HOME}/a.py(3): f", "ts": 1, "dur": 9, **common, "args": {}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 3, "dur": 2, **common, "args": args},
        {"ph": "X", "cat": "cuda_runtime", "name": f"{HOME}!", "ts": 3, "dur": 2, **common, "args": {"file": HOME}},
        {"ph": "X", "cat": "kernel", "name": "gemm_kernel", "ts": 9, "dur": 4, "pid": 0, "tid": 7, "args": {
            "device": 0, "stream": 7, "correlation": 5, "grid": [1, 1, 1], "kernel_file": HOME, TOKEN: 5, WORD: 5,
        }, "extra": HOST},
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 5, "ts": 3, **common},
        {"ph": "i", "cat": USER, "name": HOST, "s": "g", "ts": 1, "pid": f"host {HOST}", "tid": HOME},
    ]  # fmt: skip
    body = {
        "schemaVersion": 1, "traceName": f"{HOME}/trace.json", "hostname": HOST, USER: 1, WORD: 1,
        "displayTimeUnit": "ms",
        "deviceProperties": [{"id": 0, "name": "Tesla T4", "numSms": 40, "uuid": f"GPU-{TOKEN}", WORD: 5}],
        "distributedInfo": {"backend": "nccl", "rank": 0, "world_size": 2, "master": HOST},
        "environment": {"TOKEN": TOKEN}, "traceEvents": events,
    }  # fmt: skip
    path.write_text(json.dumps(body))
    return path


@pytest.mark.parametrize("redact", [False, True])
def test_kineto_secrets_are_gone_and_figures_stay(tmp_path: Path, redact: bool) -> None:
    source = kineto(tmp_path / "in.json")
    assert all(secret.encode() in source.read_bytes() for secret in SECRETS)
    dropped = scrub(source, tmp_path / "out.json.gz", redact)
    assert_no_secret(tmp_path / "out.json.gz")
    before, after = read_kineto(source).summary(), read_kineto(tmp_path / "out.json.gz").summary()
    assert before.pop("distributed") == {"backend": "nccl", "rank": 0, "world_size": 2, "master": HOST}
    assert after.pop("distributed") == {"backend": "nccl", "rank": 0, "world_size": 2}
    hashed = [summary["user_annotations"].pop("by_name") for summary in (before, after)]
    for summary in (before, after):
        del summary["sha256"], summary["size"], summary["user_annotations"]["top12"]
    assert before == after
    assert list(hashed[0].values()) == list(hashed[1].values())
    assert (FOREIGN_RANGE in hashed[1]) == (not redact)
    assert "ctrbench/stage:dense" in hashed[1]
    assert dropped.counts["names of python_function"] == 1


def test_kineto_that_is_a_bare_list_stays_one(tmp_path: Path) -> None:
    events = json.loads(kineto(tmp_path / "in.json").read_text())["traceEvents"]
    (tmp_path / "list.json").write_text(json.dumps(events))
    scrub(tmp_path / "list.json", tmp_path / "out.json")
    assert isinstance(json.loads((tmp_path / "out.json").read_bytes()), list)
    assert_no_secret(tmp_path / "out.json")


# ----------------------------------------------------------------------- ncu


def ncu(path: Path, raw: bool) -> Path:
    """A table with the program's output above it and a line of the log below."""
    text = (raw_form if raw else long_form)([counters(), counters()])
    text = text.replace('"python"', f'"{HOME}/bin/python"').replace('"127.0.0.1"', f'"{HOST}"')
    head = f"==PROF== Connected to process 1 ({HOME})\n{USER} logged in with {TOKEN} {FLAG} {WORD}\n"
    path.write_text(head + text + f"==PROF== Report: {HOME}/x.ncu-rep\n")
    return path


@pytest.mark.parametrize("raw", [False, True])
def test_ncu_secrets_are_gone_and_figures_stay(tmp_path: Path, raw: bool) -> None:
    source = ncu(tmp_path / "in.csv", raw)
    dropped = scrub(source, tmp_path / "out.csv")
    assert_no_secret(tmp_path / "out.csv")
    before, after = read_ncu(source), read_ncu(tmp_path / "out.csv")
    assert before.figures == after.figures
    assert before.launches == after.launches
    assert before.facts | {"lines_before_header": 0} == after.facts
    assert dropped.counts["lines before the header"] == 2
    assert dropped.counts["lines of the log below the header"] == 1


def test_ncu_texts_of_unknown_metrics_and_columns_go(tmp_path: Path) -> None:
    secret = counters() | {"profiler__source_path": ("", HOME), "profiler__user": (USER, "5")}
    for name, text in {
        "long.csv": long_form([secret]),
        "raw.csv": raw_form([secret]),
        "unknown.csv": line((*WHO, *METRIC, WORD)) + line((*who(0), "s", "a__b", "", "5", TOKEN)),
    }.items():
        (tmp_path / name).write_text(text)
        scrub(tmp_path / name, tmp_path / f"out-{name}")
        found = content(tmp_path / f"out-{name}").decode()
        assert HOME not in found
        assert TOKEN not in found
        assert WORD not in found
        assert read_ncu(tmp_path / name).figures == read_ncu(tmp_path / f"out-{name}").figures


def test_ncu_rows_of_the_table_are_byte_for_byte_those_of_the_input(tmp_path: Path) -> None:
    text = long_form([counters()]).replace('"python"', '"redacted"').replace('"127.0.0.1"', '"redacted"')
    text = text.replace("\n", "\r\n").replace('"gemm(float *, int)"', '"a ""quoted"", name"')
    (tmp_path / "in.csv").write_bytes(text.encode())
    scrub(tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == text.encode()


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["x.ncu-rep", "x.nsys-rep"])
def test_closed_formats_are_refused_with_what_to_share_instead(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"NVR\x00" + bytes(100))
    with pytest.raises(BadRecording, match=r"closed format.*nsys export"):
        scrub(tmp_path / name, tmp_path / "out")
    assert os.listdir(tmp_path) == [name]


def test_input_and_existing_files_are_never_written(tmp_path: Path) -> None:
    source = kineto(tmp_path / "in.json")
    before = source.read_bytes()
    (tmp_path / "link.json").symlink_to(source)
    (tmp_path / "hard.json").hardlink_to(source)
    (tmp_path / "other.json").write_text("kept")
    for out, why in (
        ("in.json", "is the input"),
        ("link.json", "is the input"),
        ("hard.json", "is the input"),
        ("other.json", "exists"),
    ):
        with pytest.raises(BadRecording, match=why):
            scrub(source, tmp_path / out)
    assert source.read_bytes() == before
    assert (tmp_path / "other.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"hello", "no export of Nsight Systems"), (b"{}", "without `traceEvents`"),
        (b'{"traceEvents": [', "no whole JSON"),
        (b"SQLite format 3\x00" + bytes(200), "damaged|without a table"), (b"\x1f\x8b\x08\x00", "gzip"),
        (b"==ERROR== ERR_NVGPUCTRPERM\n", "no export of Nsight Systems"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused_and_leaves_nothing(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "in").write_bytes(raw)
    with pytest.raises(BadRecording, match=message):
        scrub(tmp_path / "in", tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]


def test_cut_export_is_refused(tmp_path: Path) -> None:
    raw = write_nsys(tmp_path / "whole.sqlite").read_bytes()
    (tmp_path / "cut.sqlite").write_bytes(raw[: len(raw) // 3])
    with pytest.raises(BadRecording, match="damaged or cut"):
        scrub(tmp_path / "cut.sqlite", tmp_path / "out.sqlite")
    assert not (tmp_path / "out.sqlite").exists()


def test_command_prints_what_was_dropped_and_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_nsys(tmp_path / "in.sqlite")
    assert main(["scrub", str(source), "-o", str(tmp_path / "a.sqlite")]) == 0
    shown = capsys.readouterr().out
    assert "table META_DATA_CAPTURE" in shown
    assert "--redact-names" in shown
    assert not any(secret in shown for secret in SECRETS)
    assert main(["scrub", str(source), "-o", str(tmp_path / "b.sqlite"), "--redact-names"]) == 0
    assert "hashed" in capsys.readouterr().out
    assert main(["scrub", str(source), "-o", str(source)]) == 2
    assert "is the input" in capsys.readouterr().err


def test_the_domain_is_that_of_our_ranges() -> None:
    from ctrbench.bench.trace import nvtx, scrub_account

    assert scrub_account.DOMAIN == nvtx.DOMAIN
