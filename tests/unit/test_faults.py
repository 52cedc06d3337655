"""A full disk, a folder one may not write to, a clock set back: nothing half counts, nothing finished is lost."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data import robust_records

from ctrbench.bench import suite
from ctrbench.bench.config import build_plan
from ctrbench.reports import records
from ctrbench.reports.measures import make
from ctrbench.reports.records import RunRecord

RUN = [
    "run", "suite=ci", "data=criteo_synthetic", "model=deepfm", "floors=false", "timed=false", "published=false",
    "run.seeds=1", "run.train_rows=2000", "run.resume=true", "data.options.rows=6000", "data.options.cap=100",
]  # fmt: skip
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def typed(folder: Path, words: list[str], before: Callable[[], None] | None = None) -> tuple[int, str]:
    """(exit code, stderr) of a command in a process of its own."""
    env = {**os.environ, "CTRBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "ctrbench.bench.cli", *words]
    done = subprocess.run(line, cwd=folder, env=env, preexec_fn=before, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def stamps(folder: Path) -> dict[str, int]:
    """Every whole record and when it was written; each must read."""
    found: dict[str, int] = {}
    for run in (p.parent for p in folder.glob("runs/*/plan.sha256") if not p.parent.is_symlink()):
        found |= {key: (run / "records" / key / "record.json").stat().st_mtime_ns for key in records.finished(run)}
        if found:
            records.load(run)
    return found


def full(most: int) -> Callable[[], None]:
    """No file grows beyond `most` bytes: what a full disk is to whoever writes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def plain_rights() -> None:
    """Root, too, may then open only what its mode allows."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.slow
def test_a_full_disk_stops_a_run_anywhere_and_the_next_start_goes_on(tmp_path: Path) -> None:
    for most, place in ((100_000, "disk: File too large"), (2_000_000, "report.html: File too large")):
        code, said = typed(tmp_path, RUN, full(most))
        assert (code, place in said, "make room" in said) == (2, True, True), said
    before = stamps(tmp_path)
    assert {*before} > {"prepare", "summary"}  # all but the page
    assert typed(tmp_path, [*RUN, "run.out=other"], full(3_000))[0] == 2  # a record
    assert list((tmp_path / "other").glob("*/records/*/record.json")) == []
    for out in ("runs", "other"):
        code, said = typed(tmp_path, [*RUN, f"run.out={out}"])
        assert code == 0, said
        assert len(list((tmp_path / out).glob("2*/report.html"))) == 1
    again = {key for key, at in stamps(tmp_path).items() if before.get(key) != at}
    assert again == {"prepare", "summary"}  # what every start says anew; no training and no count is repeated


@pytest.mark.parametrize("words", [["trace", "t.json", "--out", "shut/rows"], ["report", "shut", "-o", "page.html"]])
def test_no_permission_is_said_with_the_place(tmp_path: Path, words: list[str]) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o000)
    (tmp_path / "t.json").write_text("{}")
    look = [sys.executable, "-c", "import os; os.listdir('shut')"]
    if not subprocess.run(
        look, cwd=tmp_path, preexec_fn=plain_rights, stderr=subprocess.DEVNULL, check=False
    ).returncode:
        pytest.skip("this user may open everything and cannot give that up: nothing was tested")
    code, said = typed(tmp_path, words, plain_rights)
    assert (code, "shut" in said) == (2, True), said


def test_a_clock_set_back_or_standing_still_overwrites_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build_plan(["suite=ci", f"run.out={tmp_path}"])
    folders = []
    for now in ("20261127-120000", "20261127-120000", "20261127-110000", "20261127-120000"):
        monkeypatch.setattr(time, "strftime", lambda form, now=now: form.replace("%Y%m%d-%H%M%S", now))
        folders.append(suite._run_dir(plan))
    assert [f.name for f in folders] == [
        "20261127-120000-ci", "20261127-120000-ci-2", "20261127-110000-ci", "20261127-120000-ci-3"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["measurements.parquet", "record.json"])
def test_a_byte_turned_in_a_record_is_seen(name: str, tmp_path: Path) -> None:
    """record.json holds the hash of both files: nothing is read that was not written."""
    robust_records.run()(tmp_path)
    (file,) = tmp_path.rglob(name)
    (table, bodies), good, seen = records.load(tmp_path / "runs/one"), file.read_bytes(), 0
    for at in range(0, len(good), 23):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        try:
            found = records.load(tmp_path / "runs/one")
        except records.DamagedRecord:
            seen += 1
        else:  # a space between two keys
            assert (good[at : at + 1], found[1]) == (b" ", bodies), at
            assert found[0].equals(table)
    assert seen > 20


def test_a_record_of_before_there_were_seals_is_read(tmp_path: Path) -> None:
    robust_records.run()(tmp_path)
    (file,) = tmp_path.rglob("record.json")
    table, bodies = records.load(tmp_path / "runs/one")
    body = json.loads(file.read_text())
    assert {"sha256", "measurements_sha256"} <= set(body)
    file.write_text(json.dumps({k: v for k, v in body.items() if "sha256" not in k}))
    again, same = records.load(tmp_path / "runs/one")
    assert (again.equals(table), same) == (True, bodies)


@pytest.mark.parametrize("steps", range(4))
def test_a_record_that_is_written_over_is_the_old_one_none_or_the_new_one(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first, second ... change of what stands there: never rows of one and the body of another."""
    robust_records.run()(tmp_path)
    runs, left = tmp_path / "runs/one", [steps]
    old = records.load(runs)
    row = make({"run": robust_records.KEY, "model": "deepfm", "phase": "train"}, "auc", 0.8, "measured")
    new = RunRecord(key=robust_records.KEY, spec={**old[1][robust_records.KEY]["spec"], "epochs": 2}, rows=(row,))

    def killed(change: Callable[..., object]) -> Callable[..., object]:
        def counted(*given: object, **named: object) -> object:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return change(*given, **named)

        return counted

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(Path, name, killed(getattr(Path, name)))
        if steps < 3:
            with pytest.raises(KeyboardInterrupt):
                records.save(new, runs)
        else:
            records.save(new, runs)
    if steps in (1, 2):
        assert records.finished(runs) == set()
        return
    table, bodies = records.load(runs)
    assert bodies[robust_records.KEY]["spec"]["epochs"] == (1 if steps == 0 else 2)
    assert list(table["value"]) == ([0.7, 0.5] if steps == 0 else [0.8])
