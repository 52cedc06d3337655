"""Equal tuning: every model gets the same number of trials, drawn alike, chosen on validation rows alone.

Trial 0 is the default, so that tuning can only be chosen where it gained. A draw that a model cannot take (no dropout
field, L2 of rows that a pooled history hides) falls back to its default for that option; the draw still counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ctrbench.bench import registry
from ctrbench.bench.plan import Entry, Plan, RunOptions
from ctrbench.bench.summary import Run
from ctrbench.datasets.errors import UnknownName
from ctrbench.datasets.random_batches import TRACKS

SEED = 20_25
TRIALS = 8
"""Of `ctrbench tune` where nothing else is asked for."""
LR = (3e-4, 5e-3)
TABLE_LR = (5e-3, 8e-2)
DROPOUT = (0.0, 0.1, 0.2)
L2 = (0.0, 1e-6, 1e-5)
OPTIMIZERS = ("rowwise_adagrad", "adagrad")
INIT_STD = (0.01, 0.1, 0.3)
"""Start of the tables: where ids are rare it decides what attention can learn, for some models one way, for others the
other (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One point of the search space."""

    lr: float
    table_lr: float
    dropout: float
    l2: float
    table_optimizer: str
    table_init_std: float


def draws(trials: int) -> list[Draw | None]:
    """The default (None), then `trials` - 1 random points; the same for every model."""
    g, starts = np.random.default_rng(SEED), np.random.default_rng([SEED, 1])

    def log_uniform(low: float, high: float) -> float:
        return float(f"{np.exp(g.uniform(np.log(low), np.log(high))):.3g}")

    points: list[Draw | None] = [None]
    for _ in range(trials - 1):
        points.append(
            Draw(
                log_uniform(*LR), log_uniform(*TABLE_LR), float(g.choice(DROPOUT)), float(g.choice(L2)),
                str(g.choice(OPTIMIZERS)), float(starts.choice(INIT_STD)),
            )
        )  # fmt: skip
    return points


def trial_entry(entry: Entry, draw: Draw | None, run: RunOptions, label: str, penalised: bool) -> Entry:
    """The entry with the options of a draw.

    Args:
        entry: the model as the suite lists it.
        draw: None is the default.
        run: options of the suite; a fused embedding is needed for the table optimizers of the space.
        label: variant of the new entry.
        penalised: whether the model can take L2 on the rows of a batch.
    """
    if draw is None:
        return replace(entry, label=label)
    known = {f.name for f in fields(registry.model_spec(entry.model).config)}
    options = dict(entry.options)
    if "dropout" in known:
        options["dropout"] = draw.dropout
    own: dict[str, Any] = {"lr": draw.lr, "table_lr": draw.table_lr, "l2": draw.l2 if penalised else run.l2}
    own["table_init_std"] = draw.table_init_std
    if run.embedding == "fused":
        own["table_optimizer"] = draw.table_optimizer
    return replace(entry, options=options, run={**entry.run, **own}, label=label)


def only_tuning(plan: Plan) -> Plan:
    """The plan with its trials and nothing else; a plan without trials gets `TRIALS`.

    Raises:
        UnknownName: a suite that trains no model on true labels.
    """
    if plan.controls or all(j.data in TRACKS for j in plan.jobs):
        raise UnknownName(
            f"suite={plan.suite}: nothing to tune; take suite=standard, suite=quick or name data and model"
        )
    run = plan.run if plan.run.trials else replace(plan.run, trials=TRIALS)
    return replace(plan, run=run, tune_only=True)


def advice(chosen: Mapping[str, Any]) -> str:
    """What tuning found for one model, and the arguments that use it."""
    who = " ".join(filter(None, (chosen["model"], chosen["variant"])))
    said = f"{chosen['data']} · {chosen['split']}: {who}: "
    best, trials = chosen["valid_auc_best"], chosen["trials"]
    if not chosen["best"]:
        return f"{said}the default is the best of {trials} trials, validation AUC {best:.4f}"
    default = chosen["valid_auc_default"]
    was = "it failed" if default is None else f"{default:.4f}"
    given = {k if k.startswith("run.") else f"{chosen['model']}.{k}": v for k, v in chosen["options"].items()}
    use = " ".join(f"{k}={v}" for k, v in given.items())
    return f"{said}trial {chosen['best']} of {trials}, validation AUC {best:.4f} (default: {was}): {use}"


def changed(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial sets, for records and tables; options that the command line gives win over a draw."""
    return {**entry.options, **given, **{f"run.{k}": v for k, v in entry.run.items()}}


def best_trial(runs: Iterable[Run]) -> tuple[int, Mapping[int, float]]:
    """(number of the best trial, validation AUC of each); ties go to the lower number, so to the default."""
    scores = {r.spec.trial: float(r.body["extra"]["valid_auc"]) for r in runs}
    return max(scores, key=lambda t: (scores[t], -t)), scores


def group_label(group: str, entry: Entry) -> str:
    """Variant name of an entry in a group (`tuned`, `equal_flops`); options of its own keep two entries apart."""
    return ",".join([group, *(f"{k}={v}" for k, v in entry.options.items())])
