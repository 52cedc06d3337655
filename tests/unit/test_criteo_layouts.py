"""Criteo_x1, Criteo_x4 and 1TB folders made by the generator: what is written, splits, coding, accounts."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import runpy
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from ctrbench.bench.cli import main
from ctrbench.datasets import criteo_1tb, criteo_law_1tb, criteo_x1, criteo_x4
from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_forms import stratified_folds, write_form
from ctrbench.datasets.criteo_synthetic import Generator, Parameters
from ctrbench.datasets.criteo_text import CATEGORIES, INTEGERS, TSV, read
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.published import Published
from ctrbench.datasets.schema import FIRST_ID, MISSING, OOV

_folders = runpy.run_path(str(Path(__file__).parents[1] / "data" / "criteo_folders.py"))
rows_of, spoil, copy_folder = _folders["rows_of"], _folders["spoil"], _folders["copy_folder"]
PARAMETERS, write_folders = _folders["PARAMETERS"], _folders["write_folders"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_folders(tmp_path_factory.mktemp("forms"))
    return folder


# ------------------------------------------------------------------ what the generator writes


def test_forms_hold_the_rows_of_the_generator(raw: Path) -> None:
    table = Generator(PARAMETERS).table(0)
    whole = sorted(table.write_csv(include_header=False, quote_style="never").splitlines())
    x4 = [",".join(r) for s in SPLITS for r in rows_of(raw / "x4" / f"{s}.csv", ",")[1:]]
    assert sorted(x4) == whole
    for form, label in (("x4", "Label"), ("x1", "label")):
        for split in SPLITS:
            assert rows_of(raw / form / f"{split}.csv", ",")[0] == [label, *INTEGERS, *CATEGORIES]
    sizes = [len(rows_of(raw / "x1" / f"{s}.csv", ",")) - 1 for s in SPLITS]
    assert sizes == [2160, 540, 300]  # 72, 18 and 10 %
    assert [len(rows_of(raw / "1tb" / f"day_{d}.gz", "\t")) for d in range(3)] == [1000] * 3
    body = json.loads((raw / "x4" / "generated.json").read_text())
    assert body["sha256"]["test.csv"] == hashlib.sha256((raw / "x4" / "test.csv").read_bytes()).hexdigest()


def test_same_parameters_same_folder(raw: Path, tmp_path: Path) -> None:
    for form in ("x1", "x4", "1tb"):
        write_form(form, PARAMETERS, tmp_path / form, days=3)
        for file in (raw / form).iterdir():
            assert (tmp_path / form / file.name).read_bytes() == file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1tb", "x1", "x4"]


def test_folds_are_stratified_tenths() -> None:
    label = Generator(PARAMETERS).table(0)["label"].to_numpy()
    fold = stratified_folds(label)
    for value in (0, 1):
        sizes = Counter(fold[label == value].tolist())
        assert sorted(sizes) == list(range(10))
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_1tb_law() -> None:
    """Masks exact; shares within 3 standard errors; medians and the 95th percentile of positive counts within 15 %."""
    rows = 60_000
    table = Generator(Parameters(rows=rows, cap=5000, ctr=criteo_law_1tb.CTR), criteo_law_1tb.law(5000)).table(0)
    for group in criteo_law_1tb.MASKS:
        assert len({tuple(table[c].is_null()) for c in group}) == 1
    law = criteo_law_1tb.law(5000)
    for name, column in {**law.integers, **law.categories}.items():
        share = column.missing
        assert abs(table[name].is_null().mean() - share) <= 3 * math.sqrt(share / rows) + 1e-12, name
    joint = [table[c] == table[c].mode()[0] for c in criteo_law_1tb.JOINT]
    together = pl.DataFrame(joint).select(pl.all_horizontal(pl.all().fill_null(False))).to_series().mean()
    assert abs(together - 0.20 * 0.96) < 0.01  # .20 of the rows, .04 of them missing
    for name, top1 in criteo_law_1tb.TOP1.items():
        counts = table[name].drop_nulls().value_counts()["count"]
        assert abs(counts.max() / counts.sum() - top1) < 0.01, name
    for name, p50, p95 in (("I2", 220, 1700), ("I4", 37, 530), ("I12", 3000, 81000)):  # data.md 3.3, measured
        assert abs(table[name].median() / p50 - 1) < 0.15
        assert abs(table[name].quantile(0.95) / p95 - 1) < 0.15
    assert abs((table["I8"] == -1).mean() - 0.06) < 0.005
    assert abs(table["label"].mean() - 0.032) < 0.004
    tokens = {c: set(table[c].drop_nulls()) for c in CATEGORIES}
    kaggle = Generator(Parameters(rows=3000, cap=5000)).table(0)
    assert all(len(tokens[c] & set(kaggle[c].drop_nulls())) <= 1 for c in CATEGORIES), "ids must not carry over"


def test_what_cannot_be_written(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown form 'x5': did you mean 'x4'"):
        write_form("x5", PARAMETERS, tmp_path / "a")
    with pytest.raises(BadInput, match="x4: exists"):
        write_form("x4", PARAMETERS, raw / "x4")
    with pytest.raises(BadInput, match=r"days=1: must be 2\.\.24"):
        write_form("1tb", PARAMETERS, tmp_path / "a", days=1)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ what becomes of the rows


def test_x4_against_a_plain_reader(raw: Path, tmp_path: Path) -> None:
    out = prepare("criteo_x4", raw / "x4", tmp_path / "out", version="x4_002")
    rows = {s: rows_of(raw / "x4" / f"{s}.csv", ",")[1:] for s in SPLITS}
    at = 0
    for split in SPLITS:
        frame = out.frame(split)
        assert frame["label"].to_list() == [int(r[0]) for r in rows[split]]
        assert frame["time"].to_list() == list(range(at, at + len(rows[split])))
        assert set(frame["user_id"]) == {-1}
        at += len(rows[split])
        for i, name in enumerate(INTEGERS):
            x = pl.Series([int(r[1 + i]) if r[1 + i] else None for r in rows[split]], dtype=pl.Float64)
            assert frame[name].equals((x.sign() * x.abs().log1p()).cast(pl.Float32).alias(name), null_equal=True)
        for i, name in enumerate(CATEGORIES):
            known = _known([r[14 + i] for r in rows["train"]], 2)
            expected = [known.get(r[14 + i], OOV) if r[14 + i] else MISSING for r in rows[split]]
            assert frame[name].to_list() == expected
    assert out.manifest["rows"]["files"] == {
        f"{s}.csv": {"read": len(r) + 1, "header": 1, "kept": len(r), "skipped": 0} for s, r in rows.items()
    }
    assert (out.manifest["rows"]["read"], out.manifest["rows"]["header"]) == (3003, 3)


def _known(values: list[str], min_count: int) -> dict[str, int]:
    """Value -> id by count and text, as a vocabulary must have it."""
    counts = Counter(v for v in values if v)
    ordered = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v))
    return {v: FIRST_ID + i for i, v in enumerate(ordered)}


def test_x4_versions_and_bars_modes(raw: Path, tmp_path: Path) -> None:
    one = prepare("criteo_x4", raw / "x4", tmp_path / "one")
    assert one.manifest["vocabularies"]["C1"]["min_count"] == 10
    assert (
        prepare("criteo_x4", raw / "x4", tmp_path / "three", min_count=3).manifest["vocabularies"]["C1"]["min_count"]
        == 3
    )
    bars = prepare(
        "criteo_x4", raw / "x4", tmp_path / "bars", integers="log_square_category", bars_compat=True, version="x4_002"
    )
    assert not bars.schema.dense
    assert [f.name for f in bars.schema.categorical] == [*INTEGERS, *CATEGORIES]
    train = rows_of(raw / "x4" / "train.csv", ",")[1:]
    words = [int(r[2]) if r[2] else 0 for r in train]  # I2: the one with negative values
    known = _known([str(x if x <= 2 else math.floor(math.log(x) ** 2)) for x in words], 2)
    assert bars.schema["I2"].cardinality == FIRST_ID + len(known)
    expected = [known.get(str(x if x <= 2 else math.floor(math.log(x) ** 2)), OOV) for x in words]
    assert bars.frame("train")["I2"].to_list() == expected
    for split in SPLITS:
        frame = bars.frame(split)
        apart = prepare("criteo_x4", raw / "x4", tmp_path / "apart", version="x4_002").frame(split)
        for name in CATEGORIES:
            assert not (frame[name] == MISSING).any()
            assert frame[name].equals(apart[name].replace(MISSING, OOV))


def test_x1_against_a_plain_reader(raw: Path, tmp_path: Path) -> None:
    out = prepare("criteo_x1", raw / "x1", tmp_path / "out")
    rows = {s: rows_of(raw / "x1" / f"{s}.csv", ",")[1:] for s in SPLITS}
    assert [out.rows(s) for s in SPLITS] == [2160, 540, 300]
    for split in SPLITS:
        frame = out.frame(split)
        for i, name in enumerate(INTEGERS):
            assert frame[name].to_list() == pl.Series([float(r[1 + i]) for r in rows[split]]).cast(pl.Float32).to_list()
        for i, name in enumerate(CATEGORIES):
            known = _known([r[14 + i] for r in rows["train"]], 1)
            assert frame[name].to_list() == [known.get(r[14 + i], OOV) for r in rows[split]]
    assert not [n for n in out.manifest["rows"]["notes"] if "hex" in n], "ids are numbers there, not tokens"


def test_x1_ids_are_numbers(raw: Path, tmp_path: Path) -> None:
    """`7`, `7.0` and `007` are one id, as for a reader of floats."""
    folder = copy_folder(raw / "x1", tmp_path / "x1")
    plain = prepare("criteo_x1", folder, tmp_path / "plain")
    rows = rows_of(folder / "train.csv", ",")
    place = 14
    for line, form in ((10, "{}.0"), (20, "00{}"), (30, "{}.000")):
        spoil(folder / "train.csv", line, {place: form.format(rows[line - 1][place])}, ",")
    other = prepare("criteo_x1", folder, tmp_path / "other")
    for split in SPLITS:
        assert other.frame(split).equals(plain.frame(split))
    assert other.manifest["rows"]["notes"]["ids written as decimals (1.0)"] == 2


def test_1tb_days_and_halves(raw: Path, tmp_path: Path) -> None:
    out = prepare("criteo_1tb", raw / "1tb", tmp_path / "out")
    assert [out.rows(s) for s in SPLITS] == [2000, 500, 500]
    labels = [int(r[0]) for d in range(3) for r in rows_of(raw / "1tb" / f"day_{d}.gz", "\t")]
    assert [x for s in SPLITS for x in out.frame(s)["label"]] == labels
    split = out.manifest["split"]
    assert split["by"] == "day: all but day_2.gz train, of that one the first half valid and the second half test"
    assert (split["days"], split["valid_from_row"], split["test_from_row"]) == (
        ["day_0.gz", "day_1.gz", "day_2.gz"], 2000, 2500,
    )  # fmt: skip
    assert out.manifest["rows"]["notes"]["3 days given, the published split has 24"] == 1


def test_days_are_in_order_of_number(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "days"
    folder.mkdir()
    for source, target in ((0, 2), (1, 9), (2, 10)):
        (folder / f"day_{target}.gz").write_bytes((raw / "1tb" / f"day_{source}.gz").read_bytes())
    assert [p.name for p in criteo_1tb.days(folder)] == ["day_2.gz", "day_9.gz", "day_10.gz"]
    (folder / "day_9").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"day 9 is there twice, day_9 and day_9.gz; remove one"):
        criteo_1tb.days(folder)


@pytest.mark.parametrize("cap", [1, 999, 1000, 5000])
def test_rows_per_day(raw: Path, tmp_path: Path, cap: int) -> None:
    """The first rows of every day, counted exactly, however the text comes in chunks."""
    for chunk in (64, 1 << 20):
        accounts = []
        for day in range(3):
            account = Account(raw / "1tb" / f"day_{day}.gz")
            rows = pl.concat(list(read(account.path, account, chunk, layout=TSV, most=cap)))
            account.close()
            expected = rows_of(account.path, "\t")[:cap]
            assert rows["label"].to_list() == [int(r[0]) for r in expected]
            accounts.append((account.read, account.kept))
        assert accounts == [(min(cap, 1000),) * 2] * 3
    if cap == 999:
        out = prepare("criteo_1tb", raw / "1tb", tmp_path / "out", rows_per_day=cap)
        assert [out.rows(s) for s in SPLITS] == [1998, 499, 500]
        assert [n for n in out.manifest["rows"]["notes"] if n.startswith("only the first 999 rows of each day")]


def test_capped_head_does_not_ask_for_the_rest(raw: Path, tmp_path: Path) -> None:
    """A defect behind the cap is not read; one before it is."""
    text = gzip.decompress((raw / "1tb" / "day_0.gz").read_bytes())
    file = tmp_path / "day_0.gz"
    file.write_bytes(gzip.compress(text[: len(text) // 2] + b"\nbroken line\n" + text[len(text) // 2 :]))
    kept = Account(file)
    assert sum(rows.height for rows in read(file, kept, 4096, most=50)) == kept.read == 50
    with pytest.raises(BadInput, match="wrong field count"):
        list(read(file, Account(file), 4096))


@pytest.mark.parametrize("form", ["x1", "x4"])
def test_gzipped_files_give_the_same(raw: Path, tmp_path: Path, form: str) -> None:
    plain = prepare(f"criteo_{form}", raw / form, tmp_path / "plain")
    packed = prepare(f"criteo_{form}", copy_folder(raw / form, tmp_path / form, gz=True), tmp_path / "packed")
    for split in SPLITS:
        assert packed.frame(split).equals(plain.frame(split))


# ------------------------------------------------------------------ published figures


def test_published_rows_and_md5_are_notes(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {s: p.rows for s, p in criteo_x4.PUBLISHED.items()} == {
        "train": 36_672_493, "valid": 4_584_062, "test": 4_584_062,
    }  # fmt: skip
    assert sum(p.rows for p in criteo_x4.PUBLISHED.values()) == 45_840_617  # the Kaggle file
    assert sum(p.rows for p in criteo_x1.PUBLISHED.values()) == 45_840_617
    notes = prepare("criteo_x1", raw / "x1", tmp_path / "a").manifest["rows"]["notes"]
    md5 = {s: hashlib.md5((raw / "x1" / f"{s}.csv").read_bytes()).hexdigest() for s in SPLITS}
    for split, published in criteo_x1.PUBLISHED.items():
        sizes = {"train": 2160, "valid": 540, "test": 300}
        assert notes[f"{split}.csv: {sizes[split]:,} rows, the published file has {published.rows:,}"] == 1
        text = f"{split}.csv: md5 {md5[split]}, that of the published file is {published.md5}"
        assert notes[text] == 1
    right = {s: Published(rows=n, md5=md5[s]) for s, n in (("train", 2160), ("valid", 540), ("test", 300))}
    monkeypatch.setattr(criteo_x1, "PUBLISHED", right)
    generated = "the folder holds generated.json: these rows were generated and are not Criteo's"
    assert prepare("criteo_x1", raw / "x1", tmp_path / "b").manifest["rows"]["notes"] == {generated: 1}


@pytest.mark.parametrize("form", ["x1", "x4", "1tb"])
def test_generated_rows_are_said_to_be(raw: Path, tmp_path: Path, form: str) -> None:
    folder = copy_folder(raw / form, tmp_path / form)
    ours = prepare(f"criteo_{form}", folder, tmp_path / "ours").manifest
    (folder / "generated.json").unlink()
    theirs = prepare(f"criteo_{form}", folder, tmp_path / "theirs").manifest
    assert (ours["synthetic"], theirs["synthetic"]) == (True, False)
    assert len(set(ours["rows"]["notes"]) - set(theirs["rows"]["notes"])) == 1
    assert ours["fingerprint"] != theirs["fingerprint"]


def test_published_rows_of_1tb_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path(f"day_{d}.gz") for d in range(24)]
    account = Account(Path("1tb"))
    account.read = criteo_1tb.TRAIN_ROWS + criteo_1tb.LAST_ROWS
    account.files = {f.name: {"read": criteo_1tb.LAST_ROWS} for f in files}
    criteo_1tb._compare(files, 0, account)
    assert not account.notes
    account.read -= 1
    criteo_1tb._compare(files, 0, account)
    assert dict(account.notes) == {"days 0-22: 4,195,197,691 rows, published are 4,195,197,692": 1}


def test_fingerprint_follows_every_file(raw: Path, tmp_path: Path) -> None:
    folder = copy_folder(raw / "x4", tmp_path / "x4")
    first = prepare("criteo_x4", folder, tmp_path / "a")
    spoil(folder / "test.csv", 5, {1: "77"}, ",")
    second = prepare("criteo_x4", folder, tmp_path / "b")
    assert first.fingerprint != second.fingerprint


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "x4"
    made = ["data", "generate", "criteo_synthetic", "--form", "x4", "--rows", "1000", "--cap", "200"]
    assert main([*made, "--out", str(folder)]) == 0
    options = ["--option", "version=x4_002", "--option", "bars_compat=true"]
    assert main(["data", "prepare", "criteo_x4", "--path", str(folder), *options, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    manifest = Prepared.open(tmp_path / "out").manifest
    assert (manifest["options"]["version"], manifest["options"]["bars_compat"]) == ("x4_002", True)
    assert main([*made, "--out", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["data", "prepare", "criteo_x4", "--path", str(folder), "--option", "bars_compat"]) == 2
    assert "have the form key=value" in capsys.readouterr().err
