"""Names and keys fail before any work, with the nearest valid ones; values arrive as typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctrbench.bench import registry
from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.specs import Ready, suite_specs
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.registry import dataset_spec
from ctrbench.datasets.taobao_reader import ACTIONS


def test_quick_runs_the_models_of_the_comparison() -> None:
    plan = build_plan(["suite=quick"])
    sequence, tabular = plan.jobs
    assert {"deepfm", "dcn_v2", "din", "composite", "fat", "onetrans"} <= {e.model for e in sequence.models}
    assert "lightgbm_history" in sequence.floors
    assert {e.model for e in tabular.models} == {"deepfm", "dcn_v2", "fat"}
    assert plan.run.seeds == 3
    assert plan.run.train_rows >= 100_000
    assert plan.run.processes == 3
    assert plan.run.steps >= 50


def test_quick_counts_the_published_sizes_of_every_model() -> None:
    """Whether it is trained there or not; a chosen model is alone."""

    def counted(*arguments: str) -> set[str]:
        specs, _ = suite_specs(build_plan(["suite=quick", *arguments]), [])
        return {s.model for s in specs if s.kind == "published"}

    assert counted() == set(registry.model_names())
    assert counted("model=din") == {"din"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=onetran"], "onetrans"),
        (["suite=quik"], "quick"),
        (["data=criteo_syntetic"], "criteo_synthetic"),
        (["run.seed=3"], "run.seeds"),
        (["data.pth=x"], "data.path"),
        (["onetrans.pyramd=none"], "pyramid"),
        (["data.path=train.txt"], "data=NAME"),
        (["run.seeds=many"], "run.seeds"),
        (["run.seeds=true"], "run.seeds"),
        (["run.seeds=0"], "at least 1"),
        (["run.train_rows=10"], "run.batch"),
        (["run.resume=1"], "run.resume"),
        (["run.embedding=per_tabel"], "per_table"),
        (["run.embedding=per_table"], "table_optimizer=adagrad"),
        (["floors=perhaps"], "true or false"),
        (["published=perhaps"], "true or false"),
        (["run.lr=[1"], "run.lr"),
        (["deepfm.mlp=${x}"], "deepfm.mlp"),
        (["seeds"], "key=value"),
        (["model.path=absent.py"], "absent.py"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(arguments: list[str], named: str) -> None:
    with pytest.raises(UnknownName, match=named.replace(".", r"\.")):
        build_plan(arguments)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["run", "suite=quik"], "quick"),
        (["rum"], "run"),
        (["run", "model=deepfn"], "deepfm"),
        (["run", "run.stesp=3"], "run.steps"),
        (["data", "prepare", "kriteo"], "criteo"),
        (["data", "generate", "criteo", "--out", "x"], "not generated"),
    ],
)
def test_cli_exits_with_2_and_does_no_work(
    argv: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    assert main(argv) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_of_suite_and_command_line_reach_the_plan() -> None:
    plan = build_plan(
        ["suite=ci", "model=fat", "fat.pair_scope=head", "run.steps=7", "data.options.rows=123", "floors=false",
         "published=false"]
    )  # fmt: skip
    assert plan.models == ("fat",)
    assert plan.run.steps == 7
    assert plan.run.processes == 1
    assert plan.model_options == {"fat": {"pair_scope": "head"}}
    assert plan.jobs[0].options == {"rows": 123, "cap": 1000}
    assert plan.jobs[0].floors == ()
    assert plan.sized == ()
    assert build_plan(["suite=ci", "model=fat"]).sized == ("fat",)


def test_suite_ci_trains_every_ranking_model_on_a_track_it_has() -> None:
    """By reading the configuration; `make suite-ci` runs it."""
    plan = build_plan(["suite=ci"])
    rankers = {n for n in registry.model_names() if registry.model_spec(n).own_batches is None}
    trained = {
        e.model for j in plan.jobs for e in j.models
        if dataset_spec(j.data).track in registry.model_spec(e.model).tracks
    }  # fmt: skip
    assert trained == rankers
    assert {"stacked", "parallel", "mixture"} <= {
        value for j in plan.jobs for e in j.models if e.model == "dcn_v2"
        for value in (e.options.get("structure", "parallel"), e.options.get("form", "full"))
    }  # fmt: skip


def test_a_brief_model_is_whole_where_it_is_named() -> None:
    every = build_plan(["suite=ci"])
    briefs = {e.model for j in every.jobs for e in j.models if e.brief}
    assert {"fm", "hstu"} <= briefs
    assert set(every.sized) == {"deepfm", "fat", "dcn_v2"}
    named = build_plan(["suite=ci", "model=fm,dcn_v2"])
    assert named.sized == ("fm", "dcn_v2")
    assert [e.brief for e in named.jobs[0].models] == [False, False], "the brief variants of DCN-v2 gave way"


def test_values_arrive_as_typed() -> None:
    path = "/a b/(1)=x,{y}: z.txt"
    plan = build_plan(
        ["data=criteo", f"data.path={path}", "data.policy=skip", "run.lr=1e-2", "deepfm.mlp=[64,32]", "run.out=007"]
    )
    (job,) = plan.jobs
    assert (job.path, job.policy) == (path, "skip")
    assert plan.run.lr == 0.01
    assert plan.run.out == "007"
    assert plan.model_options == {"deepfm": {"mlp": (64, 32)}}


def test_a_user_file_joins_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    file = tmp_path / "mine.py"
    file.write_text("from ctrbench.legacy_baselines.deepfm import SPEC\n")
    with pytest.raises(UnknownName, match="no SPEC"):
        build_plan([f"model.path={file}"])
    file.write_text("from ctrbench.legacy_baselines import deepfm\nSPEC = deepfm.SPEC\n")
    plan = build_plan(["suite=ci", f"model.path={file}", "mine.dim=8"])
    assert plan.models == ("mine",)
    assert plan.model_options == {"mine": {"dim": 8}}
    assert build_plan(["suite=ci", f"model.path={file}", "model=deepfm,mine"]).models == ("deepfm", "mine")
    before = registry.own_file("mine")
    file.write_text(file.read_text() + "# other text, other model\n")
    assert registry.own_file("mine") != before
    assert registry.own_file("deepfm") == {}


def test_a_user_file_is_the_one_that_stands_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one name in two folders, and a file that is changed, in one process."""
    monkeypatch.setattr(registry, "_OWN", {})
    for folder, title in (("a", "of a"), ("b", "of b"), ("a", "of a, changed")):
        file = tmp_path / folder / "mine.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"from dataclasses import replace\nfrom ctrbench.legacy_baselines import deepfm\n"
            f"SPEC = replace(deepfm.SPEC, title='{title}')\n"
        )
        registry.register_path(str(file))
        assert registry.model_spec("mine").title == title
        assert registry.model_spec("mine").build is registry.model_spec("mine").build


def test_a_user_file_that_cannot_be_imported_is_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    file = tmp_path / "broken_import.py"
    file.write_text("import no_such_module\nSPEC = None\n")
    for _ in range(2):  # not half-imported the second time
        with pytest.raises(BadInput, match=r"broken_import\.py: cannot be imported: ModuleNotFoundError"):
            build_plan([f"model.path={file}"])


def test_listing_data_sets_loads_no_torch() -> None:
    code = (
        "import sys; from ctrbench.bench.cli import main; main(['list', 'datasets']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"criteo", "movielens_1m"} <= set(done.stdout.split())


def test_standard_has_both_splits_and_one_of_them_alone() -> None:
    plan = build_plan(["suite=standard"])
    movielens = [j for j in plan.jobs if j.data == "movielens_1m"]
    assert [(j.split, j.timed, j.equal_flops > 0) for j in movielens] == [
        ("global_time", True, True), ("per_user", False, False),
    ]  # fmt: skip
    assert {j.data for j in plan.jobs} == {"movielens_1m", "taobao_synthetic", "criteo_synthetic"}
    assert plan.run.seeds >= 3
    assert plan.run.processes == 5
    assert plan.run.trials == 8
    (alone,) = build_plan(["suite=standard", "data=movielens_1m", "data.split=per_user"]).jobs
    assert alone == movielens[1]
    assert not any(j.timed for j in build_plan(["suite=standard", "timed=false"]).jobs)
    with pytest.raises(UnknownName, match="timed=maybe"):
        build_plan(["suite=quick", "timed=maybe"])
    other = build_plan(["suite=quick", "data=movielens_1m", "data.split=per_user"]).jobs
    assert [j.split for j in other] == ["per_user"]


def test_options_that_fit_a_model_to_the_data_make_no_variant(tmp_path: Path) -> None:
    plan = build_plan(["suite=standard", "data=taobao_synthetic", "model=composite,din", "data.options.users=30"])
    (job,) = plan.jobs
    liked = tuple(ACTIONS[name] for name in ("cart", "fav", "buy"))
    for name in ("taobao_synthetic", "taobao_behaviour"):  # the public file is read as its twin is
        assert dataset_spec(name).fit == {"composite": {"liked_ids": liked}}
    prepared = prepare("taobao_synthetic", None, tmp_path, users=30, pool_users=90)
    specs, _ = suite_specs(plan, [Ready(job, prepared, prepared.path)])
    for spec in specs:
        if spec.model == "composite" and spec.kind == "quality":
            assert (spec.variant, spec.config["liked_ids"]) == ("", liked)
    assert {s.kind for s in specs if s.model == "composite"} >= {"quality", "time", "tune", "count"}


def test_a_key_given_twice_is_said_and_the_last_one_counts(capsys: pytest.CaptureFixture[str]) -> None:
    plan = build_plan(["suite=ci", "run.seeds=1", "run.seeds=2"])
    assert plan.run.seeds == 2
    assert capsys.readouterr().err == "note: run.seeds is given twice; the last one counts\n"
