"""Operator table: FLOPs against FlopCounterMode and by hand, bytes by hand, kernels by the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.bench.audit import count_module
from ctrbench.bench.counting.launches import kernels_of
from ctrbench.bench.counting.ops import attention_flops, classify, classify_name
from ctrbench.bench.counting.rows import StepCounts

torch.set_num_threads(1)


class Apply(nn.Module):
    """A function of a parameter and the batch as a module."""

    def __init__(self, function, *shape: int) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def stock(model: nn.Module, batch: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    return counter.get_total_flops()


GEMMS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), (16, 6)),
    "mm": (lambda: Apply(torch.mm, 4, 9), (3, 4)),
    "bmm": (lambda: Apply(torch.bmm, 2, 4, 9), (2, 3, 4)),
    "baddbmm": (lambda: Apply(lambda x, w: torch.baddbmm(torch.ones(1), x, w), 2, 4, 9), (2, 3, 4)),
    "einsum": (lambda: Apply(lambda x, w: torch.einsum("bfd,fde->bfe", x, w), 5, 4, 6), (8, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 10)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8)),
    "gru": (lambda: Gru(), (2, 5, 3)),
}


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


@pytest.mark.parametrize("needs_input_grad", [False, True])
@pytest.mark.parametrize("name", GEMMS)
def test_flops_agree_with_the_stock_counter_where_it_is_right(name: str, needs_input_grad: bool) -> None:
    make, shape = GEMMS[name]
    model, batch = make(), torch.randn(*shape, requires_grad=needs_input_grad)
    counts = count_module(model, batch)
    assert counts.flops() == stock(model, batch) > 0
    assert not counts.unknown


def test_grouped_convolution_costs_the_same_in_each_gradient() -> None:
    """The stock counter charges twice too much for the weight gradient of two groups."""
    model, batch = nn.Conv2d(4, 6, 3, groups=2, padding=1), torch.randn(2, 4, 8, 8, requires_grad=True)
    counts = count_module(model, batch)
    assert counts.flops("forward") == 2 * 2 * 6 * 8 * 8 * (4 // 2) * 3 * 3
    assert counts.flops("backward") == 2 * counts.flops("forward")


@pytest.mark.parametrize(
    ("function", "shape", "batch", "forward"),
    [
        (torch.mv, (6,), (4, 6), 2 * 4 * 6),
        (torch.dot, (6,), (6,), 2 * 6),
        (lambda x, w: torch.addmv(torch.zeros(4), x, w), (6,), (4, 6), 2 * 4 * 6),
        (lambda x, w: torch.addr(torch.zeros(4, 6), x, w), (6,), (4,), 2 * 4 * 6),
        (lambda x, w: functional.bilinear(x, x, w), (3, 4, 4), (5, 4), 2 * 5 * 3 * 4 * 4 + 2 * 5 * 3 * 4),
    ],
    ids=["mv", "dot", "addmv", "addr", "bilinear"],
)
def test_silent_zeros_of_the_stock_counter_have_formulas(function, shape, batch, forward) -> None:  # type: ignore[no-untyped-def]
    counts = count_module(Apply(function, *shape), torch.randn(*batch))
    assert counts.flops("forward") == forward
    assert not counts.unknown


class Attention(nn.Module):
    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.heads = nn.Linear(dim, 3 * dim), heads

    def forward(self, x_BLD: Tensor) -> Tensor:
        split = self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(*split, is_causal=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_the_full_rectangle_and_twice_that_backward(device: str) -> None:
    batch, length, dim = 4, 32, 16
    model, x = Attention(dim).to(device), torch.randn(batch, length, dim, device=device)
    counts = count_module(model, x)
    attention = [r for r in counts.rows if "dot_product" in r.op or "sdpa" in r.op]
    by_part = {r.part: (r.flops, r.calls) for r in attention}
    full = 4 * batch * length * length * dim
    assert by_part == {"forward": (full, 1), "backward": (2 * full, 1)}
    assert not counts.unknown


def test_attention_of_unequal_sides_by_hand() -> None:
    query, key, value = (torch.empty(2, 4, *shape) for shape in ((3, 8), (5, 8), (5, 6)))
    assert attention_flops(query, key, value) == 2 * (2 * 4) * (3 * 5) * (8 + 6)


def test_attention_inside_multihead_attention_is_one_operator_on_meta() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1).to("meta")
    counts = count_module(layer, torch.randn(4, 8, 16, device="meta"))
    ops = [r.op for r in counts.rows if r.part == "forward"]
    assert "ctrbench.sdpa" in ops
    assert "aten._softmax" not in ops
    assert "aten.native_dropout" in ops
    assert "aten.bernoulli_" not in ops


def test_backward_is_one_gemm_for_raw_features_and_two_behind_an_embedding() -> None:
    raw = count_module(nn.Linear(8, 4), torch.randn(16, 8))
    assert raw.flops("backward") == raw.flops("forward") == 2 * 16 * 8 * 4
    behind = count_module(nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4)), torch.randint(0, 10, (16,)))
    assert behind.flops("backward") == 2 * behind.flops("forward") == 2 * (2 * 16 * 8 * 4)


def _bytes(counts: StepCounts, op: str, part: str = "forward") -> float:
    return sum(r.bytes_own for r in counts.rows if r.op == op and r.part == part)


def test_operand_bytes_by_hand() -> None:
    n, d, v = 6, 8, 100
    table = nn.Sequential(nn.Embedding(v, d), nn.Linear(d, 1, bias=False))
    lookup = count_module(table, torch.randint(0, v, (n,)))
    assert _bytes(lookup, "aten.embedding") == n * 8 + n * d * 4 + n * d * 4
    assert _bytes(lookup, "aten.embedding_dense_backward", "backward") == n * 8 + n * d * 4 + v * d * 4 + 2 * n * d * 4

    gemm = count_module(nn.Linear(5, 7, bias=False), torch.randn(3, 5))
    assert _bytes(gemm, "aten.mm") == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert sum(r.bytes_half for r in gemm.rows) == sum(r.bytes_own for r in gemm.rows) / 2

    broadcast = count_module(Apply(lambda x, w: x * w, 1, 9), torch.randn(4, 9))
    assert _bytes(broadcast, "aten.mul.Tensor".removesuffix(".Tensor")) == 4 * (4 * 9 + 9 + 4 * 9)

    expanded = count_module(Apply(lambda x, w: x + w.expand(4, 9), 1, 9), torch.randn(4, 9))
    assert _bytes(expanded, "aten.add") == 4 * (4 * 9 + 9 + 4 * 9)

    some = count_module(Apply(lambda x, w: x + w[:3].expand(4, 3), 100), torch.randn(4, 3))
    assert _bytes(some, "aten.add") == 4 * (4 * 3 + 3 + 4 * 3)  # three of a hundred values, however often

    same = count_module(Apply(lambda x, w: w * w, 9), torch.randn(1))
    assert _bytes(same, "aten.mul") == 4 * (9 + 9)

    in_place = count_module(Apply(lambda x, w: (x + w).relu_(), 9), torch.randn(9))
    assert _bytes(in_place, "aten.relu_") == 4 * (9 + 9)


def test_embedding_bag_bytes_are_those_of_the_byte_table() -> None:
    bag = nn.EmbeddingBag(50, 8, mode="sum", include_last_offset=True)

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = bag

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return self.bag(ids, offsets)

    counts = count_module(Bag(), (torch.randint(0, 50, (12,)), torch.tensor([0, 3, 6, 12])))
    assert _bytes(counts, "aten._embedding_bag") == 12 * 8 + 4 * 8 + 12 * 8 * 4 + 3 * 8 * 4
    assert counts.flops() == 0


def test_weighted_sum_of_a_bag_has_the_flops_of_its_product() -> None:
    """[1, T] @ [T, C] a bag: 2TC forward, 2TC for each of its two gradients."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.share = nn.Parameter(torch.randn(50, 8)), nn.Parameter(torch.randn(12))

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return functional.embedding_bag(
                ids, self.table, offsets, mode="sum", include_last_offset=True, per_sample_weights=self.share
            )  # fmt: skip

    counts = count_module(Weighted(), (torch.randint(0, 50, (12,)), torch.tensor([0, 3, 6, 12])))
    assert (counts.flops("forward"), counts.flops("backward")) == (2 * 12 * 8, 2 * 2 * 12 * 8)
    assert {r.op for r in counts.rows if r.kind == "F"} >= {"aten._embedding_bag"}


def test_elementwise_flops_are_apart_from_model_flops() -> None:
    counts = count_module(Apply(lambda x, w: (x * w).relu(), 9), torch.randn(4, 9))
    assert counts.flops() == 0
    assert counts.flops_elementwise("forward") == 2 * 4 * 9


KERNELS = [
    (torch.ops.aten.mm.default, 1.35, True),
    (torch.ops.aten.addmm.default, 1.18, True),
    (torch.ops.aten.bmm.default, 1.0, True),
    (torch.ops.aten.relu.default, 1.0, True),
    (torch.ops.aten._softmax.default, 1.0, True),
    (torch.ops.aten.native_layer_norm_backward.default, 1.91, True),
    (torch.ops.aten.view.default, 0.0, True),
    (torch.ops.aten._scaled_dot_product_flash_attention.default, 1.0, True),
    (torch.ops.aten.sort.default, 1.0, False),
]


@pytest.mark.parametrize(("op", "kernels", "covered"), KERNELS, ids=lambda v: str(v))
def test_kernels_of_an_operator(op, kernels: float, covered: bool) -> None:  # type: ignore[no-untyped-def]
    _, family = classify(op)
    x = torch.empty(4, 4, device="meta")
    assert kernels_of(op, family, {}, [x], x.device) == (kernels, covered)


@pytest.mark.parametrize(
    ("sizes", "launches"),
    [
        ([10] * 5, 1),
        ([10] * 110, 1),
        ([10] * 111, 2),
        ([65536 * 320], 1),
        ([65536 * 320 + 1], 2),
        ([65536 * 300] * 2, 2),
    ],
)
def test_multi_tensor_launches_follow_chunks_and_tensor_limits(sizes: list[int], launches: int) -> None:
    op = torch.ops.aten._foreach_sqrt.default
    tensors = [torch.empty(n, device="meta") for n in sizes]
    assert kernels_of(op, classify(op)[1], {"self": tensors}, tensors, torch.device("meta"))[0] == launches
    host = [torch.zeros(()) for _ in sizes]
    assert kernels_of(op, "optimizer", {"self": host}, host, torch.device("meta"))[0] == 0


def test_products_of_onednn_are_products() -> None:
    """They lie inside our own operators: a profile of a step sees them, and Inductor calls them itself."""
    for name in ("mkldnn::_linear_pointwise", "aten::mkldnn_linear_backward_weights"):
        assert classify_name(name) == ("F", "gemm")

    def product(x_MNI: Tensor, weight_OI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_MNI, weight_OI.detach(), None, "none", [], "") * weight_OI.sum()

    assert count_module(Apply(product, 7, 5), torch.randn(2, 3, 5)).flops() == 2 * (2 * 3) * 5 * 7


def test_operators_of_no_table_are_unknown() -> None:
    assert classify(torch.ops.aten._cdist_forward.default) == ("U", "other")
    assert classify(torch.ops.aten.mkldnn_rnn_layer.default) == ("U", "other")
    assert classify(torch.ops.fbgemm.jagged_dense_elementwise_add.default)[0] == "U"
