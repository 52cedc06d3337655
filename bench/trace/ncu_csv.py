"""Reads the CSV of Nsight Compute (measures.md section 11): details page, a row a metric; raw page, a row a launch."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.commands import NO_PERMISSION, PERMISSION_HELP
from ctrbench.bench.trace.ncu_launch import Metric, NcuLaunch
from ctrbench.bench.trace.ncu_ranges import COLUMN, ranges_of
from ctrbench.bench.trace.ncu_table import NcuReport
from ctrbench.bench.trace.ncu_units import BadNumber, number, to_base, wrong_locale

IDENTITY = {
    "ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
    "Device", "CC",
}  # fmt: skip
METRIC = ("Section Name", "Metric Name", "Metric Unit", "Metric Value")
RULE = ("Rule Name", "Rule Type", "Rule Description", "Estimated Speedup Type", "Estimated Speedup")
_LOCALE = "record it again with LC_ALL=C and --print-units base"


@dataclass
class _Table:
    """What has been read so far."""

    path: str
    header: list[str]
    first_line: int
    launches: dict[str, NcuLaunch] = field(default_factory=dict)
    identity: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sections: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    rule_rows: int = 0
    scaled: set[str] = field(default_factory=set)
    partial: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def error(self, line: int, text: str) -> BadRecording:
        return BadRecording(f"{self.path}:{line}: {text}")

    def launch(self, row: dict[str, str], line: int) -> NcuLaunch:
        """The launch of a row, made on its first row."""
        name = row.get("ID", "")
        identity = tuple(row.get(c, "") for c in ("Process ID", "Kernel Name", "Grid Size", "Block Size", "Stream"))
        if not name or "Kernel Name" not in row:
            raise self.error(line, "a row without ID or Kernel Name; record it again")
        if self.identity.setdefault(name, identity) != identity:
            raise self.error(line, f"launch {name} is two different kernels: two runs in one file; give one file a run")
        if name not in self.launches:
            self.launches[name] = NcuLaunch(
                id=name, process=row.get("Process ID"), kernel=row["Kernel Name"], context=row.get("Context"),
                stream=row.get("Stream"), grid=_size(row.get("Grid Size")), block=_size(row.get("Block Size")),
                device_index=row.get("Device"), cc=row.get("CC"), metrics={},
                ranges=tuple(r for c in self.header if COLUMN.fullmatch(c) for r in ranges_of(row.get(c, ""))),
            )  # fmt: skip
        return self.launches[name]

    def store(self, launch: NcuLaunch, key: tuple[str, str], unit: str, text: str, line: int) -> None:
        """Adds a metric.

        Raises:
            BadRecording: not a number in this locale, or a second, different value of the same metric.
        """
        try:
            value = number(text)
        except BadNumber as error:
            raise self.error(line, f"{key[1]}: {error}; {_LOCALE}") from None
        if value is None or isinstance(value, str):
            metric = Metric(value, unit)
        else:
            base, unit_, scaled = to_base(value, unit)
            metric = Metric(base, unit_)
            if scaled:
                self.scaled.add(unit)
        if launch.metrics.setdefault(key, metric) != metric:
            raise self.error(line, f"launch {launch.id}: {' / '.join(filter(None, key))} has two different values")


def read_csv(path: str, raw: bytes) -> NcuReport:
    """The report in the bytes of a file, decompressed.

    Raises:
        BadRecording: no table of ncu, a damaged row, or numbers whose locale is not certain.
    """
    text = decode(raw)
    head, body = split_table(text)
    refused = [PERMISSION_HELP] if any(NO_PERMISSION in line for line in head) else []
    if body is None:
        if refused:
            return NcuReport(path=path, format="ncu-csv", launches=(), refusals=tuple(refused))
        errors = [line.strip() for line in head if line.startswith("==ERROR==")]
        why = f" ncu said: {errors[0][:200]}" if errors else ""
        raise BadRecording(f'{path}: no line starts with "ID": not a CSV of ncu, or no kernel was profiled.{why}')
    rows = list(_rows(path, body, len(head)))
    header = rows[0][1]
    table = _Table(path=path, header=header, first_line=len(head) + 1)
    _partial_end(table, body, rows)
    if "Metric Name" in header:
        _long(table, rows[1:])
    elif "Kernel Name" in header and any("__" in name for name in header):
        _wide(table, rows[1:])
    else:
        raise table.error(table.first_line, "the header has neither Metric Name nor metric columns; export with --csv")
    if any(NO_PERMISSION in line for line in table.log):
        refused.append(PERMISSION_HELP)
    return _report(table, "ncu-csv" if "Metric Name" in header else "ncu-raw-csv", len(head), tuple(refused))


def decode(raw: bytes) -> str:
    """Text of a file; shells of Windows redirect in UTF-16."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    return raw.decode("utf-8-sig", errors="replace")


def is_header(line: str) -> bool:
    """Whether a line is the header of a table of ncu."""
    return line.lstrip("\ufeff").startswith(('"ID","', "ID,Process ID"))


def split_table(text: str) -> tuple[list[str], str | None]:
    """(lines before the header, text from the header on or None)."""
    head: list[str] = []
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        line = text[at:] if end < 0 else text[at : end + 1]
        if is_header(line):
            return head, text[at:]
        head.append(line.rstrip("\r\n"))
        at += len(line)
    return head, None


def _rows(path: str, body: str, before: int) -> Iterator[tuple[int, list[str]]]:
    """(line of the file, cells) of every row."""
    reader = csv.reader(io.StringIO(body, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num + before, row
    except csv.Error as error:
        raise BadRecording(f"{path}:{reader.line_num + before}: cut or damaged row ({error}); copy it again") from None


def _partial_end(table: _Table, body: str, rows: list[tuple[int, list[str]]]) -> None:
    """A last row without line end may have been cut: its last cell counts only if its quote is closed."""
    if body.endswith("\n"):
        return
    table.partial.append("the file has no last line end: it may be cut, launches may lack metrics")
    if len(rows) > 1 and not body.endswith(('"', '",')):
        rows.pop()


def _cells(table: _Table, line: int, row: list[str]) -> dict[str, str] | None:
    """Cells by column; None for a line of the log. A row is whole, or ends where the rule columns begin."""
    if row[0].startswith("=="):
        table.log.append(",".join(row))
        return None
    if row[: len(IDENTITY)] == table.header[: len(IDENTITY)] and row[0] == "ID":
        raise table.error(line, "a second header: two runs in one file; give one file a run")
    n, rule = len(table.header), table.header.index(RULE[0]) if RULE[0] in table.header else None
    if len(row) == n or (rule is not None and (len(row) == rule or (len(row) == rule + 1 and not row[-1]))):
        return dict(zip(table.header, row, strict=False))
    # rules without a speed-up leave its two cells out
    if rule is not None and rule < len(row) < n and row[rule]:
        return dict(zip(table.header, row, strict=False))
    raise table.error(line, f"{len(row)} cells under a header of {n}: cut or damaged; copy or record it again")


def _long(table: _Table, rows: list[tuple[int, list[str]]]) -> None:
    missing = [column for column in METRIC if column not in table.header]
    if missing:
        raise table.error(table.first_line, f"the header lacks {', '.join(missing)}; export with --csv --page details")
    parsed = [(line, cells) for line, row in rows if (cells := _cells(table, line, row)) is not None]
    if why := wrong_locale(cells["Metric Value"] for _, cells in parsed):
        raise BadRecording(f"{table.path}: {why}; {_LOCALE}")
    for line, cells in parsed:
        launch = table.launch(cells, line)
        table.rows += 1
        table.sections[cells["Section Name"]] += 1
        if cells["Metric Name"]:
            key = (cells["Section Name"], cells["Metric Name"])
            table.store(launch, key, cells["Metric Unit"], cells["Metric Value"], line)
        elif cells.get(RULE[0]):
            table.rule_rows += 1
        else:
            raise table.error(line, "neither a metric nor a rule; record it again")
    _shorter_last(table)


def _shorter_last(table: _Table) -> None:
    every = list(table.launches.values())
    if len(every) > 1 and len(every[-1].metrics) < len(every[-2].metrics):
        table.partial.append(
            f"the last launch has {len(every[-1].metrics)} metrics, the one before it {len(every[-2].metrics)}: "
            "the file may be cut"
        )


def _wide(table: _Table, rows: list[tuple[int, list[str]]]) -> None:
    repeated = [name for name, times in Counter(table.header).items() if times > 1]
    if repeated:
        raise table.error(table.first_line, f"the header names {repeated[0]} twice; its value would not be certain")
    parsed = [(line, cells) for line, row in rows if (cells := _cells(table, line, row)) is not None]
    if not parsed or parsed[0][1]["ID"]:
        raise table.error(table.first_line + 1, "no row of units under the header; export with --csv --page raw")
    units, parsed = parsed[0][1], parsed[1:]
    metrics = [name for name in table.header if name not in IDENTITY and not COLUMN.fullmatch(name)]
    if why := wrong_locale(cells[name] for _, cells in parsed for name in metrics):
        raise BadRecording(f"{table.path}: {why}; {_LOCALE}")
    for line, cells in parsed:
        if cells["ID"] in table.launches:
            raise table.error(line, f"launch {cells['ID']} occurs twice: two runs in one file; give one file a run")
        launch = table.launch(cells, line)
        table.rows += 1
        for name in metrics:
            table.store(launch, ("", name), units[name], cells[name], line)


def _report(table: _Table, form: str, before: int, refused: tuple[str, ...]) -> NcuReport:
    if not table.launches:
        raise table.error(table.first_line, "a header without launches: cut, or nothing was profiled; record it again")
    notes = []
    if table.scaled:
        notes.append(f"ncu scaled and rounded values ({', '.join(sorted(table.scaled))}): use --print-units base")
    facts: dict[str, Any] = {
        "lines_before_header": before, "columns": len(table.header), "rows": table.rows,
        "rule_rows": table.rule_rows, "sections": dict(table.sections),
    }  # fmt: skip
    return NcuReport(
        path=table.path, format=form, launches=tuple(table.launches.values()), facts=facts, refusals=refused,
        partial=tuple(table.partial), notes=tuple(notes),
    )  # fmt: skip


def _size(text: str | None) -> tuple[int, int, int] | None:
    found = re.findall(r"\d+", text or "")
    return (int(found[0]), int(found[1]), int(found[2])) if len(found) == 3 else None
