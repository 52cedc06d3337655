"""Random batches obey the schema that they claim, and a row of LUM's step 1 holds whole users and what they predict."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.registry import model_spec
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.random_batches import CAP, HELD, TRACKS, RandomBatches, fingerprint, note, random_schema
from ctrbench.datasets.schema import FIRST_ID, padding_share
from ctrbench.models.lum_rows import targets_of
from ctrbench.models.lum_step1 import LumStep1Config, make_batch
from ctrbench.models.spec import random_batch

STEP1 = model_spec("lum_step1")


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(TRACKS)), length=st.integers(1, 30), rows=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_a_batch_obeys_its_schema(name: str, length: int, rows: int, seed: int) -> None:
    schema, spec = random_schema(name, length), model_spec("deepfm")
    batch = random_batch(spec, spec.config(), schema, rows, seed=seed)
    assert schema.track == TRACKS[name]
    assert batch.size == rows
    assert batch.ids.keys() == [f.name for f in schema.of_kind("categorical", "sequence")]
    for field in schema.of_kind("categorical", "sequence"):
        jagged, table = batch.ids[field.name], schema[field.table].cardinality
        assert table <= CAP
        assert int(jagged.values().min()) >= FIRST_ID
        assert int(jagged.values().max()) < table
        assert jagged.lengths().tolist() == [length if field.history else 1] * rows
    assert batch.dense_BI.shape == batch.missing_BI.shape == (rows, len(schema.dense))
    assert set(batch.label_B.tolist()) <= {0.0, 1.0}
    assert padding_share(schema, batch) == 0.0


def test_bounds_of_real_data_are_not_claimed_for_uniform_ids() -> None:
    assert all(f.unique_rows == () for f in random_schema("random_tabular", 1).fields)
    with pytest.raises(BadInput, match="history_length=0"):
        random_schema("random_sequence", 0)


def test_ids_are_uniform() -> None:
    schema, spec = random_schema("random_sequence", 50), model_spec("din")
    ids = random_batch(spec, spec.config(), schema, 400).ids["hist_action"].values() - FIRST_ID
    expected = len(ids) / (schema["hist_action"].cardinality - FIRST_ID)
    seen = torch.bincount(ids).double()
    assert float(((seen - expected) ** 2 / expected).sum()) < 20  # chi-square with 3 degrees of freedom


def test_a_feed_repeats_the_same_batches_and_makes_each_once() -> None:
    made = []
    spec, schema = model_spec("din"), random_schema("random_sequence", 3)
    feed = RandomBatches(lambda seed: made.append(seed) or random_batch(spec, spec.config(), schema, 2, seed=seed))
    first, second = list(feed), list(feed)
    assert made == list(range(HELD))
    assert [id(b) for b in first] == [id(b) for b in second]
    assert not torch.equal(first[0].ids.values(), first[1].ids.values())
    assert feed.cpu_seconds == 0


def test_the_law_of_the_batches_is_in_records_and_keys() -> None:
    assert note("random_sequence")["random_batches"]["table_rows_at_most"] == CAP
    assert note("movielens_1m") == {}
    assert len({fingerprint(n) for n in TRACKS}) == len(TRACKS)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), length=st.integers(1, 20), packed=st.booleans(), seed=st.integers(0, 2**31))
def test_a_packed_row_holds_whole_users_and_their_targets(rows: int, length: int, packed: bool, seed: int) -> None:
    schema = random_schema("random_sequence", length)
    batch = make_batch(LumStep1Config(packed=packed), schema, rows, seed)
    spans = batch.host["spans"]
    assert isinstance(spans, list)
    assert batch.size == rows
    assert packed or all(len(row) == 1 for row in spans)
    for r, row in enumerate(spans):
        assert 1 <= sum(row) <= length
        segment, place = batch.segment_RL[r].tolist(), batch.place_RL[r].tolist()
        assert segment == [i for i, n in enumerate(row, 1) for _ in range(n)] + [0] * (length - sum(row))
        assert place == [p for n in row for p in range(n)] + [0] * (length - sum(row))
    real = batch.segment_RL.flatten() > 0
    for name in batch.ids.keys():
        values = batch.ids[name].values()
        assert torch.equal(values >= FIRST_ID, real)
    assert batch.host["items"] == len(batch.targets.item_U)
    item = batch.ids["hist_item"].values()
    assert torch.equal(batch.targets.item_U[batch.targets.index_N], item[batch.targets.real_N])
    assert padding_share(schema, batch) == pytest.approx(1 - sum(map(sum, spans)) / (rows * length))


def test_packing_leaves_less_padding_than_a_row_a_user() -> None:
    schema = random_schema("random_sequence", 50)
    waste = [padding_share(schema, make_batch(LumStep1Config(packed=p), schema, 64)) for p in (True, False)]
    assert waste[0] < 0.05
    assert 0.4 < waste[1] < 0.6


def test_a_batch_on_meta_has_the_shapes_and_facts_of_the_real_one() -> None:
    schema = random_schema("random_sequence", 8)
    real, meta = (make_batch(LumStep1Config(), schema, 4, seed=3, device=d) for d in ("cpu", "meta"))
    assert all(t.is_meta for t in meta.tensors())
    assert [t.shape for t in meta.tensors()] == [t.shape for t in real.tensors()]
    assert meta.host == real.host
    assert meta.nbytes == real.nbytes


def test_the_loss_with_the_batchs_targets_is_the_loss_that_finds_them() -> None:
    schema = random_schema("random_sequence", 8)
    config = LumStep1Config(logq=True)
    model = STEP1.build(config, schema)
    batch = make_batch(config, schema, 4, seed=3)
    found = targets_of(batch.sequences(), "hist_item")
    assert all(torch.equal(a, b) for a, b in zip(found, batch.targets, strict=True))
    loss = model(batch)
    assert torch.equal(loss, model.user.loss(batch.sequences()))
    assert float(loss.detach()) > 1  # an untrained model does not know 30 items apart


def test_a_batch_stays_what_it_is_on_another_device() -> None:
    batch = make_batch(LumStep1Config(), random_schema("random_sequence", 8), 5)
    moved = batch.to("meta")
    assert type(moved) is type(batch)
    assert {t.device.type for t in moved.tensors()} == {"meta"}
    assert [t.shape for t in moved.tensors()] == [t.shape for t in batch.tensors()]
    assert moved.host is batch.host
    assert batch.to("cpu") is batch
