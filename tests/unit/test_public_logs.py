"""Readers of public logs against plain Python on files in their exact form, and what they say of wrong ones."""

from __future__ import annotations

import csv
import gzip
import runpy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ctrbench.datasets import avazu, buckets, kuairand, taobao_ad
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import FIRST_ID, MISSING, OOV

_make = runpy.run_path(str(Path(__file__).parents[1] / "data" / "public_logs.py"))


@pytest.fixture(autouse=True)
def _several_buckets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 30_000)
    monkeypatch.setattr(buckets, "WINDOW_ROWS", 100)
    monkeypatch.setattr(buckets, "SPILL_ROWS", 120)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as f:
        reader = csv.reader(f)
        names = [n.strip() for n in next(reader)]
        return [dict(zip(names, r, strict=True)) for r in reader]


def _words(out: Prepared, field: str) -> dict[int, str]:
    table = out.vocabulary(field)
    return dict(zip(table["id"], table["value"], strict=True)) | {MISSING: "", OOV: "?"}


def _decoded(out: Prepared) -> list[dict[str, Any]]:
    """Every row with the texts of its ids and its events, oldest first."""
    shared = {f.name: f.target for f in out.schema.sequences}
    words = {f.name: _words(out, f.name) for f in out.schema.categorical}
    rows = []
    for split in SPLITS:
        for row in out.frame(split).iter_rows(named=True):
            plain = {k: words[k][v] if k in words else v for k, v in row.items() if k not in shared}
            for name, target in shared.items():
                plain[name] = [words[target][v] if target else v for v in row[name]]
            rows.append({"split": split, **plain})
    return rows


def test_avazu(tmp_path: Path) -> None:
    file = _make["avazu"](tmp_path / "train")
    out = prepare("avazu", file, tmp_path / "out", min_count=1)
    raw = _rows(file)
    moments = [datetime.strptime(r["hour"], "%y%m%d%H").replace(tzinfo=UTC) for r in raw]
    assert out.manifest["rows"]["kept"] == len(raw)
    assert "id" not in {f.name for f in out.schema.fields}
    last = max(moments).date()
    assert out.rows("test") == sum(m.date() == last for m in moments)
    made = _decoded(out)
    assert [r["time"] for r in made] == [int(m.timestamp()) for m in moments]  # stored in file order
    for row, line, moment in zip(made, raw, moments, strict=True):
        assert row["label"] == int(line["click"])
        assert row["hour_of_day"] in (str(moment.hour), "?")
        assert row["weekday"] in (str(moment.isoweekday()), "?")
        for name in avazu.CATEGORIES:
            assert row[name] in (line[name], "?")
            assert row["split"] != "train" or row[name] == line[name]
    (note,) = (n for n in out.manifest["rows"]["notes"] if "the published file has" in n)
    assert note == "train: 600 rows, the published file has 40,428,967"
    assert any("of the rows are positive, published are 0.1698" in n for n in out.manifest["rows"]["notes"])


@pytest.mark.parametrize("label", ["is_click", "long_view"])
def test_kuairand(tmp_path: Path, label: str) -> None:
    folder = _make["kuairand"](tmp_path / "data")
    out = prepare("kuairand", folder, tmp_path / "out", label=label, min_count=1, history=7)
    raw = [r for name in ("4_08_to_4_21", "4_22_to_5_08") for r in _rows(folder / f"log_standard_{name}_1k.csv")]
    videos = {r["video_id"]: r for r in _rows(folder / "video_features_basic_1k.csv")}
    made = _decoded(out)
    assert len(made) == len(raw)
    by_user: dict[str, list[dict[str, str]]] = {}
    for line in raw:
        by_user.setdefault(line["user_id"], []).append(line)
    expected = []
    for user, lines in by_user.items():
        lines.sort(key=lambda r: int(r["time_ms"]) // 1000)
        for line in lines:
            second = int(line["time_ms"]) // 1000
            past = [p for p in lines if int(p["time_ms"]) // 1000 < second][-7:]
            expected.append((second, user, line, past))
    found = {(r["time"], r["user_id"]): r for r in made}
    assert len(found) == len(made), "two impressions of one user and second: make other data"
    for second, user, line, past in expected:
        row = found[second, int(user)]
        assert row["label"] == int(line[label])
        assert row["duration"] is None if not line["duration_ms"] else row["duration"] > 0
        assert list(row["hist_action"]) == [kuairand.ACTIONS[_outcome(p)] for p in past]
        for got, event in zip(row["hist_video"], past, strict=True):
            assert got in (event["video_id"], "?")
        assert row["tag"] in ((videos[line["video_id"]]["tag"].split(",")[0]), "?")
        assert row["author"] in (videos[line["video_id"]]["author_id"], "?")
        assert (row["split"] == "test") == (second >= kuairand.TEST_FROM)
    assert out.schema["hist_action"].cardinality == FIRST_ID + 4
    assert not {"play_time_ms", "is_hate"} & {f.name for f in out.schema.fields}


def _outcome(line: dict[str, str]) -> str:
    if "1" in (line["is_like"], line["is_follow"], line["is_comment"], line["is_forward"]):
        return "engaged"
    return "long view" if line["long_view"] == "1" else "click" if line["is_click"] == "1" else "shown"


def test_kuairand_pure_has_no_histories(tmp_path: Path) -> None:
    folder = _make["kuairand"](tmp_path / "data", size="pure")
    out = prepare("kuairand", folder, tmp_path / "out", min_count=1)
    assert out.schema.track == "tabular"
    assert not out.schema.sequences


def test_taobao_ad(tmp_path: Path) -> None:
    folder = _make["taobao_ad"](tmp_path / "raw")
    out = prepare("taobao_ad", folder, tmp_path / "out", min_count=1, history=9)
    sample, ads = _rows(folder / "raw_sample.csv"), {r["adgroup_id"]: r for r in _rows(folder / "ad_feature.csv")}
    profiles = {r["userid"]: r for r in _rows(folder / "user_profile.csv")}
    log = [r for r in _rows(folder / "behavior_log.csv") if int(r["time_stamp"]) > 0]
    distinct = list({tuple(r.values()): r for r in log}.values())
    made = _decoded(out)
    assert len(made) == len(sample)
    assert out.manifest["split"]["events"]["left_out"] == {"time outside 2017-04-22..05-13 (UTC+8)": 1}
    assert out.manifest["rows"]["notes"]["behavior_log: exact duplicates of a row, dropped"] == len(log) - len(distinct)
    by_key: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in made:
        by_key.setdefault((row["user_id"], row["time"]), []).append(row)
    for line in sample:
        row = next(r for r in by_key[int(line["user"]), int(line["time_stamp"])]
                   if r["adgroup"] in (line["adgroup_id"], "?"))  # fmt: skip
        past = sorted((r for r in distinct if r["user"] == line["user"] and int(r["time_stamp"]) < row["time"]),
                      key=lambda r: int(r["time_stamp"]))[-9:]  # fmt: skip
        assert row["hist_action"] == [taobao_ad.ACTIONS[p["btag"]] for p in past]
        for got, event in zip(row["hist_cate"], past, strict=True):
            assert got in (event["cate"], "?")
        assert row["label"] == int(line["clk"])
        ad = ads[line["adgroup_id"]]
        assert row["brand"] in ("" if ad["brand"] == "NULL" else ad["brand"], "?")
        known = profiles.get(line["user"])
        assert row["pvalue_level"] in ((known or {}).get("pvalue_level", ""), "?")
        assert (row["split"] == "test") == (row["time"] >= taobao_ad.TEST_FROM)


@pytest.mark.parametrize(
    ("name", "label", "pairs"),
    [
        ("taobao_ad_x1", "clk", {"cate_his": "cate_id", "brand_his": "brand"}),
        ("amazon_electronics_x1", "label", {"item_history": "item_id", "cate_history": "cate_id"}),
    ],
)
def test_listed_histories(tmp_path: Path, name: str, label: str, pairs: dict[str, str]) -> None:
    folder = _make[name](tmp_path / "raw")
    out = prepare(name, folder, tmp_path / "out", min_count=1, history=20)
    train, test = (_rows(folder / f"{part}.csv") for part in ("train", "test"))
    made = _decoded(out)
    assert [out.rows(s) for s in SPLITS] == [179, 21, len(test)]  # lines 2 to 180 of 201
    for row, line in zip(made, [*train, *test], strict=True):
        assert row["label"] == int(line[label])
        lists = {c: line[c].split("^") if line[c] else [] for c in pairs}
        shortest = min(len(v) for v in lists.values())
        for column, target in pairs.items():
            expected = lists[column][len(lists[column]) - shortest :][-20:]
            for got, value in zip(row[f"hist_{target}"], expected, strict=True):
                assert got in (value, "?")


Breaker = Callable[[Path], Path]


def _replace(file: str, old: str, new: str, times: int = 1) -> Breaker:
    def spoil(folder: Path) -> Path:
        path = folder / file
        path.write_text(path.read_text().replace(old, new, times))
        return folder

    return spoil


BAD: dict[str, tuple[str, Breaker, str]] = {
    "column absent": ("taobao_ad", _replace("raw_sample.csv", "adgroup_id", "ad"), "raw_sample.csv:1: required column"),
    "no header": (
        "taobao_ad", _replace("behavior_log.csv", "user,time_stamp,btag,cate,brand", "1,1493000000,pv,3,4"),
        "behavior_log.csv:1: no header where one belongs",
    ),
    "nonclk = clk": ("taobao_ad", _replace("raw_sample.csv", ",1,0\n", ",1,1\n"), "nonclk equals clk: clk '1'"),
    "btag": ("taobao_ad", _replace("behavior_log.csv", ",pv,", ",view,"), "btag is not one of pv, cart, fav, buy"),
    "a file absent": (
        "taobao_ad", lambda folder: ((folder / "user_profile.csv").unlink(), folder)[1], "user_profile.csv not found"
    ),
    "flag": ("kuairand", _replace("log_standard_4_08_to_4_21_1k.csv", ",400,", ",400,", 1), ""),
    "milliseconds": (
        "kuairand", _replace("log_standard_4_08_to_4_21_1k.csv", ",400,16", ",400,", -1),
        "is it another unit, another zone, or another data set",
    ),
    "videos absent": (
        "kuairand", lambda folder: ((folder / "video_features_basic_1k.csv").unlink(), folder)[1],
        "video_features_basic_1k.csv not found",
    ),
    "field too many": (
        "amazon_electronics_x1", _replace("train.csv", "\n1,", "\n1,7,"), "wrong field count, 6 expected"
    ),
    "label": ("amazon_electronics_x1", _replace("train.csv", "\n1,", "\n2,"), "label is not 0 or 1: label '2'"),
    "gz cut": ("taobao_ad_x1", lambda folder: _cut_gz(folder), "gzip stream truncated"),
}  # fmt: skip
del BAD["flag"]


def _cut_gz(folder: Path) -> Path:
    text = (folder / "train.csv").read_bytes()
    (folder / "train.csv.gz").write_bytes(gzip.compress(text)[:-200])
    (folder / "train.csv").unlink()
    return folder


@pytest.mark.parametrize("case", BAD)
def test_wrong_files(case: str, tmp_path: Path) -> None:
    name, spoil, words = BAD[case]
    folder = spoil(_make[name](tmp_path / "raw"))
    with pytest.raises(BadInput) as caught:
        prepare(name, folder, tmp_path / "out")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["kuairand", "taobao_ad", "taobao_ad_x1", "amazon_electronics_x1"])
def test_bad_rows_are_dropped_and_counted(name: str, tmp_path: Path) -> None:
    folder = _make[name](tmp_path / "raw")
    file = {"kuairand": "log_standard_4_22_to_5_08_1k.csv", "taobao_ad": "raw_sample.csv"}.get(name, "train.csv")
    lines = (folder / file).read_text().splitlines()
    lines[40] += ",more"
    (folder / file).write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=f"{file}:41: wrong field count"):
        prepare(name, folder, tmp_path / "out")
    out = prepare(name, folder, tmp_path / "out", policy="skip", max_bad_fraction=0.1)
    rows = out.manifest["rows"]
    assert sum(rows["skipped"].values()) - sum(rows["left_out"].values()) == 1
    assert rows["read"] == rows["header"] + rows["kept"] + sum(rows["skipped"].values())
