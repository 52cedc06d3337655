"""Headline rows of a suite, derived from the records of its processes: one row a measure and model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ctrbench.bench.arrays import arrays
from ctrbench.bench.assemble import base_columns
from ctrbench.bench.control_rows import control_row
from ctrbench.bench.controls import CONTROLS
from ctrbench.bench.every_pair import pair_rows
from ctrbench.bench.jobs import SCORES
from ctrbench.bench.joint import joint_rows
from ctrbench.bench.mode_rows import mode_rows
from ctrbench.bench.option_gains import option_rows, same_seeds
from ctrbench.bench.retrieval_rows import RANKS, over_seeds
from ctrbench.bench.runspec import RunSpec, mode_options
from ctrbench.bench.score_rows import score_rows
from ctrbench.bench.serving.rows import utilisation_rows
from ctrbench.bench.statistics import auc_draws, mean_interval, paired_from_draws, percentiles, two_level_bootstrap
from ctrbench.bench.utilisation import counted_as, utilisation
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports import records
from ctrbench.reports.declared import Scored
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

DRAWS = 400
REFERENCE = {"sequence": "composite", "tabular": "dcn_v2"}
HISTORY_FLOOR = "lightgbm_history"
POOL_CONTROL = "target_ids"
NO_INFERENCE = "n/a: suite=modes times training steps alone"
MADE_BEFORE = "n/a: random batches are made before the first step, no step waits for one"
Body = Mapping[str, Any]
Who = tuple[str, str]
"""Model and variant."""
TUNED = "tuned"
"""Variant of a model with the options of its best trial."""
EQUAL_FLOPS = "equal_flops"
"""Variant of a model that was given FLOPs instead of rows."""
GROUPS = (TUNED, EQUAL_FLOPS)
"""Variants that pair inside their group where the reference is in it."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished process: its spec and its record.json."""

    spec: RunSpec
    body: Body
    key: str = ""
    """Of the record, where one run stands for two variants; else that of the spec."""

    @property
    def record(self) -> str:
        """Key of the record with its rows and scores."""
        return self.key or self.spec.key


def summarise(runs: Iterable[Run], runs_dir: Path, run_id: str) -> list[Measurement]:
    """Timing, quality with intervals, paired differences, utilisation: over all (data, split, model, variant)."""
    runs = list(runs)
    groups: dict[tuple[tuple[str, str], Who], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.spec.data:
            who = run.spec.model, run.spec.variant
            groups[(run.spec.data, run.spec.split), who][run.spec.kind].append(run)
    rows: list[Measurement] = []
    for kinds in groups.values():
        if kinds["time"]:
            rows += timing_rows(kinds["time"], kinds["count"] or counted_as(kinds["time"][0].spec, runs), run_id)
        if kinds["retrieve"]:
            files = [runs_dir / "records" / r.record / RANKS for r in kinds["retrieve"]]
            rows += over_seeds(_base(kinds["retrieve"][0], run_id), files)
        if kinds["serve"] and kinds["serve_count"]:
            load, work = kinds["serve"][0], kinds["serve_count"][0]
            rows += utilisation_rows(_base(load, run_id), load.body, work.body)
        for kind in CONTROLS:
            if kinds[kind]:
                extras = [r.body["extra"] for r in kinds[kind]]
                rows.append(control_row(_base(kinds[kind][0], run_id), kind, extras))
    for data in dict.fromkeys(d for d, _ in groups):
        trained = {
            m: k["quality"] + k["floor"] for (d, m), k in groups.items() if d == data and k["quality"] + k["floor"]
        }
        counted = {m: k["count"][0].body for (d, m), k in groups.items() if d == data and k["count"]}
        rows += quality_summary(trained, counted, runs_dir, run_id)
    return rows


def _base(run: Run, run_id: str) -> dict[str, Any]:
    extra = run.body["extra"]
    family = extra.get("family") or ("floor" if run.spec.kind == "floor" else "")
    return {**base_columns(run.spec, family, extra.get("track", "")), "run": run_id}


def timing_rows(timed: list[Run], counted: list[Run], run_id: str) -> list[Measurement]:
    """Step time, throughput, latency, stalls, core-seconds, memory and CPU utilisation of one model."""
    base = _base(timed[0], run_id)
    extras = [r.body["extra"] for r in timed]
    batch = timed[0].spec.batch
    steps = [e["samples"]["step"] for e in extras]
    infer = [e["samples"]["infer"] for e in extras]
    n_steps = sum(len(s) for s in steps)
    rows = [
        _timing(base, "step_time", steps, "train"),
        _timing(base, "infer_latency", infer, "infer")
        if all(infer)
        else withheld(base, "infer_latency", NO_INFERENCE, phase="infer"),
    ]
    seconds = rows[0].value
    assert seconds is not None
    low, high = rows[0].ci_low, rows[0].ci_high
    rows.append(make(base, "throughput", batch / seconds, "measured", phase="train", n=len(timed),
                     ci_low=batch / high if high else None, ci_high=batch / low if low else None))  # fmt: skip
    rows.append(
        withheld(base, "loader_stall", MADE_BEFORE, phase="train")
        if "random_batches" in extras[0]
        else make(base, "loader_stall", stall_of(extras), "measured", phase="train", n=len(timed))
    )
    all_cpu = sum(e["cpu_seconds"]["all"] for e in extras)
    data_cpu = sum(e["cpu_seconds"]["data"] for e in extras)
    per_million = 1e6 / (n_steps * batch)
    rows += [
        make(base, "cpu_core_seconds", all_cpu / n_steps, "measured", phase="train", n=n_steps),
        make(
            base, "cpu_core_s_per_million", data_cpu * per_million, "measured", phase="train", scope="data", n=n_steps
        ),
        make(
            base,
            "cpu_core_s_per_million",
            (all_cpu - data_cpu) * per_million,
            "measured",
            phase="train",
            scope="compute",
            n=n_steps,
        ),
        make(base, "rss_peak", max(e["rss_peak"] for e in extras), "measured", phase="train", n=len(timed)),
    ]
    rows += mode_rows(base, extras)
    return rows + utilisation(base, timed, counted, seconds, batch)


def stall_of(extras: Iterable[Body]) -> float:
    """Median over timed processes of the share of the steps' time that was spent waiting for a batch."""
    return median(sum(e["samples"]["wait"]) / sum(e["samples"]["step"]) for e in extras)


def _timing(base: Mapping[str, Any], metric: str, samples: list[list[float]], phase: str) -> Measurement:
    low, high = two_level_bootstrap(samples)
    per_process = [percentiles(s) for s in samples]
    p = {q: median(v[q] for v in per_process) for q in ("p10", "p50", "p90")}
    sd = float(np.std([v["p50"] for v in per_process], ddof=1)) if len(samples) > 1 else None
    return make(base, metric, p["p50"], "measured", phase=phase, n=len(samples), sd=sd, ci_low=low, ci_high=high, **p)


def quality_summary(
    trained: Mapping[Who, list[Run]], counted: Mapping[Who, Body], runs_dir: Path, run_id: str
) -> list[Measurement]:
    """Mean over seeds with intervals that resample users and seeds jointly; paired differences; AUC per GFLOP."""
    if not trained:
        return []
    first = next(iter(trained.values()))[0]
    prepared = Prepared.open(Path(first.spec.prepared))
    frame = prepared.frame("test", columns=["label", "user_id"])
    label, user = frame["label"].to_numpy(), frame["user_id"].to_numpy()
    rows: list[Measurement] = []
    draws: dict[Who, np.ndarray] = {}
    aucs: dict[Who, np.ndarray] = {}
    for who, runs in trained.items():
        base = _base(runs[0], run_id) | {"track": prepared.schema.track}
        score_SN = [arrays(runs_dir / "records" / r.record / SCORES, "score")["score"] for r in runs]
        draws[who] = np.stack([auc_draws(label, s, user, draws=DRAWS, seed=0) for s in score_SN])
        by_metric = _per_seed(runs, runs_dir)
        aucs[who] = np.asarray(by_metric["auc", ""])
        low, high = mean_interval(draws[who], seed=0)
        for (metric, scope), values in by_metric.items():
            more: dict[str, Any] = {"ci_low": low, "ci_high": high} if metric == "auc" else {}
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            rows.append(
                make(
                    base,
                    metric,
                    float(np.mean(values)),
                    "measured",
                    phase="train",
                    scope=scope,
                    n=len(values),
                    sd=sd,
                    **more,
                )
            )
        rate = prepared.positive_rate("train")
        rows += score_rows(base, [Scored(label_N=label, score_N=s, user_N=user, train_rate=rate) for s in score_SN])
        if runs[0].spec.kind == "quality":
            rows += _budget(base, runs, count_of(who, counted))
    rows += _paired(trained, counted, draws, aucs, prepared.schema.track, run_id)
    bases = {who: _base(runs[0], run_id) | {"track": prepared.schema.track} for who, runs in trained.items()}
    rows += pair_rows(trained, bases, aucs, draws, GROUPS)
    rows += joint_rows(trained, bases, aucs, draws, runs_dir) + option_rows(trained, bases, aucs, draws)
    doubt = pool_doubt(trained) if prepared.sampler is not None else ""
    known = ("ok", "unstable")
    return [replace(r, status="unstable", reason=doubt) if doubt and r.status in known else r for r in rows]


def count_of(who: Who, counted: Mapping[Who, Body]) -> Body | None:
    """The counts that hold for a model; tuning and another budget change no FLOP of a row."""
    model, variant = who
    group, _, rest = variant.partition(",")
    if group not in GROUPS:
        return counted.get(who)
    # Options of the command line are in the name of what was counted and not in that of the group.
    found = [b for (m, v), b in counted.items() if m == model and f"{v},".startswith(f"{rest}," if rest else "")]
    return counted.get((model, rest)) or (found[0] if len(found) == 1 else None)


def standing_for_tuned(runs: Iterable[Run], chosen: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Trainings with defaults once more as the tuned ones, for entries whose default was the best trial.

    Without them a model that tuning did not help would only be compared with an untuned reference.
    """
    labels = {
        (c["data"], c["split"], c["model"], c["variant"]): c["label"] for c in chosen if not c["best"] and c["trained"]
    }
    out = []
    for run in runs:
        s = run.spec
        label = labels.get((s.data, s.split, s.model, s.variant))
        if label and s.kind == "quality":
            out.append(Run(replace(s, variant=label, tuned=True), run.body, run.record))
    return out


def pool_doubt(trained: Mapping[Who, list[Run]]) -> str:
    """Why no quality of data with sampled negatives can be believed; empty if the control found nothing."""
    control = trained.get((POOL_CONTROL, ""))
    if not control:
        return f"pool not judged: the {POOL_CONTROL} control did not finish, so the negatives may give labels away"
    return str(control[0].body["extra"]["leaking_pool"])


def _budget(base: Mapping[str, Any], runs: list[Run], counted: Body | None) -> list[Measurement]:
    """Training FLOPs of a whole run; a model with a pre-training shows both steps and their sum."""
    seen = float(np.mean([r.body["extra"]["rows"]["train_seen"] for r in runs]))
    reason = counted["extra"]["withheld"] if counted else "coverage_low: the counting process failed"
    if counted is None or reason:
        return [withheld(base, "budget_flops", reason, phase="train")]
    ranker = counted["extra"]["flops_model_train"] / runs[0].spec.batch * seen
    before = [r.body["extra"]["pretraining"]["flops"] for r in runs if "pretraining" in r.body["extra"]]
    if not before:
        return [make(base, "budget_flops", ranker, "derived", phase="train")]
    first = float(np.mean(before))
    parts = {"step1": first, "step3": ranker, "": first + ranker}
    return [make(base, "budget_flops", v, "derived", phase="train", scope=s) for s, v in parts.items()]


def _per_seed(runs: list[Run], runs_dir: Path) -> dict[tuple[str, str], list[float]]:
    """(metric, scope) -> value of every seed."""
    out: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        _, table = records.read(runs_dir / "records" / run.record)
        for metric, scope, value in zip(table["metric"], table["scope"], table["value"], strict=True):
            out[str(metric), str(scope)].append(float(value))
    return out


def references(who: Who, runs: list[Run], trained: Mapping[Who, list[Run]], track: str) -> list[Who]:
    """Whom a model is paired with: the track's reference, the history floor, and the host whose fields it adds to.

    A tuned variant pairs with the tuned reference where there is one: equal care on both sides. A training at equal
    FLOPs pairs with no other kind.
    """
    found = []
    host = str(runs[0].body["extra"].get("host", ""))
    group = who[1].partition(",")[0]
    for name in dict.fromkeys((REFERENCE[track], HISTORY_FLOOR, host)):
        plain = [w for w in trained if w[0] == name and w[1].partition(",")[0] not in GROUPS]
        # A reference with options of the command line has one variant, and it is not the empty one.
        other = (name, "") if (name, "") in trained or len(plain) != 1 else plain[0]
        if group in GROUPS and (name, group) in trained:
            other = (name, group)
        elif group == EQUAL_FLOPS:  # the floor read all rows
            continue
        if other in trained and other != who:
            found.append(other)
    return found


def _paired(
    trained: Mapping[Who, list[Run]], counted: Mapping[Who, Body], draws: Mapping[Who, np.ndarray],
    aucs: Mapping[Who, np.ndarray], track: str, run_id: str,
) -> list[Measurement]:  # fmt: skip
    """Differences from the references, over the seeds that both have."""
    rows: list[Measurement] = []
    for who, runs in trained.items():
        if runs[0].spec.kind == "floor":
            continue
        for other in references(who, runs, trained, track):
            base = _base(runs[0], run_id) | {"track": track, "phase": "train", "scope": f"vs:{other[0]}"}
            mine, theirs = _pairs(runs, trained[other])
            if not mine:
                rows.append(
                    withheld(
                        base, "auc_delta", f"no training of {other[0]} with the same seed{_and_mode(runs[0])} finished"
                    )
                )
                continue
            delta = float(aucs[who][mine].mean() - aucs[other][theirs].mean())
            pair = paired_from_draws(delta, draws[who][mine], draws[other][theirs], seed=0)
            rows.append(make(base, "auc_mdd", pair.mdd, "derived", n=len(mine)))
            rows.append(
                make(base, "auc_delta", delta, "derived", n=len(mine), ci_low=pair.ci_low, ci_high=pair.ci_high)
            )
            if trained[other][0].spec.kind != "floor":  # a floor's FLOPs are not counted
                rows.append(_per_gflop(rows[-1], count_of(who, counted), count_of(other, counted), other[0]))
    return rows


def _per_gflop(delta: Measurement, mine: Body | None, theirs: Body | None, other: str) -> Measurement:
    """The paired difference per extra forward GFLOP a sample, withheld where FLOPs are not fully counted."""
    names = ("run", "model", "variant", "family", "data", "split", "track", "device", "dtype", "threads", "batch",
             "phase", "scope")  # fmt: skip
    base = {n: getattr(delta, n) for n in names}
    if mine is None or theirs is None:
        missing = delta.model if mine is None else other
        return withheld(base, "auc_per_gflop", f"coverage_low: the counting process of {missing} failed")
    for model, body in ((delta.model, mine), (other, theirs)):
        if body["extra"]["withheld"]:
            return withheld(base, "auc_per_gflop", f"{model}: {body['extra']['withheld']}")
    extra = (mine["extra"]["flops_model_forward"] - theirs["extra"]["flops_model_forward"]) / 1e9
    if extra <= 0:
        return withheld(base, "auc_per_gflop", f"spends no more FLOPs than {other}")
    assert delta.value is not None
    assert delta.ci_low is not None
    assert delta.ci_high is not None
    return make(base, "auc_per_gflop", delta.value / extra, "derived",
                ci_low=delta.ci_low / extra, ci_high=delta.ci_high / extra)  # fmt: skip


def _and_mode(run: Run) -> str:
    """What else must agree, where it is not what everything else runs in."""
    mode = mode_options(run.spec.dtype, run.spec.compile)
    return "".join(f", {name} {value}" for name, value in mode)


def _pairs(runs: list[Run], others: list[Run]) -> tuple[list[int], list[int]]:
    """Places of the runs that pair: equal seeds; a floor is trained once and pairs with every seed."""
    if others[0].spec.kind == "floor":
        return list(range(len(runs))), [0]
    return same_seeds(runs, others)
