"""Probes of user embeddings: what is planted is found, what is not is not, and no attribute reaches the embedding."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ctrbench.bench import probe
from ctrbench.bench.config import build_plan
from ctrbench.bench.jobs import JOBS
from ctrbench.bench.last_rows import event_log, last_rows
from ctrbench.bench.pretrain import newest
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, probe_spec, suite_specs
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.models.lum import LumConfig
from ctrbench.models.lum_answers import UserAnswers
from ctrbench.models.lum_backbone import UserModel
from ctrbench.reports import records

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
movielens_folder, random_events = _tiny["movielens_folder"], _tiny["random_events"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("probe")
    raw = movielens_folder(folder / "ml", random_events(1, count=900, seconds=9000))
    return prepare("movielens_1m", str(raw), str(folder / "out"), split="global_time")


def answers(prepared: Prepared, **options: object) -> UserAnswers:
    torch.manual_seed(0)
    return UserAnswers(LumConfig(queries=1, **options), prepared.schema_for(4), "cpu")  # type: ignore[arg-type]


def planted(users: int = 600) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Columns of an embedding that tells a class of three apart, of counts that do not; classes; test users."""
    g = np.random.default_rng(0)
    class_U = g.integers(0, 3, users)
    told = np.eye(3)[class_U] + 0.4 * g.normal(size=(users, 3))
    return {"embedding": told, "counts": g.normal(size=(users, 5))}, class_U, probe.held_out(np.arange(users))


def test_what_is_planted_is_found_and_noise_is_not() -> None:
    columns, class_U, test_U = planted()
    found = probe.judge(columns, class_U, test_U, seed=0)
    assert isinstance(found, probe.Judged)
    assert found.accuracy["embedding"][0] > 0.9
    assert found.auc["counts"][1] < 0.55
    assert found.auc["majority"][0] == pytest.approx(0.5)
    assert found.gain["accuracy"][1] > 0.3
    assert found.gain["auc"][0] == pytest.approx(found.auc["embedding"][0] - found.auc["counts"][0])
    swapped = probe.judge({"embedding": columns["counts"], "counts": columns["counts"]}, class_U, test_U, seed=0)
    assert isinstance(swapped, probe.Judged)
    assert swapped.gain["accuracy"] == (0.0, 0.0, 0.0)


def test_rare_classes_are_left_out_and_one_class_is_withheld() -> None:
    columns, class_U, test_U = planted()
    class_U[:5] = 9
    found = probe.judge(columns, class_U, test_U, seed=0)
    assert isinstance(found, probe.Judged)
    assert (found.classes, found.users) == (3, int((test_U & (class_U != 9)).sum()))
    assert "fewer than two classes" in str(probe.judge(columns, np.zeros_like(class_U), test_U, seed=0))


def test_macro_auc_is_that_of_scikit_learn() -> None:
    g = np.random.default_rng(0)
    proba, truth = g.dirichlet(np.ones(4), 200).round(1), g.integers(0, 4, 200)
    member = truth[:, None] == np.arange(4)
    wanted = np.mean([roc_auc_score(member[:, c], proba[:, c]) for c in range(4)])
    assert probe.macro_auc(proba, member) == pytest.approx(wanted)


def test_test_users_are_a_fixed_part_by_hash() -> None:
    user = np.arange(20_000)
    test = probe.held_out(user)
    assert test.mean() == pytest.approx(probe.TEST_SHARE / 100, abs=0.02)
    order = np.random.default_rng(0).permutation(len(user))
    assert (probe.held_out(user[order]) == test[order]).all()


def one_user(user: UserModel, log: dict[str, np.ndarray], begin: int, end: int, length: int) -> np.ndarray:
    """The embedding by its words: piece by piece, without padding."""
    states = []
    for stop in range(end, begin, -length):
        part = np.array([[max(begin, stop - length), stop]])
        out, real = user.outputs(newest(user, log, part, int(part[0, 1] - part[0, 0])))
        assert real.all()
        states.append(out[0].double().numpy())
    return np.concatenate([np.concatenate(states).mean(axis=0), states[0][-1]])


@pytest.mark.parametrize("condition", [True, False])
def test_an_embedding_is_mean_and_newest_state_whatever_the_padding(prepared: Prepared, condition: bool) -> None:
    lum = answers(prepared, condition=condition)
    rows, log = last_rows(prepared, lum.fields), event_log(prepared, lum.fields)
    found = probe.embed(lum.user, log, rows.spans_U2, lum.length)
    for u in (0, len(found) // 2, len(found) - 1):
        begin, end = rows.spans_U2[u].tolist()
        np.testing.assert_allclose(found[u], one_user(lum.user, log, begin, end, lum.length), atol=1e-5)
    if not condition:  # the newest state knows the newest item
        other = {n: v.copy() for n, v in log.items()}
        other[lum.fields.item][end - 1] = 3 + (other[lum.fields.item][end - 1] == 3)
        assert not np.allclose(probe.embed(lum.user, other, rows.spans_U2, lum.length)[-1], found[-1])


def test_attributes_are_the_users_own_and_no_inputs(prepared: Prepared) -> None:
    lum = answers(prepared)
    rows = last_rows(prepared, lum.fields)
    found = probe.wanted(prepared, lum.user, rows, prepared.rows("train"))
    assert list(found) == ["age", "gender", "occupation", "next genre"]
    assert not {"age", "gender", "occupation"} & {*lum.user.names, *lum.user.tables.rows}
    train = prepared.frame("train", columns=["user_id", "gender"]).unique().sort("user_id")
    of_user = dict(train.iter_rows())
    assert found["gender"].tolist() == [of_user[u] for u in rows.user_U.tolist()]  # type: ignore[union-attr]
    assert found["next genre"] is rows.cond_U


def test_counts_are_shares_and_the_newest(prepared: Prepared) -> None:
    lum = answers(prepared)
    rows, log = last_rows(prepared, lum.fields), event_log(prepared, lum.fields)
    value = probe.counts(log, lum.fields, rows)
    half = value.shape[1] // 2
    np.testing.assert_allclose(value[:, :half].sum(axis=1), 1.0)
    assert (value[:, half:].sum(axis=1) == 1).all()
    assert ((value[:, half:] > 0) <= (value[:, :half] > 0)).all()


def test_the_process_writes_rows_or_reasons(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LEAST_USERS", 3)
    first = RunSpec(
        kind="pretrain", model="lum", config={"queries": 1}, data="movielens_1m", split=prepared.split,
        fingerprint=prepared.fingerprint, prepared=str(prepared.path), history_length=4, train_rows=600, valid_rows=20,
    )  # fmt: skip
    (tmp_path / "records" / first.key).mkdir(parents=True)
    records.save(JOBS["pretrain"](first, tmp_path / "records" / first.key), tmp_path)
    spec = probe_spec(first)
    assert (spec.kind, spec.pretrained, spec.variant) == ("probe", first.key, "queries=1")
    record = JOBS["probe"](spec, tmp_path / "records" / spec.key)
    names = {r.scope.split(":")[0] for r in record.rows}
    assert names == {"age", "gender", "occupation", "next genre"}
    assert all((r.value is None) == bool(r.reason) for r in record.rows)
    assert any(r.metric == "probe_gain" and r.value is not None for r in record.rows)
    assert record.extra["probe"]["reads"] == ["hist_item", "hist_genre", "hist_action"]


def test_the_ablation_probes_every_pre_training_once(prepared: Prepared) -> None:
    plan = build_plan(["suite=ablation", "model=lum", "run.seeds=2", "run.train_rows=300", "run.batch=32"])
    specs, _ = suite_specs(plan, [Ready(plan.jobs[0], prepared, prepared.path)])
    before = [s for s in specs if s.kind == "pretrain"]
    probes = [s for s in specs if s.kind == "probe"]
    assert len(probes) == len(before) == len({s.key for s in probes}) > 2
    assert {s.pretrained for s in probes} == {s.key for s in before}
    assert "queries=1,condition=False" in {s.variant for s in probes}
