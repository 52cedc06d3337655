"""LUM's user model with semantic IDs as targets (models.md section 4.1; the form is ours, no paper is established).

An event is c, s_1, ..., s_m: its condition, then the codes of its item. Each of c, s_1, ..., s_(m-1) predicts the code
that follows, by softmax over the whole code vocabulary; there are no negatives. A question is c_q, s_1, ..., s_(m-1)
after the history: the output at c_q is the answer, and the codes of the item in question say how well it fits.

Dims: R rows, L events of a row, m codes of an item, K codes of all places together, B users, Q questions, W beams,
H heads, N tokens of a history and the question, J codes of a beam until now, d width of a token or a head
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.kernels.attention import attention, visible_pairs
from ctrbench.kernels.linear import Linear
from ctrbench.models.gpt_block import GptLayer
from ctrbench.models.histories import ordinals, questioned
from ctrbench.models.item_codes import ItemCodes
from ctrbench.models.lum_backbone import Read
from ctrbench.models.lum_fields import event_fields
from ctrbench.models.lum_masks import additive, block_mask, query_mask
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.semantic_ids import vocabulary_of
from ctrbench.models.spec import Flops

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig


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
        self.names = (self.fields.item, self.fields.cond, *self.fields.side)
        self.length = schema.histories[self.fields.history][0].max_length
        self.reads, self.beams = questioned(self.length), config.beams
        self.places = len(codes.vocabulary)
        """m."""
        self.per_event = 1 + self.places
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

    @property
    def even(self) -> float:
        """Mean log of the codes at a place: what drawing them evenly would cost."""
        return sum(math.log(k) for k in self.codes.vocabulary) / self.places

    @property
    def catalogue(self) -> int:
        """V, rows of the item table."""
        return len(self.codes.known_V)

    def sequences(self, ids: Mapping[str, Tensor], real_BL: Tensor) -> Sequences:
        """Histories as the model reads them, one user a row; events of items without an ID are left out."""
        known_BL = real_BL & self.codes.known_V[ids[self.fields.item]]
        return Sequences({n: ids[n] for n in self.names}, known_BL.long(), ordinals(known_BL))

    def run(self, x_RNd: Tensor, seen: Tensor) -> Tensor:
        """Decoder layers and final norm under a mask of bool."""
        mask = additive(seen)
        for layer in self.layers:
            x_RNd = layer(x_RNd, mask)
        return self.norm(x_RNd)

    @torch.no_grad()
    def outputs(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """(outputs [R, N, d] of all tokens of users' histories, which of them are real [R, N])."""
        out_RNd = self.run(self.tokens(sequences)[0], block_mask(sequences.segment_RL, self.per_event))
        return out_RNd, (sequences.segment_RL > 0).repeat_interleave(self.per_event, dim=1)

    def loss(self, sequences: Sequences) -> Tensor:
        """Mean cross-entropy over the predicting tokens of all real events."""
        x_RNd, code_RLm = self.tokens(sequences)
        real_RL = sequences.segment_RL > 0
        out_RNd = self.run(x_RNd, block_mask(sequences.segment_RL, self.per_event))
        state_RLd = out_RNd.unflatten(1, (-1, self.per_event))[:, :, : self.places][real_RL]
        return cross_entropy(self.head(state_RLd).flatten(0, 1), code_RLm[real_RL].flatten())

    def items(self, item_N: Tensor) -> Tensor:
        """Item tokens [N, d]: the sum of an item's code vectors, 0 without an ID."""
        codes_Nm = self.codes.codes_VL[item_N] + self.starts_m
        return self.code(codes_Nm).sum(dim=1) * self.codes.known_V[item_N].unsqueeze(1)

    def read(self, sequences: Sequences, cond_BQ: Tensor, item_B: Tensor) -> Read:
        """Step 2: Q questions about one item a user, after one shared history; a question sees it and itself.

        The match of an item with an answer is the mean over its codes of log-probability, less that of codes drawn
        evenly: 0 for an item without an ID. What a loss on the histories would need is left empty.

        Args:
            sequences: one user a row, the newest event at the right end.
            cond_BQ: condition ids; every question stands at the place after the last event.
            item_B: the item.
        """
        queries, m = cond_BQ.shape[1], self.places
        next_B1 = (sequences.segment_RL > 0).sum(dim=1, keepdim=True)
        code_Bm = self.codes.codes_VL[item_B] + self.starts_m
        asked_BQd = self.cond(cond_BQ) + self.at(next_B1, 0)
        told = [(self.code(code_Bm[:, j - 1 : j]) + self.at(next_B1, j)).expand_as(asked_BQd) for j in range(1, m)]
        own_BNd = torch.stack([asked_BQd, *told], dim=2).flatten(1, 2)
        x_BNd = torch.cat([self.tokens(sequences)[0], own_BNd], dim=1)
        out_BNd = self.run(x_BNd, query_mask(sequences.segment_RL, queries, self.per_event, m))
        out_BQmd = out_BNd[:, -queries * m :].unflatten(1, (queries, m))
        log_BQm = self.head(out_BQmd).log_softmax(dim=3).gather(3, code_Bm[:, None, :, None].expand(-1, queries, -1, 1))
        match_BQ = (log_BQm.squeeze(3).mean(dim=2) + self.even) * self.codes.known_V[item_B].unsqueeze(1)
        none = out_BNd[:0, :0]
        return Read(out_BQmd[:, :, 0], self.items(item_B), match_BQ, none, none)

    @torch.no_grad()
    def scores(self, sequences: Sequences, cond_B: Tensor) -> Tensor:
        """Log-probability [B, V] of the items that `beams` of them end at, -inf for the rest."""
        return self.codes.scores(self.search(sequences, cond_B, self.beams))

    def ask(self, sequences: Sequences, cond_B: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        """One question a user, after the newest event at the right end, with what a search goes on from.

        Returns:
            hidden states [B, d] at the asked condition, keys and values [B, H, N, d] of each layer, and the mask
            [B, 1, 1, N] of what a token behind the question sees.
        """
        next_B = (sequences.segment_RL > 0).sum(dim=1)
        asked_B1d = (self.cond(cond_B) + self.at(next_B, 0)).unsqueeze(1)
        x_BNd = torch.cat([self.tokens(sequences)[0], asked_B1d], dim=1)
        mask = additive(query_mask(sequences.segment_RL, 1, self.per_event))
        kept = []
        for layer in self._stack():
            q_BHNd, k_BHNd, v_BHNd = layer.parts(x_BNd)
            kept.append((k_BHNd, v_BHNd))
            x_BNd = layer.after(x_BNd, attention(q_BHNd, k_BHNd, v_BHNd, mask))
        return self.norm(x_BNd[:, -1]), kept, mask[:, :, -1:]

    @torch.no_grad()
    def search(self, sequences: Sequences, cond_B: Tensor, beams: int) -> tuple[Tensor, Tensor]:
        """(log-probability [B, W], item [B, W]) of the best items under a condition; see `Trie.search`."""
        answer_Bd, kept, mask = self.ask(sequences, cond_B)
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


def sid_flops(config: LumConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None = None) -> Flops:
    """Steps 1 and 2 of one user: L(1 + m) + Qm tokens through 24d² a layer, attention, 2dK for each of a question's."""
    roles, sizes = event_fields(schema, config.cond), vocabulary_of(config.sids)
    longest = questioned(schema.histories[roles.history][0].max_length)
    m, d, q = len(sizes), config.width, config.queries

    def count(events: int, full: bool) -> float:
        history = events * (1 + m)
        tokens = history + q * m
        pairs = tokens**2 if full else visible_pairs(history, history) + q * (m * history + visible_pairs(m, m))
        return config.layers * (24.0 * d * d * tokens + 4.0 * d * pairs) + 2.0 * d * sum(sizes) * q * m

    return Flops(count(longest, True), count(min(longest, (lengths or {}).get(roles.history, longest)), False))
