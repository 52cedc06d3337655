"""Variants are paired with the nearest variant of the same model; the report says against which."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ctrbench.bench.config import build_plan
from ctrbench.bench.option_gains import option_rows
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.summary import Run
from ctrbench.reports import options
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make
from ctrbench.reports.names import Names
from ctrbench.reports.records import Measurement
from ctrbench.reports.tables import plain_text

LUM = {"": {"host": "din"}, "q": {"host": "din", "queries": 1},
       "blind": {"host": "din", "queries": 1, "condition": False}, "other": {"host": "fat", "queries": 1}}  # fmt: skip


def runs(model: str, variant: str, config: dict[str, Any], seeds: tuple[int, ...] = (0, 1), **given: Any) -> list[Run]:
    base = {"kind": "quality", "model": model, "variant": variant, "config": config, "lr": 1e-3} | given
    return [Run(RunSpec.from_json(base | {"seed": s}), {"extra": {}}) for s in seeds]


def gains(trained: dict[tuple[str, str], list[Run]], auc: dict[tuple[str, str], list[float]]) -> list[Measurement]:
    mean = {who: np.array(a) for who, a in auc.items()}
    draws = {who: a[:, None] + np.linspace(-0.001, 0.001, 21) for who, a in mean.items()}
    bases = {who: {"run": "summary", "model": who[0], "variant": who[1], "data": "d", "split": "s",
                   "family": "transformer", "track": "sequence", "preset": "small"} for who in trained}  # fmt: skip
    return option_rows(trained, bases, mean, draws)


def test_the_nearest_variant_has_most_of_the_options_and_none_beside_them() -> None:
    trained = {("lum", v): runs("lum", v, c) for v, c in LUM.items()}
    found = gains(trained, {who: [0.6 + 0.01 * i, 0.62 + 0.01 * i] for i, who in enumerate(trained)})
    assert {(r.variant, r.scope) for r in found} == {("q", "vs:"), ("blind", "vs:q")}
    assert [r.value for r in found] == pytest.approx([0.01, 0.01])
    assert all(r.n == 2 and r.ci_low is not None and r.ci_high is not None for r in found)


def test_other_budgets_models_and_seeds_do_not_pair() -> None:
    plain, changed = runs("fat", "", {}, seeds=(0, 2)), {"pairs": False}
    for other in (runs("onetrans", "x", changed), runs("fat", "x", changed, lr=1e-2), runs("fat", "x", {}),
                  runs("fat", "x", changed, seeds=(1,)), runs("fat", "x", changed, tuned=True)):  # fmt: skip
        trained = {("fat", ""): plain, (other[0].spec.model, "x"): other}
        assert gains(trained, {who: [0.6] * len(r) for who, r in trained.items()}) == []
    trained = {("fat", ""): plain, ("fat", "x"): runs("fat", "x", changed, seeds=(1, 2))}
    (row,) = gains(trained, {("fat", ""): [0.5, 0.7], ("fat", "x"): [0.9, 0.6]})
    assert (row.n, row.value) == (1, pytest.approx(-0.1))  # seed 2 alone


def test_every_variant_of_the_ablation_has_its_model_to_stand_against() -> None:
    (job,) = build_plan(["suite=ablation"]).jobs
    trained = {}
    for i, entry in enumerate(job.models):
        trained[entry.model, str(i)] = runs(entry.model, str(i), dict(entry.options))
    found = gains(trained, {who: [0.6, 0.61] for who in trained})
    alone = {who for who in trained if who[1] not in {r.variant for r in found}}
    assert sorted(model for model, _ in alone) == ["din", "fat", "lum", "onetrans"], "one whole model of each"


def test_the_section_names_both_and_says_what_the_interval_decides() -> None:
    trained = {("fat", v): runs("fat", v, c) for v, c in (("", {}), ("pairs=false", {"pairs": False}))}
    auc = {("fat", ""): [0.70, 0.71], ("fat", "pairs=false"): [0.68, 0.69]}
    rows = gains(trained, auc)
    base = {
        "run": "summary",
        "data": "d",
        "split": "s",
        "family": "transformer",
        "track": "sequence",
        "preset": "small",
    }
    rows += [make(base | {"model": m, "variant": v}, "auc", float(np.mean(a)), "measured", phase="train", n=2)
             for (m, v), a in auc.items()]  # fmt: skip
    frame = tidy(pd.DataFrame([asdict(r) for r in rows]))
    names = Names({"fat": "FAT"}, {"fat": "transformer"})
    found = options.section(Context(frame, {}, names, (("sequence", "d"),)))
    assert found is not None
    (row,) = found.exhibits[0].table.map(plain_text).to_dict("records")
    assert (row["Against"], row["Verdict"]) == ("FAT", "worse")
    assert row["ΔAUC"].startswith("-0.0200 [")
    assert "1 worse (FAT · pairs=false)" in found.sentence
    assert options.section(Context(frame[frame["metric"] == "auc"], {}, names, (("sequence", "d"),))) is None
