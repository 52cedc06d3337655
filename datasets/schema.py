"""Features of a data set and the batch that carries them to a model.

Dims: B batch, I dense fields, N events of all histories in the batch, T padded history length
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Kind = Literal["dense", "categorical", "sequence"]
Role = Literal["user", "item", "context", "behaviour"]
Track = Literal["tabular", "sequence"]

PADDING, MISSING, OOV, FIRST_ID = 0, 1, 2, 3
"""Reserved table rows: padding, missing value, out of vocabulary; real values start at 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One feature. Sequence fields of one `history` are aligned event by event."""

    name: str
    kind: Kind
    role: Role
    cardinality: int = 0
    """Table rows including the reserved ones; 0 for dense fields."""
    max_length: int = 0
    """Longest history kept; 0 unless `kind` is sequence."""
    target: str | None = None
    """Categorical field that this sequence mirrors and whose table it shares."""
    history: str | None = None
    """Name of the history a sequence field belongs to."""
    unique_rows: tuple[tuple[int, float], ...] = ()
    """Known lower bounds (batch, distinct rows / lookups) for byte models; empty = unknown."""

    def __post_init__(self) -> None:
        if self.kind != "dense" and self.cardinality <= FIRST_ID and self.target is None:
            raise ValueError(
                f"field {self.name!r}: cardinality {self.cardinality} leaves no room for a value; use >= 4"
            )
        if (self.kind == "sequence") != (self.history is not None and self.max_length > 0):
            raise ValueError(f"field {self.name!r}: a sequence needs `history` and `max_length`, other kinds neither")

    @property
    def table(self) -> str:
        """Embedding table that serves this field."""
        return self.target or self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSchema:
    """Fields; within a kind their order is that of `Batch.dense_BI` and of the keys of `Batch.ids`."""

    name: str
    track: Track
    fields: tuple[Field, ...]

    def of_kind(self, *kinds: Kind) -> tuple[Field, ...]:
        """Kind after kind, each in schema order: `categorical`, then `sequence` is the order of `Batch.ids`."""
        return tuple(f for kind in kinds for f in self.fields if f.kind == kind)

    @property
    def dense(self) -> tuple[Field, ...]:
        return self.of_kind("dense")

    @property
    def categorical(self) -> tuple[Field, ...]:
        return self.of_kind("categorical")

    @property
    def sequences(self) -> tuple[Field, ...]:
        return self.of_kind("sequence")

    @property
    def histories(self) -> dict[str, tuple[Field, ...]]:
        """Sequence fields by history name, in schema order."""
        out: dict[str, tuple[Field, ...]] = {}
        for f in self.sequences:
            assert f.history is not None
            out[f.history] = (*out.get(f.history, ()), f)
        return out

    @property
    def tables(self) -> dict[str, int]:
        """Rows of every embedding table."""
        return {f.name: f.cardinality for f in self.of_kind("categorical", "sequence") if f.target is None}

    def __getitem__(self, name: str) -> Field:
        for f in self.fields:
            if f.name == name:
                return f
        raise KeyError(f"no field {name!r} in schema {self.name!r}; fields: {', '.join(f.name for f in self.fields)}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ready for a model.

    Attributes:
        dense_BI: float32, transformed values, 0 where missing.
        missing_BI: float32, 1 where the raw dense value was missing.
        ids: keys are the categorical fields (one id a row), then the sequence fields (oldest event first).
        event_times: history name -> int64 seconds [N], aligned with the ids of its fields.
        time_B: int64 seconds of the impression.
        label_B: float32, 0 or 1.
        user_B: int64, groups GAUC; -1 where the data has no user.
        row_B: int64, number of each row in the prepared data, the splits one after another; None for made-up rows.
            A bookmark of the harness: no model sees it, so it is no tensor of the batch.
    """

    dense_BI: Tensor
    missing_BI: Tensor
    ids: KeyedJaggedTensor
    event_times: Mapping[str, Tensor]
    time_B: Tensor
    label_B: Tensor
    user_B: Tensor
    host: Mapping[str, object] = field(default_factory=dict)
    """Facts known on the host, e.g. `lengths`: history -> list of true lengths; never tensors."""
    row_B: Tensor | None = None

    @property
    def size(self) -> int:
        """Rows."""
        return int(self.label_B.shape[0])

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch."""
        return [
            self.dense_BI, self.missing_BI, self.ids.values(), self.ids.lengths(),
            *self.event_times.values(), self.time_B, self.label_B, self.user_B,
        ]  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes that cross to the device."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device; a batch already there is returned as it is."""
        if self.label_B.device == torch.device(device):
            return self
        return self._with(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a copy to a CUDA device runs beside its kernels."""
        return self._with(lambda t: t.pin_memory())

    def _with(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor moved."""
        ids = KeyedJaggedTensor(
            keys=self.ids.keys(),
            values=move(self.ids.values()),
            lengths=move(self.ids.lengths()),
            length_per_key=self.ids.length_per_key(),
            stride=self.size,
        )
        return Batch(
            move(self.dense_BI), move(self.missing_BI), ids, {k: move(v) for k, v in self.event_times.items()},
            move(self.time_B), move(self.label_B), move(self.user_B), self.host, self.row_B,
        )  # fmt: skip


def synthetic_batch(
    schema: FeatureSchema,
    batch: int,
    *,
    seed: int = 0,
    full: bool = True,
    device: str = "cpu",
    zero_missing: bool = False,
) -> Batch:
    """A batch of uniform random ids in the form of `schema`.

    Args:
        schema: features to fill.
        batch: rows.
        seed: of the generator (ignored on meta).
        full: every history at its maximum length; else lengths are uniform in 0..max, row 0 empty.
        device: "meta" gives shapes only.
        zero_missing: no dense value is missing.
    """
    g = torch.Generator().manual_seed(seed)
    lengths: dict[str, Tensor] = {}
    for name, group in schema.histories.items():
        top = group[0].max_length
        n = torch.full((batch,), top) if full else torch.randint(0, top + 1, (batch,), generator=g)
        if not full:
            n[0] = 0
        lengths[name] = n
    values: list[Tensor] = []
    counts: list[Tensor] = []
    per_key: list[int] = []
    for f in schema.of_kind("categorical", "sequence"):
        rows = schema[f.table].cardinality
        n = lengths[f.history] if f.history else torch.ones(batch, dtype=torch.long)
        total = int(n.sum())
        values.append(
            torch.randint(FIRST_ID, rows, (total,), generator=g).to(device)
            if device != "meta"
            else torch.empty(total, dtype=torch.long, device="meta")
        )
        counts.append(n)
        per_key.append(total)
    n_dense = len(schema.dense)
    ids = KeyedJaggedTensor(
        keys=[f.name for f in schema.of_kind("categorical", "sequence")],
        values=torch.cat(values) if values else torch.empty(0, dtype=torch.long),
        lengths=torch.cat(counts).to(torch.int32).to(device) if counts else torch.empty(0, dtype=torch.int32),
        length_per_key=per_key,
        stride=batch,
    )
    missing = (torch.rand(batch, n_dense, generator=g) < 0.1).float() * (0.0 if zero_missing else 1.0)
    dense = torch.randn(batch, n_dense, generator=g) * (1 - missing)
    now = 1_500_000_000
    times = {
        h: torch.sort(torch.randint(now - 10**6, now, (int(n.sum()),), generator=g)).values for h, n in lengths.items()
    }
    return Batch(
        dense.to(device), missing.to(device), ids, {k: v.to(device) for k, v in times.items()},
        torch.full((batch,), now).to(device), (torch.rand(batch, generator=g) < 0.5).float().to(device),
        torch.randint(0, max(2, batch // 4), (batch,), generator=g).to(device),
        {"lengths": {h: n.tolist() for h, n in lengths.items()}},
    )  # fmt: skip


def padding_share(schema: FeatureSchema, batch: Batch) -> float:
    """Share of padded event cells; 0 where the data has no history."""
    lengths = batch.host.get("lengths") or {}
    assert isinstance(lengths, dict)
    cells = sum(schema.histories[h][0].max_length * batch.size for h in schema.histories)
    return 1.0 - sum(sum(n) for n in lengths.values()) / cells if cells else 0.0
