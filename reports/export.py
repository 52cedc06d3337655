"""Loaded records in forms that other programs read: JSON with a schema, and the measurements as one Parquet table.

`python -m ctrbench.reports.export` prints the JSON Schema, kept in `export_schema.json`.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pandas as pd

from ctrbench.reports.records import SCHEMA_VERSION, Measurement, RunRecord, typed, write_atomic

EXPORT_VERSION = 1
"""Of the document; a field that goes or changes its meaning makes it the next one."""
SCHEMA_FILE = Path(__file__).parent / "export_schema.json"
Bodies = Mapping[str, Mapping[str, Any]]


def write_json(frame: pd.DataFrame, bodies: Bodies, out: Path) -> Path:
    """Writes records and measurements as one document of `schema()`; whole or not at all.

    Args:
        frame: rows of `records.load`.
        bodies: record.json by key, of `records.load`.
        out: file to write.

    Returns:
        `out`.
    """
    write_atomic(out, json.dumps(document(frame, bodies), indent=1, allow_nan=False).encode())
    return out


def document(frame: pd.DataFrame, bodies: Bodies) -> dict[str, Any]:
    """The document: every row and every record.json. What is no number in JSON (NaN, infinity) is null."""
    kept = [f.name for f in _record_fields()]
    return {
        "format": "ctrbench", "schema_version": EXPORT_VERSION,
        "records": [{"schema_version": SCHEMA_VERSION, "key": key, **{k: _plain(body.get(k, {})) for k in kept}}
                    for key, body in sorted(bodies.items())],
        "measurements": [{name: _plain(value) for name, value in row.items()} for row in _rows(frame)],
    }  # fmt: skip


def write_parquet(frame: pd.DataFrame, out: Path) -> Path:
    """Writes the rows with the columns and types of every measurements.parquet; whole or not at all."""
    content = BytesIO()
    typed(frame).to_parquet(content, index=False)
    write_atomic(out, content.getvalue())
    return out


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    body = typed(frame).astype(object)
    return [dict(zip(body.columns, row, strict=True)) for row in body.where(body.notna(), None).values.tolist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


# ----------------------------------------------------------------------- schema


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the document, from the dataclasses of the record format."""
    hints = typing.get_type_hints(Measurement)
    # A table has every column in every row.
    measurement = _object({f.name: _type(hints[f.name]) for f in fields(Measurement)})
    hints = typing.get_type_hints(RunRecord)
    record = {"schema_version": {"const": SCHEMA_VERSION}, "key": {"type": "string"}}
    record |= {f.name: _type(hints[f.name]) for f in _record_fields()}
    top = {
        "format": {"const": "ctrbench"},
        "schema_version": {"const": EXPORT_VERSION},
        "records": {"type": "array", "items": {"$ref": "#/$defs/record"}},
        "measurements": {"type": "array", "items": {"$ref": "#/$defs/measurement"}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Records of ctrbench",
        "description": "Written by `ctrbench export --format json`. `measurements` has one object a number; "
        "`records` says of each run what was asked, where it ran and what else it kept.",
        **_object(top),
        "$defs": {"measurement": measurement, "record": _object(record)},
    }


def _record_fields() -> tuple[Field[Any], ...]:
    """What a record.json holds beside its key: the rows have a place of their own."""
    return tuple(f for f in fields(RunRecord) if f.name not in ("key", "rows"))


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}


def _type(hint: Any) -> dict[str, Any]:
    """Schema of an annotation.

    Raises:
        TypeError: one that the record format has not had yet.
    """
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) in (types.UnionType, typing.Union):
        names = [_type(part)["type"] for part in get_args(hint)]
        return {"type": names}
    if get_origin(hint) in (Mapping, dict):
        return {"type": "object"}
    plain = {str: "string", float: "number", int: "integer", bool: "boolean", type(None): "null"}
    if hint not in plain:
        raise TypeError(f"{hint}: say in reports/export.py how JSON has it")
    return {"type": plain[hint]}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
