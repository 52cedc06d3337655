"""Rows that judge trainings by a published mean over seeds: what ran against the protocol cited in reports/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctrbench.bench import registry
from ctrbench.bench.assemble import base_columns
from ctrbench.bench.plan import Job, Plan
from ctrbench.bench.presets import preset_options
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.summary import Run
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.registry import dataset_names, dataset_spec
from ctrbench.models.embedding import TableConfig
from ctrbench.reports.bands import METRIC, departures, judge, published_band
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement


def published_bands(plan: Plan, runs: Iterable[Run], rows: Sequence[Measurement], run_id: str) -> list[Measurement]:
    """A row a model of every judged job: the distance from the published AUC, or why there is none.

    Args:
        plan: the suite.
        runs: finished processes.
        rows: rows of the summary; `auc` over all seeds is read from them.
        run_id: column `run`.
    """
    trained: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.spec.kind == "quality":
            mine = trained.setdefault((run.spec.data, run.spec.model), [])
            if not mine or run.spec.variant == mine[0].spec.variant:  # tuned variants come after and are not judged
                mine.append(run)
    return [
        _row(job, model, trained.get((job.data, model), []), rows, run_id)
        for job in plan.jobs
        if job.judged
        for model in dict.fromkeys(e.model for e in job.models)
    ]


def _row(job: Job, model: str, runs: list[Run], rows: Sequence[Measurement], run_id: str) -> Measurement:
    family = registry.model_spec(model).family
    track = dataset_spec(job.data).track if job.data in dataset_names() else None
    base: dict[str, Any] = {"run": run_id, "model": model, "family": family, "data": job.data, "preset": job.preset,
                            "track": track or ""}  # fmt: skip
    if runs:
        base = base_columns(runs[0].spec, family, base["track"]) | {"run": run_id}
    mine = [r for r in rows if (r.data, r.model, r.metric) == (job.data, model, "auc")]
    mine = [r for r in mine if not runs or r.variant == runs[0].spec.variant]
    auc = next((r.value for r in mine if r.value is not None), None)
    lost = next((f"no training finished: {r.reason}" for r in mine if r.value is None), "")
    departed = departures(protocol_of(job, runs)) + other_files(runs[0].spec) if runs else []
    verdict = judge(auc, published_band(model), departed, lost)
    if verdict.distance is None:
        return withheld(base, METRIC, verdict.reason, phase="train", scope="bars")
    return make(base, METRIC, verdict.distance, "derived", phase="train", scope="bars", n=len(runs))


def other_files(spec: RunSpec) -> list[str]:
    """How the prepared files differ from the published ones, as noted when they were read."""
    notes = Prepared.open(Path(spec.prepared)).manifest["rows"].get("notes", {}) if spec.prepared else {}
    return [note for note in notes if "published file" in note]


def protocol_of(job: Job, runs: Sequence[Run]) -> Mapping[str, Any]:
    """What of a published protocol the trainings of one model say, by the names in reports/cited.toml."""
    spec: RunSpec = runs[0].spec
    tables = asdict(TableConfig()) | dict(spec.config.get("tables", {}))
    wanted = preset_options(spec.model, job.preset)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.config.items() if k != "tables"}
    names = ("preset", "batch", "lr", "train_rows", "valid_rows", "epochs", "evaluations", "patience", "plateau")
    return {
        **{n: getattr(spec, n) for n in names},
        "test_rows": runs[0].body["extra"].get("rows", {}).get("test"),
        "seeds": len({r.spec.seed for r in runs}),
        "options": "as the preset" if given == wanted else ", ".join(f"{k}={v}" for k, v in given.items()),
        **{f"table_{n}": tables[n] for n in ("impl", "optimizer", "lr", "init_std", "l2", "l2_rows")},
    }
