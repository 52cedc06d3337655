"""Scrubs the CSV of Nsight Compute: program output goes, who and where become `redacted`, the table stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.ncu_csv import IDENTITY, METRIC, RULE, decode, split_table
from ctrbench.bench.trace.ncu_ranges import COLUMN
from ctrbench.bench.trace.ncu_units import BadNumber, number
from ctrbench.bench.trace.scrub_account import REDACTED, Dropped

_REDACTED = {"Process Name", "Host Name"}
_KEPT = IDENTITY | {*METRIC, *RULE}
_METRIC_NAME = re.compile(r"[a-z0-9]+__[a-z0-9_.]+|(pmsampling|group|breakdown|smsp|sm):[a-z0-9_.:]+")
_TEXT_METRICS = {"device__attribute_display_name", "launch__func_cache_config", "Function Cache Configuration"}
"""Metrics whose value is a word that says nothing of a person or a place."""
_UNIT = re.compile(
    r"[KMGT]?(byte|bit|hz|inst|cycle|sector|request|block|thread|warp|s|ns|us|ms|[num]?second|%)(/[a-z]+)?"
)
_CELL = re.compile(r'"(?:[^"]|"")*"|[^,]*')


def scrub_ncu(source: Path, raw: bytes, out: Path, dropped: Dropped) -> None:
    """Writes the table alone.

    Raises:
        BadRecording: no table of ncu in the file.
    """
    head, body = split_table(decode(raw))
    if body is None:
        raise BadRecording(f"{source}: no table of Nsight Compute to share; nothing written")
    dropped.add("lines before the header", len(head))
    records = _records(body)
    first = next(records)
    header = [_plain(cell) for cell in _cells(first)]
    lines = [_header(header, first, dropped)]
    for record in records:
        if not record.startswith('"') and not record[:1].isdigit() and not record.startswith(","):
            dropped.add("lines of the log below the header", 1 if record.strip() else 0)
            continue
        lines.append(_row(header, record, dropped))
    out.write_bytes("".join(lines).encode())


def _header(header: list[str], record: str, dropped: Dropped) -> str:
    """The header; names of columns that ncu does not have may be anybody's words."""
    cells = _cells(record)
    for i, name in enumerate(header):
        if name not in _KEPT and not _METRIC_NAME.fullmatch(name) and not COLUMN.fullmatch(name):
            cells[i] = f'"{REDACTED} {i}"'
            dropped.add("names of unknown columns")
    return ",".join(cells) + record[len(record.rstrip("\r\n")) :]


def _records(body: str) -> Iterator[str]:
    """Rows with their line ends; a quoted cell may hold line ends."""
    held = ""
    for line in body.splitlines(keepends=True):
        held += line
        if held.count('"') % 2 == 0:
            yield held
            held = ""
    if held:
        yield held


def _cells(record: str) -> list[str]:
    """Cells as they are written, quotes included."""
    text, at, cells = record.rstrip("\r\n"), 0, []
    while True:
        found = _CELL.match(text, at)
        at = found.end() if found else len(text)
        cells.append(found.group() if found else "")
        if at >= len(text):
            return cells
        at += 1
        if at == len(text):
            return [*cells, ""]


def _plain(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _row(header: list[str], record: str, dropped: Dropped) -> str:
    cells = _cells(record)
    if record.rstrip("\r\n") != ",".join(cells):
        raise BadRecording("a row of the table is damaged: quotes inside a cell; record it again, nothing written")
    plain = [_plain(cell) for cell in cells]
    name_at = header.index("Metric Name") if "Metric Name" in header else -1
    metric = plain[name_at] if 0 <= name_at < len(plain) else ""
    for i, value in enumerate(plain):
        column = header[i] if i < len(header) else "(no column)"
        fit = _fit(column, value, metric, dropped)
        if fit != value:
            cells[i] = f'"{fit}"'
    return ",".join(cells) + record[len(record.rstrip("\r\n")) :]


def _fit(column: str, value: str, metric: str, dropped: Dropped) -> str:
    """The value of a cell as it may be shared."""
    if value in ("", REDACTED):
        return value
    if COLUMN.fullmatch(column) and not dropped.redact_names:
        return value
    if column in _KEPT and column not in _REDACTED and (column != "Metric Value" or _harmless(metric, value)):
        return value
    if _METRIC_NAME.fullmatch(column) and _harmless(column, value):
        return value
    dropped.add(f"column {column if column in _KEPT or _METRIC_NAME.fullmatch(column) else '(unknown)'}")
    return REDACTED


def _harmless(metric: str, value: str) -> bool:
    """A number, its unit, or the text of a metric known to describe hardware."""
    try:
        return not isinstance(number(value), str) or metric in _TEXT_METRICS or bool(_UNIT.fullmatch(value))
    except BadNumber:
        return True
