"""The planted mistakes of `make mutations` fit the sources as they are; planting them takes minutes, not done here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.mutations.mistake import Mistake
from tests.mutations.planted import PLANTED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mistake", PLANTED, ids=lambda m: f"{m.model}-{m.what}")
def test_the_place_is_found_once_and_its_tests_exist(mistake: Mistake) -> None:
    assert (ROOT / mistake.file).read_text().count(mistake.old) == 1
    assert mistake.new != mistake.old
    for test in mistake.tests:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()


LEAST = {
    **dict.fromkeys(("fat", "onetrans", "lum", "din", "dcn_v2"), 8),
    **dict.fromkeys(("statistics", "quality", "scaling", "counting", "cost", "data"), 10),
}


def test_every_model_and_every_kind_of_number_has_enough() -> None:
    counts = Counter(m.model for m in PLANTED)
    assert set(counts) == {*LEAST, "serving", "tables", "loader"}
    assert all(counts[name] >= least for name, least in LEAST.items())
    assert len({(m.model, m.what) for m in PLANTED}) == len(PLANTED)
