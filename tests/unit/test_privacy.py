"""What is written below a run directory names no user, host, folder of this machine or secret."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ctrbench.bench import multirun
from ctrbench.bench.cli import main
from ctrbench.bench.gate_sides import load_side
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports import records
from ctrbench.reports.measures import withheld
from ctrbench.reports.privacy import hidden, shown
from ctrbench.reports.records import RunRecord

WORD = "telltale"
BROKEN = f"""
import getpass, os, socket
from dataclasses import replace
from pathlib import Path
from ctrbench.legacy_baselines import deepfm

socket.gethostname = lambda: "{WORD}-host.example"

class Broken(deepfm.DeepFM):
    def forward(self, batch):
        said = [Path.home(), Path.cwd(), socket.gethostname(), getpass.getuser(), os.environ["API_TOKEN"], __file__]
        raise RuntimeError(", ".join(map(str, said)))

SPEC = replace(deepfm.SPEC, name="broken", title="Broken", build=Broken)
"""
SMALL = ["suite=ci", "timed=false", "floors=false", "published=false", "run.train_rows=256", "run.valid_rows=48",
         "run.batch=64", "run.seeds=1", "model=deepfm,broken"]  # fmt: skip


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user, host and environment whose every name holds the word."""
    here = tmp_path / f"{WORD}_here"
    (tmp_path / f"{WORD}_home").mkdir()
    (tmp_path / "plain").mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("HOSTNAME", "USER", "LOGNAME"):
        monkeypatch.setenv(name, f"{WORD}_{name.lower()}")
    monkeypatch.setenv("HOME", str(tmp_path / f"{WORD}_home"))
    monkeypatch.setenv("API_TOKEN", f"{WORD}-1234567")
    monkeypatch.delenv("CTRBENCH_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "plain"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "plain"))
    monkeypatch.setattr(socket, "gethostname", lambda: f"{WORD}.example")
    return here


def texts(folder: Path) -> dict[str, str]:
    """Name -> text of every file, packed ones unpacked; links by what they point to."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_symlink():
            found[name] = os.readlink(file)
        elif file.suffix == ".parquet":
            found[name] = pd.read_parquet(file).astype(str).to_csv()
        elif file.is_file():
            raw = file.read_bytes()
            found[name] = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode(errors="replace")
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{home}/.cache/ctrbench/prepared/a-1", "<cache>/prepared/a-1"),
        ("{home}/logs/a.csv", "<home>/logs/a.csv"),
        ("at {home}.", "at <home>."),
        ("{home}_of_another/a.csv", "<path>/a.csv"),
        ("{here}", "<cwd>"),
        ("gcc -I{here}/include", "gcc -I<cwd>/include"),
        ("No such file: '/mnt/telltale deal/x y/my rows.csv'", "No such file: '<path>/my rows.csv'"),
        ("/mnt/telltale deal/a.csv: line 7: 3 rows/s", "<path>/a.csv: line 7: 3 rows/s"),
        ("a=/mnt/telltale/a.csv,b=nfs:/telltale/b.csv", "a=<path>/a.csv,b=nfs:<path>/b.csv"),
        ("file:///mnt/telltale/a.csv", "file://<path>/a.csv"),
        ("https://telltale:1@pypi.example/simple/x", "https://<login>@pypi.example/simple/x"),
        ("ssh to telltale.example by telltale_user", "ssh to <host> by <user>"),
        ("key=telltale-1234567", "key=<API_TOKEN>"),
    ],
)
def test_places_names_and_secrets_go(text: str, found: str, told: Path) -> None:
    text = text.format(home=os.environ["HOME"], here=told)
    assert hidden({text: [text, (Path("a"), 1.5, None)]}) == {found: [found, ["a", 1.5, None]]}
    assert hidden(found) == found


@pytest.mark.parametrize(
    "text",
    ["stage:embedding/block:tables", "1/s", "FLOPs / sample", "https://arxiv.org/abs/1703.04247", "runs/a/report.html",
     "AUC 0.71 / 0.72", "telltale_user", "x/telltale_user", "root mean square"],
)  # fmt: skip
def test_what_is_no_place_stays(text: str, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "root")
    assert hidden(text) == text


def test_what_was_hidden_is_found_again(told: Path) -> None:
    for place in (f"{os.environ['HOME']}/.cache/ctrbench/prepared/a", str(told), f"{told}/b"):
        assert shown(hidden(place)) == place
    assert shown("<path>/a.csv") == "<path>/a.csv"


def test_rows_of_a_record_are_hidden_and_its_test_rows_found(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"run": "k", "model": "deepfm", "data": "d"}
    row = withheld(base, "auc", f"n/a: {told}/x is absent", phase="train")
    row = replace(row, reason=f"{row.reason}, says {WORD}_user")
    folder = records.save(RunRecord(key="k", spec={"prepared": f"{told}/x"}, rows=(row,)), told / "run")
    assert list(pd.read_parquet(folder / "measurements.parquet")["reason"]) == ["n/a: <cwd>/x is absent, says <user>"]
    opened: list[Path] = []

    def absent(path: Path | str) -> Prepared:
        opened.append(Path(path))
        raise OSError

    monkeypatch.setattr(Prepared, "open", absent)
    side = load_side(str(told / "run"))
    assert side.rows_of({"fingerprint": "f", **side.bodies["k"]["spec"]}) is None
    assert opened == [told / "x"]


def test_a_sweep_keeps_no_setting_as_typed(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "import sys; print('error:', *sys.argv); sys.exit(2)"
    monkeypatch.setattr(multirun, "_program", lambda: [sys.executable, "-c", said])
    asked = ["suite=ci", "data=criteo", f"data.path={told / 'a.txt'},/mnt/{WORD}/a.txt,/mnt/{WORD}2/a.txt"]
    for _ in range(2):  # the same command goes on
        assert main(["sweep", *asked, "--out", "s"]) == 1
        found = texts(told / "s")
        assert [name for name, text in found.items() if WORD in text] == []
        names = [p.name for p in multirun.points(asked)]
        assert [p.name for p, _ in multirun.states(told / "s")] == names
        assert len(set(names)) == 3
        assert sorted(f for f in found if f.endswith("end.json")) == sorted(f"points/{n}/end.json" for n in names)
    assert "data.path=<cwd>/a.txt" in found[f"points/{names[0]}/log.txt"]


@pytest.mark.slow
def test_no_file_of_a_run_says_where_it_was_made(told: Path, tmp_path: Path) -> None:
    side = tmp_path / f"{WORD} deal"
    side.mkdir()
    (side / "broken.py").write_text(BROKEN)
    lines = [f"{20 + i % 50},c{i % 7},{('yes', 'no')[i % 3 == 0]}" for i in range(600)]
    (side / "rows.csv").write_text("\n".join(["age,city,paid", *lines]))
    (side / "schema.yaml").write_text(
        "name: loans\nlabel: {column: paid, positive: [yes], negative: [no]}\nsplit: {rule: file_order}\n"
        "fields: [{name: age, kind: dense, transform: standard}, {name: city, kind: categorical, min_count: 2}]\n"
    )
    data = ["data=table", f"data.path={side / 'rows.csv'}", f"data.schema={side / 'schema.yaml'}"]
    command = [sys.executable, "-m", "ctrbench.bench.cli", "run", *SMALL, *data, f"model.path={side / 'broken.py'}"]
    for again in (False, True):
        ran = subprocess.run([*command, "run.resume=true"], capture_output=True, text=True, check=False)
        assert ran.returncode == 1, ran.stderr
        assert ("resuming: 2 of 4 runs are already recorded" in ran.stdout) == again
    found = texts(told / "runs")
    assert [name for name, text in found.items() if WORD in text] == []
    kinds = {Path(name).name for name in found}
    assert {"record.json", "failure.json", "error.txt", "measurements.parquet", "report.html", "latest"} <= kinds
    failed = next(json.loads(text) for name, text in found.items() if name.endswith("failure.json"))
    assert failed["reason"] == "RuntimeError: <home>, <cwd>, <host>, <user>, <API_TOKEN>, <path>/broken.py"
    assert failed["spec"]["model_path"] == "<path>/broken.py"
    assert failed["spec"]["prepared"].startswith("<cache>/prepared/table-")
