"""pytest-benchmark: the way of the data: one pass of the loader over each shipped data set, and table lookups.

`extra_info` has rows/s, bytes of batches, CPU time a million rows; of lookups also how many times as long one lookup a
table takes, from rounds by turns. `suite=datapath` of the command line measures the same beside training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from ctrbench.bench.alternate import ratio
from ctrbench.bench.ceilings import thread_count
from ctrbench.bench.hardware import this_machine
from ctrbench.bench.proc import keep_freed_memory
from ctrbench.bench.suites.kernel_counts import Entry, entry
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import DataUnavailable
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch, synthetic_batch
from ctrbench.models.embedding import EmbeddingTables, TableConfig

DATA: dict[str, dict[str, Any]] = {
    "criteo_synthetic": {"rows": 100_000}, "taobao_synthetic": {"users": 400}, "movielens_1m": {},
}  # fmt: skip
BATCH, TABLE_BATCH, WIDTH, ROUNDS = 1024, 4096, 16, 10
THREADS = min(2, torch.get_num_threads())


@pytest.fixture(scope="session")
def prepared() -> Callable[[str], Prepared]:
    """A data set, prepared if it is not yet; skips what cannot be had here."""

    def opened(name: str) -> Prepared:
        try:
            return prepare(name, **DATA[name])
        except DataUnavailable as error:
            pytest.skip(str(error))

    return opened


@pytest.mark.timeout(900)
@pytest.mark.parametrize("prefetch", [0, 2], ids=lambda n: f"prefetch {n}")
@pytest.mark.parametrize("data", DATA)
def test_loader(
    benchmark: BenchmarkFixture, prepared: Callable[[str], Prepared], data: str, prefetch: int
) -> None:  # fmt: skip
    benchmark.group, benchmark.name = f"loader: {data}, batch {BATCH}", f"loader[{data}-prefetch {prefetch}]"
    loader = Loader(prepared(data), "train", BATCH, shuffle_seed=0, prefetch=prefetch)

    def one_pass() -> int:
        return sum(batch.nbytes for batch in loader)

    moved = one_pass()  # rows are in memory from here on
    before, passes = loader.cpu_seconds, 5
    benchmark.pedantic(one_pass, rounds=passes)
    if benchmark.disabled:
        return
    cpu = (loader.cpu_seconds - before) / passes / loader.rows * 1e6
    seconds = median(_data(benchmark))
    benchmark.extra_info |= {
        "rows": entry(loader.rows, "rows", "counted"),
        "rows_per_s": entry(loader.rows / seconds, "rows/s", "measured"),
        "bytes_batches": entry(moved, "B", "counted"),
        "bytes_per_s": entry(moved / seconds, "B/s", "measured"),
        "cpu_core_s_per_million": entry(cpu, "core*s", "measured", scope="data"),
        "machine": this_machine(),
    }  # fmt: skip


def _data(benchmark: BenchmarkFixture) -> list[float]:
    assert benchmark.stats is not None
    return list(benchmark.stats.stats.data)


def tables_of(impl: str) -> tuple[EmbeddingTables, Batch]:
    """Tables of the 26 columns of `random_tabular`, one a column, and a batch of its ids."""
    schema = random_batches.random_schema("random_tabular", 1)  # its rows have no history
    configs = [
        EmbeddingBagConfig(name=f.name, num_embeddings=f.cardinality, embedding_dim=WIDTH, feature_names=[f.name])
        for f in schema.categorical
    ]
    torch.manual_seed(0)
    built = EmbeddingTables(configs, TableConfig(impl=impl, optimizer="adagrad"))  # type: ignore[arg-type]
    return built.train(), synthetic_batch(schema, TABLE_BATCH)


def lookup(impl: str, passes: str) -> Callable[[], object]:
    """One lookup of all columns, with the update of the rows if `passes` has a backward."""
    tables, batch = tables_of(impl)
    grad: list[torch.Tensor] = []

    def forward() -> object:
        with torch.no_grad():
            return tables(batch.ids)

    def both() -> None:
        out = tables(batch.ids).values()
        if not grad:
            grad.append(torch.randn_like(out))
        out.backward(grad[0])
        tables.step()

    return forward if passes == "fwd" else both


@pytest.mark.parametrize("passes", ["fwd", "fwd+bwd"])
@pytest.mark.parametrize("impl", ["fused", "per_table"])
def test_lookup(benchmark: BenchmarkFixture, impl: str, passes: str) -> None:
    benchmark.group = f"table lookup: 26 columns, batch {TABLE_BATCH}, {WIDTH} wide, {passes}"
    benchmark.name = f"lookup[{impl}-{passes}]"
    keep_freed_memory()
    with thread_count(THREADS):
        run, strawman = lookup(impl, passes), lookup("per_table", passes)
        beside: list[float] = []

        def turn() -> None:
            start = time.perf_counter()
            strawman()
            beside.append(time.perf_counter() - start)

        for each in (run, strawman):  # buffers and optimizer state are made
            each()
        benchmark.pedantic(run, setup=turn, rounds=ROUNDS)
    if benchmark.disabled:
        return
    seconds = _data(benchmark)
    benchmark.extra_info |= dict(lookup_entries(impl, passes, seconds, beside[: len(seconds)]))


def lookup_entries(impl: str, passes: str, seconds: list[float], beside: list[float]) -> Iterator[tuple[str, Any]]:
    """Ids a second, bytes of the rows they name, and the strawman's time over this one's."""
    tables, batch = tables_of(impl)
    ids = int(batch.ids.values().numel())
    over = ratio(beside, seconds)
    found: dict[str, Entry] = {
        "ids": entry(ids, "ids", "counted"),
        "ids_per_s": entry(ids / median(seconds), "ids/s", "measured"),
        "bytes_rows": entry(ids * tables.stored * 4, "B", "counted", words="rows that the ids name, repeats too"),
        "bytes_tables": entry(tables.bytes_tables(), "B", "counted"),
        "per_table_over_this": entry(
            over.value, "ratio", "measured", ci_low=over.low, ci_high=over.high, n=over.rounds
        ),
    }  # fmt: skip
    yield from found.items()
    yield from {"impl": impl, "pass": passes, "threads": THREADS, "machine": this_machine()}.items()
