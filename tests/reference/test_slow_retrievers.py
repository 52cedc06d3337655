"""Retrievers against slow twins: HSTU's loss and scores, LUM's scores (models.md sections 4 and 6)."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.slow import compare, randomised, schema_of
from tests.reference.slow_hstu import hstu_parts, hstu_row
from torch import Tensor

from ctrbench.datasets.schema import FIRST_ID
from ctrbench.models.hstu import HstuConfig
from ctrbench.models.hstu_layers import Places
from ctrbench.models.hstu_retriever import HstuRetriever
from ctrbench.models.lum import LumConfig
from ctrbench.models.lum_retriever import LumRetriever
from ctrbench.models.retriever import Asked, Catalogue, Histories

SETTINGS = settings(max_examples=40, deadline=None)
ITEMS = 12


def catalogue() -> Catalogue:
    return Catalogue(ITEMS, torch.zeros(ITEMS, dtype=torch.long), torch.zeros(ITEMS, 0), "nothing")


def histories(users: int, length: int, seed: int) -> Histories:
    """Left-padded; the first user has one event at least, some items are unknown ones."""
    g = torch.Generator().manual_seed(seed)
    n_B = torch.randint(1, length + 1, (users,), generator=g)
    real = torch.arange(length) >= length - n_B.unsqueeze(1)
    item = torch.randint(FIRST_ID - 1, ITEMS, (users, length), generator=g) * real
    genre = torch.randint(FIRST_ID, 6, (users, length), generator=g) * real
    time = torch.randint(0, 3000, (users, length), generator=g).cumsum(dim=1) * real
    return Histories({"hist_item": item, "hist_genre": genre}, time, real, torch.arange(users))


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum().sqrt()


def answers(model: HstuRetriever, config: HstuConfig, longest: int, h: Histories, next_B: Tensor) -> list[list[Tensor]]:
    """Of each user the answers after his first, second, ... event; padding is left out altogether."""
    p, out = dict(model.named_parameters()), []
    for b in range(len(h.user_B)):
        kept = [t for t in range(h.real_BT.shape[1]) if h.real_BT[b, t]]
        times = [h.time_BT[b, t] for t in kept]
        places = Places(
            torch.arange(len(kept)).unsqueeze(0), torch.stack(times).unsqueeze(0),
            torch.stack([*times[1:], next_B[b]]).unsqueeze(0),
        )  # fmt: skip
        rows = [p["vectors.weight"][h.ids["hist_item"][b, t]] * config.width**0.5 for t in kept]
        rows = [x + p["places.weight"][i] for i, x in enumerate(rows)]
        for number in range(config.layers):
            name = f"layers.{number}"
            made = {i: hstu_parts(p, name, config, x) for i, x in enumerate(rows)}
            rows = [
                hstu_row(p, name, config, longest, x, i, list(range(i + 1)), made, places, 0)
                for i, x in enumerate(rows)
            ]
        out.append([unit(x) for x in rows])
    return out


@SETTINGS
@given(
    heads=st.integers(1, 2), qk=st.integers(1, 3), v=st.integers(2, 3), width=st.integers(2, 4),
    layers=st.integers(1, 2), flavour=st.sampled_from(["research", "production"]),
    rab=st.sampled_from(["pos_time", "pos", "none"]), length=st.integers(2, 5), spare=st.integers(0, 2),
    users=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
def test_hstu_loss(length: int, spare: int, users: int, seed: int, **options: Any) -> None:
    config, longest = HstuConfig(**options), length + spare  # the constant is not the batch's length
    model: Any = randomised(HstuRetriever(config, schema_of(longest), catalogue()), seed)
    shown = histories(users, length, seed)
    drawn = torch.randint(FIRST_ID, ITEMS, (users, 4), generator=torch.Generator().manual_seed(seed))

    def twin() -> Tensor:
        vectors, losses = model.vectors.weight, [model.vectors.weight.sum() * 0]
        for b, made in enumerate(answers(model, config, longest, shown, shown.time_BT[:, -1])):
            items = [int(i) for i, real in zip(shown.ids["hist_item"][b], shown.real_BT[b], strict=True) if real]
            for answer, wanted in zip(made[:-1], items[1:], strict=True):
                if wanted < FIRST_ID:
                    continue
                among = [wanted] + [int(i) for i in drawn[b] if i != wanted]
                odds = [torch.exp((answer @ unit(vectors[i])) / 0.05 - 20) for i in among]
                losses.append(-torch.log(odds[0] / sum(odds)))
        return (sum(losses) / max(1, len(losses) - 1)).unsqueeze(0)

    compare(model, lambda: model.loss(shown, drawn).unsqueeze(0), twin, [])


@SETTINGS
@given(length=st.integers(1, 5), users=st.integers(1, 3), seed=st.integers(0, 999))
def test_hstu_scores(length: int, users: int, seed: int) -> None:
    config, longest = HstuConfig(width=4, qk=2, v=2), length + 1
    model: Any = randomised(HstuRetriever(config, schema_of(longest), catalogue()), seed)
    shown = histories(users, length, seed)
    asked = Asked(torch.zeros(users, dtype=torch.long), shown.time_BT[:, -1] + 500)
    found = model.scores(shown, asked)
    assert not found.requires_grad
    assert (found[:, :FIRST_ID] == -torch.inf).all()
    for b, made in enumerate(answers(model, config, longest, shown, asked.time_B)):
        wanted = torch.stack([made[-1] @ unit(row) for row in model.vectors.weight[FIRST_ID:]])
        torch.testing.assert_close(found[b, FIRST_ID:], wanted.detach())


def test_hstu_answers_where_training_has_answers() -> None:
    """Behind a full row no answer is trained: the oldest event is left out, and the place of the newest has learned."""
    model: Any = randomised(HstuRetriever(HstuConfig(width=4, qk=2, v=2), schema_of(4), catalogue()), 0)
    full = histories(3, 4, 0)
    full.real_BT[:] = True
    asked = Asked(torch.zeros(3, dtype=torch.long), full.time_BT[:, -1] + 500)
    torch.testing.assert_close(model.scores(full, asked), model.scores(full.newest(3), asked))
    model.train().loss(full).backward()
    assert model.places.weight.grad[2].any()
    assert not model.places.weight.grad[3].any()


def test_hstu_negatives_are_items_and_differ_between_users() -> None:
    drawn = HstuRetriever(HstuConfig(), schema_of(4), catalogue()).draw(50)
    assert drawn.shape == (50, 128)
    assert sorted(set(drawn.flatten().tolist())) == list(range(FIRST_ID, ITEMS))
    assert len({tuple(row) for row in drawn.tolist()}) == 50


@SETTINGS
@given(length=st.integers(1, 5), users=st.integers(1, 3), seed=st.integers(0, 999))
def test_lum_scores_are_the_answer_to_the_asked_condition(length: int, users: int, seed: int) -> None:
    """The answer stands where the condition token of a next event would, whose item nobody saw yet."""
    torch.manual_seed(seed)
    model = LumRetriever(LumConfig(width=4, heads=2), schema_of(length + 1), catalogue()).eval()
    shown = histories(users, length, seed)
    asked = Asked(torch.randint(FIRST_ID, 6, (users,)), shown.time_BT[:, -1] + 500)
    found = model.scores(shown, asked)
    assert (found[:, :FIRST_ID] == -torch.inf).all()
    longer = Histories(
        {"hist_item": torch.nn.functional.pad(shown.ids["hist_item"], (0, 1), value=FIRST_ID),
         "hist_genre": torch.cat([shown.ids["hist_genre"], asked.cond_B.unsqueeze(1)], dim=1)},
        shown.time_BT, torch.nn.functional.pad(shown.real_BT, (0, 1), value=True), shown.user_B,
    )  # fmt: skip
    with torch.no_grad():
        sequences = model.user.sequences(longer.ids, longer.real_BT)
        rows = model.user.rows({n: sequences.ids[n].flatten() for n in model.user.names})
        states = model.user.states(rows, sequences)[:, -2]  # of the condition token of the event looked for
        items = model.user.items(torch.arange(FIRST_ID, ITEMS))
    wanted = torch.stack([torch.stack([unit(s) @ unit(i) for i in items]) for s in states])
    torch.testing.assert_close(found[:, FIRST_ID:], wanted, atol=1e-5, rtol=1e-4)
