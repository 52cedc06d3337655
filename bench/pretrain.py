"""Step 1 of LUM: users' train events to packed rows, InfoNCE epochs, what the result retrieves, its stored answers.

Only events that some training row may see are used: of every user those strictly earlier than the last train row.

Dims: R packed rows, L events of a row, N events of the log (rows of the data in a store), U users, V catalogue items,
W pieces of history, Q queries, d width of the user model
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrbench.bench.checkpoint import load_checkpoint, save_checkpoint
from ctrbench.bench.content import content_of
from ctrbench.bench.last_rows import LastRows, event_log, last_rows, windows
from ctrbench.bench.ranking import BATCH, MODEL, Floors, K, Retrieval, judged, ranks
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.models.embedding import dense_parameters, embedding_tables
from ctrbench.models.lum import STEP_ONE, LumConfig
from ctrbench.models.lum_answers import Store, UserAnswers
from ctrbench.models.lum_backbone import UserModel
from ctrbench.models.lum_rows import Sequences, decoder_flops, loss_flops, pack, targets_of
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.models.retriever import Catalogue

QUERY_BATCH = 128
"""Rows of one group query of the store; its activations stay in cache."""
ANSWERS, SPANS = "answers.npy", "answers.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """What step 1 did."""

    events: int
    """Events seen, all epochs together."""
    rows: int
    """Packed rows of one epoch."""
    losses: list[float]
    """Mean loss of each epoch: InfoNCE, or cross-entropy over codes."""
    flops: float
    """Training FLOPs by the closed form: three times forward (measures.md section 2)."""
    seconds: float


def packed_rows(log: Mapping[str, np.ndarray], pieces_W2: np.ndarray, length: int) -> Sequences:
    """Packs pieces of the event log into rows of `length` events; places restart with every piece."""
    groups = pack((pieces_W2[:, 1] - pieces_W2[:, 0]).tolist(), length)
    index_RL = np.full((len(groups), length), -1, np.int64)
    segment_RL = np.zeros((len(groups), length), np.int64)
    place_RL = np.zeros((len(groups), length), np.int64)
    for r, group in enumerate(groups):
        at = 0
        for number, piece in enumerate(group, start=1):
            begin, end = pieces_W2[piece]
            size = end - begin
            index_RL[r, at : at + size] = np.arange(begin, end)
            segment_RL[r, at : at + size] = number
            place_RL[r, at : at + size] = np.arange(size)
            at += size
    ids = {n: torch.from_numpy(np.where(index_RL < 0, 0, values[index_RL])) for n, values in log.items()}
    return Sequences(ids, torch.from_numpy(segment_RL), torch.from_numpy(place_RL))


def epoch_flops(user: UserModel | SidUserModel, rows: Sequences) -> float:
    """Forward FLOPs of tokens and decoder in one epoch, the masked half and padding left out."""
    largest = int(rows.segment_RL.max())
    sizes = torch.stack([(rows.segment_RL == s).sum(dim=1) for s in range(1, largest + 1)]).double()
    tokens = user.per_event * sizes
    pairs = float((tokens * (tokens + 1) / 2).sum())
    dim, side = (user.tables.width, len(user.fields.side)) if isinstance(user, UserModel) else (0, 0)
    width, layers = user.norm.normalized_shape[0], len(user.layers)
    return decoder_flops(dim, width, layers, side, float(sizes.sum()), pairs, user.per_event)


def _loss(user: UserModel | SidUserModel, batch: Sequences) -> tuple[Tensor, float]:
    """(the loss of a batch, FLOPs of its head)."""
    width = user.norm.normalized_shape[0]
    if isinstance(user, SidUserModel):
        codes = int((batch.segment_RL > 0).sum()) * user.places
        return user.loss(batch), 2.0 * width * sum(user.codes.vocabulary) * codes
    targets = targets_of(batch, user.fields.item)
    flops = loss_flops(user.tables.width, width, targets.item_U.numel(), targets.index_N.numel())
    return user.loss(batch, targets), flops


def train_user_model(user: UserModel | SidUserModel, rows: Sequences, config: LumConfig, seed: int) -> Pretraining:
    """Step 1: its loss with Adam on dense weights, the tables' own optimizer inside their backward."""
    start = time.perf_counter()
    parameters = dense_parameters(user)
    frozen = [not p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=config.pretrain_lr)
    shuffle = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    forward = config.pretrain_epochs * epoch_flops(user, rows)
    user.train()
    for _ in range(config.pretrain_epochs):
        seen: list[Tensor] = []
        for part in torch.randperm(rows.size, generator=shuffle).split(config.pretrain_batch):
            loss, head = _loss(user, rows.take(part))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for table in embedding_tables(user):
                table.step()
            seen.append(loss.detach())
            forward += head
        losses.append(float(torch.stack(seen).mean()))
    user.eval()
    for p, was in zip(parameters, frozen, strict=True):
        p.requires_grad_(not was)
    return Pretraining(
        events=config.pretrain_epochs * int((rows.segment_RL > 0).sum()), rows=rows.size, losses=losses,
        flops=3 * forward, seconds=time.perf_counter() - start,
    )  # fmt: skip


def retrieve(
    user: UserModel | SidUserModel, log: Mapping[str, np.ndarray], rows: LastRows, length: int, k: int = K
) -> Retrieval:
    """Asks for each row's item under its condition, over the full catalogue; scope `model` is the user model.

    Floors count the items of the spans; the condition of an item is known of every item that the log or a row has.
    """
    item = log[user.fields.item]
    of_item_V = np.zeros(user.catalogue, np.int64)
    of_item_V[item] = log[user.fields.cond]
    of_item_V[rows.item_U] = rows.cond_U
    floors = Floors([item[b:e] for b, e in rows.spans_U2], of_item_V)
    own_U = user_ranks(user, log, rows, length)
    return judged({MODEL: own_U, **floors.ranks(rows.item_U, rows.cond_U)}, k)


def user_ranks(
    user: UserModel | SidUserModel, log: Mapping[str, np.ndarray], rows: LastRows, length: int
) -> np.ndarray:
    """Rank [U] of each row's item over the full catalogue by the user model, asked under the row's condition."""
    item, found, length = log[user.fields.item], [], min(length, user.reads)
    for begin in range(0, len(rows.spans_U2), BATCH):
        part = rows.take(np.arange(begin, min(begin + BATCH, len(rows.spans_U2))))
        shown = newest(user, log, part.spans_U2, length)
        seen = [item[b:e] for b, e in part.spans_U2]
        found.append(ranks(user.scores(shown, torch.from_numpy(part.cond_U)).numpy(), part.item_U, seen))
    return np.concatenate(found)


def newest(
    user: UserModel | SidUserModel, log: Mapping[str, np.ndarray], spans_U2: np.ndarray, length: int
) -> Sequences:
    """The newest `length` events of each span as the user model reads them, one user a row."""
    index_UL = spans_U2[:, 1:] - np.arange(length, 0, -1)
    real_UL = index_UL >= spans_U2[:, :1]
    ids = {n: torch.from_numpy(np.where(real_UL, log[n][np.maximum(index_UL, 0)], 0)) for n in user.names}
    return user.sequences(ids, torch.from_numpy(real_UL))


def pretrain(
    answers: UserAnswers, prepared: Prepared, config: LumConfig, train_rows: int, seed: int
) -> tuple[Pretraining, Retrieval]:
    """Step 1, and leave-last-out retrieval: each user's last train event, which step 1 never saw.

    Semantic IDs come first, from the content that the same events give.
    """
    user, length = answers.user, answers.length
    rows = last_rows(prepared, user.fields, train_rows)
    log = event_log(prepared, user.fields)
    if isinstance(user, SidUserModel):
        content_VC, made_of = content_of(prepared, rows.spans_U2, answers.schema)
        conds = torch.zeros(user.catalogue, dtype=torch.long)
        user.codes.take(Catalogue(user.catalogue, conds, content_VC, made_of))
    done = train_user_model(user, packed_rows(log, windows(rows.spans_U2, length), length), config, seed)
    return done, retrieve(user, log, rows, length)


def save_step_one(
    answers: UserAnswers, prepared: Prepared, spans: Mapping[str, int], history_length: int, folder: Path
) -> None:
    """Writes the user model's weights and its answers for the last `spans[split]` rows of each split."""
    user = answers.user
    save_checkpoint(user, folder, **_manifest(answers))
    rows = sum(prepared.rows(split) for split in SPLITS)
    shape = (rows, answers.config.queries, user.norm.normalized_shape[0] + 1)
    partial = folder / f"{ANSWERS}.partial"
    stored = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    covered = []
    for split, wanted in spans.items():
        with torch.no_grad():
            for batch in Loader(prepared, split, QUERY_BATCH, rows=wanted, history_length=history_length):
                read, _ = answers.read(batch)
                assert batch.row_B is not None
                stored[batch.row_B.numpy()] = torch.cat([read.answers_BQd, read.match_BQ.unsqueeze(2)], dim=2).numpy()
        end = prepared.first_row(split) + prepared.rows(split)
        covered.append((end - min(wanted, prepared.rows(split)), end))
    stored.flush()
    (folder / SPANS).write_text(json.dumps(covered))
    partial.replace(folder / ANSWERS)


def _manifest(answers: UserAnswers) -> dict[str, Any]:
    """What a user model must have in common with the one that was saved: the options that decide step 1, the fields."""
    config = {name: getattr(answers.config, name) for name in STEP_ONE}
    return {"model": "user model of lum", "config": config, "schema": answers.schema}


def load_step_one(answers: UserAnswers, folder: Path) -> None:
    """Puts saved weights into a ranker's user model, and its stored answers beside it where they still exist."""
    load_checkpoint(answers.user, folder, **_manifest(answers))
    if (folder / ANSWERS).is_file():
        stored = np.load(folder / ANSWERS, mmap_mode="r")
        answers.store = Store(stored, tuple((b, e) for b, e in json.loads((folder / SPANS).read_text())))
