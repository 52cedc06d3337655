"""TIGER: the semantic ID of the next item, code by code, from a user's history of such codes (2305.05065).

An encoder reads a token for the user and the codes of each item in the history; a decoder writes the codes of the next
one. Beam search along a trie of the catalogue gives real items only.

Dims: B batch, N encoder tokens, I items, L codes of an item (with the one that tells collisions apart), V tokens of the
vocabulary, W beams
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctrbench.kernels.linear import Linear
from ctrbench.models.tiger_layers import DecoderLayer, DistanceBias, EncoderLayer, Norm, Past


@dataclass(frozen=True, kw_only=True, slots=True)
class TigerConfig:
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


class Trie:
    """Codes that may follow a beginning, for the items of a catalogue.

    Args:
        codes_IL: codes of every item, no two alike.

    Raises:
        ValueError: two items have the same codes.
    """

    def __init__(self, codes_IL: Tensor) -> None:
        rows = [tuple(row) for row in codes_IL.tolist()]
        self.item = {row: i for i, row in enumerate(rows)}
        if len(self.item) < len(rows):
            raise ValueError("two items share all their codes: resolve collisions first (collision=append)")
        after: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for row in rows:
            for n in range(len(row)):
                after[row[:n]].add(row[n])
        self.after = {begun: sorted(codes) for begun, codes in after.items()}


class Tiger(nn.Module):
    """Encoder and decoder over codes.

    Args:
        config: sizes.
        vocabulary: codes of each place of a semantic ID; every place has tokens of its own.
    """

    def __init__(self, config: TigerConfig, vocabulary: Sequence[int]) -> None:
        super().__init__()
        self.config, self.vocabulary = config, tuple(vocabulary)
        starts = torch.tensor([1 + config.users, *vocabulary[:-1]]).cumsum(0)
        self.starts_L: Tensor
        self.register_buffer("starts_L", starts, persistent=False)
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
            real_BN = torch.nn.functional.pad(real_BN, (1, 0), value=True)
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
        """(scores of all tokens [B, Q, V], keys and values of the tokens until now).

        Args:
            tokens_BQ: the first is 0.
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
        x_BQD = self.decoder_norm(x_BQD)
        if self.head is not None:
            return self.head(x_BQD), kept
        return x_BQD * self.config.width**-0.5 @ self.tokens.weight.t(), kept

    def loss(self, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor, next_BL: Tensor) -> Tensor:
        """Mean cross-entropy of the next item's codes, each among the codes of its place."""
        target_BL = next_BL + self.starts_L
        given_BL = torch.nn.functional.pad(target_BL[:, :-1], (1, 0))
        scores_BLV, _ = self.decode(given_BL, self.encode(user_B, codes_BTL, real_BT))
        parts = [
            cross_entropy(scores_BLV[:, place, start : start + n], next_BL[:, place])
            for place, (start, n) in enumerate(zip(self.starts_L.tolist(), self.vocabulary, strict=True))
        ]
        return torch.stack(parts).mean()

    @torch.no_grad()
    def search(
        self, user_B: Tensor, codes_BTL: Tensor, real_BT: Tensor, trie: Trie | None, beams: int
    ) -> list[list[tuple[float, tuple[int, ...]]]]:
        """For each row (log-probability, codes) of the best sequences, best first.

        Args:
            user_B, codes_BTL, real_BT: as of `loss`.
            trie: of the catalogue; None: any codes, real items or not.
            beams: W.
        """
        out = []
        for b in range(len(user_B)):
            memory = self.encode(user_B[b : b + 1], codes_BTL[b : b + 1], real_BT[b : b + 1])
            out.append(self._beams(memory, trie, beams))
        return out

    def _beams(
        self, memory: tuple[list[Past], Tensor], trie: Trie | None, beams: int
    ) -> list[tuple[float, tuple[int, ...]]]:
        live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        tokens_W1 = torch.zeros(1, 1, dtype=torch.long, device=memory[1].device)
        past: list[Past] | None = None
        for start, n in zip(self.starts_L.tolist(), self.vocabulary, strict=True):
            width = len(live)
            shared = [(k.expand(width, -1, -1, -1), v.expand(width, -1, -1, -1)) for k, v in memory[0]]
            scores_W1V, past = self.decode(tokens_W1, (shared, memory[1]), past)
            log_WK = scores_W1V[:, -1, start : start + n].double().log_softmax(dim=1).tolist()
            found = [
                (score + log_WK[w][code], w, (*begun, code))
                for w, (score, begun) in enumerate(live)
                for code in (range(n) if trie is None else trie.after[begun])
            ]
            found = sorted(found, key=lambda f: (-f[0], f[2]))[:beams]
            live = [(score, codes) for score, _, codes in found]
            chosen = torch.tensor([w for _, w, _ in found], device=tokens_W1.device)
            past = [(k[chosen], v[chosen]) for k, v in past]
            tokens_W1 = torch.tensor([[codes[-1] + start] for _, codes in live], device=tokens_W1.device)
        return live
