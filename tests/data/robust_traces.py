"""Recordings that cannot be read."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.data.synthetic_hta import write_synthetic_file
from tests.data.synthetic_ncu import counters, long_form
from tests.data.synthetic_nsys import write_nsys

Make = Callable[[Path], object]


def raw(name: str, body: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(body)


def nsys(change: Callable[[Path], object] = lambda file: None) -> Make:
    return lambda folder: change(write_nsys(folder / "t.sqlite"))


def sql(*commands: str) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as db:
            for command in commands:
                db.execute(command)
            db.commit()

    return change


def kineto(change: Callable[[str], str]) -> Make:
    def write(folder: Path) -> None:
        file = write_synthetic_file(folder)
        (folder / "t.json").write_text(change(file.read_text()))
        file.unlink()

    return write


def _zipped(folder: Path) -> None:
    data = gzip.compress(json.dumps({"traceEvents": []}).encode() * 50)
    (folder / "t.json.gz").write_bytes(data[:-12])


CASES: list[tuple[str, str, Make, str, int]] = [  # a row a case, all of one form
    ("no such file", "trace t.sqlite", lambda f: None, "t.sqlite", 2),
    ("an empty file", "trace t.sqlite", raw("t.sqlite", b""), "t.sqlite", 2),
    ("a folder", "trace t.sqlite", lambda f: (f / "t.sqlite").mkdir(), "t.sqlite", 2),
    ("text named .sqlite", "trace t.sqlite", raw("t.sqlite", b"hello " * 99), "t.sqlite", 2),
    ("a database of something else", "trace t.sqlite",
     lambda f: sql("CREATE TABLE a (b)")(f / "t.sqlite"), "t.sqlite", 2),
    ("nsys, cut in half", "trace t.sqlite",
     nsys(lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])), "t.sqlite", 2),
    ("nsys, a page overwritten", "trace t.sqlite",
     nsys(lambda f: f.write_bytes(f.read_bytes()[:4096] + b"\xff" * 4096 + f.read_bytes()[8192:])), "t.sqlite", 2),
    ("nsys without kernels", "trace t.sqlite", nsys(sql("DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL")),
     "withheld: no_kernel_table", 0),
    ("nsys, kernels without a column that is needed", "trace t.sqlite",
     nsys(sql("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN start TO begun")), "start", 2),
    ("nsys, text where a time belongs", "trace t.sqlite",
     nsys(sql("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = 'soon'")), "t.sqlite", 2),
    ("nsys, kernels that end before they start", "trace t.sqlite",
     nsys(sql("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = start - 5")), "t.sqlite", 2),
    ("nsys, names that are not there", "trace t.sqlite", nsys(sql("DELETE FROM StringIds")), "name", 0),
    ("Kineto, cut", "trace t.json", kineto(lambda s: s[: len(s) // 2]), "t.json", 2),
    ("Kineto, no events", "trace t.json", raw("t.json", b'{"traceEvents": []}'), "t.json", 2),
    ("JSON of something else", "trace t.json", raw("t.json", b'{"a": 1}'), "t.json", 2),
    ("Kineto, a kernel without a duration", "trace t.json",
     kineto(lambda s: s.replace('"dur": 10.4,', "", 1)), "t.json", 2),
    ("Kineto, a time that is text", "trace t.json",
     kineto(lambda s: s.replace('"ts": 10.25', '"ts": "soon"', 1)), "t.json", 2),
    ("gzip, cut", "trace t.json.gz", _zipped, "t.json.gz", 2),
    ("ncu, no header", "trace t.csv", raw("t.csv", b"1,2,3\n"), "t.csv", 2),
    ("ncu, cut in a row", "trace t.csv",
     lambda f: (f / "t.csv").write_text(long_form([counters()])[:-30]), "t.csv", 2),
    ("ncu, a time that is text", "trace t.csv",
     lambda f: (f / "t.csv").write_text(long_form([counters() | {"gpu__time_duration.sum": ("ns", "soon")}])),
     "t.csv", 0),
    ("a name that says no kind", "trace t.xyz", raw("t.xyz", b"hello"), "t.xyz", 2),
    ("a table of an unknown kind", "trace t.sqlite --table out.xlsx", nsys(), "--table", 2),
    ("a range domain that nobody used", "trace t.sqlite --domain nobody", nsys(), "nobody", 2),
    ("a scrubbed copy of nsys with a damaged schema", "scrub t.sqlite -o o.sqlite",
     nsys(lambda f: f.write_bytes(f.read_bytes().replace(b"CREATE TABLE StringIds", b"CREATE T\x8aBLE StringIds"))),
     "t.sqlite", 2),
    ("a scrubbed copy over the original", "scrub t.sqlite -o t.sqlite", nsys(), "t.sqlite", 2),
    ("a scrubbed copy over another file", "scrub t.sqlite -o mine.sqlite",
     lambda f: [nsys()(f), (f / "mine.sqlite").write_text("mine")], "mine.sqlite", 2),
    ("a scrubbed copy of Kineto, a category that is a list", "scrub t.json -o o.json",
     kineto(lambda s: s.replace('"cat": "kernel"', '"cat": ["kernel"]')), "o.json", 0),
    ("a scrubbed copy of Kineto, lists in lists in lists", "scrub t.json -o o.json",
     raw("t.json", b'{"traceEvents": [{"args": {"grid": %b%b}}]}' % (b"[" * 1000, b"]" * 1000)), "too deep", 2),
    ("a scrubbed copy of something else", "scrub t.txt -o o.txt", raw("t.txt", b"hello"), "t.txt", 2),
]  # fmt: skip
