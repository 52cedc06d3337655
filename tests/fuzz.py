"""Files spoiled at random through every reader, by the command that a user types: `make fuzz`.

    python -m tests.fuzz [--seconds 600] [--only nsys,kineto] [--seed 0]

A good file is cut, flipped, doubled, mixed with words that readers trip over, or says something odd at one place of its
JSON or YAML; a record is sealed again in half of the tries, so that what lies behind the seal is met too. The command
must end with exit code 0, 1 or 2. An exception that leaves it, or an input file that is other afterwards, is a finding:
the spoiled folder is kept and named. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from tests.data import public_logs, robust, robust_checkpoints, robust_data, robust_records, robust_traces
from tests.data.benchmark_file import benchmarks
from tests.data.resealed import resealed
from tests.data.synthetic_ncu import counters, long_form

from ctrbench.bench import cost_prices

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[[Path], object]
WORDS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"nan", b"-inf", b"1e400", b"9223372036854775808", b"-1", b"1.5", b"\"",
    b"'", b",", b"\t", b"\r\n", b"\n\n", b"^", b"|", b"NULL", b"{}", b"[]", b"null", b"true", b"\\u0000", b"0x10",
    b"\xe2\x80\xa8", b"1_000", "٣".encode(), b"<script>", b"; DROP TABLE", b"../..", b"%s%n", b"A" * 5000, b"[" * 5000,
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, math.nan, math.inf, 1e308, 2**63, 10**400, "", "nan", "\0", "\ud800", "<script>",
    "A" * 5000, [], {}, [[]], [None], ["x"], {"a": {}}, {"": None},
)  # fmt: skip
"""What stands at a place of JSON or YAML."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """One way in."""

    make: Make
    """Writes good files."""
    command: str
    files: str = "**/*"
    """Those that are spoiled, as a glob."""
    binary: bool = False
    """Words are put anywhere, not only at the ends of fields."""
    sealed: bool = False
    """Records, whose hashes are made right again in half of the tries."""


def _gpu_record(folder: Path) -> None:
    shutil.copy(min((ROOT / "docs" / "records").glob("*.json")), folder / "r.json")


def _prices(folder: Path) -> None:
    robust_records.run()(folder)
    shutil.copy(cost_prices.DEFAULT, folder / "p.toml")


def _ncu(folder: Path) -> None:
    (folder / "t.csv").write_text(long_form([counters(), counters()]))


READERS = {
    "criteo": Reader(make=robust_data.criteo(), command=robust_data.CRITEO),
    "criteo_gz": Reader(make=robust_data.squeezed(), command=robust_data.CRITEO.replace("txt", "txt.gz"), binary=True),
    "taobao_behaviour": Reader(make=robust_data.events(), command=robust_data.EVENTS),
    "movielens_1m": Reader(make=robust_data.movies(), command=robust_data.MOVIES),
    "avazu": Reader(make=lambda f: public_logs.avazu(f / "train"), command=robust_data.AVAZU),
    "kuairand": Reader(make=lambda f: public_logs.kuairand(f / "kuai"), command=robust_data.KUAI),
    "taobao_ad": Reader(make=lambda f: public_logs.taobao_ad(f / "ad"), command=robust_data.AD),
    "taobao_ad_x1": Reader(make=lambda f: public_logs.taobao_ad_x1(f / "ad"), command=robust_data.AD_X1),
    "amazon": Reader(make=lambda f: public_logs.amazon_electronics(f / "amazon"), command=robust_data.AMAZON,
                     binary=True),
    "amazon_x1": Reader(make=lambda f: public_logs.amazon_electronics_x1(f / "amazon"), command=robust_data.AMAZON_X1),
    "table": Reader(make=robust_data.shop(), command=robust_data.TABLE, files="shop.csv"),
    "schema": Reader(make=robust_data.shop(), command=robust_data.TABLE, files="shop.yaml"),
    "manifest": Reader(make=robust_checkpoints.prepared(lambda out: None), command=robust_checkpoints.AGAIN,
                       files="out/manifest.json"),
    "record": Reader(make=robust_records.run(), command=robust_records.REPORT, files="**/record.json",
                     sealed=True),
    "measurements": Reader(make=robust_records.run(), command=robust_records.REPORT, files="**/*.parquet", binary=True,
                           sealed=True),
    "compare": Reader(make=robust_records.sides(), command="compare one two", sealed=True),
    "benchmarks": Reader(make=lambda f: benchmarks(f / "b.json"), command="report b.json"),
    "prices": Reader(make=_prices, command=f"{robust_records.REPORT} --prices p.toml", files="p.toml"),
    "gpu_record": Reader(make=_gpu_record, command="score r.json -o ledger.md"),
    "nsys": Reader(make=robust_traces.nsys(), command="trace t.sqlite", binary=True),
    "scrub": Reader(make=robust_traces.nsys(), command="scrub t.sqlite -o o.sqlite", files="t.sqlite", binary=True),
    "scrub_kineto": Reader(make=robust_traces.kineto(lambda s: s), command="scrub t.json -o o.json", files="t.json"),
    "kineto": Reader(make=robust_traces.kineto(lambda s: s), command="trace t.json"),
    "ncu": Reader(make=_ncu, command="trace t.csv"),
}  # fmt: skip


def edited(data: bytes, draw: random.Random) -> bytes | None:
    """JSON or YAML that says something odd at one place, or lacks it; None if the file is neither."""
    for load, dump in ((json.loads, json.dumps), (yaml.safe_load, yaml.safe_dump)):
        try:
            body = load(data)
        except (ValueError, yaml.YAMLError):
            continue
        if not isinstance(body, dict):
            return None
        places: list[tuple[Any, Any]] = []
        _places(body, places)
        holder, key = draw.choice(places)
        if draw.random() < 0.1:
            del holder[key]
        else:
            holder[key] = draw.choice(ODD)
        return str(dump(body)).encode(errors="surrogatepass")
    return None


def _places(value: Any, out: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        out.append((value, key))
        _places(inner, out)


def spoiled(data: bytes, draw: random.Random, binary: bool) -> bytes:
    """A few random changes."""
    if not binary and draw.random() < 0.5 and (other := edited(data, draw)) is not None:
        return other
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(out) + 1)
        how = draw.randrange(7)
        if how == 0:
            out = out[:at]
        elif how == 1 and out:
            out[min(at, len(out) - 1)] = draw.randrange(256)
        elif how == 2:
            end = min(len(out), at + draw.choice((1, 2, 10, 200, 5000)))
            out[at:at] = out[at:end]
        elif how == 3:
            del out[at : at + draw.choice((1, 2, 10, 200, 5000))]
        elif how == 4 and not binary:
            ends = [i for i in range(max(0, at - 200), min(len(out), at + 200)) if out[i : i + 1] in b',\t\n:"{}[]|^ ']
            at = draw.choice(ends) if ends else at
            end = min((e for e in ends if e > at), default=at)
            out[at + 1 : end] = draw.choice(WORDS)
        else:
            out[at:at] = draw.choice(WORDS)
    return bytes(out)


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, Counter[int], list[Path]]:
    """(commands typed, exit code -> how often, folders of the findings)."""
    reader, draw, codes, findings = READERS[name], random.Random(f"{name}{seed}"), Counter[int](), list[Path]()
    good = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    reader.make(good)
    targets = sorted(p.relative_to(good) for p in good.glob(reader.files) if p.is_file())
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as checked:
        shutil.copytree(good, checked, dirs_exist_ok=True)
        said, code, _ = robust._typed(reader.command, Path(checked).resolve())
        if code:  # then nothing behind that error would be reached
            raise SystemExit(f"{name}: files without a fault end with exit code {code}: {said}")
    ends, count = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")).resolve()
        shutil.copytree(good, folder, dirs_exist_ok=True)
        file = folder / draw.choice(targets)
        file.write_bytes(spoiled(file.read_bytes(), draw, reader.binary))
        if reader.sealed and (file.parent / "record.json").is_file() and draw.random() < 0.5:
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # spoiled beyond JSON
                resealed(file.parent)
        before = dict(robust._files(folder))
        said, code, crashed = robust._typed(reader.command, folder)
        after = dict(robust._files(folder))
        changed = [k for k, v in before.items() if after.get(k) != v]
        count += 1
        codes[code] += 1
        if crashed or code not in (0, 1, 2) or changed:
            print(f"{name}: {crashed or said[-300:]} {changed} {folder}", flush=True)
            findings.append(folder)
        else:
            shutil.rmtree(folder)
    shutil.rmtree(good)
    return count, codes, findings


def main(arguments: list[str] | None = None) -> int:
    """Fuzzes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--only", default=",".join(READERS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    os.environ["POLARS_MAX_THREADS"] = "1"
    found = 0
    print("| reader | commands | exit 0 | exit 1 | exit 2 | findings |\n|---|---|---|---|---|---|", flush=True)
    for name in given.only.split(","):
        count, codes, findings = fuzz(name, given.seconds, given.seed)
        print(f"| {name} | {count:,} | {codes[0]:,} | {codes[1]:,} | {codes[2]:,} | {len(findings)} |", flush=True)
        found += len(findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
