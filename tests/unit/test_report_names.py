"""Every model of the registry has a title, and no two are drawn alike."""

from __future__ import annotations

from itertools import combinations

import pytest
from plotly.validator_cache import ValidatorCache

from ctrbench.bench.registry import model_names, model_spec
from ctrbench.reports.names import COLOURS, GREY, MARKERS, SYMBOLS, TITLES, Names

CONFUSION = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Linear RGB as it looks without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1)."""


def names() -> Names:
    specs = {n: model_spec(n) for n in model_names()}
    return Names(camps={n: "control" if s.control else s.family for n, s in specs.items()})


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]


def test_every_model_has_a_title_of_its_own() -> None:
    given = names()
    titles = [given.title(n) for n in model_names()]
    assert set(model_names()) <= set(TITLES)
    assert len(set(titles)) == len(titles)


def test_no_two_models_are_drawn_alike() -> None:
    given = names()
    drawn = {n: (given.colour(n), given.symbol(n)) for n in model_names()}
    assert len(set(drawn.values())) == len(drawn), drawn
    assert {n for n, (colour, _) in drawn.items() if colour == GREY} == {n for n in drawn if given.camp(n) == "control"}
    valid = ValidatorCache.get_validator("scatter.marker", "symbol")
    assert all(valid.validate_coerce(symbol) for _, symbol in drawn.values())
    assert set(MARKERS) <= set(COLOURS)
    assert all(given.symbol(n).startswith(SYMBOLS[given.camp(n)]) for n in model_names() if given.camp(n) != "control")


def test_any_name_in_any_camp_is_a_symbol_that_plotly_knows() -> None:
    """A floor was once called `lr`, as a model is now; old records are still drawn."""
    valid = ValidatorCache.get_validator("scatter.marker", "symbol")
    for camp in ("control", "floor", "other"):
        assert all(valid.validate_coerce(Names(camps={n: camp}).symbol(n)) for n in model_names())


@pytest.mark.parametrize("sight", CONFUSION)
def test_the_colours_stay_apart_without_one_kind_of_cone(sight: str) -> None:
    """Distance in linear RGB; two greys one step apart on an eight-bit screen are .004 to .008 from each other."""
    seen = {
        c: [sum(w * v for w, v in zip(row, linear(c), strict=True)) for row in CONFUSION[sight]]
        for c in set(COLOURS.values())
    }
    for a, b in combinations(seen, 2):
        assert sum((x - y) ** 2 for x, y in zip(seen[a], seen[b], strict=True)) ** 0.5 > 0.1, (a, b)
