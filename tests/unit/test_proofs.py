"""Every proof names a mechanism of a card and a test that exists; what has none is told."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.config import build_plan
from ctrbench.bench.proofs import SHARED, proofs, with_proofs
from ctrbench.bench.registry import model_names, model_spec

ROOT = Path(__file__).resolve().parents[2]


@cache
def names_in(file: str) -> frozenset[str]:
    found = ast.walk(ast.parse((ROOT / file).read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef))


@cache
def mechanisms(model: str) -> frozenset[str]:
    spec = model_spec(model)
    return frozenset(row.mechanism for row in spec.card(spec.config()).rows)


@pytest.mark.parametrize("model", [m for m in proofs() if m != SHARED])
def test_mechanisms_are_those_of_the_card(model: str) -> None:
    assert set(proofs()[model]) <= mechanisms(model)


def test_shared_mechanisms_occur_in_several_cards() -> None:
    for mechanism in proofs()[SHARED]:
        assert sum(mechanism in mechanisms(m) for m in model_names()) > 1, mechanism


def test_tests_exist() -> None:
    for model, rows in proofs().items():
        for mechanism, named in rows.items():
            for test in named:
                file, _, name = test.partition("::")
                assert name.startswith("test_"), (model, mechanism, test)
                assert name in names_in(file), (model, mechanism, test)


UNPROVEN = {
    "sizes": {
        "composite", "dien", "din", "fat", "gpt_block", "lum_step1", "shared_fields", "dcn", "dcn_v2", "deepfm",
        "dlrm", "dnn", "ffm", "fm", "lr", "wide_deep", "bst", "hstu", "onetrans",
    },
    "towers and task heads": {"composite"},
    "batch norm in the MLP": {"dcn"},
    "negative sampling of the auxiliary loss": {"dien"},
    "MLPs without normalisation": {"dlrm"},
    "instance normalisation, early stopping": {"ffm"},
    "regulariser": {"fm"},
    "crosses of the wide part": {"wide_deep"},
    "optimizers": {"wide_deep"},
    "start of pair weights": {"fat"},
    "start of bases, routers and meta-embeddings": {"fat"},
    "inputs": {"gpt_block"},
    "objective": {"gpt_block", "onetrans"},
    "task": {"hstu"},
    "user's fields": {"hstu"},
    "other fields of the candidate": {"hstu"},
    "conditions": {"lum"},
    "backbone of step 3": {"lum"},
    "schedule": {"tiger"},
    "parameter count": {"tiger"},
    "optimizer of all weights": {"tiger"},
    "sizes and schedule of step 1": {"lum"},
    "mask": {"lum_step1"},
    "users": {"lum_step1"},
    "different items of a batch": {"lum_step1"},
    "reuse across requests": {"onetrans"},
    "candidate-specific histories": {"onetrans"},
    "heads": {"onetrans"},
    "feed-forward ratio": {"onetrans"},
    "hidden width of the NS tokenizer": {"onetrans"},
    "width of the token networks, k": {"rankmixer"},
    "tokenizer's details, sizes of the heads": {"rankmixer"},
}  # fmt: skip
"""Mechanism -> models whose card shows it as unproven: what no test could hold (a size, what was left out, what no
source says), or what none does yet. A row that gets its test leaves this list; none may join it unseen."""


@pytest.mark.parametrize("model", model_names())
def test_unproven_rows_are_these(model: str) -> None:
    spec = model_spec(model)
    rows = with_proofs(spec.card(spec.config()))["rows"]
    bare = {r["mechanism"] for r in rows if not r["tests"]}
    assert bare == {mechanism for mechanism, models in UNPROVEN.items() if model in models}
    assert not any(r["status"] == "faithful" for r in rows if not r["tests"]), "faithful needs a test"


def configs() -> Iterator[tuple[str, Any]]:
    """Every config that a report can show: defaults, published sizes, what the suites of variants set."""
    for model in model_names():
        spec = model_spec(model)
        yield model, spec.config()
        yield from ((model, preset.config) for preset in spec.published())
    for suite in ("ci", "ablation", "standard"):
        for job in build_plan([f"suite={suite}"]).jobs:
            for entry in job.models:
                options = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.options.items()}
                yield entry.model, model_spec(entry.model).config(**options)


@pytest.mark.parametrize(("model", "config"), configs(), ids=lambda v: v if isinstance(v, str) else "")
def test_cards_have_no_empty_cell(model: str, config: Any) -> None:
    """What is adapted or unknown says by note or switch what stands here instead."""
    card = model_spec(model).card(config)
    assert card.model == model
    assert card.paper
    assert card.rows
    for row in card.rows:
        assert row.mechanism
        assert row.section
        assert row.status in ("faithful", "adapted", "unknown")
        assert row.status == "faithful" or row.note or row.switch, row
