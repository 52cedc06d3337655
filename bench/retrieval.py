"""Retrieval: any `Retriever` trained on users' event sequences and asked for each user's last event.

Protocol `leave-last-out over the whole data set`: of every user with a history the last row of all splits; its item is
looked for in the full catalogue, items of the row's own history left out. That history (events strictly before the
row) is all that training sees of a user, less its newest event: by that one, looked for in the same way, the number of
epochs is chosen.

Dims: U users, W pieces of history, B users of a batch, T padded history length, V items, N events of the log
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrbench.bench.assemble import as_record, base_columns, lookup, model_config
from ctrbench.bench.content import conditions, content_of
from ctrbench.bench.last_rows import LastRows, event_log, last_rows, second_to_last, windows
from ctrbench.bench.ranking import MODEL, Floors, K, judged, ranks
from ctrbench.bench.retrieval_rows import RANKS, seed_rows
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.train import restore, seed_everything, state_of
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.embedding import count_parameters, dense_parameters, embedding_tables
from ctrbench.models.lum_backbone import EventFields, event_fields
from ctrbench.models.retriever import Asked, Catalogue, Histories, Retriever
from ctrbench.reports.records import RunRecord

PROTOCOL = "leave-last-out over the whole data set"
PROGRESS = "progress.txt"
"""Beside the record: a line an epoch."""
CHUNK = 8
"""Batches that are filled by length together, so that little of a batch is padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schooling:
    """How a retriever learns."""

    epochs: int
    """At most."""
    patience: int
    """Looks (one an epoch) without a gain after which training ends."""
    batch: int
    """Pieces of history a step."""
    lr: float
    """Of Adam on dense weights; tables have their own."""
    length: int
    """Most events of a piece, and of what is shown when it is asked."""
    valid_users: int
    """Most users of a look."""
    eval_batch: int
    seed: int


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """Who is asked for what, and what training may see."""

    log: Mapping[str, np.ndarray]
    """Event field -> int64 [N]."""
    time_N: np.ndarray
    rows: LastRows
    """The test: each user's last row."""
    valid: LastRows
    pieces_W2: np.ndarray
    """Spans of the log that training sees."""
    user_W: np.ndarray


def retrieval_data(prepared: Prepared, roles: EventFields, length: int) -> RetrievalData:
    """The protocol on prepared data."""
    log = event_log(prepared, roles)
    time_N = prepared.events(roles.history)["time"].to_numpy().astype(np.int64)
    rows = last_rows(prepared, roles, splits=SPLITS)
    valid = second_to_last(rows, log[roles.item], log[roles.cond], time_N)
    known_U2 = rows.spans_U2 - np.array([0, 1])
    pieces_W2 = windows(known_U2, length)
    count_U = -(-(known_U2[:, 1] - known_U2[:, 0]) // length)
    return RetrievalData(log, time_N, rows, valid, pieces_W2, np.repeat(rows.user_U, count_U))


def histories_of(data: RetrievalData, spans_B2: np.ndarray, user_B: np.ndarray, length: int) -> Histories:
    """The newest `length` events of each span, padded on the left to the longest of them."""
    longest = int(min(length, (spans_B2[:, 1] - spans_B2[:, 0]).max()))
    index_BT = spans_B2[:, 1:] - np.arange(longest, 0, -1)
    real_BT = index_BT >= spans_B2[:, :1]
    index_BT = np.maximum(index_BT, 0)

    def take(values_N: np.ndarray) -> Tensor:
        return torch.from_numpy(np.where(real_BT, values_N[index_BT], 0))

    ids = {n: take(v) for n, v in data.log.items()}
    return Histories(ids, take(data.time_N), torch.from_numpy(real_BT), torch.from_numpy(user_B))


def batches(lengths_W: np.ndarray, size: int, shuffle: np.random.Generator) -> list[np.ndarray]:
    """Every piece once, `size` a batch, in an order of chance; inside `CHUNK` batches pieces of like length meet."""
    order_W = shuffle.permutation(len(lengths_W))
    out = []
    for begin in range(0, len(order_W), size * CHUNK):
        chunk = order_W[begin : begin + size * CHUNK]
        chunk = chunk[np.argsort(lengths_W[chunk], kind="stable")]
        out += [chunk[at : at + size] for at in range(0, len(chunk), size)]
    return [out[i] for i in shuffle.permutation(len(out))]


def rank_rows(module: Retriever, data: RetrievalData, rows: LastRows, item: str, how: Schooling) -> np.ndarray:
    """Rank [U] of each row's item, among all items that its history does not hold."""
    out = []
    for begin in range(0, len(rows.item_U), how.eval_batch):
        part = rows.take(np.arange(begin, min(begin + how.eval_batch, len(rows.item_U))))
        asked = Asked(torch.from_numpy(part.cond_U), torch.from_numpy(part.time_U))
        shown = histories_of(data, part.spans_U2, part.user_U, how.length)
        score_BV = module.scores(shown, asked).numpy().copy()
        out.append(ranks(score_BV, part.item_U, [data.log[item][b:e] for b, e in part.spans_U2]))
    return np.concatenate(out)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the pieces, and the look after it."""

    loss: float
    valid_ndcg: float
    seconds: float


def school(
    module: Any, data: RetrievalData, item: str, how: Schooling, told: Callable[[str], None] = lambda line: None
) -> list[Epoch]:
    """Trains a `Retriever` in place and leaves the weights of the epoch with the best NDCG at the validation events.

    Raises:
        FloatingPointError: a loss that is no number.
    """
    optimizer = torch.optim.Adam(dense_parameters(module), lr=how.lr)
    tables, shuffle = embedding_tables(module), np.random.default_rng(how.seed)
    chosen = np.linspace(0, len(data.valid.item_U) - 1, min(how.valid_users, len(data.valid.item_U))).astype(np.int64)
    valid, lengths_W = data.valid.take(np.unique(chosen)), data.pieces_W2[:, 1] - data.pieces_W2[:, 0]
    done: list[Epoch] = []
    best, state = -1.0, state_of(module)
    for number in range(how.epochs):
        start, seen = time.perf_counter(), []
        module.train()
        for part in batches(lengths_W, how.batch, shuffle):
            loss = module.loss(histories_of(data, data.pieces_W2[part], data.user_W[part], how.length))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for table in tables:
                table.step()
            seen.append(loss.detach())
        mean = float(torch.stack(seen).mean())
        if not math.isfinite(mean):
            raise FloatingPointError(f"loss of epoch {number + 1} is {mean}: lower run.lr")
        module.eval()
        rank = rank_rows(module, data, valid, item, how)
        ndcg = judged({MODEL: rank}).ndcg[MODEL]
        done.append(Epoch(mean, ndcg, time.perf_counter() - start))
        told(f"epoch {number + 1}/{how.epochs}: loss {mean:.4f}, validation NDCG@{K} {ndcg:.4f}")
        if ndcg > best:
            best, state = ndcg, state_of(module)
        if number - int(np.argmax([e.valid_ndcg for e in done])) >= how.patience:
            break
    restore(module, state)
    module.eval()
    return done


def catalogue_of(
    prepared: Prepared, data: RetrievalData, roles: EventFields, schema: FeatureSchema
) -> tuple[Catalogue, np.ndarray]:
    """(the catalogue, the condition of each of its items), from what training sees."""
    items = schema[schema[roles.item].table].cardinality
    cond_V = conditions(data.log, data.pieces_W2, roles.item, roles.cond, items)
    content_VC, made_of = content_of(prepared, data.pieces_W2, schema)
    return Catalogue(items, torch.from_numpy(cond_V), content_VC, made_of), cond_V


def run_retrieve(spec: RunSpec, folder: Path) -> RunRecord:
    """One retriever trained and asked, floors on the same users; the ranks of both stay beside the record."""
    seed_everything(spec.seed)
    prepared, model_spec = Prepared.open(Path(spec.prepared)), lookup(spec)
    config, schema = model_config(spec, model_spec), prepared.schema_for(spec.history_length)
    retriever = model_spec.retriever
    assert retriever is not None
    roles = event_fields(schema, getattr(config, "cond", ""))
    data = retrieval_data(prepared, roles, spec.history_length)
    catalogue, cond_V = catalogue_of(prepared, data, roles, schema)
    module = retriever.build(config, schema, catalogue)
    how = Schooling(epochs=spec.epochs, patience=spec.patience, batch=spec.batch, lr=spec.lr, seed=spec.seed,
                    length=spec.history_length, valid_users=spec.valid_rows, eval_batch=spec.eval_batch)  # fmt: skip

    def told(line: str) -> None:
        with (folder / PROGRESS).open("a") as file:
            file.write(f"{line}\n")

    (folder / PROGRESS).unlink(missing_ok=True)
    epochs = school(module, data, roles.item, how, told)
    start = time.perf_counter()
    found = {MODEL: rank_rows(module, data, data.rows, roles.item, how)}
    asked = time.perf_counter() - start
    floors = Floors([data.log[roles.item][b:e] for b, e in data.rows.spans_U2], cond_V)
    for name, rank in floors.ranks(data.rows.item_U, data.rows.cond_U).items():
        if retriever.conditioned or not name.endswith("_in_condition"):
            found[name] = rank
    np.savez(folder / RANKS, **found)  # type: ignore[arg-type]
    base = base_columns(spec, model_spec.family, schema.track)
    extra = {
        "protocol": PROTOCOL, "conditioned": retriever.conditioned, "k": K, "users": len(data.rows.item_U),
        "events": int((data.pieces_W2[:, 1] - data.pieces_W2[:, 0]).sum()), "pieces": len(data.pieces_W2),
        "items": catalogue.items, "semantic_ids": getattr(module, "facts", None), "epochs": [asdict(e) for e in epochs],
        "chosen": 1 + int(np.argmax([e.valid_ndcg for e in epochs])), "ask_seconds": asked,
        "parameters": count_parameters(module), "title": model_spec.title, "control": model_spec.control,
        "family": model_spec.family, "track": schema.track,
    }  # fmt: skip
    return as_record(spec, seed_rows(base, judged(found), spec.seed), extra)
