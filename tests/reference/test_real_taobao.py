"""Real UserBehavior rows, where they are: 114 users, and a slice whose last line was cut in the wild.

Numbers: README of ../shared/data, counted on the files, and data.md, section 4, measured on the 114-user sample.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrbench.bench.cli import main
from ctrbench.bench.floors import judge_pool, run_floor
from ctrbench.bench.quality import auc
from ctrbench.datasets import taobao_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.taobao_reader import OUTSIDE

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FILES = {
    "taobao_userbehavior_114users.csv.gz": "d2cf7efc92421d74e60b43aca6195d0ba6b6f0444cd9a083659e2642a5141958",
    "taobao_userbehavior_slice_truncated.csv.gz": "60aa3f976cd8e1c82b818de9ac9d26608e9c6493acfae2738acb604c81777f44",
}


def _file(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the repository (../shared/data): real UserBehavior rows not tested")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FILES[name], f"{name} has changed"
    return path


@pytest.fixture(scope="module")
def users() -> Path:
    return _file("taobao_userbehavior_114users.csv.gz")


@pytest.fixture(scope="module")
def prepared(users: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Negatives from the sample's own events: the pool that must not be used."""
    return prepare("taobao_behaviour", users, tmp_path_factory.mktemp("taobao") / "out")


def _counts(rows: pl.DataFrame) -> dict[int, int]:
    return dict(rows["action"].value_counts().iter_rows())


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_sample_counts(users: Path, policy: str) -> None:
    account = Account(users, policy, 0.0)
    rows = pl.concat(list(taobao_reader.read(users, account)))
    account.close()
    assert (account.read, account.header, account.kept, rows.height) == (10_000, 0, 9_996, 9_996)
    assert dict(account.skipped) == dict(account.left_out) == {OUTSIDE: 4}
    times = [int(place.split("'")[1]) for place in account.places[OUTSIDE]]
    assert times == [1511523471, 1511539191, 1511513157, 1511523936]
    assert not account.notes
    assert rows["user_id"].n_unique() == 114
    assert not rows.drop("position").is_duplicated().any()
    shares = {name: _counts(rows)[code] / 9_996 for name, code in taobao_reader.ACTIONS.items()}
    assert {k: round(v, 3) for k, v in shares.items()} == {"pv": 0.905, "cart": 0.054, "fav": 0.021, "buy": 0.021}


def test_slice_cut_in_the_wild(tmp_path: Path) -> None:
    """`301780,543546,4181361,pv,15`: five fields and a time that parses, so only its value or the newline tells."""
    path = _file("taobao_userbehavior_slice_truncated.csv.gz")
    account = Account(path)
    with pytest.raises(BadInput) as caught:
        list(taobao_reader.read(path, account))
    assert str(caught.value).startswith(f"{path}:2000: truncated last line, {OUTSIDE}: time '15'")
    account = Account(path, "skip")
    rows = pl.concat(list(taobao_reader.read(path, account)))
    account.close()
    assert (account.read, account.kept, account.skipped.total()) == (2_000, 1_999, 1)
    assert not account.left_out
    assert [rows[c].n_unique() for c in ("user_id", "item", "category")] == [1_874, 1_975, 651]
    assert _counts(rows) == {3: 1_779, 4: 114, 5: 57, 6: 49}  # pv, cart, fav, buy


def test_rows_are_those_of_the_design_note(prepared: Prepared) -> None:
    """11,620 rows before 2017-12-02 and 5,458 after, 1:1: views with five or more earlier events."""
    assert prepared.rows("train") + prepared.rows("valid") == 11_620
    assert prepared.rows("test") == 5_458
    assert all(prepared.positive_rate(s) == 0.5 for s in SPLITS)
    times = prepared.frame("test", columns=["time", "hist_time"])
    assert (times["hist_time"].list.max() < times["time"]).all()
    assert times["hist_time"].list.len().min() >= 5  # type: ignore[operator]


@pytest.mark.parametrize("min_count", [2, 5])
def test_the_control_sees_through_a_minimum_count(users: Path, tmp_path: Path, min_count: int) -> None:
    """On encoded ids it would not: LR .54, LightGBM .59 at minimum count 2, while history counts still gain .03."""
    out = prepare("taobao_behaviour", users, tmp_path / "out", min_count=min_count)
    label = out.frame("test", columns=["label"])["label"].to_numpy()
    control = run_floor("target_ids", out, train_rows=None, history_length=1, seed=0)
    assert judge_pool(label, control)["leaking_pool"].startswith("leaking pool")
    assert out.schema["item"].cardinality < 3_000


def test_the_control_flags_the_samples_own_events_as_pool(
    prepared: Prepared, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """data.md: LR .34-.35, LightGBM .64-.66 from target ids alone, and a history AUC of .935 that means nothing."""
    label = prepared.frame("test", columns=["label"])["label"].to_numpy()
    control = run_floor("target_ids", prepared, train_rows=None, history_length=50, seed=0)
    judged = judge_pool(label, control)
    assert judged["target_ids_auc"]["lr"] == pytest.approx(0.345, abs=0.02)
    assert judged["target_ids_auc"]["lightgbm"] == pytest.approx(0.65, abs=0.02)
    assert judged["leaking_pool"].startswith("leaking pool: target ids alone reach AUC")
    looks_excellent = run_floor("lightgbm_history", prepared, train_rows=None, history_length=50, seed=0)
    assert auc(label, np.asarray(looks_excellent.scores)) == pytest.approx(0.935, abs=0.01)
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    assert main(["data", "prepare", "taobao_behaviour", "--path", str(users)]) == 0
    printed = capsys.readouterr()
    assert "\nwarning: leaking pool: target ids alone reach AUC" in printed.err
    assert '"leaking_pool": "leaking pool' in printed.out
