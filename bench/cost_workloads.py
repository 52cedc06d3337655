"""What each model occupies per request and per training sample, read from the rows of a run; nothing is priced here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ctrbench.bench.cost_amounts import NOTHING, Amount, Facts, Row, absent, exactly

CPU = "cpu"
"""Deployment without an accelerator; every other one is the name of a GPU of hardware.toml."""
KEEPERS = {"bytes_user_cache": ("cached", "exact", "streaming"), "bytes_knowledge": ("stored",)}
"""Forms that keep something of a user between requests; so does a form that is the scope of a row of the metric."""
LEGACY = "legacy"
"""Family of the models that are fed hand-made features, and the paradigm of `feature_cpu` that makes 40 of them."""
HISTORY = "history="
"""Begin of the variant of a longer workload; what does not depend on it is read from the rows without it."""
WHO = ("data", "split", "model", "variant", "preset")
_COLUMNS = ("run", *WHO, "family", "track", "device", "dtype")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model and of the log it learns from."""

    tables_b: Amount
    dense_b: Amount
    """Weights outside the tables."""
    optimizer_b: Amount
    """State of all optimizers; the dense one holds two moments."""
    raw_b: Amount
    """Raw log, per sample."""
    shard_b: Amount
    """Prepared shards, per sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training sample of one model on one deployment."""

    columns: Row
    """Identifying columns of its rows."""
    deployment: str
    accelerator_s: Amount
    host_s: Amount
    """Core-seconds of the host: the model on CPU, else the dispatch of its operators; and the loader."""
    feature_s: Amount
    """Core-seconds of making the sample's features."""
    wall_s: Amount
    """Time for which memory is held."""
    sizes: Sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One request of one model, form and number of candidates on one deployment."""

    columns: Row
    form: str
    deployment: str
    batch: int
    """Candidates."""
    basis: str
    """What the host's CPU time rests on: `serve_qps`, `serve_cpu` or `dispatch`."""
    accelerator_s: Amount
    host_s: Amount
    feature_s: Amount
    cache_b: Amount
    """Per user."""
    knowledge_b: Amount
    wire_b: Amount
    sizes: Sizes
    training: Training
    """On the same deployment, or on CPU where the time of a training step is not known there."""

    @property
    def scope(self) -> str:
        """`form/deployment`."""
        return f"{self.form}/{self.deployment}"


def workloads(facts: Facts, features: str = LEGACY) -> list[Workload]:
    """Every form of every model that was served at some number of candidates, on CPU and on each projected GPU.

    Args:
        facts: rows of a run.
        features: paradigm of `feature_cpu` that feeds the legacy models.
    """
    seen: dict[tuple[Any, ...], Row] = {}
    for metric in ("serve_cpu", "gpu_request_time"):
        for row in facts.rows(metric, phase="serve"):
            form, _, gpu = row["scope"].partition(":")
            if row["batch"] is not None:
                seen.setdefault((*(row[c] for c in WHO), form, gpu or CPU, row["batch"]), row)
    return [_workload(facts, features, row, key[-3], key[-2], int(key[-1])) for key, row in seen.items()]


def trainings(facts: Facts, features: str = LEGACY) -> list[Training]:
    """Every model whose training step was timed here, on CPU and on each GPU that its step was projected on."""
    seen: dict[tuple[Any, ...], Row] = {}
    for row in facts.rows("cpu_core_s_per_million", phase="train"):
        seen.setdefault(tuple(row[c] for c in WHO), row)
    out = []
    for row in seen.values():
        where = {c: row[c] for c in WHO}
        gpus = dict.fromkeys(r["scope"] for r in facts.rows("gpu_time_modelled", phase="train", **where) if r["scope"])
        out += [_training(facts, features, _columns(row), where, deployment) for deployment in (CPU, *gpus)]
    return out


def _columns(row: Row) -> dict[str, Any]:
    return {c: row[c] for c in _COLUMNS}


def _workload(facts: Facts, features: str, row: Row, form: str, deployment: str, batch: int) -> Workload:
    exact = {c: row[c] for c in WHO}
    plain = _without_history(exact)
    served = {"phase": "serve", "scope": form, "batch": batch, **exact}
    basis, host = _host(facts, served) if deployment == CPU else ("dispatch", _dispatch(facts, "ops_request", served))
    on_gpu = {**served, "scope": f"{form}:{deployment}"}
    trained_on = _trained_on(facts, plain, deployment)
    return Workload(
        columns=_columns(row), form=form, deployment=deployment, batch=batch, basis=basis, host_s=host,
        accelerator_s=NOTHING if deployment == CPU else facts.find("gpu_request_time", **on_gpu),
        feature_s=_features(facts, _paradigm(row, features), row, "serve", "total", batch).scaled(batch / 1e6),
        cache_b=_kept(facts, "bytes_user_cache", form, exact),
        knowledge_b=_kept(facts, "bytes_knowledge", form, exact),
        wire_b=_wire(facts, form, batch, exact),
        sizes=_sizes(facts, plain), training=_training(facts, features, _columns(row), plain, trained_on),
    )  # fmt: skip


def _trained_on(facts: Facts, who: dict[str, Any], deployment: str) -> str:
    """A model is trained where it is served if the time of its step is known there, else on the CPUs that timed it."""
    there = facts.rows("gpu_time_modelled", phase="train", scope=deployment, **who)
    return deployment if any(r["value"] is not None for r in there) else CPU


def _without_history(who: dict[str, Any]) -> dict[str, Any]:
    return {**who, "variant": ""} if str(who["variant"]).startswith(HISTORY) else who


def _host(facts: Facts, served: dict[str, Any]) -> tuple[str, Amount]:
    """Core-seconds a request on CPU: the machine's threads / the rate within the latency budget, where one was found.

    Without such a rate the core-seconds of requests served one after the other: what a fleet without waiting would
    need.
    """
    rates = [r for r in facts.rows("serve_qps", **served) if r["value"] and r["threads"]]
    if rates:
        threads = exactly(float(max(r["threads"] for r in rates)))
        return "serve_qps", threads * facts.find("serve_qps", **served).inverse()
    return "serve_cpu", facts.find("serve_cpu", **served)


def _dispatch(facts: Facts, metric: str, where: dict[str, Any]) -> Amount:
    """Core-seconds of the host that launches these operators: count x dispatch of one, as measured on this machine."""
    seconds = facts.find(metric, **where) * facts.find("dispatch_us").scaled(1e-6)
    return seconds if seconds.value is None else replace(seconds, origin="modelled")


def _paradigm(row: Row, features: str) -> str:
    return features if row["family"] == LEGACY else "transformer"


def _features(facts: Facts, paradigm: str, row: Row, phase: str, step: str, batch: int | None = None) -> Amount:
    """Core-seconds a million candidates (samples) of the paradigm's feature path, on the same data."""
    where = {"phase": phase, "scope": f"{paradigm}:{step}", "data": row["data"]}
    if batch is None:
        return facts.find("feature_cpu", **where)
    there = sorted({r["batch"] for r in facts.rows("feature_cpu", **where) if r["batch"] is not None})
    if there and batch not in there:
        at = ", ".join(f"{b:.0f}" for b in there)
        return absent(f"the feature path was measured at {at} candidates, not at {batch}")
    return facts.find("feature_cpu", batch=batch, **where)


def _kept(facts: Facts, metric: str, form: str, who: dict[str, Any]) -> Amount:
    """Bytes kept of a user by this form; 0 where it keeps none."""
    if facts.rows(metric, scope=form, **who):
        return facts.find(metric, scope=form, **who)
    return facts.find(metric, scope="", **who) if form in KEEPERS[metric] else NOTHING


def _wire(facts: Facts, form: str, batch: int, who: dict[str, Any]) -> Amount:
    """Bytes on the wire; they do not depend on the form, so that a row without one serves all."""
    own = facts.find("bytes_wire", scope=form, batch=batch, **who)
    return own if own.value is not None or not facts.rows("bytes_wire", scope="", batch=batch, **who) else (
        facts.find("bytes_wire", scope="", batch=batch, **who)
    )  # fmt: skip


def _sizes(facts: Facts, who: dict[str, Any]) -> Sizes:
    tables = facts.find("bytes_tables", **who)
    weights = facts.find("parameters", scope="", **who).scaled(4.0)  # float32, tables among them
    dense = weights + tables
    if tables.value is not None and weights.value is not None:
        left = max(0.0, weights.value - tables.value)
        dense = replace(dense, value=left, low=left, high=left)
    log = {"phase": "prepare", "data": who["data"], "split": who["split"]}
    return Sizes(tables, dense, facts.find("bytes_optimizer", **who), *(
        _per_sample(facts, metric, log) for metric in ("bytes_raw", "bytes_shards")
    ))  # fmt: skip


def _per_sample(facts: Facts, metric: str, where: dict[str, Any]) -> Amount:
    """Bytes of the data set / its samples, which are the row's `n`."""
    found = facts.find(metric, **where)
    counts: Iterable[Any] = (r["n"] for r in facts.rows(metric, **where))
    samples = next((n for n in counts if n), None)
    if found.value is not None and samples is None:
        return absent(f"{metric} of {where['data']} does not say of how many samples")
    return found.scaled(1 / samples) if samples else found


def _training(facts: Facts, features: str, columns: dict[str, Any], who: dict[str, Any], deployment: str) -> Training:
    step = {"phase": "train", **who}
    loader = facts.find("cpu_core_s_per_million", scope="data", **step).scaled(1e-6)
    if deployment == CPU:
        accelerator, wall = NOTHING, facts.find("throughput", scope="", **step).inverse()
        host = facts.find("cpu_core_s_per_million", scope="compute", **step).scaled(1e-6)
    else:
        times = facts.rows("gpu_time_modelled", scope=deployment, **step)
        batch = next((r["batch"] for r in times if r["batch"]), None)
        at = {"batch": batch, **step}
        per_sample = 1 / batch if batch else 1.0
        accelerator = wall = facts.find("gpu_time_modelled", scope=deployment, **at).scaled(per_sample)
        host = _dispatch(facts, "ops_per_step", {"scope": "", **at}).scaled(per_sample)
    made = _made_before(facts, _paradigm(columns, features), columns)
    return Training(
        columns=columns, deployment=deployment, accelerator_s=accelerator, host_s=host + loader,
        feature_s=made.scaled(1e-6), wall_s=wall, sizes=_sizes(facts, who),
    )  # fmt: skip


def _made_before(facts: Facts, paradigm: str, columns: Row) -> Amount:
    """Core-seconds a million samples of the feature path; without its last step, which the loader's time holds."""
    total, last = (_features(facts, paradigm, columns, "prepare", step) for step in ("total", "kjt"))
    if total.value is None or last.value is None:
        return total
    low, high = (max(0.0, end - last.value) for end in (total.low, total.high))
    return replace(total, value=max(0.0, total.value - last.value), low=low, high=high)
