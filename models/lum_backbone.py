"""The user model of LUM (2502.08309): condition and item tokens through a causal transformer, trained by InfoNCE.

A history of L events becomes (c_1, i_1, ..., c_L, i_L): the condition of an event (its category) comes before its
item. Only condition positions predict, each the item that follows it. Without conditions (an ablation) it becomes
(s, i_1, ..., i_L-1): a learned start, then items alone, each position predicting the next item: the same L targets.

Dims: R rows, L events of a row, N real events of a batch, U different items of a batch, Q queries, B users, d width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.kernels.linear import Linear, linear
from ctrbench.models.embedding import EmbeddingTables, TableConfig
from ctrbench.models.gpt_block import GptLayer
from ctrbench.models.histories import ordinals, questioned
from ctrbench.models.lum_fields import EventFields, Positions, Similarity, UserModelConfig, event_fields
from ctrbench.models.lum_masks import additive, block_mask, query_mask
from ctrbench.models.lum_rows import Sequences, Targets, targets_of

__all__ = ["EventFields", "Read", "UserModel", "UserModelConfig", "event_fields"]


class Read(NamedTuple):
    """What the user model makes of histories and questions."""

    answers_BQd: Tensor
    item_Bd: Tensor
    """Item tokens that were asked for; empty without."""
    match_BQ: Tensor
    """How well the item fits each answer; empty without."""
    predicting_BLd: Tensor
    """Output of the position that predicts each event of the history."""
    item_BLx: Tensor
    """Table rows of the history's items."""


class UserModel(nn.Module):
    """Tables, token maps, positions and decoder layers.

    Args:
        fields: roles of the event fields.
        schema: for the table sizes.
        dim: embedding width; `width`: token width d; `length`: most events of a history.
        similarity, tau: of the InfoNCE loss; `logq`: subtract the log share of an item among the batch's events.
        positions: `token` numbers the 2L tokens, `pair` the L events.
        condition: whether a condition token precedes each item; without, `positions` means nothing.
    """

    def __init__(
        self, fields: EventFields, schema: FeatureSchema, *, dim: int, width: int, layers: int, heads: int,
        length: int, similarity: Similarity, tau: float, logq: bool, positions: Positions, tables: TableConfig,
        device: str, condition: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.fields, self.similarity, self.tau, self.logq, self.positions = fields, similarity, tau, logq, positions
        self.reads = questioned(length)
        self.per_event = 2 if condition else 1
        self.names = (fields.item, *((fields.cond,) if condition else ()), *fields.side)
        rows = {schema[n].table: schema[schema[n].table].cardinality for n in self.names}
        self.tables = EmbeddingTables(
            [
                EmbeddingConfig(
                    name=t, embedding_dim=dim, num_embeddings=r,
                    feature_names=[n for n in self.names if schema[n].table == t],
                )
                for t, r in rows.items()
            ],
            tables, device, self.names,
        )  # fmt: skip
        self.item_map, self.cond_map = Linear(dim, width), Linear(dim, width) if condition else None
        self.start_d = None if condition else nn.Parameter(0.02 * torch.randn(width))
        self.side_map = Linear(dim * len(fields.side), width, bias=False) if fields.side else None
        by_token = condition and positions == "token"
        self.place = nn.Embedding(2 * length + 1 if by_token else length + 1, width)
        nn.init.normal_(self.place.weight, std=0.02)
        self.layers = nn.ModuleList(GptLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    @property
    def catalogue(self) -> int:
        """V, rows of the item table."""
        return self.tables.rows[self.tables.table_of[self.fields.item]]

    def sequences(self, ids: Mapping[str, Tensor], real_BL: Tensor) -> Sequences:
        """Histories as the model reads them, one user a row."""
        return Sequences({n: ids[n] for n in self.names}, real_BL.long(), ordinals(real_BL))

    def rows(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Table rows of flat ids, field by field, in one lookup: name -> [n] gives name -> [n, dim]."""
        flat = [ids[n] for n in self.names]
        counts = [t.numel() for t in flat]
        keyed = KeyedJaggedTensor(
            keys=list(self.names), values=torch.cat(flat), stride=1, length_per_key=counts,
            lengths=torch.tensor(counts, dtype=torch.int32, device=flat[0].device),
        )  # fmt: skip
        looked_up = self.tables(keyed)
        assert isinstance(looked_up, dict)
        return {n: looked_up[n].values()[:, : self.tables.width] for n in self.names}

    def items(self, item_N: Tensor) -> Tensor:
        """Item tokens [N, d] of ids, as they are predicted and scored."""
        ids = dict.fromkeys(self.names, item_N[:0]) | {self.fields.item: item_N}
        return self.item_map(self.rows(ids)[self.fields.item])

    def token(self, rows: Mapping[str, Tensor], place_RL: Tensor) -> Tensor:
        """Tokens [R, 2L, d] (L without conditions) of table rows [R*L, dim] and places [R, L]."""
        item = self.item_map(rows[self.fields.item])
        if self.side_map is not None:
            item = item + self.side_map(torch.cat([rows[n] for n in self.fields.side], dim=1))
        if self.cond_map is None:
            assert self.start_d is not None
            # What predicts an event is the item before it; a user's first event, and padding, stand at place 0.
            before_RLd = item.view(*place_RL.shape, -1).roll(1, dims=1)
            return torch.where((place_RL == 0).unsqueeze(-1), self.start_d, before_RLd) + self.place(place_RL)
        cond = self.cond_map(rows[self.fields.cond])
        x = torch.stack([cond, item], dim=1).unflatten(0, place_RL.shape)
        return (x + self.place(self._places(place_RL))).flatten(1, 2)

    def _places(self, place_RL: Tensor) -> Tensor:
        if self.positions == "pair":
            return torch.stack([place_RL, place_RL], dim=-1)
        return torch.stack([2 * place_RL, 2 * place_RL + 1], dim=-1)

    def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Decoder layers and final norm; None is causal without padding."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def states(self, rows: Mapping[str, Tensor], sequences: Sequences) -> Tensor:
        """Outputs of all tokens, [R, 2L, d] (L without conditions)."""
        x = self.token(rows, sequences.place_RL)
        return self.run(x, additive(block_mask(sequences.segment_RL, self.per_event)))

    @torch.no_grad()
    def outputs(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """(outputs [R, N, d] of all tokens of users' histories, which of them are real [R, N])."""
        if self.cond_map is None:  # an event's item is the input of the place after it
            sequences = sequences.one_more()
        out = self.states(self.rows({n: sequences.ids[n].flatten() for n in self.names}), sequences)
        return out, (sequences.segment_RL > 0).repeat_interleave(self.per_event, dim=1)

    @torch.no_grad()
    def scores(self, sequences: Sequences, cond_B: Tensor) -> Tensor:
        """Similarity [B, V] of the answer to one question a user with every item token; -inf for what is no item."""
        answer_Bd = self.answers(sequences, cond_B.unsqueeze(1))[0][:, 0]
        every_Vd = self.items(torch.arange(self.catalogue, device=answer_Bd.device))
        return pad(self.score(answer_Bd, every_Vd)[:, FIRST_ID:], (FIRST_ID, 0), value=-torch.inf)

    def score(self, out: Tensor, item_map: Tensor, scale: float = 1.0) -> Tensor:
        """s(o, e) times `scale`, which the smaller operand takes: passes over all scores are what a loss waits for."""
        if self.similarity == "cosine":
            out, item_map = normalize(out, dim=-1), normalize(item_map, dim=-1)
        if scale != 1.0:
            out = out * scale
        return linear(out, item_map) if item_map.dim() == 2 else out @ item_map.transpose(-1, -2)

    def loss(self, sequences: Sequences, targets: Targets | None = None) -> Tensor:
        """InfoNCE of every real event's predicting position against the different items of the batch, their mean.

        `targets` are worked out here unless the batch brings them.
        """
        found = targets or targets_of(sequences, self.fields.item)
        flat = {n: sequences.ids[n].flatten() for n in self.names}
        # One lookup for tokens and candidates: a second one would be a second optimizer step on the same rows.
        flat[self.fields.item] = torch.cat([flat[self.fields.item], found.item_U])
        rows = self.rows(flat)
        tokens = sequences.segment_RL.numel()
        candidates_Ud = self.item_map(rows[self.fields.item][tokens:])
        rows[self.fields.item] = rows[self.fields.item][:tokens]
        return self.info_nce(self.states(rows, sequences)[:, :: self.per_event], candidates_Ud, found)

    def info_nce(self, predicting_RLd: Tensor, candidates_Ud: Tensor, found: Targets) -> Tensor:
        """InfoNCE of the real events among `predicting_RLd` against the tokens of `found.item_U`."""
        out_Nd = predicting_RLd.flatten(0, 1)[found.real_N]
        logits_NU = self.score(out_Nd, candidates_Ud, 1 / self.tau)
        logits_NU = logits_NU.to(torch.promote_types(logits_NU.dtype, torch.float32))
        if self.logq:
            logits_NU = logits_NU - torch.log(found.count_U / found.real_N.numel())
        return cross_entropy(logits_NU, found.index_N)

    def answers(self, sequences: Sequences, cond_BQ: Tensor, item_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Group query: all conditions of a user after one shared history, each sees the history and itself.

        Args:
            sequences: one user a row, the newest event at the right end.
            cond_BQ: condition ids; every query stands at the place after the last event. Without conditions they are
                not read, and the one answer (Q = 1) is what would predict one more event.
            item_B: items whose tokens are wanted too.

        Returns:
            answers [B, Q, d] and item tokens [B, d] (empty without `item_B`).
        """
        read = self.read(sequences, cond_BQ, item_B)
        return read.answers_BQd, read.item_Bd

    def read(self, sequences: Sequences, cond_BQ: Tensor, item_B: Tensor | None = None) -> Read:
        """As `answers`, with what a loss on the histories needs."""
        (batch, queries), length = cond_BQ.shape, sequences.segment_RL.shape[1]
        if self.cond_map is None:
            sequences = sequences.one_more()
        flat = {n: sequences.ids[n].flatten() for n in self.names}
        tokens = sequences.segment_RL.numel()
        if self.cond_map is not None:
            flat[self.fields.cond] = torch.cat([flat[self.fields.cond], cond_BQ.flatten()])
        if item_B is not None:
            flat[self.fields.item] = torch.cat([flat[self.fields.item], item_B])
        rows = self.rows(flat)
        wanted = self.item_map(rows[self.fields.item][tokens:])
        history = {n: r[:tokens] for n, r in rows.items()}
        item_BLx = history[self.fields.item].view(batch, -1, self.tables.width)[:, :length]
        if self.cond_map is None:
            out = self.states(history, sequences)
            return self._read(out[:, -1:], wanted, out[:, :-1], item_BLx)
        asked = self.cond_map(rows[self.fields.cond][tokens:]).view(batch, queries, -1)
        next_B = (sequences.segment_RL > 0).sum(dim=1)
        place_B = 2 * next_B if self.positions == "token" else next_B
        asked = asked + self.place(place_B).unsqueeze(1)
        x = torch.cat([self.token(history, sequences.place_RL), asked], dim=1)
        out = self.run(x, additive(query_mask(sequences.segment_RL, queries)))
        return self._read(out[:, -queries:], wanted, out[:, :-queries:2], item_BLx)

    def _read(self, answers_BQd: Tensor, item_Bd: Tensor, predicting_BLd: Tensor, item_BLx: Tensor) -> Read:
        match_BQ = self.score(answers_BQd, item_Bd.unsqueeze(1)).squeeze(2) if len(item_Bd) else answers_BQd[:0, :, 0]
        return Read(answers_BQd, item_Bd, match_BQ, predicting_BLd, item_BLx)
