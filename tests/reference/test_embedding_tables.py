"""The fused tables against one plain lookup a table: same outputs, same rows after one step of the optimizer.

Dims: B batch, W columns of a row, N ids
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedTensor

from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.cpu import table_rows
from ctrbench.legacy_baselines.deepfm import DeepFM, DeepFMConfig
from ctrbench.legacy_baselines.din import DIN, DINConfig
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.embedding import (
    EmbeddingTables,
    TableConfig,
    count_parameters,
    dense_parameters,
    embedding_tables,
)
from ctrbench.models.table_lookups import padded_width

MODES = ("pooled", "events")


def _pair(schema, sequences, dim=6, **options):
    """The same embedder with fused and with per-table lookups, equal weights."""
    pair = [
        FeatureEmbedder(schema, dim, TableConfig(impl=impl, **options), sequences=sequences, linear=True)
        for impl in ("fused", "per_table")
    ]
    _copy(*pair)
    return pair


@torch.no_grad()
def _copy(source, target):
    for name, p in target.named_parameters():
        if "lookup" not in name:
            p.copy_(dict(source.named_parameters())[name])
    for a, b in zip(embedding_tables(source), embedding_tables(target), strict=True):
        for table, weight in b.weights().items():
            weight.copy_(a.weights()[table])


def _loss(embedder, batch):
    """A loss whose gradient differs from cell to cell."""
    out = embedder(batch)
    total = (out.fields_BFD * torch.linspace(0.1, 1.0, out.fields_BFD.numel()).view_as(out.fields_BFD)).sum()
    total = total + (out.linear_B * torch.linspace(-1.0, 1.0, batch.size)).sum()
    for events in out.events.values():
        v_BTE = events.values_BTE
        total = total + (v_BTE.square() * torch.linspace(0.2, 2.0, v_BTE.numel()).view_as(v_BTE)).sum()
    return out, total


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("sequences", MODES)
@pytest.mark.parametrize("track", ["tabular", "sequence"])
@pytest.mark.parametrize("full", [True, False])
def test_fused_equals_per_table_forward_and_after_two_steps(track, sequences, optimizer, full, schema_of):
    schema = schema_of[track]
    fused, plain = _pair(schema, sequences, optimizer=optimizer, lr=0.1, init_std=0.3)
    for seed in (0, 1):
        batch = synthetic_batch(schema, 16, seed=seed, full=full)
        (a, loss_a), (b, loss_b) = _loss(fused, batch), _loss(plain, batch)
        torch.testing.assert_close(a.fields_BFD, b.fields_BFD)
        torch.testing.assert_close(a.linear_B, b.linear_B)
        assert a.events.keys() == b.events.keys()
        for history in a.events:
            torch.testing.assert_close(a.events[history].values_BTE, b.events[history].values_BTE)
        loss_a.backward()
        loss_b.backward()
        fused.tables.step()
        plain.tables.step()
        for table, weight in fused.tables.weights().items():
            torch.testing.assert_close(
                weight, plain.tables.weights()[table], rtol=1e-4, atol=1e-5, msg=lambda m, t=table: f"{t}: {m}"
            )


@pytest.mark.parametrize("sequences", MODES)
def test_rowwise_adagrad_moves_rows_by_its_definition(sequences, sequence_schema):
    """Row-wise Adagrad: state += mean over columns of g^2, row -= lr g / (sqrt(state) + eps)."""
    rate, eps = 0.1, 1e-8
    fused, plain = _pair(sequence_schema, sequences, optimizer="sgd", lr=1.0, init_std=0.3)
    fused = FeatureEmbedder(
        sequence_schema, 6, TableConfig(optimizer="rowwise_adagrad", lr=rate, eps=eps), sequences=sequences, linear=True
    )
    _copy(plain, fused)
    batch = synthetic_batch(sequence_schema, 16, full=False)
    before = {t: w.clone() for t, w in plain.tables.weights().items()}
    for embedder in (fused, plain):
        _loss(embedder, batch)[1].backward()
        embedder.tables.step()
    for table, start in before.items():
        gradient = start - plain.tables.weights()[table]  # one step of SGD at rate 1
        state = gradient.square().mean(dim=1, keepdim=True)
        expected = start - rate * gradient / (state.sqrt() + eps)
        torch.testing.assert_close(fused.tables.weights()[table], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "config"), [(DeepFM, DeepFMConfig), (DIN, DINConfig)])
def test_models_agree_after_one_sgd_step(model, config, sequence_schema):
    """The pooled and the unpooled path inside a whole model and the real step."""
    options = {"optimizer": "sgd", "lr": 0.5, "init_std": 0.2}
    fused, plain = (
        model(config(tables=TableConfig(impl=i, **options)), sequence_schema) for i in ("fused", "per_table")
    )
    _copy(fused, plain)
    for seed in (0, 1):
        batch = synthetic_batch(sequence_schema, 32, seed=seed, full=False)
        torch.testing.assert_close(fused(batch), plain(batch))
        TrainStep(fused)(batch)
        TrainStep(plain)(batch)
        for a, b in zip(embedding_tables(fused), embedding_tables(plain), strict=True):
            for table, weight in a.weights().items():
                torch.testing.assert_close(weight, b.weights()[table], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["fused", "per_table"])
@pytest.mark.parametrize("config_type", [EmbeddingBagConfig, EmbeddingConfig])
def test_rows_are_those_of_the_table_and_lookups_sum_them(impl, config_type, sequence_schema):
    features = [f.name for f in sequence_schema.of_kind("categorical", "sequence")]
    by_table = {t: [f for f in features if sequence_schema[f].table == t] for t in sequence_schema.tables}
    tables = EmbeddingTables(
        [
            config_type(name=t, embedding_dim=6, num_embeddings=sequence_schema.tables[t], feature_names=n)
            for t, n in by_table.items()
        ],
        TableConfig(impl=impl, optimizer="sgd", init_std=1.0),
        features=features,
    )
    batch = synthetic_batch(sequence_schema, 7, full=False)
    out = tables(batch.ids)
    for name in features:
        jagged, weight = batch.ids[name], tables.weights()[sequence_schema[name].table]
        rows_NW = weight[jagged.values()]
        if isinstance(out, KeyedTensor):
            expected = torch.stack([part.sum(0) for part in rows_NW.split(jagged.lengths().tolist())])
            torch.testing.assert_close(out[name], expected)
        else:
            assert torch.equal(out[name].values(), rows_NW)
            assert torch.equal(out[name].lengths(), jagged.lengths())


def test_gradients_of_all_keys_are_joined_once(sequence_schema):
    """By slices, each key's would be a tensor of zeros over all rows, filled and added: a fifth of a step of DIN."""
    tables = FeatureEmbedder(sequence_schema, 6, TableConfig(), sequences="events").tables
    rows = [jagged.values() for jagged in tables(synthetic_batch(sequence_schema, 7, full=False).ids).values()]
    assert len(rows) > 2
    (joined,) = {r.grad_fn for r in rows}
    assert joined.name().startswith("Split")


@pytest.mark.parametrize("impl", ["fused", "per_table"])
@pytest.mark.parametrize("sequences", MODES)
def test_padding_rows_and_surplus_columns_start_and_stay_zero(impl, sequences, sequence_schema):
    embedder = FeatureEmbedder(
        sequence_schema, 5, TableConfig(impl=impl, optimizer="adagrad", lr=0.5), sequences=sequences, linear=True
    )
    assert (embedder.tables.width, embedder.tables.stored) == (6, padded_width(6)) == (6, 8)
    _loss(embedder, synthetic_batch(sequence_schema, 16, full=False))[1].backward()
    embedder.tables.step()
    for weight in embedder.tables.weights().values():
        assert not weight[0].any()
        assert not weight[:, 6:].any()
        assert weight[1:, :6].any(dim=1).all()


@pytest.mark.parametrize("sequences", MODES)
@pytest.mark.parametrize("track", ["tabular", "sequence"])
def test_meta_gives_the_same_shapes_and_numbers_of_parameters(track, sequences, schema_of):
    schema = schema_of[track]
    real = FeatureEmbedder(schema, 6, TableConfig(), sequences=sequences, linear=True)
    with torch.device("meta"):
        meta = FeatureEmbedder(schema, 6, TableConfig(), sequences=sequences, linear=True)
    a, b = real(synthetic_batch(schema, 5)), meta(synthetic_batch(schema, 5, device="meta"))
    assert b.fields_BFD.is_meta
    assert a.fields_BFD.shape == b.fields_BFD.shape == (5, real.num_fields, 6)
    assert a.linear_B.shape == b.linear_B.shape
    for history in a.events:
        assert a.events[history].values_BTE.shape == b.events[history].values_BTE.shape
        assert a.events[history].times_BT.shape == b.events[history].times_BT.shape
        assert {k: v.shape for k, v in a.events[history].ids.items()} == {
            k: v.shape for k, v in b.events[history].ids.items()
        }
    assert count_parameters(real) == count_parameters(meta)
    assert sum(p.numel() for p in dense_parameters(real)) == sum(p.numel() for p in dense_parameters(meta))
    b.fields_BFD.sum().backward()


@pytest.mark.parametrize("impl", ["fused", "per_table"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_learning_rate_can_be_changed(impl, optimizer, tabular_schema):
    embedder = FeatureEmbedder(tabular_schema, 8, TableConfig(impl=impl, optimizer=optimizer, lr=0.5))
    embedder.tables.set_lr(0.0)
    before = {t: w.clone() for t, w in embedder.tables.weights().items()}
    embedder(synthetic_batch(tabular_schema, 8)).fields_BFD.sum().backward()
    embedder.tables.step()
    assert all(torch.equal(w, before[t]) for t, w in embedder.tables.weights().items())


def test_parameters_are_counted_without_surplus_columns_and_state_by_its_formula(tabular_schema):
    rows = sum(tabular_schema.tables.values())
    embedder = FeatureEmbedder(tabular_schema, 5, TableConfig(), linear=True)  # 6 columns, stored as 8
    assert embedder.tables.num_weights == rows * 6
    assert count_parameters(embedder) == rows * 6 + 2 * 3 * 6  # numeric and missing vectors of 3 dense fields
    assert embedder.tables.bytes_tables() == rows * 6 * 4
    for optimizer, per_row in (("rowwise_adagrad", 4), ("adagrad", 24), ("sgd", 0)):
        tables = FeatureEmbedder(tabular_schema, 5, TableConfig(optimizer=optimizer), linear=True).tables
        assert tables.bytes_optimizer() == rows * per_row


def test_per_table_refuses_rowwise_adagrad_with_a_remedy(tabular_schema):
    with pytest.raises(ValueError, match=r"table_optimizer=adagrad or sgd"):
        FeatureEmbedder(tabular_schema, 8, TableConfig(impl="per_table"))


def test_tables_of_unequal_width_are_refused():
    configs = [
        EmbeddingBagConfig(name=n, embedding_dim=d, num_embeddings=9, feature_names=[n])
        for n, d in (("a", 4), ("b", 8))
    ]
    with pytest.raises(ValueError, match=r"one width, found \[4, 8\]"):
        EmbeddingTables(configs, TableConfig())


needs_compiler = pytest.mark.skipif(not table_rows.available(), reason="no C compiler: FBGEMM looks up and moves rows")


@needs_compiler
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sequences", MODES)
@pytest.mark.parametrize("track", ["tabular", "sequence"])
def test_rows_in_c_move_as_fbgemms_do_whatever_the_threads(track, sequences, threads, optimizer, schema_of):
    """Six steps of Adagrad on one storage layout: rows and states of both operators."""
    schema = schema_of[track]
    made = [
        FeatureEmbedder(
            schema, 6, TableConfig(optimizer=optimizer, lr=0.1, init_std=0.3), sequences=sequences, linear=True
        )
        for _ in range(2)
    ]
    _copy(*made)
    ours, theirs = (m.tables for m in made)
    assert ours.in_c is not None
    theirs.in_c = None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed in range(6):
            batch = synthetic_batch(schema, 50, seed=seed, full=False)
            (a, loss_a), (b, loss_b) = (_loss(m, batch) for m in made)
            torch.testing.assert_close(a.fields_BFD, b.fields_BFD)
            loss_a.backward()
            loss_b.backward()
    finally:
        torch.set_num_threads(before)
    for table, weight in ours.weights().items():
        torch.testing.assert_close(weight, theirs.weights()[table])
    torch.testing.assert_close(ours.lookup.momentum1_host, theirs.lookup.momentum1_host)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    width=st.sampled_from([4, 8, 20]),
    threads=st.sampled_from([1, 2, 5]),
    bagged=st.booleans(),
    by_row=st.booleans(),
)
def test_rows_in_c_are_sums_and_adagrad_by_their_definition(data, width, threads, bagged, by_row):
    """Any bags, features that share a table, ids that repeat; the plain twin in float64."""
    rows = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=4), "rows of each table")
    of = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5), "table of each feature")
    batch = data.draw(st.integers(0, 7), "batch")
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=len(of) * batch, max_size=len(of) * batch)))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    per_feature = lengths.view(len(of), batch).sum(1).long().tolist()
    # few ids, so that they repeat, and some alike in their low bits, so that one pass of the sort does not part them
    few = [torch.randint(0, 3, (2, n), generator=g) for n in per_feature]
    ids = torch.cat([(far * 2048 + near) % rows[t] for t, (far, near) in zip(of, few, strict=True)])
    starts = torch.tensor([0, *rows]).cumsum(0)[:-1][of]
    weight, state = torch.randn(sum(rows), width, generator=g), torch.rand(sum(rows), width, generator=g)
    state = state[:, 0].contiguous() if by_row else state
    flat = ids + starts.repeat_interleave(torch.tensor(per_feature))
    bag = torch.arange(len(of) * batch).repeat_interleave(lengths.long())
    place = (bag % batch * len(of) + bag // batch if batch else bag) if bagged else torch.arange(len(ids))
    shape = (batch * len(of), width) if bagged else (len(ids), width)
    expected = torch.zeros(shape, dtype=torch.float64).index_add_(0, place, weight.double()[flat])
    up = torch.randn(shape, generator=g)
    gradient = torch.zeros(sum(rows), width, dtype=torch.float64).index_add_(0, flat, up.double()[place])
    state_after = state.double() + (gradient.square().mean(1) if by_row else gradient.square())
    root = state_after.sqrt() + 1e-8
    moved = weight.double() - 0.1 * gradient / (root[:, None] if by_row else root)

    leaf = weight.clone().requires_grad_()
    tables = table_rows.Tables(leaf, state.clone(), starts, torch.tensor(rows)[of], 1e-8)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.long().cumsum(0)]) if bagged else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = table_rows.table_rows(tables, ids, per_feature, offsets, 0.1)
        torch.testing.assert_close(out.detach().view(shape).double(), expected, rtol=1e-5, atol=1e-5)
        out.backward(up.view(out.shape))
    finally:
        torch.set_num_threads(before)
    assert leaf.grad is None
    torch.testing.assert_close(tables.state.double(), state_after, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.detach().double(), moved, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
@pytest.mark.parametrize("bagged", [True, False])
def test_an_id_outside_its_table_is_named_and_nothing_is_read(wrong, bagged):
    tables = table_rows.Tables(torch.zeros(8, 4), torch.zeros(8), torch.tensor([0, 3]), torch.tensor([3, 5]), 1e-8)
    ids = torch.tensor([0, 2, 4, wrong])
    with pytest.raises(IndexError, match=f"id {wrong} of feature 1 is outside its table of 5"):
        table_rows.table_rows(tables, ids, [2, 2], torch.arange(5) if bagged else None, 0.1)


@needs_compiler
@pytest.mark.parametrize(("per_feature", "bags"), [([2, 3], None), ([2, 1], None), ([1, 3], [0, 1, 2, 3, 4])])
def test_ids_that_are_shared_out_wrongly_are_refused(per_feature, bags):
    tables = table_rows.Tables(torch.zeros(8, 4), torch.zeros(8), torch.tensor([0, 3]), torch.tensor([3, 5]), 1e-8)
    with pytest.raises(ValueError, match="4 ids"):
        table_rows.table_rows(
            tables, torch.tensor([0, 2, 1, 0]), per_feature, torch.tensor(bags) if bags else None, 0.1
        )


def test_stand_ins_of_shapes_refuse_what_is_not_on_meta() -> None:
    import ctrbench.bench.counting.meta  # noqa: F401, registers the attention's

    with pytest.raises(NotImplementedError, match="ctrbench::tbe"):
        torch.ops.ctrbench.tbe(torch.zeros(2, 4), torch.zeros(3, dtype=torch.long), 3, 4)
    with pytest.raises(NotImplementedError, match="ctrbench::sdpa"):
        torch.ops.ctrbench.sdpa(*(torch.zeros(1, 2, 3) for _ in range(3)), None)
