"""Names and keys fail before any work, with the nearest valid ones."""

import subprocess
import sys

import pytest

from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan, suite_names
from ctrbench.datasets.errors import UnknownName


def test_quick_runs_the_models_of_the_issue():
    plan = build_plan(["suite=quick"])
    sequence, tabular = plan.jobs
    assert {"deepfm", "dcn_v2", "din", "composite", "fat", "onetrans"} <= set(sequence.models)
    assert set(tabular.models) == {"deepfm", "dcn_v2", "fat"}
    assert plan.run.seeds == 3
    assert plan.run.train_rows >= 100_000
    assert plan.run.processes == 3
    assert plan.run.steps >= 50


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=onetran"], "onetrans"),
        (["suite=quik"], "quick"),
        (["data=criteo_syntetic"], "criteo_synthetic"),
        (["run.seed=3"], "run.seeds"),
        (["onetrans.pyramd=none"], "pyramid"),
        (["data.path=train.txt"], "data=NAME"),
        (["run.seeds=many"], "run.seeds"),
        (["run.seeds=0"], "at least 1"),
        (["run.embedding=per_tabel"], "per_table"),
        (["run.embedding=per_table"], "table_optimizer=adagrad"),
        (["seeds"], "key=value"),
        (["fat.heads=5"], "heads"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(arguments, named):
    with pytest.raises(UnknownName, match=named):
        build_plan(arguments)


def test_cli_exits_with_2_and_does_no_work(tmp_path, capsys):
    assert main(["run", "suite=quik", f"run.out={tmp_path / 'runs'}"]) == 2
    assert "quick" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["rum"]) == 2
    assert "run" in capsys.readouterr().err


def test_options_of_suite_and_command_line_reach_the_plan():
    plan = build_plan(
        ["suite=ci", "model=fat", "fat.pair_scope=head", "run.steps=7", "data.options.rows=123", "floors=false"]
    )
    assert plan.models == ("fat",)
    assert plan.run.steps == 7
    assert plan.run.processes == 1
    assert plan.model_options == {"fat": {"pair_scope": "head"}}
    assert plan.jobs[0].options["rows"] == 123
    assert plan.jobs[0].floors == ()


def test_listing_models_imports_no_torch():
    code = "import sys; from ctrbench.bench.cli import main; main(['list', 'suites']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode in (0, 1)
    assert {"ci", "quick"} <= set(suite_names())
