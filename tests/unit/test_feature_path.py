"""Feature paths end with what models are trained and asked on, and their measurement says what it took."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.serving import feature_path
from ctrbench.bench.serving.feature_batch import BatchPath
from ctrbench.bench.serving.feature_data import Steps
from ctrbench.bench.serving.feature_path import LEGACY, feature_rows
from ctrbench.bench.serving.feature_requests import RequestPath
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.legacy_features import ImpressionLog, batch_features, recipe
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import OOV

_data = Path(__file__).parents[1] / "data"
BASE = {"run": "r", "model": "all", "data": "movielens_1m"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A few hundred events; some values are out of vocabulary."""
    tiny, folder = runpy.run_path(str(_data / "tiny_data.py")), tmp_path_factory.mktemp("small")
    raw = tiny["movielens_folder"](folder / "raw", tiny["random_events"](3, seconds=20_000))
    return prepare("movielens_1m", raw, folder / "out", history=7, min_count=9)


def one_batch(parts: list[KeyedJaggedTensor]) -> dict[str, tuple[list[int], list[int]]]:
    """Key -> its values and lengths over all batches."""
    return {
        key: (
            torch.cat([part[key].values() for part in parts]).tolist(),
            torch.cat([part[key].lengths() for part in parts]).tolist(),
        )
        for key in parts[0].keys()
    }


def test_batch_path_gives_the_prepared_rows_and_their_features(small: Prepared) -> None:
    path, steps = BatchPath(small, 10**6, seed=0), Steps()
    prepared_rows = one_batch([b.ids for split in SPLITS for b in Loader(small, split, 64)])
    assert OOV in prepared_rows["item"][0]
    assert one_batch(path.transformer(steps)) == prepared_rows
    assert list(steps.seconds) == ["join", "vocabulary", "history", "kjt"]
    legacy = one_batch(path.legacy(40, steps))
    single = [f.name for f in small.schema.categorical]
    assert {name: legacy.pop(name) for name in single} == {name: prepared_rows[name] for name in single}
    rows = [small.frame(split, columns=["label", "time", *single]) for split in SPLITS]
    log = ImpressionLog.of(rows[0].extend(rows[1]).extend(rows[2]), small.schema)
    want_FN = batch_features(log, recipe(small.schema, 40, small.positive_rate("train")))
    assert [values for values, _ in legacy.values()] == want_FN.tolist()


def test_a_sample_is_of_whole_users(small: Prepared) -> None:
    some = BatchPath(small, 60, seed=1)
    assert 60 <= some.size < 200
    whole = BatchPath(small, 10**6, seed=1).data.impressions
    users = some.data.impressions["user_id"].unique()
    assert some.size == whole["user_id"].is_in(users.implode()).sum()


def test_request_path_answers_as_the_batch_path(small: Prepared) -> None:
    server, steps = RequestPath(small, (40, 200), seed=0), Steps()
    frame = small.frame("test")
    requests, made = server.asked(5, 4), server.counters[40].recipe
    answers = zip(server.transformer(requests, steps), server.legacy(40, requests, steps), strict=True)
    for asked, (plain, legacy) in zip(requests, answers, strict=True):
        row = frame.filter(user_id=asked.user_id, time=asked.time).row(0, named=True)
        for f in small.schema.of_kind("categorical", "sequence"):
            want = row[f.name] if f.kind == "sequence" else [row[f.name]]
            if f.role != "item":
                assert plain.users.ids[f.name].values().tolist() == want, f.name
        assert plain.users.event_times["hist"].tolist() == row["hist_time"]
        assert torch.equal(legacy.ids_JN[: len(plain.ids_JN)], plain.ids_JN)
        before = server.log.take(0, min(server.known, int(np.searchsorted(server.log.time_N, asked.time))))
        for c in range(4):
            ids = {f.name: [row[f.name]] for f in small.schema.categorical if f.role == "user"}
            ids |= {name: [int(plain.ids_JN[j, c])] for j, name in enumerate(("item", "genre", "year"))}
            asked_for = {name: np.append(known, ids[name]) for name, known in before.ids.items()}
            log = ImpressionLog(np.append(before.time_N, asked.time), np.append(before.label_N, 0), asked_for)
            want_F = batch_features(log, made)[:, -1]
            shared = torch.cat(
                [legacy.users.ids[n].values() for n, o in zip(made.names, made.of_item, strict=True) if not o]
            )
            assert shared.tolist() == want_F[~made.of_item].tolist()
            assert legacy.ids_JN[len(plain.ids_JN) :, c].tolist() == want_F[made.of_item].tolist()


def test_rows_say_what_every_step_takes(small: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_path, "ANSWERED", 8)
    rows, extra = feature_rows(BASE, small, candidates=(2, 4), repeats=2, seed=0)
    own = dict.fromkeys(LEGACY, ("statistics", "cross+hash")) | {"transformer": ("history",)}
    steps = {f"{n}:{s}" for n, more in own.items() for s in ("join", "vocabulary", *more, "kjt", "total")}
    known = extra["feature_path"]
    assert 288 <= known["batch_rows"] <= 400
    for phase, batch, count in (("prepare", None, known["batch_rows"]), ("serve", 2, 8), ("serve", 4, 8)):
        part = {r.scope: r for r in rows if (r.phase, r.batch) == (phase, batch) and not r.scope.endswith("update")}
        assert set(part) == steps
        assert all(r.metric == "feature_cpu" and r.origin == "measured" and r.n == count for r in part.values())
        for name in own:
            parts = [r.value for s, r in part.items() if s.startswith(f"{name}:") and not s.endswith("total")]
            assert min(parts) > 0
            total = part[f"{name}:total"]
            assert total.ci_low <= total.value <= total.ci_high
    updates = {r.scope: r for r in rows if r.scope.endswith("update")}
    assert set(updates) == {f"{name}:update" for name in own}
    for name in own:
        row, seconds = updates[f"{name}:update"], known["core_seconds"]["update"][name]["update"]
        assert row.value == pytest.approx(np.mean(seconds) / row.n * 1e6)
        assert row.ci_low is None
    assert known["columns"] == LEGACY
    assert all(size > 0 for size in known["counter_bytes"].values())
    taken = known["core_seconds"]["prepare"]["legacy"]["statistics"]
    assert len(taken) == 2
    row = next(r for r in rows if (r.phase, r.scope) == ("prepare", "legacy:statistics"))
    assert row.value == pytest.approx(np.median(taken) / known["batch_rows"] * 1e6)


def test_what_cannot_be_measured(small: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repeats=0"):
        feature_rows(BASE, small, candidates=(2,), repeats=0, seed=0)
    tiny = runpy.run_path(str(_data / "tiny_data.py"))
    criteo = prepare("criteo", tiny["criteo_file"](tmp_path), tmp_path / "out")
    with pytest.raises(BadInput, match="a feature path needs fields of a user, of an item, and a history"):
        feature_rows(BASE, criteo, candidates=(2,), repeats=1, seed=0)
