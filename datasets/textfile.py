"""Plain or gzipped text in chunks of whole lines, with every defect of the bytes reported at its line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account

CHUNK = 32 << 20
"""Bytes of text held at a time."""

_BOM, _BOM_NOTE = b"\xef\xbb\xbf", "byte order mark at the start removed"
_REFETCH = "nothing of it was used; fetch the file again"


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines: text ends with a newline, carriage returns before newlines are gone."""

    text: bytes
    first: int
    """Number of the first line, 1-based, in the decompressed text."""
    unterminated: bool
    """True if the file's last line is here and had no newline of its own."""
    end: int = 0
    """Bytes of the file's decompressed text up to and with these lines."""

    def bounds(self) -> np.ndarray:
        """Byte positions of the newlines, int64."""
        return np.flatnonzero(np.frombuffer(self.text, np.uint8) == ord("\n"))

    def delimiters(self, delimiter: str, ends: np.ndarray) -> np.ndarray:
        """How many delimiters each line holds."""
        at = np.flatnonzero(np.frombuffer(self.text, np.uint8) == ord(delimiter))
        return np.diff(np.searchsorted(at, ends), prepend=0)

    def line(self, ends: np.ndarray, i: int) -> str:
        """Line i of the chunk, 0-based, without its newline; `ends` are the `bounds`."""
        return self.text[ends[i - 1] + 1 if i else 0 : ends[i]].decode("utf-8")

    def only(self, ends: np.ndarray, keep: np.ndarray) -> bytes:
        """Text of the lines that a boolean array marks."""
        if keep.all():
            return self.text
        return b"".join(self.text[ends[i - 1] + 1 if i else 0 : ends[i] + 1] for i in np.flatnonzero(keep))

    def after_first(self) -> Lines:
        """The lines below the first one, which was a header."""
        return replace(self, text=self.text[self.text.find(b"\n") + 1 :], first=self.first + 1)


def read_lines(path: Path, account: Account, chunk: int = CHUNK, most: int = 0, start: int = 0) -> Iterator[Lines]:
    """Chunks of whole lines; counts them in `account.read`.

    Args:
        path: plain or gzipped text.
        account: of this file alone; with `start`, of the lines before it.
        chunk: bytes of text held at a time.
        most: lines after which the rest of the file is not read; 0 reads all.
        start: the `Lines.end` behind which to go on; 0 reads from the beginning.

    Legal: no final newline, CRLF (noted), a byte order mark at the start (noted), several gzip members, plain text
    named .gz (noted).

    Raises:
        BadInput: directory, unreadable or empty file, truncated or corrupt gzip, NUL byte, bytes that are not UTF-8.
    """
    if path.is_dir():
        account.fail(0, "is a directory", remedy="give the file itself")
    try:
        with path.open("rb") as raw:
            gz = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if gz else raw
            if start:
                stream.seek(start)  # gzipped text is decoded up to there
            elif path.suffix == ".gz" and not gz:
                account.notes["named .gz, but plain text"] += 1
            yield from _chunks(stream, account, chunk, most, start)
    except OSError as error:
        account.fail(0, f"cannot be read: {error.strerror or error}", remedy="check the path")


def lines_of(text: bytes, account: Account, file: str) -> Lines:
    """A small file that is already in memory, checked like `read_lines` does.

    Raises:
        BadInput: empty, NUL byte, bytes that are not UTF-8.
    """
    if text.startswith(_BOM):
        account.notes[_BOM_NOTE] += 1
    if not text.removeprefix(_BOM):
        account.fail(1, "empty file", remedy="give a file with rows", file=file)
    return _clean(text.removeprefix(_BOM), len(text) - len(text.removeprefix(_BOM)), account, file)


def split_cells(text: bytes, delimiter: str, columns: Iterable[str], integers: Container[str] = ()) -> pl.DataFrame:
    """The cells of lines as text; every line has as many as there are columns, and no cell is quoted.

    Args:
        text: whole lines.
        delimiter: between cells.
        columns: of the lines, in order.
        integers: columns that become Int64.

    Raises:
        polars.exceptions.ComputeError: a cell of these that is no integer.
    """
    schema = {c: pl.Int64 if c in integers else pl.String for c in columns}
    if not text:
        return pl.DataFrame(schema=schema)
    # Polars takes a byte order mark away wherever a buffer begins with one; in a later chunk it is part of a cell.
    whole = _BOM + text if text.startswith(_BOM) else text
    return pl.read_csv(whole, has_header=False, separator=delimiter, quote_char=None, schema=schema)


def _chunks(
    stream: gzip.GzipFile | io.BufferedReader, account: Account, chunk: int, most: int, start: int
) -> Iterator[Lines]:
    rest, offset, done = b"", start, bool(most) and account.read >= most
    # Whoever goes on must cut the text where one who never stopped does: at the last line end before each whole chunk.
    size = chunk + -start % chunk
    while not done:
        pieces, have, error = _fill(stream, size)
        size = chunk
        done = have == 0 or error is not None
        text = rest + pieces
        if offset == 0 and text.startswith(_BOM):
            text, offset = text[3:], 3
            account.notes[_BOM_NOTE] += 1
        if error is not None:
            reached = account.read + text.count(b"\n") + 1
            account.fail(reached, error, f"after {offset + len(text)} bytes of text", _REFETCH)
        cut = len(text) if done else text.rfind(b"\n") + 1
        whole, rest = text[:cut], text[cut:]
        if most and account.read + whole.count(b"\n") >= most:
            ends = np.flatnonzero(np.frombuffer(whole, np.uint8) == ord("\n"))
            whole, done = whole[: ends[most - account.read - 1] + 1], True
        if whole:
            yield _clean(whole, offset, account)
            offset += len(whole)
    if account.read == 0:
        account.fail(1, "empty file", remedy="give a file with rows")


def _fill(stream: gzip.GzipFile | io.BufferedReader, size: int) -> tuple[bytes, int, str | None]:
    """Up to `size` bytes, their number, and what broke a gzip stream after them."""
    if isinstance(stream, io.BufferedReader):  # plain: one copy
        text = stream.read(size)
        return text, len(text), None
    buffer, error = io.BytesIO(), None
    try:
        while buffer.tell() < size:
            # read1 hands out all that was decoded before a defect, so the line reached is exact.
            piece = stream.read1(min(1 << 20, size - buffer.tell()))
            if not piece:
                break
            buffer.write(piece)
    except EOFError:
        error = "gzip stream truncated"
    except (gzip.BadGzipFile, zlib.error):
        error = "gzip stream corrupt"
    return buffer.getvalue(), buffer.tell(), error


def _clean(text: bytes, offset: int, account: Account, file: str = "") -> Lines:
    """Checks the bytes, normalises line ends and counts the lines."""
    first, end = account.read + 1, offset + len(text)
    _check_bytes(text, offset, first, account, file)
    unterminated = not text.endswith(b"\n")
    if unterminated:
        text = text.removesuffix(b"\r") + b"\n"
        account.notes["last line without newline"] += 1
    if b"\r" in text and b"\r\n" in text:  # one byte is found many times as fast as two
        count = text.count(b"\r\n")
        text = text.replace(b"\r\n", b"\n")
        account.notes["lines ended by CRLF"] += count
    account.read += text.count(b"\n")
    return Lines(text, first, unterminated, end)


def _check_bytes(text: bytes, offset: int, first: int, account: Account, file: str) -> None:
    at, reason = text.find(b"\0"), "NUL byte"
    if not text.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            if at < 0 or error.start < at:
                at, reason = error.start, "bytes that are not UTF-8"
    if at >= 0:
        start = text.rfind(b"\n", 0, at) + 1
        shown = repr(text[start : text.find(b"\n", at) if b"\n" in text[at:] else None][:40])
        line = first + text.count(b"\n", 0, at)
        account.fail(line, f"{reason} at byte {offset + at}", shown, "re-export the file as UTF-8 text", file=file)
