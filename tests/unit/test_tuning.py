"""Equal tuning: same draws for every model, chosen on validation rows, ties to the default."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.plan import Entry
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.suite import run_suite
from ctrbench.bench.summary import Run
from ctrbench.bench.tuning import (
    TRIALS,
    Draw,
    advice,
    best_trial,
    changed,
    draws,
    group_label,
    only_tuning,
    trial_entry,
)
from ctrbench.reports import records

RUN = build_plan(["suite=ci"]).run
CRITEO = ("data=criteo_synthetic",)
DRAW = Draw(lr=2e-3, table_lr=0.03, dropout=0.1, l2=1e-6, table_optimizer="adagrad", table_init_std=0.1)


def test_draws_are_the_same_each_time_and_begin_with_the_default() -> None:
    points = draws(8)
    assert len(points) == 8
    assert points[0] is None
    assert points == draws(8)
    assert draws(4) == points[:4]  # more trials extend, they do not redraw
    assert len({p.lr for p in points if p}) == 7


def test_every_model_gets_the_draw_and_only_what_it_can_take() -> None:
    din = trial_entry(Entry(model="din"), DRAW, RUN, "", penalised=True)
    assert din.options == {"dropout": 0.1}
    assert din.run == {"lr": 2e-3, "table_lr": 0.03, "l2": 1e-6, "table_optimizer": "adagrad", "table_init_std": 0.1}
    hidden = trial_entry(Entry(model="deepfm"), DRAW, RUN, "", penalised=False)
    assert hidden.run["l2"] == RUN.l2 == 0.0
    lum = trial_entry(Entry(model="lum", options={"host": "fat"}), DRAW, RUN, "", penalised=True)
    assert lum.options == {"host": "fat"}  # no dropout field
    strawman = replace(RUN, embedding="per_table", table_optimizer="sgd")
    assert "table_optimizer" not in trial_entry(Entry(model="din"), DRAW, strawman, "", penalised=True).run


@pytest.mark.parametrize(
    ("scores", "best"), [({0: 0.7, 1: 0.71, 2: 0.69}, 1), ({0: 0.7, 1: 0.7}, 0), ({1: 0.6, 2: 0.6}, 1), ({0: 0.5}, 0)]
)
def test_the_best_validation_auc_wins_and_ties_go_to_the_lower_number(scores: dict[int, float], best: int) -> None:
    runs = [Run(RunSpec(kind="tune", model="din", trial=t), {"extra": {"valid_auc": v}}) for t, v in scores.items()]
    assert best_trial(runs) == (best, scores)


def test_labels_keep_two_entries_of_one_model_apart() -> None:
    assert group_label("tuned", Entry(model="lum", options={"host": "fat"})) == "tuned,host=fat"
    assert group_label("equal_flops", Entry(model="din")) == "equal_flops"


@pytest.fixture(scope="module")
def tuned_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    plan = build_plan(
        ["suite=ci", *CRITEO, "model=deepfm", "run.trials=3", f"run.out={out}", "floors=false", "published=false"]
    )
    assert run_suite(plan, Console(quiet=True)) == 0
    return out / "latest"


def test_a_suite_tunes_with_equal_trials_and_never_scores_test_rows(tuned_suite: Path) -> None:
    table, bodies = records.load(tuned_suite)
    trials = [b for b in bodies.values() if b["spec"].get("kind") == "tune"]
    assert sorted(b["spec"]["trial"] for b in trials) == [0, 1, 2]
    assert set(table[table.metric == "valid_auc"].scope) == {"trial:0", "trial:1", "trial:2"}
    for body in trials:
        assert "rows" not in body["extra"]
        assert not (tuned_suite / "records" / RunSpec.from_json(body["spec"]).key / "scores.npz").exists()
    (chosen,) = bodies["summary"]["extra"]["tuning"]
    aucs = {b["spec"]["trial"]: b["extra"]["valid_auc"] for b in trials}
    assert chosen["valid_auc_best"] == max(aucs.values()) == aucs[chosen["best"]]
    tuned = [b["spec"] for b in bodies.values() if b["spec"].get("tuned") and b["spec"]["kind"] == "quality"]
    if chosen["best"]:
        won = next(b["spec"] for b in trials if b["spec"]["trial"] == chosen["best"])
        assert {t["variant"] for t in tuned} == {"tuned"}
        assert all((t["lr"], t["config"]) == (won["lr"], won["config"]) for t in tuned)
    else:
        assert not tuned
    page = (tuned_suite / "report.html").read_text()
    assert "Every tuned model got 3 trials" in page
    assert "Untuned" not in page
    json.dumps(chosen)


def test_tune_alone_trains_nothing_else_and_says_what_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "suite=ci", *CRITEO, "model=deepfm", "run.trials=2", f"run.out={tmp_path}"]) == 0
    _, bodies = records.load(tmp_path / "latest")
    assert {b["spec"].get("kind") for b in bodies.values()} == {"prepare", "tune", "summary"}
    (chosen,) = bodies["summary"]["extra"]["tuning"]
    said = capsys.readouterr().out
    assert advice(chosen) in said
    if chosen["best"]:  # what it says is what `run` takes
        arguments = advice(chosen).split("): ")[1].split()
        plan = build_plan(["suite=ci", *arguments])
        assert {f"run.{k}": getattr(plan.run, k) for k in ("lr", "table_lr")}.items() <= chosen["options"].items()


def test_tune_without_a_number_of_trials_takes_eight() -> None:
    assert only_tuning(build_plan(["suite=ci"])).run.trials == TRIALS
    assert only_tuning(build_plan(["suite=ci", "run.trials=3"])).run.trials == 3


@pytest.mark.parametrize("arguments", [["suite=mfu"], ["suite=controls"]])
def test_nothing_to_tune_is_wrong_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    assert arguments[-1] in capsys.readouterr().err


def test_options_of_the_command_line_win_over_a_draw_and_the_advice_says_so() -> None:
    entry = trial_entry(Entry(model="din"), DRAW, RUN, "", penalised=True)
    assert changed(entry, {"dropout": 0.5})["dropout"] == 0.5
    assert changed(entry, {})["dropout"] == DRAW.dropout
