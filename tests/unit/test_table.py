"""data=table: rows, vocabularies, splits and histories against a plain twin; CSV and Parquet give the same."""

from __future__ import annotations

import csv
import math
import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import FIRST_ID, MISSING, OOV

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_table.py"))
shop, loans, sequence_rows = _tiny["shop"], _tiny["loans"], _tiny["sequence_rows"]
SEQUENCE, TABULAR, HEADER, csv_text = _tiny["SEQUENCE"], _tiny["TABULAR"], _tiny["HEADER"], _tiny["csv_text"]
ROWS = 600


def _prepare(pair: tuple[Path, Path], out: Path, **options: Any) -> Prepared:
    return prepare("table", pair[0], out, schema=str(pair[1]), **options)


def _read(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f, delimiter=delimiter))


@pytest.fixture(scope="module")
def shop_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return shop(tmp_path_factory.mktemp("shop"), ROWS)


@pytest.fixture(scope="module")
def prepared(shop_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare(shop_files, tmp_path_factory.mktemp("prepared") / "out")


def _ids(counts: Counter[str], min_count: int) -> dict[str, int]:
    ordered = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v))
    return {v: FIRST_ID + i for i, v in enumerate(ordered)}


def _history(row: dict[str, str], length: int) -> list[tuple[str, str, str, int]]:
    """(item, category, action, time) of the newest items strictly earlier than the row."""
    columns = [row[c].split("|") if row[c] else [] for c in ("past_sku", "past_kind", "past_buy", "past_when")]
    items = [(s, k, b, int(t)) for s, k, b, t in zip(*columns, strict=True) if int(t) < int(row["when"])]
    return sorted(items, key=lambda item: item[3])[-length:]


def test_every_row_against_a_plain_twin(shop_files: tuple[Path, Path], prepared: Prepared) -> None:
    rows = sorted(_read(shop_files[0]), key=lambda r: int(r["when"]))  # stable: ties in file order
    parts = {"train": rows[:432], "valid": rows[432:480], "test": rows[480:]}
    train = parts["train"]
    past = [_history(r, 6) for r in train]
    known = {
        "user": _ids(Counter(r["uid"] for r in train), 1),
        "item": _ids(Counter([*(r["sku"] for r in train), *(e[0] for h in past for e in h)]), 2),
        "category": _ids(Counter([*(r["kind"] for r in train), *(e[1] for h in past for e in h)]), 1),
    }
    users: dict[int, set[str]] = {}
    for split, part in parts.items():
        frame = prepared.frame(split)
        assert frame["label"].to_list() == [int(r["clicked"]) for r in part]
        assert frame["time"].to_list() == [int(r["when"]) for r in part]
        for name, column in (("user", "uid"), ("item", "sku"), ("category", "kind")):
            assert frame[name].to_list() == [known[name].get(r[column], OOV) for r in part]
        prices = [math.log1p(float(r["price"])) if r["price"] else None for r in part]
        assert frame["price"].to_list() == [None if x is None else pytest.approx(x, rel=1e-6) for x in prices]
        for row, raw in zip(frame.iter_rows(named=True), part, strict=True):
            events = _history(raw, 6)
            assert row["hist_item"] == [known["item"].get(e[0], OOV) for e in events]
            assert row["hist_category"] == [known["category"].get(e[1], OOV) for e in events]
            assert row["hist_action"] == [FIRST_ID + int(e[2]) for e in events]
            assert row["hist_time"] == [e[3] for e in events]
            users.setdefault(row["user_id"], set()).add(raw["uid"])
    assert all(len(names) == 1 for names in users.values())
    assert len(users) == len({r["uid"] for r in rows})
    schema = prepared.schema
    assert (schema.name, schema.track) == ("shop", "sequence")
    assert schema["hist_action"].cardinality == FIRST_ID + 2
    assert schema["item"].cardinality == schema["hist_item"].cardinality == FIRST_ID + len(known["item"])
    assert {f.max_length for f in schema.sequences} == {6}


def test_what_the_manifest_says(shop_files: tuple[Path, Path], prepared: Prepared) -> None:
    manifest = prepared.manifest
    late = sum(
        int(t) >= int(r["when"]) for r in _read(shop_files[0]) for t in r["past_when"].split("|") if r["past_when"]
    )
    assert late > 10
    assert manifest["rows"]["notes"] == {
        "columns that the schema does not name, ignored: extra": 1,
        "history hist: items not earlier than their row, cut": late,
    }
    assert (manifest["rows"]["read"], manifest["rows"]["header"], manifest["rows"]["kept"]) == (ROWS + 1, 1, ROWS)
    assert manifest["split"] == {"rule": "time", "by": "time, ties in file order", "test": 0.2, "valid": 0.1}
    assert manifest["raw"]["schema_text"] == SEQUENCE


def test_tabular_with_quotes_text_labels_and_no_time(tmp_path: Path) -> None:
    files = loans(tmp_path, ROWS)
    out = _prepare(files, tmp_path / "out")
    rows = _read(files[0], ";")
    parts = {"train": rows[:432], "valid": rows[432:480], "test": rows[480:]}
    assert (out.schema.name, out.schema.track) == ("loans", "tabular")
    ages = [float(r["age"]) for r in parts["train"] if r["age"]]
    mean = sum(ages) / len(ages)
    sd = math.sqrt(sum((x - mean) ** 2 for x in ages) / len(ages))
    known = _ids(Counter(r["city"] for r in parts["train"]), 2)
    assert any(";" in city for city in known)
    at = 0
    for split, part in parts.items():
        frame = out.frame(split)
        assert frame["label"].to_list() == [int(r["paid"] == "yes please") for r in part]
        assert frame["time"].to_list() == list(range(at, at + len(part)))
        assert set(frame["user_id"]) == {-1}
        assert frame["city"].to_list() == [known.get(r["city"], OOV) for r in part]
        expected = [(float(r["age"]) - mean) / sd if r["age"] else None for r in part]
        assert frame["age"].to_list() == [None if x is None else pytest.approx(x, rel=1e-5, abs=1e-6) for x in expected]
        at += len(part)


def test_parquet_gives_the_same(shop_files: tuple[Path, Path], prepared: Prepared, tmp_path: Path) -> None:
    """Typed columns, lists instead of delimited text, times as timestamps."""
    text = pl.read_csv(shop_files[0], infer_schema=False)
    lists = pl.col("past_sku", "past_kind", "past_buy", "past_when").str.split("|").fill_null([])
    typed = text.with_columns(
        pl.col("price").cast(pl.Float64), pl.col("clicked").cast(pl.Int8), lists,
        pl.from_epoch(pl.col("when").cast(pl.Int64), "s").alias("when"),
    ).with_columns(pl.col("past_when").cast(pl.List(pl.Int64)))  # fmt: skip
    for name, table in (("text", text), ("typed", typed)):
        path = tmp_path / f"{name}.parquet"
        table.write_parquet(path, row_group_size=100)
        out = _prepare((path, shop_files[1]), tmp_path / name)
        for split in SPLITS:
            assert out.frame(split).equals(prepared.frame(split)), name
        assert (out.manifest["rows"]["read"], out.manifest["rows"]["header"]) == (ROWS, 0)


def _with_split(split: str, schema: str = SEQUENCE) -> str:
    return f"{schema}split: {split}\n"


def test_split_per_user(tmp_path: Path) -> None:
    files = shop(tmp_path, ROWS, _with_split("{rule: per_user, test: 0.3, valid: 0.2}"))
    out = _prepare(files, tmp_path / "out")
    frames = [out.frame(s) for s in SPLITS]
    counts = Counter(r["uid"] for r in _read(files[0]))
    sizes = []
    for user in range(len(counts)):
        mine = [f.filter(pl.col("user_id") == user) for f in frames]
        n = sum(m.height for m in mine)
        test = int(n * 0.3)
        valid = int((n - test) * 0.2)
        assert [m.height for m in mine] == [n - test - valid, valid, test]
        ends = [(m["time"].min(), m["time"].max()) for m in mine if m.height]
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        sizes.append(n)
    assert sorted(sizes) == sorted(counts.values())
    assert out.split == "per_user"
    for frame in frames:
        assert frame["time"].is_sorted()


def test_split_by_column(tmp_path: Path) -> None:
    rule = "{rule: column, column: kind, train: [k0, k1], valid: k2, test: [k3]}"
    files = shop(tmp_path, ROWS, _with_split(rule))
    out = _prepare(files, tmp_path / "out")
    counts = Counter(r["kind"] for r in _read(files[0]))
    assert [out.rows(s) for s in SPLITS] == [counts["k0"] + counts["k1"], counts["k2"], counts["k3"]]
    files = shop(tmp_path, ROWS, _with_split("{rule: column, column: kind, train: [k0, k1, k2], test: [k3]}"))
    out = _prepare(files, tmp_path / "cut")
    train = ROWS - counts["k3"]
    assert [out.rows(s) for s in SPLITS] == [train - int(train * 0.1), int(train * 0.1), counts["k3"]]
    assert out.frame("train")["time"].max() <= out.frame("valid")["time"].min()
    assert out.manifest["split"]["valid"] == "last 0.1 of the train rows"
    files = shop(tmp_path, ROWS, _with_split("{rule: column, column: kind, train: [k0, k1], test: [k3]}"))
    with pytest.raises(BadInput, match=r"shop.csv:\d+: value of no part of the split: kind 'k2'"):
        _prepare(files, tmp_path / "none")


def test_random_folds_only_without_order(tmp_path: Path) -> None:
    schema = TABULAR.replace("{rule: file_order}", "{rule: random, folds: 5, seed: 3}")
    out = _prepare(loans(tmp_path, ROWS, schema), tmp_path / "out")
    assert [out.rows(s) for s in SPLITS] == [360, 120, 120]
    assert out.manifest["split"] == {"rule": "random", "by": "random fold: no order exists", "folds": 5, "seed": 3}
    again = _prepare(loans(tmp_path, ROWS, schema), tmp_path / "again")
    other = _prepare(loans(tmp_path, ROWS, schema.replace("seed: 3", "seed: 4")), tmp_path / "other")
    assert again.frame("test").equals(out.frame("test"))
    assert not other.frame("test").equals(out.frame("test"))
    with pytest.raises(BadInput, match=r"split.rule: random although rows have a time; test rows must be the later"):
        _prepare(shop(tmp_path, ROWS, _with_split("{rule: random}")), tmp_path / "time")


def _few(tmp_path: Path, rows: list[list[str]], schema: str = SEQUENCE) -> Prepared:
    """Those rows, then enough ordinary ones that come earlier or later to fill every split."""
    ordinary = sequence_rows(200)
    for row in ordinary:
        row[6:10] = [""] * 4
    (tmp_path / "t.csv").write_text(csv_text(HEADER, [*rows, *ordinary]))
    (tmp_path / "t.yaml").write_text(schema)
    return _prepare((tmp_path / "t.csv", tmp_path / "t.yaml"), tmp_path / "out")


def test_histories_of_unequal_length_align_from_the_end(tmp_path: Path) -> None:
    time = "1500000000"  # before all others: the first train rows
    rows = [
        ["u1", "s1", "k1", "1", time, "1", "s1|s2|s3", "k1|k2", "1|0|1", "10|20|30", ""],
        ["u1", "s1", "k1", "1", time, "1", "s1||s3", "k1|k2|k3", "1|0|7", "10|20|30", ""],
        ["u1", "s1", "k1", "1", time, "1", "s3|s1|s2", "k1|k2|k3", "1|0|1", "30|10|20", ""],
        ["u1", "s1", "k1", "1", time, "1", "s1|s2|s3", "", "1|0|1", "10|20|30", ""],
        ["u1", "s1", "k1", "1", time, "1", "s1|s2", "k1|k2", "1|0", f"10|{time}", ""],
    ]
    out = _few(tmp_path, rows)
    frame = out.frame("train").head(5)
    item = dict(out.vocabulary("item").select("value", "id").iter_rows())
    kind = dict(out.vocabulary("category").select("value", "id").iter_rows())
    one, two, three = (item[f"s{i}"] for i in (1, 2, 3))
    assert frame["hist_item"].to_list() == [[two, three], [one, MISSING, three], [one, two, three], [], [one]]
    assert frame["hist_category"].to_list()[:2] == [[kind["k1"], kind["k2"]], [kind["k1"], kind["k2"], kind["k3"]]]
    assert frame["hist_action"].to_list()[:2] == [[FIRST_ID, FIRST_ID + 1], [FIRST_ID + 1, FIRST_ID, OOV]]
    assert frame["hist_time"].to_list() == [[20, 30], [10, 20, 30], [10, 20, 30], [], [10]]
    notes = out.manifest["rows"]["notes"]
    assert notes["history hist: columns of different lengths in a row, aligned from the end"] == 2
    assert notes["history hist: empty items, kept as missing"] == 1
    assert notes["history hist: items not earlier than their row, cut"] == 1


def test_history_without_times(tmp_path: Path) -> None:
    schema = SEQUENCE.replace('event_times:\n  - {column: past_when, separator: "|"}\n', "")
    rows = [
        ["u1", "s1", "k1", "1", "1500000000", "1", "s9|s8|s7|s6|s5|s4|s3|s2", "|".join("k" * 8), "1|" * 7 + "0", "", ""]
    ]
    out = _few(tmp_path, rows, schema)
    row = out.frame("train").row(0, named=True)
    words = dict(out.vocabulary("item").select("id", "value").iter_rows())
    assert [words[i] for i in row["hist_item"]] == ["s7", "s6", "s5", "s4", "s3", "s2"]  # the newest six of max_length
    assert row["hist_time"] == [1_499_999_999] * 6
    assert out.manifest["rows"]["notes"][
        "history hist: no times; order is the file's, every item counts as one second old"
    ]


def test_vocabulary_is_of_train_rows_and_fixed_values_keep_their_order(tmp_path: Path) -> None:
    schema = TABULAR.replace(
        "{name: job, kind: categorical}", "{name: job, kind: categorical, values: [z, job 3, job 1]}"
    )
    out = _prepare(loans(tmp_path, ROWS, schema), tmp_path / "out")
    table = out.vocabulary("job")
    train = [r["job"] for r in _read(tmp_path / "loans.csv", ";")][:432]
    assert table.rows() == [("z", 3, 0), ("job 3", 4, train.count("job 3")), ("job 1", 5, train.count("job 1"))]
    assert out.frame("train")["job"].to_list() == [{"job 3": 4, "job 1": 5}.get(j, OOV) for j in train]


def test_units_of_time(tmp_path: Path) -> None:
    for unit, form in (
        ("unit: ms", lambda t: f"{t}678"),
        ("unit: iso", lambda t: pl.from_epoch(pl.Series([t]), "s").dt.strftime("%Y-%m-%d %H:%M:%S")[0]),
        (
            "unit: iso, utc_offset_hours: 8",
            lambda t: pl.from_epoch(pl.Series([t + 8 * 3600]), "s").dt.strftime("%Y-%m-%dT%H:%M:%S")[0],
        ),
    ):
        rows = sequence_rows(ROWS)
        expected = sorted(int(r[4]) for r in rows)
        for row in rows:
            row[4] = form(int(row[4]))
        (tmp_path / "t.csv").write_text(csv_text(HEADER, rows))
        (tmp_path / "t.yaml").write_text(SEQUENCE.replace("{column: when}", f"{{column: when, {unit}}}"))
        out = _prepare((tmp_path / "t.csv", tmp_path / "t.yaml"), tmp_path / unit.replace(" ", ""))
        assert [t for s in SPLITS for t in out.frame(s)["time"]] == expected, unit


def test_fingerprint_follows_table_and_schema_not_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    table, schema = shop(tmp_path, ROWS)
    first = prepare("table", table, schema=str(schema))
    renamed = tmp_path / "renamed.yaml"
    renamed.write_bytes(schema.read_bytes())
    assert prepare("table", table, schema=str(renamed)).path == first.path
    renamed.write_text(SEQUENCE.replace("min_count: 2", "min_count: 3"))
    assert prepare("table", table, schema=str(renamed)).fingerprint != first.fingerprint
    table.write_text(table.read_text().replace("u1,", "u2,"))
    assert prepare("table", table, schema=str(schema)).fingerprint != first.fingerprint


def test_keys_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, schema = shop(tmp_path, ROWS)
    for key in ("data.schema", "data.options.schema"):
        plan = build_plan(["data=table", f"data.path={table}", f"{key}={schema}"])
        assert plan.jobs[0].options["schema"] == str(schema)
    argv = ["data", "prepare", "table", "--path", str(table), "--out", str(tmp_path / "out")]
    assert main([*argv, "--schema", str(schema)]) == 0
    for more, message in (
        ([], "table: no schema given; pass a YAML file (data.schema=FILE, --schema FILE)"),
        (["--schema", str(tmp_path / "none.yaml")], "none.yaml: cannot be read"),
        (["--schema", str(tmp_path)], "is a directory"),
    ):
        assert main([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["data", "prepare", "table", "--schema", str(schema)]) == 2
    assert "table: no file given" in capsys.readouterr().err
    assert main(["data", "prepare", "criteo", "--path", str(table), "--schema", str(schema)]) == 2
    assert "criteo: unknown option 'schema'" in capsys.readouterr().err
