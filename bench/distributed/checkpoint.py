"""Checkpoints of a training over processes: whole or absent, and readable on another number of them.

`torch.distributed.checkpoint` writes every shard once and cuts them anew for whoever reads. A checkpoint holds tables
with the states of their optimizer, dense weights with Adam's moments, and how far the training was.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed import DistributedModelParallel

from ctrbench.bench.distributed.reading import Planner, Reader
from ctrbench.bench.step import TrainStep
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.records import write_atomic

ABOUT = "about.json"
_NAME = "step-{:09d}"
_REMEDY = "delete that folder: the checkpoint before it is taken then"


class Unwritten(Exception):
    """A checkpoint could not be written; those before it are untouched."""


def save(folder: Path, step: int, wrapped: DistributedModelParallel, training: TrainStep, about: dict[str, Any],
         keep: int) -> Path:  # fmt: skip
    """Writes `folder/step-...`, then removes all but the newest `keep`.

    Args:
        folder: of all checkpoints, on a file system that every process sees.
        step: steps that are behind the weights.
        wrapped: tables and dense weights.
        training: its Adam.
        about: JSON; a checkpoint is only read by a training of the same `about`.
        keep: checkpoints that stay.

    Raises:
        Unwritten: on every process, when one of them cannot write, e.g. on a full disk.
    """
    final = folder / _NAME.format(step)
    partial = folder / f".{final.name}.partial"

    def open_folder() -> None:
        for left in folder.glob(".step-*.partial"):  # of processes that were killed here
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)

    def close_folder() -> None:
        write_atomic(partial / ABOUT, json.dumps({**about, "step": step}, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in whole(folder)[:-keep]:
            shutil.rmtree(old)

    try:
        _on_first(open_folder)
        state_dict_saver.save(_state(wrapped, training), checkpoint_id=partial)
        _on_first(close_folder)
    except (OSError, CheckpointException) as error:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise Unwritten(f"{final}: checkpoint not written: {_reason(error)}") from error
    return final


def _on_first(work: Callable[[], None]) -> None:
    """Runs on the first process; its OSError is everybody's."""
    told: list[OSError | None] = [None]
    if dist.get_rank() == 0:
        try:
            work()
        except OSError as error:
            told = [error]
    dist.broadcast_object_list(told)
    if told[0] is not None:
        raise told[0]


def _reason(error: BaseException) -> str:
    """What went wrong, of the first process that it went wrong on."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause}"
    return str(error)


def whole(folder: Path) -> list[Path]:
    """Checkpoints that were written to the end, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"step-[0-9]{9}", p.name) and (p / ABOUT).is_file())


def load(path: Path, wrapped: DistributedModelParallel, training: TrainStep, about: dict[str, Any]) -> int:
    """Puts a checkpoint into a model that was built and spread alike, on however many processes.

    Returns:
        steps that are behind its weights.

    Raises:
        BadInput: it is damaged, or of another model, data or option; says which.
    """
    try:
        written = json.loads((path / ABOUT).read_text())
    except ValueError as error:
        raise BadInput(f"{path / ABOUT}: damaged: {error}; {_REMEDY}") from None
    for key, value in about.items():
        if written.get(key) != value:
            raise BadInput(
                f"{path}: checkpoint of {key}={written.get(key)!r}, this training has {value!r}; give the same "
                "options, or another dist.out"
            )
    state = _state(wrapped, training)
    try:
        state_dict_loader.load(state, storage_reader=Reader(path), planner=Planner())
    except CheckpointException as error:
        raise BadInput(f"{path}: damaged: {_reason(error)}; {_REMEDY}") from None
    wrapped.load_state_dict(state["model"])
    wrapped.fused_optimizer.load_state_dict(state["tables"])
    for name, p in _dense(wrapped, training):
        _adam(training).state[p] = state["adam"][name]
    return int(written["step"])


def _state(wrapped: DistributedModelParallel, training: TrainStep) -> dict[str, Any]:
    """What is kept, in the form that both writing and reading in place take."""
    return {
        "model": wrapped.state_dict(), "tables": wrapped.fused_optimizer.state_dict(),
        "adam": {name: _moments(training, p) for name, p in _dense(wrapped, training)},
    }  # fmt: skip


def _dense(wrapped: DistributedModelParallel, training: TrainStep) -> list[tuple[str, nn.Parameter]]:
    own = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in wrapped.module.named_parameters() if id(p) in own]


def _adam(training: TrainStep) -> torch.optim.Adam:
    assert isinstance(training.optimizer, torch.optim.Adam), "dense weights over processes are float32"
    return training.optimizer


def _moments(training: TrainStep, p: nn.Parameter) -> dict[str, Tensor]:
    """Adam's state of a weight; zeros before its first step."""
    found = _adam(training).state.get(p)
    if found:
        return dict(found)
    return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
