"""Folders of torch.distributed.checkpoint from elsewhere: read as data, or refused; nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import CheckpointException, state_dict_loader, state_dict_saver

from ctrbench.bench.distributed.reading import Planner, Reader
from ctrbench.datasets.errors import BadInput

INDEX = ".metadata"


def _state() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    weight = torch.rand(5, 3, generator=g)
    return {"model": {"w": weight, "half": weight.to(torch.bfloat16)}, "more": {"step": 7, "names": ["a", "b"]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state_dict_saver.save(_state(), checkpoint_id=tmp_path / "step", no_dist=True)
    return tmp_path / "step"


def _load(folder: Path) -> dict[str, Any]:
    state = _state()
    state["model"] = {k: torch.zeros_like(v) for k, v in state["model"].items()}
    state["more"] = {"step": 0, "names": []}
    state_dict_loader.load(state, storage_reader=Reader(folder), planner=Planner(), no_dist=True)
    return state


def test_what_was_written_is_read(folder: Path) -> None:
    found, wanted = _load(folder), _state()
    assert all(torch.equal(found["model"][k], v) for k, v in wanted["model"].items())
    assert found["more"] == wanted["more"]


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_an_index_that_calls_something_is_refused_and_calls_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / INDEX).write_bytes(pickle.dumps(_Bomb(tmp_path / "hit")))
    with pytest.raises(BadInput, match=r"metadata: index of the checkpoint cannot be read: it names \w+\.mkdir"):
        Reader(folder).read_metadata()
    assert not (tmp_path / "hit").exists()


def test_an_entry_that_calls_something_is_refused_and_calls_nothing(folder: Path, tmp_path: Path) -> None:
    class _As(Reader):
        def read_data(self, plan: Any, planner: Any) -> Any:
            for item in plan.items:
                if item.dest_index.fqn == "more.step":
                    bad = io.BytesIO()
                    torch.save(_Bomb(tmp_path / "hit"), bad)
                    planner.load_bytes(item, io.BytesIO(bad.getvalue()))
            return super().read_data(plan, planner)

    with pytest.raises((CheckpointException, pickle.UnpicklingError)):
        state_dict_loader.load(_state(), storage_reader=_As(folder), planner=Planner(), no_dist=True)
    assert not (tmp_path / "hit").exists()


def test_an_index_that_points_outside_is_refused(folder: Path) -> None:
    index = pickle.loads((folder / INDEX).read_bytes())
    for one in index.storage_data.values():
        one.relative_path = f"../{one.relative_path}"
    (folder / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(BadInput, match=r"points to '\.\./"):
        Reader(folder).read_metadata()


@pytest.mark.parametrize("body", [b"", b"not a pickle", pickle.dumps([1, 2])])
def test_an_index_that_is_none_is_refused(folder: Path, body: bytes) -> None:
    (folder / INDEX).write_bytes(body)
    with pytest.raises(BadInput, match="delete its folder"):
        Reader(folder).read_metadata()


def test_an_index_cut_anywhere_is_refused(folder: Path) -> None:
    whole = (folder / INDEX).read_bytes()
    for size in range(0, len(whole), 37):
        (folder / INDEX).write_bytes(whole[:size])
        with pytest.raises(BadInput):
            Reader(folder).read_metadata()
