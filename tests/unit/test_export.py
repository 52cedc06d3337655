"""`ctrbench export`: the document and its schema, the table, the summary, and a step against its recording."""

import json

import pandas as pd
import pytest
import torch
from tests.data.synthetic_kernels import STEP_NS, synthetic_kernels
from tests.data.synthetic_report import synthetic_records

from ctrbench.bench.cli import main
from ctrbench.bench.step import TrainStep
from ctrbench.bench.trace.kernel_rows import recorded_kernels
from ctrbench.bench.trace.kineto import read_kineto
from ctrbench.bench.trace.split import traced_steps
from ctrbench.bench.trace.time_split import split_of
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.legacy_baselines import deepfm
from ctrbench.reports import export, kernel_rows, perfetto, records
from ctrbench.reports.measures import make
from ctrbench.reports.records import COLUMNS, RunRecord


def problems(value, wanted, root, at="$"):
    """What of a value the schema forbids, for the words that our schema uses."""
    if "$ref" in wanted:
        wanted = root["$defs"][wanted["$ref"].rsplit("/", 1)[-1]]
    if "const" in wanted:
        return [] if value == wanted["const"] else [f"{at}: {value!r} is not {wanted['const']!r}"]
    if "enum" in wanted:
        return [] if value in wanted["enum"] else [f"{at}: {value!r} is none of {wanted['enum']}"]
    names = [wanted["type"]] if isinstance(wanted["type"], str) else wanted["type"]
    kinds = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "null": type(None), "array": list,
             "object": dict}  # fmt: skip
    if not any(isinstance(value, kinds[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names):
        return [f"{at}: {value!r} is not {' or '.join(names)}"]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in problems(v, wanted["items"], root, f"{at}[{i}]")]
    if not isinstance(value, dict) or "properties" not in wanted:
        return []
    found = [f"{at}: lacks {name}" for name in wanted["required"] if name not in value]
    found += [f"{at}: {name} is unknown" for name in value if name not in wanted["properties"]]
    return found + [p for n, v in value.items() if n in wanted["properties"]
                    for p in problems(v, wanted["properties"][n], root, f"{at}.{n}")]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with one timed process, one without value and a body that holds what JSON has not."""
    folder = tmp_path_factory.mktemp("run")
    base = {"run": "r", "model": "deepfm", "family": "legacy", "data": "criteo", "track": "tabular", "phase": "train"}
    rows = (
        make(base, "step_time", 0.0125, "measured", n=3, p10=0.012, ci_low=0.012, ci_high=0.013, threads=2, batch=256),
        make(base, "throughput", 20480.0, "measured"),
        records.Measurement(**base, metric="mfu_cpu", value=None, unit="ratio", origin="abstained", better="up",
                            status="skipped", reason="coverage_low"),
    )  # fmt: skip
    extra = {"family": "legacy", "samples": {"step": [0.0125, float("nan")]}, "bound": float("inf")}
    spec = {"kind": "time", "model": "deepfm", "level": "smoke"}
    records.save(RunRecord(key="a-b", spec=spec, rows=rows, environment={"cpu": "x"}, extra=extra), folder)
    return folder


def test_schema_file_is_that_of_the_dataclasses():
    assert json.loads(export.SCHEMA_FILE.read_text()) == export.schema(), (
        "python -m ctrbench.reports.export > reports/export_schema.json; a field that went or means something else "
        "makes EXPORT_VERSION the next number"
    )


def test_document_follows_its_schema_and_holds_every_row(run, tmp_path):
    assert main(["export", str(run), "--format", "json", "-o", str(tmp_path / "o.json")]) == 0
    body = json.loads((tmp_path / "o.json").read_text(), parse_constant=pytest.fail)
    wanted = json.loads(export.SCHEMA_FILE.read_text())
    assert problems(body, wanted, wanted) == []
    by_metric = {m["metric"]: m for m in body["measurements"]}
    assert list(by_metric) == ["step_time", "throughput", "mfu_cpu"]
    assert by_metric["step_time"]["value"] == 0.0125
    assert by_metric["step_time"]["batch"] == 256
    assert by_metric["throughput"]["batch"] is None
    assert by_metric["mfu_cpu"]["value"] is None
    (record,) = body["records"]
    assert record["key"] == "a-b"
    assert record["extra"] == {"family": "legacy", "samples": {"step": [0.0125, None]}, "bound": None}


def test_a_suite_follows_the_schema():
    frame, bodies = synthetic_records()
    body, wanted = export.document(frame, bodies), export.schema()
    assert problems(body, wanted, wanted) == []
    assert len(body["measurements"]) == len(frame)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda b: b["measurements"][0].update(origin="guessed"), "origin: 'guessed' is none of"),
    (lambda b: b["measurements"][0].pop("unit"), "lacks unit"),
    (lambda b: b["measurements"][0].update(value="12"), "value: '12' is not number or null"),
    (lambda b: b["records"][0].update(notes=1), "notes is unknown"),
    (lambda b: b.update(schema_version=2), "2 is not 1"),
])  # fmt: skip
def test_schema_forbids(run, spoil, said):
    body, wanted = export.document(*records.load(run)), export.schema()
    spoil(body)
    assert said in "; ".join(problems(body, wanted, wanted))


def test_parquet_is_the_tidy_table(run, tmp_path):
    assert main(["export", str(run), "--format", "parquet", "-o", str(tmp_path / "o.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "o.parquet")
    assert tuple(found.columns) == COLUMNS
    pd.testing.assert_frame_equal(records.typed(found), records.load(run)[0])


def test_markdown_is_the_summary_alone(run, tmp_path):
    assert main(["export", str(run), "--format", "markdown", "-o", str(tmp_path / "o.md")]) == 0
    text = (tmp_path / "o.md").read_text()
    assert "The median training step takes 12.5 ms (DeepFM)" in text
    assert "| DeepFM | legacy |" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Summary"]


# ----------------------------------------------------------------------- a step


def tracks(path):
    """(process, track) -> its slices, from a trace file."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"] if e["name"] == "thread_name" else 0): e["args"]["name"] for e in events
             if e["name"] in ("process_name", "thread_name") and e["ph"] == "M"}  # fmt: skip
    out = {}
    for e in events:
        if e["ph"] == "X":
            out.setdefault((names[e["pid"], 0], names[e["pid"], e["tid"]]), []).append(e)
    return out


def ends(e):
    """(start, end), ns, exact."""
    return round(e["ts"] * 1000), round(e["ts"] * 1000) + round(e["dur"] * 1000)


def parents(slices):
    """Slice -> the names around it, outermost first; fails where two slices of a track cross."""
    stack, out = [], []
    for e in slices:
        start, end = ends(e)
        while stack and ends(stack[-1])[1] <= start:
            stack.pop()
        assert not stack or end <= ends(stack[-1])[1], (e, stack[-1])
        out.append((e, [s["name"] for s in stack]))
        stack.append(e)
    return out


@pytest.fixture(scope="module")
def recording(tmp_path_factory, tabular_schema):
    """A real recording of a few small steps of DeepFM."""
    torch.manual_seed(0)
    model = deepfm.SPEC.build(deepfm.SPEC.config(dim=4, mlp=(8,)), tabular_schema)
    batches = [synthetic_batch(tabular_schema, 16, seed=s) for s in range(6)]
    path = tmp_path_factory.mktemp("trace") / "trace.json.gz"
    traced_steps(model, batches, lambda ranges: TrainStep(model, ranges=ranges), steps=3, warmup=2, out=path)
    return path


def test_a_step_has_the_times_of_its_recording(recording, tmp_path):
    out = tmp_path / "step.json"
    assert main(["export", str(recording), "--format", "perfetto", "-o", str(out)]) == 0
    seen = read_kineto(recording)
    facts = recorded_kernels({}, seen, split_of(seen), "imported").facts
    steps = [r for r in seen.our_events if r.name == "ctrbench/iter"]
    (step,) = [s for s in steps if s.end - s.start == facts["step_ns"]]
    found = tracks(out)
    slices = [e for part in found.values() for e in part]
    assert {p for p, _ in found} == {"trace.json.gz"}

    ranges = {(r.name.rsplit("/", 1)[-1], r.start - step.start, r.end - step.start) for r in seen.our_events
              if step.start <= r.start and r.end <= step.end}  # fmt: skip
    assert {(e["name"], *ends(e)) for e in slices if e["cat"] == "range"} == ranges
    assert len(ranges) > 12
    operators = {(o.name, o.start - step.start, o.end - step.start) for o in seen.events(seen.ops)}
    drawn = [(e["name"], *ends(e)) for e in slices if e["cat"] == "operator"]
    assert set(drawn) <= operators
    assert len(drawn) > 40


def test_slices_lie_in_one_another_as_the_names_say(recording, tmp_path):
    out = tmp_path / "step.json"
    assert main(["export", str(recording), "--format", "perfetto", "-o", str(out)]) == 0
    found = tracks(out)
    main_track = next(part for part in found.values() if part[0]["name"] == "iter")
    inside = [(e, around) for part in found.values() for e, around in parents(part)]
    for e, around in inside:
        if e["cat"] == "range" and e["name"].startswith("block:"):
            assert around == ["iter", f"stage:{e['args']['stage']}"]
        elif e["cat"] == "range" and e["name"].startswith("stage:"):
            assert around == ["iter"]
    held = [(e, around) for e, around in parents(main_track) if e["cat"] == "operator"]
    for e, around in held:
        stage = next(n for n in reversed(around) if n.startswith("stage:"))
        assert stage == f"stage:{e['args']['stage']}"
        blocks = [n for n in around if n.startswith("block:")]
        assert blocks[-1:] == [f"block:{b}" for b in [e["args"].get("block")] if b]
    assert len(held) > 0.8 * sum(e["cat"] == "operator" for e, _ in inside)


def test_an_operator_across_a_range_keeps_its_times_on_a_track_of_its_own():
    row = {"view": "step", "device": "cpu", "origin": "measured", "lane": "thread 1", "stage": "backward", "step": 0}
    events = [
        {"kind": "range", "block": "", "name": "stage:backward", "start_ns": 0, "duration_ns": 100, **row},
        {"kind": "range", "block": "fm", "name": "stage:backward/block:fm", "start_ns": 20, "duration_ns": 50, **row},
        {"kind": "operator", "block": "fm", "name": "opens before", "start_ns": 10, "duration_ns": 30, **row},
        {"kind": "operator", "block": "fm", "name": "in it", "start_ns": 25, "duration_ns": 10, **row},
        {"kind": "operator", "block": "fm", "name": "as long", "start_ns": 20, "duration_ns": 50, **row},
    ]
    frame = kernel_rows.frame(pd.DataFrame(events))
    found = perfetto._process(1, "x", frame, 120)
    by_track = {}
    for e in found:
        if e["ph"] == "X":
            by_track.setdefault(e["tid"], []).append((e["name"], *ends(e)))
    assert by_track == {
        1: [("iter", 0, 120), ("stage:backward", 0, 100), ("block:fm", 20, 70), ("as long", 20, 70), ("in it", 25, 35)],
        2: [("opens before", 10, 40)],
    }


def save_trace(folder, key, withheld=None, **how):
    rows, body = synthetic_kernels("criteo", "deepfm", key=key, **how)
    if withheld:
        body["extra"]["kernels"]["withheld"] = {"timeline": withheld}
    base = {"run": key, "model": "deepfm", "phase": "train"}
    row = make(base, "launches_recorded", 5.0, "measured")
    records.save(RunRecord(key=key, spec=body["spec"], rows=(row,), extra=body["extra"]), folder)
    kernel_rows.save(rows, folder / "records" / key)


def test_every_traced_process_of_a_run_is_one_of_the_trace(tmp_path):
    save_trace(tmp_path, "one")
    save_trace(tmp_path, "two", device="H100")
    out = tmp_path / "step.json"
    assert main(["export", str(tmp_path), "--format", "perfetto", "-o", str(out)]) == 0
    found = tracks(out)
    assert set(found) == {("one", "thread 1"), ("two", "thread 1"), ("two", "device 0, stream 7")}
    kernels = found["two", "device 0, stream 7"]
    assert {e["cat"] for e in kernels} == {"kernel"}
    assert {e["args"]["device"] for e in kernels} == {"H100"}
    whole = [e for part in found.values() for e in part if e["name"] == "iter"]
    assert [ends(e) for e in whole] == [(0, STEP_NS)] * 2
    for part in found.values():
        parents(part)


@pytest.mark.parametrize("form", ["json", "parquet", "markdown", "perfetto"])
def test_nothing_to_read(form, tmp_path, capsys):
    assert main(["export", str(tmp_path / "no"), "--format", form, "-o", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "no") in said
    assert "run `ctrbench" in said
    assert not (tmp_path / "o").exists()


def test_a_run_without_a_trace_is_refused_with_the_reason(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "perfetto", "-o", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert str(run) in said
    assert "no run was traced" in said
    assert "ctrbench profile" in said
    save_trace(tmp_path / "w", "three", withheld="unlinked_share: 52 % of the launches")
    assert main(["export", str(tmp_path / "w"), "--format", "perfetto", "-o", str(tmp_path / "o")]) == 2
    assert "three: unlinked_share: 52 %" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_wrong_files_are_named(run, tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    assert main(["export", str(tmp_path / "x.json"), "--format", "json", "-o", str(tmp_path / "o")]) == 2
    assert "x.json: no file of pytest-benchmark; write it with --benchmark-json" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "json", "-o", str(tmp_path)]) == 2
    assert f"{tmp_path}: " in capsys.readouterr().err
