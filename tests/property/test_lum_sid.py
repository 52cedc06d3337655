"""LUM's user model on semantic IDs (models.md section 4.1): loss masks, questions, beams, the full-softmax case."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ctrbench.bench.registry import model_spec
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema
from ctrbench.models.lum import LumConfig
from ctrbench.models.lum_retriever import SidRetriever
from ctrbench.models.lum_rows import Sequences
from ctrbench.models.retriever import Asked, Catalogue, Histories

ITEMS, KNOWN, LENGTH = 50, 40, 6  # 6: the longest history of the small schema
REAL = [0, 1, 3, 6]
SPEC = model_spec("lum")


def catalogue(same: bool = False) -> Catalogue:
    g = torch.Generator().manual_seed(0)
    content = torch.randn(ITEMS, 5, generator=g)
    if same:
        content[5:9] = content[5]
    content[:FIRST_ID] = content[KNOWN:] = 0.0
    return Catalogue(ITEMS, torch.randint(FIRST_ID, 9, (ITEMS,), generator=g), content, "random vectors")


def retriever(schema: FeatureSchema, **options: object) -> SidRetriever:
    torch.manual_seed(0)
    config = LumConfig(**{"target": "sid", "sid_codes": 4, "beams": 1000, "width": 8, "heads": 2, **options})  # type: ignore[arg-type]
    made = SPEC.retriever.build(config, schema, catalogue())
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.5)
    assert isinstance(made, SidRetriever)
    return made.double().eval()


def histories(length: int = LENGTH, seed: int = 1) -> Histories:
    g = torch.Generator().manual_seed(seed)
    real = torch.arange(length) >= length - torch.tensor(REAL)[:, None]
    tops = {"hist_item": KNOWN, "hist_genre": 9, "hist_action": 5}
    ids = {n: torch.randint(FIRST_ID, top, real.shape, generator=g) * real for n, top in tops.items()}
    return Histories(ids, real.long(), real, torch.arange(len(REAL)))


def asked(cond: int = 4) -> Asked:
    return Asked(torch.full((len(REAL),), cond), torch.zeros(len(REAL), dtype=torch.long))


def row(made: SidRetriever, ids: dict[str, list[int]]) -> Sequences:
    """One user without padding."""
    events = len(ids["hist_item"])
    return Sequences({n: torch.tensor([v]) for n, v in ids.items()}, torch.ones(1, events, dtype=torch.long),
                     torch.arange(events)[None])  # fmt: skip


def log_probabilities(made: SidRetriever, rows: Sequences) -> torch.Tensor:
    """[L, m, codes]: of each predicting token, by the layers as they stand, causal, no mask."""
    user = made.user
    x, _ = user.tokens(rows)
    for layer in user.layers:
        x = layer(x)
    return user.head(user.norm(x)).log_softmax(2)[0].unflatten(0, (-1, 1 + user.places))[:, : user.places]


def test_loss_is_the_mean_over_condition_and_all_but_the_last_code(sequence_schema: FeatureSchema) -> None:
    for positions in ("token", "pair"):
        made, given = retriever(sequence_schema, positions=positions), histories()
        assert made.user.places == 4
        losses = []
        for b, n in enumerate(REAL):
            if n:
                ids = {name: v[b, LENGTH - n :].tolist() for name, v in given.ids.items()}
                logs = log_probabilities(made, row(made, ids))
                for t, item in enumerate(ids["hist_item"]):
                    for place, start in enumerate(made.user.starts):
                        losses.append(-logs[t, place, start + made.user.codes.codes_VL[item, place]])
        torch.testing.assert_close(made.loss(given), torch.stack(losses).mean())


def test_outputs_of_the_last_code_get_no_gradient(sequence_schema: FeatureSchema) -> None:
    made, kept = retriever(sequence_schema), []

    def keep(_module, _inputs, out):  # type: ignore[no-untyped-def]
        out.retain_grad()
        kept.append(out)

    made.user.layers[-1].register_forward_hook(keep)
    made.loss(histories()).backward()
    grad = kept[0].grad.unflatten(1, (LENGTH, 5))
    assert not grad[:, :, 4].any()
    real = histories().real_BT[1:]
    assert grad[:, :, :4].abs().sum(dim=(2, 3))[real].all()
    assert not grad[~real].any()


def test_a_code_sees_neither_later_codes_nor_its_own_events_action(sequence_schema: FeatureSchema) -> None:
    made = retriever(sequence_schema)
    ids = {"hist_item": [5, 9, 20], "hist_genre": [3, 4, 5], "hist_action": [3, 4, 3]}
    base = log_probabilities(made, row(made, ids))
    other = log_probabilities(made, row(made, {**ids, "hist_action": [3, 3, 3]}))
    torch.testing.assert_close(other[:2], base[:2])
    assert not torch.allclose(other[2], base[2])
    codes = made.user.codes.codes_VL
    twin = next(v for v in range(FIRST_ID, KNOWN) if codes[v, 0] == codes[9, 0] and codes[v, 1] != codes[9, 1])
    moved = log_probabilities(made, row(made, {**ids, "hist_item": [5, twin, 20]}))
    torch.testing.assert_close(moved[:1], base[:1])
    torch.testing.assert_close(moved[1, :2], base[1, :2])
    assert not torch.allclose(moved[1, 2], base[1, 2])


def test_every_parameter_learns(sequence_schema: FeatureSchema) -> None:
    made = retriever(sequence_schema)
    made.loss(histories()).backward()
    assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("positions", ["token", "pair"])
def test_scores_are_those_of_the_item_appended_to_the_history(sequence_schema: FeatureSchema, positions: str) -> None:
    """Beams with shared history and cache against a run of the whole sequence for each item."""
    made, given = retriever(sequence_schema, positions=positions), histories()
    scores = made.scores(given, asked())
    assert (scores[:, :FIRST_ID] == -math.inf).all()
    assert (scores[:, KNOWN:] == -math.inf).all()
    for b, n in enumerate(REAL[:3]):  # the longest history has no place left for a whole event
        ids = {name: v[b, LENGTH - n :].tolist() for name, v in given.ids.items()}
        for item in range(FIRST_ID, KNOWN):
            more = {"hist_item": item, "hist_genre": 4, "hist_action": 3}
            logs = log_probabilities(made, row(made, {name: [*v, more[name]] for name, v in ids.items()}))[-1]
            codes = made.user.codes.codes_VL[item]
            expected = sum(logs[place, start + codes[place]] for place, start in enumerate(made.user.starts))
            assert float(scores[b, item]) == pytest.approx(float(expected.detach()))
    other = made.scores(given, asked(5))
    assert not torch.allclose(other[:, FIRST_ID:KNOWN], scores[:, FIRST_ID:KNOWN]), "the condition is read"


def test_few_beams_propose_catalogue_items_alone_with_the_same_scores(sequence_schema: FeatureSchema) -> None:
    every = retriever(sequence_schema).scores(histories(), asked())
    few = retriever(sequence_schema, beams=5).scores(histories(), asked())
    kept = torch.isfinite(few)
    assert (kept.sum(dim=1) == 5).all()
    assert not kept[:, :FIRST_ID].any()
    assert not kept[:, KNOWN:].any()
    torch.testing.assert_close(few[kept], every[kept])


def test_one_level_with_a_code_an_item_is_the_full_softmax_next_item_model(sequence_schema: FeatureSchema) -> None:
    made = retriever(sequence_schema, sid_levels=1, sid_codes=KNOWN - FIRST_ID, sid_collision="none")
    codes = made.user.codes.codes_VL[FIRST_ID:KNOWN, 0]
    assert sorted(codes.tolist()) == list(range(KNOWN - FIRST_ID)), "each item has a code of its own"
    given = histories()
    losses = []
    for b, n in enumerate(REAL):
        if n:
            ids = {name: v[b, LENGTH - n :].tolist() for name, v in given.ids.items()}
            user = made.user
            x, _ = user.tokens(row(made, ids))
            for layer in user.layers:
                x = layer(x)
            by_item = user.norm(x[0, 0::2]) @ user.head.weight[codes].t() + user.head.bias[codes]
            losses.append(cross_entropy(by_item, torch.tensor(ids["hist_item"]) - FIRST_ID, reduction="none"))
    torch.testing.assert_close(made.loss(given), torch.cat(losses).mean())
    torch.testing.assert_close(made.scores(given, asked()).exp().sum(dim=1), torch.ones(len(REAL)).double())


def test_long_histories_are_cut_into_rows_and_asked_by_the_newest(sequence_schema: FeatureSchema) -> None:
    made = retriever(sequence_schema)
    short = histories(6)
    padded = {n: torch.nn.functional.pad(v, (9, 0)) for n, v in short.ids.items()}
    real = torch.nn.functional.pad(short.real_BT, (9, 0))
    longer = Histories(padded, real.long(), real, short.user_B)
    torch.testing.assert_close(made.loss(longer), made.loss(short))
    torch.testing.assert_close(made.scores(longer, asked()), made.scores(short, asked()))
    filled = {n: v.clone() for n, v in padded.items()}
    for name, value in (("hist_item", 7), ("hist_genre", 4), ("hist_action", 3)):
        filled[name][3, 3:9] = value  # the user with six events has six more before them
    real = real.clone()
    real[3, 3:9] = True
    full = Histories(filled, real.long(), real, short.user_B)
    rows = made.sequences(full)
    assert rows.segment_RL.shape == (3 * len(REAL), LENGTH)
    assert int(rows.segment_RL.sum()) == sum(REAL) + 6
    torch.testing.assert_close(made.scores(full, asked()), made.scores(short, asked()))


def test_items_without_an_id_are_left_out(sequence_schema: FeatureSchema) -> None:
    made, given = retriever(sequence_schema), histories()
    item = given.ids["hist_item"].clone()
    item[3, 0] = KNOWN + 1
    real = given.real_BT.clone()
    real[3, 0] = False
    strange = Histories({**given.ids, "hist_item": item}, given.time_BT, given.real_BT, given.user_B)
    without = Histories(given.ids, given.time_BT, real, given.user_B)
    torch.testing.assert_close(made.loss(strange), made.loss(without))
    torch.testing.assert_close(made.scores(strange, asked()), made.scores(without, asked()))


def test_a_user_scores_the_same_alone(sequence_schema: FeatureSchema) -> None:
    made, given = retriever(sequence_schema), histories()
    together = made.scores(given, asked())
    for b in range(len(REAL)):
        alone = Histories({n: v[b : b + 1] for n, v in given.ids.items()}, given.time_BT[b : b + 1],
                          given.real_BT[b : b + 1], given.user_B[b : b + 1])  # fmt: skip
        one = Asked(asked().cond_B[:1], asked().time_B[:1])
        torch.testing.assert_close(made.scores(alone, one), together[b : b + 1])


def test_it_learns_its_users(sequence_schema: FeatureSchema) -> None:
    torch.manual_seed(0)
    made = SPEC.retriever.build(LumConfig(target="sid", sid_codes=4), sequence_schema, catalogue())
    optimizer, curve = torch.optim.Adam(made.parameters(), lr=1e-2), []
    for _ in range(80):
        loss = made.loss(histories())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(loss.detach()))
    assert curve[-1] < 0.2 * curve[0]


def test_what_the_target_cannot_do_is_refused(sequence_schema: FeatureSchema) -> None:
    with pytest.raises(ValueError, match="choose item or sid"):
        LumConfig(target="token")  # type: ignore[arg-type]
    for wrong in ({"frozen": False, "objective": "joint"}, {"condition": False, "queries": 1}):
        with pytest.raises(ValueError, match="target=sid: objective"):
            LumConfig(target="sid", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resolve collisions"):
        SPEC.retriever.build(
            LumConfig(target="sid", sid_codes=4, sid_levels=1, sid_collision="none"), sequence_schema, catalogue(True)
        )


def test_the_card_calls_the_target_unknown() -> None:
    rows = {r.mechanism: r for r in SPEC.card(LumConfig(target="sid")).rows}
    assert (rows["target of step 1"].status, rows["target of step 1"].switch) == ("unknown", "target=sid")
    assert {r.mechanism: r.status for r in SPEC.card(LumConfig()).rows}["target of step 1"] == "faithful"
