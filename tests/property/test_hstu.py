"""Properties of HSTU (models.md section 6): layers, bias, masks, shared histories, stochastic length."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm, silu

from ctrbench.datasets.schema import Batch, synthetic_batch
from ctrbench.kernels.pointwise_attention import pointwise_attention, pointwise_attention_plain
from ctrbench.models.hstu import Hstu, HstuConfig, shorten
from ctrbench.models.hstu_layers import HstuLayer, Places, RelativeBias, seen, time_buckets
from ctrbench.models.hstu_serving import HstuServing
from ctrbench.models.requests import requests_of
from ctrbench.models.serving import WholeRows, serve

SERVED = [{}, {"flavour": "production"}, {"rab": "pos"}, {"rab": "none"}, {"concat_ua": True}, {"layers": 1}]
FLAVOURS = pytest.mark.parametrize("flavour", ["research", "production"])


def places(rows: int, tokens: int, seed: int = 0) -> Places:
    """Increasing ordinals and times, next times those of the following token."""
    g = torch.Generator().manual_seed(seed)
    time = torch.randint(1, 10_000, (rows, tokens), generator=g).cumsum(dim=1)
    return Places(torch.arange(tokens).expand(rows, -1), time, torch.cat([time[:, 1:], time[:, -1:] + 77], dim=1))


@settings(max_examples=20, deadline=None)
@given(heads=st.integers(1, 3), qk=st.integers(1, 4), v=st.integers(1, 4), tokens=st.integers(1, 5),
       biased=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_attention_equals_its_plain_twin(heads, qk, v, tokens, biased, seed):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mask = torch.rand(2, tokens, tokens, generator=g) > 0.4
    bias = draw(2, tokens, tokens) if biased else None
    case = (draw(2, heads, tokens, qk), draw(2, heads, tokens, qk), draw(2, heads, tokens, v), mask, bias, 0.7, 9.0)
    torch.testing.assert_close(pointwise_attention(*case), pointwise_attention_plain(*case))


@pytest.mark.parametrize("concat", [False, True])
@FLAVOURS
def test_a_layer_by_its_formula(flavour, concat):
    torch.manual_seed(1)
    layer = HstuLayer(6, 2, 3, 4, 50, flavour=flavour, concat_ua=concat).double().eval()
    at, mask = places(3, 5), torch.ones(5, 5, dtype=torch.bool).tril().expand(3, -1, -1)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    research = flavour == "research"
    normed = layer_norm(x, (6,), layer.input_norm.weight, layer.input_norm.bias, 1e-6)
    mixed = normed @ layer.uvqk.weight.t() + (0 if research else layer.uvqk.bias)
    mixed = silu(mixed) if research else mixed
    u, v, q, k = mixed[..., :8], mixed[..., 8:16], mixed[..., 16:22], mixed[..., 22:]
    u = u if research else silu(u)
    bias = layer.bias(at, at) if research else torch.zeros(3, 5, 5)
    out = torch.zeros(3, 5, 8, dtype=torch.float64)
    for b in range(3):
        for i in range(5):
            for h in range(2):
                for j in range(i + 1):
                    score = q[b, i, 3 * h : 3 * h + 3] @ k[b, j, 3 * h : 3 * h + 3]
                    weight = silu(score + bias[b, i, j] if research else score / math.sqrt(3)) / 50
                    out[b, i, 4 * h : 4 * h + 4] += weight * v[b, j, 4 * h : 4 * h + 4]
    gated = u * layer_norm(out, (8,), layer.output_norm.weight, layer.output_norm.bias, 1e-6)
    if concat or not research:
        gated = torch.cat([u, layer_norm(out, (8,), eps=1e-6) if research else out, gated], dim=2)
    expected = gated @ layer.out.weight.t() + (layer.out.bias if research else 0) + x
    torch.testing.assert_close(layer(x, mask, at)[0], expected)


def test_without_values_a_layer_is_its_bias_and_the_residual():
    layer = HstuLayer(6, 2, 3, 4, 50).double()
    with torch.no_grad():
        layer.uvqk.weight[8:16] = 0
    x, at = torch.randn(3, 5, 6, dtype=torch.float64), places(3, 5)
    torch.testing.assert_close(layer(x, torch.ones(3, 5, 5, dtype=torch.bool), at)[0], x + layer.out.bias)


def test_bias_by_its_formula_and_blind_to_a_shift_in_time():
    bias = RelativeBias("pos_time", 8).double()
    at = places(2, 5)
    table = bias(at, at)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                gap = abs(int(at.next_BN[b, i]) - int(at.time_BN[b, j]))
                bucket = min(128, math.floor(math.log(max(1, gap)) / 0.301))
                torch.testing.assert_close(table[b, i, j], bias.places[j - i + 8] + bias.times[bucket])
    later = Places(at.ordinal_BN, at.time_BN + 10**6, at.next_BN + 10**6)
    assert torch.equal(bias(later, later), table)
    assert time_buckets(torch.tensor([0, 1, 2, 2**62])).tolist() == [0, 0, 2, 128]


def test_appending_an_event_changes_no_older_row_but_the_last():
    """The newest event takes its own time for its successor's until that one arrives."""
    layers = [HstuLayer(6, 2, 3, 4, 50).double() for _ in range(2)]
    whole, x = places(2, 6), torch.randn(2, 6, 6, dtype=torch.float64)
    short = Places(whole.ordinal_BN[:, :5], whole.time_BN[:, :5], whole.next_BN[:, :5].clone())
    short.next_BN[:, -1] = short.time_BN[:, -1]
    before, after = x[:, :5], x
    for layer in layers:
        before = layer(before, torch.ones(2, 5, 5, dtype=torch.bool).tril(), short)[0]
        after = layer(after, torch.ones(2, 6, 6, dtype=torch.bool).tril(), whole)[0]
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4], before[:, 4])


def test_who_sees_whom():
    real = torch.tensor([[True, False, True, True]])  # user, padding, two events
    assert seen(real, 2)[0].int().tolist() == [
        [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1],
    ]  # fmt: skip


def build(schema, randomise, **options) -> Hstu:
    return randomise(Hstu(HstuConfig(**options), schema)).eval()


@pytest.mark.parametrize("options", SERVED, ids=str)
def test_one_history_gives_the_scores_of_whole_runs_in_any_micro_batches(options, sequence_schema, randomise):
    model = build(sequence_schema, randomise, **options)
    users = synthetic_batch(sequence_schema, 4, full=False)  # one without history, others of several lengths
    asked = requests_of(sequence_schema, users, synthetic_batch(sequence_schema, 4 * 7, seed=1))
    want = serve(WholeRows(model, sequence_schema), asked)
    for size in (1, 3, 64):
        got = serve(HstuServing(model, sequence_schema, size), asked)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_what_is_kept_of_a_request_is_its_real_events(sequence_schema, randomise):
    model = build(sequence_schema, randomise)
    users = synthetic_batch(sequence_schema, 4, full=False)
    context = HstuServing(model, sequence_schema).context(users)
    for history, n in zip(context.histories, users.host["lengths"]["hist"], strict=True):
        assert [k.shape[2] for k, _ in history.pasts] == [1 + n] * 2
        assert history.nbytes == (1 + n) * (2 * 2 * (2 * 16 + 0) * 4 + 3 * 8)


def test_the_constant_is_no_length_of_the_batch(sequence_schema, randomise):
    """Deriving it from what is there would change scores: two lengths of padding, one result; another norm, another."""
    layer = HstuLayer(6, 2, 3, 4, 50).double()
    x, at = torch.randn(2, 4, 6, dtype=torch.float64), places(2, 4)
    mask = torch.ones(2, 4, 4, dtype=torch.bool).tril()
    out = layer(x, mask, at)[0]
    pad = torch.nn.functional.pad
    wide = Places(*(pad(t, (0, 3)) for t in (at.ordinal_BN, at.time_BN, at.next_BN)))
    torch.testing.assert_close(layer(pad(x, (0, 0, 0, 3)), pad(mask, (0, 3, 0, 3)), wide)[0][:, :4], out)
    layer.norm = 4.0
    assert not torch.allclose(layer(x, mask, at)[0], out)


def _shifted(batch: Batch, seconds: int) -> Batch:
    times = {h: t + seconds for h, t in batch.event_times.items()}
    return replace(batch, event_times=times, time_B=batch.time_B + seconds)


def test_shifting_all_times_changes_nothing_and_the_request_does(sequence_schema, randomise):
    model = build(sequence_schema, randomise)
    batch = synthetic_batch(sequence_schema, 6, full=False)
    torch.testing.assert_close(model(_shifted(batch, 4321)), model(batch), atol=1e-5, rtol=1e-5)
    later = replace(batch, time_B=batch.time_B + 10**7)
    assert not torch.allclose(model(later), model(batch))


def test_stochastic_length_keeps_the_newest(sequence_schema, randomise):
    real = torch.ones(400, 17, dtype=torch.bool)
    real[:, 1:9] = False  # eight real events of sixteen places
    cut = shorten(real, 1.0)  # keeps 16^(1/2) = 4 with probability 1 - 16 / 64
    lengths = cut[:, 1:].sum(dim=1)
    assert set(lengths.tolist()) == {4, 8}
    assert 0.65 < (lengths == 4).double().mean() < 0.85
    assert cut[:, 0].all()
    assert cut[lengths == 4][:, -4:].all()
    assert torch.equal(shorten(real, 2.0), real), "the whole length is never above its own bound"
    short = torch.zeros(5, 17, dtype=torch.bool)
    short[:, -3:] = short[:, 0] = True
    assert torch.equal(shorten(short, 1.0), short)
    model = build(sequence_schema, randomise, stoch_alpha=1.0)
    batch = synthetic_batch(sequence_schema, 6)
    torch.testing.assert_close(model(batch), model(batch))


@pytest.mark.parametrize(
    ("option", "value"), [("flavour", "paper"), ("rab", "time"), ("stoch_alpha", 3.0), ("stoch_alpha", -1.0)]
)
def test_wrong_options_are_refused(option, value):
    with pytest.raises(ValueError, match=option):
        HstuConfig(**{option: value})
