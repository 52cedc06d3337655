"""The fixture `ctr_benchmark`: what its files hold, and what it says of wrong names."""

import json
import os
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ctrbench.bench.benchmarks import Counted, Request, run_benchmark, specs_of
from ctrbench.bench.cli import main
from ctrbench.datasets.errors import BadInput, DataUnavailable, UnknownName
from ctrbench.reports.benchmark_json import FOREIGN, KEY, load_benchmark_json, sealed_info
from ctrbench.reports.cells import tidy
from ctrbench.reports.limits import limits
from ctrbench.reports.measures import MEASURES, make
from ctrbench.reports.records import ORIGINS, STATUSES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1800)  # pytest in pytest starts two processes that import torch
PLUGIN = "ctrbench.bench.pytest_plugin"
TESTS = """
SMALL = {"batch": 16, "rounds": 3}
OPTIONS = {"dim": 4, "mlp": [8], "run.warmup": 1, "run.threads": 1}

def test_train(ctr_benchmark):
    found = ctr_benchmark(model="deepfm", data="random_tabular", options=OPTIONS, **SMALL)
    assert found["flops_train_per_sample"]["value"] > found["flops_fwd_per_sample"]["value"]

def test_infer(ctr_benchmark):
    ctr_benchmark(model="deepfm", data="random_tabular", phase="infer", options=OPTIONS, **SMALL)

def test_foreign(benchmark):
    benchmark.extra_info["flops"] = 7
    benchmark.pedantic(lambda: 1, rounds=2)

def test_wrong_model(ctr_benchmark):
    ctr_benchmark(model="deepfn", **SMALL)

def test_wrong_argument(ctr_benchmark):
    ctr_benchmark(model="deepfm", datum="random_tabular")
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run of pytest on those tests: (what it said, its file)."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "test_tiny.py").write_text(TESTS)
    loaded = [] if any(e.value == PLUGIN for e in entry_points(group="pytest11")) else ["-p", PLUGIN]
    words = ["-q", "-p", "no:cacheprovider", *loaded, "test_tiny.py", "--benchmark-json=out.json", "-W", "ignore"]
    # Beside other workers pytest-benchmark times nothing; this run has none.
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment = {**plain, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (folder / "out.json").is_file(), ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout, folder / "out.json"


@pytest.fixture(scope="module")
def benchmarks(done):
    return {b["name"]: b for b in json.loads(done[1].read_text())["benchmarks"]}


def test_right_names_pass_and_wrong_ones_are_usage_errors_with_the_nearest(done):
    said = done[0]
    assert "2 failed, 3 passed" in said
    assert "UsageError: ctr_benchmark: unknown model 'deepfn': did you mean 'deepfm'?" in said
    assert "unexpected keyword argument 'datum'" in said


@pytest.mark.parametrize("name", ["test_train", "test_infer"])
def test_every_entry_is_a_value_with_unit_and_origin(benchmarks, name):
    info = benchmarks[name]["extra_info"]
    phase = name.removeprefix("test_")
    for metric, entry in info.items():
        if metric == KEY:
            continue
        assert entry["unit"] == MEASURES[metric].unit, metric
        assert entry["origin"] in ORIGINS
        assert entry.get("status", "ok") in STATUSES
        assert (entry["value"] is None) == (entry["origin"] == "abstained")
        assert entry["value"] is not None or entry["reason"]
    origins = {metric: entry["origin"] for metric, entry in info.items() if metric != KEY}
    assert origins["flops_fwd_per_sample"] == origins["ops_per_step"] == origins["bytes_operands"] == "counted"
    assert origins["ai_operands"] == origins["parameters"] == "counted"
    assert origins["kernels_per_step"] == "modelled"
    assert info["kernels_per_step"]["ci_low"] < info["kernels_per_step"]["value"] < info["kernels_per_step"]["ci_high"]
    assert origins["throughput"] == "measured"
    assert origins["rss_peak"] == "abstained"
    assert info["ops_per_step"]["phase"] == phase
    assert info[KEY]["inputs"].keys() <= info.keys()
    assert info[KEY]["phase"] == phase
    assert info[KEY]["environment"]["torch"]
    assert info[KEY]["environment"]["commit"]
    assert info[KEY]["spec"]["fingerprint"]
    assert info[KEY]["spec"]["prepared"] == ""


@pytest.mark.parametrize(("name", "metric"), [("test_train", "step_time"), ("test_infer", "infer_latency")])
def test_times_are_those_of_pytest_benchmark(benchmarks, name, metric):
    info, stats = benchmarks[name]["extra_info"], benchmarks[name]["stats"]
    assert stats["rounds"] == len(stats["data"]) == 3
    assert info[metric]["value"] == pytest.approx(statistics.median(stats["data"]))
    assert info["throughput"]["value"] == pytest.approx(16 / info[metric]["value"])
    assert min(stats["data"]) <= info[metric]["p10"] <= info[metric]["p90"] <= max(stats["data"])


def test_a_forward_is_counted_for_itself(benchmarks):
    train, infer = (benchmarks[n]["extra_info"] for n in ("test_train", "test_infer"))
    assert infer["ops_per_step"]["value"] < train["ops_per_step"]["value"]
    assert infer["bytes_operands"]["value"] < train["bytes_operands"]["value"]
    assert infer["flops_fwd_per_sample"] == train["flops_fwd_per_sample"]
    assert "flops_train_per_sample" not in infer


def test_read_back(done, benchmarks):
    rows, bodies = load_benchmark_json(done[1])
    assert len(bodies) == 2
    ours = rows[rows["reason"] != FOREIGN]
    assert set(ours["run"]) == set(bodies)
    assert set(ours["model"]) == {"deepfm"}
    assert set(ours["data"]) == {"random_tabular"}
    assert set(ours["track"]) == {"tabular"}
    info = benchmarks["test_train"]["extra_info"]
    key = next(k for k in bodies if "-train-" in k)
    mine = ours[ours["run"] == key].set_index("metric")
    assert set(mine.index) == set(info) - {KEY}
    for metric in ("step_time", "flops_train_per_sample", "kernels_per_step"):
        assert mine.loc[metric, "value"] == info[metric]["value"]
        assert mine.loc[metric, "origin"] == info[metric]["origin"]
        assert mine.loc[metric, "threads"] == 1
    assert bodies[key]["extra"]["samples"]["step"] == benchmarks["test_train"]["stats"]["data"]
    assert bodies[key]["spec"]["batch"] == 16
    # Tables of steps get no row of a forward that means something else there.
    forward = ours[(ours["run"] != key)]
    assert set(forward["metric"]) == {
        "infer_latency", "flops_fwd_per_sample", "parameters", "bytes_tables", "bytes_checkpoint",
    }  # fmt: skip


def test_a_benchmark_that_is_not_ours_stands_apart(done):
    rows, bodies = load_benchmark_json(done[1])
    foreign = rows[rows["reason"] == FOREIGN]
    assert list(foreign["model"]) == ["test_tiny.py::test_foreign"]
    assert foreign["value"].isna().all()
    assert not any("foreign" in key for key in bodies)


def test_the_report_takes_the_file_and_names_what_is_not_ours(done, tmp_path, capsys):
    assert main(["report", str(done[1]), "-o", str(tmp_path / "r.md")]) == 0
    assert "test_tiny.py::test_foreign" in capsys.readouterr().err
    text = (tmp_path / "r.md").read_text()
    summary, _, lost = text.partition("## What is not there")
    assert "DeepFM · dim=4,mlp=[8]" in summary
    assert "test_foreign" not in summary
    assert "test_foreign" in lost
    table, bodies = load_benchmark_json(done[1])
    assert "the benchmarks of a pytest file in one process" in limits(tidy(table), bodies).can[0]


def sealed_again(benchmark):
    """As a version would leave it that writes such things."""
    info = benchmark["extra_info"]
    ours = {k: v for k, v in info[KEY].items() if k != "sha256"}
    info |= sealed_info({m: info[m] for m in ours["measures"]}, ours)


def side(folder, content, factor, files=5):
    """Files of `files` processes whose steps took `factor` times as long, each a little longer than the one before."""
    folder.mkdir()
    for n in range(files):
        changed = json.loads(content)
        for b in changed["benchmarks"]:
            scale = factor * (1 + n / 200)
            b["stats"]["data"] = [scale * s for s in b["stats"]["data"]]
            for metric in {"step_time", "infer_latency"} & b["extra_info"].keys():
                b["extra_info"][metric]["value"] *= scale
            if KEY in b["extra_info"]:
                sealed_again(b)
        (folder / f"{n}.json").write_text(json.dumps(changed))
    return str(folder)


def test_compare_takes_folders_of_files_each_a_process(done, tmp_path, capsys):
    content = done[1].read_text()
    base, slow = side(tmp_path / "base", content, 1), side(tmp_path / "slow", content, 1.5)
    assert main(["compare", base, base]) == 0
    assert "same" in capsys.readouterr().out
    page = tmp_path / "diff.html"
    assert main(["compare", base, slow, "-o", str(page)]) == 1
    said = capsys.readouterr().out
    assert "step time" in said.splitlines()[-1].lower()
    assert "a pytest process holds more than one model" in page.read_text()
    assert "Forward latency" in page.read_text()  # described, not judged
    assert main(["compare", slow, base]) == 0
    few = side(tmp_path / "few", content, 1.5, files=2)
    assert main(["compare", base, few]) == 0
    assert "too few to call any change: 5 / 2 processes" in capsys.readouterr().out


def test_one_file_is_one_process_and_the_same_benchmark_twice_is_no_other(done, tmp_path, capsys):
    content = json.loads(done[1].read_text())
    content["benchmarks"] += [dict(b, fullname="again") for b in content["benchmarks"] if b["name"] == "test_train"]
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps(content))
    assert main(["compare", str(done[1]), str(twice)]) == 0
    caught = capsys.readouterr()
    assert "too few to call any change: 1 / 1 processes" in caught.out
    assert "again: the same configuration again in one process; left out" in caught.err


def test_files_are_kept_as_a_baseline(done, tmp_path, capsys):
    base, where = side(tmp_path / "base", done[1].read_text(), 1), ["--baselines", str(tmp_path / "kept")]
    assert main(["baseline", "save", "speed", base, *where]) == 0
    assert main(["compare", "speed", base, *where]) == 0
    assert main(["compare", "spede", base, *where]) == 2
    assert "did you mean 'speed'" in capsys.readouterr().err


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda b: b["stats"].update(data=[1.0, 2.0, 3.0]), "is not the median of its rounds"),
    (lambda b: b["extra_info"][KEY].update(schema_version=99), "schema 99, this version reads 1"),
    (lambda b: b["extra_info"][KEY].pop("spec"), "lacks 'spec'"),
    (lambda b: b["extra_info"]["step_time"].update(unit="ms"), "step_time is in ms, the catalogue has it in s"),
    (lambda b: b["extra_info"]["throughput"].update(origin="guessed"), "origin 'guessed'"),
    (lambda b: b["extra_info"]["throughput"].update(value=None), "needs a value"),
])  # fmt: skip
@pytest.mark.parametrize("seal", [True, False], ids=["sealed again", "as it is"])
def test_files_that_were_changed_are_refused(done, tmp_path, capsys, spoil, said, seal):
    body = json.loads(done[1].read_text())
    spoilt = next(b for b in body["benchmarks"] if b["name"] == "test_train")
    spoil(spoilt)
    if seal:
        sealed_again(spoilt)
    (tmp_path / "x.json").write_text(json.dumps(body))
    assert main(["report", str(tmp_path / "x.json"), "-o", str(tmp_path / "r.md")]) == 2
    found = capsys.readouterr().err
    assert f"{tmp_path / 'x.json'}: test_tiny.py::test_train: " in found
    sealed_away = not seal and "median" not in said  # pytest-benchmark's own times are outside the seal
    assert ("not what was written" if sealed_away else said) in found
    assert "run the benchmark again" in found


def test_without_timing_a_test_still_gets_its_counts():
    calls, steps = [], []
    row = make({"run": "r", "model": "deepfm", "phase": "train"}, "ops_per_step", 70.0, "counted")

    def counting(spec):
        calls.append(spec.kind)
        return Counted(train=(row,), infer=())

    def pedantic(step):
        steps.append(step())

    disabled = SimpleNamespace(disabled=True, pedantic=pedantic, extra_info={})
    asked = Request(model="deepfm", data="random_tabular", batch=8, options={"dim": 2, "mlp": [4], "run.threads": 1})
    found = run_benchmark(disabled, counting, asked)
    assert found == {"ops_per_step": {"value": 70.0, "unit": "ops", "origin": "counted", "phase": "train"}}
    assert calls == ["count"]
    assert torch.isfinite(steps[0])
    assert disabled.extra_info == {}


def test_data_that_cannot_be_had_is_not_the_tests_fault(monkeypatch):
    monkeypatch.setattr("ctrbench.bench.benchmarks.prepare_jobs", lambda *_: ([], [], ["movielens_1m: no network"]))
    with pytest.raises(DataUnavailable, match="no network"):
        specs_of(Request(model="din", data="movielens_1m"))


def test_two_files_of_one_test_are_two_processes(done, tmp_path):
    (tmp_path / "again.json").write_text(done[1].read_text() + " ")
    one, two = load_benchmark_json(done[1])[1], load_benchmark_json(tmp_path / "again.json")[1]
    assert not set(one) & set(two)
    assert [b["spec"] for b in one.values()] == [b["spec"] for b in two.values()]


def test_plugin_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pandas', 'polars', 'plotly', 'hydra', 'rich', 'pytest_benchmark'}"
    code = f"import sys, pytest; old = set(sys.modules); import {PLUGIN}; new = set(sys.modules) - old; " \
        f"print(sorted(new), {heavy} & new)"  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == f"{['ctrbench', 'ctrbench.bench', PLUGIN]} set()"


def test_entry_point_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert declared == {"ctrbench": PLUGIN}


@pytest.mark.parametrize(("asked", "error", "said"), [
    ({"model": "deepfm", "data": "random_tabulr"}, UnknownName, "did you mean 'random_tabular'"),
    ({"model": "deepfm", "options": {"dims": 4}}, UnknownName, "did you mean 'dim'"),
    ({"model": "deepfm", "options": {"run.thread": 4}}, UnknownName, "did you mean 'run.threads'"),
    ({"model": "deepfm", "options": {"data.options.rows": 4}}, UnknownName, "leave it out"),
    ({"model": "din", "data": "random_tabular"}, BadInput, "din on random_tabular: no behaviour"),
    ({"model": "deepfm,din"}, UnknownName, "'deepfm,din'"),
    ({"model": "deepfm", "rounds": 0}, UnknownName, "run.steps=0"),
])  # fmt: skip
def test_wrong_requests(asked, error, said):
    with pytest.raises(error, match=said):
        specs_of(Request(**asked))


def test_a_request_is_the_run_of_a_suite():
    options = {"heads": 2, "run.threads": 1, "run.history_length": 8, "run.warmup": 3}
    timed, counted = specs_of(Request(model="bst", options=options, batch=64, rounds=7))
    assert (timed.kind, counted.kind) == ("time", "count")
    assert timed.config == counted.config == {"heads": 2}
    assert timed.variant == "heads=2"
    assert (timed.batch, timed.steps, timed.warmup, timed.history_length, timed.threads) == (64, 7, 3, 8, 1)
    assert timed.level == "smoke"
    assert timed.fingerprint
