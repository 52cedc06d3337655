"""`make bench-targets`: verdicts, results on disk, the command line with groups made for the test."""

import importlib
import inspect
import json
import os
from pathlib import Path

import pytest

from ctrbench.bench.peers_verdict import MODELS
from ctrbench.bench.targets.__main__ import GROUPS, main
from ctrbench.bench.targets.outcome import Outcome, at_least, load, save
from ctrbench.bench.targets.page import markdown
from ctrbench.datasets.errors import BadInput

FAKE = """
from pathlib import Path
from ctrbench.bench.targets.outcome import at_least
def outcomes():
    runs = Path({counter!r})
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    yield at_least("{name}", "a | b", {wanted}, 2.0, "by [hand]")
"""
GOOD = at_least("kernels", "fused / twin", 3.0, 3.5, "15 rounds", interval=(3.25, 3.75))


@pytest.mark.parametrize(
    ("wanted", "value", "verdict"), [(3.0, 3.0, "met"), (3.0, 2.999, "missed"), (0.6, 0.7, "met"), (1.0, 0.0, "missed")]
)
def test_a_target_is_met_from_its_value_on(wanted, value, verdict):
    assert at_least("g", "t", wanted, value, "").verdict == verdict


def test_how_a_value_is_written():
    assert (GOOD.wanted, GOOD.measured) == (">= 3x", "3.5x [3.25, 3.75]")
    share = at_least("mfu", "t", 0.55, 0.615, "", unit=" %", interval=(0.6, 0.62))
    assert (share.wanted, share.measured, share.verdict) == (">= 55 %", "61.5 % [60, 62]", "met")


def test_results_come_back_with_where_and_when(tmp_path):
    beside = Outcome(group="kernels", target="t", wanted="", measured="1.1x", verdict="context", how="")
    save([GOOD, beside], tmp_path / "new" / "kernels.json")
    found = load(tmp_path / "new" / "kernels.json")
    assert found.outcomes == (GOOD, beside)
    assert {"commit", "dirty", "cpu", "torch"} <= set(found.environment)
    assert found.date.endswith("+00:00")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["kernels.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"outcomes": [{"verdict": "met"}], "environment": {}, "date": ""}', "VERDICT"]
)
def test_what_is_no_result_says_so(tmp_path, text):
    save([GOOD], tmp_path / "kernels.json")
    if text == "VERDICT":
        text = (tmp_path / "kernels.json").read_text().replace('"met"', '"brilliant"')
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(BadInput, match=r"kernels\.json: .*measure its group again"):
        load(tmp_path / "kernels.json")


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Two groups: `low`, which meets its target, and `high`, which does not; with how often each was measured."""
    for name, wanted in (("low", 1.0), ("high", 9.0)):
        code = FAKE.format(counter=str(tmp_path / f"{name}.runs"), name=name, wanted=wanted)
        (tmp_path / f"fake_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    groups = {n: f"fake_{n}" for n in ("low", "high")}
    out = ["--out", str(tmp_path / "results")]

    def measured(name: str) -> int:
        return len((tmp_path / f"{name}.runs").read_text())

    return lambda *words: main([*out, *words], groups), measured, tmp_path / "results"


@pytest.mark.timeout(300)
def test_groups_are_measured_once_and_again_when_asked(fakes, capfd):
    run, measured, results = fakes
    assert run("low") == 0
    printed = capfd.readouterr()
    assert "== low" in printed.out
    assert "by [hand]" in printed.out
    assert "commit " in printed.out
    assert (run(), measured("low"), measured("high")) == (1, 1, 1)  # a missed target
    assert "== low" not in capfd.readouterr().out
    assert (run("--again", "low"), measured("low"), measured("high")) == (0, 2, 1)
    assert {p.name for p in results.iterdir()} == {"low.json", "high.json"}


@pytest.mark.timeout(300)
def test_a_group_that_fails_is_named_and_its_old_results_are_not_shown(fakes, tmp_path, capfd):
    run, _, results = fakes
    save([GOOD], results / "high.json")
    (tmp_path / "fake_high.py").write_text("def outcomes():\n    raise RuntimeError('no such machine')\n    yield\n")
    assert run("--again", "high") == 1
    printed = capfd.readouterr()
    assert "no such machine" in printed.err
    assert "high: failed, see above" in printed.err
    assert "fused / twin" not in printed.out


def test_showing_measures_nothing(fakes, capfd):
    run, _, results = fakes
    save([GOOD], results / "low.json")
    assert run("--show") == 0
    printed = capfd.readouterr()
    assert "3.5x [3.25, 3.75]" in printed.out
    assert "high: not measured" in printed.err
    assert not (results / "high.json").exists()


def test_the_page_has_every_row_and_where_it_is_from(fakes, tmp_path, capfd):
    run, _, results = fakes
    page = tmp_path / "docs" / "targets.md"
    assert run("--markdown", str(page)) == 2
    assert "nothing is measured yet" in capfd.readouterr().err
    save([GOOD, at_least("low", "a | b", 9.0, 2.0, "two\nlines")], results / "low.json")
    assert run("--markdown", str(page)) == 0
    text = page.read_text()
    assert "1 met, 1 missed" in text
    assert "| fused / twin | >= 3x | 3.5x [3.25, 3.75] | met | 15 rounds |" in text
    assert "| a &#124; b | >= 9x | 2x | missed | two lines |" in text
    assert "Not measured: high." in text
    commit = json.loads((results / "low.json").read_text())["environment"]["commit"]
    assert f"commit {commit[:12]}" in text


def test_results_of_two_commits_are_two_lines(tmp_path):
    save([GOOD], tmp_path / "a.json")
    first = load(tmp_path / "a.json")
    body = json.loads((tmp_path / "a.json").read_text())
    body["environment"] |= {"commit": "f" * 40, "dirty": True}
    (tmp_path / "b.json").write_text(json.dumps(body))
    text = markdown({"a": first, "b": load(tmp_path / "b.json")})
    assert f"- b ({first.date}): commit ffffffffffff with changes;" in text
    assert f"- a ({first.date}): commit {first.environment['commit'][:12]}" in text


def test_an_unknown_group_is_refused_with_the_nearest(fakes, capsys):
    run, _, _ = fakes
    assert run("lou") == 2
    assert "unknown group 'lou': did you mean 'low'?" in capsys.readouterr().err


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_a_module_that_measures(group):
    module, _, argument = GROUPS[group].partition(":")
    inspect.signature(importlib.import_module(module).outcomes).bind(*filter(None, [argument]))


def test_every_module_that_measures_is_a_group():
    folder = Path(importlib.import_module("ctrbench.bench.targets.outcome").__file__).parent
    modules = {module.rpartition(".")[2] for module in GROUPS.values()}
    assert {p.stem for p in folder.glob("*.py") if "def outcomes(" in p.read_text()} == {
        m.partition(":")[0] for m in modules
    }
    assert {m.partition(":")[2] for m in modules if ":" in m} == set(MODELS)
