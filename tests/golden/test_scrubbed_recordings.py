"""The kept recordings, scrubbed: every row and figure of a reader is that of the input (../shared/traces)."""

from __future__ import annotations

import gzip
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.ncu import read_ncu
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.scrub import scrub

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "traces"
pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="../shared/traces is not beside this checkout")
NSYS = (
    "t4_power_iteration", "rtx3080_two_kernels", "rtx5060ti_no_kernel_table", "a100_saxpy_mpi",
    "h100x2_one_second_window",
)  # fmt: skip
KINETO = ("h100_bert_small", "a100_recsys_train", "v100_recsys_train_graphs", "mi250_toy_train", "recsys_sampled_ops")
NCU = ("t4_copy_blocked.csv", "rtx5070_saxpy.csv", "rtx5070_gemm_tiled.csv")
MEASURED = re.compile(
    r"CUPTI_ACTIVITY_KIND_(KERNEL|RUNTIME|MEMCPY|MEMSET|SYNCHRONIZATION|CUDA_EVENT|OVERHEAD)|OSRT_API"
)


def unpacked(source: Path, out: Path) -> sqlite3.Connection:
    out.write_bytes(gzip.decompress(source.read_bytes()))
    return sqlite3.connect(f"file:{out}?mode=ro", uri=True)


def names(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def joined(db: sqlite3.Connection, table: str, column: str) -> list[Any]:
    """What a reader makes of a name's id."""
    query = f"SELECT value FROM {table} LEFT JOIN StringIds ON {table}.{column} = StringIds.id ORDER BY {table}.rowid"
    return db.execute(query).fetchall()


@contextmanager
def scrubbed(file: str, tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    """An export before and after."""
    source = TRACES / "nsys" / f"{file}.sqlite.gz"
    scrub(source, tmp_path / "out.sqlite.gz")
    with (
        closing(unpacked(source, tmp_path / "before.sqlite")) as before,
        closing(unpacked(tmp_path / "out.sqlite.gz", tmp_path / "after.sqlite")) as after,
    ):
        yield before, after


@pytest.mark.parametrize("file", NSYS)
def test_nsys_rows_and_names(file: str, tmp_path: Path) -> None:
    with scrubbed(file, tmp_path) as (before, after):
        measured = {table for table in names(before) if MEASURED.fullmatch(table)}
        assert measured <= names(after)
        assert measured
        for table in measured:
            query = f"SELECT * FROM {table} ORDER BY rowid"
            assert after.execute(query).fetchall() == before.execute(query).fetchall(), table
        for table, column in (("CUPTI_ACTIVITY_KIND_KERNEL", "shortName"), ("CUPTI_ACTIVITY_KIND_RUNTIME", "nameId")):
            if table in measured:
                assert joined(after, table, column) == joined(before, table, column)
        if "NVTX_EVENTS" in names(before):
            columns = "start, end, eventType, globalTid, domainId, textId, int64Value, uint64Value, doubleValue"
            kept = f"SELECT {columns} FROM NVTX_EVENTS ORDER BY rowid"
            assert after.execute(kept).fetchall() == before.execute(kept).fetchall()
            texts = "SELECT text FROM NVTX_EVENTS WHERE eventType != 39 ORDER BY rowid"
            assert after.execute(texts).fetchall() == before.execute(texts).fetchall()
            assert joined(after, "NVTX_EVENTS", "textId") == joined(before, "NVTX_EVENTS", "textId")


@pytest.mark.parametrize("file", NSYS)
def test_nsys_device_schema_and_integrity_counts(file: str, tmp_path: Path) -> None:
    with scrubbed(file, tmp_path) as (before, after):
        meta = "EXPORT_META_DATA" if "EXPORT_META_DATA" in names(before) else "META_DATA_EXPORT"
        queries = [f"SELECT name, value FROM {meta} WHERE name LIKE 'EXPORT_SCHEMA_VERSION%'"]
        if "TARGET_INFO_GPU" in names(before):
            queries.append("SELECT name, smCount, memoryBandwidth, l2CacheSize, totalMemory FROM TARGET_INFO_GPU")
        if "DIAGNOSTIC_EVENT" in names(before):
            like = "text LIKE '%events collected:%' OR text LIKE '%is not supported by this build%'"
            queries.append(f"SELECT text FROM DIAGNOSTIC_EVENT WHERE {like}")
        for query in queries:
            assert after.execute(query).fetchall() == before.execute(query).fetchall()
        assert after.execute("PRAGMA freelist_count").fetchone() == (0,)
        # what the input still tells of the machine it was made on
        assert not {"TARGET_INFO_SYSTEM_ENV", "META_DATA_CAPTURE", "ProcessStreams", "ANALYSIS_FILE"} & names(after)


@pytest.mark.parametrize("file", NSYS)
def test_nsys_figures(file: str, tmp_path: Path) -> None:
    source = TRACES / "nsys" / f"{file}.sqlite.gz"
    scrub(source, tmp_path / "out.sqlite.gz")
    before, after = read_nsys(source).summary(), read_nsys(tmp_path / "out.sqlite.gz").summary()
    # the inventory of tables and the tool's messages are what scrubbing takes away
    lost = ("sha256", "size", "tables", "enum_tables", "diagnostics", "rows")
    for summary in (before, after):
        (summary.get("nvtx") or {}).pop("named_threads", None)  # may name a host or a user: redacted
    assert without(after, *lost) == without(before, *lost)


def without(summary: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k not in keys}


@pytest.mark.parametrize("file", KINETO)
def test_kineto_figures(file: str, tmp_path: Path) -> None:
    source = TRACES / "kineto" / f"{file}.json.gz"
    scrub(source, tmp_path / "out.json.gz")
    before, after = read_kineto(source).summary(), read_kineto(tmp_path / "out.json.gz").summary()
    assert without(after, "sha256", "size") == without(before, "sha256", "size")
    text = gzip.decompress((tmp_path / "out.json.gz").read_bytes())
    assert b".py(" not in text, "source paths of python_function"
    assert b"python3" not in text, "process names"
    assert b"traceName" not in text


@pytest.mark.parametrize("file", NCU)
def test_ncu_figures(file: str, tmp_path: Path) -> None:
    source = TRACES / "ncu" / file
    scrub(source, tmp_path / "out.csv")
    before, after = read_ncu(source), read_ncu(tmp_path / "out.csv")
    assert after.summary() == before.summary() | {"lines_before_header": 0}
    text = (tmp_path / "out.csv").read_text()
    assert not any(word in text for word in ("127.0.0.1", "roofline_profiler.exe", "python3.11", "C:\\work"))
    assert text.count("\n") == source.read_bytes().count(b"\n") - before.facts["lines_before_header"]


def test_report_files_are_refused(tmp_path: Path) -> None:
    for source in (TRACES / "ncu").glob("*.ncu-rep"):
        with pytest.raises(BadRecording, match="closed format"):
            scrub(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
