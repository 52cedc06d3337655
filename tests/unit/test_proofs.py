"""Every proof names a mechanism of a card and a test that exists; what has none is told."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("model", [m for m in model_names() if not model_spec(m).control])
def test_cards_have_no_empty_cell_and_faithful_is_proven(model: str) -> None:
    """What is called faithful has a test, but for these."""
    spec = model_spec(model)
    unproven = {("onetrans", "event tokenizer: one MLP a behaviour type"), ("bst", "one layer")}
    for row in with_proofs(spec.card(spec.config()))["rows"]:
        assert all(row[name] for name in ("mechanism", "status", "section")), row
        if row["status"] == "faithful" and (model, row["mechanism"]) not in unproven:
            assert row["tests"], (model, row["mechanism"])
