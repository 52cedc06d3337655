"""The fast reader of tables against the plain one, line for line, on lines made to be misread."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrbench.datasets.account import Account
from ctrbench.datasets.table_reader import explain, read, split_quoted
from ctrbench.datasets.table_schema import TableSchema, Time, parse

SCHEMA = """
name: odd
delimiter: ";"
missing: [NULL]
label: {column: y, positive: [1, yes], negative: 0}
user: u
time: {column: t, UNIT}
event_times:
  - {column: past_t, separator: "|"}
split: {rule: column, column: part, train: [a, b], valid: c, test: "ü"}
fields:
  - {name: item, column: i, kind: categorical, required: true}
  - {name: x, kind: dense}
  - {name: past, column: past_i, kind: sequence, target: item, separator: "|"}
"""
COLUMNS = ("y", "u", "t", "past_t", "part", "i", "x", "past_i", "other")
GOOD = ("1", "u1", "TIME", "1|2|3", "a", "item", "1.5", "p|q|r", "z")
UNITS = {
    "s": ("unit: s", "1600000000"), "ms": ("unit: ms", "1600000000123"),
    "iso": ("unit: iso, utc_offset_hours: -5", "2020-09-13 12:26:40"),
}  # fmt: skip
ODD = (
    "", "0", "1", "yes", "no", "NULL", "null", "1.0", "1.00", "1.5", "-1", "+1", "007", " 1", "1e3", "1e39",
    "-3.4e38", "nan", "inf", "٣", "a", "b", "c", "ü", '"', '""', '"a', '"a"', '"a;b"', '"a""b"', '"a"b', 'a"b',
    "|", "||", "1|", "|1", "1|2", "1|x", "NULL|1", "1.0|2", "4102444799", "4102444800", "4102444800000", "9" * 19,
    "9" * 30, "2020-02-29", "2021-02-29", "2020-01-01T00:00:00", "2020-01-01 24:00:00", "2020-01-01 23:59:60",
    "1970-01-01", "1969-12-31", "0000-01-01", "0001-01-01", "9999-12-31", "2099-12-31 23:59:59",
    "2020-1-1", "2020-01-01 00:00", "'", "#", "\\",
    "\x1f", "\u2028", "\x85",
)  # fmt: skip


@st.composite
def _lines(draw: st.DrawFn, time: str) -> list[str]:
    """Good lines with cells, numbers of cells or whole lines replaced; some quoted as a CSV writer would."""
    out = []
    for _ in range(draw(st.integers(1, 10))):
        cells = [time if c == "TIME" else c for c in GOOD]
        for place in draw(st.lists(st.integers(0, len(COLUMNS) - 1), max_size=2)):
            cells[place] = draw(st.sampled_from(ODD))
        change = draw(st.sampled_from(["", "", "", "quote", "drop", "add", "empty"]))
        cells = cells[:-1] if change == "drop" else [*cells, "x"] if change == "add" else cells
        line = io.StringIO()
        if change == "quote":
            csv.writer(line, delimiter=";", quoting=csv.QUOTE_ALL, lineterminator="").writerow(cells)
        out.append(line.getvalue() or ("" if change == "empty" else ";".join(cells)))
    return out


def _seconds(text: str, time: Time) -> int:
    if time.unit != "iso":
        return int(text.split(".")[0]) // (1000 if time.unit == "ms" else 1)
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return int(moment.timestamp()) - 3600 * time.utc_offset_hours


def _plain(line: str, schema: TableSchema) -> tuple[str, str, str] | dict[str, object]:
    """What is wrong with a line, or its values."""
    cells = split_quoted(line, schema) if '"' in line else line.split(";")
    if isinstance(cells, str):
        return cells, "line", line
    if len(cells) != len(COLUMNS):
        return f"wrong field count, {len(COLUMNS)} expected", f"{len(cells)} fields", line
    row = {c: None if v in schema.missing else v for c, v in zip(COLUMNS, cells, strict=True)}
    if (found := explain(row, schema)) is not None:
        return found
    assert schema.time is not None
    items = [None if i in schema.missing else i for i in row["past_i"].split("|")] if row["past_i"] else []
    times = row["past_t"].split("|") if row["past_t"] else []
    return {
        "label": int(row["y"] in ("1", "yes")), ".user": row["u"], "time": _seconds(str(row["t"]), schema.time),
        ".part": {"a": "train", "b": "train", "c": "valid", "ü": "test"}[str(row["part"])],
        "hist_time": [int(t.split(".")[0]) for t in times], "item": row["i"],
        "x": None if row["x"] is None else float(row["x"]), "past": items,
    }  # fmt: skip


@pytest.mark.parametrize("unit", list(UNITS))
@given(data=st.data())
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_fast_reader_agrees_line_for_line(unit: str, data: st.DataObject) -> None:
    """Values of kept rows, and reason, column and place of every other line; plain and gzip, chunks of any size."""
    words, good_time = UNITS[unit]
    schema = parse(Path("s.yaml"), SCHEMA.replace("UNIT", words))
    assert schema.columns == (*COLUMNS[:3], "part", "i", "x", "past_i", "past_t")
    lines = [";".join(good_time if c == "TIME" else c for c in GOOD), *data.draw(_lines(good_time))]
    end = [""] if data.draw(st.booleans()) or not lines[-1] else []
    text = "\n".join([";".join(COLUMNS), *lines, *end])
    chunk = data.draw(st.sampled_from([1, 60, 1 << 20]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctrbench.datasets.account.PLACES", len(lines))
        path = Path(folder) / "f"
        path.write_bytes(gzip.compress(text.encode()) if data.draw(st.booleans()) else text.encode())
        account = Account(path, "skip", 1.0)
        rows = pl.concat(list(read(path, account, schema, chunk)))
        account.close()
        found = [_plain(line, schema) for line in lines]
        assert rows.to_dicts() == [f for f in found if isinstance(f, dict)]
        last = 0 if end else len(lines) + 1
        expected = [
            f"{path}:{i}: {'truncated last line, ' if i == last else ''}{f[0]}: {f[1]} {f[2][:40]!r}"
            for i, f in enumerate(found, 2)
            if not isinstance(f, dict)
        ]
        assert sorted(p for places in account.places.values() for p in places) == sorted(expected)
        assert account.read == 1 + account.kept + account.skipped.total() == 1 + len(lines)


def test_the_odd_cells_reach_every_reason() -> None:
    """Else the comparison above would compare less than it says."""
    seen = set()
    for words, good_time in UNITS.values():
        schema = parse(Path("s.yaml"), SCHEMA.replace("UNIT", words))
        for place in range(len(COLUMNS)):
            for odd in ODD:
                cells = [good_time if c == "TIME" else c for c in GOOD]
                cells[place] = odd
                found = _plain(";".join(cells), schema)
                seen.add("good" if isinstance(found, dict) else found[0])
    assert seen == {
        "good", "label is empty", "label is neither a positive nor a negative value", "user is empty", "time is empty",
        "not a time", "time before 1970 or after 2099: wrong unit?", "value of no part of the split",
        "history: not a time", "history: time is empty", "history: time before 1970 or after 2099: wrong unit?",
        "required value is empty", "not a number", "number beyond single precision", "quotes: unexpected end of data",
        "quotes: ';' expected after '\"'",
    }  # fmt: skip
