"""Run directories, benchmark files, baselines and records of GPUs that cannot be read, and outputs that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tests.data.benchmark_file import benchmarks
from tests.data.gate_runs import times, trainings
from tests.data.resealed import resealed

from ctrbench.bench.gate_sides import save_baseline
from ctrbench.bench.kit import record as kit
from ctrbench.bench.runspec import RunSpec
from ctrbench.reports.measures import make
from ctrbench.reports.records import RunRecord, save

Make = Callable[[Path], object]
KEY = "criteo_synthetic-deepfm-quality-0123456789"


def run(change: Callable[[Path], object] = lambda folder: None) -> Make:
    """One record of two numbers in runs/one; `change` gets its folder."""

    def write(folder: Path) -> None:
        base = {"run": KEY, "model": "deepfm", "family": "legacy", "phase": "train", "data": "criteo_synthetic",
                "split": "default", "track": "tabular", "seed": 0}  # fmt: skip
        rows = (make(base, "auc", 0.7, "measured"), make(base, "logloss", 0.5, "measured"))
        spec = RunSpec(kind="quality", model="deepfm", data="criteo_synthetic", split="default", fingerprint="f00",
                       batch=256, train_rows=1000, epochs=1, level="quick").to_json()  # fmt: skip
        change(save(RunRecord(key=KEY, spec=spec, rows=rows), folder / "runs" / "one"))

    return write


def sides(change: Callable[[Path], object] = lambda folder: None) -> Make:
    """Runs `one` and `two` that can be compared; `change` gets two's folder."""

    def write(folder: Path) -> None:
        for side in ("one", "two"):
            trainings(times(folder / side))
        change(folder / "two")

    return write


def swept(file: str, body: str) -> Make:
    """A sweep of one point, and one of its files with another text."""

    def write(folder: Path) -> None:
        times(folder / "s" / "points" / "a" / "20260101-000000-ci")
        (folder / "s" / "grid.json").write_text('{"a": ["run.lr=1"]}')
        (folder / "s" / file).write_text(body)

    return write


def kept(change: Callable[[Path], object]) -> Make:
    """A baseline `a`; `change` gets its folder."""

    def write(folder: Path) -> None:
        save_baseline("a", trainings(times(folder / "one")), folder / "runs" / "baselines")
        change(folder / "runs" / "baselines" / "a")

    return write


def also(*makes: Make) -> Make:
    return lambda folder: [m(folder) for m in makes]


def gpu_record(folder: Path, **changes: object) -> None:
    """A sealed record of the GPU kit without a model in r.json."""
    body = {"schema": kit.SCHEMA, "schema_version": kit.SCHEMA_VERSION, "started": "2026-11-27T00:00:00Z",
            "dry_run": False, "device": {"name": "NVIDIA H100 80GB HBM3", "driver": "580"}, "dtype": "tf32",
            "environment": {}, "tests": {"status": "ok"}, "models": {}}  # fmt: skip
    kit.save(body | changes, folder / "r.json")


def text(name: str, body: str) -> Make:
    return lambda folder: (folder / name).write_text(body)


def edited(old: str, new: str) -> Callable[[Path], object]:
    """record.json with another text in it."""

    def change(folder: Path) -> None:
        file = folder / "record.json"
        body = file.read_text()
        assert old in body
        file.write_text(body.replace(old, new))
        resealed(folder)

    return change


def said(kind: str, key: str, value: object) -> Callable[[Path], object]:
    """Every record of a kind says something else under a key of `extra`, or of its samples."""

    def change(folder: Path) -> None:
        for file in (folder / "records").glob(f"*-{kind}-*/record.json"):
            body = json.loads(file.read_text())
            (body["extra"]["samples"] if key in body["extra"]["samples"] else body["extra"])[key] = value
            file.write_text(json.dumps(body))
            resealed(file.parent)

    return change


def cut_first(files: str) -> Callable[[Path], object]:
    """The first file of that name loses its second half."""

    def change(folder: Path) -> None:
        file = min(folder.glob(files))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return change


def cut(name: str, to: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:to])


def without(column: str) -> Callable[[Path], object]:
    """measurements.parquet without a column."""

    def change(folder: Path) -> None:
        file = folder / "measurements.parquet"
        pd.read_parquet(file).drop(columns=column).to_parquet(file)
        resealed(folder)

    return change


def endless(column: str) -> Callable[[Path], object]:
    """measurements.parquet with infinity where a whole number belongs."""

    def change(folder: Path) -> None:
        file = folder / "measurements.parquet"
        pd.read_parquet(file).assign(**{column: float("inf")}).to_parquet(file)
        resealed(folder)

    return change


def turned(name: str, old: str, new: str) -> Callable[[Path], object]:
    """A file with other bytes in it, as a disk or an editor leaves it."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        assert old.encode() in data
        (folder / name).write_bytes(data.replace(old.encode(), new.encode()))

    return change


REPORT = "report runs/one"
DEEP = "[" * 100_000 + "]" * 100_000
BENCHMARK = {"machine_info": {}, "commit_info": {}, "benchmarks": [{"name": "x"}], "version": "5"}

CASES: list[tuple[str, str, Make, str, int]] = [  # a row a case, all of one form
    ("no such run", REPORT, lambda f: None, "runs/one", 2),
    ("a run without a finished record", REPORT, lambda f: (f / "runs/one/records").mkdir(parents=True), "runs/one", 2),
    ("record.json cut", REPORT, run(cut("record.json", 60)), "damaged record", 2),
    ("record.json empty", REPORT, run(cut("record.json", 0)), "damaged record", 2),
    ("record.json of another version", REPORT, run(edited('"schema_version": 1', '"schema_version": 99')), "99", 2),
    ("record.json that is a list", REPORT, run(lambda f: (f / "record.json").write_text("[1]")), "damaged", 2),
    ("record.json of a training without its model", REPORT, run(edited('"model":', '"modul":')), "spec.model", 2),
    ("a comparison of a training of unknown data", "compare runs/one runs/one",
     run(edited('"fingerprint":', '"fingerpaint":')), "spec.fingerprint", 2),
    ("record.json, infinitely many rows", REPORT, run(edited('"train_rows": 1000', '"train_rows": 1e400')),
     "spec.train_rows", 2),
    ("record.json, more epochs than 64 bits hold", REPORT, run(edited('"epochs": 1', f'"epochs": {2**63}')),
     "spec.epochs", 2),
    ("record.json with another number than was written", REPORT,
     run(turned("record.json", '"batch": 256', '"batch": 512')), "not what was written", 2),
    ("measurements.parquet with another text than was written", REPORT,
     run(turned("measurements.parquet", "criteo_synthetic", "criteo_synthetik")), "not what was written", 2),
    ("measurements.parquet, an infinite batch", REPORT, run(endless("batch")), "infinity", 2),
    ("record.json, lists in lists in lists", REPORT, run(lambda f: (f / "record.json").write_text(DEEP)),
     "recursion", 2),
    ("record.json, half a character", REPORT,
     run(turned("record.json", '"model": "deepfm"', '"model": "\\ud800"')), "surrogates", 2),
    ("record.json without its spec", REPORT, run(edited('"spec"', '"spek"')), "key 'spec'", 2),
    ("measurements.parquet cut", REPORT, run(cut("measurements.parquet", 200)), "measurements.parquet", 2),
    ("measurements.parquet without a column", REPORT, run(without("family")), "'family'", 2),
    ("measurements.parquet missing", REPORT, run(lambda f: (f / "measurements.parquet").unlink()), "measurements", 2),
    ("the report's folder is a file", f"{REPORT} -o note/r.html", also(run(), text("note", "mine")), "note", 2),
    ("the report is a folder", f"{REPORT} -o page", also(run(), lambda f: (f / "page").mkdir()), "page", 2),
    ("a section unknown", f"{REPORT} -o r.md --section sumary", run(), "summary", 2),
    ("a section of a whole page", f"{REPORT} --section summary", run(), ".md", 2),
    ("prices, lists in lists in lists", f"{REPORT} --prices p.toml", also(run(), text("p.toml", f"a = {DEEP}")),
     "not TOML", 2),
    ("prices that are no TOML", f"{REPORT} --prices p.toml", also(run(), text("p.toml", "=")), "not TOML", 2),
    ("a benchmark file that is no JSON", "report b.json", text("b.json", "{"), "b.json", 2),
    ("a benchmark file, lists in lists in lists", "report b.json", text("b.json", DEEP), "b.json", 2),
    ("a benchmark file, a measure changed by hand", "report b.json",
     also(lambda f: benchmarks(f / "b.json"), turned("b.json", "25600.0", "52600.0")),
     "not what was written", 2),
    ("a benchmark file of other benchmarks", "report b.json", text("b.json", json.dumps(BENCHMARK)), "b.json", 2),
    ("JSON that is none of pytest-benchmark's", "report b.json", text("b.json", '{"a": 1}'), "b.json", 2),
    ("the same run twice", f"{REPORT} runs/one -o r.html", run(), "r.html", 0),
    ("an export below a file", "export runs/one --format json -o note/r.json", also(run(), text("note", "mine")),
     "note", 2),
    ("an export in an unknown form", "export runs/one --format xlsx -o r.xlsx", run(), "invalid choice", 2),
    ("a timeline of a run without steps", "export runs/one --format perfetto -o t.json", run(), "no step", 2),
    ("a baseline that is not there", "compare main runs/one", run(), "no baseline", 2),
    ("a list of baselines, one whose card is cut", "baseline list", kept(cut("baseline.json", 20)), "damaged", 2),
    ("a list of baselines, one whose card lacks its commit", "baseline list",
     kept(lambda f: (f / "baseline.json").write_text('{"saved": 1, "from": 2}')), "'commit' is missing", 2),
    ("a sweep whose list of points is cut", "report s", swept("grid.json", "{"), "grid.json: damaged", 2),
    ("a sweep whose list of points is one of numbers", "report s", swept("grid.json", '{"a": [1]}'), "no points", 2),
    ("a sweep of no point", "report s", swept("grid.json", "{}"), "no points", 2),
    ("a sweep whose point has a damaged exit code", "report s", swept("points/a/end.json", "[]"), "no point", 2),
    ("kernels that are no Parquet file", REPORT, run(lambda f: (f / "kernels.parquet").write_text("PAR1")),
     "kernels.parquet: no readable Parquet file", 2),
    ("a baseline's name with a path", "baseline save ../x runs/one", run(), "letters, digits", 2),
    ("a baseline that is there already", "baseline save a runs/one",
     also(run(), lambda f: (f / "runs/baselines/a").mkdir(parents=True)), "exists", 2),
    ("a comparison of nothing alike", "compare runs/one runs/one", run(), "Nothing is comparable", 2),
    ("a comparison of steps that are no times", "compare one two", sides(said("time", "step", [1, "x"])),
     "extra.samples.step", 2),
    ("a comparison of a peak that is no number", "compare one two", sides(said("time", "rss_peak", "much")),
     "extra.rss_peak", 2),
    ("a comparison with damaged scores", "compare one two", sides(cut_first("records/*/scores.npz")), "scores.npz", 2),
    ("a baseline of damaged scores", "baseline save main two", sides(cut_first("records/*/scores.npz")),
     "scores.npz", 2),
    ("a comparison with damaged labels", "compare two one", sides(cut_first("rows/*.npz")), "rows", 2),
    ("a comparison with an alpha of 3", "compare runs/one runs/one --alpha 3", run(), "--alpha", 2),
    ("a ledger that is a folder", "score r.json -o .", text("r.json", "{}"), "is a folder", 2),
    ("a GPU record that is no JSON", "score r.json", text("r.json", "{"), "r.json", 2),
    ("a GPU record, lists in lists in lists", "score r.json", text("r.json", DEEP), "r.json", 2),
    ("a GPU record changed by hand", "score r.json", also(gpu_record, turned("r.json", '"tf32"', '"fp32"')),
     "not what was written", 2),
    ("a GPU record whose models are a list", "score r.json", lambda f: gpu_record(f, models=[]), "of another kind", 2),
    ("a GPU record that is something else", "score r.json", text("r.json", "{}"), "r.json", 2),
    ("a GPU record that is not there", "score r.json", lambda f: None, "r.json", 2),
]  # fmt: skip
