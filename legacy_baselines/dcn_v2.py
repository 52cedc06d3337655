"""DCN-v2: cross layers with a full matrix, or a mixture of low-rank ones, beside or below an MLP (2008.13535).

Dims: B batch, N = F*D width of the flattened fields, M width of the head's input, K experts, R rank
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.cross import Impl, cross, cross_cost
from ctrbench.kernels.cross_mixture import Act, mixture, mixture_cost
from ctrbench.kernels.linear import Linear
from ctrbench.legacy_baselines.bars import criteo_x1_run
from ctrbench.legacy_baselines.dcn_v2_serving import request_flops, serving
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import CardRow, FidelityCard, Flops, ModelSpec, Preset, Stage, Status

Structure = Literal["parallel", "stacked", "stacked_parallel", "cross_only"]
GateScope = Literal["model", "layer"]
_CHOICES = {
    "structure": ("parallel", "stacked", "stacked_parallel", "cross_only"), "form": ("full", "mixture"),
    "gate_scope": ("model", "layer"), "expert_act": ("tanh", "identity"), "cross_impl": ("fused", "plain"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DCNv2Config:
    """Defaults are the `small` preset: wider than the design's least (8, 64-32), so that the baseline is not weak."""

    dim: int = 16
    """Embedding width."""
    cross_layers: int = 3
    structure: Structure = "parallel"
    """`stacked_parallel` runs one MLP on the cross output and one on the input."""
    form: Literal["full", "mixture"] = "full"
    """Of the cross layers: one full matrix, or gated experts of low rank."""
    experts: int = 4
    """Low-rank experts a layer; this and the next three are only read with `form=mixture`."""
    rank: int = 32
    """Rank of an expert."""
    gate_scope: GateScope = "model"
    """`model` shares one gate between all layers as FuxiCTR does, `layer` gives each its own."""
    expert_act: Act = "tanh"
    """Activation inside the experts; with `identity` one expert of full rank is a full layer."""
    mlp: tuple[int, ...] = (128, 64)
    """Hidden widths of each MLP."""
    bn: bool = False
    """Batch norm between each hidden linear layer and its activation."""
    dropout: float = 0.0
    cross_impl: Impl = "fused"
    """`plain` runs one operator a symbol of the equation; same result."""
    missing_vector: bool = True
    """Learn one vector a dense field for missing values."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(allowed)}")
        if self.cross_layers < 1:
            raise ValueError(f"cross_layers={self.cross_layers}: a cross network needs at least one layer")
        if self.experts < 1 or self.rank < 1:
            raise ValueError(f"experts={self.experts}, rank={self.rank}: at least 1 each")


class CrossNet(nn.Module):
    """L full-matrix cross layers, [B, N] -> [B, N]: polynomials of degree L + 1 of the input (section 3.2).

    Args:
        width: N.
        layers: L.
        impl: fast path or plain twin.
    """

    def __init__(self, width: int, layers: int, impl: Impl = "fused") -> None:
        super().__init__()
        self.impl: Impl = impl
        self.layers = nn.ModuleList(Linear(width, width) for _ in range(layers))

    def forward(self, x0_BN: Tensor) -> Tensor:
        x_BN = x0_BN
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            x_BN = cross(x0_BN, x_BN, layer.weight, layer.bias, self.impl)
        return x_BN


class MixtureCrossNet(nn.Module):
    """L mixture layers, [B, N] -> [B, N] (section 3.5). One bias a layer: the gates sum to 1.

    Args:
        width: N.
        config: layers, experts, rank, gate scope, activation, form of the kernel.
    """

    def __init__(self, width: int, config: DCNv2Config) -> None:
        super().__init__()
        self.act: Act = config.expert_act
        self.impl: Impl = config.cross_impl
        layers, k, r = range(config.cross_layers), config.experts, config.rank

        def normal(*shape: int, fans: int) -> nn.Parameter:  # Xavier of each expert's matrix
            return nn.Parameter(torch.randn(*shape) * (2 / fans) ** 0.5)

        self.v_KRN = nn.ParameterList(normal(k, r, width, fans=width + r) for _ in layers)
        self.c_KRR = nn.ParameterList(normal(k, r, r, fans=2 * r) for _ in layers)
        self.u_NKR = nn.ParameterList(normal(width, k, r, fans=width + r) for _ in layers)
        self.b_N = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in layers)
        gates = 1 if config.gate_scope == "model" else config.cross_layers
        self.gates = nn.ModuleList(Linear(width, k, bias=False) for _ in range(gates))

    def forward(self, x0_BN: Tensor) -> Tensor:
        x_BN = x0_BN
        for i, (u, c, v, b) in enumerate(zip(self.u_NKR, self.c_KRR, self.v_KRN, self.b_N, strict=True)):
            gate_BK = self.gates[min(i, len(self.gates) - 1)](x_BN).softmax(dim=1)
            x_BN = mixture(x0_BN, x_BN, gate_BK, u, c, v, b, self.act, self.impl)
        return x_BN


class DCNv2(nn.Module):
    """logit = Linear of the cross output, the MLP output, or both side by side."""

    phases: Mapping[Stage, tuple[str, ...]]

    def __init__(self, config: DCNv2Config, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.structure = config.structure
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables, missing_vector=config.missing_vector)
            width = self.embedder.num_fields * config.dim
            self.cross = (
                CrossNet(width, config.cross_layers, config.cross_impl)
                if config.form == "full"
                else MixtureCrossNet(width, config)
            )
            blocks = _mlps(config.structure)
            self.mlps = nn.ModuleDict(
                {b: MLP(width, config.mlp, batch_norm=config.bn, dropout=config.dropout) for b in blocks}
            )
            self.head = Linear(_head_width(config, width), 1)
            self.phases = {
                "embedding": ("embedder",),
                "interaction": ("cross",),
                "dense": (*(f"mlps.{b}" for b in blocks), "head"),
            }

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        x0_BN = self.embedder(batch).fields_BFD.flatten(1)
        crossed_BN = self.cross(x0_BN)
        if self.structure == "parallel":
            out_BM = torch.cat([crossed_BN, self.mlps["parallel"](x0_BN)], dim=1)
        elif self.structure == "stacked":
            out_BM = self.mlps["stacked"](crossed_BN)
        elif self.structure == "stacked_parallel":
            out_BM = torch.cat([self.mlps["stacked"](crossed_BN), self.mlps["parallel"](x0_BN)], dim=1)
        else:
            out_BM = crossed_BN
        return self.head(out_BM).squeeze(1)


def _mlps(structure: Structure) -> tuple[str, ...]:
    """Names of the MLPs that a structure has."""
    return tuple(name for name in ("stacked", "parallel") if name in structure.split("_"))


def _head_width(config: DCNv2Config, width: int) -> int:
    crossed = width if config.structure in ("parallel", "cross_only") else 0
    return crossed + len(_mlps(config.structure)) * (config.mlp[-1] if config.mlp else width)


def card(config: DCNv2Config) -> FidelityCard:
    """What follows the paper under `config`."""
    layout: Status = "faithful" if config.structure in ("parallel", "stacked") else "adapted"
    gate: Status = "adapted" if config.gate_scope == "model" else "faithful"
    act: Status = "faithful" if config.expert_act == "tanh" else "adapted"
    return FidelityCard(
        model="dcn_v2",
        paper="2008.13535",
        rows=(  # the last four as on DCN's card: a card quotes sections of its own paper
            CardRow(mechanism="cross layer of the form in use", status="faithful", section="3.2, 3.5",
                    switch=f"form={config.form}, cross_impl={config.cross_impl}",
                    note="full matrix or mixture, both are the paper's; fused and plain give the same value"),
            CardRow(mechanism="how cross and MLP are combined", status=layout, section="3.4",
                    switch=f"structure={config.structure}", note="the paper has stacked and parallel"),
            CardRow(mechanism="scope of the mixture's gate", status=gate, section="3.5",
                    switch=f"gate_scope={config.gate_scope}",
                    note="model: one gate for all layers as FuxiCTR; the paper indexes it by layer; form=mixture only"),
            CardRow(mechanism="activation inside the experts", status=act, section="3.5",
                    switch=f"expert_act={config.expert_act}", note="form=mixture only"),
            CardRow(mechanism="number and rank of experts", status="adapted", section="n/k",
                    switch=f"experts={config.experts}, rank={config.rank}",
                    note="defaults are FuxiCTR's; form=mixture only"),
            CardRow(mechanism="MLP without normalisation", status="adapted" if config.bn else "faithful", section="3.3",
                    switch=f"bn={config.bn}"),
            CardRow(mechanism="sizes", status="adapted", section="n/k",
                    switch=f"dim={config.dim}, cross_layers={config.cross_layers}, mlp={config.mlp}",
                    note="one width for all fields; small preset kept above the design's least so as not to be weak"),
            CardRow(mechanism="numeric fields", status="adapted", section="3.1",
                    switch=f"missing_vector={config.missing_vector}",
                    note="value times one learned vector (FuxiCTR), not the raw value beside the embeddings"),
            CardRow(mechanism="behaviour history", status="adapted", section="n/k",
                    note="each sequence field enters mean-pooled as one more field"),
            CardRow(mechanism="optimizer", status="adapted", section="n/k",
                    switch=f"tables.optimizer={config.tables.optimizer}",
                    note="Adam on dense weights, the tables' own optimizer inside their backward"),
        ),
    )  # fmt: skip


def flops(config: DCNv2Config, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Cross layers, MLPs and head. History lengths do not matter: pooling is a gather."""
    width = len(schema.fields) * config.dim
    mlps = len(_mlps(config.structure)) * mlp_flops(width, config.mlp)
    layer = cross_cost(width) if config.form == "full" else mixture_cost(width, config.rank, config.experts)
    total = config.cross_layers * layer.flops + mlps + 2.0 * _head_width(config, width)
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """BARS' Criteo_x1 run."""
    config = DCNv2Config(dim=10, cross_layers=3, mlp=(500, 500, 500), dropout=0.1, missing_vector=False)
    return criteo_x1_run(config, 22_018_021)


SPEC = ModelSpec(  # spelt out in every model file: each is read alone
    name="dcn_v2",
    title="DCN-v2",
    family="legacy",
    paper="2008.13535",
    tracks=("tabular", "sequence"),
    config=DCNv2Config,
    build=DCNv2,
    card=card,
    flops=flops,
    published=published,
    serving=serving,
    request_flops=request_flops,
)
