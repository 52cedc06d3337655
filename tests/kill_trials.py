"""SIGKILL, SIGTERM and SIGINT at random moments of prepare, train, record and report: `make kill-trials`.

    python -m tests.kill_trials [--trials 200] [--jobs prepare,report] [--seed 0]

Each job first runs undisturbed: that is its answer. A trial is one signal to it. After every signal whatever the job
left as whole must read (else `corrupt`), and whatever was finished before must still be there (else `lost`); after some
signals the job runs to its end, whose result must be the answer. Exit code 1 if any trial was bad.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctrbench.datasets.prepared import Prepared
from ctrbench.reports import records

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
IN_A_ROW = 4
"""Signals before the job may run to its end."""
CLI = [sys.executable, "-m", "ctrbench.bench.cli"]
SMALL = ["data=criteo_synthetic", "data.options.rows=20000", "data.options.cap=1000"]


class Bad(Exception):
    """What a trial found: `corrupt` or `lost`, and where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Something long that is stopped and started again."""

    name: str
    command: list[str]
    """In the folder of the job."""
    whole: Callable[[Path], Mapping[str, str]]
    """What stands there as whole: name -> its content's digest; raises `Bad` where it does not read."""
    answer: Callable[[Path], str]
    """Of a run that ended."""
    lasting: bool = True
    """What was whole stays as it was; False where the newest replaces the one before."""


def digest(*files: Path) -> str:
    made = hashlib.sha256()
    for file in files:
        made.update(file.name.encode() + file.read_bytes())
    return made.hexdigest()


def _prepared(folder: Path) -> dict[str, str]:
    out = folder / "out"
    if not out.exists():
        return {}
    prepared = Prepared.open(out)
    return {"out": digest(*(out / n for n in sorted(prepared.manifest["files"])), out / "manifest.json")}


def _records(folder: Path) -> dict[str, str]:
    found = {}
    for run in (p.parent for p in folder.glob("runs/*/plan.sha256") if not p.parent.is_symlink()):
        for key in records.finished(run):
            file = run / "records" / key
            records.read(file)  # raises where its two files are not of one record
            if key not in ("prepare", "summary"):  # written anew by every start
                found[key] = digest(file / "record.json", file / "measurements.parquet")
    return found


def _auc(folder: Path) -> str:
    table, _ = records.load(folder / "runs" / "latest")
    rows = table[table["metric"].isin(["auc", "logloss"])].sort_values(["metric", "model", "variant", "seed"])
    return rows[["metric", "model", "variant", "seed", "value"]].to_json() or ""


def _checkpoints(folder: Path) -> dict[str, str]:
    from ctrbench.bench.distributed import checkpoint

    found = checkpoint.whole(folder / "out")
    for one in found:
        about = json.loads((one / checkpoint.ABOUT).read_text())
        if about["step"] != int(one.name.removeprefix("step-")) or not list(one.glob("*.distcp")):
            raise Bad(f"corrupt: {one}")
    return {"newest": found[-1].name} if found else {}


def _losses(folder: Path) -> str:
    lines = [json.loads(line) for line in (folder / "out" / "losses.jsonl").read_text().splitlines()]
    table, _ = records.load(folder / "out")
    auc = table[table["metric"] == "auc"]["value"].tolist()
    return json.dumps([[(line["step"], line["loss"]) for line in lines], auc])


def _page(folder: Path) -> dict[str, str]:
    page = folder / "page.html"
    return {"page": digest(page)} if page.exists() else {}


JOBS = {
    job.name: job
    for job in (
        Job(name="prepare", command=[*CLI, "data", "prepare", "criteo", "--path", "../train.txt", "--out", "out"],
            whole=_prepared, answer=lambda f: _prepared(f)["out"]),
        Job(name="train", command=[
                sys.executable, "-m", "ctrbench.bench.distributed", "model=deepfm", *SMALL, "run.train_rows=16000",
                "run.batch=64", "dist.steps=400", "dist.checkpoint_steps=20", "dist.resume=true", "dist.out=out",
            ], whole=_checkpoints, answer=_losses, lasting=False),
        Job(name="record", command=[
                *CLI, "run", "suite=ci", *SMALL, "model=deepfm,dcn_v2,fat", "floors=false", "timed=false",
                "published=false", "run.seeds=2", "run.train_rows=4000", "run.resume=true", "run.out=runs",
            ], whole=_records, answer=_auc),
        Job(name="report", command=[*CLI, "report", "../run", "-o", "page.html"], whole=_page,
            answer=lambda f: _page(f)["page"]),
    )
}  # fmt: skip


def _interruptible() -> None:
    """A script's `make kill-trials &` ignores SIGINT, and so would the jobs: their SIGINT trials would be none."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Trials:
    """All trials of one job.

    Args:
        job: what is stopped.
        place: folder of its inputs, and of its own.
        moments: when, and by which signal.
    """

    def __init__(self, job: Job, place: Path, moments: random.Random) -> None:
        self.job, self.place, self.moments = job, place, moments
        self.seen: Counter[str] = Counter()

    def run(self, trials: int) -> None:
        """Signals until there were so many."""
        begun = time.monotonic()
        reference = self._fresh()
        self._ended(self._start(reference))
        seconds = time.monotonic() - begun
        answer, folder, row, before = self.job.answer(reference), self._fresh(), 0, dict[str, str]()
        while sum(self.seen[s.name] for s in SIGNALS) < trials or row:
            process = self._start(folder)
            if row < IN_A_ROW:
                time.sleep(self.moments.uniform(0.1, 1.0) * seconds)
                if process.poll() is None:
                    number = self.moments.choice(SIGNALS)
                    os.killpg(process.pid, number)
                    self._ended(process, expected=False)
                    self.seen[number.name] += 1
                    row += 1
                    before = self._look(folder, before)
                    continue
            self._ended(process)
            if self.job.answer(folder) != answer:
                self._bad("corrupt: ends otherwise than undisturbed", folder)
            self.seen["ended"] += 1
            folder, row, before = self._fresh(), 0, {}

    def _look(self, folder: Path, before: dict[str, str]) -> dict[str, str]:
        try:
            now = dict(self.job.whole(folder))
        except Exception as error:  # whatever reading raises, what was taken for whole is not
            self._bad(f"corrupt: {type(error).__name__}: {error}", folder)
            return before
        gone = [k for k, v in before.items() if (now.get(k) != v if self.job.lasting else now.get(k, "") < v)]
        if gone:
            self._bad(f"lost: {gone}", folder)
        return now

    def _bad(self, what: str, folder: Path) -> None:
        self.seen[what.split(":")[0]] += 1
        kept = tempfile.mkdtemp(prefix=f"kill-trials-{self.job.name}-found-")
        shutil.copytree(folder, kept, dirs_exist_ok=True, symlinks=True)
        print(f"{self.job.name}: {what}; see {kept}", flush=True)

    def _fresh(self) -> Path:
        for old in self.place.glob("at-*"):
            shutil.rmtree(old)
        return Path(tempfile.mkdtemp(prefix="at-", dir=self.place))

    def _start(self, folder: Path) -> subprocess.Popen[str]:
        env = {**os.environ, "CTRBENCH_CACHE": str(self.place / "cache"), "OMP_NUM_THREADS": "1"}
        with (folder / "said.txt").open("a") as said:
            return subprocess.Popen(
                self.job.command, cwd=folder, env=env, stdout=said, stderr=said, text=True, start_new_session=True,
                preexec_fn=_interruptible,
            )  # fmt: skip

    def _ended(self, process: subprocess.Popen[str], expected: bool = True) -> None:
        process.wait(300)
        if expected and process.returncode:
            raise SystemExit(f"{self.job.name}: exit code {process.returncode} undisturbed; see {self.place}")
        time.sleep(1.2 if self.job.name == "record" else 0)  # children notice within a second that the suite is gone


def main(arguments: list[str] | None = None) -> int:
    """Runs the trials and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    names, bad = given.jobs.split(","), 0
    print("| job | SIGKILL | SIGTERM | SIGINT | ran to the end between | corrupt | lost |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill-trials-") as folder:
        place = Path(folder)
        _inputs(place)
        for name in names:
            trials = Trials(JOBS[name], place, random.Random(f"{given.seed}{name}"))
            trials.run(-(-given.trials // len(names)))
            shown = [trials.seen[k] for k in (*(s.name for s in SIGNALS), "ended", "corrupt", "lost")]
            print("| " + " | ".join(map(str, (name, *shown))) + " |", flush=True)
            bad += shown[-1] + shown[-2]
    return 1 if bad else 0


def _inputs(place: Path) -> None:
    """The log that is prepared and the run that is reported."""
    env = {**os.environ, "CTRBENCH_CACHE": str(place / "cache")}
    for words in (
        ["data", "generate", "criteo_synthetic", "--rows", "300000", "--cap", "20000", "--out", "train.txt"],
        ["run", "suite=ci", *SMALL, "model=deepfm", "timed=false", "run.train_rows=4000", "run.out=made"],
    ):
        subprocess.run([*CLI, *words], cwd=place, env=env, check=True, stdout=subprocess.DEVNULL)
    (place / "made" / "latest").resolve().rename(place / "run")


if __name__ == "__main__":
    sys.exit(main())
