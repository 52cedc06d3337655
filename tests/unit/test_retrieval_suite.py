"""A tiny retrieval suite from command line to report: rows, floors, resume, failures; and what the section says."""

from __future__ import annotations

import runpy
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.plan import Entry
from ctrbench.bench.specs import Ready, retrieve_specs
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.prepare import prepare
from ctrbench.reports import records, retrieval
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context, Section
from ctrbench.reports.measures import make
from ctrbench.reports.names import Names
from ctrbench.reports.tables import plain_text

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
SMALL = ["suite=retrieval", "data=movielens_1m", "run.seeds=2", "run.epochs=1", "run.history_length=8", "run.batch=4",
         "data.options.history=8", "lum.sid_codes=4", "tiger.sid_codes=4"]  # fmt: skip


def test_from_command_line_to_report_and_on_after_a_kill(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = _tiny["movielens_folder"](tmp_path / "raw", _tiny["random_events"](0, 500, seconds=5000))
    command = ["run", *SMALL, f"data.path={raw}", f"run.out={tmp_path / 'out'}"]
    assert main(command) == 0
    assert "movielens_1m, retrieval" in capfd.readouterr().out
    folder = (tmp_path / "out" / "latest").resolve()
    table, bodies = records.load(folder)
    runs = {k: b for k, b in bodies.items() if b["spec"].get("kind") == "retrieve"}
    found = sorted(
        (b["spec"]["model"], b["spec"]["config"].get("target", "item"), b["spec"]["seed"]) for b in runs.values()
    )
    assert found == [(*who, seed) for who in (("hstu", "item"), ("lum", "item"), ("lum", "sid"), ("tiger", "item"))
                     for seed in (0, 1)]  # fmt: skip
    told = {b["spec"]["model"]: b["extra"]["semantic_ids"] for b in runs.values()}
    assert told["hstu"] is None
    assert told["tiger"]["content"].startswith("genre (")
    assert told["tiger"]["unresolved"] == 0
    mine = table[(table["preset"] == "retrieval") & (table["run"] == "summary")]
    for model, conditioned in (("hstu", False), ("lum", True)):
        own = mine[mine["model"] == model]
        floors = {"popularity", "item_knn"} | (
            {"popularity_in_condition", "item_knn_in_condition"} if conditioned else set()
        )
        assert set(own[own["metric"] == "recall_at_k"]["scope"]) == {"model", *floors}
        gains = own[own["metric"] == "recall_gain"]
        assert set(gains["scope"]) == {f"vs:{f}" for f in floors}
        assert (own["n"] == 2).all()
        assert (gains["origin"] == "derived").all()
        assert (own[own["metric"] != "recall_gain"]["origin"] == "measured").all()
    for key, body in runs.items():
        said = (folder / "records" / key / "progress.txt").read_text().splitlines()
        assert len(said) == len(body["extra"]["epochs"]) == 1
        assert body["extra"]["protocol"] == "leave-last-out over the whole data set"
    lost = next(iter(runs))
    (folder / "records" / lost / "record.json").unlink()
    kept = {k: (folder / "records" / k / "record.json").stat().st_mtime_ns for k in runs if k != lost}
    capfd.readouterr()
    assert main([*command, "run.resume=true"]) == 0
    assert "resuming: 7 of 8 runs" in capfd.readouterr().out
    assert {k: (folder / "records" / k / "record.json").stat().st_mtime_ns for k in kept} == kept
    assert records.load(folder)[1].keys() == bodies.keys()
    out = tmp_path / "page.md"
    assert main(["report", str(folder), "--section", "retrieval", "-o", str(out)]) == 0
    text = out.read_text()
    assert "| HSTU · public |" in text
    assert "item-kNN in the asked condition" in text
    assert "Codes in use, by level" in text


def test_a_failure_is_a_row_of_every_measure_owed(tmp_path: Path) -> None:
    raw = _tiny["movielens_folder"](tmp_path / "raw", _tiny["random_events"](0, 500, seconds=5000))
    command = ["run", *SMALL, f"data.path={raw}", f"run.out={tmp_path / 'out'}", "model=hstu", "run.lr=2e9"]
    assert main(command) == 1
    table, _ = records.load((tmp_path / "out" / "latest").resolve())
    lost = table[table["status"] == "failed"]
    assert sorted(lost["metric"]) == ["ndcg_at_k", "ndcg_at_k", "recall_at_k", "recall_at_k"]
    assert set(lost["seed"]) == {0, 1}
    assert lost["reason"].str.contains("nan: lower run.lr").all()


def test_what_is_asked_for_and_what_is_refused(tmp_path: Path) -> None:
    plan = build_plan([*SMALL, "run.lr=0.5", "model=hstu"])
    (job,) = plan.jobs
    assert (job.models, job.floors, [e.model for e in job.retrievers]) == ((), (), ["hstu"])
    raw = _tiny["movielens_folder"](tmp_path / "raw", _tiny["random_events"](0, 500, seconds=5000))
    prepared = prepare("movielens_1m", raw, tmp_path / "p", history=8)
    specs, absent = retrieve_specs(plan, Ready(job, prepared, prepared.path))
    assert absent == []
    assert [s.seed for s in specs] == [0, 1]
    # the command line wins over the entry; what decides nothing is not in the key
    assert {(s.lr, s.epochs, s.batch, s.train_rows, s.preset) for s in specs} == {(0.5, 1, 4, 0, "retrieval")}
    with pytest.raises(UnknownName, match="din: it does not retrieve"):
        build_plan(["suite=retrieval", "model=din"])
    for entry, said in (
        (Entry(model="hstu", options={"flavour": "sweet"}), r"hstu\.flavour=sweet"),
        (Entry(model="din"), "din does not retrieve"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            retrieve_specs(plan, Ready(replace(job, retrievers=(entry,)), prepared, prepared.path))
    assert [len(j.retrievers) for j in build_plan(["suite=quick"]).jobs] == [0, 0]


BASE = {
    "run": "summary", "preset": "retrieval", "family": "transformer", "data": "movielens_1m", "split": "per_user",
    "track": "sequence", "device": "cpu", "dtype": "float32", "threads": 1, "batch": 32,
}  # fmt: skip


def section(gain: tuple[float, float]) -> Section:
    """SYNTHETIC rows of a conditioned model and of one that is not."""
    rows, bodies = [], {}
    for model, conditioned in (("lum", True), ("hstu", False)):
        base = BASE | {"model": model}
        floors = retrieval.FLOORS if conditioned else ("popularity", "item_knn")
        for scope, value in (("model", 0.3), *((f, 0.1) for f in floors)):
            for metric in ("recall_at_k", "ndcg_at_k"):
                rows.append(make(base, metric, value, "measured", phase="train", scope=scope, n=3, ci_low=value - 0.01,
                                 ci_high=value + 0.01))  # fmt: skip
        rows += [make(base, "recall_gain", 0.2, "derived", phase="train", scope=f"vs:{f}", ci_low=gain[0],
                      ci_high=gain[1]) for f in floors]  # fmt: skip
        spec = {"kind": "retrieve", "model": model, "data": "movielens_1m", "split": "per_user", "history_length": 64}
        extra = {"protocol": "leave-last-out", "users": 6040, "items": 3658, "chosen": 4}
        bodies[model] = {"spec": spec, "extra": extra}
    frame = tidy(pd.DataFrame([asdict(r) for r in rows]))
    camps = {"lum": "transformer", "hstu": "transformer"}
    found = retrieval.retrieval(
        Context(frame, bodies, Names({"lum": "LUM", "hstu": "HSTU"}, camps), (("sequence", "movielens_1m"),))
    )
    assert found is not None
    return found


def test_the_section_holds_each_model_against_floors_that_know_as_much() -> None:
    found = section((0.15, 0.25))
    table, gains = (e.table.map(plain_text) for e in found.exhibits)
    assert table["Recall@10"].tolist() == ["0.3000 [0.2900, 0.3100]"] * 2 + ["0.1000 [0.0900, 0.1100]"] * 4
    published = dict(zip(table["Model"], table["Published Recall@10"], strict=True))
    assert (published["HSTU"], published["LUM"]) == ("0.3097", "—")
    assert len(gains) == 6
    assert set(gains["Verdict"]) == {"better"}
    assert "LUM told the condition finds 0.3000 [0.2900, 0.3100] of last events among 10, 3.0 times" in found.sentence
    assert "item-kNN in the asked condition (0.1000) it is better" in found.sentence
    assert "HSTU finds" in found.sentence
    assert "events of the same second" in found.caveat
    assert set(section((-0.1, 0.25)).exhibits[1].table["Verdict"]) == {"tied"}


def test_retrievers_are_in_no_table_of_rankers() -> None:
    frame = tidy(pd.DataFrame([asdict(make(BASE | {"model": "lum"}, "recall_at_k", 0.3, "measured", phase="train",
                                           scope="model"))]))  # fmt: skip
    assert not frame["trained"].any()
