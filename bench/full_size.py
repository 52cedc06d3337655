"""`make full-size`: logs of the public ones' sizes, generated, prepared, killed at random moments and prepared again.

    python -m ctrbench.bench.full_size criteo events --work runs/full-size

Criteo: 45,840,617 rows with the published numbers of distinct values. Events: UserBehavior's 987,994 users, histories
and sampled negatives included. Each log: a tenth of its rows, all of them, the tenth, all, the tenth, each in a fresh
process with the file out of the system's cache; then all of them once more, killed several times. What was measured
stands in `results.jsonl` and is not measured again.
About 40 GB of disk; a table at the end; exit code 1 if a target is missed.
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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ctrbench.bench.proc import cpu_seconds, rss_peak
from ctrbench.bench.targets.outcome import Outcome
from ctrbench.bench.targets.prepare import head, write
from ctrbench.datasets import criteo_synthetic, taobao_synthetic

THREADS = 2
MOST_BYTES, GROWTH = 4 << 30, 0.15
ROUNDS = 2
"""Times that a whole log is measured, between small ones."""
KILLS = 3
SHARE = (0.05, 0.3)
"""Of the time that a whole preparation took: when an attempt is killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """One log and its sizes."""

    data: str
    """Data set that reads it."""
    size: int
    """Rows of criteo, users of events."""
    few: int
    """Lines of the small file, the head of the large one."""
    make: Callable[[int, Path], None]


def _criteo(rows: int, file: Path) -> None:
    write(criteo_synthetic.Parameters(rows=rows, cap=0), file)


def _events(users: int, file: Path) -> None:
    if not file.is_file():
        taobao_synthetic.write(taobao_synthetic.Parameters(users=users), file)


LOGS = {
    "criteo": Log(data="criteo", size=45_840_617, few=5_000_000, make=_criteo),
    "events": Log(data="taobao_behaviour", size=987_994, few=10_000_000, make=_events),
}


class Bench:
    """Measurements of one log, each made once.

    Args:
        log: what is measured.
        name: of the log.
        work: folder of files and results.
        kills: signals that the last preparation gets.
    """

    def __init__(self, log: Log, name: str, work: Path, kills: int) -> None:
        self.log, self.name, self.kills = log, name, kills
        self.work, self.results = work, work / "results.jsonl"
        self.file, self.out = work / f"{name}-{log.size}.txt", work / f"{name}-out"

    def outcomes(self) -> Iterator[Outcome]:
        """Memory, growth and the bytes after kills."""
        self.log.make(self.log.size, self.file)
        few = head(self.file, self.log.few, self.work / f"{self.name}-head-{self.log.few}.txt")
        small = [self._once("few 1", lambda: self._prepare(few))]
        large: list[dict[str, Any]] = []
        for i in range(ROUNDS):
            large.append(self._once(f"whole {i + 1}", lambda: self._prepare(self.file)))
            small.append(self._once(f"few {i + 2}", lambda: self._prepare(few)))
        whole = large[0]
        killed = self._once("killed", lambda: self._killed(whole["seconds"]))
        yield self._memory(large, small, killed)
        yield self._growth(large, small)
        same, often = len({m["digest"] for m in (*large, killed)}) == 1, len(killed["after"])
        yield Outcome(
            group="full_size", target=f"{self.name}: {whole['lines']:,} lines, killed {often} times and restarted",
            wanted="byte-identical files", measured="identical" if same else "not identical",
            verdict="met" if same and often else "missed",
            how=f"SIGKILL after {_list(killed['after'])} s of an attempt; finished steps found by the next: "
            f"{', '.join(map(str, killed['steps']))}; sha256 of {whole['files']} files, {whole['bytes'] / 1e9:.1f} GB",
        )  # fmt: skip

    def _memory(self, large: list[dict[str, Any]], small: list[dict[str, Any]], killed: dict[str, Any]) -> Outcome:
        most, lines = max(m["peak"] for m in (*large, killed)), large[0]["lines"]
        return Outcome(
            group="full_size", target=f"{self.name}: peak memory of preparing {lines:,} lines",
            wanted=f"<= {MOST_BYTES >> 30} GiB",
            measured=f"{most / 2**30:.2f} GiB", verdict="met" if most <= MOST_BYTES else "missed",
            how=f"VmHWM of fresh processes, imports included; {killed['peak'] / 2**30:.2f} GiB in the resumed one, "
            f"{max(s['peak'] for s in small) / 2**30:.2f} GiB for {small[0]['lines']:,} lines; "
            f"{self.file.stat().st_size / 1e9:.1f} GB of text",
        )  # fmt: skip

    def _growth(self, large: list[dict[str, Any]], small: list[dict[str, Any]]) -> Outcome:
        of_large, of_small = ([1e6 * m["cpu"] / m["lines"] for m in made] for made in (large, small))
        growth = median(of_large) / median(of_small) - 1
        return Outcome(
            group="full_size", target=f"{self.name}: growth of CPU time a line from {small[0]['lines']:,} lines on",
            wanted=f"<= {GROWTH:.0%}", measured=f"{growth:+.1%}", verdict="met" if growth <= GROWTH else "missed",
            how=f"median of {_list(of_large, 2)} us a line over that of the small ones before, between and after, "
            f"{_list(of_small, 2)} us; user and system time of all threads behind the imports; "
            f"{large[0]['seconds']:,.0f} s of wall time",
        )  # fmt: skip

    def _once(self, what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        key = {"log": self.name, "size": self.log.size, "few": self.log.few, "what": what}
        for line in self.results.read_text().splitlines() if self.results.is_file() else ():
            found: dict[str, Any] = json.loads(line)
            if {k: found[k] for k in key} == key:
                return found
        print(f"{self.name}: {what} ...", flush=True)
        result = key | measure()
        with self.results.open("a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")
        print(f"{self.name}: {what}: {json.dumps(result)}", flush=True)
        return result

    def _prepare(self, file: Path) -> dict[str, Any]:
        self._clear()
        _out_of_cache(file)
        done = subprocess.run(self._command(file), stdout=subprocess.PIPE, text=True, env=self._env(), check=False)
        self._clear()
        if done.returncode:
            raise SystemExit(f"preparing {file} failed with exit code {done.returncode}; see above")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def _killed(self, seconds: float) -> dict[str, Any]:
        """A preparation that gets `kills` signals at random moments."""
        self._clear()
        moments, after, steps = random.Random(self.log.size), [], []
        for _ in range(self.kills):
            wait = moments.uniform(*SHARE) * seconds
            process = subprocess.Popen(self._command(self.file), env=self._env(), stdout=subprocess.DEVNULL)
            try:
                process.wait(wait)
                break  # done before the signal
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            after.append(wait)
            steps.append(sum(j.read_bytes().count(b"\n") for j in self.work.glob(".*.partial/.journal.jsonl")))
        done = subprocess.run(self._command(self.file), stdout=subprocess.PIPE, text=True, env=self._env(), check=True)
        self._clear()
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found | {"after": after, "steps": steps}

    def _command(self, file: Path) -> list[str]:
        return [sys.executable, "-m", "ctrbench.bench.full_size", "--prepare", self.log.data, str(file), str(self.out)]

    def _env(self) -> dict[str, str]:
        threads = str(THREADS)
        cache = str((self.work / "cache").absolute())
        return {**os.environ, "POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads, "CTRBENCH_CACHE": cache}

    def _clear(self) -> None:
        for folder in (self.out, *self.work.glob(f".{self.out.name}.*.partial")):
            shutil.rmtree(folder, ignore_errors=True)


def _out_of_cache(file: Path) -> None:
    """A small file was written a moment ago and would be read from memory, a large one from the disk."""
    with file.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare_here(data: str, file: Path, out: Path) -> dict[str, Any]:
    """Prepares in this process, which did nothing before."""
    from rich.console import Console

    from ctrbench.bench.progress import Stages
    from ctrbench.datasets.prepare import prepare
    from ctrbench.datasets.registry import dataset_spec

    dataset_spec(data)  # its imports; they would make the small file look dear
    start, before = time.perf_counter(), cpu_seconds()
    with Stages(Console(stderr=True)) as stages:
        prepared = prepare(data, file, out, watch=stages)
    seconds, cpu, peak = time.perf_counter() - start, cpu_seconds() - before, rss_peak()
    digest, files, size = hashlib.sha256(), sorted(p for p in prepared.path.iterdir() if p.is_file()), 0
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
        size += path.stat().st_size
    lines = prepared.manifest["rows"]["read"]
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "lines": lines, "digest": digest.hexdigest(),
            "files": len(files), "bytes": size}  # fmt: skip


def _list(values: list[float], digits: int = 0) -> str:
    return ", ".join(f"{v:,.{digits}f}" for v in values)


def table(outcomes: list[Outcome]) -> str:
    """Markdown."""
    lines = ["| target | wanted | measured | verdict | how |", "|---|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {o.target} | {o.wanted} | {o.measured} | {o.verdict} | {o.how} |" for o in outcomes)]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints the table; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", metavar="LOG", help=f"of {', '.join(LOGS)} (default: both)")
    parser.add_argument("--work", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--size", type=int, help="other than the public log's: rows of criteo, users of events")
    parser.add_argument("--few", type=int, help="lines of the small file")
    parser.add_argument("--prepare", nargs=3, metavar=("DATA", "FILE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.prepare:
        data, file, out = given.prepare
        print(json.dumps(prepare_here(data, Path(file), Path(out))))
        return 0
    if unknown := set(given.logs) - set(LOGS):
        parser.error(f"unknown log {', '.join(sorted(unknown))}; there are {', '.join(LOGS)}")
    given.work.mkdir(parents=True, exist_ok=True)
    found: list[Outcome] = []
    for name in given.logs or LOGS:
        of = LOGS[name]
        log = Log(data=of.data, size=given.size or of.size, few=given.few or of.few, make=of.make)
        found += Bench(log, name, given.work, given.kills).outcomes()
    print(table(found))
    return 0 if all(o.verdict == "met" for o in found) else 1


if __name__ == "__main__":
    sys.exit(main())
