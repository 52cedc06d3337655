"""Tokens as numbers against texts: packing, counts against a Counter, an index against a dict; order of work ahead."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.datasets.ahead import ahead
from ctrbench.datasets.hex_tokens import Counts, Index, of_text, pack, text_of

ODD = ("-0000000", "+0000000", "ABCDEF01", "0x123456", "1_234567", " 1234567", "1234567", "123456789", "", "é2345678")
_TOKEN = st.integers(0, 2**32 - 1).map(lambda n: f"{n:08x}") | st.sampled_from(["00000000", "ffffffff"])
_CELL = st.none() | _TOKEN | st.sampled_from(ODD)


@given(st.lists(st.none() | _TOKEN, max_size=20), st.lists(_CELL, max_size=20))
@settings(deadline=None, max_examples=150)
def test_pack_keeps_every_value(tokens: list[str | None], any_text: list[str | None]) -> None:
    size = min(len(tokens), len(any_text))
    text = pl.DataFrame({"a": tokens[:size], "b": any_text[:size], "c": ["x"] * size}, schema_overrides={
        "a": pl.String, "b": pl.String, "c": pl.String,
    })  # fmt: skip
    packed = pack(text, ["a", "b"])
    assert packed["a"].dtype == pl.UInt32
    assert packed["c"].equals(text["c"])
    plain = all(v is None or re.fullmatch("[0-9a-f]{8}", v) for v in any_text[:size])
    assert (packed["b"].dtype == pl.UInt32) == plain
    for name in ("a", "b"):
        column = packed[name]
        back = column if column.dtype == pl.String else text_of(column.drop_nulls().to_numpy())
        assert back.drop_nulls().to_list() == text[name].drop_nulls().to_list()
        assert column.is_null().to_list() == text[name].is_null().to_list()


@given(st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**32 - 1), max_size=30), max_size=6))
@settings(deadline=None, max_examples=150)
def test_counts_against_a_counter(parts: list[list[int]]) -> None:
    counts, plain = Counts(), Counter[int]()
    for part in parts:
        counts.add(np.array(part, np.uint32))
        plain.update(part)
    assert counts.value_N.tolist() == sorted(plain)
    frame = counts.frame()
    assert dict(frame.iter_rows()) == {f"{v:08x}": n for v, n in plain.items()}
    assert frame["value"].to_list() == sorted(frame["value"])


@pytest.mark.parametrize("keys", [0, 1, 2, 3, 1000, 70_000])
@pytest.mark.parametrize("step", [0, 1, 1 << 12])
def test_index_against_a_dict(keys: int, step: int) -> None:
    """Keys at random, side by side, and alike in their low bits, which some hashes put into one slot."""
    rng = np.random.default_rng(keys)
    key_K = rng.permutation(1 << 32 >> 12)[:keys].astype(np.uint32)
    key_K = rng.choice(1 << 32, keys, replace=False).astype(np.uint32) if step == 0 else key_K * np.uint32(step)
    id_K = np.arange(3, 3 + keys, dtype=np.int32)
    index, plain = Index(key_K, id_K), dict(zip(key_K.tolist(), id_K.tolist(), strict=True))
    asked = np.concatenate([rng.permutation(key_K), np.array([0, 2**32 - 1], np.uint32), key_K + np.uint32(1)])
    assert index.ids(asked, 2).tolist() == [plain.get(v, 2) for v in asked.tolist()]
    assert index.ids(asked[:0], 2).tolist() == []


def test_keys_that_meet_on_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrbench.datasets.hex_tokens._ODD", (1,))  # top bits: small keys all meet
    key_K = np.arange(50, dtype=np.uint32)
    index = Index(key_K, np.arange(100, 150, dtype=np.int32))
    assert index.ids(np.array([0, 7, 49, 50], np.uint32), 2).tolist() == [100, 107, 149, 2]


def test_of_text_leaves_out_what_is_no_token() -> None:
    number_N, place_N = of_text(pl.Series(["0000000a", *ODD, "ffffffff"]))
    assert number_N.tolist() == [10, 2**32 - 1]
    assert place_N.tolist() == [0, len(ODD) + 1]


@pytest.mark.parametrize("depth", [1, 3])
def test_work_ahead_keeps_order_and_the_place_of_errors(depth: int) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("drawn")

    def until_error(work: Callable[[int], int], source: Iterator[int]) -> list[tuple[int, int]]:
        for pair in ahead(source, work, depth):
            seen.append(pair)
        return seen

    seen: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="drawn"):
        until_error(lambda n: n * n, items())
    assert seen == [(n, n * n) for n in range(5)]
    seen = []
    with pytest.raises(ZeroDivisionError):
        until_error(lambda n: 1 // (3 - n), iter(range(10)))
    assert [item for item, _ in seen] == [0, 1, 2]
    assert list(ahead([], str, depth)) == []
