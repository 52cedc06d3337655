"""Paired differences when a training crashed: seeds pair with their like, and the suite still gets its summary."""

from __future__ import annotations

import numpy as np
import pytest

from ctrbench.bench.runspec import Kind, RunSpec
from ctrbench.bench.summary import EQUAL_FLOPS, TUNED, Run, _paired, count_of, references, standing_for_tuned

AUC = {"composite": {0: 0.70, 1: 0.72, 2: 0.74}, "din": {0: 0.71, 1: 0.73, 2: 0.75}, "lightgbm_history": {0: 0.735}}


def paired(seeds: dict[str, list[int]]) -> dict[tuple[str, str], object]:
    trained, draws, aucs = {}, {}, {}
    for model, kept in seeds.items():
        kind: Kind = "floor" if model == "lightgbm_history" else "quality"
        specs = [RunSpec(kind=kind, model=model, data="d", split="s", seed=s) for s in kept]
        who = model, ""
        trained[who] = [Run(s, {"extra": {"track": "sequence"}}) for s in specs]
        aucs[who] = np.array([AUC[model][s] for s in kept])
        draws[who] = aucs[who][:, None] + np.zeros((1, 50))
    rows = _paired(trained, {}, draws, aucs, "sequence", "summary")
    return {(r.model, r.scope): r for r in rows if r.metric == "auc_delta"}


@pytest.mark.parametrize("din", [[0, 1, 2], [0, 2], [1], [2, 0]])
@pytest.mark.parametrize("composite", [[0, 1, 2], [1, 2], [0, 1]])
def test_only_equal_seeds_pair(din: list[int], composite: list[int]) -> None:
    row = paired({"din": din, "composite": composite})["din", "vs:composite"]
    common = set(din) & set(composite)
    if not common:
        assert row.value is None
        assert "same seed" in row.reason
        return
    assert row.value == pytest.approx(0.01)  # every pair of equal seeds differs by .01, unequal ones by up to .05
    assert (row.ci_low, row.ci_high) == pytest.approx((0.01, 0.01))
    assert row.n == len(common)


def test_a_floor_pairs_with_every_seed_that_finished() -> None:
    row = paired({"din": [0, 2], "lightgbm_history": [0]})["din", "vs:lightgbm_history"]
    assert row.value == pytest.approx(0.73 - 0.735)
    assert row.n == 2


def of(model: str, variant: str = "", host: str = "") -> tuple[tuple[str, str], list[Run]]:
    spec = RunSpec(kind="quality", model=model, variant=variant, data="d", split="s")
    return (model, variant), [Run(spec, {"extra": {"host": host} if host else {}})]


def test_a_tuned_model_pairs_with_the_tuned_reference_and_lum_with_its_host() -> None:
    trained = dict(
        [of("composite"), of("composite", TUNED), of("din"), of("din", TUNED), of("fat"), of("lum", "host=fat", "fat"),
         of("lum", f"{TUNED},host=fat", "fat")]
    )  # fmt: skip
    pairs = {who: references(who, runs, trained, "sequence") for who, runs in trained.items()}
    assert pairs["din", ""] == [("composite", "")]
    assert pairs["din", TUNED] == [("composite", TUNED)]
    assert pairs["composite", ""] == pairs["composite", TUNED] == []
    assert pairs["lum", "host=fat"] == [("composite", ""), ("fat", "")]
    assert pairs["lum", f"{TUNED},host=fat"] == [("composite", TUNED), ("fat", "")]  # no tuned host ran


def test_a_reference_with_options_is_still_the_reference() -> None:
    trained = dict([of("composite", "dim=4"), of("din")])
    assert references(("din", ""), trained["din", ""], trained, "sequence") == [("composite", "dim=4")]
    assert references(("composite", "dim=4"), trained["composite", "dim=4"], trained, "sequence") == []


def test_a_training_at_equal_flops_pairs_with_its_like_alone() -> None:
    trained = dict(
        [of("composite"), of("composite", EQUAL_FLOPS), of("din", EQUAL_FLOPS), of("fat"), of("lightgbm_history"),
         of("lum", f"{EQUAL_FLOPS},host=fat", "fat")]
    )  # fmt: skip
    pairs = {who: references(who, runs, trained, "sequence") for who, runs in trained.items()}
    assert pairs["din", EQUAL_FLOPS] == [("composite", EQUAL_FLOPS)]
    assert pairs["composite", EQUAL_FLOPS] == []
    # FAT ran with equal rows only: no pair of unequal kinds.
    assert pairs["lum", f"{EQUAL_FLOPS},host=fat"] == [("composite", EQUAL_FLOPS)]


def test_tuned_and_equal_flops_variants_have_the_counts_of_their_model() -> None:
    counted = {("din", ""): {"extra": 1}, ("lum", "host=fat"): {"extra": 2}, ("fat", "dim=4"): {"extra": 3}}
    assert count_of(("din", TUNED), counted) == count_of(("din", EQUAL_FLOPS), counted) == {"extra": 1}
    assert count_of(("lum", f"{TUNED},host=fat"), counted) == {"extra": 2}
    assert count_of(("fat", "dim=4"), counted) == {"extra": 3}
    assert count_of(("fat", TUNED), counted) == {"extra": 3}  # an option of the command line names the count only
    assert count_of(("fat", ""), counted) is None
    assert count_of(("onetrans", TUNED), counted) is None
    two = counted | {("lum", "host=din,queries=2"): {"extra": 4}}
    assert count_of(("lum", f"{TUNED},host=din"), two) == {"extra": 4}


def test_where_the_default_won_it_stands_for_the_tuned_model_too() -> None:
    ((_, runs),) = [of("din")]
    chosen = {"data": "d", "split": "s", "model": "din", "variant": "", "label": TUNED, "best": 0, "trained": True}
    (again,) = standing_for_tuned(runs, [chosen])
    assert (again.spec.variant, again.spec.tuned, again.body) == (TUNED, True, runs[0].body)
    assert again.record == runs[0].record == runs[0].spec.key != again.spec.key
    assert standing_for_tuned(runs, [chosen | {"best": 3}]) == []
    assert standing_for_tuned(runs, [chosen | {"trained": False}]) == []
    assert standing_for_tuned(of("fat")[1], [chosen]) == []
