"""Probes and joint training on the page, from SYNTHETIC rows."""

from __future__ import annotations

from typing import Any

import pytest

from ctrbench.reports import tables, tuning, user_models
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import Names
from ctrbench.reports.records import Measurement, frame

BASE = {"run": "synthetic", "model": "lum", "family": "transformer", "data": "synthetic", "track": "sequence",
        "phase": "train"}  # fmt: skip


def context(rows: list[Measurement], configs: dict[str, dict[str, Any]] | None = None) -> Context:
    bodies = {
        v: {"spec": {"kind": "quality", "model": "lum", "variant": v, "config": options}, "extra": {}}
        for v, options in (configs or {}).items()
    }
    return Context(tidy(frame(rows)), bodies, Names(camps={"lum": "transformer"}), (("sequence", "synthetic"),))


def probe(name: str, gains: list[tuple[float, float, float]]) -> list[Measurement]:
    rows = []
    for seed, (value, low, high) in enumerate(gains):
        for head in ("embedding", "counts", "majority"):
            rows.append(make(BASE, "probe_accuracy", 0.5, "measured", scope=f"{name}:{head}", seed=seed, n=900,
                             ci_low=0.4, ci_high=0.6))  # fmt: skip
        for what in ("accuracy", "auc"):
            rows.append(make(BASE, "probe_gain", value, "derived", scope=f"{name}:{what}", seed=seed, n=900,
                             ci_low=low, ci_high=high))  # fmt: skip
    return rows


def test_a_gain_counts_where_every_seed_has_it() -> None:
    rows = probe("gender", [(0.04, 0.02, 0.06), (0.02, 0.01, 0.05)]) + probe(
        "age", [(0.04, 0.02, 0.06), (0.0, -0.1, 0.1)]
    )
    rows += probe("next genre", [(-0.2, -0.3, -0.1)] * 2)
    c = context(rows)
    table = user_models.probe_table(c, "synthetic")
    gain = table.loc[table["Told of the user"] == "gender", "AUC over counts"].iloc[0]
    assert (gain.value, gain.low, gain.high) == (pytest.approx(0.03), 0.01, 0.06)
    said = user_models.probe_sentence(table, "synthetic")
    assert "better in gender (+0.0300 [+0.0100, +0.0600]); tied in age" in said
    assert "worse in next genre" in said
    section = tuning.pretraining(c)
    assert section is not None
    assert said in section.sentence
    assert tables.headline(c.frame, "synthetic", c.names).empty  # a probed pre-training is no ranker


def test_withheld_probes_say_why() -> None:
    rows = [withheld(BASE, "probe_accuracy", "no user-side field", scope="attributes:embedding", seed=0)]
    table = user_models.probe_table(context(rows), "synthetic")
    assert table["Accuracy"].iloc[0].reason == "no user-side field"
    assert user_models.probe_sentence(table, "synthetic") == ""


CONFIGS: dict[str, dict[str, Any]] = {
    "host=din": {}, "post": {"frozen": False}, "end": {"frozen": False, "pretrain_epochs": 0},
    "random": {"pretrain_epochs": 0}, "joint": {"frozen": False, "objective": "joint"},
    "scratch": {"frozen": False, "objective": "joint", "pretrain_epochs": 0},
}  # fmt: skip


def joint_rows(variant: str, gain: float | None) -> list[Measurement]:
    base = BASE | {"variant": variant}
    rows = [make(base, "auc", 0.77, "measured"), make(base, "recall_after", 0.1, "measured")]
    if gain is not None:
        rows += [make(base, "joint_gain", gain, "derived", scope=s, ci_low=gain - 0.01, ci_high=gain + 0.01)
                 for s in ("auc", "recall")]  # fmt: skip
    return rows


def test_joint_and_separate_stand_side_by_side() -> None:
    rows = [r for v in CONFIGS for r in joint_rows(v, None if v == "host=din" else 0.02 if v == "joint" else -0.005)]
    table = user_models.joint_table(context(rows, CONFIGS), "synthetic").set_index("Model")["User model"].to_dict()
    assert {k.removeprefix("LUM · "): v for k, v in table.items()} == {
        "host=din": "separate", "post": "ranking alone, after step 1", "end": "ranking alone, from scratch",
        "random": "random, frozen", "joint": "joint, after step 1", "scratch": "joint, from scratch",
    }  # fmt: skip
    section = tuning.pretraining(context(rows, CONFIGS))
    assert section is not None
    assert "(joint, after step 1) ranks better (+0.0200 [+0.0100, +0.0300]) and retrieves better" in section.sentence
    assert "(joint, from scratch) ranks tied" in section.sentence


def test_without_a_trained_user_model_there_is_nothing_to_compare() -> None:
    assert user_models.joint_table(context(joint_rows("host=din", None)), "synthetic").empty
