"""Tables of an SQLite file as columns, read-only; an integer column with anything else in it is refused."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ctrbench.bench.trace.columns import MISSING, BadRecording, Ints

MAGIC = b"SQLite format 3\x00"
BATCH = 1 << 16
"""Rows in memory as Python objects at once."""


class Tables:
    """An open SQLite file.

    Args:
        connection: of the file.
        path: its name in messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self.path = connection, path

    def query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """Rows in batches.

        Raises:
            BadRecording: the file is cut, damaged, or no database.
        """
        try:
            cursor = self._connection.execute(sql, values)
            while rows := cursor.fetchmany(BATCH):
                yield rows
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter of a damaged schema
            raise BadRecording(f"{self.path}: SQLite cannot read it ({error}); copy or export it again") from None

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a small table."""
        return [row for batch in self.query(sql, values) for row in batch]

    @cached_property
    def names(self) -> frozenset[str]:
        """Tables of the file."""
        return frozenset(str(row[0]) for row in self.rows("SELECT name FROM sqlite_master WHERE type='table'"))

    def columns(self, table: str) -> frozenset[str]:
        """Columns of a table, none if it is missing."""
        return frozenset(str(row[0]) for row in self.rows("SELECT name FROM pragma_table_info(?)", (table,)))

    def count(self, table: str) -> int | None:
        """Rows of a table; None if it is missing."""
        if table not in self.names:
            return None
        return int(self.rows(f'SELECT count(*) FROM "{table}"')[0][0])

    def integers(self, table: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Ints]:
        """Integer columns of a table in the order of its rows; NULL and absent optional columns are `MISSING`.

        Raises:
            BadRecording: a required column is absent or NULL in some row, or a cell is no integer.
        """
        held = self.columns(table)
        lacking = [c for c in required if c not in held]
        if lacking:
            raise BadRecording(
                f"{self.path}: table {table} lacks the column {lacking[0]}; export it again with nsys export "
                "--type=sqlite --lazy=false"
            )
        read = [*required, *(c for c in optional if c in held)]
        parts: dict[str, list[Ints]] = {c: [] for c in read}
        for rows in self.query(f'SELECT {", ".join(map(_quoted, read))} FROM "{table}"'):
            for column, values in zip(read, zip(*rows, strict=True), strict=True):
                parts[column].append(self._integers(table, column, values))
        found = {c: np.concatenate(part) if part else np.empty(0, np.int64) for c, part in parts.items()}
        for column in required:
            if (found[column] == MISSING).any():
                row = int(np.flatnonzero(found[column] == MISSING)[0])
                raise BadRecording(f"{self.path}: table {table}, row {row + 1}: {column} is NULL; export it again")
        n = len(found[required[0]])
        return found | {c: np.full(n, MISSING, np.int64) for c in optional if c not in held}

    def _integers(self, table: str, column: str, values: tuple[Any, ...]) -> Ints:
        try:
            cells = pa.array(values)  # of a type of its own choice: an int64 column would take 1.5 as 1
        except (pa.ArrowException, OverflowError) as error:
            raise BadRecording(f"{self.path}: table {table}, column {column} is no integer ({error})") from None
        if cells.type == pa.null():
            return np.full(len(values), MISSING, np.int64)
        if cells.type != pa.int64():
            raise BadRecording(f"{self.path}: table {table}, column {column} is no integer but {cells.type}")
        plain = cells.fill_null(MISSING) if cells.null_count else cells
        found: Ints = plain.to_numpy(zero_copy_only=False)
        return found

    def texts(self, table: str, key: str, text: str) -> list[tuple[int, str]]:
        """(key, text) of every row that has both."""
        if not {key, text} <= self.columns(table):
            return []
        found = self.rows(f'SELECT {_quoted(key)}, {_quoted(text)} FROM "{table}"')
        return [(k, v) for k, v in found if type(k) is int and type(v) is str]


def _quoted(column: str) -> str:
    return f'"{column}"'


@contextmanager
def open_tables(file: Path, path: Path) -> Iterator[Tables]:
    """Opens a database without ever writing to it.

    Args:
        file: the plain database.
        path: its name in messages.

    Raises:
        BadRecording: shorter than its header says, or no database.
    """
    with file.open("rb") as f:
        head = f.read(100)
    size = file.stat().st_size
    if len(head) < 100 or not head.startswith(MAGIC):
        raise BadRecording(f"{path}: no whole SQLite file ({size} bytes); copy or export it again")
    page, counter, pages, valid_for = (
        struct.unpack_from(form, head, at)[0] for form, at in ((">H", 16), (">I", 24), (">I", 28), (">I", 92))
    )
    whole = (65536 if page == 1 else page) * pages
    if counter == valid_for and size < whole:
        raise BadRecording(f"{path}: cut off: {size} of {whole} bytes are left; copy or export it again")
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise BadRecording(f"{path}: SQLite cannot open it ({error}); copy or export it again") from None
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    # The file is a stranger's: its views and triggers call no function with side effects, and nothing is attached.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    try:
        yield Tables(connection, path)
    finally:
        connection.close()
