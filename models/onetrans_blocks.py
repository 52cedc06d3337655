"""Layers of OneTrans (2510.26104 sections 3.3 and 3.4): mixed weights, pyramid, mask, head, and their cost.

Dims: B batch, R requests, C candidates of each, N = R*C rows, S sequence tokens, N NS-tokens, Q queries, I all tokens,
D width, E output width, H heads, d head width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ctrbench.kernels.attention import attention, lower_right, visible_pairs
from ctrbench.kernels.linear import Linear, linear
from ctrbench.kernels.mixed_linear import mixed_linear
from ctrbench.kernels.prefix_attention import prefix_attention
from ctrbench.models.onetrans_tokens import ACTIVATIONS, Activation
from ctrbench.models.spec import Flops

Pyramid = Literal["full_first", "shrink_first", "none"]
OutProj = Literal["shared", "mixed", "none"]
NormScope = Literal["shared", "per_token"]
Head = Literal["flatten", "mean", "last"]
EPS = 1e-6


def kept_tokens(pyramid: Pyramid, layers: int, l_s: int, l_ns: int, multiple: int = 1) -> list[int]:
    """S-tokens that issue queries in each layer and survive it: linear from L_S to L_NS, rounded up to `multiple`."""
    low, kept, now = min(l_ns, l_s), [], l_s
    for layer in range(layers):
        if pyramid == "full_first":
            exact = l_s - layer * (l_s - low) / max(layers - 1, 1)
        elif pyramid == "shrink_first":
            exact = l_s - (layer + 1) * (l_s - low) / layers
        else:
            exact = float(l_s)
        now = min(now, -(-math.floor(exact + 0.5) // multiple) * multiple)
        kept.append(now)
    return kept


def causal_mask(valid_BS: Tensor, l_ns: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, I, I]: real keys only, under the triangle if `causal`; padding sees itself, so that no
    row is blind. A layer with fewer tokens uses its lower right corner, since what is left of S is its newest end."""
    seen_BI = torch.cat([valid_BS, valid_BS.new_ones(valid_BS.shape[0], l_ns)], dim=1)
    total = seen_BI.shape[1]
    seen_BII = seen_BI.unsqueeze(1).expand(-1, total, -1)
    if causal:
        seen_BII = seen_BII & lower_right(total, total, valid_BS.device)
    seen_BII = seen_BII | torch.eye(total, dtype=torch.bool, device=valid_BS.device)
    zero = torch.zeros((), dtype=dtype, device=valid_BS.device)
    return torch.where(seen_BII, zero, -math.inf).unsqueeze(1)


def _join(s: Tensor | None, n: Tensor | None) -> Tensor:
    """S before NS along the token axis."""
    given = [t for t in (s, n) if t is not None]
    return given[0] if len(given) == 1 else torch.cat(given, dim=1)


def _xavier(*shape: int) -> nn.Parameter:
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class MixedLinear(nn.Module):
    """One weight for S-tokens, one for each NS-token, or with `tied` the one for all (ablation); no bias."""

    def __init__(self, width: int, out: int, l_ns: int, sequence: bool, tied: bool) -> None:
        super().__init__()
        self.shared_DE = _xavier(width, out) if sequence or tied else None
        self.own_NDE = None if tied else _xavier(l_ns, width, out)

    def forward(self, s_BSD: Tensor | None, n_BND: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.own_NDE is None:
            assert self.shared_DE is not None
            weight = self.shared_DE.t()
            return (
                None if s_BSD is None else linear(s_BSD, weight), None if n_BND is None else linear(n_BND, weight),
            )  # fmt: skip
        return mixed_linear(s_BSD, n_BND, self.shared_DE, self.own_NDE)


class MixedNorm(nn.Module):
    """RMS norm with one gain for all tokens, or one for S-tokens and one for each NS-token."""

    def __init__(self, width: int, l_ns: int, scope: NormScope, sequence: bool) -> None:
        super().__init__()
        self.gain_D = nn.Parameter(torch.ones(width)) if sequence or scope == "shared" else None
        self.own_ND = nn.Parameter(torch.ones(l_ns, width)) if scope == "per_token" else None

    def forward(self, s_BSD: Tensor | None, n_BND: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if s_BSD is not None:
            s_BSD = rms_norm(s_BSD, s_BSD.shape[-1:], self.gain_D, EPS)
        if n_BND is not None and self.own_ND is not None:
            n_BND = rms_norm(n_BND, n_BND.shape[-1:], None, EPS) * self.own_ND
        elif n_BND is not None:
            n_BND = rms_norm(n_BND, n_BND.shape[-1:], self.gain_D, EPS)
        return s_BSD, n_BND


class OneTransLayer(nn.Module):
    """Z = MixedMHA(RMS X) + X;  X' = MixedFFN(RMS Z) + Z, with queries of the newest `kept` S-tokens and all NS.

    Keys and values come from all tokens; residual and feed-forward part only reach the tokens that asked.

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(
        self, width: int, heads: int, l_ns: int, kept: int, *, ffn_mult: int = 4, act: Activation = "gelu",
        norm: NormScope = "shared", out_proj: OutProj = "shared", causal: bool = True, sequence: bool = True,
        tied: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width {width}; choose a divisor")
        self.heads, self.kept, self.causal = heads, kept, causal
        self.norm1 = MixedNorm(width, l_ns, norm, sequence)
        self.norm2 = MixedNorm(width, l_ns, norm, sequence)
        self.query = MixedLinear(width, width, l_ns, sequence, tied)
        self.key_value = MixedLinear(width, 2 * width, l_ns, sequence, tied)
        self.out_DD = _xavier(width, width) if out_proj == "shared" else None
        self.out = MixedLinear(width, width, l_ns, sequence, tied) if out_proj == "mixed" else None
        self.up = MixedLinear(width, ffn_mult * width, l_ns, sequence, tied)
        self.act = ACTIVATIONS[act]()
        self.down = MixedLinear(ffn_mult * width, width, l_ns, sequence, tied)

    def forward(
        self, s_BSD: Tensor | None, n_BND: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(S-tokens kept, NS-tokens); `mask` is `causal_mask`'s, None where no token is padding."""
        q_BHQd, k_BHId, v_BHId = self._project(s_BSD, n_BND)
        return self._finish(self._tail(s_BSD), n_BND, self._attend(q_BHQd, k_BHId, v_BHId, mask))

    def keys_values(self, s_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, d] of S-tokens."""
        kv_BSE, _ = self.key_value(self.norm1(s_BSD, None)[0], None)
        assert kv_BSE is not None
        k_BHSd, v_BHSd = kv_BSE.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k_BHSd, v_BHSd

    def extend(self, s_BQD: Tensor, k_BHSd: Tensor, v_BHSd: Tensor) -> Tensor:
        """What the newest Q S-tokens become, [B, Q, D], on keys and values of all S, none of them padding."""
        q_BQD, _ = self.query(self.norm1(s_BQD, None)[0], None)
        assert q_BQD is not None
        q_BHQd = q_BQD.unflatten(2, (self.heads, -1)).transpose(1, 2)
        out_BQD, _ = self._finish(s_BQD, None, attention(q_BHQd, k_BHSd, v_BHSd, causal=self.causal))
        assert out_BQD is not None
        return out_BQD

    def score(self, n_NND: Tensor, pasts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The NS side of R requests, [R*C, N, D], against keys and values [1, H, S, d] of each one's S-tokens."""
        count = n_NND.shape[0] // len(pasts)
        own = zip(*(t.split(count) for t in self._project(None, n_NND)), strict=True)
        parts = [
            prefix_attention(q_CHNd, past_k, past_v, k_CHNd, v_CHNd)
            for (q_CHNd, k_CHNd, v_CHNd), (past_k, past_v) in zip(own, pasts, strict=True)
        ]
        _, out_NND = self._finish(None, n_NND, torch.cat(parts) if len(parts) > 1 else parts[0])
        assert out_NND is not None
        return out_NND

    def _tail(self, s_BSD: Tensor | None) -> Tensor | None:
        return None if s_BSD is None else s_BSD[:, max(0, s_BSD.shape[1] - self.kept) :]

    def _project(self, s_BSD: Tensor | None, n_BND: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        s_BSD, n_BND = self.norm1(s_BSD, n_BND)
        q_BQD = _join(*self.query(self._tail(s_BSD), n_BND))
        kv_BIE = _join(*self.key_value(s_BSD, n_BND))
        q_BHQd = q_BQD.unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_BHId, v_BHId = kv_BIE.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q_BHQd, k_BHId, v_BHId

    def _attend(self, q_BHQd: Tensor, k_BHId: Tensor, v_BHId: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return attention(q_BHQd, k_BHId, v_BHId, causal=self.causal)
        return attention(q_BHQd, k_BHId, v_BHId, mask[..., -q_BHQd.shape[2] :, -k_BHId.shape[2] :])

    def _finish(
        self, s_BQD: Tensor | None, n_BND: Tensor | None, out_BHQd: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        out_BQD = out_BHQd.transpose(1, 2).flatten(2)
        if self.out_DD is not None:
            out_BQD = linear(out_BQD, self.out_DD.t())
        split = 0 if s_BQD is None else s_BQD.shape[1]
        s_out = None if s_BQD is None else out_BQD[:, :split]
        n_out = None if n_BND is None else out_BQD[:, split:]
        if self.out is not None:
            s_out, n_out = self.out(s_out, n_out)
        s_BQD, n_BND = _add(s_BQD, s_out), _add(n_BND, n_out)
        s_hidden, n_hidden = self.up(*self.norm2(s_BQD, n_BND))
        s_hidden, n_hidden = (None if h is None else self.act(h) for h in (s_hidden, n_hidden))
        s_out, n_out = self.down(s_hidden, n_hidden)
        return _add(s_BQD, s_out), _add(n_BND, n_out)


def _add(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return None if x is None or y is None else x + y


class OneTransHead(nn.Module):
    """RMS, then NS-tokens flattened (or their mean, or the last), Linear to d, GELU, Linear to 1; [B, N, D] -> [B]."""

    def __init__(self, width: int, l_ns: int, readout: Head) -> None:
        super().__init__()
        self.readout: Head = readout
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.mlp = nn.Sequential(
            Linear((l_ns if readout == "flatten" else 1) * width, width), nn.GELU(), Linear(width, 1)
        )

    def forward(self, n_BND: Tensor) -> Tensor:
        x_BND = self.norm(n_BND)
        if self.readout == "flatten":
            return self.mlp(x_BND.flatten(1)).squeeze(1)
        return self.mlp(x_BND.mean(dim=1) if self.readout == "mean" else x_BND[:, -1]).squeeze(1)


def block_flops(
    width: int, kept: Sequence[int], l_s: int, l_ns: int, valid: int | None = None, *, ffn_mult: int = 4,
    out_proj: bool = True, causal: bool = True,
) -> Flops:  # fmt: skip
    """All layers of one sample, 4d²I + (4 + 4r)d²Q + 4d·P each (models.md section 3), I = S_l + L_NS, Q = q_l + L_NS.

    Args:
        kept: q_l of each layer.
        valid: real S-tokens (the newest), all if not given; padding is no useful work.
    """
    full = visible = 0.0
    per_query = ((4 if out_proj else 2) + 4 * ffn_mult) * width**2
    inside, real = l_s, l_s if valid is None else valid
    for q in kept:
        for s, asking, useful in ((inside, q, False), (min(inside, real), min(q, real), True)):
            keys, queries = s + l_ns, asking + l_ns
            pairs = visible_pairs(queries, keys) if useful and causal else queries * keys
            total = 4 * width**2 * keys + per_query * queries + 4 * width * pairs
            full, visible = (full, visible + total) if useful else (full + total, visible)
        inside = q
    return Flops(full, visible)
