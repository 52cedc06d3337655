"""Properties of semantic IDs (models.md section 5)."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.models.residual_codes import SidConfig, quantise, rq_kmeans
from ctrbench.models.rq_vae import RqVae, train_rq_vae
from ctrbench.models.semantic_ids import semantic_ids, sid_facts


def clustered(items: int = 300, width: int = 6, centres: int = 8, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centre = 3 * torch.randn(centres, width, generator=g)
    return centre[torch.randint(centres, (items,), generator=g)] + 0.3 * torch.randn(items, width, generator=g)


@settings(max_examples=15, deadline=None)
@given(levels=st.integers(1, 4), codes=st.integers(2, 9), seed=st.integers(0, 99))
def test_codes_and_what_is_left_add_up_and_the_mean_never_rises(levels, codes, seed):
    x = clustered(80, seed=seed).double()
    books = rq_kmeans(x, levels, codes, seed)
    found = quantise(x, books)
    whole = found.left_LID[-1] + sum(books[level][found.codes_IL[:, level]] for level in range(levels))
    torch.testing.assert_close(whole, x)
    errors = [float(x.square().sum(dim=1).mean()), *found.mean_square_L.tolist()]
    assert all(b <= a + 1e-9 for a, b in pairwise(errors))
    assert int(found.codes_IL.min()) >= 0
    assert int(found.codes_IL.max()) < codes
    assert torch.equal(quantise(x, books).codes_IL, found.codes_IL)


def test_the_nearest_code_by_loops():
    x, books = clustered(20).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    found = quantise(x, books)
    for i in range(20):
        left = x[i]
        for level in range(2):
            nearest = min(range(5), key=lambda k: float((left - books[level, k]).square().sum()))
            assert found.codes_IL[i, level] == nearest
            left = left - books[level, nearest]


@pytest.mark.parametrize("method", ["rqkmeans", "rqvae", "random"])
def test_appended_codes_tell_every_item_apart(method):
    config = SidConfig(method=method, levels=2, codes=5)
    found = semantic_ids(clustered(), config, steps=30)
    assert found.codes_IL.shape == (300, 3)
    assert found.unresolved == 0
    assert len(torch.unique(found.codes_IL, dim=0)) == 300
    assert found.collisions == 300 - len(torch.unique(found.codes_IL[:, :2], dim=0)) > 0
    assert all(int(c.max()) < n for c, n in zip(found.codes_IL.unbind(1), found.vocabulary, strict=True))
    assert torch.equal(semantic_ids(clustered(), config, steps=30).codes_IL, found.codes_IL), "the seed decides"


def test_spilling_moves_later_items_to_the_nearest_free_codes():
    x = clustered(60)
    shared = semantic_ids(x, SidConfig(levels=2, codes=8, collision="none"))
    moved = semantic_ids(x, SidConfig(levels=2, codes=8, collision="spill_knn"))
    assert shared.collisions == shared.unresolved == moved.collisions > 0
    assert moved.unresolved == 0
    scaled = (x - x.mean(dim=0)) / x.std(dim=0)
    books = rq_kmeans(scaled, 2, 8, 0)
    taken = {tuple(row) for row in shared.codes_IL.tolist()}
    seen = set()
    for at, (before, after) in enumerate(zip(shared.codes_IL.tolist(), moved.codes_IL.tolist(), strict=True)):
        if tuple(before) not in seen:
            assert before == after, "the first of its codes stays"
            seen.add(tuple(before))
            continue
        by_distance = [
            (
                float((scaled[at] - books[0, a]).square().sum()),
                float((scaled[at] - books[0, a] - books[1, b]).square().sum()),
                (a, b),
            )
            for a in range(8)
            for b in range(8)
        ]
        assert tuple(after) == next(codes for _, _, codes in sorted(by_distance) if codes not in taken)
        taken.add(tuple(after))


def test_more_items_than_codes_are_told():
    full = semantic_ids(clustered(60), SidConfig(levels=1, codes=8, collision="spill_knn"))
    assert (full.collisions, full.unresolved) == (52, 52)


def test_facts_by_hand():
    x, config = clustered(200), SidConfig(levels=2, codes=8, standardise=False)
    ids = semantic_ids(x, config)
    facts = sid_facts(ids, config)
    assert facts["mean_square"] == pytest.approx(float(x.square().sum(dim=1).mean()))
    left = quantise(x, rq_kmeans(x, 2, 8, 0))
    assert facts["mean_square_left"] == pytest.approx(left.mean_square_L.tolist())
    assert facts["mean_square"] > facts["mean_square_left"][0] > facts["mean_square_left"][1]
    for level in range(2):
        counts = Counter(left.codes_IL[:, level].tolist())
        assert facts["code_use"][level] == len(counts) / 8
        assert facts["entropy_nats"][level] == pytest.approx(-sum(n / 200 * math.log(n / 200) for n in counts.values()))
    assert facts["collisions"] == 200 - len({tuple(c) for c in left.codes_IL.tolist()})
    assert (facts["unresolved"], facts["items"], facts["vocabulary"][:2]) == (0, 200, [8, 8])


@pytest.mark.parametrize("method", ["rqkmeans", "rqvae"])
def test_defaults_use_their_codes_and_leave_less_at_every_level(method):
    """On generated content of 40 clusters; the real-data test holds it on MovieLens-1M."""
    x = clustered(1500, width=12, centres=40)
    facts = sid_facts(semantic_ids(x, SidConfig(method=method), steps=450, batch=512), SidConfig(method=method))
    errors = [facts["mean_square"], *facts["mean_square_left"]]
    assert errors == sorted(errors, reverse=True)
    assert min(facts["code_use"]) > 0.95
    assert facts["collisions"] > 0 == facts["unresolved"]


@pytest.mark.parametrize("method", ["rqkmeans", "rqvae"])
def test_ids_are_those_of_the_content_and_their_own_seed(method):
    """Whatever the process drew before; a seed of their own is the only one that changes them."""
    x, config = clustered(), SidConfig(method=method, levels=2, codes=8, restart=5)

    def made(drawn_before: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, object]]:
        torch.manual_seed(drawn_before)
        ids = semantic_ids(x.clone(), config, seed=seed, steps=20, batch=64)
        return ids.codes_IL, sid_facts(ids, config)

    codes, facts = made(1)
    for before in (1, 2):
        again, same = made(before)
        assert torch.equal(again, codes)
        assert same == facts
    assert not torch.equal(made(1, seed=1)[0], codes)


def test_clusters_of_the_data_use_every_code():
    found = semantic_ids(clustered(2000, centres=16), SidConfig(levels=3, codes=16))
    assert min(found.used_L) > 0.95
    assert sorted(found.mean_square_L, reverse=True) == list(found.mean_square_L)


def test_content_is_brought_to_one_scale():
    x = clustered()
    scaled = x * torch.tensor([2.0**12, 1.0, 1.0, 2.0**-12, 1.0, 1.0])  # powers of two: no rounding tips a tie
    same = semantic_ids(scaled, SidConfig())
    assert torch.equal(same.codes_IL, semantic_ids(x, SidConfig()).codes_IL)
    assert not torch.equal(semantic_ids(scaled, SidConfig(standardise=False)).codes_IL, same.codes_IL)


def test_loss_of_the_vae_by_its_formula_and_its_gradients():
    config = SidConfig(method="rqvae", levels=2, codes=4, width=3, hidden=(5,), commitment=0.25)
    model, x = RqVae(6, config).double(), clustered(10).double()
    z = model.encoder(x)
    codes = quantise(z.detach(), model.books_LKD.detach()).codes_IL
    expected = torch.zeros(10, dtype=torch.float64)
    left, total = z, torch.zeros_like(z)
    for level in range(2):
        e = model.books_LKD[level][codes[:, level]]
        expected = expected + 1.25 * (left - e).square().sum(dim=1)
        left, total = left - e, total + e
    expected = expected + (x - model.decoder(total)).square().sum(dim=1)
    loss = model(x)
    torch.testing.assert_close(loss, expected.mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())
    used = torch.zeros(2, 4, dtype=torch.bool)
    for level in range(2):
        used[level, codes[:, level]] = True
    assert torch.equal(model.books_LKD.grad.abs().sum(dim=2) > 0, used), "codes that no item has learn nothing"


def test_straight_through_hands_the_decoders_gradient_to_the_encoder():
    config = SidConfig(method="rqvae", levels=1, codes=4, width=3, hidden=(), commitment=0.0)
    model, x = RqVae(3, config).double(), clustered(10, 3).double()
    model(x).backward()
    z = model.encoder(x).detach()
    code = model.books_LKD[0][quantise(z, model.books_LKD.detach()).codes_IL[:, 0]].detach().requires_grad_()
    (x - model.decoder(code)).square().sum(dim=1).mean().backward()
    (linear,) = [m for m in model.encoder if isinstance(m, torch.nn.Linear)]
    torch.testing.assert_close(linear.weight.grad, code.grad.t() @ x)


def test_training_lowers_the_loss():
    x, config = clustered(), SidConfig(method="rqvae", levels=2, codes=8)
    short, long = (train_rq_vae(x, config, steps=n, batch=128, lr=2e-3, seed=0) for n in (1, 200))
    assert float(long(x)) < 0.7 * float(short(x))


def test_codes_that_nobody_has_start_anew_at_items():
    config, x = SidConfig(method="rqvae", levels=2, codes=6, width=3, hidden=()), clustered(50)
    model = RqVae(6, config)
    with torch.no_grad():
        model.books_LKD[:, 3:] = 1e3  # far from everything
    before = model.books_LKD.detach().clone()
    z = model.encoder(x).detach()
    used = set(quantise(z, before[:1]).codes_IL[:, 0].tolist())
    assert model.restart(x, torch.Generator().manual_seed(0)) >= 6
    after = model.books_LKD.detach()
    for code in range(6):
        if code in used:
            assert torch.equal(after[0, code], before[0, code])
        else:
            assert float((z - after[0, code]).square().sum(dim=1).min()) < 1e-10
    assert float(after.abs().max()) < 1e3


def test_wrong_options_and_too_few_items_are_refused():
    for option in ({"method": "pq"}, {"collision": "drop"}, {"levels": 0}, {"codes": 1}):
        with pytest.raises(ValueError, match=next(iter(option))):
            SidConfig(**option)
    with pytest.raises(ValueError, match="fewer different residuals than codes=32"):
        semantic_ids(clustered(20), SidConfig())
