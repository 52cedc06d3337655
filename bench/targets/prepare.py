"""Targets of data preparation: Criteo-format text against Polars' bare scan of it, and against FuxiCTR's preparation.

Every run is a process of its own on the same file in a warm page cache, by turns; seconds are those inside the process
after its imports. The file is generated once into runs/targets/work/; its heads are the smaller files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from ctrbench.bench.alternate import ratio
from ctrbench.bench.proc import rss_peak
from ctrbench.bench.targets.outcome import Outcome, at_least
from ctrbench.datasets.criteo_synthetic import CHUNK, Generator, Parameters
from ctrbench.datasets.criteo_text import COLUMNS

GROUP = "prepare"
WORK = Path("runs/targets/work/prepare")
PEER = Path(".venv-peers-fuxictr/bin/python")
ROWS, FEW, PEER_ROWS = 10_000_000, 1_000_000, 5_000_000
ROUNDS, PEER_ROUNDS, LONG_S = 3, 2, 240.0
THREADS = 2
MOST_BYTES, GROWTH = 3 << 30, 0.20
BLOCK = 16 << 20
_generator: Generator | None = None


def outcomes() -> Iterator[Outcome]:
    """Share of the bare scan's rate, memory, and the peer."""
    whole = WORK / f"{ROWS}.tsv"
    write(Parameters(rows=ROWS), whole)
    few = head(whole, FEW, WORK / f"{FEW}.tsv")
    yield from _against_scan(whole, few)
    yield from _against_peer(head(whole, PEER_ROWS, WORK / f"{PEER_ROWS}.tsv"))


def write(parameters: Parameters, path: Path) -> None:
    """The bytes of `criteo_synthetic.write`, made by as many processes as there are threads; nothing if it is there."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(THREADS, spawn, _start, (parameters,)) as pool, partial.open("wb") as out:
        for text in pool.map(_text, range(-(-parameters.rows // CHUNK))):
            out.write(text)
    partial.rename(path)


def _start(parameters: Parameters) -> None:
    global _generator
    _generator = Generator(parameters)


def _text(number: int) -> bytes:
    if _generator is None:
        raise AssertionError("the process was not started by `_start`")
    table = _generator.table(number)
    return table.write_csv(include_header=False, separator="\t", quote_style="never").encode()


def head(file: Path, rows: int, out: Path, first: int = 0, header: bytes = b"") -> Path:
    """Lines `first` .. `first + rows` of a file as a file, under a header."""
    if out.is_file():
        return out
    partial = out.with_suffix(".partial")
    with file.open("rb") as source, partial.open("wb") as target:
        target.write(header)
        for _ in range(first):
            source.readline()
        while rows > 0 and (block := source.read(BLOCK) + source.readline()):
            lines = block.count(b"\n")
            if lines > rows:
                block = b"".join(block.splitlines(keepends=True)[:rows])
            target.write(block)
            rows -= lines
    partial.rename(out)
    return out


def _against_scan(whole: Path, few: Path) -> Iterator[Outcome]:
    sides: dict[str, list[dict[str, Any]]] = {"scan": [], "ours": []}
    for number in range(ROUNDS):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            sides[side].append(_here(side, whole))
    seconds = {side: [r["seconds"] for r in runs] for side, runs in sides.items()}
    share = ratio(seconds["scan"], seconds["ours"])
    rate = ROWS / median(seconds["ours"])
    yield at_least(
        GROUP, f"Criteo TSV of {ROWS // 10**6} M rows prepared, as a share of the rate of Polars' bare all-text scan",
        0.40, share.value, unit=" %", interval=(share.low, share.high),
        how=f"{ROUNDS} rounds by turns, fresh processes, warm cache, {THREADS} threads; scan"
        f" {_list(seconds['scan'])} s, ours {_list(seconds['ours'])} s = {rate:,.0f} rows/s (median); generated rows",
    )  # fmt: skip
    small = _here("ours", few)
    large = max(r["peak"] for r in sides["ours"])
    yield Outcome(
        group=GROUP, target=f"peak memory of preparing {ROWS // 10**6} M rows", wanted="<= 3 GiB",
        measured=f"{large / 2**30:.2f} GiB", verdict="met" if large <= MOST_BYTES else "missed",
        how=f"VmHWM, largest of {ROUNDS} runs, imports included; a process with the same imports that scans takes"
        f" {max(r['peak'] for r in sides['scan']) / 2**30:.2f} GiB",
    )  # fmt: skip
    words = sides["ours"][0]["vocabularies"]
    allowed = words + GROWTH * small["peak"]
    yield Outcome(
        group=GROUP, target=f"growth of peak memory from {FEW // 10**6} M to {ROWS // 10**6} M rows",
        wanted=f"<= {allowed / 2**20:.0f} MiB", measured=f"{(large - small['peak']) / 2**20:.0f} MiB",
        verdict="met" if large - small["peak"] <= allowed else "missed",
        how=f"allowed: vocabulary files ({words / 2**20:.0f} MiB) + 20 % of the {small['peak'] / 2**20:.0f} MiB at"
        f" {FEW // 10**6} M rows",
    )  # fmt: skip


def _against_peer(file: Path) -> Iterator[Outcome]:
    names = (
        f"data preparation of {PEER_ROWS // 10**6} M Criteo-format rows: FuxiCTR 2.3.9 / ours",
        "peak memory of the same: FuxiCTR / ours",
    )
    if not PEER.is_file():
        for name in names:
            yield Outcome(
                group=GROUP, target=name, wanted=">= 5x" if name == names[0] else "> 1x", measured="",
                verdict="not testable here", how=f"{PEER} is absent; `make peers` makes it",
            )  # fmt: skip
        return
    folder = _peer_files(file)
    ours, peer = [], []
    for number in range(PEER_ROUNDS):
        ours.append(_here("ours", file))
        peer.append(_peer(folder))
        if peer[-1]["seconds"] > LONG_S and number == 0:
            break
    gain = ratio([r["seconds"] for r in peer], [r["seconds"] for r in ours])
    how = (
        f"{gain.rounds} round(s) by turns, fresh processes, warm cache, {THREADS} cores, minimum count 2 in both;"
        f" FuxiCTR {_list([r['seconds'] for r in peer])} s, ours {_list([r['seconds'] for r in ours])} s;"
        f" its integers stay untransformed; {json.dumps(peer[0]['versions'])}"
    )
    interval = (gain.low, gain.high) if gain.rounds > 1 else None
    yield at_least(GROUP, names[0], 5.0, gain.value, how, interval=interval)
    memory = min(r["peak"] for r in peer) / max(r["peak"] for r in ours)
    yield Outcome(
        group=GROUP, target=names[1], wanted="> 1x", measured=f"{memory:.2f}x",
        verdict="met" if memory > 1 else "missed",
        how=f"VmHWM: FuxiCTR {min(r['peak'] for r in peer) / 2**30:.2f} GiB without its worker processes, ours"
        f" {max(r['peak'] for r in ours) / 2**30:.2f} GiB",
    )  # fmt: skip


def _peer_files(file: Path) -> Path:
    """The peer reads files with a header, one a split: the rows of our splits."""
    folder = WORK / f"peer-{PEER_ROWS}"
    folder.mkdir(parents=True, exist_ok=True)
    test = int(PEER_ROWS * 0.8)
    valid = int(test * 0.9)
    header = "\t".join(COLUMNS).encode() + b"\n"
    for name, start, stop in (("train", 0, valid), ("valid", valid, test), ("test", test, PEER_ROWS)):
        head(file, stop - start, folder / f"{name}.csv", start, header)
    return folder


def _peer(folder: Path) -> dict[str, Any]:
    out = WORK / "peer-out"
    shutil.rmtree(out, ignore_errors=True)
    # -P: the script's folder must not hide the standard library (bench/statistics.py)
    script = str(Path(__file__).parents[1] / "peers_fuxictr_prepare.py")
    try:
        return _process([str(PEER), "-P", script, str(folder), str(out), "--min-count", "2"])
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _here(side: str, file: Path) -> dict[str, Any]:
    out = WORK / side
    shutil.rmtree(out, ignore_errors=True)
    try:
        return _process([sys.executable, "-m", "ctrbench.bench.targets.prepare", side, str(file), str(out)])
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _process(command: list[str]) -> dict[str, Any]:
    env = {**os.environ, "POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{command[3] if command[1] == '-m' else 'FuxiCTR'}: {result['seconds']:.1f} s", flush=True)
    return result


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{s:.1f}" for s in seconds)


def _scan(file: Path, out: Path) -> dict[str, Any]:
    import polars as pl

    out.mkdir(parents=True)
    start = time.perf_counter()
    text = dict.fromkeys(COLUMNS, pl.String)
    pl.scan_csv(file, has_header=False, separator="\t", quote_char=None, schema=text).sink_parquet(out / "rows.parquet")
    return {"seconds": time.perf_counter() - start, "peak": rss_peak()}


def _ours(file: Path, out: Path) -> dict[str, Any]:
    from ctrbench.datasets.prepare import prepare

    start = time.perf_counter()
    prepared = prepare("criteo", file, out)
    seconds = time.perf_counter() - start
    words = sum(f.stat().st_size for f in prepared.path.glob("vocabulary-*"))
    return {"seconds": seconds, "peak": rss_peak(), "vocabularies": words}


def main() -> None:
    """One run of one side; prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["scan", "ours"])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    print(json.dumps({"scan": _scan, "ours": _ours}[options.side](options.file, options.out)))


if __name__ == "__main__":
    main()
