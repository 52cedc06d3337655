"""The record format: one long-format row a number, written as it is made, read by every table and figure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ctrbench.reports.privacy import hidden
from ctrbench.reports.seal import opened, sealed

SCHEMA_VERSION = 1
_ROWS_HASH = "measurements_sha256"

Origin = Literal["measured", "derived", "counted", "modelled", "imported", "cited", "abstained"]
Status = Literal["ok", "unstable", "oom", "skipped", "failed", "timeout"]
ORIGINS: tuple[str, ...] = ("measured", "derived", "counted", "modelled", "imported", "cited", "abstained")
STATUSES: tuple[str, ...] = ("ok", "unstable", "oom", "skipped", "failed", "timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One number and how it is known. `value` is None unless status is ok or unstable."""

    run: str
    model: str
    variant: str = ""
    preset: str = "small"
    family: str = ""
    data: str = ""
    split: str = ""
    track: str = ""
    phase: str
    """prepare | train | infer | serve"""
    scope: str = ""
    """`` for the whole phase, else `stage:x/block:y`, a GPU name, an id of a compared model ..."""
    seed: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    batch: int | None = None
    metric: str
    value: float | None
    unit: str
    origin: Origin
    better: Literal["up", "down", "none"]
    n: int | None = None
    sd: float | None = None
    p10: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    status: Status = "ok"
    reason: str = ""

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS or self.status not in STATUSES:
            raise ValueError(f"{self.metric}: origin {self.origin!r} / status {self.status!r} is not in the catalogue")
        known = self.status in ("ok", "unstable")
        if known and (self.value is None or self.value != self.value):
            raise ValueError(
                f"{self.metric} of {self.model}: status {self.status} needs a value; withhold it with a reason"
            )
        if not known and (self.value is not None or not self.reason):
            raise ValueError(f"{self.metric} of {self.model}: status {self.status} needs a reason and no value")
        if self.origin == "abstained" and known:
            raise ValueError(f"{self.metric} of {self.model}: an abstained number has no value")


class DamagedRecord(ValueError):
    """A file of a record that cannot be read."""


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Measurement))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Everything known of one finished run: what was asked (`spec`), where (`environment`), and the numbers."""

    key: str
    spec: Mapping[str, Any]
    rows: tuple[Measurement, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """metric -> tag of each input of a derived number, e.g. {"mfu_cpu": {"time": "measured", "flops": "counted"}}."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Raw samples, cards, coverage audits: JSON-able."""


def frame(rows: Iterable[Measurement]) -> pd.DataFrame:
    """Rows as a pandas frame with exactly `COLUMNS`."""
    return pd.DataFrame([asdict(r) for r in rows], columns=list(COLUMNS))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` where all went well; an error names `path` and leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:  # a full disk, or a folder of that name
        partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # the system names none where a write fails
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as partial:
        _write(partial, data)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def write_json(path: Path, body: Any) -> None:
    """Writes a JSON file whole or not at all, without what a record must not say (`privacy.hidden`)."""
    write_atomic(path, _text(body).encode())


def _text(body: Any) -> str:
    return json.dumps(hidden(body), indent=1, default=lambda other: hidden(str(other)))


def save(record: RunRecord, runs_dir: Path) -> Path:
    """Writes `records/<key>/{measurements.parquet, record.json}`; record.json last, it marks the record whole.

    record.json holds the hash of either file, so that what is damaged later is not read. Where a record is written
    over, nothing of the old one goes before all of the new one is on the disk.
    No folder, user, host or secret of this machine is written (`privacy.hidden`).
    """
    folder = runs_dir / "records" / record.key
    rows = pd.DataFrame(hidden([asdict(r) for r in record.rows]), columns=list(COLUMNS))
    with whole(folder / "record.json") as about, whole(folder / "measurements.parquet") as numbers:
        typed(rows).to_parquet(numbers, index=False)
        body = {
            "schema_version": SCHEMA_VERSION, "key": record.key, "spec": record.spec,
            "environment": record.environment, "inputs": record.inputs, "extra": record.extra,
            _ROWS_HASH: hashlib.sha256(numbers.read_bytes()).hexdigest(),
        }  # fmt: skip
        _write(about, json.dumps(sealed(json.loads(_text(body))), indent=1).encode())
        (folder / "record.json").unlink(missing_ok=True)  # between two renames the files would be of two records
    return folder


def finished(runs_dir: Path) -> set[str]:
    """Keys of the whole records below a run directory."""
    return {p.parent.name for p in (runs_dir / "records").glob("*/record.json")}


def load(runs_dir: Path) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """All rows below a run directory and the record.json of every key.

    Raises:
        FileNotFoundError: if there is no finished record.
        DamagedRecord: if a file cannot be read; it names the file and the remedy.
    """
    bodies, tables = {}, []
    for path in sorted((runs_dir / "records").glob("*/record.json")):
        bodies[path.parent.name], rows = read(path.parent)
        tables.append(rows)
    if not tables:
        raise FileNotFoundError(f"{runs_dir}: no finished record; run `ctrbench run suite=quick` first")
    return typed(pd.concat(tables, ignore_index=True)), bodies


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """(record.json, rows) of one finished run.

    Raises:
        DamagedRecord: a file cannot be read, or is not what was written; it names the folder and the remedy.
    """
    from pyarrow import ArrowException  # its errors are not all of Python's kinds

    try:
        body = _body((folder / "record.json").read_text())
        return body, _rows(folder / "measurements.parquet", body.pop(_ROWS_HASH, None))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, ArrowException) as error:
        raise DamagedRecord(
            f"{folder}: damaged record: {error}; delete that folder and run again with run.resume=true;"
            " a baseline is saved again"
        ) from None


def _rows(path: Path, written: str | None) -> pd.DataFrame:
    """Rows of a file; `written`: its hash, None in records of before there was one.

    Raises ValueError, TypeError, OverflowError or an error of pyarrow for what are no measurements.
    """
    from pyarrow import BufferReader
    from pyarrow.parquet import read_table

    data = path.read_bytes()
    if written is not None and hashlib.sha256(data).hexdigest() != written:
        raise ValueError(f"{path.name} is not what was written: {_ROWS_HASH} differs")
    stored = read_table(BufferReader(data))
    table = stored.to_pandas(ignore_metadata=True)  # what pandas noted of its own types may be damaged
    if absent := [c for c in COLUMNS if c not in table]:
        raise ValueError(f"column {absent[0]!r} is missing")
    return typed(table).astype(object)


_SPEC: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("kind", "model", "variant", "preset", "data", "split", "fingerprint"), str),
    **dict.fromkeys(("prepared", "level", "dtype", "device"), str),
    **dict.fromkeys(("history_length", "train_rows", "epochs", "batch", "seed", "threads", "ranks"), int),
    "config": dict, "serving": dict, "tuned": bool, "lr": (int, float), "flops_budget": (int, float),
}  # fmt: skip
"""What pages count on where a key is there."""
_MOST = 2**53
"""Beyond it a float no longer holds every whole number, and NumPy soon refuses to take one in."""
_OF_A_TRAINING = ("model", "variant", "data", "split")


def _body(text: str) -> dict[str, Any]:
    """record.json, with the parts that every reader counts on.

    Raises:
        ValueError: it is something else, or of another version.
    """
    body = json.loads(text)
    if not isinstance(body, dict) or body.get("schema_version") != SCHEMA_VERSION:
        found = body.get("schema_version") if isinstance(body, dict) else None
        raise ValueError(f"schema_version {found!r}, this version reads {SCHEMA_VERSION}")
    body = opened(body)
    if absent := [k for k in ("spec", "environment", "inputs", "extra") if not isinstance(body.get(k), dict)]:
        raise ValueError(f"key {absent[0]!r} is missing or no object")
    spec = body["spec"]
    for key, kind in _SPEC.items():
        if key in spec and not isinstance(spec[key], kind):
            raise ValueError(f"spec.{key} is {spec[key]!r:.40}, which a run never has")
    if huge := [k for k, v in spec.items() if isinstance(v, int) and abs(v) > _MOST]:
        raise ValueError(f"spec.{huge[0]} is {spec[huge[0]]!r:.40}, which a run never has")
    if spec.get("kind") == "quality" and (absent := [k for k in _OF_A_TRAINING if k not in spec]):
        raise ValueError(f"key 'spec.{absent[0]}' is missing")
    return body


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Nullable, fixed column types, so that files with and without values agree."""
    numbers = {"value", "sd", "p10", "p50", "p90", "p99", "ci_low", "ci_high"}
    whole = {"seed", "threads", "batch", "n"}
    return table.astype({c: "Float64" if c in numbers else "Int64" if c in whole else "string" for c in COLUMNS})
