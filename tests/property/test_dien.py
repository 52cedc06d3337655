"""Properties of DIEN: the gate, padding, the auxiliary loss (models.md section 1.10)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.kernels.augru import CELLS, augru, augru_plain
from ctrbench.legacy_baselines.dien import DIEN, DIENConfig, EvolvingInterest, auxiliary_loss, to_front


def _weights(width_in: int, width: int, seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((3 * width, width_in), (3 * width, width), (3 * width,), (3 * width,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64) * 0.5 for shape in shapes]


def _case(rows: int, steps: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(inputs, weights, mask), the first row without any event."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, steps, width, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, steps, generator=g) > 0.4
    mask[0] = False
    return x, torch.rand(rows, steps, generator=g, dtype=torch.float64) * mask, mask


@settings(max_examples=25, deadline=None)
@given(cell=st.sampled_from(CELLS), steps=st.integers(1, 6), width=st.integers(1, 4), seed=st.integers(0, 99))
def test_recurrence_equals_its_plain_twin_forward_and_backward(cell, steps, width, seed):
    x, a, mask = _case(4, steps, width, seed)
    grads = []
    for form in (augru, augru_plain):
        leaves = [t.clone().requires_grad_() for t in (x, a, *_weights(width, 5, seed))]
        out = form(leaves[0], leaves[1], mask, *leaves[2:], cell)
        (out * torch.arange(1.0, 6.0, dtype=torch.float64)).sum().backward()
        # weights reach the recurrence masked, so what flows to those of padding goes nowhere
        grads.append([out, leaves[0].grad, leaves[1].grad * mask, *(leaf.grad for leaf in leaves[2:])])
    for fast, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fast, plain)


def test_weight_one_is_the_gru_of_torch_with_its_update_gate_negated():
    gru = nn.GRU(3, 4, batch_first=True).double()
    weights = [w.detach().clone() for w in (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)]
    for w in weights:
        w[4:8] *= -1
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    ones = torch.ones(5, 6, dtype=torch.float64)
    torch.testing.assert_close(augru(x, ones, ones.bool(), *weights, "augru"), gru(x)[0][:, -1])


@pytest.mark.parametrize("cell", CELLS)
def test_steps_of_weight_zero_and_padding_leave_the_state(cell):
    x, a, mask = _case(6, 5, 3, seed=3)
    weights = _weights(3, 4, seed=3)
    last = augru(x, a, mask, *weights, cell)
    assert torch.equal(last[0], torch.zeros(4, dtype=torch.float64)), "no event, no interest"
    noise = torch.where(mask.unsqueeze(2), x, torch.randn_like(x) * 9)
    torch.testing.assert_close(augru(noise, a, mask, *weights, cell), last)
    longer = [torch.cat([t, torch.zeros_like(t[:, :2])], dim=1) for t in (x, a, mask)]
    torch.testing.assert_close(augru(*longer, *weights, cell), last)


def test_events_move_to_the_front_in_their_order():
    mask = torch.tensor([[False, True, True], [False, False, False], [True, True, True]])
    events = torch.arange(9.0).view(3, 3, 1)
    moved, front = to_front(events, mask)
    assert front.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert moved[0, :2, 0].tolist() == [1, 2]
    assert moved[2, :, 0].tolist() == [6, 7, 8]


@pytest.mark.parametrize("att", ["din", "bilinear", "dot"])
def test_padding_never_changes_an_interest(att):
    unit = EvolvingInterest(4, DIENConfig(att=att, attention=(8,))).double().eval()
    q, events = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.arange(5) >= torch.tensor([[2], [5], [0]])
    out = unit(q, events, mask)
    assert torch.equal(out[1], torch.zeros(4, dtype=torch.float64))
    filled = torch.where(mask.unsqueeze(2), events, torch.full_like(events, 7.0))
    torch.testing.assert_close(unit(q, filled, mask), out)
    longer = torch.cat([torch.randn(3, 2, 4, dtype=torch.float64), events], dim=1)
    torch.testing.assert_close(unit(q, longer, torch.cat([torch.zeros(3, 2, dtype=torch.bool), mask], dim=1)), out)


def test_auxiliary_loss_by_hand():
    """Two users with three and two events: the shift is one, so each is the other's negative; two places count a user
    but the second of user 1 is padding."""
    g = torch.Generator().manual_seed(0)
    states, events = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = []
    for user, other in ((0, 1), (1, 0)):
        right, wrong = (float(states[user, 0] @ events[who, 1]) for who in (user, other))
        expected.append(-torch.tensor([right, -wrong], dtype=torch.float64).sigmoid().log().sum())
    torch.testing.assert_close(auxiliary_loss(states, events, mask), torch.stack(expected).mean())
    assert auxiliary_loss(states, events, torch.zeros_like(mask)) == 0


def test_auxiliary_loss_joins_the_loss_of_training_alone(sequence_schema):
    batch = synthetic_batch(sequence_schema, 16)
    losses = {}
    for aux in (0.0, 1.0, 2.0):
        torch.manual_seed(5)
        model = DIEN(DIENConfig(aux=aux), sequence_schema)
        torch.manual_seed(6)
        losses[aux] = float(TrainStep(model)(batch))
    assert losses[1.0] > losses[0.0]
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * (losses[1.0] - losses[0.0]), rel=1e-4)
    model.eval()(batch)
    torch.manual_seed(5)
    with_aux, without = (DIEN(DIENConfig(aux=aux), sequence_schema).eval() for aux in (1.0, 0.0))
    without.load_state_dict(with_aux.state_dict())
    torch.testing.assert_close(with_aux(batch), without(batch))


def test_wrong_options_are_refused():
    for option, value in (("cell", "gru"), ("att", "mlp"), ("aux", -1.0), ("tower_act", "elu")):
        with pytest.raises(ValueError, match=option):
            DIENConfig(**{option: value})
