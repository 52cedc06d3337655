"""RankMixer: tokens mixed without parameters, then a feed-forward network of its own for each (2507.15551).

Dims: B batch, T tokens, W width of a slice, D token width, E experts
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.schema import Batch, FeatureSchema
from ctrbench.kernels.token_mixing import mix_tokens
from ctrbench.models.blocks import MLP, FeatureEmbedder, mlp_flops
from ctrbench.models.cards import fixed, switched
from ctrbench.models.embedding import TableConfig
from ctrbench.models.spec import FidelityCard, Flops, ModelSpec, Preset, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMixerConfig:
    """Defaults are the `small` preset."""

    dim: int = 16
    """Embedding width."""
    tokens: int = 8
    """T: all embeddings side by side are cut into as many slices; divides `width`."""
    width: int = 64
    """D."""
    layers: int = 2
    expand: int = 2
    """k: hidden width of a token's network over D."""
    head: tuple[int, ...] = (64,)
    """Hidden widths of the task's network on the mean token."""
    moe: Literal["off", "relu"] = "off"
    """`relu`: each token's network is the mean of `experts`, each times the ReLU of its router."""
    experts: int = 4
    moe_l1: float = 1e-4
    """Weight of the mean gate in the loss, which keeps experts switched off."""
    tables: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        if self.width % self.tokens:
            raise ValueError(f"tokens={self.tokens} does not divide width={self.width}; choose a divisor")
        if self.moe not in ("off", "relu"):
            raise ValueError(f"moe={self.moe!r}: use off or relu")


class Slices(nn.Module):
    """All field vectors side by side, cut into T slices (the last one filled up with zeros), each through a linear map
    of its own: [B, F, dim] -> [B, T, D].
    """

    def __init__(self, inputs: int, tokens: int, width: int) -> None:
        super().__init__()
        self.inputs, self.slice = inputs, -(-inputs // tokens)
        self.weight_TWD, self.bias_TD = _own(tokens, self.slice, width)

    def forward(self, fields_BFd: Tensor) -> Tensor:
        flat_BI = pad(fields_BFd.flatten(1), (0, self.slice * len(self.bias_TD) - self.inputs))
        slices_TBW = flat_BI.unflatten(1, (-1, self.slice)).transpose(0, 1)
        return torch.baddbmm(self.bias_TD.unsqueeze(1), slices_TBW, self.weight_TWD).transpose(0, 1)


class TokenNetworks(nn.Module):
    """A two-layer network with GELU for each token, [B, T, D] -> [B, T, D]; a mean of gated ones with experts."""

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__()
        self.experts = config.experts if config.moe == "relu" else 1
        tokens, width = config.tokens, config.width
        self.up_NDK, self.up_bias_NK = _own(tokens * self.experts, width, config.expand * width)
        self.down_NKD, self.down_bias_ND = _own(tokens * self.experts, config.expand * width, width)
        self.router_TDE = nn.Parameter(_own(tokens, width, self.experts)[0]) if config.moe == "relu" else None
        self.gates_TBE: Tensor | None = None
        """Of the last forward in training."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_TBD = x_BTD.transpose(0, 1)
        x_NBD = x_TBD if self.experts == 1 else x_TBD.repeat_interleave(self.experts, dim=0)
        hidden_NBK = gelu(torch.baddbmm(self.up_bias_NK.unsqueeze(1), x_NBD, self.up_NDK))
        y_NBD = torch.baddbmm(self.down_bias_ND.unsqueeze(1), hidden_NBK, self.down_NKD)
        if self.router_TDE is None:
            return y_NBD.transpose(0, 1)
        gates_TBE = torch.bmm(x_TBD, self.router_TDE).relu()
        self.gates_TBE = gates_TBE if self.training else None
        y_TEBD = y_NBD.unflatten(0, (-1, self.experts))
        return (y_TEBD * gates_TBE.transpose(1, 2).unsqueeze(3)).mean(dim=1).transpose(0, 1)


class MixerLayer(nn.Module):
    """S = LN(Mix(X) + X); X' = LN(PFFN(S) + S)."""

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.networks = TokenNetworks(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        s_BTD = self.norm1(mix_tokens(x_BTD) + x_BTD)
        return self.norm2(self.networks(s_BTD) + s_BTD)


class RankMixer(nn.Module):
    """Slices of the embeddings through mixer layers; logit of the mean token."""

    def __init__(self, config: RankMixerConfig, schema: FeatureSchema, device: str | None = None) -> None:
        super().__init__()
        self.l1 = config.moe_l1
        with torch.device(device) if device else nullcontext():
            self.embedder = FeatureEmbedder(schema, config.dim, config.tables)
            self.slices = Slices(self.embedder.num_fields * config.dim, config.tokens, config.width)
            self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.layers))
            self.head = MLP(config.width, config.head, 1, activation=nn.GELU)
        self.phases: Mapping[Stage, tuple[str, ...]] = {
            "embedding": ("embedder",), "interaction": tuple(f"layers.{i}" for i in range(config.layers)),
            "dense": ("slices", "head"),
        }  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """logit_B."""
        x_BTD = self.slices(self.embedder(batch).fields_BFD)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return self.head(x_BTD.mean(dim=1)).squeeze(1)

    def extra_loss(self) -> Tensor:
        """Weighted mean gate of the last forward in training, a scalar; 0 without experts."""
        networks = [layer.networks for layer in self.layers if isinstance(layer, MixerLayer)]
        gates = [n.gates_TBE.mean() for n in networks if n.gates_TBE is not None]
        return self.l1 * torch.stack(gates).sum() if gates else torch.zeros(())


def _own(count: int, n_in: int, n_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [count, n_in, n_out] and biases [count, n_out], started as torch's linear layers are."""
    bound = n_in**-0.5
    weight = torch.empty(count, n_in, n_out).uniform_(-bound, bound)
    return nn.Parameter(weight), nn.Parameter(torch.empty(count, n_out).uniform_(-bound, bound))


def card(config: RankMixerConfig) -> FidelityCard:
    """What follows the paper under `config`."""
    return FidelityCard(
        model="rankmixer",
        paper="2507.15551",
        rows=(
            fixed("token mixing without parameters, as many heads as tokens", "faithful", "3.2"),
            fixed("a feed-forward network for each token", "faithful", "3.3", "", f"expand={config.expand}"),
            fixed("norm behind both residuals", "faithful", "3.2"),
            fixed("mean of the tokens into the task's network", "faithful", "3.4", "", f"head={config.head}"),
            fixed("tokens", "adapted", "3.1", "slices in the order of the schema; the paper groups features by meaning",
                  f"tokens={config.tokens}"),
            fixed("width of the token networks, k", "unknown", "n/k", "the published sizes imply 2.8 and 3.6"),
            switched(config, "moe", "off", "sparse experts", "3.5",
                     "ReLU routing, all experts computed in training and serving alike", "faithful"),
            fixed("budget of the experts", "unknown", "3.5", "a fixed weight of the mean gate",
                  f"experts={config.experts}, moe_l1={config.moe_l1}"),
            fixed("tokenizer's details, sizes of the heads", "unknown", "n/k",
                  "one linear map with bias a slice, zeros behind the last; one hidden layer in the head"),
            fixed("behaviour history", "adapted", "n/k", "each sequence field enters mean-pooled as one more field"),
            fixed("optimizer", "adapted", "4.1", "Adam on dense weights, where the paper has RMSProp",
                  f"tables.optimizer={config.tables.optimizer}"),
        ),
    )  # fmt: skip


def flops(config: RankMixerConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Slices, token networks (all experts) with their routers, head. History lengths do not matter."""
    tokens, d = config.tokens, config.width
    layer = 4.0 * config.expand * tokens * d * d
    if config.moe == "relu":
        layer = config.experts * (layer + 2.0 * tokens * d)
    inputs = -(-len(schema.fields) * config.dim // tokens) * tokens
    total = 2.0 * inputs * d + config.layers * layer + mlp_flops(d, config.head, 1)
    return Flops(total, total)


def published() -> tuple[Preset, ...]:
    """The 100M and 1B sizes; k is not given: 3 and 4 lie beside what the parameter counts imply."""
    note = "2507.15551: D, T and L are the paper's, k is not given and ours; features of Criteo_x1 for want of its own"
    return tuple(
        Preset(label=label, schema=criteo_x1(), note=note,
               config=RankMixerConfig(dim=64, tokens=tokens, width=width, layers=2, expand=k, head=(512,)))
        for label, tokens, width, k in (("100m", 16, 768, 3), ("1b", 32, 1536, 4))
    )  # fmt: skip


SPEC = ModelSpec(
    name="rankmixer",
    title="RankMixer",
    family="transformer",
    paper="2507.15551",
    tracks=("tabular", "sequence"),
    config=RankMixerConfig,
    build=RankMixer,
    card=card,
    flops=flops,
    published=published,
)
