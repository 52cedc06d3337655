"""Criteo_x1, Criteo_x4 and 1TB folders that are wrong: file and line, both policies, plain and gzip, exact counts."""

from __future__ import annotations

import gzip
import runpy
from pathlib import Path

import polars as pl
import pytest

from ctrbench.datasets.account import Account
from ctrbench.datasets.criteo_text import CSV, ENCODED, Layout, read
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS

_folders = runpy.run_path(str(Path(__file__).parents[1] / "data" / "criteo_folders.py"))
rows_of, spoil, copy_folder = _folders["rows_of"], _folders["spoil"], _folders["copy_folder"]
write_folders = _folders["write_folders"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_folders(tmp_path_factory.mktemp("forms"))
    return folder


BAD = {
    "39 fields": ({}, "wrong field count, 40 expected"),
    "label 2": ({0: "2"}, "label is not 0 or 1"),
    "no label": ({0: ""}, "label is empty"),
    "word": ({5: "x"}, "not an integer"),
    "nan": ({5: "nan"}, "not an integer"),
    "beyond 64 bits": ({5: "9" * 19}, "integer beyond 64 bits"),
}
BAD_X1 = {
    **{k: v for k, v in BAD.items() if "64" not in k and v[1] != "not an integer"},
    "word": ({5: "x"}, "not a number"),
    "nan": ({5: "nan"}, "not a number"),
    "inf": ({5: "inf"}, "not a number"),
    "too large": ({5: "1e39"}, "number beyond single precision"),
    "negative id": ({20: "-1"}, "not an id"),
    "fraction of an id": ({20: "1.5"}, "not an id"),
    "token": ({20: "68fd1e64"}, "not an id"),
    "id of 2^53 + 1": ({20: "9007199254740993"}, "id beyond 2^53"),
}
CASES = [(form, case) for form, cases in (("x4", BAD), ("x1", BAD_X1), ("1tb", BAD)) for case in cases]
MIDDLE = {"x4": "valid.csv", "x1": "valid.csv", "1tb": "day_1.gz"}


@pytest.mark.parametrize("packed", ["plain", "gz"])
@pytest.mark.parametrize(("form", "case"), CASES)
def test_bad_row_in_the_second_file(raw: Path, tmp_path: Path, form: str, case: str, packed: str) -> None:
    """Named by its own file and line; under skip counted there, every line accounted for."""
    edit, reason = (BAD_X1 if form == "x1" else BAD)[case]
    folder, delimiter = copy_folder(raw / form, tmp_path / form), "\t" if form == "1tb" else ","
    file = folder / MIDDLE[form]
    fields = rows_of(file, delimiter)[56]
    spoil(file, 57, edit or delimiter.join(fields[:-1]), delimiter)
    if packed == "gz" and file.suffix != ".gz":
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        file = folder / f"{file.name}.gz"
    elif packed == "plain" and file.suffix == ".gz":
        (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
        file = folder / file.stem
    with pytest.raises(BadInput) as caught:
        prepare(f"criteo_{form}", folder, tmp_path / "out")
    assert str(caught.value).startswith(f"{file}:57: {reason}: ")
    assert str(caught.value).endswith("; correct the line, or drop and count bad rows with policy=skip")
    body = prepare(f"criteo_{form}", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.01).manifest["rows"]
    assert body["skipped"] == {reason: 1}
    assert body["places"][reason][0].startswith(f"{file}:57: {reason}: ")
    assert body["kept"] + 1 + body["header"] == body["read"] == 3000 + body["header"]
    for name, part in body["files"].items():
        assert part["kept"] + part["skipped"] + part["header"] == part["read"]
        assert part["skipped"] == (1 if name == file.name else 0)


def test_first_five_places_over_all_files(raw: Path, tmp_path: Path) -> None:
    folder = copy_folder(raw / "x4", tmp_path / "x4")
    for name, lines in (("train.csv", (5, 6, 7)), ("valid.csv", (8, 9, 10))):
        for line in lines:
            spoil(folder / name, line, {1: "x"}, ",")
    body = prepare("criteo_x4", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.02).manifest["rows"]
    assert body["skipped"] == {"not an integer": 6}
    assert [p.split(":")[1] for p in body["places"]["not an integer"]] == ["5", "6", "7", "8", "9"]


def test_skip_fails_above_the_fraction_of_a_file(raw: Path, tmp_path: Path) -> None:
    folder = copy_folder(raw / "x4", tmp_path / "x4")
    spoil(folder / "test.csv", 9, {1: "x"}, ",")
    with pytest.raises(
        BadInput, match=r"test.csv: 1 of 30\d rows are bad, more than max_bad_fraction=0.001; first: .*:9:"
    ):
        prepare("criteo_x4", folder, tmp_path / "out", policy="skip")


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize(("form", "layout"), [("x1", ENCODED), ("x4", CSV)])
def test_headers(raw: Path, tmp_path: Path, form: str, layout: Layout, policy: str) -> None:
    lines = (raw / form / "test.csv").read_text().splitlines()
    names = lines[0].split(",")

    def rows(header: list[str], body: list[str], encoding: str = "utf-8") -> tuple[pl.DataFrame, Account]:
        file = tmp_path / "test.csv"
        file.write_text("\n".join([",".join(header), *body]) + "\n", encoding=encoding)
        account = Account(file, policy)
        table = pl.concat(list(read(file, account, 500, layout=layout)))
        account.close()
        return table, account

    expected, account = rows(names, lines[1:])
    assert (account.read, account.header, account.kept) == (len(lines), 1, len(lines) - 1)
    assert not account.notes
    for same in (["Label", *names[1:]], ["label", *names[1:]], [f" {n.lower()} " for n in names]):
        assert rows(same, lines[1:])[0].equals(expected)
    turned = [",".join(reversed(line.split(","))) for line in lines[1:]]
    assert rows(names[::-1], turned)[0].equals(expected), "columns are found by name, not by place"
    more, account = rows([*names, "Id"], [f"{line},7" for line in lines[1:]])
    assert more.equals(expected)
    assert dict(account.notes) == {"column 'Id' is not Criteo's and was ignored": 1}
    marked, account = rows(names, lines[1:], "utf-8-sig")
    assert marked.equals(expected)
    assert dict(account.notes) == {"byte order mark at the start removed": 1}
    for header, body, message in (
        (lines[1].split(","), lines[2:], "no header where one belongs"),
        (names[1:], [line.split(",", 1)[1] for line in lines[1:]], "required columns absent: label: found 'I1, I2"),
        ([*names[:-1], "C25"], lines[1:], "required columns absent: C26: found"),
        ([*names, "I1"], [f"{line},1" for line in lines[1:]], "column named twice: I1"),
        (["\t".join(names)], ["\t".join(line.split(",")) for line in lines[1:]], "no header where one belongs"),
    ):
        with pytest.raises(BadInput, match=f"test.csv:1: {message}"):
            rows(header, body)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("form", ["x1", "x4"])
def test_harmless_oddities(raw: Path, tmp_path: Path, form: str, policy: str) -> None:
    plain = prepare(f"criteo_{form}", raw / form, tmp_path / "plain")
    folder = copy_folder(raw / form, tmp_path / form)
    for split in SPLITS:
        file = folder / f"{split}.csv"
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    out = prepare(f"criteo_{form}", folder, tmp_path / "out", policy=policy)
    for split in SPLITS:
        assert out.frame(split).equals(plain.frame(split))
    notes = out.manifest["rows"]["notes"]
    assert (notes["lines ended by CRLF"], notes["last line without newline"]) == (3000, 3)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("form", ["x1", "x4"])
def test_header_only_and_empty_files(raw: Path, tmp_path: Path, form: str, policy: str) -> None:
    folder = copy_folder(raw / form, tmp_path / form)
    head = (folder / "valid.csv").read_bytes().split(b"\n")[0]
    for data, message in (
        (head + b"\n", "valid.csv: no rows"),
        (head, "valid.csv: no rows"),
        (b"", "valid.csv:1: empty"),
    ):
        (folder / "valid.csv").write_bytes(data)
        with pytest.raises(BadInput, match=message):
            prepare(f"criteo_{form}", folder, tmp_path / "out", policy=policy)
    assert sorted(p.name for p in tmp_path.iterdir()) == [form]


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_truncated_file_of_a_folder(raw: Path, tmp_path: Path, policy: str) -> None:
    folder = copy_folder(raw / "1tb", tmp_path / "1tb")
    whole = gzip.decompress((folder / "day_1.gz").read_bytes())
    (folder / "day_1.gz").write_bytes(gzip.compress(whole, 0)[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"day_1.gz:\d+: gzip stream truncated: after \d+ bytes of text; nothing of it"):
        prepare("criteo_1tb", folder, tmp_path / "out", policy=policy)
    (folder / "day_1.gz").write_bytes(gzip.compress(whole[:9000]) + gzip.compress(whole[9000:]))
    assert prepare("criteo_1tb", folder, tmp_path / "out", policy=policy).rows("train") == 2000, "two members are legal"


def test_last_line_cut(raw: Path, tmp_path: Path) -> None:
    folder = copy_folder(raw / "x4", tmp_path / "x4")
    lines = (folder / "test.csv").read_bytes().splitlines()
    (folder / "test.csv").write_bytes(b"\n".join(lines)[:-20])
    with pytest.raises(BadInput, match=rf"test.csv:{len(lines)}: truncated last line, wrong field count"):
        prepare("criteo_x4", folder, tmp_path / "out")
    body = prepare("criteo_x4", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.01).manifest["rows"]
    assert body["skipped"] == {"truncated last line, wrong field count, 40 expected": 1}


def test_one_class_in_a_split(raw: Path, tmp_path: Path) -> None:
    folder = copy_folder(raw / "x4", tmp_path / "x4")
    rows = rows_of(folder / "test.csv", ",")
    (folder / "test.csv").write_text("\n".join([",".join(rows[0]), *(",".join(["0", *r[1:]]) for r in rows[1:])]))
    with pytest.raises(BadInput, match=r"all \d+ rows of split 'test' have label 0; give rows of both classes"):
        prepare("criteo_x4", folder, tmp_path / "out")


def test_folders_and_options_that_are_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, path, message in (
        ("criteo_x4", None, "criteo_x4: no folder given; pass the one with train.csv"),
        ("criteo_x1", tmp_path / "file", "file: no such folder"),
        ("criteo_x1", tmp_path / "empty", "empty: train.csv not found, nor train.csv.gz; there: nothing; rename"),
        ("criteo_x4", raw / "1tb", "train.csv not found, nor train.csv.gz; there: day_0.gz"),
        ("criteo_1tb", None, "criteo_1tb: no folder given"),
        ("criteo_1tb", tmp_path / "file", "file: no such folder"),
        ("criteo_1tb", raw / "x4", r"x4: 0 of day_0.gz .. day_23.gz found; two are needed"),
    ):
        with pytest.raises(BadInput, match=message):
            prepare(name, path)
    wrong = {
        "unknown version 'x4_003': did you mean 'x4_00": {"version": "x4_003"},
        "option integers: unknown transform 'bars': did you mean": {"integers": "bars"},
        "option min_count=-1 must be at least 1": {"min_count": -1},
    }
    for message, options in wrong.items():
        with pytest.raises(BadInput, match=message):
            prepare("criteo_x4", raw / "x4", tmp_path / "out", **options)
    with pytest.raises(BadInput, match="rows_per_day=-1 must be 0"):
        prepare("criteo_1tb", raw / "1tb", tmp_path / "out", rows_per_day=-1)
    with pytest.raises(UnknownName, match="unknown option 'versoin': did you mean 'version'"):
        prepare("criteo_x4", raw / "x4", versoin="x4_001")
