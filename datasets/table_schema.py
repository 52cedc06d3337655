"""The YAML file that says what the columns of a user's table are; every key is checked before the table is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ctrbench.datasets.errors import nearest
from ctrbench.datasets.schema import Kind, Role
from ctrbench.datasets.transforms import TRANSFORMS
from ctrbench.datasets.yamlnode import Node, load

Rule = Literal["time", "per_user", "file_order", "column", "random"]
RULES: dict[Rule, tuple[str, ...]] = {
    "time": ("test", "valid"), "per_user": ("test", "valid"), "file_order": ("test", "valid"),
    "column": ("column", "train", "valid", "test"), "random": ("folds", "seed"),
}  # fmt: skip
"""Split rule -> its keys."""
UNITS = ("s", "ms", "iso")
_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,99}"  # files of vocabularies are named so
_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "dense": ("transform",),
    "categorical": ("min_count", "values"),
    "sequence": ("min_count", "values", "target", "separator", "max_length", "history"),
}
"""Keys of a field that only some kinds have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableField:
    """One feature."""

    name: str
    column: str
    """Of the table; its number from 1 where the file has no header."""
    kind: Kind
    role: Role
    required: bool
    """An empty value is a bad row; else it is a missing value."""
    min_count: int
    """Rarer values of the train rows are out of vocabulary."""
    values: tuple[str, ...]
    """All values, in the order of their ids; empty = those of the train rows."""
    transform: str
    """Of a dense field, one of `transforms.TRANSFORMS`."""
    target: str | None
    """Categorical field whose values a sequence repeats; they share vocabulary and table."""
    separator: str
    """Between the items of a sequence."""
    max_length: int
    """Newest items kept of a sequence."""
    history: str
    """Sequences of one history are aligned item by item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What is predicted."""

    column: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    """Empty = every value that is not positive; else a value in neither is a bad row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Time:
    """When a row, or an item of a history, happened."""

    column: str
    unit: str
    """`s` or `ms` since 1970 in UTC, or `iso`: 2017-11-25 or 2017-11-25 13:05:00."""
    utc_offset_hours: int
    """Of the clock that wrote `iso` times."""
    separator: str = ""
    """Between the times of a history's items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Which rows are train, valid and test."""

    rule: Rule
    test: float = 0.2
    """Share of the rows, the last ones by time (of each user: `per_user`)."""
    valid: float = 0.1
    """Share of the other rows, their end."""
    column: str = ""
    """With rule `column`: where the part of a row is written, and the values of each part."""
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    folds: int = 10
    """With rule `random`: one fold is test, one is valid."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSchema:
    """The whole file."""

    name: str
    delimiter: str
    quote: str
    """Around text that holds delimiters; empty = no character is special. Text never holds line ends."""
    header: bool
    missing: tuple[str, ...]
    """Texts that mean a missing value; the empty one always does."""
    label: Label
    user: str | None
    """Column that groups rows for GAUC."""
    time: Time | None
    event_times: dict[str, Time]
    """History -> the column with the times of its items."""
    split: Split
    fields: tuple[TableField, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        named = [self.label.column, self.user, self.time.column if self.time else None, self.split.column or None]
        named += [f.column for f in self.fields] + [t.column for t in self.event_times.values()]
        return tuple(dict.fromkeys(c for c in named if c is not None))

    @property
    def sequences(self) -> dict[str, tuple[TableField, ...]]:
        """History -> its fields."""
        out: dict[str, tuple[TableField, ...]] = {}
        for field in self.fields:
            if field.kind == "sequence":
                out[field.history] = (*out.get(field.history, ()), field)
        return out


def parse(file: Path, text: str) -> TableSchema:
    """The schema in `text`.

    Args:
        file: named in messages.
        text: YAML.

    Raises:
        BadInput: naming file and key, with the nearest valid name.
    """
    root = load(file, text)
    root.only(
        "name", "delimiter", "quote", "header", "missing", "label", "user", "time", "event_times", "split", "fields"
    )
    fields = tuple(_field(node) for node in root.nodes("fields"))
    time = _time(root.node("time")) if root.has("time") else None
    histories = {f.history for f in fields if f.kind == "sequence"}
    schema = TableSchema(
        name=_name(root, "name", "table"),
        delimiter=_character(root, "delimiter", ","),
        quote=_character(root, "quote", '"', empty=True),
        header=root.flag("header", True),
        missing=tuple(dict.fromkeys(("", *root.texts("missing", ())))),
        label=_label(root),
        user=root.text("user") if root.has("user") else None,
        time=time,
        event_times=dict(_event_times(node, histories) for node in root.nodes("event_times", ())),
        split=_split(root, time is not None),
        fields=fields,
    )
    _check(root, schema)
    return schema


def _label(root: Node) -> Label:
    if isinstance(root.body.get("label"), list):
        root.fail("label", "a list", "there is one label; choose the column to predict")
    node = root.node("label")
    node.only("column", "positive", "negative")
    positive = node.texts("positive", ("1",))
    negative = node.texts("negative", ("0",))
    both = sorted(set(positive) & set(negative))
    if both or not positive:
        node.fail("positive", f"{both or 'nothing'}", "give the values that count as 1, none of them also negative")
    return Label(column=node.text("column"), positive=positive, negative=() if negative == ("rest",) else negative)


def _time(node: Node, *more: str) -> Time:
    node.only("column", "unit", "utc_offset_hours", *more)
    unit = node.choice("unit", UNITS, "s")
    offset = node.whole("utc_offset_hours", 0, -14, 14)
    if offset and unit != "iso":
        node.fail("utc_offset_hours", f"{offset} with unit {unit}", "epoch times are UTC; remove it or use unit: iso")
    return Time(column=node.text("column"), unit=unit, utc_offset_hours=offset)


def _event_times(node: Node, histories: set[str]) -> tuple[str, Time]:
    time = _time(node, "history", "separator")
    history = node.choice("history", sorted(histories), "hist")
    separator = _character(node, "separator", "^")
    return history, Time(
        column=time.column, unit=time.unit, utc_offset_hours=time.utc_offset_hours, separator=separator
    )


def _split(root: Node, has_time: bool) -> Split:
    if not root.has("split"):
        if not has_time:
            root.fail(
                "split", "absent, and there is no time", "say which rows are test, e.g. split: {rule: file_order}"
            )
        return Split(rule="time")
    node = root.node("split")
    rule = cast(Rule, node.choice("rule", tuple(RULES), "time" if has_time else None))
    node.only("rule", *RULES[rule])
    if rule in ("time", "per_user") and not has_time:
        node.fail("rule", f"{rule} without a time", "add time: {column: ...} or choose another rule")
    if rule in ("random", "file_order") and has_time:
        node.fail("rule", f"{rule} although rows have a time", "test rows must be the later ones: use rule: time")
    if rule == "per_user" and not root.has("user"):
        node.fail("rule", "per_user without a user", "add user: COLUMN or choose another rule")
    if rule == "column":
        parts = tuple((part, node.texts(part, () if part == "valid" else None)) for part in ("train", "valid", "test"))
        every = [value for _, values in parts for value in values]
        if len(set(every)) < len(every):
            node.fail("train", "a value of two parts", "give every value of the column to one part")
        return Split(rule=rule, column=node.text("column"), parts=parts)
    if rule == "random":
        return Split(rule=rule, folds=node.whole("folds", 10, 3, 1000), seed=node.whole("seed", 0, 0, 2**31))
    return Split(rule=rule, test=node.share("test", 0.2), valid=node.share("valid", 0.1))


def _field(node: Node) -> TableField:
    kind = cast(Kind, node.choice("kind", tuple(_OF_KIND), None))
    for other, keys in _OF_KIND.items():
        for key in keys:
            if node.has(key) and key not in _OF_KIND[kind]:
                node.fail(key, f"belongs to kind {other}", f"remove it from this {kind} field")
    node.only("name", "column", "kind", "role", "required", *_OF_KIND[kind])
    name = _name(node, "name", None)
    roles: tuple[Role, ...] = ("behaviour",) if kind == "sequence" else ("context", "user", "item")
    target = node.text("target") if node.has("target") else None
    if target is not None and (node.has("min_count") or node.has("values")):
        node.fail("target", f"{target} decides the values", "remove min_count and values from this sequence")
    values = node.texts("values", ())
    if len(set(values)) < len(values):
        node.fail("values", "a value twice", "list every value once")
    return TableField(
        name=name, column=node.text("column", name), kind=kind, target=target, values=values,
        role=cast(Role, node.choice("role", roles, roles[0])), required=node.flag("required", False),
        min_count=node.whole("min_count", 1, 1, 2**31),
        transform=node.choice("transform", tuple(TRANSFORMS), "signed_log"),
        separator=_character(node, "separator", "^"), max_length=node.whole("max_length", 50, 1, 100_000),
        history=_name(node, "history", "hist"),
    )  # fmt: skip


def _name(node: Node, key: str, default: str | None) -> str:
    name = node.text(key, default)
    if not re.fullmatch(_NAME, name, re.ASCII):
        node.fail(key, f"{name!r:.120}", "use letters, digits and _, no digit first, at most 100")
    return name


def _character(node: Node, key: str, default: str, *, empty: bool = False) -> str:
    text = node.text(key, default)
    if text == "" and empty:
        return text
    if len(text) != 1 or not text.isascii() or text in "\r\n\0":
        node.fail(key, repr(text), 'give one ASCII character, e.g. "," or "\\t" in double quotes')
    return text


def _check(root: Node, schema: TableSchema) -> None:
    """What no single key can tell."""
    names = [f.name for f in schema.fields]
    taken = {"label", "user_id", "time"}
    taken |= {f"{h}{end}" for h in schema.sequences for end in ("_time", "_begin", "_end")}
    categorical = [f.name for f in schema.fields if f.kind == "categorical"]
    for i, field in enumerate(schema.fields):
        node = root.nodes("fields")[i]
        if names.index(field.name) != i or field.name in taken:
            node.fail("name", f"{field.name!r} is taken", "choose another name")
        if field.column == schema.label.column:
            node.fail("column", f"{field.column!r} is the label", "a feature must not be what is predicted: remove it")
        if field.target is not None and field.target not in categorical:
            node.fail("target", f"no categorical field {nearest(field.target, categorical)}", "name one of them")
        first = schema.sequences[field.history][0] if field.kind == "sequence" else field
        if field.max_length != first.max_length:
            node.fail("max_length", f"{field.max_length}, but {first.name} has {first.max_length}",
                      f"sequences of history {field.history!r} have one length")  # fmt: skip
    if not categorical:
        root.fail("fields", "no categorical field", "every model needs one; give an id column")
    if len(schema.event_times) < len(root.nodes("event_times", ())):
        root.fail("event_times", "a history twice", "give the times of each history once")
    if schema.event_times and schema.time is None:
        root.fail("event_times", "without the time of the row", "add time: {column: ...}, to cut what is not earlier")
    if schema.quote == schema.delimiter:
        root.fail("quote", f"{schema.quote!r} is the delimiter too", "they must differ")
