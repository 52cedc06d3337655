"""Small schemas and batch surgery that the model tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import Batch, FeatureSchema, Field
from ctrbench.models.embedding import EmbeddingTables, dense_parameters, embedding_tables

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's `pytest &` ignores it, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("no_shrink", phases=(Phase.explicit, Phase.reuse, Phase.generate))
"""For who asks whether a test fails, not how simply (tests/mutations/run.py)."""


LONG = ("test_serving_suite", "test_readme", "test_suite_ci", "test_report_access", "test_step_one")
"""Files of minutes: they start first, so that no process is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tabular_schema() -> FeatureSchema:
    """Criteo-like: dense and categorical fields, no history."""
    dense = [Field(name=f"I{i}", kind="dense", role="context") for i in range(3)]
    cats = [Field(name=f"C{i}", kind="categorical", role="context", cardinality=30 + i) for i in range(4)]
    return FeatureSchema(name="small_tabular", track="tabular", fields=(*dense, *cats))


@pytest.fixture(scope="session")
def sequence_schema() -> FeatureSchema:
    """MovieLens-like: user, target, context and one history with an action that mirrors no field."""

    def event(name: str, target: str | None = None, cardinality: int = 0) -> Field:
        return Field(name=name, kind="sequence", role="behaviour", cardinality=cardinality, max_length=6, target=target,
                     history="hist")  # fmt: skip

    return FeatureSchema(
        name="small_sequence",
        track="sequence",
        fields=(
            Field(name="user", kind="categorical", role="user", cardinality=40),
            Field(name="gender", kind="categorical", role="user", cardinality=5),
            Field(name="item", kind="categorical", role="item", cardinality=50),
            Field(name="genre", kind="categorical", role="item", cardinality=9),
            Field(name="hour", kind="categorical", role="context", cardinality=12),
            Field(name="age", kind="dense", role="user"),
            event("hist_item", "item"),
            event("hist_genre", "genre"),
            event("hist_action", cardinality=5),
        ),
    )


@pytest.fixture(scope="session")
def schema_of(tabular_schema: FeatureSchema, sequence_schema: FeatureSchema) -> dict[str, FeatureSchema]:
    """Track -> its small schema."""
    return {"tabular": tabular_schema, "sequence": sequence_schema}


def _take_rows(schema: FeatureSchema, batch: Batch, rows: Sequence[int]) -> Batch:
    index = torch.as_tensor(rows, dtype=torch.long)
    values, lengths, per_key = [], [], []
    keys: list[str] = batch.ids.keys()
    for key in keys:
        jagged = batch.ids[key]
        parts = torch.split(jagged.values(), jagged.lengths().tolist())
        chosen = [parts[i] for i in index.tolist()]
        values += chosen
        lengths.append(jagged.lengths()[index])
        per_key.append(sum(len(p) for p in chosen))
    times, host = {}, {}
    for history, fields in schema.histories.items():
        n = batch.ids[fields[0].name].lengths()
        parts = torch.split(batch.event_times[history], n.tolist())
        times[history] = torch.cat([parts[i] for i in index.tolist()])
        host[history] = n[index].tolist()
    ids = KeyedJaggedTensor(
        keys=batch.ids.keys(),
        values=torch.cat(values),
        lengths=torch.cat(lengths),
        length_per_key=per_key,
        stride=len(index),
    )
    return Batch(
        batch.dense_BI[index], batch.missing_BI[index], ids, times, batch.time_B[index], batch.label_B[index],
        batch.user_B[index], {"lengths": host},
    )  # fmt: skip


@pytest.fixture(scope="session")
def take_rows() -> Callable[[FeatureSchema, Batch, Sequence[int]], Batch]:
    """The batch that holds the named rows of another, in that order, histories and their times with them."""
    return _take_rows


@torch.no_grad()
def _randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    for p in dense_parameters(model):
        p.add_(torch.randn(p.shape, generator=g) * 0.1)
    for tables in embedding_tables(model):
        for weight in tables.weights().values():
            weight[1:, : tables.width] = torch.randn(weight.shape[0] - 1, tables.width, generator=g) * 0.3
    inside = {id(b) for m in model.modules() if isinstance(m, EmbeddingTables) for b in m.buffers()}
    for b in model.buffers():
        if b.is_floating_point() and b.numel() and id(b) not in inside:
            b.mul_(1 + 0.5 * torch.rand(b.shape, generator=g)).add_(0.05)
    return model


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """Moves every weight, table row and running statistic off its start, in place; padding rows stay zero."""
    return _randomise


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for one module, with a cache of prepared data of its own in `cache/`."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTRBENCH_CACHE", str(folder / "cache"))
        yield folder
