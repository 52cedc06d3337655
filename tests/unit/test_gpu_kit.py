"""The GPU kit without a GPU: its dry run, going on after a kill, its budget, its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrbench.bench import gpu_kit, registry
from ctrbench.bench.gpu_kit import Options, run_kit
from ctrbench.bench.hardware import catalogue
from ctrbench.bench.kit import cases
from ctrbench.bench.kit import record as records
from ctrbench.bench.kit.processes import gpu_test_files, read_junit, run_gpu_tests, run_limited
from ctrbench.bench.kit.worker import Job, failure, run_model
from ctrbench.datasets.errors import BadInput, UnknownName

DRY = Options(device="cpu", tests=False, models=("deepfm", "din"), least_s=0.0)


def options(out: Path, **changes: Any) -> Options:
    return Options(**{**{f: getattr(DRY, f) for f in DRY.__dataclass_fields__}, "out": out, **changes})


def known(job: Job, *_: object) -> dict[str, Any]:
    """Stands in for a model's process."""
    return {"status": "ok", "reason": "", "preset": "small", "batch": 32, "phases": {}, "trace": None}


def body_of(out: Path) -> dict[str, Any]:
    return records.load(out / "record.json")


# ------------------------------------------------------------------- dry run


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """(folder, record, what was printed) of one model in its real process, by the command itself."""
    out = tmp_path_factory.mktemp("kit")
    command = [sys.executable, "-m", "ctrbench.bench.gpu_kit", "--device", "cpu", "--no-tests", "--models", "deepfm"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, body_of(out), done.stdout


def test_dry_run_marks_every_row_and_measures_both_phases(dry: tuple[Path, dict[str, Any], str]) -> None:
    _, body, said = dry
    assert body["dry_run"]
    assert body["finished"] >= body["started"]
    model = body["models"]["deepfm"]
    assert (model["status"], model["preset"], model["batch"]) == ("ok", "small", cases.DRY_BATCH)
    assert set(model["phases"]) == set(records.PHASES)
    for row in [model, *model["phases"].values(), model["trace"]]:
        assert row["dry_run"] is True
    for phase in model["phases"].values():
        assert 0 < phase["wall_s"]["p10"] <= phase["wall_s"]["p50"] <= phase["wall_s"]["p90"]
        assert phase["mfu"] == {"value": None, "origin": "abstained", "reason": "dry run: nothing is counted"}
    assert "deepfm: ok, small at batch 32" in said
    assert body["tests"] == {"status": "skipped", "reason": "--no-tests", "passed": [], "failed": {}, "skipped": {}}


def test_dry_run_keeps_a_scrubbed_trace_without_kernels(dry: tuple[Path, dict[str, Any], str]) -> None:
    out, body, _ = dry
    trace = body["models"]["deepfm"]["trace"]
    assert (trace["status"], trace["tool"]) == ("skipped", "kineto")
    assert trace["reason"].startswith("no_kernel_table: ")
    assert [f.name for f in (out / "traces").iterdir()] == [trace["file"]]
    assert list((out / "raw").iterdir()) == []


def test_record_names_no_host_or_path(dry: tuple[Path, dict[str, Any], str]) -> None:
    out, body, _ = dry
    text = json.dumps(body)
    assert str(out) not in text
    assert os.uname().nodename not in text
    assert str(records.ROOT) not in text


def test_messages_of_errors_lose_the_folders_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/alice")
    found = {"reason": f"{records.ROOT}/bench/x.py and {sys.prefix}/lib and /somewhere/alice/data"}
    records.save(found, tmp_path / "r.json")
    said = json.loads((tmp_path / "r.json").read_text())["reason"]
    assert said == "<checkout>/bench/x.py and <environment>/lib and <home>/data"


def test_a_job_travels_as_json() -> None:
    job = Job(model="din", device="cpu", dtype="fp32", gpu=None, seconds=1.0, dry_run=True, parent=1, out="x")
    command = gpu_kit.worker_command(job, Path("result.json"))
    assert Job(**json.loads(command[-2])) == job
    assert command[-1] == "result.json"


# ------------------------------------------------- going on, budget, refusals


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    def killed(job: Job, *_: object) -> dict[str, Any]:
        if job.model == "din":
            raise KeyboardInterrupt
        return known(job)

    with pytest.raises(KeyboardInterrupt):
        run_kit(options(tmp_path), killed, lambda line: None)
    body = body_of(tmp_path)
    assert {name: m["status"] for name, m in body["models"].items()} == {"deepfm": "ok", "din": "not run"}
    assert body["finished"] is None
    ran: list[str] = []

    def second(job: Job, *_: object) -> dict[str, Any]:
        ran.append(job.model)
        return known(job)

    assert run_kit(options(tmp_path), second, lambda line: None) == 0
    assert ran == ["din"]
    again = body_of(tmp_path)
    assert again["started"] == body["started"]
    assert [m["status"] for m in again["models"].values()] == ["ok", "ok"]


def test_budget_leaves_models_out_and_a_second_run_takes_them(tmp_path: Path) -> None:
    def slow(job: Job, *_: object) -> dict[str, Any]:
        time.sleep(0.4)
        return known(job)

    tight = options(tmp_path, budget_s=0.5, least_s=0.3)
    assert run_kit(tight, slow, lambda line: None) == 0
    found = body_of(tmp_path)["models"]
    assert found["deepfm"]["status"] == "ok"
    assert found["din"]["status"] == "skipped"
    assert found["din"]["reason"].startswith("budget: ")
    assert found["din"]["dry_run"] is True
    assert run_kit(options(tmp_path), known, lambda line: None) == 0
    assert body_of(tmp_path)["models"]["din"]["status"] == "ok"


def test_budget_is_divided_over_what_is_left(tmp_path: Path) -> None:
    given: list[float] = []

    def watch(job: Job, folder: Path, seconds: float, log: Path) -> dict[str, Any]:
        given.append(seconds)
        return known(job)

    run_kit(options(tmp_path, budget_s=100.0), watch, lambda line: None)
    assert given[0] == pytest.approx(50, abs=2)
    assert given[1] == pytest.approx(100, abs=4)


def test_a_failed_model_is_a_row_and_exit_code_1(tmp_path: Path) -> None:
    def fails(job: Job, *_: object) -> dict[str, Any]:
        return {"status": "failed", "reason": "process ended with code 3: boom", "phases": {}, "trace": None}

    assert run_kit(options(tmp_path), fails, lambda line: None) == 1
    assert body_of(tmp_path)["models"]["din"]["reason"].endswith("boom")


def test_a_record_of_other_code_is_not_mixed_with_this(tmp_path: Path) -> None:
    run_kit(options(tmp_path), known, lambda line: None)
    body = body_of(tmp_path)
    body["environment"]["commit"] = "0" * 40
    records.save(body, tmp_path / "record.json")
    with pytest.raises(BadInput, match="its commit is '0000"):
        run_kit(options(tmp_path), known, lambda line: None)


def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownName, match="deepfm"):
        run_kit(options(tmp_path, models=("deepfn",)), known)
    if not torch.cuda.is_available():
        assert gpu_kit.main(["--out", str(tmp_path)]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()


def test_a_process_that_is_ended_leaves_what_it_reached(tmp_path: Path) -> None:
    result = tmp_path / "raw" / "deepfm.json"
    records.save({"status": "ok", "reason": "", "phases": {"train": {"n": 5}}, "trace": None}, result)
    found = gpu_kit._result(result, None, 20, tmp_path / "log")
    assert (found["status"], found["reason"]) == ("timeout", "not finished after 20 s")
    assert found["phases"] == {"train": {"n": 5}}


def test_with_nsys_a_model_has_two_processes_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []

    def run(command: list[str], seconds: float, log: Path) -> int:
        jobs.append(Job(**json.loads(command[-2])))
        records.save({"status": "ok", "reason": "", "phases": {}, "memory_free": 7e9, "trace": None}, Path(command[-1]))
        return 0

    def trace(job: Job, folder: Path, seconds: float, log: Path) -> dict[str, Any]:
        jobs.append(job)
        return {"tool": "nsys", "status": "ok"}

    monkeypatch.setattr(gpu_kit, "run_limited", run)
    monkeypatch.setattr(gpu_kit, "run_nsys", trace)
    monkeypatch.setattr(gpu_kit.shutil, "which", lambda name: "nsys")
    job = Job(model="din", device="cuda:0", dtype="tf32", gpu=None, seconds=40.0, dry_run=False, parent=1, out="x")
    found = gpu_kit.run_process(job, tmp_path, 40.0, tmp_path / "log")
    assert found["trace"] == {"tool": "nsys", "status": "ok"}
    assert [(j.part, j.seconds, j.memory) for j in jobs] == [("timed", 20.0, None), ("all", 40.0, 7e9)]
    monkeypatch.setattr(gpu_kit.shutil, "which", lambda name: None)
    assert gpu_kit.run_process(job, tmp_path, 40.0, tmp_path / "log")["trace"] is None
    assert (jobs[-1].part, jobs[-1].seconds) == ("all", 40.0)


def test_a_limit_ends_the_whole_group(tmp_path: Path) -> None:
    start = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert run_limited([sys.executable, "-c", child], 1.0, tmp_path / "log") is None
    assert time.monotonic() - start < 30
    assert run_limited([sys.executable, "-c", "print('hi'); raise SystemExit(3)"], 60, tmp_path / "log") == 3
    assert (tmp_path / "log").read_text() == "hi\n"


# --------------------------------------------------------------------- cases


def test_the_choice_follows_the_memory() -> None:
    spec = registry.model_spec("dcn_v2")
    roomy, tight = cases.choose(spec, 40e9), cases.choose(spec, 0.3e9)
    assert roomy.batch == max(cases.BATCHES)
    assert roomy.memory <= 0.8 * 40e9
    assert roomy.flops["train"] == pytest.approx(3 * roomy.flops["infer"], rel=0.05)
    assert tight.batch < roomy.batch
    with pytest.raises(cases.NothingFits, match="out of memory: the smallest candidate needs"):
        cases.choose(spec, 1e6)


def test_dtype_of_products() -> None:
    found = {name: cases.kit_dtype(gpu) for name, gpu in catalogue().items()}
    assert (found["A100-40 SXM"], found["V100 SXM2"], found["RTX 5070"]) == ("tf32", "fp32", "fp32")
    assert cases.kit_dtype(None, (7, 5)) == "fp32"
    assert cases.kit_dtype(None, (9, 0)) == cases.kit_dtype(catalogue()["B200 SXM"], (10, 0)) == "tf32"


# -------------------------------------------------------------------- worker


def test_a_model_without_published_size_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise cases.NothingFits("field_missing: the model has no published preset")

    monkeypatch.setattr("ctrbench.bench.kit.worker._case", nothing)
    kept: list[dict[str, Any]] = []
    job = Job(model="din", device="cpu", dtype="fp32", gpu=None, seconds=1.0, dry_run=True, parent=1, out="x")
    run_model(registry.model_spec("din"), job, kept.append)
    assert (kept[-1]["status"], kept[-1]["reason"]) == ("skipped", "field_missing: the model has no published preset")


def test_failures_have_their_kind() -> None:
    assert failure(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")) == (
        "oom", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
    )  # fmt: skip
    assert failure(ValueError("x")) == ("failed", "ValueError: x")


# --------------------------------------------------------------- pytest step

# A file for the kit to run, no test of ours: that its skip is reported with the reason is what the test below asserts.
SAMPLE = """
import pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
@pytest.mark.skip(reason="no CUDA device here")
def test_absent(): pass
"""


def test_gpu_tests_are_run_and_nothing_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    found = run_gpu_tests([tmp_path / "test_sample.py"], 300, tmp_path / "logs")
    assert (found["status"], found["reason"]) == ("failed", "1 failed, exit code 1")
    assert found["passed"] == ["test_sample::test_good"]
    assert "one is not two" in found["failed"]["test_sample::test_bad"]
    assert found["skipped"] == {"test_sample::test_absent": "no CUDA device here"}
    assert read_junit(tmp_path / "logs" / "pytest.xml")["passed"] == found["passed"]


def test_gpu_tests_out_of_time_or_absent(tmp_path: Path) -> None:
    assert run_gpu_tests([], 1, tmp_path)["reason"].startswith("field_missing: no checkout")
    (tmp_path / "test_slow.py").write_text("import time\ntime.sleep(60)\n")
    assert run_gpu_tests([tmp_path / "test_slow.py"], 0.5, tmp_path)["status"] == "timeout"


def test_files_with_gpu_tests_are_found() -> None:
    assert "test_gpu_paths.py" in [f.name for f in gpu_test_files()]
    assert gpu_test_files(Path("nowhere")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "ctrbench-gpu', "not whole JSON"),
        ("[]", "no record of the GPU kit"),
        ('{"schema": "other"}', "no record of the GPU kit"),
        ('{"schema": "ctrbench-gpu-kit", "schema_version": 9}', "schema_version 9"),
        ('{"schema": "ctrbench-gpu-kit", "schema_version": 1}', "key 'started' is missing"),
    ],
)
def test_a_broken_record_is_named_with_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        records.load(tmp_path / "r.json")
    assert str(tmp_path / "r.json") in str(error.value)
    assert "make gpu-kit" in str(error.value)
    with pytest.raises(BadInput, match="cannot be read"):
        records.load(tmp_path / "absent.json")
