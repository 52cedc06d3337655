"""One training over processes: same rows, same order and same weights at the start as one process would have.

The batch of a step is the global one: each process takes its part of it, and losses and gradients are means over all.
Dropout of a step follows from seed, step and rank, so that a training that goes on from a checkpoint on the same number
of processes ends with the weights of one that was never stopped.
"""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from ctrbench.bench.distributed import checkpoint
from ctrbench.bench.distributed.sharding import Sharding, balance, shard, start_rows
from ctrbench.bench.distributed.sync import synchronise
from ctrbench.bench.step import TrainStep, predict
from ctrbench.bench.train import seed_everything
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch
from ctrbench.datasets.watch import Watch
from ctrbench.models.spec import ModelSpec
from ctrbench.reports.records import write_atomic

MEET_STEPS, MEET_SECONDS = 20, 5.0
"""At most so many steps, or about so many seconds, between two meetings of the processes: there losses are averaged,
stops and checkpoints agreed on. torchrun kills who has not ended 30 s after a stop."""
TRACED = 10
"""Steps that are traced for the share of communication, after the training, on weights that nobody keeps."""
CURVE = "losses.jsonl"


class Stopped(Exception):
    """Somebody asked the training to stop; its checkpoint is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a training is, whoever runs it."""

    batch: int
    """Rows of a step, all processes together."""
    lr: float
    seed: int
    steps: int
    train_rows: int
    history_length: int
    sharding: Sharding
    checkpoint_minutes: float
    checkpoint_steps: int
    """A checkpoint every so many steps; 0 leaves it to the clock."""
    keep: int
    threads: int


class Training:
    """A model over all processes, its step, and where it is.

    Args:
        spec: the model.
        config: with `tables.impl="sharded"`.
        prepared: the data, on a file system that every process sees.
        settings: what the training is.
        out: of checkpoints and losses.
        device: of this process.
        about: JSON that tells trainings apart.
        watch: of the first process.
    """

    def __init__(
        self, spec: ModelSpec, config: Any, prepared: Prepared, settings: Settings, out: Path, device: torch.device,
        about: dict[str, Any], watch: Watch,
    ) -> None:  # fmt: skip
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.settings, self.out, self.about, self.watch, self.prepared = settings, out, about, watch, prepared
        self.device = device
        seed_everything(settings.seed)
        self.model: nn.Module = spec.build(config, prepared.schema_for(settings.history_length))
        if self.world > 1:
            synchronise(self.model)
        self.wrapped, self.shards = shard(self.model, settings.sharding, settings.batch // self.world, device)
        start_rows(self.model, settings.seed)
        self.step = TrainStep(self.model, lr=settings.lr, call=self.wrapped)
        self.done = 0
        self.seconds = 0.0
        """Of the steps of this process's life, checkpoints and meetings left out."""
        self.own_steps = 0
        self._stop = False
        self._meet_in = 1
        """Steps to the next meeting."""

    def resume(self) -> Path | None:
        """Goes on from the newest whole checkpoint; None if there is none."""
        found = checkpoint.whole(self.out)
        if not found:
            return None
        self.done = checkpoint.load(found[-1], self.wrapped, self.step, self.about)
        return found[-1]

    def run(self) -> None:
        """Trains to the end.

        Raises:
            Stopped: by a signal, after a checkpoint.
        """
        before = {s: signal.signal(s, self._asked) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._forget_steps_to_come()
            self._train()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _train(self) -> None:
        self.model.train()
        losses: list[Tensor] = []
        saved = time.monotonic()
        start = time.perf_counter()
        for batch in self._batches():
            torch.manual_seed(hash((self.settings.seed, self.done, self.rank)) & 0x7FFF_FFFF_FFFF)
            losses.append(self.step(batch.to(self.device)))
            self.done += 1
            self.own_steps += 1
            last = self.done == self.settings.steps
            if len(losses) < self._meet_in and not last and not self._due_by_steps():
                continue
            values = torch.stack(losses).double().cpu()  # waits for the device
            spent = time.perf_counter() - start
            self.seconds += spent
            stop, minutes = self._agree(values, spent, (time.monotonic() - saved) / 60)
            losses = []
            if last or stop or self._due_by_steps() or self._due_by_clock(minutes):
                self.save()
                saved = time.monotonic()
            if stop and not last:
                raise Stopped(f"stopped after step {self.done} of {self.settings.steps}")
            start = time.perf_counter()

    def save(self) -> Path:
        """A checkpoint of now."""
        keep = self.settings.keep
        return checkpoint.save(self.out, self.done, self.wrapped, self.step, self.about, keep)

    def scores(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(score_N, label_N, user_N) of a split, on every process; at most `world - 1` last rows are left out."""
        self.model.eval()
        loader = Loader(
            self.prepared, split, self.settings.batch, history_length=self.settings.history_length,
            rows=self.prepared.rows(split) // self.world * self.world, part=(self.rank, self.world),
        )  # fmt: skip
        own = [
            (predict(self.wrapped, b.to(self.device)).cpu().numpy(), b.label_B.numpy(), b.user_B.numpy())
            for b in loader
        ]
        self.model.train()
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, tuple(np.concatenate(column) for column in zip(*own, strict=True)))
        score, label, user = (np.concatenate(column) for column in zip(*everyone, strict=True))
        return score, label, user

    def communication(self) -> float:
        """Share of a step's wall time in which a collective is under way, on the first process; 0 for one alone.

        Traced steps move weights that nobody keeps: call it last.
        """
        from torch.profiler import ProfilerActivity, profile

        stream = itertools.islice(self._stream(0), TRACED)
        batches = [batch.to(self.device) for batch in stream]
        with profile(activities=[ProfilerActivity.CPU]) as traced:
            start = time.perf_counter()
            for batch in batches:
                self.step(batch)
            wall = time.perf_counter() - start
        spans = sorted(
            (e.time_range.start, e.time_range.end) for e in traced.events()
            if e.name.startswith(("gloo:", "nccl:", "c10d::"))
        )  # fmt: skip
        busy, reached = 0.0, -1.0
        for begin, end in spans:
            busy += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return busy / 1e6 / wall if self.world > 1 else 0.0

    def balance(self) -> dict[str, Any]:
        """Where the tables lie."""
        return balance(self.shards, self.world)

    # ------------------------------------------------------------------ inside

    def _forget_steps_to_come(self) -> None:
        """Losses that an attempt wrote behind its last checkpoint, or before its first: their steps come again."""
        curve = self.out / CURVE
        if self.rank == 0 and curve.exists():
            lines = curve.read_text().split("\n")[:-1]  # what has no end of line was cut off
            kept = [line for line in lines if json.loads(line)["step"] <= self.done]
            write_atomic(curve, "".join(f"{line}\n" for line in kept).encode())

    def _asked(self, *_: object) -> None:
        self._stop = True

    def _due_by_steps(self) -> bool:
        every = self.settings.checkpoint_steps
        return bool(every) and self.done % every == 0

    def _due_by_clock(self, minutes: float) -> bool:
        return not self.settings.checkpoint_steps and minutes >= self.settings.checkpoint_minutes

    def _agree(self, losses: Tensor, seconds: float, minutes: float) -> tuple[bool, float]:
        """Averages the losses of the last steps over all processes and writes them; sets the next meeting.

        Args:
            losses: of this process's steps since the last meeting, on the CPU.
            seconds: that they took.
            minutes: since this process saved.

        Returns:
            whether anybody must stop, and how many minutes ago the first process saved.
        """
        count = len(losses)
        wanted = min(MEET_STEPS, max(1, int(MEET_SECONDS * count / max(seconds, 1e-9))))
        first = [minutes, float(wanted)] if self.rank == 0 else [0.0, 0.0]
        told = torch.cat([losses, torch.tensor([float(self._stop), *first], dtype=torch.float64)])
        dist.all_reduce(told)
        *sums, stop, minutes, meet_in = told.tolist()
        self._meet_in = int(meet_in)
        if self.rank == 0:
            with (self.out / CURVE).open("a", encoding="utf-8") as out:
                for number, value in enumerate(sums, self.done - count + 1):
                    out.write(json.dumps({"step": number, "loss": value / self.world}) + "\n")
            self.watch.at(f"training on {self.world} processes", self.done, self.settings.steps)
        return stop > 0, minutes

    def _batches(self) -> Iterator[Batch]:
        """This process's part of every global batch that is still to come."""
        return itertools.islice(self._stream(self.done), self.settings.steps - self.done)

    def _stream(self, done: int) -> Iterator[Batch]:
        """Pass after pass over the train rows, from behind `done` batches on."""
        for epoch in itertools.count():
            loader = Loader(
                self.prepared, "train", self.settings.batch, rows=self.settings.train_rows,
                shuffle_seed=1000 * self.settings.seed + epoch, history_length=self.settings.history_length,
                drop_last=True, part=(self.rank, self.world),
            )  # fmt: skip
            if done >= len(loader):
                done -= len(loader)
                continue
            yield from itertools.islice(loader, done, None)
            done = 0
