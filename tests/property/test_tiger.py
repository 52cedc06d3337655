"""Properties of TIGER (models.md section 5): buckets, masks, caches, beams."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import FIRST_ID, synthetic_batch
from ctrbench.models.retriever import Asked, Catalogue, Histories
from ctrbench.models.tiger import PUBLISHED, SPEC, flops
from ctrbench.models.tiger_layers import Attention, DistanceBias, distance_buckets
from ctrbench.models.tiger_net import Tiger, TigerConfig
from ctrbench.models.tiger_retriever import draw
from ctrbench.models.trie import Trie, spread

VOCABULARY = (3, 4, 2)


def model(**options: object) -> Tiger:
    torch.manual_seed(0)
    made = Tiger(TigerConfig(**{"width": 8, "heads": 2, "head": 3, "hidden": 10, "users": 5, **options}), VOCABULARY)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return made.double().eval()


def rows(
    count: int = 4, items: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(users, histories, which items are real, next items); one history is empty."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(n, (count, items), generator=g) for n in VOCABULARY], dim=2)
    real = torch.arange(items) >= torch.tensor([0, 2, 4, 5])[:count, None]
    following = torch.stack([torch.randint(n, (count,), generator=g) for n in VOCABULARY], dim=1)
    return torch.randint(1000, (count,), generator=g), codes, real, following


def test_distance_buckets_are_those_of_t5():
    """Values of the rule for 32 buckets up to 128: exact below 8 (both sides) or 16, then logarithmic."""
    both = distance_buckets(torch.tensor([0, -1, -7, -8, -15, -127, -500, 1, 7, 8, 500]), both_sides=True)
    assert both.tolist() == [0, 1, 7, 8, 9, 15, 15, 17, 23, 24, 31]
    one = distance_buckets(torch.tensor([0, 3, -1, -15, -16, -127, -500]), both_sides=False)
    assert one.tolist() == [0, 0, 1, 15, 16, 31, 31]
    bias = DistanceBias(2, both_sides=False)
    torch.testing.assert_close(bias(2, 6, start=4), bias(6, 6)[:, 4:])


def test_attention_by_loops_without_scaling():
    part, x = Attention(6, 2, 3).double(), torch.randn(1, 4, 6, dtype=torch.float64)
    bias = torch.randn(2, 4, 4, dtype=torch.float64)
    q, kv = x[0] @ part.query.weight.t(), x[0] @ part.key_value.weight.t()
    merged = []
    for i in range(4):
        heads = []
        for h in range(2):
            k, v = kv[:, 3 * h : 3 * h + 3], kv[:, 6 + 3 * h : 9 + 3 * h]
            heads.append((q[i, 3 * h : 3 * h + 3] @ k.t() + bias[h, i]).softmax(0) @ v)
        merged.append(torch.cat(heads) @ part.out.weight.t())
    torch.testing.assert_close(part(x, part.keys(x), bias)[0], torch.stack(merged))


@pytest.mark.parametrize("tie", [True, False])
def test_a_code_never_sees_those_after_it(tie):
    net, (user, codes, real, following) = model(tie=tie), rows()
    memory = net.encode(user, codes, real)
    given = torch.nn.functional.pad(following[:, :-1] + net.starts_L[:-1], (1, 0))
    before, _ = net.decode(given, memory)
    changed = given.clone()
    changed[:, 2] = int(net.starts_L[1])  # another second code
    changed[following[:, 1] == 0, 2] += 1
    after, _ = net.decode(changed, memory)
    assert torch.equal(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2], before[:, 2])


def test_decoding_with_a_cache_is_decoding_at_once():
    net, (user, codes, real, following) = model(), rows()
    memory = net.encode(user, codes, real)
    given = torch.nn.functional.pad(following[:, :-1] + net.starts_L[:-1], (1, 0))
    whole, _ = net.decode(given, memory)
    past = None
    for place in range(3):
        step, past = net.decode(given[:, place : place + 1], memory, past)
        torch.testing.assert_close(step[:, 0], whole[:, place])


def test_padding_of_the_history_changes_nothing():
    net, (user, codes, real, following) = model(), rows()
    loss = net.loss(user, codes, real, following)
    other = torch.where(real.unsqueeze(2), codes, (codes + 1) % torch.tensor(VOCABULARY))
    torch.testing.assert_close(net.loss(user, other, real, following), loss)
    alone = model(users=0)
    memory, mask = alone.encode(user[:1], codes[:1], real[:1])
    assert mask.shape[-1] == 15
    assert torch.isfinite(memory[0][0]).all()


def test_loss_by_hand():
    net, (user, codes, real, following) = model(), rows()
    memory = net.encode(user, codes, real)
    given = torch.nn.functional.pad(following[:, :-1] + net.starts_L[:-1], (1, 0))
    states, _ = net.decode(given, memory)
    total = 0.0
    for b in range(4):
        for place, n in enumerate(VOCABULARY):
            start = 1 + 5 + sum(VOCABULARY[:place])
            scores = states[b, place] @ net.tokens.weight[start : start + n].t() / math.sqrt(8)
            total -= float(scores.detach().log_softmax(0)[following[b, place]]) / 12
    assert float(net.loss(user, codes, real, following)) == pytest.approx(total)


EVERY = torch.tensor(list(itertools.product(*(range(n) for n in VOCABULARY))))


def exhaustive(net: Tiger, row: int, given: tuple[torch.Tensor, ...], items: torch.Tensor) -> list[tuple[float, int]]:
    """(log-probability, number) of every item for one row, best first."""
    user, codes, real = (t[row : row + 1] for t in given[:3])
    return sorted(((-3 * float(net.loss(user, codes, real, c[None])), i) for i, c in enumerate(items)), reverse=True)


def slow_search(
    net: Tiger, given: tuple[torch.Tensor, ...], items: torch.Tensor, beams: int
) -> list[tuple[float, int]]:
    """Beam search of one row with lists, every beam decoded from its beginning."""
    memory = net.encode(*given)
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    catalogue = [tuple(c) for c in items.tolist()]
    for place in range(len(VOCABULARY)):
        found = []
        for score, begun in live:
            tokens = torch.tensor([[0, *(start + c for start, c in zip(net.starts, begun, strict=False))]])
            log = net.scores(net.decode(tokens, memory)[0][0, -1:], place).log_softmax(1)[0]
            after = sorted({c[place] for c in catalogue if c[:place] == begun})
            found += [(score + float(log[code]), (*begun, code)) for code in after]
        live = sorted(found, reverse=True)[:beams]
    return [(score, catalogue.index(codes)) for score, codes in live]


def listed(found: tuple[torch.Tensor, torch.Tensor], row: int) -> list[tuple[float, int]]:
    return [(float(s), int(i)) for s, i in zip(found[0][row], found[1][row], strict=True) if i >= 0]


def agree(found: list[tuple[float, int]], expected: list[tuple[float, int]]) -> None:
    assert [item for _, item in found] == [item for _, item in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected])


def test_a_beam_of_all_codes_is_exhaustive_and_a_beam_of_one_is_greedy():
    net, given = model(), rows()
    trie = Trie(EVERY, VOCABULARY)
    found, best = net.search(*given[:3], trie, len(EVERY)), net.search(*given[:3], trie, 1)
    for row in range(4):
        agree(listed(found, row), exhaustive(net, row, given, EVERY))
        memory = net.encode(*(t[row : row + 1] for t in given[:3]))
        tokens, chosen = [0], []
        for place, start in enumerate(net.starts):
            state, _ = net.decode(torch.tensor([tokens]), memory)
            chosen.append(int(net.scores(state[:, -1], place).argmax()))
            tokens.append(start + chosen[-1])
        assert EVERY[best[1][row, 0]].tolist() == chosen


CATALOGUE = torch.tensor([[0, 1, 0], [0, 1, 1], [2, 3, 0], [1, 0, 1], [2, 0, 0]])


def test_a_trie_yields_real_items_alone_in_the_order_of_their_scores():
    net, given = model(), rows()
    found = net.search(*given[:3], Trie(CATALOGUE, VOCABULARY), 10)
    for row in range(4):
        agree(listed(found, row), exhaustive(net, row, given, CATALOGUE))
    with pytest.raises(ValueError, match="share all their codes"):
        Trie(torch.tensor([[0, 1], [0, 1]]), (1, 2))


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("tie", [True, False])
def test_searching_all_users_at_once_is_searching_one_by_one_with_lists(beams, tie):
    net, given = model(tie=tie), rows(seed=3)
    for items in (CATALOGUE, EVERY[::2]):
        found = net.search(*given[:3], Trie(items, VOCABULARY), beams)
        for row in range(4):
            agree(listed(found, row), slow_search(net, tuple(t[row : row + 1] for t in given[:3]), items, beams))


def test_beams_that_end_nowhere_are_no_items():
    """Two beams at the first place, one of which the second place gives one way on and the other none more."""
    step = lambda place, parent, code: torch.zeros(1, parent.shape[1], (2, 3)[place])  # noqa: E731
    _, item = Trie(torch.tensor([[0, 2], [1, 0], [1, 1]]), (2, 3)).search(step, 1, 2)
    assert sorted(item[0].tolist()) in ([0, 1], [0, 2], [1, 2])
    spread_out = spread((torch.tensor([[-1.0, -math.inf]]), torch.tensor([[2, -1]])), torch.tensor([3, 4, 6]), 7)
    assert spread_out.tolist() == [[-math.inf] * 6 + [-1.0]]


def test_every_parameter_learns_and_users_are_hashed():
    net, (user, codes, real, following) = model(tie=False), rows()
    net.loss(user, codes, real, following).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in net.named_parameters())
    torch.testing.assert_close(net.loss(user + 5, codes, real, following), net.loss(user, codes, real, following))
    assert not torch.allclose(net.loss(user + 1, codes, real, following), net.loss(user, codes, real, following))


def test_published_sizes_have_their_parameters():
    """4 + 4 layers, d 128, 6 heads of 64, 1024 hidden: 4.46 M in the blocks, 4.84 M with about 3 k tokens."""
    net = Tiger(PUBLISHED, (256, 256, 256, 256))
    blocks = sum(p.numel() for part in (net.encoder, net.decoder) for p in part.parameters())
    assert blocks / 1e6 == pytest.approx(4.46, abs=0.01)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(4.84, abs=0.02)


# ------------------------------------------------------------------ as a retriever and in the registry


def catalogue(items: int = 50, known: int = 40, seed: int = 0) -> Catalogue:
    content = torch.randn(items, 6, generator=torch.Generator().manual_seed(seed))
    content[:FIRST_ID] = content[known:] = 0.0
    return Catalogue(items, torch.zeros(items, dtype=torch.long), content, "random vectors")


def histories(users: int = 5, length: int = 7, seed: int = 0) -> Histories:
    g = torch.Generator().manual_seed(seed)
    real = torch.arange(length) >= length - torch.tensor([0, 1, 2, 5, 7])[:users, None]
    ids = {n: torch.randint(FIRST_ID, rows, (users, length), generator=g) * real
           for n, rows in (("hist_item", 40), ("hist_genre", 9), ("hist_action", 5))}  # fmt: skip
    return Histories(ids, real.long(), real, torch.arange(users))


def retriever(schema, **options):
    torch.manual_seed(0)
    made = SPEC.retriever.build(TigerConfig(sid_codes=4, history=3, **options), schema, catalogue())
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.5)
    return made.eval()


def asked(users: int = 5) -> Asked:
    return Asked(torch.zeros(users, dtype=torch.long), torch.zeros(users, dtype=torch.long))


def test_drawn_events_have_one_before_them_and_are_drawn_once():
    real = histories().real_BT
    places, drawn = draw(real, 4)
    for b, n in enumerate([0, 1, 2, 5, 7]):
        mine = places[b][drawn[b]].tolist()
        assert len(mine) == len(set(mine)) == min(4, max(0, n - 1))
        assert all(place > 7 - n for place in mine)
    assert not torch.equal(draw(real, 4)[0], places), "anew each time"


def test_loss_of_the_retriever_is_the_networks_at_every_event(sequence_schema):
    """With as many targets as events every event with one before it is predicted, from its three predecessors."""
    made, given = retriever(sequence_schema, targets=7), histories()
    codes, item = made.codes.codes_VL, given.ids["hist_item"]
    losses = []
    for b, n in enumerate([0, 1, 2, 5, 7]):
        for t in range(7 - n + 1, 7):
            before = [int(item[b, at]) if at >= 7 - n else 0 for at in (t - 3, t - 2, t - 1)]
            real = torch.tensor([[e > 0 for e in before]])
            losses.append(made.net.loss(given.user_B[b : b + 1], codes[before][None], real, codes[item[b, t]][None]))
    torch.testing.assert_close(made.loss(given), torch.stack(losses).mean())
    nothing = Histories(
        {n: v[:2] for n, v in given.ids.items()}, given.time_BT[:2], given.real_BT[:2], given.user_B[:2]
    )
    assert float(made.loss(nothing)) == 0.0


def test_the_retriever_proposes_items_with_content_alone(sequence_schema):
    made, given = retriever(sequence_schema, beams=1000), histories()
    scores = made.scores(given, asked())
    assert scores.shape == (5, 50)
    assert torch.isfinite(scores[:, FIRST_ID:40]).all()
    assert (scores[:, :FIRST_ID] == -math.inf).all()
    assert (scores[:, 40:] == -math.inf).all()
    torch.testing.assert_close(scores.exp().sum(dim=1) < 1.0, torch.ones(5, dtype=torch.bool))
    for b in range(5):
        alone = Histories({n: v[b : b + 1, -4:] for n, v in given.ids.items()}, given.time_BT[b : b + 1, -4:],
                          given.real_BT[b : b + 1, -4:], given.user_B[b : b + 1])  # fmt: skip
        torch.testing.assert_close(made.scores(alone, asked(1)), scores[b : b + 1])
    few = retriever(sequence_schema, beams=3).scores(given, asked())
    assert (torch.isfinite(few).sum(dim=1) == 3).all()
    kept = torch.isfinite(few)
    torch.testing.assert_close(few[kept], scores[kept])
    item = given.ids["hist_item"].clone()
    item[4, -1] = 45  # an item without an ID is as if it were not there
    other = Histories({**given.ids, "hist_item": item}, given.time_BT, given.real_BT, given.user_B)
    real = given.real_BT.clone()
    real[4, -1] = False
    masked = Histories(given.ids, given.time_BT, real, given.user_B)
    torch.testing.assert_close(made.scores(other, asked()), made.scores(masked, asked()))


def test_a_retriever_of_nothing_is_refused(sequence_schema):
    empty = Catalogue(50, torch.zeros(50, dtype=torch.long), torch.zeros(50, 3), "nothing")
    with pytest.raises(ValueError, match="no item of the catalogue has content"):
        SPEC.retriever.build(TigerConfig(), sequence_schema, empty)
    with pytest.raises(ValueError, match="beams=0"):
        TigerConfig(beams=0)


def test_the_step_on_random_users_is_the_networks_loss_and_learns(sequence_schema):
    step_model = SPEC.build(TigerConfig(sid_codes=4, history=3), sequence_schema)
    batch = synthetic_batch(sequence_schema, 6, full=False)
    item = batch.ids["hist_item"]
    losses = []
    for b, begin in enumerate(item.offsets()[:-1].tolist()):
        mine = item.values()[begin : begin + int(item.lengths()[b])][-3:]
        real = torch.arange(3) >= 3 - len(mine)
        padded = torch.nn.functional.pad(mine, (3 - len(mine), 0))
        wanted = step_model.codes_VL[batch.ids["item"].values()[b]][None]
        losses.append(
            step_model.net.loss(batch.user_B[b : b + 1], step_model.codes_VL[padded][None], real[None], wanted)
        )
    torch.testing.assert_close(step_model(batch), torch.stack(losses).mean())
    step = TrainStep(step_model.train(), lr=1e-2)
    curve = [float(step(batch)) for _ in range(60)]
    assert curve[-1] < 0.3 * curve[0]


def test_closed_form_counts_what_is_visible(sequence_schema):
    config = TigerConfig()
    whole, short = flops(config, sequence_schema), flops(config, sequence_schema, {"hist": 2})
    assert whole.visible == flops(config, sequence_schema, {"hist": 6}).visible < whole.full == short.full
    assert short.visible < whole.visible
    assert whole.full - whole.visible == config.layers * 4 * 32 * (16 - 10), "codes that come later"


def test_what_the_card_calls_published_is():
    rows = {r.mechanism: r.status for r in SPEC.card(PUBLISHED).rows}
    small = {r.mechanism: r.status for r in SPEC.card(TigerConfig()).rows}
    for mechanism in ("sizes", "codes by RQ-VAE: residual rule, loss, straight-through", "codes of a level"):
        assert (rows[mechanism], small[mechanism]) == ("faithful", "adapted")
    assert SPEC.tracks == ()
    assert set(SPEC.skip_reason) == {"tabular", "sequence"}
