"""What one run will do, checked: its options, the data sets of its suite and the models on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ctrbench.bench.runspec import COMPILES, DTYPES
from ctrbench.datasets.errors import UnknownName, nearest

MOST_RUNS = 1000
"""Of a kind, for one model: a slip of the keyboard would fill the memory with plans."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Options of `run.*`; meanings and defaults in conf/run/default.yaml."""

    processes: int
    steps: int
    warmup: int
    seeds: int
    train_rows: int
    valid_rows: int
    epochs: int
    evaluations: int
    patience: int
    batch: int
    eval_batch: int
    lr: float
    history_length: int
    threads: int
    dtype: Literal["float32", "autocast", "bfloat16"]
    compile: Literal["eager", "compile", "cuda_graph"]
    embedding: Literal["fused", "per_table"]
    table_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]
    table_lr: float
    table_init_std: float
    table_rows: int
    l2: float
    l2_rows: Literal["batch_rows", "full_table"]
    plateau: float
    trials: int
    trial_rows: int
    timeout_s: int
    out: str
    resume: bool
    cache: bool

    def __post_init__(self) -> None:
        for name in (
            "processes", "steps", "seeds", "train_rows", "valid_rows", "epochs", "evaluations", "batch", "eval_batch",
            "threads", "history_length", "timeout_s",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UnknownName(f"run.{name}={getattr(self, name)}: must be at least 1")
        for name, allowed in (
            ("dtype", DTYPES),
            ("compile", COMPILES),
            ("embedding", ("fused", "per_table")),
            ("table_optimizer", ("rowwise_adagrad", "adagrad", "sgd", "adam")),
            ("l2_rows", ("batch_rows", "full_table")),
        ):
            if getattr(self, name) not in allowed:
                raise UnknownName(f"run.{name}: unknown value {nearest(str(getattr(self, name)), allowed)}")
        for name in ("processes", "seeds", "trials"):
            if getattr(self, name) > MOST_RUNS:
                raise UnknownName(f"run.{name}={getattr(self, name)}: at most {MOST_RUNS}")
        for name in ("patience", "warmup", "table_rows"):
            if getattr(self, name) < 0:
                raise UnknownName(f"run.{name}={getattr(self, name)}: must be at least 0")
        if not self.out:
            raise UnknownName("run.out: give a folder")
        if self.trials < 0 or self.trials == 1:
            raise UnknownName(
                f"run.trials={self.trials}: 0 tunes nothing, 8 means the default and 7 random draws, 1 leaves no choice"
            )
        if self.trial_rows < 0 or 0 < self.trial_rows < self.batch:
            raise UnknownName(
                f"run.trial_rows={self.trial_rows}: 0 for all train rows, or at least run.batch={self.batch}"
            )
        if self.train_rows < self.batch:
            raise UnknownName(f"run.train_rows={self.train_rows}: fewer than run.batch={self.batch}; no step would run")
        if self.embedding == "per_table" and self.table_optimizer == "rowwise_adagrad":
            raise UnknownName("run.embedding=per_table has no row-wise Adagrad; add run.table_optimizer=adagrad")
        if self.table_optimizer == "adam" and self.embedding != "per_table":
            raise UnknownName("run.table_optimizer=adam: FBGEMM refuses Adam on CPU; add run.embedding=per_table")
        if self.l2 and self.l2_rows == "full_table" and self.table_optimizer != "adam":
            raise UnknownName("run.l2_rows=full_table needs dense gradients; add run.table_optimizer=adam")
        if self.l2 < 0 or not 0 < self.plateau <= 1:
            raise UnknownName(f"run.l2={self.l2}, run.plateau={self.plateau}: at least 0, and in (0, 1]")
        for name in ("lr", "table_lr", "table_init_std"):
            if getattr(self, name) <= 0:
                raise UnknownName(f"run.{name}={getattr(self, name)}: must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """Options of `serve.*`; meanings and defaults in conf/serve/default.yaml."""

    candidates: tuple[int, ...]
    compile: tuple[str, ...]
    budget_ms: float
    requests: int
    qps: bool
    qps_seconds: float
    rounds_seconds: float
    max_batch: int
    max_wait_ms: float
    queue: int
    overload_seconds: float

    def __post_init__(self) -> None:
        if not self.candidates or any(type(n) is not int or n < 1 for n in self.candidates):
            raise UnknownName(f"serve.candidates={list(self.candidates)}: counts of at least 1, e.g. [16,128]")
        for name in (f.name for f in fields(self) if f.name not in ("candidates", "compile", "qps", "max_wait_ms")):
            if getattr(self, name) <= 0:
                raise UnknownName(f"serve.{name}={getattr(self, name)}: must be above 0")
        if self.max_wait_ms < 0:
            raise UnknownName(f"serve.max_wait_ms={self.max_wait_ms}: must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistOptions:
    """Options of `dist.*`; meanings and defaults in conf/dist/default.yaml."""

    sharding: Literal["auto", "table_wise", "row_wise", "column_wise"]
    device: Literal["auto", "cpu", "cuda"]
    steps: int
    checkpoint_minutes: float
    checkpoint_steps: int
    keep: int
    out: str
    resume: bool
    timeout_s: int

    def __post_init__(self) -> None:
        for name, known in (
            ("sharding", ("auto", "table_wise", "row_wise", "column_wise")), ("device", ("auto", "cpu", "cuda")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise UnknownName(f"dist.{name}: unknown value {nearest(getattr(self, name), known)}")
        if self.steps < 0 or self.checkpoint_steps < 0 or self.checkpoint_minutes <= 0:
            raise UnknownName(
                f"dist.steps={self.steps}, dist.checkpoint_steps={self.checkpoint_steps}, "
                f"dist.checkpoint_minutes={self.checkpoint_minutes}: at least 0, at least 0, above 0"
            )
        if self.keep < 1 or self.timeout_s < 1:
            raise UnknownName(f"dist.keep={self.keep}, dist.timeout_s={self.timeout_s}: must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model of a job, with options of its own: two entries of one model are two variants."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config; the command line's win."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `RunOptions` that this entry alone has, e.g. a tuned learning rate."""
    label: str = ""
    """Name of the variant; its options if empty."""
    tuned: bool = True
    """Whether it gets tuning trials; a control may stay as it is."""
    brief: bool = False
    """Train and count it, nothing else: no timing, no trace, no published sizes."""
    skip: str = ""
    """Why this point of a sweep is not run; empty for all that are."""
    uncounted: bool = False
    """Of a sweep: its FLOPs are counted with another entry, of the same model in another mode."""
    form: str = ""
    """Of a job that only serves: the form of serving that `reuse` is timed against; `whole` if empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One data set of a suite and who runs on it."""

    data: str
    models: tuple[Entry, ...]
    floors: tuple[str, ...]
    path: str | None = None
    split: str | None = None
    policy: str = "strict"
    preset: str = "small"
    """Size of the models: `small`, their defaults, or the label of a published preset."""
    judged: bool = False
    """Compare the AUC with the published one (reports/bands.py)."""
    timed: bool = True
    """Time and trace the models; a second split of the same data has nothing new to time."""
    probed: bool = False
    """Probe the user embeddings of every pre-training for what they know of their users (bench/probe.py)."""
    retrievers: tuple[Entry, ...] = ()
    """Models that are trained to find a user's last event in the whole catalogue (bench/retrieval.py)."""
    backends: str = ""
    """Model whose attention is timed through every back end (bench/backends.py); empty for none."""
    traced: bool = True
    """Trace the models that are timed."""
    served: bool = False
    """Serve the models: requests of one user and several candidates (bench/serving)."""
    datapath: bool = False
    """Measure how its rows reach its models (bench/datapath), and nothing else of it."""
    equal_flops: float = 0.0
    """Also train every model at the FLOPs that the reference spends on this share of its train rows; 0 does not."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one `ctrbench run` will do."""

    suite: str
    level: str
    jobs: tuple[Job, ...]
    run: RunOptions
    serve: ServeOptions
    dist: DistOptions
    cost: Mapping[str, Any]
    """Options of `cost.*`: prices and assumptions; they change what the summary says and no process."""
    model_options: Mapping[str, Mapping[str, Any]]
    model_path: str = ""
    tune_only: bool = False
    """Run the tuning trials and nothing else (`ctrbench tune`)."""
    controls: bool = False
    """Run the controls of every model, and nothing else of it."""
    counted: tuple[str, ...] = ()
    """Models whose published sizes are counted although nothing of them is trained."""
    published: bool = True
    """Count published sizes at all."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model of the plan, in order of first use."""
        return tuple(dict.fromkeys(e.model for j in self.jobs for e in j.models))

    @property
    def sized(self) -> tuple[str, ...]:
        """Models whose published sizes are counted: all but those of brief entries and of the data path alone, and
        `counted`; none where the plan leaves them out."""
        if not self.published:
            return ()
        listed = (e.model for j in self.jobs for e in j.models if not (e.brief or j.datapath))
        return tuple(dict.fromkeys((*listed, *self.counted)))
