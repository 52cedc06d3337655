"""Everything that decides a number, frozen and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Kind = Literal[
    "time", "count", "trace", "quality", "floor", "published", "tune", "pretrain", "probe", "retrieve", "shuffled",
    "ids_only", "serve", "serve_count", "stages", "drift", "features", "backends", "datapath", "distributed",
]  # fmt: skip
"""Which process it is: timing, counting, tracing, training to a quality, a floor, the meta-device sweep, a trial, a
pre-training that several trainings share, what its embeddings know of users, a training that is asked for items of the
whole catalogue; the controls: training on shuffled labels, on the target's ids alone; and of serving: requests against
the clock, counted, through two stages on one cache, on states kept between requests, and what their features cost; one
attention through every back end; a part of the data path; a training over several processes."""

DTYPES = ("float32", "autocast", "bfloat16")
"""Values of `dtype` that a model runs in; `bench/modes.py` says what each means."""
COMPILES = ("eager", "compile", "cuda_graph")
MODED: tuple[Kind, ...] = ("time", "quality", "tune", "shuffled", "ids_only")
"""Kinds that run in the compile mode of a run; counting and tracing look at operators, so they run eager."""
NARROWED: tuple[Kind, ...] = (*MODED, "count", "trace")
"""Kinds that run in its dtype; step 1 of LUM, retrieval and serving stay float32."""

_NOT_IDENTITY = ("prepared", "timeout_s", "model_path")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One process of a suite."""

    kind: Kind
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """Model options off their defaults: of the preset, the tables and the command line."""
    preset: str = "small"
    """Label of the published size that is trained; `small` are the model's defaults."""
    variant: str = ""
    model_path: str = ""
    """File of a user's own model; empty for shipped ones."""
    model_sha256: str = ""
    """Of that file: another text is another model."""
    data: str = ""
    split: str = ""
    fingerprint: str = ""
    prepared: str = ""
    """Directory of the prepared shards; not part of the key, the fingerprint is."""
    history_length: int = 0
    train_rows: int = 0
    valid_rows: int = 0
    epochs: int = 0
    evaluations: int = 0
    """Looks at the validation rows per epoch; training stops after `patience` without a gain."""
    patience: int = 0
    batch: int = 0
    eval_batch: int = 0
    lr: float = 0.0
    plateau: float = 1.0
    """Factor on every learning rate after a look without a gain."""
    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"
    compile: str = "eager"
    warmup: int = 0
    steps: int = 0
    repeat: int = 0
    """Number of the process among its repeats."""
    seed: int = 0
    trial: int = -1
    """Number of the tuning trial, 0 is the default; -1 for other processes."""
    shuffle: int = -1
    """Number of the shuffle of the training labels; -1 for true labels."""
    tuned: bool = False
    """Whether the options are those of a best trial."""
    flops_budget: float = 0.0
    """Training FLOPs that the rows of this training were chosen for; 0 where rows are the budget."""
    pretrained: str = ""
    """Key of the pre-training that this training starts from."""
    serving: Mapping[str, Any] = field(default_factory=dict)
    """Of processes that serve: fields of `ServeOptions`; empty for all others."""
    table_rows: int = 0
    """Most rows of a table; values beyond share rows. 0 = a row a value."""
    ranks: int = 0
    """Of a training over processes: how many; 0 for all others."""
    sharding: str = ""
    """How its tables lie on them."""
    part: str = ""
    """Of a process of the data path: what it measures (bench/datapath/process.py); empty for all others."""
    tracer: str = "none"
    level: str = "smoke"
    timeout_s: int = 1800

    @property
    def digest(self) -> str:
        """Hash of all that decides the number; names the configuration in NVTX."""
        rare = ("serving", "part", "table_rows", "ranks", "sharding")
        body = {k: v for k, v in asdict(self).items() if k not in _NOT_IDENTITY and (k not in rare or v)}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def key(self) -> str:
        """Stable name of the run: what it is, and its digest."""
        variant = "-" + self.variant.replace("=", "_") if self.variant else ""
        kind = f"{self.kind}_{self.part}" if self.part else self.kind
        return f"{self.data or 'meta'}-{self.model}{variant}-{kind}-{self.digest}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> RunSpec:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in body.items() if k in known})


def mode_of(kind: Kind, dtype: str, compile: str) -> dict[str, Any]:
    """Fields `dtype` and `compile` of a process of a run in that mode."""
    return {
        "dtype": dtype if kind in NARROWED else "float32",
        "compile": compile if kind in MODED else "eager",
    }


def mode_options(dtype: str, compile: str) -> list[tuple[str, str]]:
    """Options of a mode off its defaults, as they enter the name of a variant."""
    given = (("dtype", dtype, "float32"), ("compile", compile, "eager"))
    return [(name, value) for name, value, default in given if value != default]


def variant_of(options: Iterable[tuple[str, Any]]) -> str:
    """Options of a model as one types them: `dim=8,mlp=[32,16]`."""
    shown = {k: str(list(v)).replace(" ", "") if isinstance(v, list | tuple) else v for k, v in options}
    return ",".join(f"{k}={v}" for k, v in shown.items())
