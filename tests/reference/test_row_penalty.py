"""L2 on table rows against the same term written out on plain tensors (models.md sections 0 `emb.l2`, 1.9 `mba_reg`).

Dims: R rows of a table, D width
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import Batch, FeatureSchema, synthetic_batch
from ctrbench.legacy_baselines.deepfm import DeepFM, DeepFMConfig
from ctrbench.legacy_baselines.din import DIN, DINConfig, card
from ctrbench.models.embedding import TableConfig, dense_parameters, embedding_tables
from ctrbench.models.row_penalty import RowPenalty

L2 = 0.3
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.5, "init_std": 0.3}
FULL: dict[str, Any] = {"impl": "per_table", "optimizer": "adam", "lr": 1e-2, "l2": L2, "l2_rows": "full_table"}


def rows_after(model: nn.Module, batches: list[Batch]) -> list[dict[str, Tensor]]:
    """Table rows before training and after each step."""
    (tables,) = embedding_tables(model)
    out, step = [{t: w.clone() for t, w in tables.weights().items()}], TrainStep(model.train())
    for batch in batches:
        step(batch)
        out.append({t: w.clone() for t, w in tables.weights().items()})
    return out


def reads(schema: FeatureSchema, batch: Batch, table: str) -> Counter[int]:
    """How often the batch looks up each row of a table, all its fields together."""
    fields = [f.name for f in schema.of_kind("categorical", "sequence") if f.table == table]
    return Counter(i for f in fields for i in batch.ids[f].values().tolist())


def seeded(model: Any, config: Any, schema: FeatureSchema) -> nn.Module:
    torch.manual_seed(3)
    built: nn.Module = model(config, schema)
    return built


@pytest.mark.parametrize("impl", ["fused", "per_table"])
@pytest.mark.parametrize(
    ("model", "config", "track"), [(DeepFM, DeepFMConfig, "tabular"), (DIN, DINConfig, "sequence")]
)
def test_one_sgd_step_decays_exactly_the_rows_of_the_batch(
    model: Any, config: Any, track: str, impl: Any, schema_of: dict[str, FeatureSchema]
) -> None:
    """w' = w - lr (g + l2 w) on rows that were read however often, w' = w on the others."""
    schema = schema_of[track]
    batch = synthetic_batch(schema, 24, full=False)
    tables = TableConfig(impl=impl, **SGD)
    before, plain = rows_after(seeded(model, config(tables=tables), schema), [batch])
    _, decayed = rows_after(seeded(model, config(tables=replace(tables, l2=L2)), schema), [batch])
    for table, start in before.items():
        read = reads(schema, batch, table)
        assert max(read.values()) > 1  # or an error in sharing the term among the reads would not show
        assert len(read) < start.shape[0]
        inside_R1 = torch.tensor([[r in read] for r in range(start.shape[0])])
        expected = plain[table] - SGD["lr"] * L2 * start * inside_R1
        torch.testing.assert_close(decayed[table], expected, rtol=1e-4, atol=1e-6)


def test_full_table_is_the_loss_of_fuxictr_under_dense_adam(tabular_schema: FeatureSchema) -> None:
    """mean BCE + l2/2 (|every row|^2 + |numeric vectors|^2), Adam on everything: written out with plain tensors."""
    config = DeepFMConfig(tables=TableConfig(**FULL))
    batches = [synthetic_batch(tabular_schema, 24, seed=s) for s in range(4)]
    ours, theirs = (seeded(DeepFM, config, tabular_schema) for _ in range(2))
    step = TrainStep(ours.train(), lr=1e-2)
    embedding = [
        *(p for t in embedding_tables(theirs) for p in t.parameters()),
        *theirs.get_submodule("embedder").vectors,
    ]
    adam = torch.optim.Adam([*dense_parameters(theirs), *(p for t in embedding_tables(theirs) for p in t.parameters())],
                            lr=1e-2)  # fmt: skip
    for batch in batches:
        step(batch)
        loss = binary_cross_entropy_with_logits(theirs.train()(batch), batch.label_B)
        (loss + sum(L2 / 2 * p.square().sum() for p in embedding)).backward()
        adam.step()
        adam.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_full_table_moves_rows_that_no_batch_reads_and_batch_rows_does_not(tabular_schema: FeatureSchema) -> None:
    batch = synthetic_batch(tabular_schema, 8)
    unread = {t: [r for r in range(3, n) if r not in reads(tabular_schema, batch, t)]
              for t, n in tabular_schema.tables.items()}  # fmt: skip
    for options, moved in ((FULL, True), (FULL | {"l2_rows": "batch_rows"}, False)):
        config = DeepFMConfig(tables=TableConfig(**options))
        before, after = rows_after(seeded(DeepFM, config, tabular_schema), [batch])
        for table, rows in unread.items():
            assert rows
            assert ((after[table] != before[table])[rows, :16].all()).item() is moved


def test_mini_batch_aware_terms_shrink_with_the_reads_of_a_row(sequence_schema: FeatureSchema) -> None:
    """A row read n times in the first batch feels l2/n there; two equal batches leave counts of 2n."""
    batch = synthetic_batch(sequence_schema, 24, full=False)
    tables = TableConfig(**SGD)
    start, plain_1 = rows_after(seeded(DIN, DINConfig(tables=tables), sequence_schema), [batch])
    model = seeded(DIN, DINConfig(tables=tables, mba_reg=True, mba_l2=L2), sequence_schema)
    _, mba_1, mba_2 = rows_after(model, [batch, batch])
    (penalised,) = embedding_tables(model)
    assert penalised.penalty is not None
    for table, rows in start.items():
        read = reads(sequence_schema, batch, table)
        per_read_R1 = torch.tensor([[1 / read[r] if r in read else 0.0] for r in range(rows.shape[0])])
        expected = plain_1[table] - SGD["lr"] * L2 * rows * per_read_R1
        torch.testing.assert_close(mba_1[table], expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(mba_2[table], mba_1[table])
    counted = penalised.penalty.reads_R
    assert counted is not None
    expected_reads = [2 * reads(sequence_schema, batch, t)[r] for t, n in penalised.rows.items() for r in range(n)]
    assert counted.tolist() == expected_reads


@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=4),
    by_count=st.booleans(),
)
def test_the_term_is_the_sum_over_distinct_rows(batches: list[list[int]], by_count: bool) -> None:
    """Value and gradient, read by read, with reads of earlier batches in the count."""
    table_RD = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    penalty, seen = RowPenalty(7, L2, by_count, "cpu"), Counter[int]()
    for ids in batches:
        seen.update(ids)
        flat_N = torch.tensor(ids)
        penalty.note(flat_N, table_RD[flat_N])
        weight_R1 = torch.tensor([[(1 / max(1, seen[r]) if by_count else 1.0) * (r in ids)] for r in range(7)]).double()
        got = penalty()
        torch.testing.assert_close(got, L2 / 2 * (weight_R1 * table_RD.square()).sum(), rtol=1e-6, atol=1e-9)
        (grad_RD,) = torch.autograd.grad(got, table_RD)
        torch.testing.assert_close(grad_RD, L2 * weight_R1 * table_RD, rtol=1e-6, atol=1e-9)


def test_scoring_is_no_lookup_of_training(tabular_schema: FeatureSchema) -> None:
    model = seeded(DeepFM, DeepFMConfig(tables=TableConfig(l2=L2)), tabular_schema).eval()
    model(synthetic_batch(tabular_schema, 4))
    (tables,) = embedding_tables(model)
    assert tables.penalty is not None
    with pytest.raises(RuntimeError, match="training mode"):
        tables.penalty()


def test_mba_reg_turns_its_row_of_the_card_and_off_is_plain_din(sequence_schema: FeatureSchema) -> None:
    off, on = DINConfig(), DINConfig(mba_reg=True)
    assert embedding_tables(DIN(off, sequence_schema))[0].penalty is None
    (row_off,), (row_on,) = ([r for r in card(c).rows if "mba_reg" in r.switch] for c in (off, on))
    assert (row_off.note, row_off.status) == ("not applied", "adapted")
    assert "whole training set" in row_on.note
    assert row_on.switch == "mba_reg=true, mba_l2=0.01"


@pytest.mark.parametrize("options", [{"l2": 0.1}, {"l2": 0.1, "l2_by_count": True}])
def test_a_step_with_a_penalty_can_be_traced_on_meta(options: dict[str, Any], sequence_schema: FeatureSchema) -> None:
    model = DIN(DINConfig(tables=TableConfig(**options)), sequence_schema, "meta").train()
    assert TrainStep(model)(synthetic_batch(sequence_schema, 8, device="meta")).is_meta


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda s: TableConfig(optimizer="adam"), "per_table"),
        (lambda s: TableConfig(l2=-1.0), "negative"),
        (lambda s: TableConfig(l2=0.1, l2_rows="full_table"), "adam"),
        (lambda s: TableConfig(l2_rows="all"), "full_table"),
        (lambda s: DINConfig(mba_reg=True, tables=TableConfig(l2=0.1)), "both penalise"),
        (lambda s: DINConfig(mba_l2=0.0), "mba_reg=false"),
        (lambda s: DeepFM(DeepFMConfig(tables=TableConfig(l2=0.1)), s), "histories"),
    ],
)
def test_penalties_that_cannot_be_had_are_refused(build: Any, match: str, sequence_schema: FeatureSchema) -> None:
    with pytest.raises(ValueError, match=match):
        build(sequence_schema)
