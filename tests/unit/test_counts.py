"""Inputs of the counted rows by hand: useful FLOPs at true lengths, distinct rows, compulsory and checkpoint bytes."""

from __future__ import annotations

import io
from dataclasses import replace
from math import prod

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench import registry
from ctrbench.bench.counts import checkpoint_bytes, compulsory_bytes, counted_training, unique_rows, useful_flops
from ctrbench.datasets.schema import Batch, FeatureSchema, padding_share, synthetic_batch
from ctrbench.kernels.attention import lower_right, visible_pairs
from ctrbench.models.embedding import TableConfig, dense_parameters, embedding_tables


@pytest.mark.parametrize("name", ["deepfm", "din", "composite", "onetrans", "gpt_block"])
def test_useful_flops_is_the_mean_over_rows(name: str, sequence_schema: FeatureSchema) -> None:
    spec = registry.model_spec(name)
    config, batch = spec.config(), synthetic_batch(sequence_schema, 24, full=False, seed=3)
    lengths = batch.host["lengths"]
    assert isinstance(lengths, dict)
    assert len(set(lengths["hist"])) > 3
    by_row = [spec.flops(config, sequence_schema, {"hist": n}).visible for n in lengths["hist"]]
    assert useful_flops(spec, config, sequence_schema, batch).visible == pytest.approx(sum(by_row) / 24)


def test_useful_flops_grow_with_events_and_stop_at_the_cut(sequence_schema: FeatureSchema) -> None:
    spec = registry.model_spec("din")
    config, batch = spec.config(), synthetic_batch(sequence_schema, 8)

    def at(length: int) -> float:
        given = replace(batch, host={"lengths": {"hist": [length] * 8}})
        return useful_flops(spec, config, sequence_schema, given).visible

    assert at(0) < at(1) < at(6)
    assert at(6) == at(7) == at(100) == spec.flops(config, sequence_schema, None).visible


@pytest.mark.parametrize("lengths", [[6, 6, 6], [0, 2, 5]])
def test_din_on_real_events_counts_what_its_closed_form_says(
    sequence_schema: FeatureSchema, lengths: list[int]
) -> None:
    """Small widths, where the weighted sum of the events is a large part; it counted nothing before."""
    spec = registry.model_spec("din")
    config = spec.config(dim=2, attention=(4, 4), mlp=(4,), unit="jagged")
    batch = _batch(sequence_schema, {f"hist_{k}": [[3] * n for n in lengths] for k in ("item", "genre", "action")})
    counts, useful, reason = counted_training(spec, config, sequence_schema, spec.build(config, sequence_schema), batch)
    assert not reason
    assert counts.flops("forward") == pytest.approx(useful.visible)
    assert counts.flops("backward") == pytest.approx(2 * useful.visible, rel=0.1)


def test_without_histories_every_row_is_alike(tabular_schema: FeatureSchema) -> None:
    spec = registry.model_spec("dcn_v2")
    batch = synthetic_batch(tabular_schema, 5)
    expected = spec.flops(spec.config(), tabular_schema, None).visible
    assert useful_flops(spec, spec.config(), tabular_schema, batch).visible == expected


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (3, 7)])
def test_visible_pairs_are_those_of_the_mask(queries: int, keys: int) -> None:
    assert visible_pairs(queries, keys) == int(lower_right(queries, keys, torch.device("cpu")).sum())


def _batch(schema: FeatureSchema, ids: dict[str, list[list[int]]]) -> Batch:
    """A batch of given ids; a field that is not named has id 3 in every row."""
    like = synthetic_batch(schema, 3)
    rows = [ids.get(f.name, [[3]] * 3) for f in schema.of_kind("categorical", "sequence")]
    kjt = KeyedJaggedTensor(
        keys=like.ids.keys(),
        values=torch.tensor([i for field in rows for row in field for i in row]),
        lengths=torch.tensor([len(row) for field in rows for row in field], dtype=torch.int32),
    )
    host = {"lengths": {"hist": [len(row) for row in ids["hist_item"]]}}
    return replace(like, ids=kjt, host=host)


def test_unique_rows_counts_shared_tables_once(sequence_schema: FeatureSchema) -> None:
    histories = {
        "item": [[7], [8], [7]],
        "hist_item": [[8, 9, 8], [], [10]],  # shares the table of `item`
        "genre": [[5], [5], [6]],
        "hist_genre": [[6, 6, 4], [], [5]],
        "hist_action": [[3, 4, 4], [], [3]],
    }
    distinct, lookups = unique_rows(_batch(sequence_schema, histories), sequence_schema)
    items, genres, actions, others = 4, 3, 2, 3  # {7,8,9,10}, {4,5,6}, {3,4}, one row of user, gender and hour
    assert distinct == items + genres + actions + others
    assert lookups == 5 * 3 + 3 * 4
    assert padding_share(sequence_schema, _batch(sequence_schema, histories)) == pytest.approx(1 - 3 * 4 / (3 * 6 * 3))


@pytest.mark.parametrize(("optimizer", "state"), [("sgd", 0), ("rowwise_adagrad", 4), ("adagrad", None)])
def test_compulsory_bytes_by_hand(optimizer: str, state: int | None, tabular_schema: FeatureSchema) -> None:
    spec = registry.model_spec("dcn_v2")
    config = spec.config(tables=TableConfig(optimizer=optimizer))
    model = spec.build(config, tabular_schema)
    batch = synthetic_batch(tabular_schema, 16)
    (tables,) = embedding_tables(model)
    width = {w.shape[1] for w in tables.weights().values()}.pop()
    row = width * 4 + (width * 4 if state is None else state)
    dense = sum(prod(p.shape) for p in dense_parameters(model))
    distinct = 11
    ids, labels = 16 * 4 * (8 + 4), 16 * (4 + 8 + 8)  # int64 ids with int32 lengths; label, time, user
    inputs = 2 * 16 * 3 * 4 + ids + labels  # dense values and their missing flags
    expected = inputs + 2 * (3 * 4 * dense) + 2 * distinct * row + 16 * 4
    assert compulsory_bytes(model, batch, distinct) == pytest.approx(expected)


def test_checkpoint_is_what_torch_saves(tabular_schema: FeatureSchema) -> None:
    spec = registry.model_spec("deepfm")
    model = spec.build(spec.config(), tabular_schema)
    weights = 4 * sum(p.numel() for p in dense_parameters(model))
    weights += 4 * sum(w.numel() for t in embedding_tables(model) for w in t.weights().values())
    size = checkpoint_bytes(model)
    tensors = len(dense_parameters(model)) + len(tabular_schema.tables)
    assert weights < size < weights + 2048 * (tensors + 1)  # one zip entry a tensor
    again = io.BytesIO()
    torch.save([torch.zeros(weights // 4)], again)
    assert size > again.getbuffer().nbytes
