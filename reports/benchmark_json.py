"""The measures of a pytest-benchmark file: how they stand in `extra_info`, and how they become rows again.

`extra_info` holds one entry a measure, `{value, unit, origin}` and what else its row says, and under `KEY` what a
record.json holds: spec, environment, inputs, extra, and a hash of all this.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.reports.measures import MEASURES, withheld
from ctrbench.reports.records import SCHEMA_VERSION, Measurement, frame, typed
from ctrbench.reports.seal import KEY as SEAL
from ctrbench.reports.seal import opened, sealed

SCHEMA = 1
KEY = "ctrbench"
DETAILS = ("phase", "n", "sd", "p10", "p50", "p90", "p99", "ci_low", "ci_high", "status", "reason")
"""Columns of a row that its entry holds beside value, unit and origin, where they say something."""
SHARED = ("model", "variant", "preset", "data", "split", "device", "dtype", "threads", "batch")
"""Columns that are in the spec."""
TIMES = {"train": "step_time", "infer": "infer_latency"}
"""Phase -> the measure that pytest-benchmark's own times are."""
LEFT_OUT = ("ops_per_step", "ops_per_sample", "kernels_per_step", "kernels_per_sample", "bytes_operands", "ai_operands",
            "throughput", "rss_peak")  # fmt: skip
"""Measures of a forward that the catalogue has for steps only: they stay in the file, tables of steps lack them."""
FOREIGN = "a benchmark without measures of ctrbench: nothing is known of its model or data, so it stands apart"

_DEFAULTS = {f.name: f.default for f in fields(Measurement)}
Bodies = dict[str, dict[str, Any]]


class BadBenchmarks(ValueError):
    """A file that cannot be read; says which, where, why and what to do."""


def entries(rows: Iterable[Measurement]) -> dict[str, dict[str, Any]]:
    """Rows of one benchmark as `extra_info` holds them.

    Raises:
        ValueError: two rows of one measure.
    """
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.metric in out:
            raise ValueError(f"{row.metric} of {row.model}: two rows of one benchmark")
        details = {c: v for c in DETAILS if (v := getattr(row, c)) != _DEFAULTS[c]}
        out[row.metric] = {"value": row.value, "unit": row.unit, "origin": row.origin, **details}
    return out


def sealed_info(measures: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into `extra_info`; `body["measures"]` names the entries, a test may add others."""
    return {**measures, KEY: {**body, SEAL: sealed({**measures, KEY: body})[SEAL]}}


def _opened(info: Mapping[str, Any]) -> dict[str, Any]:
    """`info[KEY]` without its seal; raises ValueError where it or an entry was changed."""
    ours = dict(info[KEY])
    if SEAL in ours:
        seal = ours.pop(SEAL)
        opened({**{m: info[m] for m in ours["measures"]}, KEY: ours, SEAL: seal})
    return ours


def load_benchmark_json(path: Path) -> tuple[pd.DataFrame, Bodies]:
    """Rows and record bodies of a file that `pytest --benchmark-json` wrote.

    A body has the form of record.json, with the times of every round in `extra.samples` (`step` or `infer`, s) and
    where it comes from in `extra.benchmark`. A benchmark that is not ours is one withheld row and has no body.

    Args:
        path: the file; names of bodies and runs depend on its content, so that files of one test stand side by side.

    Raises:
        BadBenchmarks: not such a file, of a newer version, or edited.
    """
    try:
        content = path.read_bytes()
        listed = json.loads(content)["benchmarks"]
        json.dumps(listed, ensure_ascii=False).encode()  # half a pair of surrogates stands in no page
        tests = [(str(b["fullname"]), b.get("extra_info") or {}, b["stats"]) for b in listed]
    except OSError as error:
        raise BadBenchmarks(f"{path}: {error.strerror}; name a file of `pytest --benchmark-json=FILE`") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadBenchmarks(f"{path}: no file of pytest-benchmark; write it with --benchmark-json=FILE") from None
    digest, rows, bodies = hashlib.sha256(content).hexdigest(), list[Measurement](), Bodies()
    for test, info, stats in tests:
        if not isinstance(info, dict) or KEY not in info:
            base = {"run": f"{path.name}:{test}", "model": test, "preset": "", "phase": "train"}
            rows.append(withheld(base, "step_time", FOREIGN))
            continue
        try:
            key, body, mine = _benchmark(test, info, stats, digest)
            typed(frame(mine))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise BadBenchmarks(f"{path}: {test}: {why}; run the benchmark again") from None
        body["extra"]["benchmark"]["file"] = path.name
        bodies[key] = body
        rows += mine
    return typed(frame(rows)), bodies


def _benchmark(
    test: str, info: Mapping[str, Any], stats: Mapping[str, Any], digest: str
) -> tuple[str, dict[str, Any], list[Measurement]]:
    """(key, body, rows) of one benchmark of ours."""
    ours = _opened(info)
    if ours["schema_version"] != SCHEMA:
        raise ValueError(f"schema {ours['schema_version']}, this version reads {SCHEMA}")
    spec, phase, extra = dict(ours["spec"]), ours["phase"], dict(ours["extra"])
    name = hashlib.sha256(f"{digest} {test}".encode()).hexdigest()[:10]
    key = f"{spec['data']}-{spec['model']}-{phase}-{name}"
    base = {c: spec[c] for c in SHARED} | {"run": key, "family": extra["family"], "track": extra["track"]}
    measures = {metric: entry for metric, entry in info.items() if metric != KEY and metric in MEASURES}
    rows = [_row(base, metric, entry) for metric, entry in measures.items()]
    seconds = stats.get("data")
    said = measures[TIMES[phase]]["value"]
    if not math.isclose(statistics.median(seconds) if seconds else stats["median"], said, rel_tol=1e-9):
        raise ValueError(f"its {TIMES[phase]} of {said} s is not the median of its rounds: the file was edited")
    extra["benchmark"] = {"test": test, "sha256": digest}
    if seconds:
        extra["samples"] = {"step" if phase == "train" else "infer": [float(s) for s in seconds]}
    body = {
        "schema_version": SCHEMA_VERSION, "key": key, "spec": spec, "environment": ours["environment"],
        "inputs": ours["inputs"], "extra": extra,
    }  # fmt: skip
    return key, body, [r for r in rows if r.phase == "train" or r.metric not in LEFT_OUT]


def _row(base: Mapping[str, Any], metric: str, entry: Mapping[str, Any]) -> Measurement:
    declared = MEASURES[metric]
    if entry["unit"] != declared.unit:
        raise ValueError(f"{metric} is in {entry['unit']}, the catalogue has it in {declared.unit}")
    details = {c: entry[c] for c in DETAILS if c in entry}
    return Measurement(
        metric=metric, value=entry["value"], unit=declared.unit, origin=entry["origin"], better=declared.better,
        **{**base, **details},
    )  # fmt: skip
