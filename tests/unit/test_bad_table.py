"""Tables that are wrong: exact line, both policies, plain and gzip; every line accounted for."""

from __future__ import annotations

import gzip
import runpy
import zlib
from pathlib import Path

import polars as pl
import pytest

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.table_reader import read
from ctrbench.datasets.table_schema import parse

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_table.py"))
SEQUENCE, TABULAR, HEADER, csv_text = _tiny["SEQUENCE"], _tiny["TABULAR"], _tiny["HEADER"], _tiny["csv_text"]
sequence_rows, tabular_rows, shop, loans = _tiny["sequence_rows"], _tiny["tabular_rows"], _tiny["shop"], _tiny["loans"]
ROWS = 120
COLUMN = {name: i for i, name in enumerate(HEADER)}
REMEDY = "; correct the line, or drop and count bad rows with policy=skip"


@pytest.fixture(params=["plain", "gz"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _good() -> list[str]:
    """Header and rows."""
    return str(csv_text(HEADER, sequence_rows(ROWS))).splitlines()


def _file(folder: Path, form: str, data: bytes | str) -> Path:
    path = folder / ("t.csv.gz" if form == "gz" else "t.csv")
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if form == "gz" else data)
    return path


def _read(
    path: Path, policy: str = "strict", chunk: int = 1000, schema: str = SEQUENCE, max_bad: float = 0.5
) -> tuple[pl.DataFrame, Account]:
    account = Account(path, policy, max_bad)
    rows = pl.concat(list(read(path, account, parse(path, schema), chunk)))
    account.close()
    assert account.read == account.header + account.kept + account.skipped.total()
    assert account.kept == rows.height
    return rows, account


_REQUIRED = SEQUENCE.replace("min_count: 2", "min_count: 2, required: true")
BAD_ROWS: dict[str, tuple[str | None, str, str, str]] = {
    "short": (None, "a,b,c", "wrong field count, 11 expected", "3 fields"),
    "long": (None, ",".join("x" * 12), "wrong field count, 11 expected", "12 fields"),
    "blank line": (None, "", "wrong field count, 11 expected", "1 fields"),
    "quote that does not end": (None, 'u1,"s1,k1', "quotes: unexpected end of data", "line"),
    "text after a quote": (None, 'u1,"s1"x,k1', "quotes: ',' expected after '\"'", "line"),
    "label 2": ("clicked", "2", "label is neither a positive nor a negative value", "clicked"),
    "label 1.0": ("clicked", "1.0", "label is neither a positive nor a negative value", "clicked"),
    "no label": ("clicked", "", "label is empty", "clicked"),
    "no user": ("uid", "", "user is empty", "uid"),
    "no item": ("sku", "", "required value is empty", "sku"),
    "no time": ("when", "", "time is empty", "when"),
    "time text": ("when", "2017-11-25", "not a time", "when"),
    "time with fraction": ("when", "1600000000.5", "not a time", "when"),
    "time negative": ("when", "-1600000000", "not a time", "when"),
    "time in ms": ("when", "1600000000000", "time before 1970 or after 2099: wrong unit?", "when"),
    "time beyond 64 bits": ("when", "9" * 25, "not a time", "when"),
    "price word": ("price", "cheap", "not a number", "price"),
    "price nan": ("price", "nan", "not a number", "price"),
    "price inf": ("price", "-inf", "not a number", "price"),
    "price plus": ("price", "+3", "not a number", "price"),
    "price space": ("price", " 3", "not a number", "price"),
    "price comma": ("price", '"3,5"', "not a number", "price"),
    "price too large": ("price", "1e39", "number beyond single precision", "price"),
    "item time text": ("past_when", "1600000000|x", "history: not a time", "past_when"),
    "item time empty": ("past_when", "1600000000|", "history: time is empty", "past_when"),
    "item time negative": ("past_when", "-5", "history: not a time", "past_when"),
}
"""case -> column to overwrite (None: the whole line), with what, the reason, the column as the message names it."""
SHOWN = {"price comma": "3,5", "item time text": "x", "item time empty": ""}
"""What the message shows where it is not what was written."""


@pytest.mark.parametrize("line", [2, 57, ROWS + 1])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row(tmp_path: Path, form: str, case: str, line: int) -> None:
    column, value, reason, name = BAD_ROWS[case]
    lines = _good()
    without = lines[: line - 1] + lines[line:]
    cells = lines[line - 1].split(",")
    if column is not None:
        cells[COLUMN[column]] = value
    lines[line - 1] = ",".join(cells) if column is not None else value
    path = _file(tmp_path, form, "\n".join(lines) + "\n")
    message = f"{path}:{line}: {reason}: {name} {SHOWN.get(case, value)[:40]!r}"
    with pytest.raises(BadInput) as caught:
        _read(path, schema=_REQUIRED)
    assert str(caught.value) == message + REMEDY
    rows, account = _read(path, "skip", schema=_REQUIRED)
    assert (account.read, account.header, account.kept) == (ROWS + 1, 1, ROWS - 1)
    assert dict(account.skipped) == {reason: 1}
    assert account.places == {reason: [message]}
    assert rows.equals(_read(_file(tmp_path, "plain", "\n".join(without) + "\n"), schema=_REQUIRED)[0])


def test_strict_stops_at_the_first_bad_line_whatever_is_wrong(tmp_path: Path) -> None:
    lines = _good()
    lines[40] = "a,b"  # structure, found first by the reader, but later in the file
    cells = lines[20].split(",")
    cells[COLUMN["clicked"]] = "?"
    lines[20] = ",".join(cells)
    with pytest.raises(BadInput, match=":21: label is neither"):
        _read(_file(tmp_path, "plain", "\n".join(lines)), chunk=1 << 20)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_harmless_oddities(tmp_path: Path, form: str, policy: str, chunk: int) -> None:
    good = _good()
    expected, _ = _read(_file(tmp_path, "plain", "\n".join(good) + "\n"))
    others = "columns that the schema does not name, ignored: extra"
    quoted = ['"' + '","'.join(line.split(",")) + '"' for line in good]
    for data, notes in (
        ("\n".join(good), {"last line without newline": 1}),
        ("\r\n".join(good) + "\r\n", {"lines ended by CRLF": ROWS + 1}),
        ("\r\n".join(good[:3]) + "\n" + "\n".join(good[3:]) + "\n", {"lines ended by CRLF": 2}),
        ("\ufeff" + "\n".join(good) + "\n", {"byte order mark at the start removed": 1}),
        ("\n".join([" , ".join(good[0].split(",")), *good[1:]]) + "\n", {}),
        ("\n".join(quoted) + "\n", {}),
        ("\n".join([*good[:50], *quoted[50:]]) + "\n", {}),
    ):
        rows, account = _read(_file(tmp_path, form, data), policy, chunk)
        assert rows.equals(expected)
        assert dict(account.notes) == {others: 1, **notes}
        assert (account.read, account.header, account.kept) == (ROWS + 1, 1, ROWS)


def test_times_written_as_decimals_are_accepted_and_noted(tmp_path: Path, form: str) -> None:
    lines = _good()
    expected, _ = _read(_file(tmp_path, "plain", "\n".join(lines) + "\n"))
    for i in (5, 9):
        cells = lines[i].split(",")
        cells[COLUMN["when"]] += ".0"
        lines[i] = ",".join(cells)
    rows, account = _read(_file(tmp_path, form, "\n".join(lines) + "\n"))
    assert rows.equals(expected)
    assert account.notes["times written as decimals (1.0)"] == 2


def test_categories_are_text_and_missing_is_what_the_schema_says(tmp_path: Path, form: str) -> None:
    lines = _good()
    tokens = ["007", "7", "7.0", "1e3", "NULL", "nan", " a b ", '"a,b"', '"say ""hi"""', "é", ""]
    for i, token in enumerate(tokens, 1):
        cells = lines[i].split(",")
        cells[COLUMN["sku"]] = token
        lines[i] = ",".join(cells)
    path = _file(tmp_path, form, "\n".join(lines) + "\n")
    shown = ["007", "7", "7.0", "1e3", "NULL", "nan", " a b ", "a,b", 'say "hi"', "é", None]
    assert _read(path)[0]["item"][: len(shown)].to_list() == shown
    shown[4:6] = [None, None]
    assert _read(path, schema=SEQUENCE + "missing: [NULL, nan]\n")[0]["item"][: len(shown)].to_list() == shown


def test_quotes_can_be_plain_characters(tmp_path: Path) -> None:
    lines = _good()
    cells = lines[1].split(",")
    cells[COLUMN["sku"]] = '"s'
    lines[1] = ",".join(cells)
    path = _file(tmp_path, "plain", "\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=":2: quotes: unexpected end of data"):
        _read(path)
    assert _read(path, schema=SEQUENCE + 'quote: ""\n')[0]["item"][0] == '"s'


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_headers_that_are_refused(tmp_path: Path, form: str, policy: str) -> None:
    good = _good()
    names = good[0].split(",")
    for header, message in (
        (["Uid", *names[1:]], "column of the schema absent: 'uid': did you mean 'Uid'. Valid: Uid, clicked"),
        (good[1].split(","), "column of the schema absent: "),
        ([*names[:-1], "sku"], "column named twice: sku"),
        (["\t".join(names)], "column of the schema absent: "),
    ):
        with pytest.raises(BadInput, match=f":1: {message}"):
            _read(_file(tmp_path, form, "\n".join([",".join(header), *good[1:]]) + "\n"), policy)


def _numbered(schema: str) -> str:
    """The schema for a file without header."""
    for name in sorted(HEADER, key=len, reverse=True):
        schema = schema.replace(f"column: {name},", f"column: {COLUMN[name] + 1},")
        schema = schema.replace(f"column: {name}}}", f"column: {COLUMN[name] + 1}}}")
    return schema.replace("user: uid", "user: 1").replace("name: price,", "name: price, column: 4,") + "header: false\n"


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_file_without_header(tmp_path: Path, form: str, policy: str) -> None:
    good = _good()
    expected, _ = _read(_file(tmp_path, "plain", "\n".join(good) + "\n"))
    schema = _numbered(SEQUENCE)
    rows, account = _read(_file(tmp_path, form, "\n".join(good[1:]) + "\n"), policy, schema=schema)
    assert rows.equals(expected)
    assert (account.read, account.header, account.kept) == (ROWS, 0, ROWS)
    with pytest.raises(BadInput, match=":1: header where none belongs: label 'clicked'; set header: true"):
        _read(_file(tmp_path, form, "\n".join(good) + "\n"), policy, schema=schema)
    with pytest.raises(BadInput, match=":1: column of the schema absent: '12': did you mean"):
        _read(
            _file(tmp_path, form, "\n".join(good[1:]) + "\n"),
            policy,
            schema=schema.replace("column: 4,", "column: 12,"),
        )


def test_bad_first_line_without_header_is_a_bad_row(tmp_path: Path, form: str) -> None:
    lines = _good()[1:]
    cells = lines[0].split(",")
    cells[COLUMN["clicked"]] = "2"
    path = _file(tmp_path, form, "\n".join([",".join(cells), *lines[1:]]) + "\n")
    assert _read(path, "skip", schema=_numbered(SEQUENCE))[1].skipped.total() == 1


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_files_that_are_refused(tmp_path: Path, form: str, policy: str) -> None:
    good = _good()
    whole = "\n".join(good) + "\n"
    for data, message in (
        (b"", ":1: empty file"), (good[0].encode(), "no rows"), (f"{good[0]}\n".encode(), "no rows"),
        (whole.encode().replace(b"s1", b"s\0"), r":\d+: NUL byte at byte \d+"),
        (whole.encode().replace(b"s1", b"s\xff"), r":\d+: bytes that are not UTF-8 at byte \d+"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            _read(_file(tmp_path, form, data), policy)
    with pytest.raises(BadInput, match="is a directory"):
        _read(tmp_path, policy)
    with pytest.raises(BadInput, match="cannot be read"):
        _read(tmp_path / "none.csv", policy)


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_broken_gzip(tmp_path: Path, policy: str) -> None:
    whole = ("\n".join(_good()) + "\n").encode()
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(whole, 0)[: len(whole) // 2])
    decoded = zlib.decompressobj(31).decompress(path.read_bytes())
    with pytest.raises(BadInput) as caught:
        _read(path, policy, 1 << 20)
    line = decoded.count(b"\n") + 1
    assert str(caught.value).startswith(f"{path}:{line}: gzip stream truncated: after {len(decoded)} bytes of text; ")
    path.write_bytes(gzip.compress(whole[:5000]) + gzip.compress(whole[5000:]))
    assert _read(path, policy)[1].kept == ROWS


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_repeated_rows_are_kept(tmp_path: Path, form: str, policy: str) -> None:
    good = _good()
    rows, account = _read(_file(tmp_path, form, "\n".join([*good, *good[1:8]]) + "\n"), policy)
    assert (account.read, account.kept) == (ROWS + 8, ROWS + 7)
    assert rows.tail(7).equals(rows.head(7))


def test_truncated_last_line(tmp_path: Path, form: str) -> None:
    good = _good()
    path = _file(tmp_path, form, "\n".join(good[:-1]) + "\n" + good[-1][:12])
    reason = "truncated last line, wrong field count, 11 expected"
    with pytest.raises(BadInput, match=f":{ROWS + 1}: {reason}"):
        _read(path)
    assert dict(_read(path, "skip")[1].skipped) == {reason: 1}


def test_skip_fails_above_the_fraction(tmp_path: Path, form: str) -> None:
    lines = _good()
    lines[8] = "x"
    path = _file(tmp_path, form, "\n".join(lines) + "\n")
    _read(path, "skip", max_bad=1 / ROWS)
    with pytest.raises(
        BadInput, match=rf"1 of {ROWS} rows are bad, more than max_bad_fraction=0.001; first: .*:9: wrong"
    ):
        _read(path, "skip", max_bad=0.001)


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_tables_that_prepare_refuses(tmp_path: Path, policy: str) -> None:
    table, schema = loans(tmp_path, ROWS)
    text = table.read_text()
    for data, message in (
        (text.replace(";no\n", ";yes please\n"), "all 87 rows of split 'train' have label 1"),
        ("\n".join(text.splitlines()[:4]), "no rows for split"),
    ):
        table.write_text(data)
        with pytest.raises(BadInput, match=message):
            prepare("table", table, tmp_path / "out", policy=policy, schema=str(schema))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loans.csv", "loans.yaml"], "something was left behind"


def test_any_value_but_the_positive_ones_can_be_negative(tmp_path: Path) -> None:
    schema = TABULAR.replace("negative: [no]", "negative: rest")
    table, _ = loans(tmp_path, ROWS, schema)
    table.write_text(table.read_text().replace(";no\n", ";never\n", 3))
    rows, _ = _read(table, schema=schema)
    assert rows["label"].to_list() == [int(r[-1] == "yes please") for r in tabular_rows(ROWS)]
    with pytest.raises(BadInput, match=r"label is neither .* 'never'"):
        _read(table, schema=TABULAR)


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_parquet_that_is_refused(tmp_path: Path, policy: str) -> None:
    table, _ = shop(tmp_path, ROWS)
    frame = pl.read_csv(table, infer_schema=False)
    path = tmp_path / "t.parquet"
    lists = pl.col("past_sku").str.split("|").fill_null([])
    for wrong, message in (
        (frame.drop("sku"), r":1: column of the schema absent: 'sku': did you mean"),
        (frame.with_columns(pl.col("sku").cast(pl.Binary)), r"column 'sku' holds Binary; write it as text or numbers"),
        (
            frame.with_columns(pl.col("sku").str.split("|")),
            r"column 'sku' holds lists; make it a field of kind sequence",
        ),
        (frame.with_columns(lists.list.eval(pl.element() + "|x")), r"an item of column 'past_sku' holds '\|'; choose"),
    ):
        wrong.write_parquet(path)
        with pytest.raises(BadInput, match=message):
            _read(path, policy)
    frame.write_parquet(path)
    for data in (path.read_bytes()[:-200], b"PAR1", path.read_bytes()[:1000] + b"\0" * 900 + path.read_bytes()[1900:]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"t.parquet:\d+: not readable as Parquet: after \d+ rows"):
            _read(path, policy)


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    table, _ = shop(tmp_path, ROWS)
    frame = pl.read_csv(table, infer_schema=False)
    path = tmp_path / "t.parquet"
    label = pl.when(pl.int_range(pl.len()) == 6).then(None).otherwise(pl.col("clicked"))
    price = pl.when(pl.int_range(pl.len()) == 40).then(pl.lit("NaN")).otherwise(pl.col("price")).cast(pl.Float64)
    frame.with_columns(label.alias("clicked"), price.alias("price")).write_parquet(path)
    with pytest.raises(BadInput, match=r"t.parquet:7: label is empty: clicked ''"):
        _read(path)
    _, account = _read(path, "skip")
    assert (account.read, account.header, account.kept) == (ROWS, 0, ROWS - 2)
    assert dict(account.skipped) == {"label is empty": 1, "not a number": 1}
    assert account.places["not a number"] == [f"{path}:41: not a number: price 'NaN'"]
