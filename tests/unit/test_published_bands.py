"""The verdict on a reproduced benchmark: inside, outside, or not judged and why; then as rows and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from ctrbench.bench import bars
from ctrbench.bench.bars import protocol_of, published_bands
from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.plan import Plan
from ctrbench.bench.presets import preset_options, table_options
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.summary import Run
from ctrbench.datasets.criteo_forms import write_form
from ctrbench.datasets.criteo_synthetic import Parameters
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.legacy_baselines import dcn_v2, deepfm, dnn
from ctrbench.reports import bands
from ctrbench.reports.bands import Band, departures, judge, published_band
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make
from ctrbench.reports.names import names_of
from ctrbench.reports.records import Measurement, frame

BAND = Band(title="M", mean=0.8137, sd=0.0001)


@pytest.mark.parametrize(
    ("auc", "word", "distance"),
    [(0.8137, "inside", 0.0), (0.81399, "inside", 2.9), (0.81341, "inside", -2.9), (0.81401, "outside", 3.1),
     (0.81339, "outside", -3.1), (0.5, "outside", -3137.0)],
)  # fmt: skip
def test_the_band_is_three_published_standard_deviations_on_either_side(auc: float, word: str, distance: float) -> None:
    verdict = judge(auc, BAND)
    assert (verdict.word, verdict.reason) == (word, "")
    assert verdict.distance == pytest.approx(distance, abs=1e-6)


def test_without_data_the_verdict_names_how_to_get_it() -> None:
    verdict = judge(None, BAND)
    assert (verdict.word, verdict.distance) == ("skipped", None)
    for part in ("reczoo/Criteo_x1", "train.csv, valid.csv and test.csv", "suite=bars data=criteo_x1 data.path="):
        assert part in verdict.reason
    assert judge(None, BAND, missing="timeout").reason == "timeout"


def test_another_protocol_or_no_cited_value_is_not_judged() -> None:
    assert judge(0.8137, BAND, ["batch=256, published 4096"]).reason == (
        "not the published protocol: batch=256, published 4096"
    )
    assert judge(0.8137, None).word == "skipped"
    with pytest.raises(ValueError, match=r"cited\.toml"):
        judge(0.8137, replace(BAND, sd=0.0))


@pytest.mark.parametrize(
    ("model", "mean", "sd"),
    [("dnn", 0.813678, 0.000066), ("deepfm", 0.813812, 0.000080), ("dcn", 0.813767, 0.000049),
     ("dcn_v2", 0.813939, 0.000200)],
)  # fmt: skip
def test_cited_bands_are_those_of_bars(model: str, mean: float, sd: float) -> None:
    """BARS run READMEs, Criteo_x1, five seeds (models.md section 8.1)."""
    band = published_band(model)
    assert band is not None
    assert (band.mean, band.sd) == (mean, sd)
    assert published_band("fat") is None


def quality_runs(
    plan: Plan, model: str, seeds: int | None = None, test_rows: int = 4_587_167, **changes: Any
) -> list[Run]:
    """Finished trainings as the suite would have asked for them."""
    (job,) = plan.jobs
    run = plan.run
    config = preset_options(model, job.preset) | {"tables": {f: v for f, (_, v) in table_options(run).items()}}
    spec = RunSpec(
        kind="quality", model=model, config=config, preset=job.preset, data=job.data, batch=run.batch, lr=run.lr,
        train_rows=run.train_rows, valid_rows=run.valid_rows, epochs=run.epochs, evaluations=run.evaluations,
        patience=run.patience, plateau=run.plateau,
    )  # fmt: skip
    count = run.seeds if seeds is None else seeds
    body = {"extra": {"rows": {"test": test_rows}}}
    return [Run(replace(spec, seed=s, **changes), body) for s in range(count)]


def auc_row(model: str, value: float) -> Measurement:
    base = {"run": "summary", "model": model, "data": "criteo_x1", "phase": "train", "family": "legacy",
            "track": "tabular", "preset": "criteo_x1"}  # fmt: skip
    return make(base, "auc", value, "measured", n=5)


def test_the_suite_is_the_published_protocol() -> None:
    plan = build_plan(["suite=bars"])
    (job,) = plan.jobs
    assert plan.models == ("deepfm", "dcn_v2", "dnn")
    assert job.judged
    for model in plan.models:
        assert departures(protocol_of(job, quality_runs(plan, model))) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seeds": 4}, "seeds=4, published 5"),
        ({"test_rows": 1000}, "test_rows=1000, published 4587167"),
        ({"train_rows": 1_000_000}, "train_rows=1000000"),
        ({"plateau": 1.0}, "plateau=1.0, published 0.1"),
        ({"config": {"dim": 4}}, "options=dim=4"),
        ({"config": {}}, "table_optimizer=rowwise_adagrad, published adam"),
    ],
)
def test_every_departure_from_the_protocol_is_named(changes: dict[str, Any], named: str) -> None:
    plan = build_plan(["suite=bars"])
    assert named in "; ".join(departures(protocol_of(plan.jobs[0], quality_runs(plan, "deepfm", **changes))))


def test_more_seeds_are_no_departure_and_options_read_back_from_a_record_are_not_either() -> None:
    plan = build_plan(["suite=bars"])
    runs = quality_runs(plan, "dcn_v2", seeds=6)
    read = [Run(RunSpec.from_json(_json(r.spec.to_json())), r.body) for r in runs]
    assert departures(protocol_of(plan.jobs[0], read)) == []


def _json(body: dict[str, Any]) -> dict[str, Any]:
    back: dict[str, Any] = json.loads(json.dumps(body))
    return back


def test_rows_of_a_suite_inside_outside_lost_and_without_data() -> None:
    plan = build_plan(["suite=bars"])
    runs = [*quality_runs(plan, "deepfm"), *quality_runs(plan, "dcn_v2")]
    rows = [auc_row("deepfm", 0.813812), auc_row("dcn_v2", 0.813939 - 0.0007)]
    deepfm_row, dcn_row, dnn_row = published_bands(plan, runs, rows, "summary")
    assert [r.metric for r in (deepfm_row, dcn_row, dnn_row)] == [bands.METRIC] * 3
    assert (deepfm_row.value, deepfm_row.origin, deepfm_row.n) == (pytest.approx(0.0, abs=1e-9), "derived", 5)
    assert dcn_row.value == pytest.approx(-3.5)
    assert (dnn_row.status, dnn_row.value) == ("skipped", None)
    assert "reczoo/Criteo_x1" in dnn_row.reason
    assert bands.outside([deepfm_row, dcn_row])
    assert not bands.outside([deepfm_row, dnn_row])
    said = bands.lines([deepfm_row, dcn_row, dnn_row])
    assert [" inside " in said[0], " outside " in said[1], " skipped: " in said[2]] == [True] * 3
    late = bars.withheld({"run": "s", "model": "dnn", "data": "criteo_x1"}, "auc", "slow", "timeout", phase="train")
    assert published_bands(plan, runs, [*rows, late], "summary")[2].reason == "no training finished: slow"


def test_a_suite_that_judges_nothing_has_no_rows_and_no_section() -> None:
    assert published_bands(build_plan(["suite=ci"]), [], [], "summary") == []
    rows = tidy(frame([auc_row("deepfm", 0.8)]))
    assert bands.section(Context(rows, {}, names_of(rows, {}), ())) is None


def test_the_page_shows_ours_beside_theirs_and_flags_what_is_outside() -> None:
    plan = build_plan(["suite=bars"])
    runs = [*quality_runs(plan, "deepfm"), *quality_runs(plan, "dcn_v2")]
    rows = [auc_row("deepfm", 0.81383), auc_row("dcn_v2", 0.8131)]
    body = tidy(frame([*rows, *published_bands(plan, runs, rows, "summary")]))
    section = bands.section(Context(body, {}, names_of(body, {}), (("tabular", "criteo_x1"),)))
    assert section is not None
    table = section.exhibits[0].table
    assert list(table.index) == ["deepfm", "dcn_v2", "dnn"]
    assert list(table["Verdict"]) == ["inside", "outside", "skipped"]
    assert table.loc["deepfm", "AUC"].text == "0.8138"
    assert table.loc["dcn_v2", "Published AUC"].value == 0.813939
    assert "reczoo/Criteo_x1" in table.loc["dnn", "Distance, sd"].reason
    assert section.flags == ("DCN-v2: outside the published band",)
    assert section.sentence.startswith("1 of 3 models lie inside the band; 1 of 3")


@pytest.mark.parametrize(("model", "module"), [("deepfm", deepfm), ("dcn_v2", dcn_v2), ("dnn", dnn)])
def test_preset_options_lead_from_the_defaults_to_the_preset(model: str, module: Any) -> None:
    config = module.SPEC.config(**preset_options(model, "criteo_x1"))
    assert config == next(p.config for p in module.published() if p.label == "criteo_x1")
    assert preset_options(model, "small") == {}
    with pytest.raises(BadInput, match="criteo_x1"):
        preset_options(model, "taobao")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run.table_optimizer=adam"], "run.embedding=per_table"),
        (["run.l2=1e-5", "run.l2_rows=full_table"], "run.table_optimizer=adam"),
        (["run.l2_rows=all"], "full_table"),
        (["run.l2=-1.0"], "run.l2"),
        (["run.plateau=0.0"], "run.plateau"),
        (["run.table_lr=0.0"], "run.table_lr"),
    ],
)
def test_table_options_that_cannot_be_had_are_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(UnknownName, match=named.replace(".", r"\.")):
        build_plan(arguments)


def test_table_options_are_in_the_run_only_where_they_leave_the_defaults() -> None:
    assert table_options(build_plan(["suite=ci"]).run) == {}
    run = build_plan(["suite=ci", "run.l2=1e-4", "run.embedding=per_table", "run.table_optimizer=sgd"]).run
    assert {f: v for f, (_, v) in table_options(run).items()} == {"impl": "per_table", "optimizer": "sgd", "l2": 1e-4}


def test_a_suite_without_its_files_ends_well_and_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "suite=bars", "model=dnn", f"run.out={tmp_path}"]) == 0
    table = pd.read_parquet(tmp_path / "latest" / "measurements.parquet")
    (row,) = table[table.metric == bands.METRIC].itertuples()
    assert (row.status, row.preset, row.track) == ("skipped", "criteo_x1", "tabular")
    assert "reczoo/Criteo_x1" in row.reason
    owed = table[(table.data == "criteo_x1") & (table.model == "dnn")]
    assert set(owed.status) == {"skipped"}
    assert owed.reason.str.contains("data.path=FOLDER", regex=False).all()
    said = " ".join(capsys.readouterr().out.split())
    assert "dnn on criteo_x1: skipped: the data does not ship" in said
    assert "reczoo/Criteo_x1" in (tmp_path / "latest" / "report.html").read_text()


def test_a_model_without_the_preset_fails_before_any_work(tmp_path: Path) -> None:
    from ctrbench.bench.suite import run_suite

    plan = build_plan(["suite=bars", "model=din", f"run.out={tmp_path}"])
    with pytest.raises(BadInput, match=r"din has taobao_ad, taobao_ad_split; .* model=deepfm"):
        run_suite(plan, Console())
    assert list(tmp_path.iterdir()) == []


def test_the_suite_on_a_folder_in_its_form_trains_the_published_size_and_says_why_nothing_is_judged(
    tmp_path: Path,
) -> None:
    """Generated rows in the layout of Criteo_x1: everything of suite=bars but the data."""
    write_form("x1", Parameters(rows=3000, seed=0, cap=100), tmp_path / "x1")
    small = ["run.train_rows=1500", "run.batch=64", "run.eval_batch=64", "run.seeds=1", "run.epochs=1", "run.steps=4",
             "run.warmup=1", "run.processes=1", "run.threads=1"]  # fmt: skip
    where = ["data=criteo_x1", f"data.path={tmp_path / 'x1'}", f"run.out={tmp_path / 'runs'}"]
    assert main(["run", "suite=bars", "model=dnn", *where, *small]) == 0
    table = pd.read_parquet(tmp_path / "runs" / "latest" / "measurements.parquet")
    mine = table[(table.model == "dnn") & (table.data == "criteo_x1")]
    assert set(mine.preset) == {"criteo_x1"}
    (row,) = mine[mine.metric == bands.METRIC].itertuples()
    assert row.status == "skipped"
    assert "not the published protocol" in row.reason
    assert "train_rows=1500" in row.reason
    assert "train.csv: md5" in row.reason  # right in size and options, other files would still not be judged
    assert mine[mine.metric == "auc"].value.notna().any()
    counted = mine[mine.metric.isin(["flops_train_per_sample", "kernels_per_step", "bytes_optimizer"])]
    assert set(counted.status) == {"ok"}  # dense gradients and Adam over whole tables are known operators
    assert mine.variant.str.contains("l2=1e-05,l2_rows=full_table").all()
    page = (tmp_path / "runs" / "latest" / "report.html").read_text()
    assert "Reproduction: our AUC in the published band" in page
    assert "preset criteo_x1" in page
