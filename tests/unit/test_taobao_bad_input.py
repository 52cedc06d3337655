"""Every line of the bad-input table that touches UserBehavior: exact line and count, both policies, plain and gzip.

Everywhere: rows kept + rows skipped + header lines = lines read.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import polars as pl
import pytest
from tests.data.text_lines import with_line

from ctrbench.datasets import taobao_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.taobao_reader import END, OUTSIDE, START
from ctrbench.datasets.taobao_synthetic import Generator, Parameters

ROWS = 400
WHOLE = "is not a whole number"
COUNT = "wrong field count, 5 expected"


@pytest.fixture(scope="module")
def good() -> list[bytes]:
    table = Generator(Parameters(users=20)).table(0).head(ROWS)
    assert table.height == ROWS
    return table.write_csv(include_header=False).encode().splitlines()


@pytest.fixture(params=["plain", "gz"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["strict", "skip"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _file(folder: Path, form: str, data: bytes) -> Path:
    path = folder / ("UserBehavior.csv.gz" if form == "gz" else "UserBehavior.csv")
    path.write_bytes(gzip.compress(data) if form == "gz" else data)
    return path


def _text(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


def _read(path: Path, policy: str = "strict", chunk: int = 4096, max_bad: float = 0.5) -> tuple[pl.DataFrame, Account]:
    account = Account(path, policy, max_bad)
    rows = pl.concat(list(taobao_reader.read(path, account, chunk)))
    account.close()
    assert account.kept + account.skipped.total() + account.header == account.read
    assert rows.height == account.kept
    return rows, account


def _with(good: list[bytes], line: int, field: int | None, value: bytes) -> list[bytes]:
    return with_line(good, line, field, value, b",")


def _values(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.drop("position")


BAD_ROWS = {
    "4 fields": (None, b"1,2,3,pv", COUNT, "4 fields"),
    "6 fields": (None, b"1,2,3,pv,1511600000,9", COUNT, "6 fields"),
    "empty line": (None, b"", COUNT, "1 fields"),
    "tabs": (None, b"1\t2\t3\tpv\t1511600000", COUNT, "1 fields"),
    "no user": (0, b"", "user is empty", "user"),
    "no item": (1, b"", "item is empty", "item"),
    "no category": (2, b"", "category is empty", "category"),
    "no behaviour": (3, b"", "behaviour is empty", "behaviour"),
    "no time": (4, b"", "time is empty", "time"),
    "negative user": (0, b"-5", f"user {WHOLE}", "user"),
    "negative item": (1, b"-1", f"item {WHOLE}", "item"),
    "negative time": (4, b"-1511600000", f"time {WHOLE}", "time"),
    "fraction": (4, b"1511600000.5", f"time {WHOLE}", "time"),
    "nan": (2, b"nan", f"category {WHOLE}", "category"),
    "inf": (1, b"inf", f"item {WHOLE}", "item"),
    "underscore": (1, b"1_000", f"item {WHOLE}", "item"),
    "space": (0, b" 7", f"user {WHOLE}", "user"),
    "plus": (0, b"+3", f"user {WHOLE}", "user"),
    "exponent": (4, b"1.5e9", f"time {WHOLE}", "time"),
    "other digits": (1, "٣".encode(), f"item {WHOLE}", "item"),
    "quoted": (1, b'"12"', f"item {WHOLE}", "item"),
    "beyond 64 bits": (1, b"9223372036854775808", "item is beyond 64 bits", "item"),
    "long": (2, b"x" * 100, f"category {WHOLE}", "category"),
    "other behaviour": (3, b"click", "behaviour is not one of pv, cart, fav, buy", "behaviour"),
    "upper case": (3, b"PV", "behaviour is not one of pv, cart, fav, buy", "behaviour"),
}
"""case -> field to overwrite (None: the whole line), with what, the reason, the field as the message names it."""


@pytest.mark.parametrize("line", [1, 57, ROWS])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row(tmp_path: Path, good: list[bytes], form: str, case: str, line: int) -> None:
    field, value, reason, name = BAD_ROWS[case]
    path = _file(tmp_path, form, _text(_with(good, line, field, value)))
    message = f"{path}:{line}: {reason}: {name} {value.decode()[:40]!r}"
    with pytest.raises(BadInput) as caught:
        _read(path)
    assert str(caught.value) == f"{message}; correct the line, or drop and count bad rows with policy=skip"
    rows, account = _read(path, "skip")
    assert (account.read, account.kept, account.header) == (ROWS, ROWS - 1, 0)
    assert dict(account.skipped) == {reason: 1}
    assert account.places == {reason: [message]}
    assert not account.left_out
    expected, _ = _read(_file(tmp_path, "plain", _text(good[: line - 1] + good[line:])))
    assert _values(rows).equals(_values(expected))
    assert rows["position"].to_list() == [n for n in range(1, ROWS + 1) if n != line]


def test_skip_fails_above_the_fraction(tmp_path: Path, good: list[bytes], form: str) -> None:
    path = _file(tmp_path, form, _text(_with(good, 9, 1, b"x")))
    _read(path, "skip", max_bad=1 / ROWS)
    with pytest.raises(
        BadInput, match=rf"1 of {ROWS} rows are bad, more than max_bad_fraction=0.001; first: .*:9: item is not"
    ):
        _read(path, "skip", max_bad=0.001)


def test_times_out_of_the_period_are_left_out_under_both_policies(
    tmp_path: Path, good: list[bytes], form: str, policy: str
) -> None:
    lines = good
    for line, time in ((3, START - 1), (200, END), (201, 0), (ROWS, 2114380800)):  # 2037 is in the public file
        lines = _with(lines, line, 4, str(time).encode())
    path = _file(tmp_path, form, _text(_with(_with(lines, 10, 4, str(START).encode()), 11, 4, str(END - 1).encode())))
    rows, account = _read(path, policy, max_bad=0.0)
    assert (account.read, account.kept) == (ROWS, ROWS - 4)
    assert dict(account.skipped) == dict(account.left_out) == {OUTSIDE: 4}
    assert [p.removeprefix(f"{path}:").split(":")[0] for p in account.places[OUTSIDE]] == ["3", "200", "201", "400"]
    assert {START, END - 1} <= set(rows["time"])


def test_more_than_one_percent_out_of_the_period_is_an_error(
    tmp_path: Path, good: list[bytes], form: str, policy: str
) -> None:
    lines = good
    for line in (7, 8, 9, 10, 11):
        lines = _with(lines, line, 4, b"1511539199")
    with pytest.raises(BadInput, match=rf":7: 5 of {ROWS} rows have a time outside .*, more than 1%; .*unit.*zone"):
        _read(_file(tmp_path, form, _text(lines)), policy)


def test_milliseconds_end_at_the_first_chunk(tmp_path: Path, good: list[bytes], form: str, policy: str) -> None:
    path = _file(tmp_path, form, _text([line + b"000" for line in good]))
    with pytest.raises(BadInput, match=r":1: (\d+) of \1 rows have a time outside .* another unit than seconds"):
        _read(path, policy, chunk=1000)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"301780,543546,41,pv,15", rf"truncated last line, {OUTSIDE}"),  # as a copy in circulation ends
        (b"301780,543546,41,pv,", "truncated last line, time is empty"),
        (b"301780,543546,41,pv", f"truncated last line, {COUNT}"),
        (b"3017", f"truncated last line, {COUNT}"),
        (b"301780,543546,41,p", f"truncated last line, {COUNT}"),
    ],
)
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_truncated_last_line(
    tmp_path: Path, good: list[bytes], form: str, tail: bytes, reason: str, chunk: int
) -> None:
    path = _file(tmp_path, form, _text(good) + tail)
    with pytest.raises(BadInput) as caught:
        _read(path, chunk=chunk)
    assert str(caught.value).startswith(f"{path}:{ROWS + 1}: {reason}")
    rows, account = _read(path, "skip", chunk)
    assert (account.read, rows.height) == (ROWS + 1, ROWS)
    assert dict(account.skipped) == {reason: 1}
    assert not account.left_out


HEADERS = [
    b"user_id,item_id,category_id,behavior_type,timestamp", b"User ID,Item,Category,Behavior,Time",
    b'"user","item","category","behaviour","time"', b"userid\titemid\tcategoryid\tbehavior\ttimestamp",
    b",user_id,item_id,category_id,behavior,timestamp", b"\xef\xbb\xbfuser_id,item_id,category_id,behavior,timestamp",
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_header_where_none_belongs(tmp_path: Path, good: list[bytes], form: str, policy: str, header: bytes) -> None:
    with pytest.raises(BadInput, match=r":1: header where none belongs: .*remove it"):
        _read(_file(tmp_path, form, _text([header, *good])), policy)


def test_integral_decimals_are_accepted_and_noted(tmp_path: Path, good: list[bytes], form: str, policy: str) -> None:
    lines = _with(_with(good, 4, 0, b"12.0"), 5, 4, b"1511600000.00")
    rows, account = _read(_file(tmp_path, form, _text(lines)), policy)
    assert (rows["user_id"][3], rows["time"][4]) == (12, 1_511_600_000)
    assert dict(account.notes) == {"integers written as decimals (1.0)": 2}
    assert account.read == account.kept == ROWS


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_harmless_oddities(tmp_path: Path, good: list[bytes], form: str, policy: str, chunk: int) -> None:
    expected, _ = _read(_file(tmp_path, "plain", _text(good)))
    for data, notes in (
        (b"\n".join(good), {"last line without newline": 1}),
        (b"\r\n".join(good) + b"\r\n", {"lines ended by CRLF": ROWS}),
        (b"\r\n".join(good[:3]) + b"\n" + _text(good[3:]), {"lines ended by CRLF": 2}),
        (b"\xef\xbb\xbf" + _text(good), {"byte order mark at the start removed": 1}),
    ):
        rows, account = _read(_file(tmp_path, form, data), policy, chunk)
        assert rows.equals(expected)
        assert dict(account.notes) == notes
        assert account.read == account.kept == ROWS


def test_byte_order_mark_elsewhere_is_data(tmp_path: Path, good: list[bytes], form: str) -> None:
    path = _file(tmp_path, form, _text(_with(good, 5, 0, b"\xef\xbb\xbf7")))
    with pytest.raises(BadInput, match=rf":5: user {WHOLE}"):
        _read(path)


@pytest.mark.parametrize(("junk", "reason"), [(b"\0", "NUL byte"), (b"\xff", "bytes that are not UTF-8")])
def test_bytes_that_are_not_text(
    tmp_path: Path, good: list[bytes], form: str, policy: str, junk: bytes, reason: str
) -> None:
    text = _text(_with(good, 120, 1, b"12" + junk))
    with pytest.raises(BadInput, match=rf":120: {reason} at byte {text.index(junk)}: "):
        _read(_file(tmp_path, form, text), policy)


def test_truncated_gzip(tmp_path: Path, good: list[bytes], policy: str) -> None:
    whole = _text(good)
    path = tmp_path / "UserBehavior.csv.gz"
    path.write_bytes(gzip.compress(whole, 0)[: len(whole) // 2])
    decoded = zlib.decompressobj(31).decompress(path.read_bytes())
    with pytest.raises(BadInput) as caught:
        _read(path, policy, chunk=1 << 20)
    line = decoded.count(b"\n") + 1
    assert str(caught.value).startswith(f"{path}:{line}: gzip stream truncated: after {len(decoded)} bytes of text; ")
    assert line > 10


def test_corrupt_gzip(tmp_path: Path, good: list[bytes], policy: str) -> None:
    data = bytearray(gzip.compress(_text(good)))
    data[-6] ^= 0xFF  # checksum
    path = tmp_path / "UserBehavior.csv.gz"
    path.write_bytes(bytes(data))
    with pytest.raises(BadInput, match=rf":{ROWS + 1}: gzip stream corrupt: after \d+ bytes of text; nothing of it"):
        _read(path, policy, chunk=1 << 20)


def test_several_gzip_members(tmp_path: Path, good: list[bytes]) -> None:
    path = tmp_path / "UserBehavior.csv.gz"
    path.write_bytes(gzip.compress(_text(good[:90])) + gzip.compress(_text(good[90:])))
    assert _read(path)[1].kept == ROWS


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, form: str, policy: str, data: bytes) -> None:
    with pytest.raises(BadInput, match=r":1: empty file; give a file with rows"):
        _read(_file(tmp_path, form, data), policy)


def test_files_that_prepare_refuses(tmp_path: Path, good: list[bytes], form: str, policy: str) -> None:
    late = _file(tmp_path, form, _text([g.rsplit(b",", 1)[0] + b",1512200000" for g in good]))
    early = tmp_path / "early.csv"
    early.write_bytes(_text([b",".join([*g.split(b",")[:4], b"15116%05d" % i]) for i, g in enumerate(good)]))
    directory = tmp_path / "folder"
    directory.mkdir()
    for path, reason in (
        (directory, "is a directory"),
        (tmp_path / "absent.csv", "cannot be read"),
        (late, "no positive before 2017-12-02"),
        (early, "no rows for split 'test'"),
    ):
        with pytest.raises(BadInput, match=reason):
            prepare("taobao_behaviour", path, tmp_path / "out", policy=policy)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["folder", "early.csv", late.name])


@pytest.mark.parametrize("duplicates", ["keep", "drop_exact"])
def test_duplicate_rows(tmp_path: Path, good: list[bytes], form: str, policy: str, duplicates: str) -> None:
    """Two copies at the end of the file, far from the first; a row that differs in its behaviour is no copy."""
    all_but_first = good[0].split(b",")
    other = b",".join([*all_but_first[:3], b"buy" if all_but_first[3] != b"buy" else b"cart", all_but_first[4]])
    path = _file(tmp_path, form, _text([*good, good[0], other, good[0], good[7]]))
    assert len(set(good)) == ROWS
    out = prepare("taobao_behaviour", path, tmp_path / "out", policy=policy, duplicates=duplicates, min_history=0)
    rows = out.manifest["rows"]
    dropped = 3 if duplicates == "drop_exact" else 0
    assert (rows["read"], rows["kept"], rows["header"]) == (ROWS + 4, ROWS + 4 - dropped, 0)
    assert rows["skipped"] == rows["left_out"] == ({"duplicate row": 3} if dropped else {})
    assert out.manifest["events"]["hist"] == ROWS + 4 - dropped
    assert out.manifest["sampler"]["duplicates"] == duplicates
    if dropped:
        places = [p.removeprefix(f"{path}:").split(":")[0] for p in rows["places"]["duplicate row"]]
        assert sorted(places) == ["401", "403", "404"]


def test_bad_rows_of_the_pool_are_counted_apart(tmp_path: Path, good: list[bytes], form: str) -> None:
    file = tmp_path / "own.csv"
    file.write_bytes(_text(good))
    pool = _file(tmp_path, form, _text(_with(_with(good, 9, 1, b"x"), 12, 4, b"1")))
    with pytest.raises(BadInput) as caught:
        prepare("taobao_behaviour", file, tmp_path / "out", pool=str(pool))
    assert str(caught.value).startswith(f"{pool}:9: item {WHOLE}")
    out = prepare("taobao_behaviour", file, tmp_path / "out", pool=str(pool), policy="skip", max_bad_fraction=1 / ROWS)
    assert out.manifest["rows"]["kept"] == ROWS
    counted = out.manifest["sampler"]["pool_rows"]
    assert (counted["read"], counted["kept"]) == (ROWS, ROWS - 2)
    assert counted["skipped"] == {f"item {WHOLE}": 1, OUTSIDE: 1}
