"""A user's history in LUM's user models, run once, and questions asked behind it (2502.08309 sections 4.2 and 4.4).

A question sees the history and itself, nobody sees it: keys and values of the history serve any number of questions,
now and, as long as no event leaves the window, after events were appended.

Dims: R users, L events, N tokens of a history, U questions or blocks of tokens, m tokens of a block, H heads, D width
of a token, d width of a head
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from ctrbench.kernels.attention import attention, lower_right
from ctrbench.models.gpt_block import GptLayer
from ctrbench.models.lum_backbone import UserModel
from ctrbench.models.lum_masks import additive, block_mask
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.table_lookups import one_id_each

SCORES_AT_ONCE = 1 << 23
"""Attention scores of questions held at a time: 32 MiB."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a history leaves for questions behind it."""

    keys: tuple[Tensor, ...]
    """[R, H, N, d] a layer."""
    values: tuple[Tensor, ...]
    hidden_RN: Tensor | None
    """True on padding; None without any."""
    next_R: Tensor
    """Ordinal of the event behind the newest one."""
    start_RD: Tensor | None = None
    """Without conditions: the one question there is."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))


def side_by_side(kept: Sequence[Kept]) -> Kept:
    """Histories without padding, one user each, as R users, padded on the left."""
    if len(kept) == 1:
        return kept[0]
    most = max(k.keys[0].shape[2] for k in kept)

    def wide(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(t, (0, 0, most - t.shape[2], 0)) for t in tensors])

    lengths_R1 = torch.tensor([[k.keys[0].shape[2]] for k in kept], device=kept[0].next_R.device)
    back_N = torch.arange(most, 0, -1, device=lengths_R1.device)
    starts = [k.start_RD for k in kept if k.start_RD is not None]
    return Kept(
        tuple(wide(of_layer) for of_layer in zip(*(k.keys for k in kept), strict=True)),
        tuple(wide(of_layer) for of_layer in zip(*(k.values for k in kept), strict=True)),
        back_N > lengths_R1, torch.cat([k.next_R for k in kept]), torch.cat(starts) if starts else None,
    )  # fmt: skip


def trimmed(sequences: Sequences) -> Sequences:
    """Without the columns that are padding in all rows."""
    real_RL = sequences.segment_RL > 0
    if bool(real_RL.all()):
        return sequences
    real_L = real_RL.any(dim=0)
    first = int(real_L.int().argmax()) if bool(real_L.any()) else len(real_L)
    ids = {n: ids_RL[:, first:] for n, ids_RL in sequences.ids.items()}
    return Sequences(ids, sequences.segment_RL[:, first:], sequences.place_RL[:, first:])


def remember(
    layers: nn.ModuleList, x_RND: Tensor, mask: Tensor | None, past: Kept | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(keys, values) of tokens, behind those of `past`; of the last layer nothing else is run.

    Args:
        mask: added to the scores; None is causal without padding.
    """
    keys, values = [], []
    for number, layer in enumerate(cast(Iterable[GptLayer], layers)):
        last = number == len(layers) - 1
        q_RHNd, k_RHNd, v_RHNd = (None, *layer.memory(x_RND)) if last else layer.parts(x_RND)
        if past is not None:
            k_RHNd, v_RHNd = (
                torch.cat(pair, dim=2) for pair in ((past.keys[number], k_RHNd), (past.values[number], v_RHNd))
            )
        keys.append(k_RHNd)
        values.append(v_RHNd)
        if q_RHNd is not None:
            x_RND = layer.after(x_RND, attention(q_RHNd, k_RHNd, v_RHNd, mask, causal=mask is None))
    return tuple(keys), tuple(values)


def ask(layers: nn.ModuleList, kept: Kept, x_RUmD: Tensor) -> Tensor:
    """Outputs [R, U, m, D] of blocks of tokens, each of which sees the history and its own block up to itself."""
    heads, past = kept.keys[0].shape[1:3]
    users, blocks, own = x_RUmD.shape[:3]
    step = max(1, SCORES_AT_ONCE // (users * heads * own * (past + own)))
    if step < blocks:
        return torch.cat([ask(layers, kept, part) for part in x_RUmD.split(step, dim=1)], dim=1)
    x_RMD = x_RUmD.flatten(1, 2)
    for layer, k_RHNd, v_RHNd in zip(cast(Iterable[GptLayer], layers), kept.keys, kept.values, strict=True):
        q_RHMd, own_k_RHMd, own_v_RHMd = layer.parts(x_RMD)
        q_RHMd = q_RHMd / math.sqrt(q_RHMd.shape[3])
        far_RHMN = q_RHMd @ k_RHNd.transpose(2, 3)
        if kept.hidden_RN is not None:
            far_RHMN = far_RHMN.masked_fill(kept.hidden_RN[:, None, None], -math.inf)
        q_RHUmd, own_k_RHUmd, own_v_RHUmd = (t.unflatten(2, (blocks, own)) for t in (q_RHMd, own_k_RHMd, own_v_RHMd))
        near_RHUmm = q_RHUmd @ own_k_RHUmd.transpose(3, 4)
        if own > 1:
            near_RHUmm = near_RHUmm.masked_fill(~lower_right(own, own, x_RMD.device), -math.inf)
        weights_RHMK = torch.cat([far_RHMN, near_RHUmm.flatten(2, 3)], dim=3).softmax(dim=3)
        near_RHUmm = weights_RHMK[..., past:].unflatten(2, (blocks, own))
        read_RHMd = weights_RHMK[..., :past] @ v_RHNd + (near_RHUmm @ own_v_RHUmd).flatten(2, 3)
        x_RMD = layer.after(x_RMD, read_RHMd)
    return x_RMD.unflatten(1, (blocks, own))


class Reader(Protocol):
    """A user model as serving asks it."""

    @property
    def names(self) -> Sequence[str]:
        """Event fields that it reads."""
        ...

    def history(self, sequences: Sequences, past: Kept | None = None) -> Kept:
        """Histories of R users, the newest event at the right end; `past` is what comes before (no padding then)."""
        ...

    def answers(self, kept: Kept, cond_RU: Tensor) -> Tensor:
        """Answers [R, U, D] under conditions."""
        ...

    def items(self, item_N: Tensor) -> Tensor:
        """Item tokens [N, D]."""
        ...

    def match(self, kept: Kept | None, answer_NQD: Tensor, cond_NQ: Tensor, item_ND: Tensor, item_N: Tensor) -> Tensor:
        """How well each item fits its answers, [N, Q]; N is R users times as many items each."""
        ...


class ItemReader:
    """A user model whose answers are compared with item tokens; `match` reads no history."""

    def __init__(self, user: UserModel) -> None:
        self.user, self.names = user, user.names

    def _rows(self, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        ids_FN = torch.stack([t.flatten() for t in ids.values()])
        found_FNE = self.user.tables.gather(one_id_each(list(ids), ids_FN)).view(*ids_FN.shape, self.user.tables.width)
        return dict(zip(ids, found_FNE, strict=True))

    def history(self, sequences: Sequences, past: Kept | None = None) -> Kept:
        user, rows = self.user, trimmed(sequences)
        next_R = (sequences.segment_RL > 0).sum(dim=1) + (0 if past is None else past.next_R)
        if user.cond_map is None:
            rows = rows.one_more()
        x_RND = user.token(self._rows({n: rows.ids[n] for n in self.names}), rows.place_RL)
        start_RD = None
        if user.cond_map is None:
            x_RND, start_RD = x_RND[:, :-1], x_RND[:, -1]
            rows = Sequences(rows.ids, rows.segment_RL[:, :-1], rows.place_RL)
        hidden_RN, mask = _hidden(rows.segment_RL, user.per_event)
        return Kept(*remember(user.layers, x_RND, mask, past), hidden_RN, next_R, start_RD)

    def answers(self, kept: Kept, cond_RU: Tensor) -> Tensor:
        user = self.user
        if user.cond_map is None:
            assert kept.start_RD is not None
            asked_RUD = kept.start_RD.unsqueeze(1)
        else:
            rows_ME = self._rows({user.fields.cond: cond_RU})[user.fields.cond]
            place_R = 2 * kept.next_R if user.positions == "token" else kept.next_R
            asked_RUD = user.cond_map(rows_ME).view(*cond_RU.shape, -1) + user.place(place_R).unsqueeze(1)
        return user.norm(ask(user.layers, kept, asked_RUD.unsqueeze(2)).squeeze(2))

    def items(self, item_N: Tensor) -> Tensor:
        return self.user.item_map(self._rows({self.user.fields.item: item_N})[self.user.fields.item])

    def match(self, kept: Kept | None, answer_NQD: Tensor, cond_NQ: Tensor, item_ND: Tensor, item_N: Tensor) -> Tensor:
        if self.user.similarity == "cosine":
            answer_NQD, item_ND = normalize(answer_NQD, dim=2), normalize(item_ND, dim=1)
        return torch.bmm(answer_NQD, item_ND.unsqueeze(2)).squeeze(2)


class SidReader:
    """A user model on semantic IDs: how well an item fits is asked of the model, code by code behind the condition."""

    def __init__(self, user: SidUserModel) -> None:
        self.user, self.names = user, user.names

    def history(self, sequences: Sequences, past: Kept | None = None) -> Kept:
        rows = trimmed(sequences)
        next_R = (sequences.segment_RL > 0).sum(dim=1) + (0 if past is None else past.next_R)
        hidden_RN, mask = _hidden(rows.segment_RL, self.user.per_event)
        return Kept(*remember(self.user.layers, self.user.tokens(rows)[0], mask, past), hidden_RN, next_R)

    def answers(self, kept: Kept, cond_RU: Tensor) -> Tensor:
        asked_RUD = self.user.cond(cond_RU) + self.user.at(kept.next_R.unsqueeze(1), 0)
        return self.user.norm(ask(self.user.layers, kept, asked_RUD.unsqueeze(2)).squeeze(2))

    def items(self, item_N: Tensor) -> Tensor:
        return self.user.items(item_N)

    def match(self, kept: Kept | None, answer_NQD: Tensor, cond_NQ: Tensor, item_ND: Tensor, item_N: Tensor) -> Tensor:
        assert kept is not None
        user, users, queries = self.user, len(kept.next_R), cond_NQ.shape[1]
        code_Nm = user.codes.codes_VL[item_N] + user.starts_m
        cond_RU, next_R1 = cond_NQ.view(users, -1), kept.next_R.unsqueeze(1)
        parts = [user.cond(cond_RU) + user.at(next_R1, 0)]
        for place in range(1, user.places):
            before_RU = code_Nm[:, place - 1].repeat_interleave(queries).view(users, -1)
            parts.append(user.code(before_RU) + user.at(next_R1, place))
        out_RUmD = user.norm(ask(user.layers, kept, torch.stack(parts, dim=2)))
        log_NQmK = user.head(out_RUmD).log_softmax(dim=3).unflatten(1, (-1, queries)).flatten(0, 1)
        log_NQm = log_NQmK.gather(3, code_Nm[:, None, :, None].expand(-1, queries, -1, 1)).squeeze(3)
        return (log_NQm.mean(dim=2) + user.even) * user.codes.known_V[item_N].unsqueeze(1)


def _hidden(segment_RL: Tensor, per_event: int) -> tuple[Tensor | None, Tensor | None]:
    """(which tokens are padding, mask of the history); None twice where all are real."""
    real_RL = segment_RL > 0
    if bool(real_RL.all()):
        return None, None
    return ~real_RL.repeat_interleave(per_event, dim=1), additive(block_mask(segment_RL, per_event))


def reader_of(user: UserModel | SidUserModel) -> Reader:
    """How serving asks a user model."""
    return SidReader(user) if isinstance(user, SidUserModel) else ItemReader(user)
