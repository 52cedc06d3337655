"""What every model of the comparison must be: protocol, spec and fidelity card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from ctrbench.datasets.schema import Batch, FeatureSchema, Track, synthetic_batch
from ctrbench.models.retriever import RetrieverSpec
from ctrbench.models.serving import Forms

Family = Literal["legacy", "transformer"]
Stage = Literal["embedding", "interaction", "dense"]
Status = Literal["faithful", "adapted", "unknown"]


@runtime_checkable
class CtrModel(Protocol):
    """A ranking model.

    Attributes:
        phases: stage -> names of submodules (dotted) that make it up; the NVTX blocks. The blocks together
            hold all heavy work of `forward`, none of them contains another.
    """

    phases: Mapping[Stage, tuple[str, ...]]

    def __call__(self, batch: Batch) -> Tensor:
        """logit_B of the batch."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CardRow:
    """One mechanism of a paper and what became of it here."""

    mechanism: str
    status: Status
    section: str
    """Section of the paper, `n/k` where it is not known to us."""
    switch: str = ""
    """Config field that moves it, with the value in use, e.g. `residual=paper`."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityCard:
    """How faithful a model is to its paper, for one config."""

    model: str
    paper: str
    rows: tuple[CardRow, ...]


@dataclass(frozen=True, slots=True)
class Flops:
    """Forward FLOPs of one sample, 2 per multiply-add.

    `full` counts the whole attention rectangle (what dense kernels execute), `visible` only unmasked pairs
    (useful work). Equal where there is no mask.
    """

    full: float
    visible: float
    frozen_full: float = 0.0
    """Part of `full` that has no backward: a frozen sub-model under no_grad."""
    frozen_visible: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.full + other.full, self.visible + other.visible,
            self.frozen_full + other.frozen_full, self.frozen_visible + other.frozen_visible,
        )  # fmt: skip

    def __mul__(self, times: float) -> Flops:
        return Flops(self.full * times, self.visible * times, self.frozen_full * times, self.frozen_visible * times)

    @property
    def live(self) -> Flops:
        """What has a backward."""
        return Flops(self.full - self.frozen_full, self.visible - self.frozen_visible)


def flops_per_step(model: object) -> Flops:
    """Forward FLOPs that a model spends once a step whatever the batch, in the mode it is in.

    `visible` is the useful part. None unless the model has an attribute of this name.
    """
    once: Flops = getattr(model, "flops_per_step", Flops(0.0, 0.0))
    return once


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A named size of a model with the features it was published on; traced on meta, never trained."""

    label: str
    config: Any
    schema: FeatureSchema
    note: str = ""
    """Where the size comes from, or that it is one point of a sweep because no source gives one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnBatches:
    """Batches of a model that is no ranker and reads no rows: a pre-training."""

    make: Callable[..., Batch]
    """(config, schema, rows, seed=0, device="cpu") -> a batch of random ids; its host facts are real on meta too."""
    flops: Callable[..., Flops]
    """(config, schema, batch) -> closed-form forward FLOPs of that whole batch."""
    histories: str
    """How long the histories of a batch are, for the record."""
    rows: tuple[int, ...]
    """Batches at which the published sizes are traced; primes, so that no width is taken for the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Registry entry of a model; the file name is its key."""

    name: str
    title: str
    family: Family
    control: bool = False
    """True for controls, which are no one's published model."""
    paper: str
    """arXiv id or venue."""
    tracks: tuple[Track, ...]
    config: type
    """Frozen dataclass; its defaults are the `small` preset."""
    build: Callable[..., Any]
    """(config, schema, device=None) -> CtrModel; no device takes torch's default. Raises ValueError naming the field
    when they do not fit."""
    card: Callable[[Any], FidelityCard]
    flops: Callable[..., Flops]
    """(config, schema, history name -> true length or None for full) -> closed-form forward FLOPs a sample."""
    published: Callable[[], tuple[Preset, ...]]
    takes_host: bool = False
    """`build` and `flops` take `hosts` as well, which gives the spec of another model by name (the roof has it)."""
    step_one: tuple[str, ...] = ()
    """Options that decide a pre-training; runs that agree on them share it. Empty: the model has none."""
    retriever: RetrieverSpec | None = None
    """None retrieves nothing."""
    serving: Forms | None = None
    """How it is served at its best; None shares the embeddings of the user's side between candidates."""
    request_flops: Callable[..., tuple[float, float]] | None = None
    """(config, schema, history name -> true length or None for full, candidates) -> executed FLOPs of `reuse`: once a
    request, and for each candidate. None shares no FLOPs."""
    real_events_only: Callable[[Any], bool] | None = None
    """Whether a config computes nothing on padding, so that `Flops.full` follows the lengths; None if it never does."""
    own_batches: OwnBatches | None = None
    """None is a ranker. The model of any other returns its loss and has `returns_loss`."""
    skip_reason: Mapping[str, str] | None = None
    """track -> why the model cannot run there."""


def random_batch(
    spec: ModelSpec, config: Any, schema: FeatureSchema, rows: int, *, seed: int = 0, device: str = "cpu"
) -> Batch:
    """Uniform random ids in the form that the model reads, histories at full length."""
    if spec.own_batches is None:
        return synthetic_batch(schema, rows, seed=seed, device=device)
    own: Batch = spec.own_batches.make(config, schema, rows, seed=seed, device=device)
    return own
