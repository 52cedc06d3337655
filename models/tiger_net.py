"""TIGER's network: the semantic ID of the next item, code by code, from a user's history of such codes (2305.05065).

An encoder reads a token for the user and the codes of each item in the history; a decoder writes the codes of the next
one. Beam search along a trie of the catalogue gives real items only.

Dims: B batch, N encoder tokens, D width, L codes of an item (with the one that tells collisions apart), W beams
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ctrbench.kernels.linear import Linear
from ctrbench.models.residual_codes import SidOptions
from ctrbench.models.tiger_layers import DecoderLayer, DistanceBias, EncoderLayer, Norm, Past
from ctrbench.models.trie import Trie


@dataclass(frozen=True, kw_only=True, slots=True)
class TigerConfig(SidOptions):
    """Defaults are the `small` preset."""

    width: int = 32
    layers: int = 2
    """Of the encoder, and as many of the decoder."""
    heads: int = 2
    head: int = 16
    """Width of a head; all heads together need not be as wide as the tokens."""
    hidden: int = 64
    users: int = 2000
    """User tokens that user ids are hashed to; 0: no user token."""
    tie: bool = True
    """The output layer is the token table, as in T5."""
    dropout: float = 0.0
    history: int = 20
    """Most items that the encoder reads."""
    targets: int = 16
    """Events of a user that one training step predicts, drawn anew each time."""
    beams: int = 50
    """Kept at each place of the search along the trie; a retrieval needs K and the seen items among them."""

    def __post_init__(self) -> None:
        for name in ("history", "targets", "beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")


class Tiger(nn.Module):
    """Encoder and decoder over codes.

    Args:
        config: sizes.
        vocabulary: codes of each place of a semantic ID; every place has tokens of its own.
    """

    def __init__(self, config: TigerConfig, vocabulary: Sequence[int]) -> None:
        super().__init__()
        self.config, self.vocabulary = config, tuple(vocabulary)
        self.starts = tuple(accumulate(vocabulary[:-1], initial=1 + config.users))
        """First token of each place."""
        self.starts_L: Tensor
        self.register_buffer("starts_L", torch.tensor(self.starts), persistent=False)
        tokens = 1 + config.users + sum(vocabulary)  # 0 is padding, and the decoder's first token
        sizes = (config.width, config.heads, config.head, config.hidden, config.dropout)
        self.tokens = nn.Embedding(tokens, config.width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.encoder_bias = DistanceBias(config.heads, both_sides=True)
        self.decoder_bias = DistanceBias(config.heads, both_sides=False)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.layers))
        self.encoder_norm, self.decoder_norm = Norm(config.width), Norm(config.width)
        self.head = None if config.tie else Linear(config.width, tokens, bias=False)

    # ---------------------------------------------------------------- encoder

    def inputs(self, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens [B, N], which are real): the user's, then the codes of the history, oldest first."""
        tokens_BN = (codes_BTL + self.starts_L).flatten(1)
        real_BN = real_BT.repeat_interleave(codes_BTL.shape[2], dim=1)
        if self.config.users:
            user_B1 = 1 + user_B.remainder(self.config.users).unsqueeze(1)
            tokens_BN = torch.cat([user_B1, tokens_BN], dim=1)
            real_BN = pad(real_BN, (1, 0), value=True)
        return tokens_BN * real_BN, real_BN

    def encode(self, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor) -> tuple[list[Past], Tensor]:
        """(keys and values of the output for each decoder layer, the mask that goes with them)."""
        tokens_BN, real_BN = self.inputs(user_B, codes_BTL, real_BT)
        x_BND = self.tokens(tokens_BN)
        mask_B11N = torch.zeros(real_BN.shape, dtype=x_BND.dtype, device=x_BND.device).masked_fill(~real_BN, -math.inf)
        mask_B11N = mask_B11N[:, None, None]
        bias = self.encoder_bias(x_BND.shape[1], x_BND.shape[1]) + mask_B11N
        for layer in self.encoder:
            x_BND = layer(x_BND, bias)
        x_BND = self.encoder_norm(x_BND)
        return [layer.cross.keys(x_BND) for layer in cast(Iterable[DecoderLayer], self.decoder)], mask_B11N

    # ---------------------------------------------------------------- decoder

    def decode(
        self, tokens_BQ: Tensor, memory: tuple[list[Past], Tensor], past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(states [B, Q, D], keys and values of the tokens until now).

        Args:
            tokens_BQ: the first is 0. Its rows may be a multiple of the memory's: beams of a user side by side.
            memory: of `encode`.
            past: of the call before, whose tokens are not repeated.
        """
        x_BQD = self.tokens(tokens_BQ)
        start = 0 if past is None else past[0][0].shape[2]
        queries, keys = x_BQD.shape[1], start + x_BQD.shape[1]
        later = torch.ones(queries, keys, dtype=torch.bool, device=x_BQD.device).triu(start + 1)
        bias = self.decoder_bias(queries, keys, start).masked_fill(later, -math.inf)
        kept = []
        for i, layer in enumerate(self.decoder):
            x_BQD, own = layer(x_BQD, bias, memory[0][i], memory[1], None if past is None else past[i])
            kept.append(own)
        return self.decoder_norm(x_BQD), kept

    def scores(self, state_BD: Tensor, place: int) -> Tensor:
        """Scores of the codes of a place; the other rows of the token table take no part."""
        begin = self.starts[place]
        if self.head is None:
            return state_BD * self.config.width**-0.5 @ self.tokens.weight[begin : begin + self.vocabulary[place]].t()
        return state_BD @ self.head.weight[begin : begin + self.vocabulary[place]].t()

    def loss(self, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor, next_BL: Tensor) -> Tensor:
        """Mean cross-entropy of the next item's codes, each among the codes of its place."""
        given_BL = pad((next_BL + self.starts_L)[:, :-1], (1, 0))
        state_BLD, _ = self.decode(given_BL, self.encode(user_B, codes_BTL, real_BT))
        places = enumerate(zip(state_BLD.unbind(1), next_BL.unbind(1), strict=True))
        return torch.stack([cross_entropy(self.scores(state, at), code) for at, (state, code) in places]).mean()

    @torch.no_grad()
    def search(
        self, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor, trie: Trie, beams: int
    ) -> tuple[Tensor, Tensor]:
        """(log-probability [B, W], item of the trie [B, W]), best first; see `Trie.search`."""
        memory = self.encode(user_B, codes_BTL, real_BT)
        past: list[Past] | None = None

        def step(place: int, parent_BW: Tensor, code_BW: Tensor) -> Tensor:
            nonlocal past
            rows, width = code_BW.shape
            tokens_B1 = (code_BW + self.starts[place - 1]).view(-1, 1) if place else code_BW * 0
            if past is not None:
                before = past[0][0].shape[0] // rows
                at = (parent_BW + before * torch.arange(rows, device=parent_BW.device).unsqueeze(1)).flatten()
                past = [(k[at], v[at]) for k, v in past]
            state_B1D, past = self.decode(tokens_B1, memory, past)
            return self.scores(state_B1D[:, 0], place).log_softmax(dim=1).view(rows, width, -1)

        return trie.search(step, len(user_B), beams, user_B.device)
