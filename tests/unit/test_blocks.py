"""Feature embedder and blocks: order of fields, pooling, padding, first-order column."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.linear import Linear
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.events import left_pad_index, take_padded


@pytest.mark.parametrize("sequences", ["pooled", "events"])
@pytest.mark.parametrize("impl", ["fused", "per_table"])
def test_fields_are_categorical_then_dense_then_pooled_histories(sequences, impl, sequence_schema):
    embedder = FeatureEmbedder(
        sequence_schema, 6, TableConfig(impl=impl, optimizer="sgd", init_std=1.0), sequences=sequences, linear=True
    )
    nn.init.normal_(embedder.missing_ID)
    batch = synthetic_batch(sequence_schema, 8, full=False)
    out, weights = embedder(batch), embedder.tables.weights()
    expected = [weights[f.name][batch.ids[f.name].values()][:, :7] for f in sequence_schema.categorical]
    expected.append(batch.dense_BI * embedder.numeric_ID + batch.missing_BI * embedder.missing_ID)
    if sequences == "pooled":
        for f in sequence_schema.sequences:
            jagged = batch.ids[f.name]
            rows = weights[f.table][jagged.values()][:, :7].split(jagged.lengths().tolist())
            expected.append(torch.stack([r.mean(0) if len(r) else torch.zeros(7) for r in rows]))
    expected_BFW = torch.stack(expected, dim=1)
    torch.testing.assert_close(out.fields_BFD, expected_BFW[..., :6])
    torch.testing.assert_close(out.linear_B, expected_BFW[..., 6].sum(1))
    assert out.fields_BFD.shape[1] == embedder.num_fields
    assert set(out.events) == ({"hist"} if sequences == "events" else set())


def test_events_are_left_padded_and_aligned_with_ids_and_times(sequence_schema):
    embedder = FeatureEmbedder(sequence_schema, 6, TableConfig(init_std=1.0), sequences="events")
    batch = synthetic_batch(sequence_schema, 8, full=False)
    events, weights = embedder(batch).events["hist"], embedder.tables.weights()
    lengths = batch.ids["hist_item"].lengths().tolist()
    times = batch.event_times["hist"].split(lengths)
    assert embedder.event_width == {"hist": 18}
    for row, n in enumerate(lengths):
        assert events.mask_BT[row].tolist() == [False] * (6 - n) + [True] * n
        assert torch.equal(events.times_BT[row, 6 - n :], times[row])
        for i, f in enumerate(sequence_schema.histories["hist"]):
            ids = batch.ids[f.name].values().split(lengths)[row]
            assert torch.equal(events.ids[f.name][row, 6 - n :], ids)
            assert torch.equal(events.values_BTE[row, 6 - n :, 6 * i : 6 * i + 6], weights[f.table][ids][:, :6])
    assert not events.values_BTE[~events.mask_BT].any()
    assert not events.times_BT[~events.mask_BT].any()


def test_history_longer_than_the_window_keeps_its_newest_events():
    lengths_B, flat_N = torch.tensor([5, 0, 2]), torch.arange(1, 8)
    offsets = torch.tensor([0, 5, 5, 7])
    index_BT, mask_BT = left_pad_index(lengths_B, offsets, 3)
    assert take_padded(flat_N, index_BT, mask_BT).tolist() == [[3, 4, 5], [0, 0, 0], [0, 6, 7]]
    empty = take_padded(torch.empty(0, 2), *left_pad_index(torch.zeros(2, dtype=torch.long), torch.zeros(3).long(), 3))
    assert empty.tolist() == torch.zeros(2, 3, 2).tolist()


def test_missing_values_add_nothing_without_their_vector(tabular_schema):
    embedder = FeatureEmbedder(tabular_schema, 4, TableConfig(), missing_vector=False)
    batch = synthetic_batch(tabular_schema, 64)
    numeric_BID = embedder(batch).fields_BFD[:, len(tabular_schema.categorical) :]
    assert batch.missing_BI.any()
    assert not numeric_BID[batch.missing_BI.bool()].any()


@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_mlp_layers_are_in_the_stated_order(bn, dropout):
    kinds = [type(m) for m in MLP(5, (4, 3), 1, batch_norm=bn, dropout=dropout)]
    block = [Linear, *([nn.BatchNorm1d] if bn else []), nn.ReLU, *([nn.Dropout] if dropout else [])]
    assert kinds == [*block, *block, Linear]


@pytest.mark.parametrize("out", [None, 1])
def test_mlp_flops_equal_the_counter(out):
    mlp = MLP(5, (4, 3), out)
    with FlopCounterMode(display=False) as counter:
        mlp(torch.randn(7, 5))
    assert counter.get_total_flops() / 7 == mlp_flops(5, (4, 3), out)


@pytest.mark.parametrize("sequences", ["pooled", "events"])
def test_a_schema_may_mix_its_kinds(sequences, sequence_schema):
    """Batches hold categorical ids, then sequences, in whatever order the schema names its fields."""
    mixed = replace(sequence_schema, fields=sequence_schema.fields[::-1])
    plain, other = (FeatureEmbedder(s, 4, TableConfig(), sequences=sequences) for s in (sequence_schema, mixed))
    for table, weight in other.tables.weights().items():
        weight.copy_(plain.tables.weights()[table])
    with torch.no_grad():
        other.numeric_ID.copy_(plain.numeric_ID)
    batch = synthetic_batch(sequence_schema, 6, full=False)
    keys = [f.name for f in (*mixed.categorical, *mixed.sequences)]
    ids = KeyedJaggedTensor.from_jt_dict({k: batch.ids[k] for k in keys})
    left, right = plain(batch), other(replace(batch, ids=ids))
    assert synthetic_batch(mixed, 6).ids.keys() == keys
    n_cat, n_seq = len(mixed.categorical), len(mixed.sequences) if sequences == "pooled" else 0
    order = [*range(n_cat)[::-1], n_cat, *(n_cat + 1 + i for i in range(n_seq)[::-1])]
    torch.testing.assert_close(right.fields_BFD, left.fields_BFD[:, order])
    if sequences == "events":
        width = 4
        parts = left.events["hist"].values_BTE.split(width, dim=-1)
        torch.testing.assert_close(right.events["hist"].values_BTE, torch.cat(parts[::-1], dim=-1))
