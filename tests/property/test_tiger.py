"""Properties of TIGER (models.md section 5): buckets, masks, caches, beams."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ctrbench.models.tiger_net import Tiger, TigerConfig
from ctrbench.models.trie import Trie
from ctrbench.models.tiger_layers import Attention, DistanceBias, distance_buckets

VOCABULARY = (3, 4, 2)
CONFIG = TigerConfig(width=8, heads=2, head=3, hidden=10, users=5)


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
    scores, _ = net.decode(given, memory)
    total = 0.0
    for b in range(4):
        for place, n in enumerate(VOCABULARY):
            start = 1 + 5 + sum(VOCABULARY[:place])
            p = scores[b, place, start : start + n].softmax(0)[following[b, place]]
            total -= math.log(float(p)) / 12
    assert float(net.loss(user, codes, real, following)) == pytest.approx(total)


def exhaustive(net: Tiger, row: int, given: tuple[torch.Tensor, ...], items: list[tuple[int, ...]]) -> list[float]:
    """Log-probability of every item for one row."""
    user, codes, real = (t[row : row + 1] for t in given[:3])
    out = []
    for item in items:
        target = torch.tensor([item])
        out.append(-3 * float(net.loss(user, codes, real, target)))
    return out


def test_a_beam_of_all_codes_is_exhaustive_and_a_beam_of_one_is_greedy():
    net, given = model(), rows()
    every = list(itertools.product(*(range(n) for n in VOCABULARY)))
    found = net.search(*given[:3], None, len(every))
    for row, best in enumerate(found):
        expected = sorted(zip(exhaustive(net, row, given, every), every, strict=True), reverse=True)
        assert [codes for _, codes in best] == [codes for _, codes in expected]
        assert [score for score, _ in best] == pytest.approx([score for score, _ in expected])
    for row, ((_, codes),) in enumerate(net.search(*given[:3], None, 1)):
        memory = net.encode(*(t[row : row + 1] for t in given[:3]))
        tokens, chosen = [0], []
        for start, n in zip(net.starts_L.tolist(), VOCABULARY, strict=True):
            scores, _ = net.decode(torch.tensor([tokens]), memory)
            chosen.append(int(scores[0, -1, start : start + n].argmax()))
            tokens.append(start + chosen[-1])
        assert codes == tuple(chosen)


def test_a_trie_yields_real_items_alone_in_the_order_of_their_scores():
    net, given = model(), rows()
    catalogue = torch.tensor([[0, 1, 0], [0, 1, 1], [2, 3, 0], [1, 0, 1], [2, 0, 0]])
    trie = Trie(catalogue)
    items = [tuple(row) for row in catalogue.tolist()]
    for row, best in enumerate(net.search(*given[:3], trie, 10)):
        expected = sorted(zip(exhaustive(net, row, given, items), items, strict=True), reverse=True)
        assert [codes for _, codes in best] == [codes for _, codes in expected]
        assert all(codes in trie.item for _, codes in best)
    with pytest.raises(ValueError, match="share all their codes"):
        Trie(torch.tensor([[0, 1], [0, 1]]))


def test_every_parameter_learns_and_users_are_hashed():
    net, (user, codes, real, following) = model(tie=False), rows()
    net.loss(user, codes, real, following).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in net.named_parameters())
    torch.testing.assert_close(net.loss(user + 5, codes, real, following), net.loss(user, codes, real, following))
    assert not torch.allclose(net.loss(user + 1, codes, real, following), net.loss(user, codes, real, following))


def test_published_sizes_have_their_parameters():
    """4 + 4 layers, d 128, 6 heads of 64, 1024 hidden: 4.46 M in the blocks, 4.84 M with about 3 k tokens."""
    config = TigerConfig(width=128, layers=4, heads=6, head=64, hidden=1024, users=2000)
    net = Tiger(config, (256, 256, 256, 256))
    blocks = sum(p.numel() for part in (net.encoder, net.decoder) for p in part.parameters())
    assert blocks / 1e6 == pytest.approx(4.46, abs=0.01)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(4.84, abs=0.02)
