"""A preparation that dies at any step goes on where it stopped, and ends with the bytes of one that never died."""

from __future__ import annotations

import gzip
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ctrbench.datasets import buckets, criteo_text, taobao_reader
from ctrbench.datasets import prepare as preparing
from ctrbench.datasets.criteo_forms import write_form
from ctrbench.datasets.criteo_synthetic import Parameters
from ctrbench.datasets.criteo_synthetic import write as write_criteo
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.journal import NAME, Journal, alone
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.shards import Vocabulary
from ctrbench.datasets.taobao_synthetic import Parameters as Events
from ctrbench.datasets.taobao_synthetic import write as write_events
from ctrbench.datasets.watch import Watch


class Killed(BaseException):
    """Nothing in the code catches it."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_criteo(Parameters(rows=500, seed=1, cap=100), folder / "train.txt")
    text = (folder / "train.txt").read_bytes()
    lines = text.split(b"\n")
    lines[120], lines[333] = lines[120] + b"\tx", b"no row"  # dropped and counted under skip
    lines[200] = lines[200] + b"\r"
    (folder / "bad.txt").write_bytes(b"\n".join(lines).rstrip(b"\n"))
    write_form("x4", Parameters(rows=400, seed=1, cap=100), folder / "x4")
    for name in ("train", "valid"):
        file = folder / "x4" / f"{name}.csv"
        (folder / "x4" / f"{name}.csv.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        file.unlink()
    write_form("1tb", Parameters(rows=1800, seed=1, cap=100), folder / "1tb", days=3)
    write_events(Events(users=12), folder / "UserBehavior.csv")
    write_events(Events(users=40), folder / "pool.csv")
    return folder


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "criteo": ("criteo", "bad.txt", {"policy": "skip", "max_bad_fraction": 0.1}),
    "criteo, mean of train rows": ("criteo", "train.txt", {"integers": "standard"}),
    "criteo, integers as categories": ("criteo", "train.txt", {"integers": "log_square_category"}),
    "x4, gzipped": ("criteo_x4", "x4", {"min_count": 2}),
    "1tb, capped": ("criteo_1tb", "1tb", {"min_count": 1, "rows_per_day": 400}),
    "events": ("taobao_behaviour", "UserBehavior.csv", {"min_history": 2}),
    "events of users": ("taobao_behaviour", "UserBehavior.csv", {"split": "per_user", "min_history": 2}),
    "events, pool of its own": ("taobao_behaviour", "UserBehavior.csv", {"pool": "pool.csv", "ratio": 2}),
}


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(criteo_text.read, "__defaults__", (20_000,))
    monkeypatch.setattr(taobao_reader.read, "__defaults__", (20_000,))
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 12_000)
    monkeypatch.setattr(buckets, "WINDOW_ROWS", 400)
    monkeypatch.setattr(buckets, "SPILL_ROWS", 1)


def _prepare(case: str, raw: Path, out: Path, watch: Watch | None = None) -> dict[str, bytes]:
    name, file, options = CASES[case]
    given = {k: str(raw / v) if k == "pool" else v for k, v in options.items()}
    prepare(name, raw / file, out, watch=watch, **given)
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def _die(monkeypatch: pytest.MonkeyPatch, at: int, noted: bool) -> None:
    """The process ends at step `at` of this attempt, before its line is written or before what is spent is removed."""
    real, count = Journal.finish, 0

    def finish(
        self: Journal, step: str, body: Mapping[str, Any], files: Iterable[Path] = (), spent: Iterable[Path] = ()
    ) -> None:
        nonlocal count
        count += 1
        if count == at:
            if noted:
                monkeypatch.setattr(Path, "unlink", _killed)
            else:
                raise Killed
        real(self, step, body, files, spent)
        if count == at:
            raise Killed

    monkeypatch.setattr(Journal, "finish", finish)


def _killed(*_: object, **__: object) -> None:
    raise Killed


FAST = {
    ("criteo", True),
    ("criteo, integers as categories", True),
    ("events", True),
    ("events, pool of its own", False),
}


@pytest.mark.parametrize(
    ("case", "noted"),
    [pytest.param(c, n, marks=[] if (c, n) in FAST else pytest.mark.slow) for c in CASES for n in (False, True)],
)
def test_dying_at_every_step_in_turn(
    case: str, noted: bool, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attempt gets one or two steps further than the last: all of them are resumed from, one after another."""
    whole = _prepare(case, raw, tmp_path / "whole")
    attempts = 0
    while True:
        with monkeypatch.context() as patch:
            _die(patch, 2 - attempts % 2, noted)
            try:
                made = _prepare(case, raw, tmp_path / "out")
                break
            except Killed:
                attempts += 1
        assert not (tmp_path / "out").exists()
        assert attempts < 500
    assert attempts >= 8
    assert made == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out", "whole"]


def test_finished_steps_are_not_done_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    watch = Watch()
    watch.say = said.append  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        _die(patch, 6, noted=True)
        with pytest.raises(Killed):
            _prepare("criteo", raw, tmp_path / "out")
    starts: list[int] = []
    real = criteo_text.read_lines

    def read_lines(*args: Any, **options: Any) -> Any:
        starts.append(args[4] if len(args) > 4 else options.get("start", 0))
        return real(*args, **options)

    monkeypatch.setattr(criteo_text, "read_lines", read_lines)
    _prepare("criteo", raw, tmp_path / "out", watch)
    assert starts
    assert all(start >= 80_000 for start in starts)
    assert said == ["bad.txt: going on with what an earlier attempt finished (6 steps)"]


def test_other_options_throw_away_what_was_begun(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _die(patch, 5, noted=True)
        with pytest.raises(Killed):
            prepare("criteo", raw / "train.txt", tmp_path / "out")
    made = prepare("criteo", raw / "train.txt", tmp_path / "out", min_count=1)
    assert made.manifest["options"]["min_count"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]


def test_a_file_that_was_touched_is_not_trusted(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _prepare("criteo", raw, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _die(patch, 5, noted=True)
        with pytest.raises(Killed):
            _prepare("criteo", raw, tmp_path / "out")
    (partial,) = tmp_path.glob(".out.*.partial")
    part = next(partial.glob("part-*.tokens"))
    part.write_bytes(part.read_bytes()[:-1])
    said: list[str] = []
    watch = Watch()
    watch.say = said.append  # type: ignore[method-assign]
    assert _prepare("criteo", raw, tmp_path / "out", watch) == whole
    assert said == []


def test_bad_input_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="wrong field count"):
        prepare("criteo", raw / "bad.txt", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_a_disk_without_room_is_said_before_the_work(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BadInput, match=r"0\.0 GiB free, preparing train.txt takes up to 0\.0 GiB; make room"):
        prepare("criteo", raw / "train.txt", tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "writer", "at"),
    [("criteo", "write_ipc", 5), ("criteo", "write_parquet", 3), ("criteo", "write_parquet", 30),
     ("events", "write_parquet", 5)],
)  # fmt: skip
def test_a_disk_that_fills_up_keeps_what_is_finished(
    case: str, writer: str, at: int, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polars' own errors, of the device that is always full."""
    whole = _prepare(case, raw, tmp_path / "whole")
    real, count = getattr(pl.DataFrame, writer), 0

    def write(self: pl.DataFrame, file: Path, **options: Any) -> None:
        nonlocal count
        count += 1
        real(self, "/dev/full" if count == at else file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, writer, write)
        with pytest.raises(BadInput, match=r"[Nn]o space (is )?left.*; what is finished is kept: make room and start"):
            _prepare(case, raw, tmp_path / "out")
    assert count >= at
    said: list[str] = []
    watch = Watch()
    watch.say = said.append  # type: ignore[method-assign]
    assert _prepare(case, raw, tmp_path / "out", watch) == whole
    assert [text.split(" (")[0] for text in said] == [
        f"{CASES[case][1]}: going on with what an earlier attempt finished"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["criteo", "events"])
def test_kill_9_at_random_moments(case: str, raw: Path, tmp_path: Path) -> None:
    """Real processes, real signals; moments are random, so this finds what the steps above do not name."""
    name, file, options = CASES[case]
    whole = _prepare(case, raw, tmp_path / "whole")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ctrbench.datasets import buckets, criteo_text, taobao_reader\n"
        "from ctrbench.datasets.prepare import prepare\n"
        "criteo_text.read.__defaults__ = taobao_reader.read.__defaults__ = (20_000,)\n"
        "buckets.BUCKET_BYTES, buckets.WINDOW_ROWS, buckets.SPILL_ROWS = 12_000, 400, 1\n"
        "print('ready', flush=True)\n"
        f"prepare({name!r}, {str(raw / file)!r}, {str(tmp_path / 'out')!r}, **{options!r})\n"
    )
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {p.name: p.read_bytes() for p in sorted((tmp_path / "out").iterdir())} == whole


def test_two_processes_make_one_directory(raw: Path, tmp_path: Path) -> None:
    code = (
        "from ctrbench.datasets.prepare import prepare\n"
        f"print(prepare('criteo', {str(raw / 'train.txt')!r}, {str(tmp_path / 'out')!r}).fingerprint)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]


@pytest.mark.parametrize(
    "known", [["7", "0", "4294967295", "12"], ["7", "007", "12"], ["7", "4294967296"], ["a", "7"], []]
)
def test_ids_by_number_are_those_by_text(known: list[str]) -> None:
    vocabulary = Vocabulary.of(pl.DataFrame({"value": known, "count": range(len(known), 0, -1)},
                                            schema={"value": pl.String, "count": pl.Int64}), 1)  # fmt: skip
    columns = ([7, None, 0, 12, 99, 4294967295], [-7, 7, None], [4294967296, 7, 12], [None, None], [])
    for values in columns:
        for kind in (pl.Int64, pl.String):
            column = pl.Series("x", values, pl.Int64).cast(kind)
            wanted = column.cast(pl.String).to_frame().select(vocabulary.encode("x")).to_series()
            assert vocabulary.ids(column).equals(wanted)
            assert vocabulary.ids(column).dtype == pl.Int32


# ------------------------------------------------------------------ the journal itself


def test_a_line_cut_in_the_middle_is_not_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number in range(3):
        (tmp_path / "j" / f"f{number}").write_text("x" * number)
        journal.finish(f"step {number}", {"n": number}, [tmp_path / "j" / f"f{number}"])
    journal.close()
    text = (tmp_path / "j" / NAME).read_bytes()
    for cut in range(len(text)):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "j", folder)
        (folder / NAME).write_bytes(text[:cut])
        again = Journal(folder)
        whole = text[:cut].count(b"\n") + (cut < len(text) and text[cut : cut + 1] == b"\n")
        assert [body["n"] for body in again.under("step ")] == list(range(whole))
        assert sorted(p.name for p in folder.iterdir()) == [NAME, *(f"f{n}" for n in range(whole))]
        again.close()


def test_spent_files_are_gone_and_not_missed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    old.write_text("a")
    journal.finish("one", {}, [old])
    new.parent.mkdir()
    new.write_text("b")
    journal.finish("two", {}, [new], [old])
    assert not old.exists()
    journal.close()
    old.write_text("a")  # the process died between the line and the removal
    (tmp_path / "nobody's").write_text("c")
    again = Journal(tmp_path)
    assert len(again) == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == [NAME, "deep", "new"]


def test_one_at_a_time(tmp_path: Path) -> None:
    """The second enters when the first has left."""
    order: list[str] = []
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ctrbench.datasets.journal import alone\n"
        f"print('asking', flush=True)\n"
        f"with alone(Path({str(tmp_path / 'locks')!r}), Path({str(tmp_path / 'x')!r})):\n"
        "    print('in', flush=True)\n"
    )
    with alone(tmp_path / "locks", tmp_path / "x"):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asking\n"
        time.sleep(0.3)
        order.append("out")
    order.append(other.stdout.readline().strip())
    assert other.wait() == 0
    assert order == ["out", "in"]
