"""`mfu_bound`: the formula by hand, its direction in each input, what must not enter it, a synthetic achieved MFU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ctrbench.bench.audit import count_module
from ctrbench.bench.counting.bound import T_MIN_S, bound_of, mfu_bound, unique_rows
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counting.rows import StepCounts
from ctrbench.bench.hardware import HardwareUnknown, catalogue, peak
from ctrbench.datasets.schema import FeatureSchema, Field, synthetic_batch
from ctrbench.legacy_baselines.deepfm import DeepFM, DeepFMConfig

torch.set_num_threads(1)
H100 = catalogue()["H100 SXM"]


def mlp(n_in: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, 1)).to("meta")


def counted(batch: int, n_in: int = 512, hidden: int = 1024) -> tuple[nn.Module, StepCounts]:
    model = mlp(n_in, hidden)
    return model, count_module(model, torch.empty(batch, n_in, device="meta"))


def test_formula_by_hand_on_two_layers_in_l2() -> None:
    batch, n_in, hidden = 256, 512, 1024
    model, counts = counted(batch, n_in, hidden)
    bound = mfu_bound(counts, model, H100)
    # forward 2 GEMMs; backward 1 for the raw features (weight only), 2 for the second layer
    flops = 2 * batch * (2 * n_in * hidden + 3 * hidden)
    gemms, loss_sums = 2 + 3, 1
    assert bound.flops == flops
    assert bound.bytes == batch * n_in * 4
    # the loss sums its outputs once over the batch; its second sum is over one stacked scalar; both bias gradients ride
    # on GEMMs; an audited step has no optimizer
    assert bound.kernels == gemms + loss_sums
    ridge = 989e12 / 3350e9
    assert bound.terms["bytes"] == pytest.approx(flops / (batch * n_in * 4 * ridge))
    assert bound.terms["launch"] == pytest.approx(flops / ((gemms + loss_sums) * 1.1e-6 * 989e12))
    assert bound.value == min(1.0, *bound.terms.values())
    assert bound.limit == "launch"
    assert T_MIN_S == 1.1e-6


def test_bytes_beyond_l2_enter_and_bytes_within_do_not() -> None:
    """Two layers of 8192 x 4096: 67 MB of bf16 weights, as much of gradients, and the activations kept."""
    batch, n_in, hidden = 64, 8192, 4096
    model, counts = counted(batch, n_in, hidden)
    weights = 2 * (n_in * hidden + hidden + hidden + 1)
    saved = counts.saved.half
    # kept for backward: the first layer's output after ReLU, once; the inputs are the batch's
    assert saved == 2 * batch * hidden
    excess = 2 * weights + saved - H100.l2_mb * 1e6
    assert mfu_bound(counts, model, H100).bytes == pytest.approx(batch * n_in * 4 + excess)


def test_tables_that_are_only_looked_up_in_are_no_weight_bytes() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(10_000_000, 64), nn.Linear(64, 1))
    counts = count_module(model, torch.empty(128, dtype=torch.long, device="meta"))
    assert counts.parameters.half == 2 * 65
    assert mfu_bound(counts, model, H100).bytes == 128 * 8


def test_bound_grows_with_the_batch_until_one() -> None:
    values = []
    for batch in (16, 64, 256, 1024, 4096, 16384):
        model, counts = counted(batch)
        values.append(mfu_bound(counts, model, H100).value)
    assert values == sorted(values)
    assert values[0] < 0.02
    assert values[-1] == 1.0


def test_bound_falls_with_kernels_and_bytes_and_never_exceeds_one() -> None:
    base = bound_of(1e9, 1e7, 10, H100, "bf16")
    assert base.value == pytest.approx(1e9 / (10 * 1.1e-6 * 989e12))
    assert bound_of(1e9, 1e7, 20, H100, "bf16").value == pytest.approx(base.value / 2)
    assert bound_of(1e9, 1e9, 1, H100, "bf16").value == pytest.approx(1e9 / (1e9 * H100.ridge("bf16")))
    assert bound_of(1e15, 0.0, 0, H100, "bf16").value == 1.0
    assert bound_of(1e15, 0.0, 0, H100, "bf16").limit == "compute"


def test_bound_abstains_without_a_peak() -> None:
    with pytest.raises(HardwareUnknown, match="peak_missing_for_dtype"):
        bound_of(1e9, 1e6, 1, catalogue()["T4"], "bf16")


def test_bound_prints_what_could_break_it() -> None:
    model, counts = counted(64)
    text = " ".join(mfu_bound(counts, model, H100).assumptions)
    for word in ("one stream", "bf16", "recomputed", "L2", "batch inputs", "not merged"):
        assert word in text


@pytest.mark.parametrize("slowdown", [1.0, 1.3, 10.0])
def test_no_schedule_within_the_assumptions_beats_the_bound(slowdown: float) -> None:
    """A machine that runs each kernel at its roofline, never under 1.1 us, stays below the bound at every batch."""
    for batch in (16, 256, 4096, 65536):
        model, counts = counted(batch)
        bound = mfu_bound(counts, model, H100)
        time = 0.0
        for row in counts.rows:
            roof = max(row.flops / peak(H100, "bf16"), 0.0) / row.calls
            time += row.calls * max(roof, T_MIN_S) * slowdown
        assert counts.flops() / (time * peak(H100, "bf16")) <= bound.value


@pytest.mark.parametrize("train", [True, False])
def test_table_rows_may_wait_in_l2_and_cross_once_or_twice_beyond_it(train: bool) -> None:
    """4,096 distinct rows of 64 columns, row-wise Adagrad: half a megabyte, which no H100 has to fetch every step."""
    batch, width = 4096, 64
    config = DeepFMConfig(dim=width - 1, mlp=(8,))

    def bound_bytes(known: tuple[tuple[int, float], ...], l2_mb: float) -> float:
        one = Field(name="c", kind="categorical", role="item", cardinality=10**7, unique_rows=known)
        model = DeepFM(config, schema(one), "meta")
        counts = count_step(model, synthetic_batch(schema(one), batch, device="meta"), train=train)
        return mfu_bound(counts, model, replace(H100, l2_mb=l2_mb), schema=schema(one)).bytes

    known = ((batch, 1.0),)
    assert bound_bytes(known, H100.l2_mb) == bound_bytes((), H100.l2_mb)
    row = 2 * width
    more = bound_bytes(known, 0.0) - bound_bytes((), 0.0)
    assert more == pytest.approx(batch * (2 * (row + 4) if train else row))


def test_masked_flops_and_the_optimizer_are_accounted_for() -> None:
    """FLOPs that a mask hides are no model FLOPs; a step that updates weights has one more kernel than one that does
    not."""
    one = schema(Field(name="c", kind="categorical", role="item", cardinality=100))
    model = DeepFM(DeepFMConfig(dim=7, mlp=(8,)), one, "meta")
    counts = count_step(model, synthetic_batch(one, 64, device="meta"), train=True)
    bound = mfu_bound(counts, model, H100, masked_flops=1000.0)
    assert bound.flops == counts.flops() - 1000
    assert bound.kernels == counts.unfusable + 1


def schema(*fields: Field) -> FeatureSchema:
    return FeatureSchema(name="t", track="tabular", fields=fields)


def test_unique_rows_are_lower_bounds() -> None:
    known = ((100, 0.9), (1000, 0.5))
    one = schema(Field(name="c", kind="categorical", role="item", cardinality=10_000, unique_rows=known))
    assert unique_rows(one, 100) == 90
    assert unique_rows(one, 1000) == 500
    assert unique_rows(one, 300) == 150  # the share of a larger batch, or the rows of a smaller one
    assert unique_rows(one, 150) == 90
    assert unique_rows(one, 10_000) == 500
    shared = schema(
        Field(name="c", kind="categorical", role="item", cardinality=10_000, unique_rows=known),
        Field(
            name="h",
            kind="sequence",
            role="behaviour",
            target="c",
            max_length=10,
            history="x",
            unique_rows=((100, 0.2),),
        ),
    )
    assert unique_rows(shared, 100) == 200  # one table: the larger of its fields, not the sum
    assert unique_rows(schema(Field(name="c", kind="categorical", role="item", cardinality=10)), 100) == 0
