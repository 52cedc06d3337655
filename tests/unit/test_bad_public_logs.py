"""Every line of the table of bad input (data.md, 6) for the public logs, in both policies, plain and gzipped."""

from __future__ import annotations

import gzip
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from ctrbench.datasets import amazon_electronics_x1, avazu, csv_reader, kuairand, taobao_ad, taobao_ad_x1
from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare

_make = runpy.run_path(str(Path(__file__).parents[1] / "data" / "public_logs.py"))
Reader = Callable[[Path, Account], Iterator[pl.DataFrame]]


def _of(form: csv_reader.Format) -> Reader:
    return lambda path, account: csv_reader.read(path, account, form)


READERS: dict[str, tuple[str, str, Reader]] = {
    "avazu": ("avazu", "", avazu.read),
    "raw_sample": ("taobao_ad", "raw_sample.csv", taobao_ad.read_sample),
    "behavior_log": ("taobao_ad", "behavior_log.csv", taobao_ad.read_log),
    "ad_feature": ("taobao_ad", "ad_feature.csv", _of(taobao_ad.AD_FORM)),
    "user_profile": ("taobao_ad", "user_profile.csv", _of(taobao_ad.PROFILE_FORM)),
    "kuairand": ("kuairand", "log_standard_4_08_to_4_21_1k.csv", _of(kuairand.FORM)),
    "taobao_ad_x1": ("taobao_ad_x1", "train.csv", _of(taobao_ad_x1.LISTED.form)),
    "amazon_x1": ("amazon_electronics_x1", "train.csv", _of(amazon_electronics_x1.LISTED.form)),
}
"""Reader -> maker of its data, its file there, how it is read."""
LINE = 10
"""Of the cell that a case changes."""
CELLS: dict[str, list[tuple[str, str, str]]] = {
    "avazu": [("click", "2", "click is not 0 or 1"), ("click", "", "click is empty"),
              ("click", "1.0", "click is not 0 or 1"),
              ("hour", "14102124", "hour is not YYMMDDHH"), ("hour", "1410", "hour is not YYMMDDHH"),
              ("hour", "", "hour is empty"), ("C20", "", "C20 is empty")],
    "raw_sample": [("clk", "2", "clk is not 0 or 1"), ("nonclk", "", "nonclk is empty"), ("user", "", "user is empty"),
                   ("user", "-5", "not an id"), ("user", str(2**63), "id beyond"), ("adgroup_id", "1.5", "not an id"),
                   ("adgroup_id", "1_000", "not an id"), ("time_stamp", "", "time_stamp is empty"),
                   ("time_stamp", "nan", "not an id")],
    "behavior_log": [("btag", "view", "btag is not one of"), ("btag", "", "btag is empty"), ("user", "x", "not an id"),
                     ("cate", str(2**64), "id beyond"), ("time_stamp", str(2**63), "integer beyond 64 bits"),
                     ("time_stamp", "inf", "not an integer")],
    "ad_feature": [("price", "free", "not a number"), ("price", "", "price is empty"), ("brand", "x", "not an id"),
                   ("brand", str(2**63), "id beyond"), ("adgroup_id", "", "adgroup_id is empty")],
    "user_profile": [("userid", "", "userid is empty"), ("age_level", "+3", "not an id"),
                     ("pvalue_level", "?", "not an id"), ("occupation", "", "occupation is empty")],
    "kuairand": [("is_click", "2", "is_click is not 0 or 1"), ("user_id", "", "user_id is empty"),
                 ("video_id", str(2**63), "id beyond"), ("time_ms", "-1", "not an id"), ("tab", "", "tab is empty"),
                 ("duration_ms", "x", "not a number")],
    "taobao_ad_x1": [("clk", "2", "clk is not 0 or 1"), ("clk", "", "clk is empty"), ("userid", "", "userid is empty"),
                     ("userid", str(2**63), "id beyond"), ("price", "x", "not a number")],
    "amazon_x1": [("label", "-1", "label is not 0 or 1"), ("user_id", "", "user_id is empty"),
                  ("user_id", "9" * 30, "id beyond")],
}  # fmt: skip
"""Reader -> (column, value, reason)."""
ACCEPTED: dict[str, list[tuple[str, str]]] = {
    "avazu": [("id", str(2**64 - 1)), ("C20", "-1"), ("device_id", "not hexadecimal"), ("id", "")],
    "raw_sample": [("user", "7.0"), ("adgroup_id", "3.00"), ("pid", "other")],
    "behavior_log": [("cate", "4.0")],
    "ad_feature": [("brand", "NULL"), ("brand", ""), ("price", "1e2")],
    "user_profile": [("pvalue_level", ""), ("new_user_class_level", "")],
    "kuairand": [("duration_ms", ""), ("play_time_ms", ""), ("is_hate", "x")],
    "taobao_ad_x1": [("btag_his", ""), ("price", ""), ("brand", "0"), ("cate_his", "1^^2")],
    "amazon_x1": [("item_history", ""), ("item_id", "")],
}
GZ = pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Reader -> the text of a good file."""
    made, found = {}, {}
    for name, (maker, file, _) in READERS.items():
        if maker not in made:
            made[maker] = _make[maker](tmp_path_factory.mktemp(maker) / "raw")
        text = ((made[maker] / file) if file else made[maker]).read_text()
        lines = text.splitlines()
        found[name] = "\n".join(line for line in lines[:60] if "-1593340000" not in line) + "\n"
    return found


def _file(folder: Path, name: str, text: str | bytes, gz: bool = False) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path = folder / f"{name}.csv{'.gz' if gz else ''}"
    path.write_bytes(gzip.compress(data) if gz else data)
    return path


def _read(name: str, path: Path, policy: str = "strict") -> tuple[pl.DataFrame, Account]:
    account = Account(path, policy, 0.1)
    frames = list(READERS[name][2](path, account))
    account.close()
    return pl.concat(frames), account


def _names(text: str) -> list[str]:
    return [n.strip() for n in text.splitlines()[0].split(",")]


def _with(text: str, column: str, value: str) -> str:
    lines = text.splitlines()
    cells = lines[LINE - 1].split(",")
    cells[_names(text).index(column)] = value
    if column in ("clk", "nonclk") and value in ("0", "1"):
        cells[_names(text).index("nonclk")] = cells[_names(text).index("clk")] = value
    lines[LINE - 1] = ",".join(cells)
    return "\n".join(lines) + "\n"


def _one_bad(name: str, folder: Path, text: str, gz: bool, reason: str, line: int, rows: int) -> None:
    """Strict names the line and the reason; skip drops one row of `rows` and counts it."""
    file = _file(folder, name, text, gz)
    with pytest.raises(BadInput) as caught:
        _read(name, file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert reason in str(caught.value)
    table, account = _read(name, file, "skip")
    assert (table.height, account.kept, account.skipped.total(), account.left_out.total()) == (rows - 1, rows - 1, 1, 0)
    assert account.read == account.header + account.kept + account.skipped.total()
    (places,) = account.places.values()
    assert [p.startswith(f"{file}:{line}: ") for p in places] == [True]


@GZ
@pytest.mark.parametrize(
    ("name", "column", "value", "reason"), [(n, *case) for n, cases in CELLS.items() for case in cases]
)
def test_a_wrong_value(
    name: str, column: str, value: str, reason: str, gz: bool, texts: dict[str, str], tmp_path: Path
) -> None:
    text = texts[name]
    _one_bad(name, tmp_path, _with(text, column, value), gz, reason, LINE, len(text.splitlines()) - 1)


@GZ
@pytest.mark.parametrize("value", ["0", "1"])
def test_nonclk_equal_to_clk(value: str, gz: bool, texts: dict[str, str], tmp_path: Path) -> None:
    text = texts["raw_sample"]
    rows = len(text.splitlines()) - 1
    _one_bad("raw_sample", tmp_path, _with(text, "clk", value), gz, "nonclk equals clk", LINE, rows)


@pytest.mark.parametrize(("name", "column", "value"), [(n, *case) for n, cases in ACCEPTED.items() for case in cases])
def test_an_odd_value_that_is_right(name: str, column: str, value: str, texts: dict[str, str], tmp_path: Path) -> None:
    table, account = _read(name, _file(tmp_path, name, _with(texts[name], column, value)))
    assert (table.height, account.skipped.total()) == (len(texts[name].splitlines()) - 1, 0)


@GZ
@pytest.mark.parametrize("name", READERS)
def test_field_counts_and_a_cut_last_line(name: str, gz: bool, texts: dict[str, str], tmp_path: Path) -> None:
    lines = texts[name].splitlines()
    rows = len(lines) - 1
    for changed in (lines[LINE - 1] + ",7", lines[LINE - 1].rsplit(",", 1)[0]):
        text = "\n".join([*lines[: LINE - 1], changed, *lines[LINE:]]) + "\n"
        wanted = f"wrong field count, {len(_names(texts[name]))} expected"
        _one_bad(name, tmp_path, text, gz, wanted, LINE, rows)
    cut = "\n".join([*lines[:-1], lines[-1][:3]])
    _one_bad(name, tmp_path, cut, gz, "truncated last line, wrong field count", len(lines), rows)
    whole, account = _read(name, _file(tmp_path, name, texts[name].rstrip("\n"), gz))  # a line without newline is legal
    assert (whole.height, account.kept) == (rows, rows)


@GZ
@pytest.mark.parametrize("name", READERS)
def test_line_ends_marks_and_spaces_change_nothing(name: str, gz: bool, texts: dict[str, str], tmp_path: Path) -> None:
    text = texts[name]
    good, _ = _read(name, _file(tmp_path, name, text))
    head, body = text.split("\n", 1)
    for changed, note in (
        (text.replace("\n", "\r\n"), "CRLF"), ("\ufeff" + text, "byte order mark"), (f"{head} \n{body}", ""),
        (f"{head.replace(',', ', ')}\n{body}", ""),
    ):  # fmt: skip
        table, account = _read(name, _file(tmp_path, name, changed, gz))
        assert table.equals(good)
        assert sum(note.casefold() in n.casefold() for n in account.notes) == bool(note) or not note


@GZ
@pytest.mark.parametrize("name", READERS)
def test_bytes_that_are_no_text(name: str, gz: bool, texts: dict[str, str], tmp_path: Path) -> None:
    data = texts[name].encode()
    at = sum(len(line) + 1 for line in data.split(b"\n")[: LINE - 1]) + 2
    for bad, words in ((b"\xff", "UTF-8"), (b"\0", "NUL")):
        for policy in ("strict", "skip"):
            file = _file(tmp_path, name, data[:at] + bad + data[at + 1 :], gz)
            with pytest.raises(BadInput) as caught:
                _read(name, file, policy)
            assert str(caught.value).startswith(f"{file}:{LINE}: ")
            assert words in str(caught.value)
            assert str(at) in str(caught.value)


@pytest.mark.parametrize("policy", ["strict", "skip"])
@pytest.mark.parametrize("name", READERS)
def test_files_of_which_nothing_is_used(name: str, policy: str, texts: dict[str, str], tmp_path: Path) -> None:
    text = texts[name]
    head, body = text.split("\n", 1)
    first = next(iter(_forms(name).columns))
    absent = head.replace(first, "other", 1)
    cases = {
        "empty": ("", "empty"), "header only": (head + "\n", "no rows"), "no header": (body, "no header where one"),
        "column absent": (f"{absent}\n{body}", "required column absent"),
        "column twice": (f"{head},{first}\n" + "".join(f"{x},1\n" for x in body.splitlines()), "column named twice"),
    }  # fmt: skip
    for case, (changed, words) in cases.items():
        with pytest.raises(BadInput) as caught:
            _read(name, _file(tmp_path, name, changed), policy)
        assert words in str(caught.value), case
        assert case != "column absent" or "found '" in str(caught.value)
    cut = _file(tmp_path, name, text, True)
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(BadInput, match="gzip stream truncated"):
        _read(name, cut, policy)
    with pytest.raises(BadInput, match="is a directory"):
        _read(name, tmp_path, policy)


def _forms(name: str) -> csv_reader.Format:
    own = {"avazu": avazu.FORM, "raw_sample": taobao_ad.SAMPLE_FORM, "behavior_log": taobao_ad.LOG_FORM,
           "ad_feature": taobao_ad.AD_FORM, "user_profile": taobao_ad.PROFILE_FORM, "kuairand": kuairand.FORM,
           "taobao_ad_x1": taobao_ad_x1.LISTED.form, "amazon_x1": amazon_electronics_x1.LISTED.form}  # fmt: skip
    return own[name]


@GZ
@pytest.mark.parametrize(
    ("name", "column"), [("raw_sample", "time_stamp"), ("behavior_log", "time_stamp"), ("kuairand", "time_ms")]
)
def test_another_time_is_left_out_under_both_policies(
    name: str, column: str, gz: bool, texts: dict[str, str], tmp_path: Path
) -> None:
    lines = texts[name].splitlines()
    body = [*lines[1:]] * 3
    text = "\n".join([lines[0], *body]) + "\n"
    file = _file(tmp_path, name, _with(text, column, "7"), gz)
    for policy in ("strict", "skip"):
        table, account = _read(name, file, policy)
        assert (table.height, account.left_out.total(), account.skipped.total()) == (len(body) - 1, 1, 1)
    file = _file(tmp_path, name, _with("\n".join(lines[:40]) + "\n", column, "7"), gz)
    with pytest.raises(BadInput, match="is it another unit, another zone, or another data set"):
        _read(name, file)


@pytest.mark.parametrize("name", ["taobao_ad_x1", "amazon_electronics_x1"])
def test_histories_of_unequal_lengths_are_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    folder = _make[name](tmp_path / "raw")
    columns = {"taobao_ad_x1": ("cate_his", "brand_his", "btag_his"), "amazon_electronics_x1": ("item_history",
               "cate_history")}[name]  # fmt: skip
    used = columns[:2]
    uneven = 0
    for part in ("train", "test"):
        lines = (folder / f"{part}.csv").read_text().splitlines()
        places = [_names(lines[0]).index(c) for c in used]
        for i in range(1, len(lines)):
            cells = lines[i].split(",")
            if part == "train" and i % 50 == 0:
                cells[places[0]] = "7^8^9"
                cells[places[1]] = "7^8"
            lines[i] = ",".join(cells)
            uneven += len({len(cells[p].split("^")) if cells[p] else 0 for p in places}) > 1
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    assert uneven >= 4
    out = prepare(name, folder, tmp_path / "out")
    assert out.manifest["rows"]["notes"]["histories of different lengths in a row, aligned from the end"] == uneven


VIDEOS = "video_features_basic_1k.csv"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("author_id", "writer", rf"{VIDEOS}:1: required column absent: author_id: found 'video_id, writer"),
        ("\n3,", "\nx,", rf"{VIDEOS}:5: video_id is not an id: video_id 'x'"),
        ("\n3,", "\n,", rf"{VIDEOS}:5: video_id is not an id"),
        ("\n3,", "\n3,3,3,", rf"{VIDEOS}: cannot be read"),
    ],
)
def test_a_wrong_table_of_videos(
    old: str, new: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    folder = _make["kuairand"](tmp_path / "raw")
    text = (folder / VIDEOS).read_text().replace(old, new, 1)
    (folder / VIDEOS).write_text(text)
    with pytest.raises(BadInput, match=words):
        prepare("kuairand", folder, tmp_path / "out")
    if "not an id" in words:
        out = prepare("kuairand", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.1)
        assert out.manifest["rows"]["notes"][f"{VIDEOS}: video_id is not an id, row dropped"] == 1


def test_a_cut_table_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    folder = _make["kuairand"](tmp_path / "raw")
    text = (folder / VIDEOS).read_bytes()
    (folder / VIDEOS).unlink()
    (folder / f"{VIDEOS}.gz").write_bytes(gzip.compress(text)[:-60])
    with pytest.raises(BadInput, match=rf"{VIDEOS}\.gz"):
        prepare("kuairand", folder, tmp_path / "out")


def test_a_dropped_row_of_a_side_table_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    folder = _make["taobao_ad"](tmp_path / "raw")
    file = folder / "ad_feature.csv"
    file.write_text(file.read_text().replace("\n3,", "\nx,", 1))
    with pytest.raises(BadInput, match=r"ad_feature\.csv:5: not an id: adgroup_id 'x'"):
        prepare("taobao_ad", folder, tmp_path / "out")
    out = prepare("taobao_ad", folder, tmp_path / "out", policy="skip", max_bad_fraction=0.1)
    assert out.manifest["rows"]["notes"]["ad_feature.csv: not an id, row dropped"] == 1
