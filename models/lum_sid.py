"""LUM's user model with semantic IDs as targets (models.md section 4.1; the form is ours, no paper is established).

An event is c, s_1, ..., s_m: its condition, then the codes of its item. Each of c, s_1, ..., s_(m-1) predicts the code
that follows, by softmax over the whole code vocabulary; there are no negatives.

Dims: R rows, L events of a row, m codes of an item, K codes of all places together, B users, T padded history length,
W beams, H heads, N tokens of a history and the question, J codes of a beam until now, d width of a token or a head
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.kernels.attention import attention
from ctrbench.kernels.linear import Linear
from ctrbench.models.cards import fixed
from ctrbench.models.gpt_block import GptLayer
from ctrbench.models.histories import ordinals
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum_backbone import additive, block_mask, event_fields, query_mask
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.residual_codes import SidOptions
from ctrbench.models.retriever import Asked, Catalogue, Histories
from ctrbench.models.spec import CardRow

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig


Target = Literal["item", "sid"]


@dataclass(frozen=True, kw_only=True)
class SidTarget(SidOptions):
    """What LUM's first step predicts."""

    target: Target = "item"
    """`sid`: the codes of the item's semantic ID; such a user model retrieves, and has no answers for a ranker."""
    beams: int = 50
    """Of a retrieval with `target=sid`; as many as there are items scores all of them."""

    def __post_init__(self) -> None:
        if self.target not in ("item", "sid") or self.beams < 1:
            raise ValueError(f"target={self.target!r}: choose item or sid; beams={self.beams}: at least 1")


def target_row(config: SidTarget) -> CardRow:
    """The card's row of the target."""
    note = "sid (TaoSID) is our form: codes one by one under the condition, softmax over all codes, no negatives"
    known = config.target == "item"
    return fixed("target of step 1", "faithful" if known else "unknown", "4.1" if known else "n/k", note,
                 f"target={config.target}")  # fmt: skip


class SidUserModel(nn.Module):
    """Tokens, causal decoder and the head over codes; every table is dense and Adam's.

    Side information of an event (its action) joins the last code's token, the only one that predicts nothing: when
    an item is looked for it is not known.

    Args:
        config: sizes, condition and positions; `dim`, similarity, `tau` and `logq` have no part in this form.
        schema: for the event fields and the longest history.
        codes: of the catalogue.
    """

    def __init__(self, config: LumConfig, schema: FeatureSchema, codes: ItemCodes) -> None:
        super().__init__()
        self.fields, self.codes, self.positions = event_fields(schema, config.cond), codes, config.positions
        self.length = schema.histories[self.fields.history][0].max_length
        self.places = len(codes.vocabulary)
        """m."""
        self.starts = tuple(accumulate(codes.vocabulary[:-1], initial=0))
        self.starts_m: Tensor
        self.register_buffer("starts_m", torch.tensor(self.starts), persistent=False)
        width = config.width
        self.cond = nn.Embedding(schema[schema[self.fields.cond].table].cardinality, width)
        self.side = nn.ModuleDict(
            {n: nn.Embedding(schema[schema[n].table].cardinality, width) for n in self.fields.side}
        )
        self.code = nn.Embedding(sum(codes.vocabulary), width)
        self.place = nn.Embedding((self.length + 1) * (1 + self.places if self.positions == "token" else 1), width)
        for table in (self.cond, self.code, self.place, *self.side.values()):
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(GptLayer(width, config.heads) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(width), Linear(width, sum(codes.vocabulary))

    def at(self, event: Tensor, token: int) -> Tensor:
        """Position vector of the token `token` (0: the condition) of an event of that ordinal."""
        return self.place(event * (1 + self.places) + token if self.positions == "token" else event)

    def tokens(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """(tokens [R, L(1+m), d], code tokens of the items [R, L, m])."""
        code_RLm = self.codes.codes_VL[sequences.ids[self.fields.item]] + self.starts_m
        parts = [self.cond(sequences.ids[self.fields.cond]), *self.code(code_RLm).unbind(2)]
        for name, table in self.side.items():
            parts[-1] = parts[-1] + table(sequences.ids[name])
        placed = [part + self.at(sequences.place_RL, token) for token, part in enumerate(parts)]
        return torch.stack(placed, dim=2).flatten(1, 2), code_RLm

    def loss(self, sequences: Sequences) -> Tensor:
        """Mean cross-entropy over the predicting tokens of all real events."""
        x_RNd, code_RLm = self.tokens(sequences)
        # A mask of another type than the queries is misread by the CPU's fused attention, without an error.
        mask = additive(block_mask(sequences.segment_RL, 1 + self.places)).to(x_RNd.dtype)
        for layer in self.layers:
            x_RNd = layer(x_RNd, mask)
        real_RL = sequences.segment_RL > 0
        state_RLd = x_RNd.unflatten(1, (-1, 1 + self.places))[:, :, : self.places][real_RL]
        return cross_entropy(self.head(self.norm(state_RLd)).flatten(0, 1), code_RLm[real_RL].flatten())

    def answers(self, sequences: Sequences, cond_B: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        """Step 2: one question a user, after the newest event at the right end.

        Returns:
            hidden states [B, d] at the asked condition, keys and values [B, H, N, d] of each layer, and the mask
            [B, 1, 1, N] of what a token behind the question sees.
        """
        next_B = (sequences.segment_RL > 0).sum(dim=1)
        asked_B1d = (self.cond(cond_B) + self.at(next_B, 0)).unsqueeze(1)
        x_BNd = torch.cat([self.tokens(sequences)[0], asked_B1d], dim=1)
        mask = additive(query_mask(sequences.segment_RL, 1, 1 + self.places)).to(x_BNd.dtype)
        kept = []
        for layer in self._stack():
            q_BHNd, k_BHNd, v_BHNd = layer.parts(x_BNd)
            kept.append((k_BHNd, v_BHNd))
            x_BNd = layer.after(x_BNd, attention(q_BHNd, k_BHNd, v_BHNd, mask))
        return self.norm(x_BNd[:, -1]), kept, mask[:, :, -1:]

    @torch.no_grad()
    def search(self, sequences: Sequences, cond_B: Tensor, beams: int) -> tuple[Tensor, Tensor]:
        """(log-probability [B, W], item [B, W]) of the best items under a condition; see `Trie.search`."""
        answer_Bd, kept, mask = self.answers(sequences, cond_B)
        next_B1 = (sequences.segment_RL > 0).sum(dim=1, keepdim=True)
        past: list[tuple[Tensor, Tensor]] = []

        def step(place: int, parent_BW: Tensor, code_BW: Tensor) -> Tensor:
            nonlocal past
            state_BWd = answer_Bd.unsqueeze(1)
            if place:
                x_BWd = self.code(code_BW + self.starts[place - 1]) + self.at(next_B1, place)
                past = [(_beams(k, parent_BW), _beams(v, parent_BW)) for k, v in past]
                x_BWd, past = self._continue(x_BWd, kept, mask, past)
                state_BWd = self.norm(x_BWd)
            log_BWK = self.head(state_BWd).log_softmax(dim=2)
            return log_BWK[:, :, self.starts[place] : self.starts[place] + self.codes.vocabulary[place]]

        return self.codes.trie.search(step, len(cond_B), beams, cond_B.device)

    def _continue(
        self, x_BWd: Tensor, kept: list[tuple[Tensor, Tensor]], mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """One more token a beam: it sees history and question, shared by the beams, and the codes of its own beam."""
        out = []
        for at, layer in enumerate(self._stack()):
            q_BHWd, *own = (t.unsqueeze(3) for t in layer.parts(x_BWd))
            k_BHWJd, v_BHWJd = (torch.cat([past[at][i], t], dim=3) if past else t for i, t in enumerate(own))
            out.append((k_BHWJd, v_BHWJd))
            shared_BHWN = q_BHWd.squeeze(3) @ kept[at][0].transpose(2, 3) / math.sqrt(q_BHWd.shape[-1]) + mask
            own_BHWJ = (q_BHWd * k_BHWJd).sum(dim=4) / math.sqrt(q_BHWd.shape[-1])
            weights = torch.cat([shared_BHWN, own_BHWJ], dim=3).softmax(dim=3)
            n = shared_BHWN.shape[3]
            read_BHWd = weights[..., :n] @ kept[at][1] + (weights[..., n:].unsqueeze(4) * v_BHWJd).sum(dim=3)
            x_BWd = layer.after(x_BWd, read_BHWd)
        return x_BWd, out

    def _stack(self) -> list[GptLayer]:
        return [layer for layer in self.layers if isinstance(layer, GptLayer)]


def _beams(own_BHWJd: Tensor, parent_BW: Tensor) -> Tensor:
    """What the beams continue, in their order."""
    at = parent_BW[:, None, :, None, None].expand(-1, own_BHWJd.shape[1], -1, *own_BHWJd.shape[3:])
    return own_BHWJd.gather(2, at)


class SidRetriever(nn.Module):
    """The user model on semantic IDs, asked under the condition of the event looked for."""

    def __init__(
        self, config: LumConfig, schema: FeatureSchema, catalogue: Catalogue, device: str | None = None
    ) -> None:
        super().__init__()
        codes = ItemCodes(catalogue, config.sids)
        self.beams, self.facts = config.beams, codes.facts
        with torch.device(device) if device else nullcontext():
            self.user = SidUserModel(config, schema, codes)
        codes.to(self.user.head.weight.device)

    def sequences(self, histories: Histories) -> Sequences:
        """The events as the user model reads them, cut into rows that it has positions for, the newest at the end.

        Events of items without an ID are left out. Rows that hold no event at all stay, so that users keep their place:
        rows [B * pieces, L], the newest piece of every user first.
        """
        length = self.user.length
        pieces = max(1, -(-histories.real_BT.shape[1] // length))
        short = pieces * length - histories.real_BT.shape[1]
        real_BT = histories.real_BT & self.user.codes.known_V[histories.ids[self.user.fields.item]]

        def cut(t_BT: Tensor) -> Tensor:
            return pad(t_BT, (short, 0)).unflatten(1, (pieces, length)).flip(1).transpose(0, 1).flatten(0, 1)

        real_RL = cut(real_BT)
        names = (self.user.fields.item, self.user.fields.cond, *self.user.fields.side)
        return Sequences({n: cut(histories.ids[n]) for n in names}, real_RL.long(), ordinals(real_RL))

    def loss(self, histories: Histories) -> Tensor:
        """Mean cross-entropy of the codes of every event under its condition."""
        rows = self.sequences(histories)
        return self.user.loss(rows.take((rows.segment_RL > 0).any(dim=1)))

    @torch.no_grad()
    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        """Log-probability [B, V] of the items that the beams end at, -inf for the rest."""
        users = len(asked.cond_B)
        newest = self.sequences(histories).take(torch.arange(users, device=asked.cond_B.device))
        return self.user.codes.scores(self.user.search(newest, asked.cond_B, self.beams))
