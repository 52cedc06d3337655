"""`ctrbench profile` with fake profilers on PATH: command lines, what is ingested, and how failures are told."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from ctrbench.bench import profile
from ctrbench.bench.cli import main
from ctrbench.bench.trace import commands, inject
from ctrbench.reports import records

SETTINGS = ["model=deepfm", "run.threads=1"]
COUNTERS = '"ID","Kernel Name","gpu__time_duration.sum"\n"","","nsecond"\n"0","synthetic","5"\n"1","synthetic","6"\n'

FAKE_NSYS = """
import json, os, sqlite3, sys
argv = sys.argv[1:]
out = argv[argv.index("-o") + 1]
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(["nsys", *argv]) + "\\n")
print("fake nsys", argv[0])
if os.environ.get("FAKE_FAILS") == argv[0]:
    print("no space left"); sys.exit(4)
if argv[0] == "profile":
    open(out + ".nsys-rep", "w").write("synthetic")
elif os.environ.get("FAKE_FAILS") != "silently":
    c = sqlite3.connect(out)
    c.executescript('''CREATE TABLE StringIds (id, value); CREATE TABLE NVTX_EVENTS (start, "end", eventType, category,
        color, text, globalTid, endGlobalTid, textId, domainId, uint64Value, int64Value, doubleValue, uint32Value,
        int32Value, floatValue);''')
    for type_, start, end, text, step in [(75, 0, None, "ctrbench", None), (60, 10, 110, "iter", 3),
                                          (60, 10, 109, "stage:dense", 3)]:
        c.execute("INSERT INTO NVTX_EVENTS VALUES (?,?,?,NULL,NULL,?,1,1,NULL,1,NULL,?,NULL,NULL,NULL,NULL)",
                  (start, end, type_, text, step))
    c.executescript('''CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start, "end", deviceId, streamId, correlationId,
        globalPid, demangledName, shortName); CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start, "end", globalTid,
        correlationId, nameId); CREATE TABLE TARGET_INFO_GPU (id, name);
        INSERT INTO StringIds VALUES (1, 'gemm_kernel'), (2, 'cudaLaunchKernel_v7000');
        INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (60, 90, 0, 7, 1, 0, 1, 1);
        INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (20, 30, 1, 1, 2);
        INSERT INTO TARGET_INFO_GPU VALUES (0, 'Tesla T4')''')
    c.commit()
"""
FAKE_NCU = """
import json, os, sys
argv = sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(["ncu", *argv]) + "\\n")
said = os.environ.get("FAKE_SAYS", "")
if said:
    print(said); sys.exit(1)
stage = argv[argv.index("--nvtx-include") + 1].rpartition(":")[2]
text = os.environ["FAKE_CSV"] if stage in ("embedding", "backward") else "==WARNING== No kernels were profiled.\\n"
open(argv[argv.index("--log-file") + 1], "w").write(text)
"""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One place for the generated data of all tests of this file."""
    before = os.environ.get("CTRBENCH_CACHE")
    os.environ["CTRBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("CTRBENCH_CACHE")
    if before is not None:
        os.environ["CTRBENCH_CACHE"] = before


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH with the fakes alone; the file that their command lines go to."""
    for name, body in (("nsys", FAKE_NSYS), ("ncu", FAKE_NCU)):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f"#!{sys.executable}\n{body}")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_CSV", COUNTERS)
    return tmp_path / "log"


def run(out: Path, *options: str) -> int:
    return main(["profile", *SETTINGS, "--out", str(out), "--steps", "2", *options])


def lines(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def folder_of(out: Path) -> Path:
    (found,) = (out / "records").iterdir()
    return found


def test_nsys_records_exports_and_is_read(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", "--tool", "nsys") == 0
    folder = folder_of(tmp_path / "out")
    record, export = lines(log)
    inner = record[record.index("-m") :]
    assert inner == ["-m", "ctrbench.bench.cli", "profile", *SETTINGS, "--tool", "none", "--steps", "2"]
    assert record[:2] == ["nsys", "profile"]
    for flag in ("--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--capture-range=cudaProfilerApi"):
        assert flag in record
    assert export[-3:] == ["-o", f"{folder}/nsys.sqlite", f"{folder}/nsys.nsys-rep"]
    assert "--lazy=false" in export
    said = capsys.readouterr().out
    assert str(folder / "nsys.sqlite") in said.replace("\n", "")
    assert "named stages explain 99.0%" in said.replace("\n", " ")
    table, bodies = records.load(tmp_path / "out")
    share = table[table["scope"] == "stage:dense"].iloc[0]
    assert (share["metric"], share["value"], share["origin"]) == ("split_host", pytest.approx(0.99), "imported")
    assert bodies[folder.name]["extra"]["steps"] == 1
    assert set(bodies[folder.name]["extra"]["files"]) == {"nsys.sqlite"}
    facts, counted = (bodies[folder.name]["extra"][name] for name in ("kernels", "counted"))
    assert facts["device"] == "Tesla T4"
    assert {r["name"] for r in facts["roofs"]} >= {"T4 DRAM", "T4 fp16 dense peak"}
    # what kernels do not tell is counted by running one step of the same configuration
    assert counted["withheld"] == ""
    assert sum(b["flops"] for b in counted["by_block"]) > 1e6


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("profile", "nsys profile ended with exit code 4: no space left"),
        ("export", "nsys export ended with exit code 4: no space left"),
        ("silently", "nsys wrote no nsys.sqlite"),
    ],
)
def test_nsys_that_fails(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("FAKE_FAILS", fails)
    assert run(tmp_path / "out", "--tool", "nsys") == 1
    assert message in capsys.readouterr().out.replace("\n", " ")
    row = records.load(tmp_path / "out")[0].iloc[0]
    assert (row["status"], row["origin"]) == ("skipped", "abstained")
    assert message in row["reason"]


@pytest.mark.parametrize(("tool", "count"), [("nsys", 2), ("ncu", len(commands.GPU_STAGES))])
def test_a_missing_tool_leaves_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: str, count: int
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(tmp_path / "out", "--tool", tool, "--arch", "sm_80", "--every", "2", "--operators") == 1
    folder = folder_of(tmp_path / "out")
    note, *written = (folder / profile.COMMANDS).read_text().splitlines()
    assert note.startswith("# ")
    assert [shlex.split(line)[0] for line in written] == [tool] * count
    inner = " ".join(["ctrbench profile", *SETTINGS, "--tool none --steps 2 --every 2 --operators"])
    assert inner in written[0]
    said = capsys.readouterr().out
    assert "nothing was recorded" in said
    assert all(line in said for line in written), "the exact commands are printed"
    row = records.load(tmp_path / "out")[0].iloc[0]
    assert row["reason"].startswith(f"no_tool: {tool} is not on PATH")


def test_ncu_runs_once_a_stage(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", "--tool", "ncu", "--arch", "8.0") == 0
    made = lines(log)
    assert [m[m.index("--nvtx-include") + 1] for m in made] == [f"ctrbench@stage:{s}" for s in commands.GPU_STAGES]
    for option, value in (("--clock-control", "none"), ("--print-units", "base"), ("--page", "raw")):
        assert all(m[m.index(option) + 1] == value for m in made)
    metrics = made[0][made[0].index("--metrics") + 1].split(",")
    assert {"dram__bytes_read.sum", "sm__inst_executed_pipe_tensor_op_dmma.sum", "lts__t_sectors.sum"} <= set(metrics)
    extra = records.load(tmp_path / "out")[1][folder_of(tmp_path / "out").name]["extra"]
    assert set(extra["files"]) == {"ncu-embedding.csv", "ncu-backward.csv"}, "stages without kernels leave no file"
    assert capsys.readouterr().out.count("profiled launches: 2") == 2


def test_ncu_without_permission_is_explained(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SAYS", "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
    assert run(tmp_path / "out", "--tool", "ncu", "--arch", "sm_90") == 1
    assert len(lines(log)) == 1, "the other stages would fail in the same way"
    said = capsys.readouterr().out.replace("\n", " ")
    assert "no_permission" in said
    assert "--cap-add=SYS_ADMIN" in said
    assert records.load(tmp_path / "out")[0].iloc[0]["reason"].startswith("no_permission: ")


def test_ncu_that_saw_no_kernel(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_CSV", "")
    assert run(tmp_path / "out", "--tool", "ncu", "--arch", "sm_90") == 1
    assert "no_kernel_table: ncu saw no kernel" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arch", "has", "has_not"),
    [
        ("sm_75", "sm__inst_executed_pipe_tensor_op_imma.sum", "sm__inst_executed_pipe_tensor_op_dmma.sum"),
        ("86", "dram__bytes_read.sum", "dram__bytes_op_read.sum"),
        ("9.0", "sm__ops_path_tensor_src_bf16_dst_fp32.sum", "sm__inst_executed_pipe_tensor_op_hmma.sum"),
        ("sm_120", "dram__bytes_op_write.sum", "dram__bytes_write.sum"),
    ],
)
def test_metrics_of_an_architecture(arch: str, has: str, has_not: str) -> None:
    names = commands.metrics(arch)
    assert has in names
    assert has_not not in names
    assert len(set(names)) == len(names)
    assert {f"smsp__sass_thread_inst_executed_op_{op}_pred_on.sum" for op in ("fadd", "hfma", "dmul")} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=deepfm", "--tool", "ncu", "--arch", "sm_61"], "no metrics are known for sm_61"),
        (["model=deepfm", "--tool", "ncu"], "give it, e.g. --arch sm_90"),
        (["model=deepfm,dcn_v2", "--tool", "nsys"], "these settings make 4"),
        (["model=din", "data=criteo_synthetic", "data.options.rows=6000", "--tool", "nsys"], "make 0 (none): din: "),
        (["model=deepfn", "--tool", "nsys"], "did you mean 'deepfm'"),
        (["run.threads=1", "--tool", "nsys"], "profile needs model=NAME"),
        (["model=deepfm", "--tool", "nsys", "--steps", "0"], "must be at least 1"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("records/*/record.json"))


def test_switched_off_ranges_are_no_recording(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CTRBENCH_NVTX", "0")
    assert main(["profile", "model=deepfm", "--tool", "nvtx"]) == 2
    assert "CTRBENCH_NVTX=0 switches the ranges off" in capsys.readouterr().err


def test_the_recorder_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert run(tmp_path / "out", "--tool", "nvtx") == 1
    assert "no_tool: no C compiler (no-such-compiler): install gcc" in capsys.readouterr().out.replace("\n", " ")


def test_steps_that_fail_record_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inject, "record", lambda command, out: 1)
    assert run(tmp_path / "out", "--tool", "nvtx") == 1
    assert "failed: the steps ended with exit code 1" in capsys.readouterr().out.replace("\n", " ")
