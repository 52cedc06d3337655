"""Real rows, where they are: the 4,584-row Criteo Kaggle sample and MovieLens-1M from its cached wheel.

Numbers: README of ../shared/data and the MovieLens-1M section of the data design note, both counted on the files.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Literal

import polars as pl
import pytest

from ctrbench.bench.content import content_of
from ctrbench.bench.pretrain import last_rows
from ctrbench.datasets import criteo_text, movielens_1m, table_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.datasets.spec import Raw, cache_dir, sha256_file
from ctrbench.datasets.table_schema import parse
from ctrbench.models.lum_backbone import event_fields
from ctrbench.models.residual_codes import SidConfig
from ctrbench.models.semantic_ids import semantic_ids, sid_facts

SAMPLE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "criteo_kaggle_sample_4584.tsv.gz"


@pytest.fixture(scope="module")
def sample() -> Path:
    if not SAMPLE.is_file():
        pytest.skip(f"{SAMPLE.name} is not beside the repository (../shared/data): real Criteo rows not tested")
    digest = hashlib.sha256(SAMPLE.read_bytes()).hexdigest()
    assert digest == "66602c9214e32c4552fb360b98f845e8963a35f71bb897d972f13d4ed0aeb761", f"{SAMPLE.name} has changed"
    return SAMPLE


def test_criteo_sample_counts(sample: Path) -> None:
    account = Account(sample)
    rows = pl.concat(list(criteo_text.read(sample, account)))
    account.close()
    assert (account.read, account.kept, rows.height) == (4584, 4584, 4584)
    assert not account.skipped
    assert not account.notes
    assert rows["label"].sum() == 1231
    assert rows["I2"].filter(rows["I2"] < 0).value_counts().sort("I2").rows() == [(-2, 6), (-1, 477)]
    assert rows["I1"].null_count() == 2093
    assert rows["C26"].null_count() == 2018
    assert not rows.is_duplicated().any()
    looks_like_number = pl.any_horizontal(pl.col(criteo_text.CATEGORIES).str.contains("^[0-9]+(e[0-9]+)?$"))
    assert rows.filter(looks_like_number).height == 1897


def test_criteo_sample_prepared(sample: Path, tmp_path: Path) -> None:
    out = prepare("criteo", sample, tmp_path / "out")
    test = out.frame("test")
    assert (test.height, test["label"].sum()) == (917, 270)
    assert sum(out.rows(s) for s in SPLITS) == 4584


def test_published_bounds_of_distinct_rows_hold_on_the_sample(sample: Path) -> None:
    rows = pl.concat(list(criteo_text.read(sample, Account(sample)))).sample(fraction=1.0, shuffle=True, seed=0)
    for field in criteo_x1().categorical:
        for batch, share in field.unique_rows:
            for start in range(0, rows.height - batch + 1, batch):
                assert rows[field.name].slice(start, batch).drop_nulls().n_unique() >= batch * share


TABLES = {
    "taobaoad_tiny_train.csv": "5cd2f94d82b2bd62ff276c501f605d20cedf466de465ebb1358000eea73c443d",
    "avazu_sample_100.csv": "43daa44dde764bf2c0dacf80002a73da4441088a53d40a3629094d3a2b1592f3",
}
"""Name -> sha256, as the README of the samples has it."""
TAOBAO_AD = """
name: taobao_ad_tiny
label: {column: clk}
user: userid
time: {column: time_stamp, unit: iso, utc_offset_hours: 8}
fields:
  - {name: adgroup_id, kind: categorical, role: item, required: true}
  - {name: brand, kind: categorical, role: item}
  - {name: pvalue_level, kind: categorical, role: user}
  - {name: new_user_class_level, kind: categorical, role: user}
  - {name: cms_segid, kind: categorical, role: user}
  - {name: price, kind: dense, role: item}
  - {name: clicks, column: click_sequence, kind: sequence, target: adgroup_id}
"""
AVAZU = """
name: avazu_100
label: {column: click}
split: {rule: random}
fields:
  - {name: id, kind: categorical}
  - {name: device_id, kind: categorical}
  - {name: C20, kind: categorical}
"""


def _sample_table(name: str, schema: str) -> tuple[pl.DataFrame, Account]:
    path = SAMPLE.with_name(name)
    if not path.is_file():
        pytest.skip(f"{name} is not beside the repository (../shared/data): a real table not tested")
    assert sha256_file(path) == TABLES[name], f"{name} has changed"
    account = Account(path)
    rows = pl.concat(list(table_reader.read(path, account, parse(path, schema))))
    account.close()
    assert (account.read, account.header, account.kept) == (101, 1, 100)
    return rows, account


def test_taobao_ad_sample_as_a_table() -> None:
    """Software-test rows of the publisher: formats and counts only, no result."""
    rows, _ = _sample_table("taobaoad_tiny_train.csv", TAOBAO_AD)
    assert rows["label"].sum() == 4
    missing = rows.select("brand", "cms_segid", "pvalue_level", "new_user_class_level").null_count().row(0)
    assert missing == (27, 8, 60, 100)
    assert (rows["clicks"].list.len() == 0).sum() == 75
    assert set(rows["time"]) <= {1_494_000_000 + s for s in range(3)}  # 2017-05-06 00:00:00 UTC+8 and two seconds more
    assert rows["time"].n_unique() == 3
    assert rows["price"].null_count() == 0


def test_avazu_sample_as_a_table() -> None:
    """Row ids beyond 64 bits with sign stay text, whole."""
    rows, account = _sample_table("avazu_sample_100.csv", AVAZU)
    assert rows["label"].sum() == 20
    assert sum(int(x) > 2**63 - 1 for x in rows["id"]) == 93
    assert (rows["C20"] == "-1").sum() == 55
    assert (rows["device_id"] == "a99f214a").sum() == 89
    assert rows.null_count().sum_horizontal().item() == 0
    assert len(account.notes) == 1  # the columns that the schema does not name


@pytest.fixture(scope="module")
def wheel() -> Path:
    path = cache_dir() / movielens_1m.WHEEL
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the cache: MovieLens-1M numbers not tested; `make compare` downloads it")
    assert sha256_file(path) == movielens_1m.SHA256
    return path


def test_movielens_log(wheel: Path) -> None:
    account = Account(wheel)
    raw = Raw(path=wheel, sha256=movielens_1m.SHA256, bytes=wheel.stat().st_size)
    log = movielens_1m.events(raw, account)
    account.close()
    assert (account.read, account.header, account.kept) == (1_000_210, 1, 1_000_209)
    assert dict(account.notes) == {"lines ended by CRLF": 1_000_210}
    assert (log["user_id"].n_unique(), log["item"].n_unique(), log["genre"].n_unique()) == (6040, 3706, 18)
    assert not log.select("user_id", "item").is_duplicated().any()
    assert log.null_count().sum_horizontal().item() == 0
    assert round(log["label"].mean(), 3) == 0.575
    seconds = log.select("user_id", "time")
    # The note's 52.9 % are rows that repeat an earlier row's second; 77.4 % share theirs with some other row.
    assert round(1 - seconds.n_unique() / log.height, 3) == 0.529
    assert round(seconds.is_duplicated().mean(), 3) == 0.774


@pytest.fixture(scope="module", params=["global_time", "per_user"])
def movielens(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare("movielens_1m", wheel, tmp_path_factory.mktemp(request.param) / "out", split=request.param)


def test_movielens_splits(movielens: Prepared) -> None:
    rule = movielens.manifest["split"]["rule"]
    test = movielens.frame("test", columns=["label", "user_id", "time"])
    expected = {"global_time": (200_042, 112_261), "per_user": (197_656, 103_152)}[rule]
    assert (test.height, test["label"].sum()) == expected
    assert sum(movielens.rows(s) for s in SPLITS) == 1_000_209
    if rule == "global_time":
        assert movielens.manifest["split"]["test_from_time"] == 975_768_738  # 2000-12-02 14:52:18 UTC
        train_users = movielens.frame("train", columns=["user_id"])["user_id"]
        before = pl.concat([train_users, movielens.frame("valid", columns=["user_id"])["user_id"]]).unique()
        unseen = 1 - test["user_id"].is_in(before.implode()).mean()
        assert round(unseen, 2) == 0.48


def test_movielens_histories(movielens: Prepared) -> None:
    rows = movielens.frame("test", last=20_000, columns=["time", "hist_item", "hist_action", "hist_time"])
    assert rows["hist_time"].list.len().max() == 64
    assert (rows["hist_time"].list.max() < rows["time"]).fill_null(True).all()
    assert (rows["hist_time"].list.eval(pl.element().is_sorted()).list.first()).fill_null(True).all()
    assert set(rows["hist_action"].explode().drop_nulls().unique()) == {movielens_1m.NOT_LIKED, movielens_1m.LIKED}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rqkmeans", "rqvae"])
def test_movielens_semantic_ids(movielens: Prepared, method: Literal["rqkmeans", "rqvae"]) -> None:
    """With the defaults: less is left at every level, codes are used, no two items are alike."""
    spans = last_rows(movielens, event_fields(movielens.schema)).spans_U2
    content, text = content_of(movielens, spans, movielens.schema)
    assert text.startswith("genre (18 columns), year (81 columns), co-occurrence")
    known = content[content.any(dim=1)]
    for collision in ("append", "spill_knn"):
        config = SidConfig(method=method, collision=collision)
        facts = sid_facts(semantic_ids(known, config), config)
        errors = [facts["mean_square"], *facts["mean_square_left"]]
        assert all(b < a for a, b in pairwise(errors)), errors
        assert min(facts["code_use"]) > 0.95, facts["code_use"]
        assert facts["collisions"] > 0 == facts["unresolved"], facts
