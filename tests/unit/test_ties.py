"""Every pair of models: what is stored, the tied groups, and how the page shows them."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrbench.bench.every_pair import pair_rows
from ctrbench.reports.cells import Cell, tidy
from ctrbench.reports.measures import make
from ctrbench.reports.names import Names
from ctrbench.reports.records import frame
from ctrbench.reports.tables import verdict
from ctrbench.reports.ties import Ties, figure, lettered, sentence, table, ties

NAMES = Names()


def delta(value: float, half: float = 0.001) -> Cell:
    return Cell(value, "auc_pair", "derived", value - half, value + half, 3, signed=True)


def made(aucs: dict[str, float], half: float = 0.001) -> Ties:
    """Pairs of models with these AUCs, best first; they differ where their distance is above `half`."""
    order = sorted(aucs, key=lambda m: -aucs[m])
    auc = {(m, ""): Cell(aucs[m], "auc", "measured") for m in order}
    pairs = {(a, b): delta(aucs[a[0]] - aucs[b[0]], half) for a in auc for b in auc if a != b}
    return Ties(auc, pairs)


def test_letters_of_a_chain() -> None:
    found = made({"din": 0.780, "fat": 0.7795, "onetrans": 0.7788, "deepfm": 0.770})
    # din and onetrans are told apart, fat is tied with both.
    assert found.letters() == {("din", ""): "a", ("fat", ""): "a,b", ("onetrans", ""): "b", ("deepfm", ""): "c"}
    assert sentence(found, NAMES) == "4 of 6 pairs are told apart; DIN, FAT are not, at the top."


def test_one_alone_leads() -> None:
    assert sentence(made({"din": 0.8, "fat": 0.7}), NAMES) == "1 of 1 pairs are told apart; DIN leads alone."


@given(st.lists(st.floats(0.5, 0.9), min_size=2, max_size=9, unique=True), st.floats(1e-4, 0.2))
def test_a_shared_letter_means_a_tie_and_every_tie_shares_one(aucs: list[float], half: float) -> None:
    found = made({f"m{i}": a for i, a in enumerate(aucs)}, half)
    letters = {who: set(text.split(",")) for who, text in found.letters().items()}
    for a, b in combinations(found.auc, 2):
        assert bool(letters[a] & letters[b]) == (verdict(found.pairs[a, b]) == "tied")
    assert "a" in letters[next(iter(found.auc))]


def rows(*wanted: tuple[str, str, str, float]) -> pd.DataFrame:
    base: dict[str, Any] = {
        "data": "movielens_1m", "split": "s", "track": "sequence", "preset": "small", "family": "legacy",
        "run": "r", "phase": "train",
    }  # fmt: skip
    out = []
    for m, v, scope, x in wanted:
        ends = {"ci_low": x - 0.001, "ci_high": x + 0.001}
        out.append(make({**base, "model": m, "variant": v}, "auc_pair", x, "derived", scope=scope, n=3, **ends))
    aucs = {"din": 0.78, "fat": 0.77, "onetrans": 0.779}
    out += [make({**base, "model": m, "variant": v, "run": f"{m}{v}"}, "auc", a, "measured", phase="train", n=3)
            for m, a in aucs.items() for v in ("", "tuned")]  # fmt: skip
    return tidy(frame(out))


def test_kinds_stand_apart_and_both_directions_are_read() -> None:
    table_of = rows(("din", "", "vs:fat", 0.01), ("onetrans", "tuned", "vs:din,tuned", -0.0002))
    found = ties(table_of, table_of["data"].iloc[0])
    assert set(found) == {"", "tuned"}
    back = found[""].pairs[("fat", ""), ("din", "")]
    assert (back.value, back.low, back.high) == (-0.01, pytest.approx(-0.011), pytest.approx(-0.009))
    shown = table(found["tuned"], NAMES)
    # The higher mean stands first, whichever way round the record has it.
    assert list(shown["Model"]) == ["DIN · tuned"]
    assert list(shown["Paired verdict"]) == ["tied"]
    assert shown["ΔAUC, Model minus Against"].iloc[0].text.startswith("+")


def test_no_pairs_no_letters() -> None:
    quality = pd.DataFrame({"Model": ["DIN"], "Paired verdict": ["tied"]})
    assert lettered(quality, {}, NAMES) is quality
    assert ties(rows(), "movielens_1m") == {}
    assert figure(made({"din": 0.8, "fat": 0.7}), NAMES) is None


def test_the_figure_says_it_without_colour() -> None:
    found = made({"din": 0.780, "fat": 0.7795, "deepfm": 0.770})
    drawn = figure(found, NAMES)
    assert drawn is not None
    signs = {t.y[0]: dict(zip(t.x, t.text, strict=True)) for t in drawn.data}
    assert signs["DIN"] == {"FAT": "=", "DeepFM": ">"}
    assert signs["DeepFM"] == {"DIN": "<", "FAT": "<"}


def test_rows_pair_equal_seeds_of_one_kind() -> None:
    def run(seed: int, kind: str = "quality") -> SimpleNamespace:
        return SimpleNamespace(spec=SimpleNamespace(seed=seed, kind=kind, dtype="float32", compile="eager"))

    trained: dict[Any, Any] = {
        ("din", ""): [run(0), run(1)], ("din", "dim=8"): [run(0)], ("fat", ""): [run(1), run(2)],
        ("fat", "tuned"): [run(0)], ("din", "tuned"): [run(0)], ("lightgbm", ""): [run(0, "floor")],
        ("onetrans", "layers=1"): [run(7)],
    }  # fmt: skip
    aucs = {who: np.linspace(0.7, 0.8, len(runs)) for who, runs in trained.items()}
    draws = {who: np.random.default_rng(0).normal(0.7, 0.01, (len(runs), 50)) for who, runs in trained.items()}
    bases = {who: {"run": "r", "model": who[0], "variant": who[1]} for who in trained}
    found = pair_rows(trained, bases, aucs, draws, ("tuned", "equal_flops"))
    assert {r.metric for r in found} == {"auc_pair", "auc_pair_mdd"}
    assert all(r.value > 0 for r in found if r.metric == "auc_pair_mdd" and r.n > 1)
    found = [r for r in found if r.metric == "auc_pair"]
    assert [(r.model, r.variant, r.scope, r.n) for r in found] == [
        ("din", "", "vs:fat", 1),  # seed 1 alone; the variant dim=8 and the floor pair with nobody
        ("fat", "tuned", "vs:din,tuned", 1),
    ]
    assert found[0].value == pytest.approx(0.8 - 0.7)
