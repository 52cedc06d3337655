"""Properties of the models of sums and pairs: LR, FM, FFM, Wide & Deep, DLRM (models.md sections 1.1 to 1.4, 1.8)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.dot_interaction import dot_interaction, dot_pairs
from ctrbench.kernels.ffm import ffm, ffm_pairs
from ctrbench.kernels.fm import fm_pairs, fm_sum
from ctrbench.legacy_baselines.dlrm import DLRM, DLRMConfig
from ctrbench.legacy_baselines.ffm import FFM, FFMConfig
from ctrbench.legacy_baselines.fm import FM, FMConfig
from ctrbench.legacy_baselines.lr import LR, LRConfig
from ctrbench.legacy_baselines.wide_deep import WideDeep, WideDeepConfig
from ctrbench.models.embedding import TableConfig, embedding_tables

fields_and_seed = given(fields=st.integers(2, 7), dim=st.integers(1, 5), seed=st.integers(0, 99))


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("track", ["tabular", "sequence"])
def test_lr_is_additive_over_fields_and_learns_at_looked_up_rows_only(track, schema_of, randomise):
    schema = schema_of[track]
    model = randomise(LR(LRConfig(tables=TableConfig(optimizer="sgd", lr=1.0)), schema))
    batch = synthetic_batch(schema, 4, full=False)
    weights_BF = model.embedder(batch).fields_BFD.squeeze(2)
    torch.testing.assert_close(model(batch), model.bias + weights_BF.sum(dim=1))
    (tables,) = embedding_tables(model)
    before = {t: w.clone() for t, w in tables.weights().items()}
    read = {t: set() for t in before}
    for key in batch.ids.keys():
        read[schema[key].table] |= set(batch.ids[key].values().tolist())
    model(batch).sum().backward()
    for table, weight in tables.weights().items():
        moved = set((weight != before[table]).any(1).nonzero().flatten().tolist())
        assert moved == read[table]


@settings(max_examples=20, deadline=None)
@fields_and_seed
def test_fm_forms_agree_and_a_zero_field_has_no_pairs(fields, dim, seed):
    x = _random(3, fields, dim, seed=seed)
    torch.testing.assert_close(fm_sum(x), fm_pairs(x))
    without = torch.cat([x[:, :1] * 0, x[:, 1:]], dim=1)
    torch.testing.assert_close(fm_sum(without), fm_pairs(x[:, 1:]))


def test_fm_is_lr_plus_its_pair_term(tabular_schema, randomise):
    model = randomise(FM(FMConfig(), tabular_schema)).eval()
    batch = synthetic_batch(tabular_schema, 8)
    embedded = model.embedder(batch)
    torch.testing.assert_close(model(batch), model.bias + embedded.linear_B + fm_pairs(embedded.fields_BFD))


def _by_target(x_BFSD: torch.Tensor) -> torch.Tensor:
    """Slots as a naive [B, F, F, D] table: entry (i, j) is the vector that field i has for field j, own ones zero."""
    batch, fields, _, dim = x_BFSD.shape
    out = x_BFSD.new_zeros(batch, fields, fields, dim)
    for i in range(fields):
        for j in range(fields):
            if i != j:
                out[:, i, j] = x_BFSD[:, i, j if j < i else j - 1]
    return out


@settings(max_examples=20, deadline=None)
@fields_and_seed
def test_ffm_packed_equals_the_naive_table(fields, dim, seed):
    x = _random(3, fields, fields - 1, dim, seed=seed)
    naive = _by_target(x)
    expected = sum((naive[:, i, j] * naive[:, j, i]).sum(1) for i in range(fields) for j in range(i + 1, fields))
    torch.testing.assert_close(ffm(x), expected)
    torch.testing.assert_close(ffm_pairs(x), expected)


@settings(max_examples=20, deadline=None)
@fields_and_seed
def test_ffm_with_equal_slots_is_fm(fields, dim, seed):
    v = _random(3, fields, dim, seed=seed)
    torch.testing.assert_close(ffm(v.unsqueeze(2).expand(-1, -1, fields - 1, -1)), fm_pairs(v))


def test_ffm_term_reads_the_slots_of_a_row_in_order(tabular_schema, randomise):
    model = randomise(FFM(FFMConfig(dim=3), tabular_schema)).eval()
    batch = synthetic_batch(tabular_schema, 5)
    embedded = model.embedder(batch)
    slots = embedded.fields_BFD.view(5, 7, 6, 3)
    torch.testing.assert_close(model(batch), model.bias + embedded.linear_B + ffm_pairs(slots))


@pytest.mark.parametrize("track", ["tabular", "sequence"])
def test_either_part_of_wide_and_deep_zeroed_leaves_the_other(track, schema_of, randomise):
    schema = schema_of[track]
    model = randomise(WideDeep(WideDeepConfig(), schema)).eval()
    batch = synthetic_batch(schema, 8, full=False)
    embedded = model.embedder(batch)
    deep_B = model.tower(embedded.fields_BFD.flatten(1)).squeeze(1)
    torch.testing.assert_close(model(batch) - deep_B, embedded.linear_B)
    for p in model.tower.parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(model(batch), embedded.linear_B)


@settings(max_examples=20, deadline=None)
@fields_and_seed
def test_dlrm_pairs_are_all_pairs_once_and_sum_to_the_fm_term(fields, dim, seed):
    x = _random(3, fields, dim, seed=seed)
    pairs = dot_interaction(x)
    assert pairs.shape == (3, fields * (fields - 1) // 2)
    torch.testing.assert_close(pairs, dot_pairs(x))
    torch.testing.assert_close(pairs.sum(dim=1), fm_sum(x))


def test_dlrm_top_reads_the_pairs_and_the_bottom_output(tabular_schema, randomise):
    model = randomise(DLRM(DLRMConfig(dim=8), tabular_schema)).eval()
    batch = synthetic_batch(tabular_schema, 6)
    z_BD = model.bottom(torch.cat([batch.dense_BI, batch.missing_BI], dim=1))
    vectors = torch.cat([model.embedder(batch).fields_BFD, z_BD.unsqueeze(1)], dim=1)
    torch.testing.assert_close(model(batch), model.top(torch.cat([dot_pairs(vectors), z_BD], dim=1)).squeeze(1))


def test_dlrm_without_interaction_or_dense_fields(schema_of, randomise):
    cat = randomise(DLRM(DLRMConfig(interaction="cat"), schema_of["tabular"])).eval()
    batch = synthetic_batch(schema_of["tabular"], 6)
    z_BD = cat.bottom(torch.cat([batch.dense_BI, batch.missing_BI], dim=1))
    joined = torch.cat([cat.embedder(batch).fields_BFD.flatten(1), z_BD], dim=1)
    torch.testing.assert_close(cat(batch), cat.top(joined).squeeze(1))
    whole = schema_of["sequence"]
    bare = replace(whole, fields=tuple(f for f in whole.fields if f.kind != "dense"))
    sparse = randomise(DLRM(DLRMConfig(), bare)).eval()
    batch = synthetic_batch(bare, 6)
    pairs = dot_pairs(sparse.embedder(batch).fields_BFD)
    torch.testing.assert_close(sparse(batch), sparse.top(pairs).squeeze(1))


def test_wrong_options_are_refused(tabular_schema):
    with pytest.raises(ValueError, match="dot or cat"):
        DLRMConfig(interaction="dott")
