"""Retrieval: who is asked, what training may see, ranks, floors that know as much, and that a cycle is learned."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ctrbench.bench.last_rows import LastRows, second_to_last
from ctrbench.bench.ranking import Floors, judged, paired, ranks
from ctrbench.bench.retrieval import (
    RetrievalData,
    Schooling,
    batches,
    catalogue_of,
    histories_of,
    rank_rows,
    retrieval_data,
    school,
)
from ctrbench.bench.retrieval_rows import RANKS, over_seeds
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.hstu import HstuConfig
from ctrbench.models.hstu_retriever import HstuRetriever
from ctrbench.models.lum_backbone import event_fields
from ctrbench.models.retriever import Asked, Catalogue, Histories, Retriever

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
HOW = Schooling(epochs=12, patience=12, batch=32, lr=5e-3, length=6, valid_users=1000, eval_batch=64, seed=0)


def movielens(folder: Path, events: list[tuple[int, int, int, int]]) -> Prepared:
    raw = _tiny["movielens_folder"](folder / "raw", events)
    return prepare("movielens_1m", raw, folder / "out", split="per_user", history=8)


def newest(events: list[tuple[int, int, int, int]]) -> dict[int, int]:
    """User -> place of the last event: the latest second, of several the last in the file."""
    return {u: max(range(len(events)), key=lambda i: (events[i][0] == u, events[i][3], i)) for u, *_ in events}


@pytest.mark.parametrize("seconds", [60, 5000])
def test_the_last_event_is_asked_for_and_no_piece_holds_it_or_its_second(tmp_path: Path, seconds: int) -> None:
    events = _tiny["random_events"](1, seconds=seconds)
    prepared = movielens(tmp_path, events)
    roles = event_fields(prepared.schema)
    data = retrieval_data(prepared, roles, 8)
    last = {u: events[i] for u, i in newest(events).items()}
    name_of = dict(prepared.vocabulary("item").select("id", "value").iter_rows())
    asked = 0
    for user, item, time, (begin, end) in zip(
        data.rows.user_U, data.rows.item_U, data.rows.time_U, data.rows.spans_U2, strict=True
    ):
        assert time == last[user][3]
        if item >= FIRST_ID:
            assert name_of[item] == f"Film {last[user][1]} (1990)"
        earlier = sorted(t for u, _, _, t in events if u == user and t < time)
        assert data.time_N[begin:end].tolist() == earlier
        mine = data.pieces_W2[data.user_W == user]
        shown = sorted(t for b, e in mine for t in data.time_N[b:e].tolist())
        assert shown == earlier[:-1]  # but the newest of them, which chooses the epoch
        assert all(e - b <= 8 for b, e in mine)
        asked += 1
    assert asked == len({u for u, _, _, t in events if t < last[u][3]})


def test_the_event_before_is_looked_for_among_those_strictly_before_it() -> None:
    time = np.array([1, 2, 2, 5, 5, 5, 9, 9])
    item, cond = np.arange(8) + 10, np.arange(8) + 20
    rows = LastRows(np.array([[0, 3], [0, 6], [6, 8], [6, 7]]), *np.zeros((3, 4), np.int64), np.arange(4))
    found = second_to_last(rows, item, cond, time)
    assert found.user_U.tolist() == [0, 1]  # the others have no event before it
    assert found.spans_U2.tolist() == [[0, 1], [0, 3]]
    assert (found.item_U.tolist(), found.cond_U.tolist(), found.time_U.tolist()) == ([12, 15], [22, 25], [2, 5])


def seen_by_training(prepared: Prepared) -> list[Any]:
    """Every tensor that a training reads, and the catalogue."""
    roles = event_fields(prepared.schema)
    data = retrieval_data(prepared, roles, 8)
    catalogue, cond_V = catalogue_of(prepared, data, roles, prepared.schema)
    out: list[Any] = [catalogue.cond_V, catalogue.content_VC, torch.from_numpy(cond_V)]
    lengths = data.pieces_W2[:, 1] - data.pieces_W2[:, 0]
    for part in batches(lengths, 4, np.random.default_rng(0)):
        shown = histories_of(data, data.pieces_W2[part], data.user_W[part], 8)
        out += [*shown.ids.values(), shown.time_BT, shown.real_BT, shown.user_B]
    return out


def test_no_batch_knows_the_events_that_are_looked_for(tmp_path: Path) -> None:
    """The last events become other items, liked or not: the vocabulary stays, since no item is rare here."""
    events = _tiny["random_events"](2, count=600, items=10, seconds=5000)
    changed = list(events)
    for i in newest(events).values():
        user, item, rating, time = events[i]
        changed[i] = (user, (item + 3) % 10, 6 - rating, time)
    first, second = (seen_by_training(movielens(tmp_path / n, e)) for n, e in (("a", events), ("b", changed)))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


SCORES = st.lists(st.lists(st.integers(0, 4), min_size=8, max_size=8), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(table=SCORES, seed=st.integers(0, 99))
def test_ranks_by_sorting(table: list[list[int]], seed: int) -> None:
    g = np.random.default_rng(seed)
    wanted = g.integers(0, 8, len(table))
    seen = [g.integers(0, 8, g.integers(0, 4)) for _ in table]
    found = ranks(np.array(table, np.float32), wanted, seen)
    for row, target, known, rank in zip(table, wanted, seen, found, strict=True):
        allowed = [i for i in range(FIRST_ID, 8) if i not in known]
        if target not in allowed:
            assert rank == 8
            continue
        order = sorted(allowed, key=lambda i: -row[i])
        same = [place for place, i in enumerate(order) if row[i] == row[target]]
        assert rank == sum(same) / len(same)


def test_floors_told_the_condition_list_its_items_first() -> None:
    """Items 3, 4, 5 of condition 1, items 6, 7 of condition 2; item 8 was never seen and has none."""
    spans = [np.array(s) for s in ([3, 4, 6], [3, 4, 7], [3, 6], [5, 3])]
    cond = np.array([0, 0, 0, 1, 1, 1, 2, 2, 0])
    wanted, asked = np.array([5, 6, 4, 8]), np.array([1, 2, 1, 1])
    found = Floors(spans, cond).ranks(wanted, asked)
    assert found["popularity"].tolist() == [0.5, 0, 0, 3]  # of 5 and 7, once each; 6 before 5; 4; all but 5 and 3
    assert found["popularity_in_condition"].tolist() == [0, 0, 0, 3]
    knn = Floors(spans, cond).scores(slice(0, 1), asked[:1])
    inside, outside = knn["item_knn_in_condition"][0, cond == 1], knn["item_knn_in_condition"][0, cond != 1]
    np.testing.assert_array_equal(inside, knn["item_knn"][0, cond == 1])
    assert inside.min() > outside.max()


def test_rows_over_seeds(tmp_path: Path) -> None:
    base = {"run": "r", "model": "m", "data": "d", "split": "s"}
    g = np.random.default_rng(0)
    rank = {"model": g.integers(0, 20, 300), "popularity": g.integers(0, 60, 300)}
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}{RANKS}", **rank)
    rows = {(r.metric, r.scope): r for r in over_seeds(base, [tmp_path / f"{n}{RANKS}" for n in "ab"])}
    recall = rows["recall_at_k", "model"]
    assert (recall.value, recall.n, recall.sd, recall.seed) == (np.mean(rank["model"] < 10), 2, 0.0, None)
    gain = rows["recall_gain", "vs:popularity"]
    mean, low, high = paired((rank["model"] < 10).astype(float) - (rank["popularity"] < 10))
    assert gain.value == pytest.approx(mean)
    assert (gain.ci_low, gain.ci_high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert rows["ndcg_at_k", "model"].value == pytest.approx(judged(rank).ndcg["model"])


def cycle(users: int) -> tuple[RetrievalData, int]:
    """Everybody walks the same circle of 24 items from a start of his own; only the way there tells the next item."""
    length, items = 9, 24
    start = np.random.default_rng(0).integers(0, items, users)
    item = ((start[:, None] + np.arange(length)) % items + FIRST_ID).flatten()
    log = {"hist_item": item, "hist_genre": item % 4 + FIRST_ID, "hist_action": item % 2 + FIRST_ID}
    time = np.tile(np.arange(length) * 60, users)
    ends = (np.arange(users) + 1) * length - 1
    spans = np.stack([ends - length + 1, ends], axis=1)
    rows = LastRows(spans, item[ends], log["hist_genre"][ends], time[ends], np.arange(users))
    valid = second_to_last(rows, item, log["hist_genre"], time)
    pieces = spans - np.array([0, 1])
    return RetrievalData(log, time, rows, valid, pieces, np.arange(users)), items + FIRST_ID


def test_a_cycle_is_learned(sequence_schema: FeatureSchema) -> None:
    data, items = cycle(150)
    torch.manual_seed(0)
    catalogue = Catalogue(items, torch.zeros(items, dtype=torch.long), torch.zeros(items, 0), "")
    module = HstuRetriever(HstuConfig(), sequence_schema, catalogue)
    assert isinstance(module, Retriever)
    lines: list[str] = []
    done = school(module, data, "hist_item", HOW, lines.append)
    assert len(lines) == len(done)
    assert done[-1].loss < 0.5 * done[0].loss
    rank = rank_rows(module, data, data.rows, "hist_item", HOW)
    assert (rank < 1).mean() > 0.9
    again = max(e.valid_ndcg for e in done)  # what is left are the weights of that epoch
    valid = rank_rows(module, data, data.valid, "hist_item", HOW)
    assert judged({"model": valid}).ndcg["model"] == pytest.approx(again)


class Scripted(nn.Module):
    """Gets worse at every epoch, or loses its mind at once."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.looks = 0

    def loss(self, histories: Histories) -> Tensor:
        return self.weight * histories.real_BT.float().mean()

    def scores(self, histories: Histories, asked: Asked) -> Tensor:
        self.looks += 1
        right = torch.nn.functional.one_hot(histories.ids["hist_item"][:, -1] + 1, 40).float()
        return right * (2.0 if self.looks < 3 else -1.0)


def test_patience_ends_the_training_and_a_loss_that_is_no_number_is_refused() -> None:
    data, _ = cycle(40)
    how = Schooling(epochs=9, patience=2, batch=16, lr=1e-2, length=6, valid_users=30, eval_batch=64, seed=0)
    assert len(school(Scripted(1.0), data, "hist_item", how)) == 3  # the first was the best, two looks later it ends
    with pytest.raises(FloatingPointError, match=r"epoch 1 is nan: lower run\.lr"):
        school(Scripted(float("nan")), data, "hist_item", how)


def test_batches_hold_every_piece_once_and_like_lengths_meet() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    found = batches(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(found).tolist()) == list(range(1000))
    padded = sum(len(p) * lengths[p].max() for p in found)
    at_random = sum(len(p) * lengths[p].max() for p in np.split(np.arange(1000), range(16, 1000, 16)))
    assert padded < 0.75 * at_random
    assert [p.tolist() for p in batches(lengths, 16, np.random.default_rng(2))] != [p.tolist() for p in found]
