"""What a request and a training sample occupy, priced term by term: arithmetic on workloads, prices, assumptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from ctrbench.bench.cost_amounts import NOTHING, Amount, exactly
from ctrbench.bench.cost_prices import GPU, OBJECT, RAM, SSD, VCPU, Prices
from ctrbench.bench.cost_workloads import CPU, LEGACY, Sizes, Training, Workload
from ctrbench.datasets.errors import BadInput, nearest

ACCELERATOR, HOST, FEATURES, DRAM, STORAGE, NETWORK = (
    "accelerator", "host_cpu", "feature_cpu", "dram", "storage", "network",
)  # fmt: skip
TRAINING, TOTAL = "training", "total"
BY_HAND = (LEGACY, "legacy_200")
"""Paradigms of `feature_cpu` that can feed legacy models."""
SAMPLE_TERMS = (ACCELERATOR, HOST, FEATURES, DRAM, STORAGE, NETWORK)
"""Terms of a million training samples, in the order of the stack."""
TERMS = (*SAMPLE_TERMS, TRAINING)
"""Terms of a million requests."""
HOURS_A_MONTH = 730.0
GB = 1e9
MILLION = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What no row can say: the traffic, the fleet, what is kept. Group `cost` of the configuration."""

    qps: float = 1000.0
    """Mean requests a second of the service."""
    utilisation: float = 0.5
    """Planned mean load / what the machines can carry within the latency budget."""
    peak_to_mean: float = 2.0
    """The busiest hour's traffic / the mean; the fleet is max(1 / utilisation, peak_to_mean) times the mean load."""
    replicas: float = 2.0
    """Copies of the tables and the model held in memory, and the fewest accelerators and CPUs that run."""
    users: float = 1e7
    """Users of whom caches and answers are kept."""
    cache_resident: float = 0.1
    """Share of the users' caches in memory; the rest lies on SSD."""
    retention_days: float = 30.0
    """How long the raw log and its shards are kept."""
    training_samples: float = 1e8
    """Samples that one training reads: those logged since the last one, read once."""
    requests_before_retraining: float = 8.64e7
    """Requests served before the model is trained again: a day at 1,000 QPS."""
    training: bool = True
    """Whether a request pays its share of training; without it the term is left out of the terms and of their sum."""
    tables_gb: float | None = None
    """Size that the embedding tables are scaled to; None takes them as measured."""
    legacy_features: str = LEGACY
    """Paradigm of `feature_cpu` that feeds legacy models: `legacy` makes 40 columns by hand, `legacy_200` 200."""
    network: str = "network_zones"
    """The price at which a request's bytes travel between stages."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("network", "training", "legacy_features") or (f.name == "tables_gb" and value is None):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e100:
                raise BadInput(f"cost.{f.name}={value!r}: give a number")
            if value < 0 or (value == 0 and f.name not in ("cache_resident", "users", "retention_days")):
                raise BadInput(f"cost.{f.name}={value!r}: give a number above 0")
            if f.name in ("utilisation", "cache_resident") and value > 1:
                raise BadInput(f"cost.{f.name}={value!r}: a share is at most 1")
        if not isinstance(self.training, bool):
            raise BadInput(f"cost.training={self.training!r}: give true or false")
        if self.legacy_features not in BY_HAND:
            raise BadInput(f"cost.legacy_features: unknown value {nearest(str(self.legacy_features), BY_HAND)}")
        if self.peak_to_mean < 1:
            raise BadInput(f"cost.peak_to_mean={self.peak_to_mean!r}: a peak is at least the mean: give 1 or more")

    @property
    def headroom(self) -> float:
        """Capacity that is paid for / mean load."""
        return max(1 / self.utilisation, self.peak_to_mean)

    @property
    def samples_a_day(self) -> float:
        """Samples logged a day: as many as the trainings of a day read."""
        return self.training_samples * self.qps * 86400 / self.requests_before_retraining


def assumptions_of(values: Mapping[str, Any]) -> Assumptions:
    """Assumptions from the group `cost` of the configuration, without its key `prices`.

    Raises:
        BadInput: an unknown key, with the nearest valid one, or a value out of range.
    """
    known = [f.name for f in fields(Assumptions)]
    for key in values:
        if key not in known:
            raise BadInput(f"unknown key {nearest(f'cost.{key}', [f'cost.{k}' for k in (*known, 'prices')])}")
    return Assumptions(**cast(dict[str, Any], dict(values)))


def request_terms(w: Workload, prices: Prices, a: Assumptions) -> dict[str, Amount]:
    """USD a million requests by term, then their sum; every term of `TERMS`, also those of 0 USD.

    What runs is paid by the hour at the planned traffic, and no fleet is smaller than `replicas`. `training` is what a
    million requests pay of it without its storage, which stands in `storage`.
    """
    gpu = w.deployment != CPU
    per_hour = MILLION / (3600 * a.qps)  # USD an hour -> USD a million requests
    per_month = per_hour / HOURS_A_MONTH
    sizes = scaled_sizes(w.sizes, a)
    cache = w.cache_b.scaled(a.users)
    in_memory = (sizes.tables_b + sizes.dense_b).scaled(a.replicas) + cache.scaled(a.cache_resident)
    on_ssd = cache.scaled(1 - a.cache_resident) + w.knowledge_b.scaled(a.users)
    kept = (sizes.raw_b + sizes.shard_b).scaled(a.samples_a_day * a.retention_days)
    in_store = kept + sizes.tables_b + sizes.dense_b + sizes.optimizer_b
    busy = a.qps * a.headroom
    terms = {
        ACCELERATOR: w.accelerator_s.scaled(busy).at_least(a.replicas).priced(prices, GPU + w.deployment)
        if gpu else NOTHING,
        HOST: w.host_s.scaled(busy).at_least(a.replicas).priced(prices, VCPU),
        FEATURES: w.feature_s.scaled(busy).priced(prices, VCPU),
        DRAM: in_memory.scaled(1 / GB).priced(prices, RAM),
    }  # fmt: skip
    terms = {name: amount.scaled(per_hour) for name, amount in terms.items()}
    terms[STORAGE] = on_ssd.scaled(per_month / GB).priced(prices, SSD) + in_store.scaled(per_month / GB).priced(
        prices, OBJECT
    )
    terms[NETWORK] = w.wire_b.scaled(MILLION / GB).priced(prices, a.network)
    if a.training:
        trained = sample_terms(w.training, prices, a)
        once = sum((trained[t] for t in SAMPLE_TERMS if t != STORAGE), NOTHING)  # what is kept is in `storage`
        terms[TRAINING] = once.scaled(a.training_samples / a.requests_before_retraining)
    return terms | {TOTAL: sum(terms.values(), NOTHING)}


def sample_terms(t: Training, prices: Prices, a: Assumptions) -> dict[str, Amount]:
    """USD a million training samples by term, then their sum.

    Trainings run one after the other on machines that are rented while they run: there is no headroom. Memory holds
    tables, weights and optimizer state for as long as a million samples take. Storage is what is kept, over the samples
    logged in a month.
    """
    sizes = scaled_sizes(t.sizes, a)
    state = sizes.tables_b + sizes.dense_b + sizes.optimizer_b
    hours = MILLION / 3600
    kept = (sizes.raw_b + sizes.shard_b).scaled(a.samples_a_day * a.retention_days) + state
    months = MILLION / (a.samples_a_day * HOURS_A_MONTH / 24)  # of logging a million samples
    gpu = t.deployment != CPU
    terms = {
        ACCELERATOR: t.accelerator_s.scaled(hours).priced(prices, GPU + t.deployment) if gpu else NOTHING,
        HOST: t.host_s.scaled(hours).priced(prices, VCPU),
        FEATURES: t.feature_s.scaled(hours).priced(prices, VCPU),
        DRAM: (state * t.wall_s).scaled(hours / GB).priced(prices, RAM),
        STORAGE: kept.scaled(months / GB).priced(prices, OBJECT),
        NETWORK: sizes.shard_b.scaled(MILLION / GB).priced(prices, a.network),
    }
    return terms | {TOTAL: sum(terms.values(), NOTHING)}


def scaled_sizes(sizes: Sizes, a: Assumptions) -> Sizes:
    """Sizes with the tables grown to `tables_gb`: their optimizer state grows with them, dense weights do not."""
    tables = sizes.tables_b
    if a.tables_gb is None or not tables.value:
        return sizes
    grown = exactly(a.tables_gb * GB)
    dense_state = sizes.dense_b.scaled(2.0)  # two moments of Adam
    if sizes.optimizer_b.value is None or dense_state.value is None:
        return Sizes(grown, sizes.dense_b, sizes.optimizer_b, sizes.raw_b, sizes.shard_b)
    of_tables = max(0.0, sizes.optimizer_b.value - dense_state.value)
    state = dense_state + exactly(of_tables * a.tables_gb * GB / tables.value)
    return Sizes(grown, sizes.dense_b, state, sizes.raw_b, sizes.shard_b)
