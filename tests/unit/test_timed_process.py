"""Timed steps run bare: no mode, hook, profiler or range around or inside any of them. Same seed, same AUC."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from ctrbench.bench import jobs
from ctrbench.bench.assemble import build
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.runspec import Kind, RunSpec
from ctrbench.bench.step import NoRanges, TrainStep
from ctrbench.bench.trace.nvtx import NvtxRanges
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
WARMUP, STEPS = 2, 5
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def watchers(model: nn.Module) -> list[str]:
    """What looks on while this line runs."""
    found = [f"dispatch mode {type(m).__name__}" for m in _get_current_dispatch_mode_stack()]
    if torch._C._len_torch_function_stack():
        found.append("torch function mode")
    if torch.autograd._profiler_enabled():
        found.append("profiler")
    if torch._C._autograd._top_saved_tensors_default_hooks(True):
        found.append("saved tensor hooks")
    for path, module in model.named_modules():
        found += [f"{hooks} on {path or 'the model'}" for hooks in HOOKS if getattr(module, hooks)]
    found += [name for name in GLOBAL_HOOKS if getattr(torch.nn.modules.module, name)]
    if sys.getprofile() is not None:
        found.append("Python profiler")
    return found


@contextmanager
def _handle(handle: Any) -> Any:
    yield
    handle.remove()


class SilentDispatch(TorchDispatchMode):
    """Sees every operator and passes it on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class SilentFunction(TorchFunctionMode):
    """Sees every torch function and passes it on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


PLANTED: dict[str, Callable[[nn.Module], AbstractContextManager[object]]] = {
    "dispatch mode": lambda model: SilentDispatch(),
    "torch function mode": lambda model: SilentFunction(),
    "profiler": lambda model: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "saved tensor hooks": lambda model: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    "_forward_hooks": lambda model: _handle(next(model.children()).register_forward_hook(lambda *_: None)),
    "_global_forward_hooks": lambda model: _handle(nn.modules.module.register_module_forward_hook(lambda *_: None)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("timed")
    raw = _tiny["movielens_folder"](folder / "raw", _tiny["random_events"](0, 900, seconds=5000))
    return prepare("movielens_1m", raw, folder / "out")


def spec_of(data: Prepared, kind: Kind, model: str, seed: int = 0) -> RunSpec:
    return RunSpec(
        kind=kind, model=model, data="movielens_1m", prepared=str(data.path), history_length=8, train_rows=400,
        valid_rows=50, epochs=2, evaluations=2, patience=2, batch=32, eval_batch=64, lr=1e-2, warmup=WARMUP,
        steps=STEPS, seed=seed,
    )  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Watchers at four moments of every step and call of a timed process, as it runs."""
    at: dict[str, list[list[str]]] = {"start": [], "forward": [], "loss": [], "optimizer": [], "ranges": []}
    forward_of: dict[str, nn.Module] = {}
    from ctrbench.bench import step as step_module

    class Watched(TrainStep):
        def __init__(self, model: nn.Module, *args: Any, **kw: Any) -> None:
            super().__init__(model, *args, **kw)
            forward_of["model"] = model
            inner, update = model.forward, self.optimizer.step

            def forward(batch: Any) -> Any:
                at["forward"].append(watchers(model))
                return inner(batch)

            def updated() -> Any:
                at["optimizer"].append(watchers(model))
                return update()

            model.forward = forward
            self.optimizer.step = updated  # type: ignore[method-assign]

        def __call__(self, batch: Any) -> Any:
            at["start"].append(watchers(self.model))
            at["ranges"].append([] if type(self.ranges) is NoRanges else [type(self.ranges).__name__])
            return super().__call__(batch)

    loss = step_module.bce

    def watched_loss(*args: Any) -> Any:
        at["loss"].append(watchers(forward_of["model"]))
        return loss(*args)

    monkeypatch.setattr(jobs, "TrainStep", Watched)
    monkeypatch.setattr(step_module, "bce", watched_loss)
    return at


@pytest.mark.parametrize("name", ["din", "onetrans"])
def test_timed_steps_are_bare(name: str, data: Prepared, tmp_path: Path, seen: dict[str, list[list[str]]]) -> None:
    record = jobs.run_time(spec_of(data, "time", name), tmp_path)
    samples = record.extra["samples"]
    assert len(samples["step"]) == len(samples["infer"]) == STEPS
    assert len(seen["start"]) == len(seen["loss"]) == len(seen["optimizer"]) == WARMUP + STEPS
    assert len(seen["forward"]) == 2 * (WARMUP + STEPS)  # inference too
    assert {moment: max(found) for moment, found in seen.items()} == {moment: [] for moment in seen}


@pytest.mark.parametrize("kind", PLANTED)
def test_the_check_sees_what_is_planted(kind: str, data: Prepared, seen: dict[str, list[list[str]]]) -> None:
    """The same watched step, with each kind of watcher on: the check of timed steps would fail."""
    _, _, _, model, _ = build(spec_of(data, "time", "din"))
    batch = next(iter(Loader(data, "train", 32, history_length=8)))
    step = jobs.TrainStep(model)
    with PLANTED[kind](model):
        step(batch)
    for moment in ("start", "forward", "loss", "optimizer"):
        assert any(kind in found for found in seen[moment][0]), moment
    assert watchers(model) == []


def test_the_check_sees_the_counter_and_the_ranges(data: Prepared, seen: dict[str, list[list[str]]]) -> None:
    _, _, _, model, _ = build(spec_of(data, "time", "din"))
    batch = next(iter(Loader(data, "train", 32, history_length=8)))
    jobs.TrainStep(model, ranges=NvtxRanges())(batch)
    assert seen["ranges"][-1] == ["NvtxRanges"]
    count_step(model, batch, train=True)
    assert any("dispatch mode" in found for found in seen["forward"][-1])


def test_same_seed_same_auc_to_the_last_digit(data: Prepared, tmp_path: Path) -> None:
    values, scores = [], []
    for i, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(i)
        folder.mkdir()
        torch.rand(i + 1)  # whatever ran before in the process
        np.random.rand(i + 1)
        record = jobs.run_quality(spec_of(data, "quality", "din", seed), folder)
        values.append({r.metric: r.value for r in record.rows})
        scores.append(np.load(folder / jobs.SCORES)["score"])
    assert values[0] == values[1]
    assert np.array_equal(scores[0], scores[1])
    assert values[0]["auc"] != values[2]["auc"]
