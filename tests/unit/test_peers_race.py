"""The race with deepctr-torch and FuxiCTR: its data, its arrays, its verdicts. The peers themselves are not needed."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrbench.bench import peers_ours, peers_verdict
from ctrbench.bench.peers_data import any_place, hashed, write_arrays
from ctrbench.bench.peers_models import ATTENTION, DIM, SIZES, TABLES, TOWER, our_model
from ctrbench.bench.peers_verdict import Run, Side, faster, finalists, our_side, sides, verdict
from ctrbench.bench.targets.peers import matched, outcome, outcomes
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field
from ctrbench.models.embedding import count_parameters

BENCH = Path(peers_ours.__file__).parent


def runs(ours: float, adam: float, adagrad: float, auc: Sequence[float] = (0.75, 0.75, 0.74)) -> dict[Side, list[Run]]:
    """The search and three rounds of everybody; the first candidate of every side wins the search."""
    found = {}
    same = [Side("ctrbench", "deepctr-torch", o, 1.0, 4.0) for o in peers_verdict.OPTIMIZERS]
    for side in [*sides("deepfm"), *same]:
        seconds = {"fused": ours, "adam": adam, "adagrad": adagrad}[side.optimizer]
        seconds *= 1.0 if side.who != "ctrbench" or side.optimizer == "fused" else 2.0
        score = auc[0] if side.who == "ctrbench" else auc[1 if side.optimizer == "adam" else 2]
        seen = score - 0.01 * (side.scale + side.dense)
        found[side] = [Run(seconds=seconds, rows=100, valid_auc=seen, auc=score, weights=1_000_000)] * 4
    return found


@pytest.mark.parametrize(
    ("ours", "adam", "adagrad", "auc", "met"),
    [
        (1.0, 4.0, 3.0, (0.75, 0.75, 0.74), True),
        (1.0, 4.0, 2.0, (0.75, 0.75, 0.74), False),  # too slow against the faster optimizer
        (1.0, 4.0, 3.0, (0.70, 0.70, 0.74), False),  # fast, but worse than the peer's better one
        (1.0, 4.0, 3.0, (0.70, 0.74, 0.70), False),  # also where the better one is the slower one
        (1.0, 4.0, 3.0, (0.749, 0.75, 0.74), True),  # within two standard errors
        (1.0, 4.0, 3.0, (0.515, 0.51, 0.50), False),  # nothing to be as good as: nobody learns
    ],
)
def test_a_pair_is_met_by_speed_and_quality(
    ours: float, adam: float, adagrad: float, auc: tuple[float, ...], met: bool
) -> None:
    judged = verdict("deepfm", "deepctr-torch", runs(ours, adam, adagrad, auc), 2.5, 15_000, 45_000)
    assert judged.met is met
    assert judged.speed.value == pytest.approx(min(adam, adagrad) / ours)
    assert outcome("deepfm", "1.48m", judged).verdict == ("met" if met else "missed")


def test_what_the_products_allow_is_said_in_the_row() -> None:
    given = runs(1.5, 4.0, 3.0)
    ours = our_side("deepfm", "deepctr-torch", given)
    for floor, reachable, said in ((1.4, 3.0 / 1.4, True), (1.0, 3.0, False), (0.0, 0.0, False)):
        held = given | {ours: [replace(r, floor_s=floor) for r in given[ours]]}
        judged = verdict("deepfm", "deepctr-torch", held, 2.5, 15_000, 45_000)
        assert judged.reachable == pytest.approx(reachable)
        row = outcome("deepfm", "1.48m", judged)
        assert ("out of reach" in row.how) is said
        assert row.verdict == "missed"


def test_products_of_a_step_are_those_of_its_layers() -> None:
    """By hand: forward, gradient of the input, gradient of the weight of 8 x 6 x 4 and 8 x 4 x 1; none for the data."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 1))
    x_BN = torch.randn(8, 6)
    assert peers_ours.products(lambda x: model(x).sum().backward(), x_BN) == 2 * (2 * 8 * 6 * 4) + 3 * (2 * 8 * 4)


def test_a_pair_of_other_weights_or_rows_is_no_pair() -> None:
    given = runs(1.0, 4.0, 3.0)
    peer = faster(given, "deepctr-torch")
    for change in ({"weights": 900_000}, {"rows": 99}):
        body = {"seconds": 3.0, "rows": 100, "valid_auc": 0.74, "auc": 0.74, "weights": 1_000_000, **change}
        with pytest.raises(ValueError, match="not the same on both sides"):
            verdict("deepfm", "deepctr-torch", given | {peer: [Run(**body)] * 4}, 2.5, 15_000, 45_000)


def test_matched_rows_set_equal_optimizers_side_by_side() -> None:
    rows = list(matched("deepfm", "1.48m", "deepctr-torch", runs(1.0, 4.0, 3.0)))
    assert [r.target.rsplit(", ", 1)[1] for r in rows] == ["both adam", "both adagrad"]
    assert all(r.verdict == "context" and r.measured.startswith("0.5x") for r in rows)


def test_without_environments_every_row_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = [o for model in peers_verdict.MODELS for o in outcomes(model)]
    assert len(found) == 2 * sum(len(p) for _, p in peers_verdict.MODELS.values())
    assert all(o.verdict == "not testable here" and "make peers-setup" in o.how for o in found)


def test_later_rounds_keep_ours_and_of_each_peer_the_faster_and_the_better() -> None:
    """The first candidate of everybody wins the search but Adagrad's of the peer: 4 times its rate is better."""
    given = runs(1.0, 4.0, 3.0)
    adagrad, fourfold = (Side("deepctr-torch", "deepctr-torch", "adagrad", s) for s in (1.0, 4.0))
    given[fourfold] = [replace(r, valid_auc=0.725) for r in given[adagrad]]
    kept = finalists("deepfm", {s: each[:1] for s, each in given.items()}, ["deepctr-torch"])
    assert kept == [
        Side("ctrbench", "deepctr-torch", "fused", 0.5, 4.0),
        Side("deepctr-torch", "deepctr-torch", "adam"),
        fourfold,
    ]


def test_the_rounds_say_which_optimizer_is_the_faster() -> None:
    """In the search Adagrad was; by the rounds that both finalists ran it is Adam."""
    given = runs(1.0, 4.0, 3.0)
    adam, adagrad = (Side("deepctr-torch", "deepctr-torch", o) for o in ("adam", "adagrad"))
    search = {s: each[:1] for s, each in given.items()}
    assert faster(search, "deepctr-torch") == adagrad
    rounds = search | {adam: [given[adam][0], replace(given[adam][0], seconds=2.0)], adagrad: given[adagrad]}
    assert faster(rounds, "deepctr-torch") == adam


def test_the_peer_with_kept_memory_stands_beside_the_verdict() -> None:
    given = runs(1.0, 4.0, 3.0)
    theirs = replace(faster(given, "deepctr-torch"), kept=True)
    given[theirs] = [replace(given[our_side("deepfm", "deepctr-torch", given)][0], seconds=2.5)]
    judged = verdict("deepfm", "deepctr-torch", given, 2.5, 15_000, 45_000)
    assert (judged.kept, judged.speed.value) == (2.5, 3.0)
    assert "2.5x where it keeps freed memory as we do" in outcome("deepfm", "1.48m", judged).how


def test_arrays_hold_the_rows_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    lines = [[i % 3 == 0, *rng.integers(0, 9, 13), *(f"{v:08x}" for v in rng.integers(0, 5, 26))] for i in range(1_000)]
    raw = tmp_path / "train.txt"
    raw.write_text("".join("\t".join(str(int(v) if j == 0 else v) for j, v in enumerate(r)) + "\n" for r in lines))
    prepared = prepare("criteo", raw)
    file = tmp_path / "arrays.npz"
    write_arrays(prepared, {"train": 300, "test": 100}, file)
    frame = prepared.frame("train", last=300)
    with np.load(file) as arrays:
        names = [f.name for f in prepared.schema.categorical]
        np.testing.assert_array_equal(arrays["train_ids"], frame.select(names).to_numpy())
        dense = frame.select([f.name for f in prepared.schema.dense]).fill_null(0.0).to_numpy()
        np.testing.assert_array_equal(arrays["train_dense"], dense)
        np.testing.assert_array_equal(arrays["train_label"], frame["label"].to_numpy())
        np.testing.assert_array_equal(arrays["cardinality"], [f.cardinality for f in prepared.schema.categorical])
        assert len(arrays["test_label"]) == 100
        assert "log" not in arrays


def test_ids_reach_the_whole_of_a_table() -> None:
    place_N = any_place(1_000, 200_000, 0)
    assert len(set(place_N)) == 1_000
    assert list(place_N[:FIRST_ID]) == [0, 1, 2]
    assert place_N.max() > 150_000
    a_R = np.arange(5_000, dtype=np.uint64) % np.uint64(7)
    ids_R = hashed(a_R, np.arange(5_000, dtype=np.uint64), 3, 1_000)
    assert (ids_R.min(), ids_R.max()) == (FIRST_ID, 999)
    assert len(set(ids_R)) > 950


def test_both_sides_build_the_same_sizes() -> None:
    """The peers' scripts import nothing of ours, so what they repeat is compared here."""
    for script, of in (("peers_deepctr.py", ("deepfm", "dcn_v2")), ("peers_fuxictr.py", ("dcn_v2",))):
        body = (BENCH / script).read_text(encoding="utf-8")
        assert "import ctrbench" not in body
        assert "from ctrbench" not in body
        found: dict[str, Any] = {}
        for node in ast.parse(body).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            if any(n in target for n in ("DIM", "SIZES", "TOWER")):
                exec(f"{target} = {ast.unparse(node.value)}", found)  # constants alone
        assert found["DIM"] == DIM
        assert (tuple(found["ATTENTION"]), tuple(found["TOWER"])) == (ATTENTION, TOWER)
        for model in of:
            for width in ("default", "wide"):
                theirs = found["SIZES"][width]
                mlp, cross = theirs[model] if isinstance(theirs, dict) else theirs
                assert (tuple(mlp), cross) == SIZES[model, width]  # type: ignore[index]


def test_weights_are_those_of_the_peer() -> None:
    """By hand: rows of 16 and first-order weights, numbers raw, MLP 256-128, last layer with a bias."""
    fields = [Field(name=f"C{i}", kind="categorical", role="item", cardinality=10) for i in range(2)]
    fields += [Field(name=f"I{i}", kind="dense", role="context") for i in range(3)]
    schema = FeatureSchema(name="few", track="tabular", fields=tuple(fields))
    n = 2 * 16 + 3
    tower = n * 256 + 256 + 256 * 128 + 128
    wanted = {"deepfm": 20 * 17 + 3 + tower + 128 + 1}
    wanted["dcn_v2"] = 20 * 16 + 2 * (n * n + n) + (n * 128 + 128 + 128 * 128 + 128) + (128 + n) + 1
    for model, weights in wanted.items():
        assert count_parameters(our_model(model, "deepctr-torch", TABLES["fused"], schema)) == weights
