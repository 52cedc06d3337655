"""Counting a training step and an inference call of a model on our own tables: parts, blocks, stages, coverage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counting.rows import at_batch, backward_ratio_error, coverage, withhold_reason
from ctrbench.datasets.schema import Batch, FeatureSchema, Field, synthetic_batch
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig

torch.set_num_threads(1)

SCHEMA = FeatureSchema(
    name="toy",
    track="sequence",
    fields=(
        Field(name="price", kind="dense", role="context"),
        Field(name="user", kind="categorical", role="user", cardinality=50),
        Field(name="item", kind="categorical", role="item", cardinality=60),
        Field(name="past", kind="sequence", role="behaviour", target="item", max_length=5, history="clicks"),
    ),
)
DIM, HIDDEN, BATCH = 8, (16, 12), 32


class Toy(nn.Module):
    """Embeddings and a tower, with an optional operator in the middle."""

    phases = {"embedding": ("embedder",), "dense": ("tower",)}  # noqa: RUF012

    def __init__(self, device: str = "cpu", middle: nn.Module | None = None, impl: str = "fused") -> None:
        super().__init__()
        config = TableConfig(impl=impl, optimizer="adagrad")  # type: ignore[arg-type]
        self.embedder = FeatureEmbedder(SCHEMA, DIM, config, device=device)
        self.middle = middle or nn.Identity()
        self.tower = MLP(self.embedder.num_fields * DIM, HIDDEN, 1).to(device)

    def forward(self, batch: Batch) -> Tensor:
        return self.tower(self.middle(self.embedder(batch).fields_BFD.flatten(1))).squeeze(1)


ANALYTIC = BATCH * mlp_flops(4 * DIM, HIDDEN, 1)


@torch.library.custom_op("counting_test::hidden_matmul", mutates_args=())
def hidden_matmul(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@hidden_matmul.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1])


hidden_matmul.register_autograd(
    lambda ctx, grad: (grad @ ctx.saved_tensors[0].t(), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


class Planted(nn.Module):
    """Hides a matrix product behind a custom operator."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.eye(4 * DIM))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.counting_test.hidden_matmul(x, self.w)


@pytest.fixture(params=["cpu", "meta"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


def test_step_flops_meet_the_closed_form_and_every_operator_is_known(device: str) -> None:
    batch = synthetic_batch(SCHEMA, BATCH, device=device)
    counts = count_step(Toy(device), batch, train=True)
    assert coverage(counts.flops("forward"), ANALYTIC) == 1.0
    assert counts.flops("backward") == 2 * ANALYTIC
    assert withhold_reason(counts, ANALYTIC) == "" == backward_ratio_error(counts)
    infer = count_step(Toy(device), batch, train=False)
    assert infer.flops() == ANALYTIC
    assert {r.part for r in infer.rows} == {"forward"}


@pytest.mark.parametrize("impl", ["fused", "per_table"])
def test_tables_of_both_kinds_are_known_on_cpu(impl: str) -> None:
    counts = count_step(Toy(impl=impl), synthetic_batch(SCHEMA, BATCH), train=True)
    assert counts.unknown == {}
    assert counts.flops("forward") == ANALYTIC


def test_planted_matmul_withholds_utilisation() -> None:
    counts = count_step(Toy(middle=Planted()), synthetic_batch(SCHEMA, BATCH), train=True)
    assert withhold_reason(counts, ANALYTIC) == "uncounted_op: counting_test.hidden_matmul x1"


def test_coverage_outside_two_percent_withholds() -> None:
    counts = count_step(Toy(), synthetic_batch(SCHEMA, BATCH), train=True)
    assert withhold_reason(counts, ANALYTIC * 1.019) == ""
    assert withhold_reason(counts, ANALYTIC / 0.93) == "coverage_low: 0.93"
    assert withhold_reason(counts, ANALYTIC / 1.10) == "coverage_high: 1.10"
    assert withhold_reason(counts, 0.0).startswith("coverage_low")


def test_forward_and_backward_belong_to_the_block_that_made_them(device: str) -> None:
    counts = count_step(Toy(device), synthetic_batch(SCHEMA, BATCH, device=device), train=True)
    gemm = {(r.module, r.part): r.flops for r in counts.rows if r.kind == "F"}
    widths = [4 * DIM, *HIDDEN, 1]
    assert {m for m, _ in gemm} == {f"tower.{i}" for i in (0, 2, 4)}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        assert gemm[(f"tower.{2 * i}", "forward")] == 2 * BATCH * a * b
        assert gemm[(f"tower.{2 * i}", "backward")] == 4 * BATCH * a * b
    by_stage = {m.module: m.flops for m in counts.by_module("stage")}
    assert by_stage["dense"] == 3 * ANALYTIC
    tables = [r for r in counts.rows if "tbe" in r.op or "split_embedding" in r.op]
    assert {(r.block, r.stage, r.part) for r in tables} == {
        ("embedder", "embedding", "forward"),
        ("embedder", "embedding", "backward"),
    }


def test_table_bytes_are_those_of_the_byte_table(device: str) -> None:
    """measures.md section 3: TBE forward and backward with fused Adagrad."""
    counts = count_step(Toy(device), synthetic_batch(SCHEMA, BATCH, device=device), train=True)
    found = {r.part: r.bytes_own for r in counts.rows if "tbe" in r.op or "split_embedding" in r.op}
    n, bags = BATCH * 7, BATCH * 3
    assert found["forward"] == n * 8 + (bags + 1) * 8 + n * DIM * 4 + bags * DIM * 4
    assert found["backward"] == n * DIM * 4 + 4 * n * (8 + 4) + 2 * n * (DIM * 4 + DIM * 4)


def test_halved_floats_leave_ids_as_they_are() -> None:
    """In bfloat16 rows and gradients halve; ids, offsets, sorted keys and the optimizer's state keep their bytes."""
    counts = count_step(Toy("meta"), synthetic_batch(SCHEMA, BATCH, device="meta"), train=True)
    found = {r.part: r.bytes_half for r in counts.rows if "tbe" in r.op or "split_embedding" in r.op}
    n, bags = BATCH * 7, BATCH * 3
    assert found["forward"] == n * 8 + (bags + 1) * 8 + n * DIM * 2 + bags * DIM * 2
    assert found["backward"] == n * DIM * 2 + 4 * n * (8 + 4) + 2 * n * (DIM * 2 + DIM * 4)


@pytest.mark.parametrize(("times", "said"), [(0.5, ""), (0.45, "1.900"), (1.0, ""), (1.05, "3.100")])
def test_a_backward_outside_one_to_two_forwards_is_named(times: float, said: str) -> None:
    counts = count_step(Toy("meta"), synthetic_batch(SCHEMA, BATCH, device="meta"), train=True)
    rows = tuple(replace(r, flops=r.flops * times) if r.part == "backward" else r for r in counts.rows)
    assert said in backward_ratio_error(replace(counts, rows=rows))
    assert bool(said) == bool(backward_ratio_error(replace(counts, rows=rows)))


def test_counts_at_another_batch_are_those_of_a_trace_there() -> None:
    low, high, between = (
        count_step(Toy("meta"), synthetic_batch(SCHEMA, n, device="meta"), train=True) for n in (33, 129, 57)
    )
    assert at_batch(low, high, 57) == between


def test_meta_and_cpu_agree_where_they_run_the_same_operators() -> None:
    cpu = count_step(Toy(), synthetic_batch(SCHEMA, BATCH), train=True)
    meta = count_step(Toy("meta"), synthetic_batch(SCHEMA, BATCH, device="meta"), train=True)
    assert cpu.flops() == meta.flops()
    assert cpu.parameters == meta.parameters
    dense = [sum(r.bytes_own for r in c.rows if r.stage == "dense") for c in (cpu, meta)]
    assert dense[0] == dense[1] > 0


def test_saved_activations_by_hand() -> None:
    """Per linear layer its input; ReLU keeps its output, which is the next layer's input; the loss keeps its logits."""
    counts = count_step(Toy("meta"), synthetic_batch(SCHEMA, BATCH, device="meta"), train=True)
    tower = 4 * BATCH * (4 * DIM + sum(HIDDEN))
    assert tower <= counts.saved.own <= tower + 4 * BATCH * 8
    infer = count_step(Toy("meta"), synthetic_batch(SCHEMA, BATCH, device="meta"), train=False)
    assert infer.saved.own == 0


def test_kernels_have_a_band_and_abstain_outside_the_table() -> None:
    counts = count_step(Toy("meta"), synthetic_batch(SCHEMA, BATCH, device="meta"), train=True)
    kernels = counts.kernels
    assert kernels.value is not None
    assert (kernels.low, kernels.high) == (kernels.value * 0.75, kernels.value * 1.25)
    strange = count_step(Toy(impl="per_table"), synthetic_batch(SCHEMA, BATCH), train=True).kernels
    assert strange.value is None
    assert strange.reason.startswith("coverage_low")


def test_counting_leaves_the_mode_of_the_model_and_no_hooks() -> None:
    model = Toy().eval()
    count_step(model, synthetic_batch(SCHEMA, BATCH), train=True)
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
