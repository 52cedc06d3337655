"""The fast reader of Criteo lines against the plain one, line for line, on lines made to be misread."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrbench.datasets import criteo_text
from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_text import COLUMNS, CSV, ENCODED, INTEGERS, TSV, Layout, explain, read
from ctrbench.datasets.numbers import PATTERNS, Number, number, wrong_number
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS
from ctrbench.datasets.textfile import Lines

LAYOUTS = {"tsv": TSV, "x4": CSV, "x1": ENCODED}
ODD = (
    "", "0", "1", "-1", "007", "1.0", "1.00", "1.", ".5", "1.5", "-0", "+3", " 7", "7 ", "1_000", "1e3", "1E-3",
    "1e999", "3.5e38", "-3.5e38", "3.4e38", "1e-400", "nan", "NaN", "inf", "-inf", "NULL", "NA", "true", "٣", "é",
    '"', '"1"',
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "9007199254740992",
    "9007199254740993", "9007199254740992.0", "68fd1e64", "0x1f", "1" * 400, "\r", "'", "#", "\\", "\x1f", "0.0",
    "-1.0",
)  # fmt: skip
"""Texts that some reader takes for a number and another does not."""


@given(st.text(max_size=12) | st.sampled_from(ODD) | st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,3})?([eE]-?[0-9]{1,3})?"))
@settings(deadline=None, max_examples=400)
def test_one_number(text: str) -> None:
    for kind in PATTERNS:
        plain = wrong_number(text, kind)
        fast = pl.DataFrame({"x": [text]}).select(number(pl.col("x"), kind)).item()
        assert (fast is None) == (plain is not None), (kind, text, plain, fast)
        if fast is not None:
            assert fast == (float(text) if kind == "decimal" else int(text.split(".")[0]))


@pytest.mark.parametrize("kind", list(PATTERNS))
@pytest.mark.parametrize("text", ODD)
def test_odd_texts(kind: Number, text: str) -> None:
    fast = pl.DataFrame({"x": [text]}).select(number(pl.col("x"), kind)).item()
    assert (fast is None) == (wrong_number(text, kind) is not None)


def _good(layout: Layout, seed: int) -> dict[str, str]:
    text = f"{seed:08x}" if not layout.encoded else str(seed)
    return {"label": str(seed % 2), **{c: str(seed % 7) for c in INTEGERS}, **dict.fromkeys(COLUMNS[14:], text)}


_CELL = st.sampled_from(ODD).filter(lambda s: not set(s) & set("\t,\r\n\0"))


@st.composite
def _lines(draw: st.DrawFn, layout: Layout) -> list[str]:
    """Good lines with a few cells, counts of cells or whole lines replaced."""
    out = []
    for i in range(draw(st.integers(1, 12))):
        row = _good(layout, i)
        for name in draw(st.lists(st.sampled_from(COLUMNS), max_size=2)):
            row[name] = draw(_CELL)
        cells = list(row.values())
        change = draw(st.sampled_from(["", "", "", "", "drop", "add", "empty"]))
        cells = cells[:-1] if change == "drop" else [*cells, "x"] if change == "add" else cells
        out.append("" if change == "empty" else layout.delimiter.join(cells))
    return out


@pytest.mark.parametrize("form", list(LAYOUTS))
@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_fast_reader_agrees_line_for_line(form: str, data: st.DataObject) -> None:
    """Kept rows, and reason, field and place of every other line; plain and gzip, chunks of any size."""
    layout = LAYOUTS[form]
    lines = [layout.delimiter.join(_good(layout, 99).values()), *data.draw(_lines(layout))]
    head = [layout.delimiter.join(COLUMNS)] if layout.header else []
    if data.draw(st.booleans()) or not lines[-1]:
        text = "\n".join([*head, *lines, ""])
    else:
        text = "\n".join([*head, *lines])
    chunk = data.draw(st.sampled_from([1, 150, 1 << 20]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctrbench.datasets.account.PLACES", len(lines))
        path = Path(folder) / "f"
        path.write_bytes(gzip.compress(text.encode()) if data.draw(st.booleans()) else text.encode())
        account = Account(path, "skip", 1.0)
        rows = pl.concat(list(read(path, account, chunk, layout=layout)))
        account.close()
        found = [explain(line, layout) for line in lines]
        good = [line.split(layout.delimiter) for line, f in zip(lines, found, strict=True) if f is None]
        assert rows["label"].to_list() == [int(cells[0]) for cells in good]
        for place, name in enumerate(COLUMNS[1:], 1):
            kind = layout.numbers.get(name)
            values = [_value(cells[place], kind) for cells in good]
            assert rows[name].to_list() == [str(v) if kind == "id" and v is not None else v for v in values]
        shown = sorted(p for places in account.places.values() for p in places)
        last = len(head) + len(lines) if not text.endswith("\n") else 0
        expected = []
        for line, f in enumerate(found, 1 + len(head)):
            if f is not None:
                cut = "truncated last line, " if line == last else ""
                expected.append(f"{path}:{line}: {cut}{f[0]}: {f[1]} {f[2][:40]!r}")
        assert shown == sorted(expected)
        assert account.read == account.header + account.kept + account.skipped.total() == len(head) + len(lines)


_PLAIN = st.sampled_from(
    ("", "0", "1", "-1", "-0", "--1", "-", "1-", "007", "1e3", "e", "68fd1e64", "-8fd1e64", "68fd1e6", "68fd1e640",
     "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1" * 400)
)  # fmt: skip
"""Cells of digits, a to f and minus alone: what the quick reader looks at."""


@given(data=st.data())
@settings(deadline=None, max_examples=120)
def test_quick_reader_takes_only_what_the_plain_reader_takes(data: st.DataObject) -> None:
    """Rows and notes are those of the reader of any chunk, and no chunk with a line that `explain` refuses is taken."""
    lines = []
    for i in range(data.draw(st.integers(1, 4))):
        row = _good(TSV, i)
        for name in data.draw(st.lists(st.sampled_from(COLUMNS), max_size=2)):
            row[name] = data.draw(_PLAIN)
        cells = list(row.values())
        change = data.draw(st.sampled_from(["", "", "", "", "move", "drop", "empty"]))
        if change == "move" and lines:  # as many delimiters in all, a field too many here and too few above
            lines[-1] = lines[-1].rsplit("\t", 1)[0]
            cells.append("1")
        lines.append("" if change == "empty" else "\t".join(cells[:-1] if change == "drop" else cells))
    text = "".join(f"{line}\n" for line in lines).encode()
    found = [explain(line) for line in lines]
    for tokens in (False, True):
        made = criteo_text._quick(Lines(text, 2, False), COLUMNS, TSV, tokens)
        assert (made is None) == any(found), found
        if made is None:
            continue
        account = Account(Path("f"), "strict")
        expected = criteo_text._parse(Lines(text, 2, False), TSV, COLUMNS, account)
        rows, negative = made
        assert negative == account.notes["negative integers outside I2"]
        for name in COLUMNS:
            column = rows[name]
            if column.dtype == pl.UInt32:
                assert tokens
                column = pl.Series(name, [None if v is None else f"{v:08x}" for v in column], dtype=pl.String)
            assert column.equals(expected[name], null_equal=True), name


def test_odd_tokens_are_coded_as_text(tmp_path: Path) -> None:
    """A value that is no token in one chunk, and tokens in others: one vocabulary, the same ids everywhere."""
    lines = []
    for i in range(400):
        row = _good(TSV, i) | {"C1": "deadbeef" if i % 3 else "no token", "C2": "ABCDEF01", "C3": "" if i % 2 else "z"}
        lines.append("\t".join((row if i % 50 < 25 else _good(TSV, i) | {"C1": "deadbeef"}).values()))
    path = tmp_path / "f"
    path.write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo_text.read, "__defaults__", (2000,))
        many = prepare("criteo", path, tmp_path / "many")
    one = prepare("criteo", path, tmp_path / "one")
    assert len(many.shards("train")) > len(one.shards("train")) == 1
    texts = [line.split("\t")[14] for line in lines]
    for split in SPLITS:
        assert many.frame(split).equals(one.frame(split))
    words = dict(one.vocabulary("C1").select("value", "id").iter_rows())
    assert one.frame("test")["C1"].to_list() == [words[t] for t in texts[320:]]
    assert one.manifest["rows"]["notes"] == many.manifest["rows"]["notes"]
    assert one.manifest["rows"]["notes"]["C1: values that are not 8 hex digits, kept as text"] == 1


def _value(text: str, kind: Number | None) -> int | float | str | None:
    if not text:
        return None
    return text if kind is None else float(text) if kind == "decimal" else int(text.split(".")[0])
