"""The columnar loader against a plain twin that walks the rows of `Prepared.frame` one by one."""

from __future__ import annotations

import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrbench.datasets import loader as loader_module
from ctrbench.datasets import shards
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import Batch

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
criteo_file, movielens_folder, random_events = (_tiny["criteo_file"], _tiny["movielens_folder"], _tiny["random_events"])
_table = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_table.py"))
shop, LONGER = _table["shop"], _table["SEQUENCE"].replace("max_length: 6", "max_length: 9")


@pytest.fixture(scope="module", params=["criteo", "movielens_1m", "table"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("loader")
    options = {}
    if request.param == "criteo":
        raw = criteo_file(folder)
    elif request.param == "movielens_1m":
        raw = movielens_folder(folder / "raw", random_events(3, 900))
    else:
        raw, schema = shop(folder, 900, LONGER)
        options["schema"] = str(schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 217)  # many shards
        return prepare(request.param, raw, folder / "out", **options)


def _rows_of(batch: Batch, prepared: Prepared, length: int | None) -> list[dict[str, object]]:
    """A batch taken apart row by row with the plain means of TorchRec."""
    schema = prepared.schema_for(length)
    jagged = batch.ids.to_dict()
    out = []
    for i in range(batch.size):
        row: dict[str, object] = {
            "label": int(batch.label_B[i]), "user_id": int(batch.user_B[i]), "time": int(batch.time_B[i]),
        }  # fmt: skip
        for j, field in enumerate(schema.dense):
            row[field.name] = None if batch.missing_BI[i, j] else float(batch.dense_BI[i, j])
        for field in (*schema.categorical, *schema.sequences):
            ids = jagged[field.name]
            value = ids.values()[int(ids.offsets()[i]) : int(ids.offsets()[i + 1])].tolist()
            row[field.name] = value if field.kind == "sequence" else value[0]
        for history, fields in schema.histories.items():
            offsets = jagged[fields[0].name].offsets()
            row[f"{history}_time"] = batch.event_times[history][int(offsets[i]) : int(offsets[i + 1])].tolist()
            assert batch.host["lengths"][history][i] == len(row[fields[0].name])  # type: ignore[index, arg-type]
        out.append(row)
    return out


def _twin_rows(prepared: Prepared, split: str, last: int | None, length: int | None) -> list[dict[str, object]]:
    rows = prepared.frame(split, last).to_dicts()
    for row in rows:
        for history, fields in prepared.schema.histories.items():
            for name in (*(f.name for f in fields), f"{history}_time"):
                row[name] = row[name][-length:] if length else row[name]
    return rows


def _order(row: dict[str, object]) -> str:
    return repr(sorted(row.items()))


@pytest.mark.parametrize("last", [None, 1, 300, 10**9])
@pytest.mark.parametrize("length", [None, 1, 7])
def test_stored_order(prepared: Prepared, last: int | None, length: int | None) -> None:
    loader = Loader(prepared, "train", 64, rows=last, history_length=length)
    batches = list(loader)
    got = [row for batch in batches for row in _rows_of(batch, prepared, length)]
    assert got == _twin_rows(prepared, "train", last, length)
    assert len(batches) == len(loader)
    assert len(got) == loader.rows == min(last or 10**9, prepared.rows("train"))


@pytest.mark.parametrize("window", [1, 500, 10**6])
def test_shuffle_is_a_permutation_and_repeats(prepared: Prepared, window: int) -> None:
    def once(seed: int | None) -> list[dict[str, object]]:
        loader = Loader(prepared, "train", 100, shuffle_seed=seed, window=window)
        first, second = ([r for b in loader for r in _rows_of(b, prepared, None)] for _ in range(2))
        assert first == second, "two passes of one loader differ"
        return first

    stored = _twin_rows(prepared, "train", None, None)
    a, again, b = once(5), once(5), once(6)
    assert a == again
    assert a != b
    assert a != stored
    assert sorted(a, key=_order) == sorted(b, key=_order) == sorted(stored, key=_order)
    assert once(None) == stored


def test_shapes_and_types(prepared: Prepared) -> None:
    batch = next(iter(Loader(prepared, "test", 50)))
    schema = prepared.schema
    assert batch.ids.keys() == [f.name for f in (*schema.categorical, *schema.sequences)]
    assert (batch.ids.values().dtype, batch.ids.lengths().dtype) == (torch.int64, torch.int32)
    assert (batch.dense_BI.dtype, batch.missing_BI.dtype, batch.label_B.dtype) == (torch.float32,) * 3
    assert (batch.time_B.dtype, batch.user_B.dtype) == (torch.int64,) * 2
    assert batch.dense_BI.shape == batch.missing_BI.shape == (50, len(schema.dense))
    assert sum(batch.ids.length_per_key()) == batch.ids.values().numel() == int(batch.ids.lengths().sum())
    assert batch.ids.stride() == batch.size == 50
    for field in schema.of_kind("categorical", "sequence"):
        assert batch.ids[field.name].values().max() < schema[field.table].cardinality
    assert not batch.dense_BI[batch.missing_BI == 1].any()


def test_drop_last_and_prefetch(prepared: Prepared) -> None:
    rows = prepared.rows("train")
    for prefetch in (0, 1, 5):
        full = Loader(prepared, "train", 64, prefetch=prefetch, drop_last=True)
        sizes = [b.size for b in full]
        assert sizes == [64] * (rows // 64) == [64] * len(full)
        assert full.cpu_seconds > 0
        assert [b.size for b in Loader(prepared, "train", 64, prefetch=prefetch)][-1] == (rows % 64 or 64)


def _threads() -> int:
    return sum(t.name.startswith("ctrbench-loader") for t in threading.enumerate())


def test_abandoned_pass_leaves_no_thread(prepared: Prepared) -> None:
    before = _threads()
    stream = iter(Loader(prepared, "train", 16))
    next(stream)
    assert _threads() == before + 1
    del stream  # what a `break` does
    assert _threads() == before
    for _ in Loader(prepared, "train", 16):
        break
    assert _threads() == before


def test_error_in_the_thread_reaches_the_caller(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(prepared, "train", 16)
    monkeypatch.setattr(loader, "_make", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(loader))
    assert _threads() == 0


def test_wrong_arguments(prepared: Prepared) -> None:
    for wrong in ({"batch": 0}, {"batch": 8, "rows": 0}, {"batch": 8, "prefetch": -1}):
        with pytest.raises(BadInput, match="Loader: "):
            Loader(prepared, "train", **wrong)
    with pytest.raises(BadInput, match="'tset': did you mean 'test'"):
        Loader(prepared, "tset", 8)


def test_frame_of_some_columns(prepared: Prepared) -> None:
    whole = prepared.frame("valid")
    names = [whole.columns[-1], "time", whole.columns[3]]
    assert prepared.frame("valid", columns=names).equals(whole.select(names))
    assert prepared.frame("valid", last=5).equals(whole.tail(5))
    assert np.isclose(prepared.positive_rate("valid"), whole["label"].mean())
    with pytest.raises(BadInput, match="unknown column 'tmie': did you mean 'time'"):
        prepared.frame("valid", columns=["tmie"])


@pytest.mark.parametrize("last", [None, 300])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_are_disjoint_and_together_every_row(prepared: Prepared, count: int, last: int | None) -> None:
    whole = Loader(prepared, "train", 64, rows=last)
    numbers = [int(n) for b in whole for n in b.row_B.tolist()]  # type: ignore[union-attr]
    parts = [Loader(prepared, "train", 64, rows=last, shard=(i, count), shuffle_seed=s) for i in range(count)
             for s in (None, 7)]  # fmt: skip
    stored, shuffled = (
        [[int(n) for b in p for n in b.row_B.tolist()] for p in some]  # type: ignore[union-attr]
        for some in (parts[::2], parts[1::2])
    )
    assert [n for part in stored for n in part] == numbers
    assert [sorted(p) for p in shuffled] == stored
    assert max(map(len, stored)) - min(map(len, stored)) <= 1
    assert [p.rows for p in parts[::2]] == [len(s) for s in stored]


def test_labels_of_a_shard_are_those_of_its_rows(prepared: Prepared) -> None:
    rows = prepared.rows("train")
    labels = np.arange(rows)
    given = [Loader(prepared, "train", 50, labels=labels, shard=(i, 3)) for i in range(3)]
    assert [int(x) for loader in given for b in loader for x in b.label_B.tolist()] == labels.tolist()


def test_a_chunk_is_cut_into_the_batches_that_rows_alone_make(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passes(chunk: int) -> list[list[dict[str, object]]]:
        monkeypatch.setattr(loader_module, "CHUNK", chunk)
        loader = Loader(prepared, "train", 32, shuffle_seed=3, window=400)
        return [_rows_of(batch, prepared, None) for batch in loader]

    assert passes(1) == passes(100) == passes(10**6)


def test_pinned_batches_are_asked_for_only_where_a_device_takes_them(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="pin=True needs a CUDA device"):
        Loader(prepared, "train", 8, pin=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned: list[int] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    loader = Loader(prepared, "train", 64, prefetch=0, pin=True)
    batch = next(iter(loader))
    assert {t.data_ptr() for t in batch.tensors()} == set(pinned)
    assert _rows_of(batch, prepared, None) == _rows_of(next(iter(Loader(prepared, "train", 64))), prepared, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_on_a_device(prepared: Prepared) -> None:
    for batch, plain in zip(Loader(prepared, "train", 64, pin=True), Loader(prepared, "train", 64), strict=True):
        assert all(t.is_pinned() for t in batch.tensors() if t.numel())
        moved = batch.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        assert all(torch.equal(a.cpu(), b) for a, b in zip(moved.tensors(), plain.tensors(), strict=True))


def test_shards_that_are_not_there(prepared: Prepared) -> None:
    for wrong in ((2, 2), (-1, 2), (0, 10**9)):
        with pytest.raises(BadInput, match="shard="):
            Loader(prepared, "train", 8, shard=wrong)
