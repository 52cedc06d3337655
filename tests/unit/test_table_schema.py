"""Schemas that are wrong stop with exit 2, naming file, key, what is valid and what to do, before the table is read."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from ctrbench.bench.cli import main
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.table_schema import parse

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_table.py"))
SEQUENCE, TABULAR, shop = _tiny["SEQUENCE"], _tiny["TABULAR"], _tiny["shop"]
LABEL, TIME, USER = "label: {column: clicked}\n", "time: {column: when}\n", "user: uid\n"
ITEM = "{name: item, column: sku, kind: categorical, role: item, min_count: 2}"
TIMES = 'event_times:\n  - {column: past_when, separator: "|"}\n'

WRONG: dict[str, tuple[str, str, str]] = {
    "unknown key": (USER, "usr: uid\n", "usr: unknown key 'usr': did you mean 'user'? Valid: delimiter,"),
    "unknown key of a field": (
        "min_count: 2",
        "min_counts: 2",
        "fields[1].min_counts: unknown key 'min_counts': did you mean 'min_count'",
    ),
    "unknown kind": (
        "kind: categorical, role: user",
        "kind: categorial",
        "fields[0].kind: unknown value 'categorial': did you mean 'categorical'",
    ),
    "unknown role": ("role: user", "role: usr", "fields[0].role: unknown value 'usr': did you mean 'user'"),
    "role of a sequence": (
        "kind: sequence, target: category",
        "kind: sequence, role: item, target: category",
        "fields[5].role: unknown value 'item': did you mean 'behaviour'",
    ),
    "unknown transform": (
        "kind: dense",
        "kind: dense, transform: log",
        "fields[3].transform: unknown value 'log': did you mean",
    ),
    "unknown rule": (USER, USER + "split: {rule: tim}\n", "split.rule: unknown value 'tim': did you mean 'time'"),
    "key of another rule": (
        USER,
        USER + "split: {rule: time, folds: 3}\n",
        "split.folds: unknown key 'folds': did you mean",
    ),
    "unknown unit": (TIME, "time: {column: when, unit: us}\n", "time.unit: unknown value 'us': did you mean"),
    "unknown target": (
        "target: category",
        "target: categry",
        "fields[5].target: no categorical field 'categry': did you mean 'category'",
    ),
    "target that is no category": (
        "target: category",
        "target: price",
        "fields[5].target: no categorical field 'price': did you mean",
    ),
    "unknown history": (
        TIMES,
        TIMES.replace("{", "{history: his, "),
        "event_times[0].history: unknown value 'his': did you mean 'hist'",
    ),
    "no label": (LABEL, "", "label: required and absent; add it"),
    "two labels in a list": (
        LABEL,
        "label: [{column: clicked}, {column: kind}]\n",
        "label: a list; there is one label; choose the column to predict",
    ),
    "label without column": (LABEL, "label: {positive: 1}\n", "label.column: required and absent; add it"),
    "label that is a text": (
        LABEL,
        "label: clicked\n",
        "label: 'clicked' is no mapping; give keys and values, e.g. {column: clicked}",
    ),
    "value of both classes": (
        LABEL,
        "label: {column: clicked, positive: [0, 1]}\n",
        "label.positive: ['0']; give the values that count as 1",
    ),
    "label as a feature": (
        "column: sku",
        "column: clicked",
        "fields[1].column: 'clicked' is the label; a feature must not be what is predicted",
    ),
    "no fields": (SEQUENCE[SEQUENCE.index("fields:") :], "", "fields: required and absent; add it"),
    "fields that are no list": (SEQUENCE[SEQUENCE.index("fields:") :], "fields: {a: b}\n", "fields: dict; give a list"),
    "field without kind": (", kind: dense", "", "fields[3].kind: required and absent; add it"),
    "field without name": ("name: price, ", "", "fields[3].name: required and absent; add it"),
    "name of two fields": ("name: category", "name: item", "fields[2].name: 'item' is taken; choose another name"),
    "reserved name": (
        "name: price",
        "name: time, column: price",
        "fields[3].name: 'time' is taken; choose another name",
    ),
    "reserved name of a history": (
        "name: price",
        "name: hist_end, column: price",
        "fields[3].name: 'hist_end' is taken",
    ),
    "name with a blank": ("name: price", "name: my price", "fields[3].name: 'my price'; use letters, digits and _"),
    "name of a path": ("name: price", "name: ../price", "fields[3].name: '../price'; use letters, digits and _"),
    "length of a dense field": (
        "kind: dense",
        "kind: dense, max_length: 5",
        "fields[3].max_length: belongs to kind sequence; remove it",
    ),
    "two lengths": (
        "max_length: 6}\n  - {name: hist_c",
        "max_length: 7}\n  - {name: hist_c",
        "fields[5].max_length: 6, but hist_item has 7; sequences of history 'hist' have one length",
    ),
    "length 0": ("max_length: 6", "max_length: 0", "fields[4].max_length: '0'; give a whole number within 1..100000"),
    "length of half an item": ("max_length: 6", "max_length: 6.5", "fields[4].max_length: '6.5'; give a whole number"),
    "count of a mirror": (
        "target: item",
        "target: item, min_count: 3",
        "fields[4].target: item decides the values; remove min_count",
    ),
    "value twice": ("values: [0, 1]", "values: [0, 0]", "fields[6].values: a value twice; list every value once"),
    "long separator": (
        'target: item, separator: "|"',
        'target: item, separator: "||"',
        "fields[4].separator: '||'; give one ASCII character",
    ),
    "long delimiter": (LABEL, LABEL + "delimiter: tab\n", "delimiter: 'tab'; give one ASCII character"),
    "quote and delimiter": (
        LABEL,
        LABEL + 'delimiter: ";"\nquote: ";"\n',
        "quote: ';' is the delimiter too; they must differ",
    ),
    "no flag": (LABEL, LABEL + "header: yes\n", "header: 'yes'; write true or false"),
    "share of all": (LABEL, LABEL + "split: {rule: time, test: 1}\n", "split.test: '1'; give a share between 0 and 1"),
    "share of a word": (
        LABEL,
        LABEL + "split: {rule: time, test: nan}\n",
        "split.test: 'nan'; give a share between 0 and 1",
    ),
    "no time and no split": (TIME + TIMES, "", "split: absent, and there is no time; say which rows are test"),
    "split by time without one": (
        TIME + TIMES,
        "split: {rule: time}\n",
        "split.rule: time without a time; add time: {column: ...}",
    ),
    "random with time": (
        USER,
        USER + "split: {rule: random}\n",
        "split.rule: random although rows have a time; test rows must be the later",
    ),
    "file order with time": (
        USER,
        USER + "split: {rule: file_order}\n",
        "split.rule: file_order although rows have a time",
    ),
    "per user without one": (
        USER,
        "split: {rule: per_user}\n",
        "split.rule: per_user without a user; add user: COLUMN",
    ),
    "value of two parts": (
        USER,
        USER + "split: {rule: column, column: kind, train: [a, b], test: a}\n",
        "split.train: a value of two parts; give every value",
    ),
    "part without values": (
        USER,
        USER + "split: {rule: column, column: kind, train: a}\n",
        "split.test: required and absent; add it",
    ),
    "item times without a row's": (
        TIME,
        "split: {rule: file_order}\n",
        "event_times: without the time of the row; add time",
    ),
    "item times twice": (
        TIMES,
        TIMES + "  - {column: past_buy}\n",
        "event_times: a history twice; give the times of each history once",
    ),
    "offset of an epoch": (
        TIME,
        "time: {column: when, utc_offset_hours: 8}\n",
        "time.utc_offset_hours: 8 with unit s; epoch times are UTC",
    ),
    "offset of days": (
        TIME,
        "time: {column: when, unit: iso, utc_offset_hours: 48}\n",
        "time.utc_offset_hours: '48'; give a whole number within -14..14",
    ),
    "list for a text": (USER, "user: [uid]\n", "user: \"['uid']\" is no text; give one text"),
}
"""case -> text to replace in the schema, by what, the message after the file's name."""


@pytest.mark.parametrize("case", WRONG)
def test_wrong_schema(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, message = WRONG[case]
    assert old in SEQUENCE
    table, file = shop(tmp_path, 50, SEQUENCE.replace(old, new, 1))
    table.unlink()  # a wrong schema shows before the table is opened
    table.write_text("nonsense")
    argv = ["data", "prepare", "table", "--path", str(table), "--schema", str(file), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label: {column: a}\nlabel: {column: b}\n", r":2: not usable as YAML: key 'label' twice; correct the file"),
        ("fields:\n  - {name: a, name: b}\n", r":2: not usable as YAML: key 'name' twice"),
        ("label: {column: a\n", r":2: not usable as YAML: "),
        ("a: b: c\n", r":1: not usable as YAML: mapping values are not allowed here"),
        ("a:\t- b\n c", r"not usable as YAML"),
        ("? [a, b]\n: c\n", r":1: not usable as YAML: a key that is no text"),
        ("", r": holds no keys; see docs/table.md"),
        ("- a\n- b\n", r": holds no keys; see docs/table.md"),
        ("just text", r": holds no keys; see docs/table.md"),
    ],
)
def test_no_yaml(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(Path("s.yaml"), text)


def test_nothing_is_executed(tmp_path: Path) -> None:
    """A tag that PyYAML's full loader would run is no more than text or a mapping here."""
    mark = tmp_path / "ran"
    for tag in (
        f"!!python/object/apply:os.mkdir [{mark}]", f"!!python/object/new:os.mkdir {{args: [{mark}]}}",
        f"!!python/object/apply:pathlib.Path.mkdir [!!python/object/apply:pathlib.Path [{mark}]]",
    ):  # fmt: skip
        with pytest.raises(BadInput):
            parse(Path("s.yaml"), f"label: {tag}\n")
    assert not mark.exists()


def test_values_stay_as_they_are_written() -> None:
    """YAML 1.1 would read these as false, 7, 45000, 1.0, a date and null."""
    schema = parse(Path("s.yaml"), TABULAR.replace("[no]", "[no, 007, 12:30:00, 1.00, 2017-11-25, null]"))
    assert schema.label.negative == ("no", "007", "12:30:00", "1.00", "2017-11-25", "null")


def test_defaults() -> None:
    schema = parse(Path("s.yaml"), "label: {column: y}\ntime: {column: t}\nfields:\n  - {name: a, kind: categorical}\n")
    assert (schema.name, schema.delimiter, schema.quote, schema.header) == ("table", ",", '"', True)
    assert (schema.label.positive, schema.label.negative, schema.missing) == (("1",), ("0",), ("",))
    assert (schema.split.rule, schema.split.test, schema.split.valid) == ("time", 0.2, 0.1)
    (field,) = schema.fields
    assert (field.column, field.role, field.min_count, field.required) == ("a", "context", 1, False)
    assert schema.columns == ("y", "t", "a")
