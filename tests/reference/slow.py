"""What the slow twins share: norms and softmax by their formulas, on lists of vectors, and the inputs that tests make.

A twin is written from the formulas of models.md with loops over rows, tokens and heads. It reads a model's parameters
and nothing of its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import FeatureSchema, Field
from ctrbench.models.blocks import Embedded

Parameters = dict[str, Tensor]


class Given(nn.Module):
    """Stands for the embedder: hands out the vectors that a test made."""

    def __init__(self, embedded: Embedded) -> None:
        super().__init__()
        self.embedded = embedded

    def forward(self, batch: object) -> Embedded:
        return self.embedded


class Fixed(nn.Module):
    """Hands out what a test made, whatever it is asked."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, *_: Any) -> Any:
        return self.answers["forward"]

    def before(self, *_: Any) -> Any:
        return self.answers["before"]

    def candidates(self, *_: Any) -> Any:
        return self.answers["candidates"]


def layer_norm(x: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float = 1e-5) -> Tensor:
    mean = sum(x.unbind()) / len(x)
    var = sum((value - mean) ** 2 for value in x.unbind()) / len(x)
    out = (x - mean) / (var + eps) ** 0.5
    out = out if gain is None else out * gain
    return out if shift is None else out + shift


def rms_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    out = x / (sum(value**2 for value in x.unbind()) / len(x) + eps) ** 0.5
    return out if gain is None else out * gain


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    top = max(float(s) for s in scores)
    parts = [(s - top).exp() for s in scores]
    return [p / sum(parts) for p in parts]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def linear(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    out = p[f"{name}.weight"] @ x
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def weighted(weights: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    return sum(w * v for w, v in zip(weights, vectors, strict=True))


def compare(model: nn.Module, ours: Callable[[], Tensor], twin: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
    """Values and gradients of all parameters and inputs; a parameter without use has none on both sides."""
    found = []
    for run in (ours, twin):
        model.zero_grad(set_to_none=True)
        for x in inputs:
            x.grad = None
        out = run()
        (out * torch.arange(1.0, len(out) + 1, dtype=out.dtype)).sum().backward()
        named = {n: p.grad for n, p in model.named_parameters()} | {f"input {i}": x.grad for i, x in enumerate(inputs)}
        found.append((out.detach(), {n: torch.zeros(()) if g is None else g.clone() for n, g in named.items()}))
    (value, grads), (expected, wanted) = found
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=1e-7)
    for name, grad in grads.items():
        scale = float(wanted[name].abs().max())
        gap = float((grad - wanted[name]).abs().max())
        assert gap <= 1e-4 * scale + 1e-12, f"{name}: gradients {gap} apart, the largest is {scale}"


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter normal, in float64, so that no start at zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def drawn(*shape: int, seed: int) -> Tensor:
    """Normal float64 values that take a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def schema_of(length: int) -> FeatureSchema:
    """A user, an item of a genre, and a history of both."""

    def event(name: str, target: str) -> Field:
        return Field(name=name, kind="sequence", role="behaviour", max_length=length, target=target, history="hist")

    return FeatureSchema(
        name="twin", track="sequence",
        fields=(
            Field(name="user", kind="categorical", role="user", cardinality=9),
            Field(name="item", kind="categorical", role="item", cardinality=12),
            Field(name="genre", kind="categorical", role="item", cardinality=6),
            event("hist_item", "item"), event("hist_genre", "genre"),
        ),
    )  # fmt: skip


def left_padded(rows: int, length: int, seed: int) -> Tensor:
    """Which places are real; the first row is empty, another one has one event."""
    n = torch.randint(0, length + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    n[0] = 0
    if rows > 1:
        n[1] = 1
    return torch.arange(length) >= length - n.unsqueeze(1)
