"""The generator of UserBehavior.csv as a file writer: bytes, parameters beside them, form, users of a larger file."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrbench.bench.cli import main
from ctrbench.datasets import taobao_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_synthetic import sidecar
from ctrbench.datasets.defects import DEFECTS, spoil
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.taobao_law import CATEGORIES, ITEMS, USERS, catalogue
from ctrbench.datasets.taobao_reader import END, START
from ctrbench.datasets.taobao_synthetic import CHUNK, Generator, Parameters, user_ids, write


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    small = Parameters(users=30, seed=3)
    a, b, gz = (write(small, tmp_path / n) for n in ("a.csv", "b.csv", "c.csv.gz"))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert a == b == json.loads(sidecar(tmp_path / "a.csv").read_text())
    assert a["users"] == 30
    assert a["sha256"] == hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    assert gz["sha256"] == hashlib.sha256((tmp_path / "c.csv.gz").read_bytes()).hexdigest()
    assert gzip.decompress((tmp_path / "c.csv.gz").read_bytes()) == (tmp_path / "a.csv").read_bytes()
    assert write(small, tmp_path / "d.csv.gz")["sha256"] == gz["sha256"]
    assert write(Parameters(users=30, seed=4), tmp_path / "e.csv")["sha256"] != a["sha256"]
    names = ("a.csv", "b.csv", "c.csv.gz", "d.csv.gz", "e.csv")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}{s}" for n in names for s in ("", ".json")}


def test_a_larger_file_begins_with_the_smaller_one(tmp_path: Path) -> None:
    """So the larger is a pool that the smaller is a part of; users beyond a chunk too."""
    for users in (30, CHUNK + 20):
        write(Parameters(users=users), tmp_path / f"{users}.csv")
        write(Parameters(users=users + 15), tmp_path / "larger.csv")
        whole, part = ((tmp_path / n).read_bytes() for n in ("larger.csv", f"{users}.csv"))
        assert whole.startswith(part)
        rest = {line.split(b",")[0] for line in whole[len(part) :].splitlines()}
        assert len(rest) == 15


def test_form_is_that_of_the_public_file(tmp_path: Path) -> None:
    write(Parameters(users=50), tmp_path / "u.csv")
    text = (tmp_path / "u.csv").read_text()
    assert "\r" not in text
    assert text.endswith("\n")
    lines = text.splitlines()
    assert all(taobao_reader.explain(line) is None for line in lines)
    users = [line.split(",")[0] for line in lines]
    firsts = list(dict.fromkeys(users))
    assert len(firsts) == 50
    assert firsts == sorted(firsts)  # string order
    assert users == sorted(users), "users are contiguous"
    account = Account(tmp_path / "u.csv")
    rows = pl.concat(list(taobao_reader.read(tmp_path / "u.csv", account)))
    assert account.kept == account.read == len(lines)
    assert rows["time"].is_between(START, END, closed="left").all()
    assert (rows["time"].diff().fill_null(0) >= 0)[1:].filter((rows["user_id"].diff() == 0)[1:]).all()
    per_user = rows.group_by("user_id").len()["len"]
    assert per_user.max() <= 900
    previous = rows.select(pl.col("item") == pl.col("item").shift(1).over("user_id")).to_series()
    assert previous.sum() == 0
    assert rows.group_by("item").agg(pl.col("category").n_unique())["category"].max() == 1


def test_users_are_unique_and_in_string_order() -> None:
    ids = user_ids()
    assert ids[:4].tolist() == [1, 10, 100, 1000]
    assert len(np.unique(ids)) == USERS
    assert ids.max() == USERS


def test_catalogue_holds_every_item_once() -> None:
    c = catalogue()
    assert len(c.size_C) == CATEGORIES
    assert int(c.size_C.sum()) == ITEMS  # published
    assert c.size_C.min() >= 2, "an item could not differ from the previous one"
    assert (c.first_C[1:] == c.first_C[:-1] + c.size_C[:-1]).all()
    every_C = np.arange(CATEGORIES)
    np.testing.assert_array_equal(c.item(every_C, np.zeros(CATEGORIES)), c.first_C)
    np.testing.assert_array_equal(c.item(every_C, np.full(CATEGORIES, 1 - 1e-12)), c.first_C + c.size_C - 1)
    items = c.item(every_C, np.full(CATEGORIES, 0.5))
    again = c.next_item(every_C, items)
    assert (again != items).all()
    assert ((again >= c.first_C) & (again < c.first_C + c.size_C)).all()


def test_items_of_a_category_follow_their_law() -> None:
    """Shares of the first ranks of a category of n items against (k^-.65) / sum, 200,000 draws: s.e. below .001."""
    c = catalogue()
    u = np.random.default_rng(0).random(200_000)
    rank = c.item(np.zeros(len(u), np.int64), u) - c.first_C[0]
    mass = np.arange(1, c.size_C[0] + 1) ** -0.65
    share = np.bincount(rank, minlength=5)[:5] / len(u)
    np.testing.assert_allclose(share, mass[:5] / mass.sum(), rtol=0.12)


def test_rows_do_not_depend_on_the_number_of_users() -> None:
    short, long = (Generator(Parameters(users=users)) for users in (100, CHUNK + 5))
    assert short.chunks == 1
    assert long.chunks == 2
    table = long.table(0)
    assert table["user"].n_unique() == CHUNK
    assert short.table(0).equals(table.head(short.table(0).height))
    assert long.table(1)["user"].n_unique() == 5


@pytest.mark.parametrize("wrong", [{"users": 0}, {"users": USERS + 1}, {"seed": -1}])
def test_wrong_parameters(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="taobao_synthetic: "):
        Parameters(**wrong)


OUTCOMES = {
    "short_line": "wrong field count", "long_line": "wrong field count", "empty_field": "item is empty",
    "negative_id": "item is not a whole number", "fraction": "time is not a whole number",
    "beyond_64_bits": "item is beyond 64 bits", "other_behaviour": "behaviour is not one of", "nul": "NUL byte",
    "milliseconds": "another unit than seconds", "header": "header where none belongs", "not_utf8": "not UTF-8",
    "cut_last_line": "truncated last line", "empty": "empty file",
}  # fmt: skip
"""Defect -> what the strict reader says; the others are legal, with these notes, rows left out and rows added:"""
LEGAL: dict[str, tuple[dict[str, int], int, int]] = {
    "decimal": ({"integers written as decimals (1.0)": 1}, 0, 0), "out_of_period": ({}, 1, 0), "duplicate": ({}, 0, 1),
    "unsorted": ({}, 0, 0), "crlf": ({"lines ended by CRLF": -1}, 0, 0),
    "bom": ({"byte order mark at the start removed": 1}, 0, 0),
    "no_final_newline": ({"last line without newline": 1}, 0, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "u.csv"
    write(Parameters(users=20), path)
    return path.read_bytes()


@pytest.mark.parametrize("form", ["plain", "gz"])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_switch_for_every_defect(tmp_path: Path, good: bytes, defect: str, form: str) -> None:
    assert set(OUTCOMES) | set(LEGAL) == set(DEFECTS)
    path = tmp_path / "u.csv"
    spoilt = spoil(good, [defect])
    assert spoilt != good
    path.write_bytes(gzip.compress(spoilt) if form == "gz" else spoilt)
    account = Account(path)
    if defect in OUTCOMES:
        with pytest.raises(BadInput, match=OUTCOMES[defect]):
            list(taobao_reader.read(path, account))
        return
    kept = sum(rows.height for rows in taobao_reader.read(path, account))
    notes, left_out, added = LEGAL[defect]
    lines = good.count(b"\n")
    assert dict(account.notes) == {n: lines if count < 0 else count for n, count in notes.items()}
    assert (account.left_out.total(), account.read) == (left_out, lines + added)
    assert kept == account.kept == lines + added - left_out


def test_defects_combine_and_unknown_ones_are_named(tmp_path: Path, good: bytes) -> None:
    path, several = tmp_path / "u.csv", ("bom", "crlf", "out_of_period", "no_final_newline")
    assert write(Parameters(users=20, defects=several), path)["defects"] == list(several)
    assert path.read_bytes() == spoil(good, several)
    account = Account(path)
    assert sum(rows.height for rows in taobao_reader.read(path, account)) == account.read - 1
    assert len(account.notes) == 3
    with pytest.raises(BadInput, match="unknown defect 'clrf': did you mean 'crlf'"):
        Parameters(defects=("clrf",))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, pool = tmp_path / "u.csv", tmp_path / "pool.csv.gz"
    argv = ["data", "generate", "taobao_synthetic", "--users", "20", "--seed", "5", "--out", str(out)]
    assert main([*argv, "--pool", str(pool)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    write(Parameters(users=20, seed=5), tmp_path / "same.csv")
    assert out.read_bytes() == (tmp_path / "same.csv").read_bytes()
    assert gzip.decompress(pool.read_bytes()).startswith(out.read_bytes())
    assert json.loads(sidecar(pool).read_text())["users"] == 80
    assert main([*argv, "--defect", "header"]) == 0
    assert out.read_bytes().startswith(b"user_id,item_id")
    assert main([*argv, "--defect", "heder"]) == 2
    assert "did you mean 'header'" in capsys.readouterr().err
    assert main([*argv[:4], "0", *argv[5:]]) == 2
    assert "1 <= users" in capsys.readouterr().err
