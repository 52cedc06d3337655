"""The raw Amazon Electronics against plain Python, and what its reader says of wrong files, in both policies."""

from __future__ import annotations

import ast
import gzip
import json
import runpy
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrbench.datasets import amazon_electronics, buckets
from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared

make = runpy.run_path(str(Path(__file__).parents[1] / "data" / "public_logs.py"))["amazon_electronics"]
REVIEWS, META = (f"{n}.gz" for n in (amazon_electronics.REVIEWS, amazon_electronics.META))
PLACE = r"reviews_Electronics_5\.json(\.gz)?"


@pytest.fixture(autouse=True)
def _several_buckets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 20_000)
    monkeypatch.setattr(buckets, "SPILL_ROWS", 100)


def _lines(folder: Path, name: str = REVIEWS) -> list[bytes]:
    return gzip.decompress((folder / name).read_bytes()).splitlines()


def _write(folder: Path, lines: list[bytes], name: str = REVIEWS, plain: bool = False) -> None:
    text = b"\n".join(lines) + b"\n"
    (folder / name).unlink()
    (folder / (name.removesuffix(".gz") if plain else name)).write_bytes(text if plain else gzip.compress(text))


def _words(out: Prepared, field: str) -> dict[int, str]:
    table = out.vocabulary(field)
    return dict(zip(table["id"], table["value"], strict=True))


def test_rows_are_those_of_plain_python(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw")
    out = prepare("amazon_electronics", folder, tmp_path / "out", history=3)
    raw = [json.loads(line) for line in _lines(folder)]
    meta = [ast.literal_eval(line.decode()) for line in _lines(folder, META)]
    category = {b["asin"]: b["categories"][-1][-1] for b in meta}
    by_user: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for review in raw:
        by_user[review["reviewerID"]].append(review)
    positives = {}
    for user, mine in by_user.items():
        mine.sort(key=lambda r: r["unixReviewTime"])  # stable: ties in file order
        for i, review in enumerate(mine):
            past = [r["asin"] for r in mine if r["unixReviewTime"] < review["unixReviewTime"]]
            if past:
                positives[user, i] = review, past[-3:], i == len(mine) - 1
    words = {f: _words(out, f) for f in ("user", "item", "category")}
    found: dict[int, list[tuple[Any, ...]]] = {0: [], 1: []}
    for split in SPLITS:
        for row in out.frame(split).iter_rows(named=True):
            got = {f: words[f].get(row[f], "?") for f in words}
            events = tuple(words["item"].get(i, "?") for i in row["hist_item"])
            found[row["label"]].append((split, row["time"], got["user"], got["item"], got["category"], events,
                                          row["user_id"]))  # fmt: skip
    assert len(found[1]) == len(found[0]) == len(positives)
    assert {"valid", "test", "train"} == {r[0] for r in found[1]}
    seen_in_train = {r["asin"] for r, _, _ in positives.values()}
    wanted = sorted(
        (r["unixReviewTime"], amazon_electronics._number(user), tuple(past), r["asin"])
        for (user, _), (r, past, _) in positives.items()
    )
    found_1 = sorted((r[1], r[6], r[5], r[3]) for r in found[1])
    by_day: dict[tuple[int, int], list[str]] = defaultdict(list)
    for got, want in zip(found_1, wanted, strict=True):
        assert got[:2] == want[:2]
        assert len(got[2]) == len(want[2])
        assert all(a in (b, "?") for a, b in zip(got[2], want[2], strict=True))
        by_day[want[:2]].append(want[3])
    assert all(item in (*by_day[time, user], "?") for time, user, _, item in found_1)
    assert sum(r[0] == "test" for r in found[1]) == sum(last for _, _, last in positives.values())
    own = {u: {r["asin"] for r in mine} for u, mine in by_user.items()}
    for _, _, user, item, kind, *_ in found[0]:
        assert user == "?" or item not in own[user]
        assert item == "?" or kind in (category.get(item, "?"), "?")
    assert len(seen_in_train) > 20
    notes = out.manifest["rows"]["notes"]
    assert f"{REVIEWS}: {len(raw):,} rows, the published file has 1,689,188" in notes
    assert {"60 users, published are 192,403": 1, "30 items, published are 63,001": 1,
            "7 categories, published are 801": 1}.items() <= notes.items()  # fmt: skip
    assert notes[f"items that {META} does not describe, their category missing"] == 1
    assert out.manifest["rows"]["files"][META] == {"read": 30, "header": 0, "kept": 29, "skipped": 1}
    sampler = out.manifest["sampler"]
    assert (sampler["pool_items"], sampler["pool_events"], sampler["weighting"]) == (30, len(raw), "uniform")


def test_validation_is_the_end_of_some_users_train_rows(tmp_path: Path) -> None:
    out = prepare("amazon_electronics", make(tmp_path / "raw", users=300), tmp_path / "out")
    train, valid = out.frame("train"), out.frame("valid")
    assert set(valid["user_id"] % amazon_electronics.VALID_USERS) == {0}
    last = dict(train.group_by("user_id").agg(pl.col("time").max()).iter_rows())
    assert all(time >= last.get(user, 0) for user, time in valid.select("user_id", "time").iter_rows())
    assert valid.height % 2 == 0


def test_one_seed_one_draw(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw")
    outs = [prepare("amazon_electronics", folder, tmp_path / f"o{n}", seed=s) for n, s in enumerate((0, 0, 1))]
    made = [out.frame("train") for out in outs]
    assert made[0].equals(made[1])
    assert not made[0].equals(made[2])


REVIEW = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 86_400}
WRONG = {
    "cut": (b'{"reviewerID": "A1", "asin"', "not a JSON object"),
    "no object": (b"[1, 2]", "not a JSON object"),
    "no JSON": (b"{'reviewerID': 'A1'}", "not a JSON object"),
    "empty": (b"", "not a JSON object"),
    "user absent": (json.dumps(REVIEW | {"reviewerID": None}).encode(), "reviewerID is empty or no text"),
    "user empty": (json.dumps(REVIEW | {"reviewerID": ""}).encode(), "reviewerID is empty or no text"),
    "item a number": (json.dumps(REVIEW | {"asin": 7}).encode(), "asin is empty or no text"),
    "item absent": (b'{"reviewerID": "A1", "unixReviewTime": 1}', "asin is empty or no text"),
    "time absent": (b'{"reviewerID": "A1", "asin": "B1"}', "unixReviewTime is not a whole number of seconds"),
    "time a text": (json.dumps(REVIEW | {"unixReviewTime": "9"}).encode(), "unixReviewTime is not a whole"),
    "time negative": (json.dumps(REVIEW | {"unixReviewTime": -1}).encode(), "unixReviewTime is not a whole"),
    "time a fraction": (json.dumps(REVIEW | {"unixReviewTime": 1.5}).encode(), "unixReviewTime is not a whole"),
    "time true": (json.dumps(REVIEW | {"unixReviewTime": True}).encode(), "unixReviewTime is not a whole"),
    "time beyond int64": (json.dumps(REVIEW | {"unixReviewTime": 2**63}).encode(), "unixReviewTime is not a whole"),
}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_reviews_in_both_policies(case: str, plain: bool, tmp_path: Path) -> None:
    text, reason = WRONG[case]
    folder = make(tmp_path / "raw")
    lines = _lines(folder)
    count = len(lines)
    _write(folder, [*lines[:9], text, *lines[9:20], text, *lines[20:]], plain=plain)
    file = folder / (amazon_electronics.REVIEWS if plain else REVIEWS)
    with pytest.raises(BadInput, match=rf"{PLACE}:10: {reason}"):
        list(amazon_electronics.read_reviews(file, Account(file)))
    account = Account(file, "skip", 0.1)
    rows = sum(r.height for r in amazon_electronics.read_reviews(file, account))
    account.close()
    assert (rows, account.kept, account.read, account.skipped.total()) == (count, count, count + 2, 2)
    (places,) = account.places.values()
    assert [p.removeprefix(str(file)).split(":")[1] for p in places] == ["10", "22"]


META_WRONG = {
    "code": ("__import__('os').getcwd()", "not a Python literal"),
    "call inside": ("{'asin': str('B000000001'), 'categories': [['a']]}", "not a Python literal"),
    "cut": ("{'asin': 'B000000001', 'categories': [['Elec", "not a Python literal"),
    "list": ("['asin']", "not a Python dict"),
    "no asin": ("{'categories': [['a']]}", "asin is empty or no text"),
    "no categories": ("{'asin': 'B000000001'}", "categories hold no category"),
    "empty categories": ("{'asin': 'B000000001', 'categories': [[]]}", "categories hold no category"),
    "number as category": ("{'asin': 'B000000001', 'categories': [[3]]}", "categories hold no category"),
}


@pytest.mark.parametrize("case", META_WRONG)
def test_wrong_descriptions_in_both_policies(case: str, tmp_path: Path) -> None:
    text, reason = META_WRONG[case]
    folder = make(tmp_path / "raw")
    lines = _lines(folder, META)
    _write(folder, [*lines[:4], text.encode(), *lines[4:]], META)
    with pytest.raises(BadInput, match=rf"meta_Electronics\.json\.gz:5: {reason}"):
        amazon_electronics.read_categories(folder / META, Account(folder / META), {"B000000001"})
    account = Account(folder / META, "skip", 0.1)
    found = amazon_electronics.read_categories(folder / META, account, {"B000000001"})
    account.close()
    assert found == {"B000000001": "C1"}
    assert {r: n for r, n in account.skipped.items() if r not in account.left_out} == {reason: 1}
    assert account.left_out == {"item without a review": 29}
    out = prepare("amazon_electronics", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.1)
    assert out.manifest["rows"]["notes"][f"{META}: {reason}, line dropped"] == 1


def test_broken_bytes(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw")
    whole = (folder / REVIEWS).read_bytes()
    lines = _lines(folder)
    (folder / REVIEWS).write_bytes(whole[:-150])
    with pytest.raises(BadInput, match="gzip stream truncated"):
        prepare("amazon_electronics", folder, tmp_path / "out")
    for bad, reason in ((b"\xff", "not UTF-8"), (b"\0", "NUL")):
        _write(folder, [*lines[:3], lines[3][:20] + bad + lines[3][20:], *lines[4:]])
        at = sum(len(line) + 1 for line in lines[:3]) + 20
        with pytest.raises(BadInput, match=rf"(?s)json\.gz:4: .*{reason}.*{at}"):
            prepare("amazon_electronics", folder, tmp_path / "out")


def test_carriage_returns_and_a_mark_at_the_start_are_noted(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw")
    lines = _lines(folder)
    same = prepare("amazon_electronics", folder, tmp_path / "a")
    _write(folder, [b"\xef\xbb\xbf" + lines[0] + b"\r", *(line + b"\r" for line in lines[1:])])
    other = prepare("amazon_electronics", folder, tmp_path / "b")
    assert other.frame("test").equals(same.frame("test"))
    assert any("byte order mark" in n for n in other.manifest["rows"]["notes"])


@pytest.mark.parametrize("name", [REVIEWS, META])
def test_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "raw")
    (folder / name).unlink()
    with pytest.raises(BadInput, match=rf"{name} not found, nor {name.removesuffix('.gz')}; there: "):
        prepare("amazon_electronics", folder, tmp_path / "out")
    with pytest.raises(BadInput, match="no such folder"):
        prepare("amazon_electronics", tmp_path / "none", tmp_path / "out")
    with pytest.raises(BadInput, match="no folder given"):
        prepare("amazon_electronics", None, tmp_path / "out")


def test_options(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw")
    with pytest.raises(BadInput, match="must be at least 1"):
        prepare("amazon_electronics", folder, tmp_path / "out", history=0)
    with pytest.raises(BadInput, match="ratio must be at least 1"):
        prepare("amazon_electronics", folder, tmp_path / "out", ratio=0)
