"""Content of items: their fields and their company in what training may see."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ctrbench.bench.content import WINDOW, conditions, content_of, cooccurrence
from ctrbench.bench.pretrain import event_log, last_rows
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID
from ctrbench.models.lum_backbone import event_fields

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
movielens_folder, random_events = _tiny["movielens_folder"], _tiny["random_events"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("content")
    files = movielens_folder(folder / "ml", random_events(3, count=500, seconds=5000))
    return prepare("movielens_1m", str(files), str(folder / "p"), split="per_user")


def test_fields_and_company_of_the_items_that_training_sees(prepared: Prepared) -> None:
    roles = event_fields(prepared.schema)
    spans = last_rows(prepared, roles).spans_U2[:2]  # of two users, so that some items stay unseen
    content, text = content_of(prepared, spans, prepared.schema, width=4)
    log = prepared.events("hist")["hist_item"].to_numpy()
    seen = set(np.concatenate([log[b:e] for b, e in spans]).tolist()) - set(range(FIRST_ID))
    rows = prepared.schema["item"].cardinality
    genres, years = (prepared.schema[n].cardinality - FIRST_ID for n in ("genre", "year"))
    assert content.shape == (rows, genres + years + 4)
    assert content.dtype == torch.float32
    assert f"genre ({genres} columns), year ({years} columns), co-occurrence within {WINDOW} events" in text
    assert f"{rows - FIRST_ID - len(seen)} of {rows - FIRST_ID} items have none" in text
    assert 0 < len(seen) < rows - FIRST_ID
    kinds = prepared.frame("train", columns=["item", "genre", "year"]).unique()
    for item, genre, year in kinds.iter_rows():
        if item not in seen:
            assert not content[item].any()
            continue
        assert content[item, :genres].nonzero().flatten().tolist() == [genre - FIRST_ID]
        assert content[item, genres : genres + years].nonzero().flatten().tolist() == [year - FIRST_ID]
    for begin, end in ((0, genres), (genres, genres + years), (genres + years, None)):
        block = content[sorted(seen), begin:end]
        assert float(block.square().sum(dim=1).mean()) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(content_of(prepared, spans, prepared.schema, width=4)[0], content), "the seed decides"
    bare, words = content_of(prepared, spans, prepared.schema, width=0)
    torch.testing.assert_close(bare, content[:, : genres + years])
    assert "co-occurrence" not in words


def test_events_outside_the_spans_change_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = event_fields(prepared.schema)
    spans = last_rows(prepared, roles).spans_U2
    before, _ = content_of(prepared, spans, prepared.schema)
    log = prepared.events("hist")
    inside = np.zeros(log.height, bool)
    for b, e in spans:
        inside[b:e] = True
    assert not inside.all()
    item = np.where(inside, log["hist_item"].to_numpy(), FIRST_ID)
    other = log.with_columns(pl.Series("hist_item", item))
    monkeypatch.setattr(Prepared, "events", lambda self, history: other)
    assert torch.equal(content_of(prepared, spans, prepared.schema)[0], before)


def test_positive_pmi_by_loops() -> None:
    """With as many columns as items the vectors' products with the right ones give the matrix back."""
    rng = np.random.default_rng(0)
    spans = [rng.integers(3, 9, n) for n in (25, 1, 14)]
    count = np.zeros((9, 9))
    for items in spans:
        for i, a in enumerate(items):
            for j, b in enumerate(items):
                if i != j and a != b and abs(i - j) <= WINDOW:
                    count[a, b] += 1
    pmi = np.zeros((9, 9))
    for a in range(9):
        for b in range(9):
            if count[a, b]:
                pmi[a, b] = max(0.0, math.log(count[a, b] * count.sum() / (count[a].sum() * count[b].sum())))
    found = cooccurrence(spans, 9, 9)
    vectors, values, _ = np.linalg.svd(pmi)
    # U S Uᵀ by either: the signs of the columns are free, equal singular values may turn.
    np.testing.assert_allclose(found @ found.T, (vectors * values) @ vectors.T, atol=1e-8)


def test_no_company_at_all_gives_zeros() -> None:
    assert not cooccurrence([np.array([4]), np.array([5])], 6, 2).any()


def test_condition_of_an_item_is_that_of_its_last_event(prepared: Prepared) -> None:
    roles = event_fields(prepared.schema)
    log, spans = event_log(prepared, roles), last_rows(prepared, roles).spans_U2
    rows = prepared.schema["item"].cardinality
    found = conditions(log, spans, roles.item, roles.cond, rows)
    expected = np.zeros(rows, np.int64)
    for b, e in spans:
        for at in range(b, e):
            if log[roles.item][at] >= FIRST_ID:
                expected[log[roles.item][at]] = log[roles.cond][at]
    assert (found == expected).all()
