"""One side of `ctrbench compare`: a run directory, files of `pytest --benchmark-json`, or a baseline stored by name.

A baseline is a copy of what the gate reads: records, test scores, and the labels and users of the test rows, so that it
outlives the run directory and the prepared data. Every file of pytest-benchmark is one process.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ctrbench.bench.arrays import RUN_AGAIN, arrays
from ctrbench.bench.exports import loaded
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.errors import BadInput, UnknownName, nearest
from ctrbench.reports import records
from ctrbench.reports.comparison import Provenance, Subject
from ctrbench.reports.privacy import shown

BASELINES = Path("runs/baselines")
CARD, ROWS, SCORES = "baseline.json", "rows", "scores.npz"
FACTS = ("name", "saved", "from", "commit", "CPU", "fingerprint", "level")
"""Of a card, as `ctrbench baseline list` prints them."""
KEPT = ("record.json", "measurements.parquet", "failure.json", SCORES)
"""Files of a record that a baseline keeps."""
SAVE_AGAIN = "delete the baseline's folder and save it again"
TESTED = ("time", "quality")
"""Kinds of run that hold what is compared."""
CEILINGS = ("gemm_fp32_gflops", "copy_gbs")
"""The machine's own speeds, measured beside the steps."""
LARGEST = 1e18
"""Seconds, bytes or operations a second that nothing measures."""
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of one model: record.json by key, and why others left none."""

    bodies: Mapping[str, Body]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Everything that is compared."""

    name: str
    folder: Path
    table: pd.DataFrame
    bodies: Mapping[str, Body]
    groups: Mapping[tuple[Subject, str], Group] = field(default_factory=dict)
    """(whose, kind of process: time or quality) -> processes."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Of a stored baseline."""

    @property
    def provenance(self) -> Provenance:
        """Commit, machine, data: all that its records say, joined where they differ."""

        def said(part: str, name: str) -> str:
            found = (str(body.get(part, {}).get(name) or "") for body in self.bodies.values())
            return ", ".join(dict.fromkeys(filter(None, found))) or "not recorded"

        changed = any(body.get("environment", {}).get("dirty") for body in self.bodies.values())
        facts = {
            "commit": said("environment", "commit") + (" (with changes)" if changed else ""),
            "CPU": said("environment", "cpu"), "usable CPUs": said("environment", "usable_cpus"),
            "GPU": said("environment", "gpu"), "system": said("environment", "os"),
            "python": said("environment", "python"), "torch": said("environment", "torch"),
            "data": said("spec", "data"), "fingerprint": said("spec", "fingerprint"), "level": said("spec", "level"),
            **{f"baseline {k}": str(v) for k, v in self.card.items()},
        }  # fmt: skip
        return Provenance(name=self.name, facts=tuple(facts.items()))

    def rows_of(self, spec: Body) -> tuple[np.ndarray, np.ndarray] | None:
        """(label, user) of the test rows that a training was scored on; None if they are nowhere to be had."""
        kept = self.folder / ROWS / f"{spec['fingerprint']}.npz"
        if kept.is_file():
            stored = arrays(kept, "label", "user", remedy=SAVE_AGAIN)
            label_N, user_N = stored["label"], stored["user"]
            if label_N.ndim != 1 or label_N.shape != user_N.shape or not np.isin(label_N, (0, 1)).all():
                raise BadInput(f"{kept}: damaged: no label of 0 or 1 and a user a row; {SAVE_AGAIN}")
            return label_N, user_N
        from ctrbench.datasets.prepared import Prepared  # brings torch; a baseline needs none

        try:
            prepared = Prepared.open(shown(str(spec.get("prepared", ""))))
        except (OSError, ValueError):
            return None
        if prepared.fingerprint != spec["fingerprint"]:
            return None
        frame = prepared.frame("test", columns=["label", "user_id"])
        return frame["label"].to_numpy(), frame["user_id"].to_numpy()


def load_side(name: str, baselines: Path = BASELINES) -> Side:
    """A run directory, a file of `pytest --benchmark-json`, a folder of such files, else the baseline of that name.

    Raises:
        UnknownName: neither a file or directory nor a stored baseline.
        BadInput: no finished record there, or a damaged one.
    """
    folder, card = Path(name), {}
    if not folder.exists():
        stored = [str(c["name"]) for c in listed(baselines)]
        if name not in stored:
            raise UnknownName(f"{name}: no run directory, and no baseline in {baselines}: {nearest(name, stored)}")
        folder = baselines / name
    if (folder / CARD).is_file():
        card = _card(folder / CARD)
    files = benchmark_files(folder)
    table, bodies = _of_files(files) if files else loaded(folder)
    return Side(name=name, folder=folder, table=table, bodies=bodies, groups=_groups(folder, bodies), card=card)


def benchmark_files(path: Path) -> list[Path]:
    """The files of pytest-benchmark that a side is made of; none if it is a run directory."""
    if path.is_file():
        return [path]
    return [] if (path / "records").is_dir() else sorted(f for f in path.glob("*.json") if f.name != CARD)


def _of_files(files: Sequence[Path]) -> tuple[pd.DataFrame, Mapping[str, Body]]:
    """Rows and bodies of several files. Benchmarks of one configuration in one file share a process: one counts."""
    tables = []
    bodies: dict[str, Body] = {}
    for file in files:
        table, mine = loaded(file)
        seen: set[str] = set()
        for key, body in mine.items():
            what = json.dumps([body["spec"], sorted(body["extra"].get("samples", ()))], sort_keys=True)
            if what in seen:
                test = body["extra"]["benchmark"]["test"]
                print(f"note: {file}: {test}: the same configuration again in one process; left out", file=sys.stderr)
                continue
            seen.add(what)
            bodies[key] = body
        tables.append(table)
    return pd.concat(tables, ignore_index=True), bodies


def _groups(folder: Path, bodies: Mapping[str, Body]) -> dict[tuple[Subject, str], Group]:
    found: dict[tuple[Subject, str], dict[str, Body]] = defaultdict(dict)
    lost: dict[tuple[Subject, str], list[str]] = defaultdict(list)
    for key, body in bodies.items():
        if (who := _who(body)) is not None:
            _check(folder, key, body)
            found[who][key] = body
    for path in sorted((folder / "records").glob("*/failure.json")):
        if path.parent.name in bodies:  # it went well in the end
            continue
        try:
            body = json.loads(path.read_text())
            if not isinstance(body["spec"], dict) or not {"status", "reason"} <= set(body):
                raise ValueError("no spec, status and reason of a run that failed")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadInput(f"{path}: damaged: {error}; {remedy(folder)}") from None
        if (who := _who(body)) is not None:
            lost[who].append(f"{body['status']}: {body['reason']}")
    return {who: Group(found[who], tuple(lost[who])) for who in dict.fromkeys((*found, *lost))}


def remedy(folder: Path) -> str:
    """What to do about a damaged file of a side."""
    return SAVE_AGAIN if (folder / CARD).is_file() else RUN_AGAIN


def _check(folder: Path, key: str, body: Body) -> None:
    """Raises BadInput where a record lacks what is compared, or holds something else there."""
    try:
        spec = RunSpec.from_json(body["spec"])
        if spec.kind == "quality" and "fingerprint" not in body["spec"]:
            raise ValueError("key 'spec.fingerprint' is missing")
        if spec.kind == "time":
            _check_timed(body["extra"])
    except (TypeError, ValueError, KeyError) as error:
        if "benchmark" in body["extra"]:
            raise BadInput(f"{folder}: {body['extra']['benchmark'].get('test')}: {error}; run it again") from None
        where = folder / "records" / key
        raise BadInput(f"{where}: damaged record: {error}; {remedy(folder)}") from None


def _check_timed(extra: Mapping[str, Any]) -> None:
    """Raises ValueError where what a timed process left are no times, bytes or speeds."""
    samples, ceilings = extra.get("samples", {}), extra.get("ceilings", [])
    if not isinstance(samples, dict) or ("step" not in samples and "benchmark" not in extra):
        raise ValueError("key 'extra.samples.step' is missing")
    if not isinstance(ceilings, list) or not all(isinstance(c, dict) for c in ceilings):
        raise ValueError("extra.ceilings is no list of measured ceilings")
    if not isinstance(extra.get("hints", []), list):
        raise ValueError("extra.hints is no list")
    said = {
        "samples.step": samples.get("step", [1.0]), "rss_peak": [extra.get("rss_peak", 1.0)],
        **{f"ceilings {n}": [1.0, *(c[n] for c in ceilings if c.get(n))] for n in CEILINGS},
    }  # fmt: skip
    for name, values in said.items():
        if not isinstance(values, list) or not values or not all(map(_positive, values)):
            raise ValueError(f"extra.{name} is not positive and finite: {values!r:.60}")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _who(body: Body) -> tuple[Subject, str] | None:
    spec = body.get("spec", {})
    if spec.get("kind") not in TESTED:
        return None
    extra = body.get("extra", {})
    samples = extra.get("samples", {})
    if "benchmark" in extra and isinstance(samples, dict) and "step" not in samples:
        return None  # a benchmark of a forward, or one without its rounds
    names = {k: str(spec.get(k, "")) for k in ("data", "split", "model", "variant", "preset")}
    return Subject(**names), str(spec["kind"])


def save_baseline(name: str, run_dir: Path, baselines: Path = BASELINES) -> Path:
    """Stores a run, or files of pytest-benchmark, under a name.

    Raises:
        BadInput: the name is no file name or taken, or the run has no finished record or a damaged one.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise BadInput(f"{name!r}: a baseline's name is letters, digits, dots, dashes and underscores")
    target = baselines / name
    if target.exists():
        raise BadInput(f"{target} exists: choose another name, or delete that folder")
    if not run_dir.exists():
        raise BadInput(f"{run_dir}: no run directory and no file")
    for path in sorted((run_dir / "records").glob(f"*/{SCORES}")):
        arrays(path, "score")
    side, partial = load_side(str(run_dir)), baselines / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = benchmark_files(run_dir)
    for file in files:
        shutil.copyfile(file, partial / file.name)
    for folder in [] if files else sorted((run_dir / "records").iterdir()):
        for part in KEPT:
            if (folder / part).is_file():
                (partial / "records" / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / part, partial / "records" / folder.name / part)
    missing = _keep_rows(side, partial / ROWS)
    facts = dict(side.provenance.facts)
    card = {
        "name": name, "saved": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), "from": run_dir.resolve().name,
        **{k: facts[k] for k in ("commit", "CPU", "fingerprint", "level")}, "without test rows of": missing,
    }  # fmt: skip
    records.write_atomic(partial / CARD, json.dumps(card, indent=1).encode())
    partial.replace(target)
    return target


def _keep_rows(side: Side, folder: Path) -> list[str]:
    """Labels and users of every test split that a training was scored on; names of the data whose rows are gone."""
    missing = []
    specs = {
        str(b["spec"]["fingerprint"]): b["spec"] for b in side.bodies.values() if b["spec"].get("kind") == "quality"
    }
    for fingerprint, spec in specs.items():
        rows = side.rows_of(spec)
        if rows is None:
            missing.append(str(spec["data"]))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{fingerprint}.npz", label=rows[0].astype(np.int8), user=rows[1])
    return missing


def listed(baselines: Path = BASELINES) -> list[dict[str, Any]]:
    """The cards of the stored baselines, oldest first."""
    cards: Iterator[dict[str, Any]] = (_card(path) for path in baselines.glob(f"*/{CARD}"))
    return sorted(cards, key=lambda card: (str(card["saved"]), str(card["name"])))


def _card(path: Path) -> dict[str, Any]:
    try:
        card = {**json.loads(path.read_text()), "name": path.parent.name}
        if absent := [k for k in FACTS if k not in card]:
            raise ValueError(f"key {absent[0]!r} is missing")
        return card
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: damaged: {error}; {SAVE_AGAIN}") from None
