"""Trials of the gate: equal sides stay quiet, planted regressions are found, fresh pairs are kept and judged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctrbench.bench import gate_pairs, gate_trials
from ctrbench.bench.delong import auc_covariance
from ctrbench.bench.gate_sides import load_side
from ctrbench.bench.gate_trials import Pool, Rate, degraded, draw, drops, false_alarms, pools, slowdowns
from ctrbench.bench.quality import auc
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.stopping import StoppingRule
from ctrbench.datasets.errors import BadInput
from ctrbench.reports import records
from ctrbench.reports.comparison import Subject
from ctrbench.reports.records import RunRecord


def pool(cv: float = 0.02, users: int = 120) -> Pool:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users), 5)
    label = (rng.random(len(user)) < 0.4).astype(int)
    odds = label + rng.normal(size=users)[user] + rng.normal(size=(3, len(user))) * 0.3 + rng.normal(size=len(user))
    seconds = 0.01 * np.exp(cv * rng.standard_normal(12))
    return Pool(Subject(data="d", split="s", model="m"), seconds, 1e9 * seconds, label, user, 1 / (1 + np.exp(-odds)))


def test_equal_sides_stay_quiet_and_too_many_alarms_would_be_seen() -> None:
    rate = false_alarms([pool()], 200, processes=5)
    assert rate.alarm_p(0.05) > 0.05, rate
    assert Rate("x", 30, 200).alarm_p(0.05) < 0.001  # 15 % would be refuted


def test_planted_slowdowns_of_the_detectable_size_are_found() -> None:
    ((text, rate),) = slowdowns([pool()], 100, processes=5)
    assert "detectable slowdown" in text
    assert rate is not None
    assert rate.share >= 0.9, rate
    ((text, none),) = slowdowns([pool()], 10, processes=3)
    assert none is None
    assert "no slowdown can be detected with 3" in text


def test_planted_drops_are_as_large_as_said_and_found_more_often_than_not() -> None:
    one = pool(users=800)
    before = auc_covariance(one.label_N, one.score_SN, one.user_N)
    alone = np.sqrt(np.full(3, 1 / 3) @ before.covariance_KK @ np.full(3, 1 / 3))

    def drop(scores: np.ndarray) -> float:
        old, new = (np.mean([auc(one.label_N, s) for s in side]) for side in (one.score_SN, scores))
        return float(old - new)

    worse = degraded(one, lambda s: drop(s) / alone, 3.0)
    assert drop(worse) == pytest.approx(3 * alone, rel=0.05)
    rates = dict(drops(one, 40, processes=5))
    assert rates["of the AUC"].share > 0.5  # noise of its own in each of three seeds: 75 % here, not the 90 % wanted
    said = re.search(r"AUC drop of (\d\.\d+), 3 standard errors of the AUC", rates["of the AUC"].name)
    assert said is not None
    assert float(said[1]) == pytest.approx(3 * alone, rel=0.01)


def test_draws_are_seeded_and_resample_whole_users() -> None:
    one = pool()
    a, b = (draw(one, np.random.default_rng(5), 5) for _ in range(2))
    assert [d.p for d in a] == [d.p for d in b]
    assert a[0].p != draw(one, np.random.default_rng(6), 5)[0].p
    index, unit = gate_trials._resampled_rows(one.user_N, np.random.default_rng(0))
    assert len(index) == len(unit) == 600
    for u in range(120):
        rows = index[unit == u]
        assert len(set(one.user_N[rows])) == 1
        assert len(rows) == 5
    assert (gate_trials._resampled_rows(np.full(9, -1), np.random.default_rng(0))[1] == -1).all()


def test_a_run_without_what_it_takes_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_trials.main(["simulate", str(tmp_path)]) == 2
    assert "no finished record" in capsys.readouterr().err


def test_a_run_is_simulated_from_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = pool(users=60)
    spec = RunSpec(kind="time", model="m", data="d", split="s", fingerprint="f")
    for i, second in enumerate(one.seconds[:5]):
        timed = replace(spec, repeat=i)
        extra = {"samples": {"step": [second] * 9}, "rss_peak": 1e9 + i}
        records.save(RunRecord(key=timed.key, spec=timed.to_json(), rows=(), extra=extra), tmp_path)
    for seed, score in enumerate(one.score_SN):
        trained = replace(spec, kind="quality", seed=seed)
        folder = records.save(RunRecord(key=trained.key, spec=trained.to_json(), rows=()), tmp_path)
        np.savez(folder / "scores.npz", score=score)
    (tmp_path / "rows").mkdir()
    np.savez(tmp_path / "rows" / "f.npz", label=one.label_N, user=one.user_N)
    (read,) = pools(load_side(str(tmp_path)), users=40)
    assert len(np.unique(read.user_N)) == 40
    assert read.score_SN.shape == (3, 200)
    assert sorted(read.seconds) == pytest.approx(sorted(one.seconds[:5]))
    assert gate_trials.main(["simulate", str(tmp_path), "--model", "x"]) == 2
    assert gate_trials.main(["simulate", str(tmp_path), "--gates", "20"]) in (0, 1)
    out = capsys.readouterr().out
    assert "of 20 gates call a change" in out
    assert "detectable slowdown" in out
    assert "3 standard errors of the paired difference" in out


def line(number: int, **calls: str) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    values = {side: {"step_time": (0.004 * (1 + 0.1 * rng.standard_normal(5))).tolist(), "rss_peak": [4e8 + number] * 5}
              for side in "AB"}  # fmt: skip
    return {"pair": number, "at": f"2026-01-01T{number % 24:02}:00:00", "noisy": bool(number % 2), "values": values,
            "calls": {"step_time": "same", "rss_peak": "same", **calls}}  # fmt: skip


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))


def test_pairs_in_a_file_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    write(file, [line(i) for i in range(40)])
    assert gate_trials.main(["check", str(file)]) == 0
    write(file, [line(i) for i in range(39)])
    assert gate_trials.main(["check", str(file)]) == 1
    assert "too few to say: 39 of 40" in capsys.readouterr().out
    write(file, [line(i, step_time="worse") if i < 6 else line(i) for i in range(40)])
    assert gate_trials.main(["check", str(file)]) == 1
    out = capsys.readouterr().out
    assert "6 call a change between equal sides, one-sided binomial p 0.014" in out
    assert "pair 3 of 2026-01-01T03:00:00 (noisy)" in out
    write(file, [line(i, step_time="not comparable") if i < 9 else line(i) for i in range(40)])
    assert gate_trials.main(["check", str(file)]) == 0
    assert "9 withheld because the machine moved" in capsys.readouterr().out
    file.write_text('{"pair": 1}\n{"pa')
    assert gate_trials.main(["check", str(file)]) == 2
    assert ":2: no pair" in capsys.readouterr().err
    assert gate_trials.main(["check", str(tmp_path / "none")]) == 2


def test_power_at_the_scatter_of_the_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [line(i) for i in range(40)]
    write(tmp_path / "pairs.jsonl", pairs)
    assert gate_trials.main(["check", str(tmp_path / "pairs.jsonl")]) == 0
    said = capsys.readouterr().out
    size = float(re.search(r"a slowdown by ([\d.]+)% can be detected with 5 processes", said)[1]) / 100
    assert re.search(r"scatter of step times (9|1[01])\.\d%", said)
    # Found where it was planted, not where nothing or half of it was.
    assert gate_pairs.planted(pairs, 1 + size).share >= 0.9
    assert gate_pairs.planted(pairs, 1 + size / 2).share < 0.7
    assert gate_pairs.planted(pairs, 1.0).share <= 0.05


def test_rules_and_models_of_fresh_pairs() -> None:
    assert gate_pairs.rule_of(None).looks == (5,)
    assert gate_pairs.rule_of(9).looks == (5, 9)
    with pytest.raises(BadInput, match="need 5"):
        gate_pairs.rule_of(4)
    with pytest.raises(LookupError, match="deepfm"):
        gate_pairs.tiny("deepfn")


def test_a_neighbour_ends_with_its_block() -> None:
    import psutil

    before = {p.pid for p in psutil.Process().children()}
    with gate_pairs.neighbour(True, 0):
        (mine,) = [p for p in psutil.Process().children() if p.pid not in before]
    assert not psutil.pid_exists(mine.pid)
    with gate_pairs.neighbour(False, 0):
        assert {p.pid for p in psutil.Process().children()} == before


@pytest.mark.timeout(1800)
def test_a_fresh_pair_runs_and_the_file_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes, two a side, as the second pair of a file: the one beside a neighbour."""
    file, whole = tmp_path / "pairs.jsonl", gate_pairs.tiny
    write(file, [line(0)])
    rule = StoppingRule(looks=(2,), width=0.5, tests=1, alpha=0.9)
    monkeypatch.setattr(gate_pairs, "rule_of", lambda most: rule)
    monkeypatch.setattr(gate_pairs, "tiny", lambda model: whole(model, steps=24, warmup=1, batch=16))
    assert gate_trials.main(["fresh", str(file)]) == 0
    old, new = gate_pairs.pairs_in(file)
    assert old == line(0)
    assert (new["pair"], new["noisy"]) == (1, True)
    assert set(new["calls"]) == {"step_time", "rss_peak"}
    assert new["stopped"]
    assert {len(v) for side in new["values"].values() for v in side.values()} == {2}
    assert min(new["values"]["A"]["step_time"]) > 0
