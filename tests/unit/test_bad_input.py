"""Every line of the bad-input table that touches the Criteo form: exact line, both policies, plain and gzip."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import polars as pl
import pytest
from tests.data.text_lines import with_line

from ctrbench.datasets import criteo_text
from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_synthetic import Generator, Parameters
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare

ROWS = 200


@pytest.fixture(scope="module")
def good() -> list[bytes]:
    table = Generator(Parameters(rows=ROWS, cap=1000)).table(0)
    return table.write_csv(include_header=False, separator="\t", quote_style="never").encode().splitlines()


@pytest.fixture(params=["plain", "gz"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _file(folder: Path, form: str, data: bytes) -> Path:
    path = folder / ("train.txt.gz" if form == "gz" else "train.txt")
    path.write_bytes(gzip.compress(data) if form == "gz" else data)
    return path


def _read(path: Path, policy: str = "strict", chunk: int = 4096, max_bad: float = 0.5) -> tuple[pl.DataFrame, Account]:
    account = Account(path, policy, max_bad)
    rows = pl.concat(list(criteo_text.read(path, account, chunk)))
    account.close()
    return rows, account


def _with(good: list[bytes], line: int, field: int | None, value: bytes) -> list[bytes]:
    return with_line(good, line, field, value, b"\t")


_COUNT = "wrong field count, 40 expected"
BAD_ROWS = {
    "39 fields": (None, b"\t".join([b"0"] * 39), _COUNT, "39 fields"),
    "41 fields": (None, b"\t".join([b"0"] * 41), _COUNT, "41 fields"),
    "empty line": (None, b"", _COUNT, "1 fields"),
    "label 2": (0, b"2", "label is not 0 or 1", "label"),
    "label 1.0": (0, b"1.0", "label is not 0 or 1", "label"),
    "no label": (0, b"", "label is empty", "label"),
    "fraction": (5, b"1.5", "not an integer", "I5"),
    "nan": (5, b"nan", "not an integer", "I5"),
    "underscore": (2, b"1_000", "not an integer", "I2"),
    "space": (2, b" 7", "not an integer", "I2"),
    "plus": (2, b"+3", "not an integer", "I2"),
    "other digits": (2, "٣".encode(), "not an integer", "I2"),
    "beyond 64 bits": (13, b"9223372036854775808", "integer beyond 64 bits", "I13"),
    "long": (13, b"x" * 100, "not an integer", "I13"),
}
"""case -> field to overwrite (None: the whole line), with what, the reason, the field as the message names it."""


@pytest.mark.parametrize("line", [1, 57, ROWS])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row(tmp_path: Path, good: list[bytes], form: str, case: str, line: int) -> None:
    field, value, reason, name = BAD_ROWS[case]
    path = _file(tmp_path, form, b"\n".join(_with(good, line, field, value)) + b"\n")
    message = f"{path}:{line}: {reason}: {name} {value.decode()[:40]!r}"
    with pytest.raises(BadInput) as caught:
        _read(path)
    assert str(caught.value) == f"{message}; correct the line, or drop and count bad rows with policy=skip"
    rows, account = _read(path, "skip")
    assert (account.read, account.kept, rows.height) == (ROWS, ROWS - 1, ROWS - 1)
    assert dict(account.skipped) == {reason: 1}
    assert account.places == {reason: [message]}
    expected, _ = _read(_file(tmp_path, "plain", b"\n".join(good[: line - 1] + good[line:]) + b"\n"))
    assert rows.equals(expected)


@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_fast_reader_agrees_with_plain_reader(
    tmp_path: Path, good: list[bytes], form: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list(good)
    for i, (field, value, *_) in enumerate(BAD_ROWS.values()):
        lines = _with(lines, 3 + 11 * i, field, value)
    path = _file(tmp_path, form, b"\n".join(lines) + b"\n")
    monkeypatch.setattr("ctrbench.datasets.account.PLACES", len(BAD_ROWS))
    _, account = _read(path, "skip", chunk)
    plain = [(i, found) for i, text in enumerate(lines, 1) if (found := criteo_text.explain(text.decode()))]
    assert len(plain) == len(BAD_ROWS) == account.skipped.total()
    shown = sorted(p for places in account.places.values() for p in places)
    assert shown == sorted(f"{path}:{i}: {r}: {f} {v[:40]!r}" for i, (r, f, v) in plain)


def test_first_five_places_per_reason(tmp_path: Path, good: list[bytes]) -> None:
    lines = list(good)
    for i in range(8):
        lines = _with(lines, 10 + i, 1, b"x")
    _, account = _read(_file(tmp_path, "plain", b"\n".join(lines)), "skip")
    assert account.skipped["not an integer"] == 8
    assert [p.split(":")[1] for p in account.places["not an integer"]] == ["10", "11", "12", "13", "14"]


def test_skip_fails_above_the_fraction(tmp_path: Path, good: list[bytes], form: str) -> None:
    path = _file(tmp_path, form, b"\n".join(_with(good, 9, 1, b"x")) + b"\n")
    _read(path, "skip", max_bad=1 / ROWS)
    with pytest.raises(
        BadInput, match=rf"1 of {ROWS} rows are bad, more than max_bad_fraction=0.001; first: .*:9: not an"
    ):
        _read(path, "skip", max_bad=0.001)


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_unlabelled_test_file(tmp_path: Path, good: list[bytes], form: str, policy: str) -> None:
    path = _file(tmp_path, form, b"\n".join(g.split(b"\t", 1)[1] for g in good) + b"\n")
    with pytest.raises(BadInput, match=r":1: unlabelled test file: 39 fields in every row.*use train.txt"):
        _read(path, policy)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_header_where_none_belongs(tmp_path: Path, good: list[bytes], form: str, policy: str, delimiter: str) -> None:
    head = delimiter.join(["Label", *criteo_text.COLUMNS[1:]]).encode()
    with pytest.raises(BadInput, match=r":1: header where none belongs"):
        _read(_file(tmp_path, form, b"\n".join([head, *good])), policy)


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_truncated_gzip(tmp_path: Path, good: list[bytes], policy: str) -> None:
    whole = b"\n".join(good) + b"\n"
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(whole, 0)[: len(whole) // 2])
    decoded = zlib.decompressobj(31).decompress(path.read_bytes())
    with pytest.raises(BadInput) as caught:
        _read(path, policy, chunk=1 << 20)
    line = decoded.count(b"\n") + 1
    assert str(caught.value).startswith(f"{path}:{line}: gzip stream truncated: after {len(decoded)} bytes of text; ")
    assert line > 10


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_corrupt_gzip(tmp_path: Path, good: list[bytes], policy: str) -> None:
    data = bytearray(gzip.compress(b"\n".join(good) + b"\n"))
    data[-6] ^= 0xFF  # checksum
    path = tmp_path / "train.txt.gz"
    path.write_bytes(bytes(data))
    with pytest.raises(
        BadInput, match=rf":{ROWS + 1}: gzip stream corrupt: after \d+ bytes of text; nothing of it was used"
    ):
        _read(path, policy, chunk=1 << 20)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, form: str, policy: str, data: bytes) -> None:
    with pytest.raises(BadInput, match=r":1: empty file; give a file with rows"):
        _read(_file(tmp_path, form, data), policy)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize(("junk", "reason"), [(b"\0", "NUL byte"), (b"\xff", "bytes that are not UTF-8")])
def test_bytes_that_are_not_text(
    tmp_path: Path, good: list[bytes], form: str, policy: str, junk: bytes, reason: str
) -> None:
    lines = _with(good, 120, 20, b"ab" + junk + b"cd")
    text = b"\n".join(lines) + b"\n"
    with pytest.raises(BadInput, match=rf":120: {reason} at byte {text.index(junk)}: "):
        _read(_file(tmp_path, form, text), policy)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_harmless_oddities(tmp_path: Path, good: list[bytes], form: str, policy: str, chunk: int) -> None:
    expected, _ = _read(_file(tmp_path, "plain", b"\n".join(good) + b"\n"))
    for data, notes in (
        (b"\n".join(good), {"last line without newline": 1}),
        (b"\r\n".join(good) + b"\r\n", {"lines ended by CRLF": ROWS}),
        (b"\r\n".join(good[:3]) + b"\n" + b"\n".join(good[3:]) + b"\n", {"lines ended by CRLF": 2}),
        (b"\xef\xbb\xbf" + b"\n".join(good) + b"\n", {"byte order mark at the start removed": 1}),
    ):
        rows, account = _read(_file(tmp_path, form, data), policy, chunk)
        assert rows.equals(expected)
        assert dict(account.notes) == notes
        assert account.read == account.kept == ROWS


def test_integral_decimal_is_accepted_and_noted(tmp_path: Path, good: list[bytes], form: str) -> None:
    rows, account = _read(_file(tmp_path, form, b"\n".join(_with(good, 4, 2, b"12.0")) + b"\n"))
    assert rows["I2"][3] == 12
    assert account.notes["integers written as decimals (1.0)"] == 1


def test_truncated_last_line(tmp_path: Path, good: list[bytes], form: str) -> None:
    path = _file(tmp_path, form, b"\n".join(good[:-1]) + b"\n" + good[-1][:30])
    with pytest.raises(BadInput, match=rf":{ROWS}: truncated last line, wrong field count"):
        _read(path)
    assert _read(path, "skip")[1].kept == ROWS - 1


def test_several_gzip_members(tmp_path: Path, good: list[bytes]) -> None:
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(b"\n".join(good[:90]) + b"\n") + gzip.compress(b"\n".join(good[90:]) + b"\n"))
    assert _read(path)[1].kept == ROWS


def test_categories_are_text(tmp_path: Path, good: list[bytes], form: str) -> None:
    lines = list(good)
    for i, token in enumerate(
        [b"10324542", b"00000012", b"32813e21", b"NULL", b"nan", b'"quoted', b" a b ", b"", b"\xc3\xa9"]
    ):
        lines = _with(lines, 1 + i, 14, token)
    rows, _ = _read(_file(tmp_path, form, b"\n".join(lines) + b"\n"))
    assert rows["C1"][:9].to_list() == [
        "10324542",
        "00000012",
        "32813e21",
        "NULL",
        "nan",
        '"quoted',
        " a b ",
        None,
        "é",
    ]


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_files_that_prepare_refuses(tmp_path: Path, good: list[bytes], policy: str) -> None:
    one_class = _file(tmp_path, "plain", b"\n".join(b"0" + g[1:] for g in good) + b"\n")
    cases = [
        (tmp_path, "is a directory"),
        (tmp_path / "absent.txt", "cannot be read"),
        (one_class, f"all {ROWS} rows have label 0"),
    ]
    for path, reason in cases:
        with pytest.raises(BadInput, match=reason):
            prepare("criteo", path, tmp_path / "out", policy=policy)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.txt"], "something half-written was left behind"


def test_tokens_that_are_not_hex_are_one_note_a_column(tmp_path: Path, good: list[bytes], form: str) -> None:
    lines = list(good)
    for i, token in enumerate([b"re-hashed", b"re-hashed", b"68FD1E64", b"68fd1e6"]):
        lines = _with(lines, 1 + i, 14, token)
    path = _file(tmp_path, form, b"\n".join(lines * 3) + b"\n")
    notes = prepare("criteo", path, tmp_path / "out").manifest["rows"]["notes"]
    assert {k: n for k, n in notes.items() if "published" not in k} == {
        "C1: values that are not 8 hex digits, kept as text": 3
    }


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_repeated_rows_are_kept(tmp_path: Path, good: list[bytes], form: str, policy: str) -> None:
    """Criteo rows have no key: an equal row is another impression."""
    rows, account = _read(_file(tmp_path, form, b"\n".join([*good, *good[:7]]) + b"\n"), policy)
    assert (account.read, account.kept) == (ROWS + 7, ROWS + 7)
    assert rows.tail(7).equals(rows.head(7))
