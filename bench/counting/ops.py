"""Operator table: which operators have FLOPs, which are zero by convention, which are unknown.

Conventions: measures.md section 2. 2 per multiply-add in GEMM, convolution and attention; everything else is zero
model FLOPs and is reported as bytes, launches and `flops_elementwise`. An operator that no table names is unknown (U):
it may hide a GEMM, so utilisation is withheld until it gets a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload

OpClass = Literal["F", "Z", "U", "V"]
"""F formula, Z zero by the table, U unknown, V no device work (view, allocation, host read): not an operator call."""

Family = Literal[
    "view", "gemm", "conv", "attention", "attention_backward", "elementwise", "copy", "reduction", "norm", "gather",
    "optimizer", "table_forward", "table_backward", "jagged", "sort", "other",
]  # fmt: skip

Formula = Callable[[Mapping[str, Any], Any], float]
"""(arguments by name, output) -> FLOPs."""


def arguments(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of the operator's schema; `self` of aten is `self`."""
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
    return {**named, **kwargs}


def base_name(func: OpOverload) -> str:
    """`aten::add` for every overload and in-place form of it."""
    return func._schema.name.rstrip("_")


def _gemm(a: str, b: str) -> Formula:
    def flops(x: Mapping[str, Any], out: Any) -> float:
        left, right = x[a], x[b]
        return float(2 * prod(left.shape) * right.shape[-1])

    return flops


def _gemv(matrix: str) -> Formula:
    return lambda x, out: 2.0 * x[matrix].numel()


def _conv(x: Mapping[str, Any], out: Tensor) -> float:
    weight: Tensor = x["weight"]
    spread = x["input"] if x.get("transposed", False) else out
    return 2.0 * float(spread.numel() * prod(weight.shape[1:]))


def _conv_backward(x: Mapping[str, Any], out: Any) -> float:
    return _conv(x, x["grad_output"]) * sum(bool(m) for m in x["output_mask"][:2])


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    """Two GEMMs over the whole [Lq, Lk] rectangle; tensors [..., L, D]."""
    return 2.0 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention(x: Mapping[str, Any], out: Any) -> float:
    return attention_flops(x["query"], x["key"], x["value"])


def _attention_backward(x: Mapping[str, Any], out: Any) -> float:
    """Model FLOPs: two GEMMs per forward GEMM. Flash kernels execute 2.5x because they recompute the scores."""
    return 2.0 * _attention(x, out)


def _trilinear(x: Mapping[str, Any], out: Any) -> float:
    shapes = []
    for i, name in (("1", "i1"), ("2", "i2"), ("3", "i3")):
        shape = list(x[name].shape)
        for at in x[f"expand{i}"]:
            shape.insert(at, 1)
        shapes.append(shape)
    full = [max(sizes) for sizes in zip(*shapes, strict=True)]
    first = full[x["sumdim"][0]] if x["sumdim"] else 1
    return 2.0 * prod(full) * (1 + 1 / first)


_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable", "ctrbench::sdpa",
)  # fmt: skip

FORMULAS: dict[str, Formula] = {
    "aten::mm": _gemm("self", "mat2"),
    "aten::addmm": _gemm("mat1", "mat2"),
    "aten::_addmm_activation": _gemm("mat1", "mat2"),
    "aten::bmm": _gemm("self", "mat2"),
    "aten::baddbmm": _gemm("batch1", "batch2"),
    "aten::addbmm": _gemm("batch1", "batch2"),
    "aten::mv": _gemv("self"),
    "aten::addmv": _gemv("mat"),
    "aten::dot": _gemv("self"),
    "aten::vdot": _gemv("self"),
    "aten::addr": lambda x, out: 2.0 * out.numel(),
    "aten::_trilinear": _trilinear,
    "ctrbench::linear": lambda x, out: 2.0 * x["x"].shape[0] * x["weight"].numel(),
    "ctrbench::linear_grad_input": lambda x, out: 2.0 * x["grad"].shape[0] * x["weight"].numel(),
    "ctrbench::linear_grad_weight": lambda x, out: 2.0 * x["grad"].numel() * x["x"].shape[1],
    "mkldnn::_linear_pointwise": lambda x, out: 2.0 * x["X"].numel() * x["W"].shape[0],
    "aten::mkldnn_linear_backward_weights": lambda x, out: 2.0 * x["grad_output"].numel() * x["input"].shape[-1],
    "aten::convolution": _conv,
    "aten::_convolution": _conv,
    "aten::mkldnn_convolution": lambda x, out: _conv({**x, "input": x["self"]}, out),
    "aten::cudnn_convolution": lambda x, out: _conv({**x, "input": x["self"]}, out),
    "aten::convolution_backward": _conv_backward,
    **dict.fromkeys(_ATTENTION, _attention),
    **{f"{name}_backward": _attention_backward for name in _ATTENTION},
}
"""Operators with a formula. LSTM and encoder fast paths are unknown on purpose: count them on meta instead."""


def _weighted_bag(x: Mapping[str, Any], out: Any) -> float:
    weighted = x.get("per_sample_weights") is not None
    table: Tensor = x["weight"] if "weight" in x else x["grad"]
    return 2.0 * x["indices"].numel() * table.shape[1] * weighted


def _weights_of_bag(x: Mapping[str, Any], out: Any) -> float:
    return 2.0 * x["indices"].numel() * x["grad"].shape[1]


def _each_event(x: Mapping[str, Any], out: Any) -> float:
    return 2.0 * x["h"].numel()


WEIGHTED_SUMS: dict[str, Formula] = {
    "aten::_embedding_bag": _weighted_bag,
    "aten::_embedding_bag_forward_only": _weighted_bag,
    "aten::_embedding_bag_backward": _weighted_bag,
    "aten::_embedding_bag_dense_backward": _weighted_bag,
    "aten::_embedding_bag_per_sample_weights_backward": _weights_of_bag,
    "ctrbench::din_scores_back": _each_event,
    "ctrbench::din_first_back": _each_event,
}
"""Operators of other families that hold DIN's sum of a_j h_j or a gradient of it: the FLOPs are those of the products
of matrices that take its place on padded histories. A bag without weights has none."""


def _names(text: str, room: str = "aten") -> frozenset[str]:
    return frozenset(f"{room}::{n}" for n in text.split())


_VIEWS = _names(
    "_unsafe_view _reshape_alias lift_fresh empty empty_like empty_strided new_empty new_empty_strided resize "
    "_local_scalar_dense is_coalesced _coalesced _sparse_coo_tensor_with_dims_and_tensors is_same_size "
    "_has_same_storage_numel set sym_size sym_numel record_stream _nnz "
    "transpose t squeeze unsqueeze as_strided detach swapaxes unsafe_split unsafe_split_with_sizes unsafe_chunk"
)
_ELEMENTWISE = _names(
    "binary_cross_entropy_with_logits binary_cross_entropy binary_cross_entropy_backward log_sigmoid_forward "
    "log_sigmoid_backward fill zero bernoulli normal uniform random exponential native_dropout "
    "native_dropout_backward mse_loss mse_loss_backward smooth_l1_loss huber_loss glu glu_backward "
    "_prelu_kernel _prelu_kernel_backward rrelu_with_noise masked_fill addcmul addcdiv lerp tril triu isin "
    "nan_to_num logit logit_backward leaky_relu_backward floor_divide remainder"
) | _names("dice_out dice_back dice_finish din_pairs din_add_rows din_scores_back din_first_back", room="ctrbench")
_FILLS = _names(
    "arange zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor eye rand "
    "randn randint rand_like randn_like fill zero bernoulli normal uniform random exponential linspace triu_indices "
    "tril_indices"
)
_COPIES = _names(
    "copy clone _to_copy contiguous repeat slice_backward select_backward diagonal_backward flip roll tril "
    "triu constant_pad_nd unfold_backward as_strided_scatter slice_scatter select_scatter"
)
_REDUCTIONS = _names(
    "sum mean argmax argmin amax amin max min all any norm linalg_vector_norm prod var std var_mean logsumexp "
    "nll_loss_forward nll_loss_backward cumsum nansum"
)
_NORMS = _names(
    "_softmax _softmax_backward_data _log_softmax _log_softmax_backward_data native_layer_norm "
    "native_layer_norm_backward native_batch_norm native_batch_norm_backward _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_with_update_functional "
    "batch_norm_update_stats cudnn_batch_norm cudnn_batch_norm_backward batch_norm_backward native_group_norm "
    "native_group_norm_backward _fused_rms_norm _fused_rms_norm_backward _safe_softmax"
)
_GATHERS = _names(
    "embedding embedding_dense_backward _embedding_bag _embedding_bag_forward_only "
    "_embedding_bag_dense_backward _embedding_bag_backward _embedding_bag_sparse_backward "
    "_embedding_bag_per_sample_weights_backward gather scatter scatter_add scatter_reduce index_select index "
    "index_put _unsafe_index _unsafe_index_put _index_put_impl index_add index_fill index_copy take cat stack "
    "masked_select masked_scatter sparse_mask _coalesce max_pool2d_with_indices "
    "max_pool2d_with_indices_backward avg_pool2d avg_pool2d_backward _adaptive_avg_pool2d "
    "_adaptive_avg_pool2d_backward split_with_sizes_copy"
)
_SORTS = _names(
    "sort topk argsort unique_dim _unique _unique2 unique_consecutive unique_dim_consecutive nonzero bincount "
    "searchsorted bucketize repeat_interleave multinomial randperm histc kthvalue median msort"
)
_JAGGED = _names(
    "asynchronous_complete_cumsum asynchronous_inclusive_cumsum asynchronous_exclusive_cumsum "
    "bounds_check_indices permute_sparse_features permute_2D_sparse_data permute_1D_sparse_data "
    "permute_sparse_data permute_pooled_embs permute_pooled_embs_auto_grad jagged_to_padded_dense "
    "jagged_to_padded_dense_forward jagged_to_padded_dense_backward jagged_2d_to_dense jagged_1d_to_dense "
    "dense_to_jagged dense_to_jagged_forward block_bucketize_sparse_features offsets_range segment_sum_csr "
    "generate_vbe_metadata get_infos_metadata linearize_cache_indices expand_into_jagged_permute",
    room="fbgemm",
)


def _is_table(name: str, backward: bool) -> bool:
    if name.startswith("ctrbench::tbe"):
        return name.endswith("_backward") is backward
    if not name.startswith("fbgemm::") or "embedding" not in name:
        return False
    return ("backward" in name) is backward


def classify(func: OpOverload) -> tuple[OpClass, Family]:
    """Class and family of an operator; unknown operators are ("U", "other")."""
    pointwise, reduction = torch.Tag.pointwise in func.tags, torch.Tag.reduction in func.tags
    return _classify(base_name(func), is_view=func.is_view, pointwise=pointwise, reduction=reduction)


@cache
def classify_name(op: str) -> tuple[OpClass, Family]:
    """Class and family of an operator known by its name alone, in a recording or a row: `aten::add_` or `aten.add_`.

    Operators of packages that are not loaded are classified by the tables here; a node of autograd that C++ defines
    (`torch::autograd::CppNode<...>`) is what its class says.
    """
    name = op if "::" in op else op.replace(".", "::", 1)
    if name.startswith("torch::autograd::CppNode"):
        known = (("SplitLookupFunction", "table_backward"), ("PermutePooledEmbsFunction", "jagged"))
        family: Family | None = next((f for part, f in known if part in name), None)  # type: ignore[misc]
        return ("Z", family) if family else ("U", "other")
    room, _, base = name.partition("::")
    packet = getattr(getattr(torch.ops, room), base, None) if room and base.isidentifier() else None
    if packet is None:
        return _classify(name.rstrip("_"), is_view=False, pointwise=False, reduction=False)
    return classify(getattr(packet, packet.overloads()[0]))


def _classify(name: str, *, is_view: bool, pointwise: bool, reduction: bool) -> tuple[OpClass, Family]:
    if is_view or name in _VIEWS or name.startswith(("profiler::", "prim::")):
        return "V", "view"
    if name in FORMULAS:
        if "convolution" in name:
            return "F", "conv"
        if "attention" in name or name.startswith("ctrbench::sdpa"):
            return "F", "attention_backward" if name.endswith("_backward") else "attention"
        return "F", "gemm"
    if _is_table(name, backward=True):
        return "Z", "table_backward"
    if _is_table(name, backward=False):
        return "Z", "table_forward"
    if name in _JAGGED:
        return "Z", "jagged"
    if name.startswith(("aten::_foreach_", "aten::_fused_adam", "aten::_fused_sgd", "aten::_fused_adagrad")):
        return "Z", "optimizer"
    families: tuple[tuple[Family, frozenset[str]], ...] = (
        ("copy", _COPIES), ("reduction", _REDUCTIONS), ("norm", _NORMS), ("gather", _GATHERS), ("sort", _SORTS),
    )  # fmt: skip
    for family, names in families:
        if name in names:
            return "Z", family
    if name in _ELEMENTWISE or name in _FILLS:
        return "Z", "elementwise"
    if name.startswith("aten::") and pointwise:
        return "Z", "elementwise"
    if name.startswith("aten::") and reduction:
        return "Z", "reduction"
    return "U", "other"


def flops_of(func: OpOverload, x: Mapping[str, Any], out: Any) -> float:
    """Model FLOPs of one call; 0 for operators without a formula."""
    name = base_name(func)
    formula = FORMULAS.get(name) or WEIGHTED_SUMS.get(name)
    return formula(x, out) if formula else 0.0


def elementwise_flops(func: OpOverload, family: Family, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    """One per element and operation, for arithmetic on floats; 0 for copies, fills, gathers and integer work."""
    if family not in ("elementwise", "reduction", "norm", "optimizer") or base_name(func) in _FILLS:
        return 0.0
    floats = [t for t in (*inputs, *outputs) if t.is_floating_point()]
    if not floats:
        return 0.0
    if family == "optimizer":
        lists = sum(1 for a in func._schema.arguments if "Tensor[]" in str(a.type)) or 1
        return float(sum(t.numel() for t in inputs if t.is_floating_point()) / lists)
    return float(max(t.numel() for t in floats))
