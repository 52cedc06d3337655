"""UserBehavior's readers line for line, and prepared rows against a brute-force twin without sorting or buckets."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctrbench.datasets import account as account_module
from ctrbench.datasets import buckets as buckets_module
from ctrbench.datasets import taobao_behaviour, taobao_reader
from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.negatives import Pool, Sampler
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.taobao_behaviour import TEST_FROM
from ctrbench.datasets.taobao_reader import ACTIONS, END, OUTSIDE, START

Event = tuple[int, int, int, str, int]

VALUES = (
    "1", "0", "007", "", "-1", "1.0", "1.", ".0", "1.5", "1e3", " 1", "1 ", "+1", "nan", "1_0", "٣", "pv", "buy", "PV",
    "9223372036854775807", "9223372036854775808", "9223372036854775807.0", "99999999999999999999", '"1"', "é",
    str(START), str(START - 1), str(END), f"{END - 1}.00", "\ufeff1",
)  # fmt: skip
field = st.one_of(st.sampled_from(VALUES), st.integers(0, 10**12).map(str))
good_line = st.tuples(
    st.integers(0, 99).map(str), st.integers(0, 99).map(str), st.integers(0, 9).map(str), st.sampled_from([*ACTIONS]),
    st.integers(START, END - 1).map(str),
)  # fmt: skip
edited_line = st.tuples(good_line, st.integers(0, 4), field).map(lambda x: (*x[0][: x[1]], x[2], *x[0][x[1] + 1 :]))
line = st.one_of(good_line, edited_line, st.lists(field, max_size=7).map(tuple)).map(",".join)


@given(st.lists(line, min_size=1, max_size=60), st.booleans(), st.booleans(), st.integers(1, 300))
@example(["\ufeff1,0,0,pv,1511600001"], False, False, 1)  # begins a chunk: Polars would take the mark away
@settings(deadline=None, max_examples=150)
def test_fast_reader_agrees_with_plain_reader(lines: list[str], ended: bool, gz: bool, chunk: int) -> None:
    data = ("1,2,3,pv,1511600000\n" + "\n".join(lines) + "\n" * ended).encode()
    lines = data.decode().split("\n")[: -1 if data.endswith(b"\n") else None]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "u.csv"
        path.write_bytes(gzip.compress(data) if gz else data)
        patch.setattr(account_module, "PLACES", len(lines))
        patch.setattr(taobao_reader, "_check_period", lambda *_: None)
        account = Account(path, "skip", 1.0)
        rows = pl.concat(list(taobao_reader.read(path, account, chunk)))
    found = {i: taobao_reader.explain(text) for i, text in enumerate(lines, 1)}
    kept = [(i, *lines[i - 1].split(",")) for i, what in found.items() if what is None]
    expected = [
        (i, *(int(re.sub(r"\.0+$", "", v)) for v in (user, item, category)), ACTIONS[action], int(time.split(".")[0]))
        for i, user, item, category, action, time in kept
    ]
    assert rows.select("position", "user_id", "item", "category", "action", "time").rows() == expected
    assert (account.read, account.kept) == (len(lines), len(kept))
    shown = []
    for i, what in found.items():
        if what is not None:
            cut = i == len(lines) and not data.endswith(b"\n")
            shown.append(f"{path}:{i}: {'truncated last line, ' * cut}{what[0]}: {what[1]} {what[2][:40]!r}")
    assert sorted(shown) == sorted(p for places in account.places.values() for p in places)
    assert account.left_out.total() == sum(
        what is not None and what[0] == OUTSIDE and (i < len(lines) or data.endswith(b"\n"))
        for i, what in found.items()
    )


def _events(seed: int, count: int = 700, users: int = 9, items: int = 300) -> list[Event]:
    """Unsorted events with many ties in time; users are not contiguous, an item has one category."""
    rng = np.random.default_rng(seed)
    time = START + rng.integers(0, 9, count) * 86_400 + rng.integers(0, 40, count)
    item = (rng.integers(0, items**2, count) ** 0.5).astype(int)
    names = rng.choice(list(ACTIONS), count, p=[0.6, 0.2, 0.1, 0.1])
    user = rng.integers(1, users + 1, count)
    return [(int(u), int(i), int(i) % 7, str(a), int(t)) for u, i, a, t in zip(user, item, names, time, strict=True)]


def _write(folder: Path, events: list[Event]) -> Path:
    path = folder / "UserBehavior.csv"
    path.write_text("".join(f"{u},{i},{c},{a},{t}\n" for u, i, c, a, t in events))
    return path


def _decoded(out: Prepared, split: str) -> list[dict[str, object]]:
    """Rows with items and categories as in the file; None where out of vocabulary."""
    words = {c: dict(out.vocabulary(c).select("id", "value").iter_rows()) for c in ("user", "item", "category")}

    def word(column: str, code: int) -> int | None:
        return int(words[column][code]) if code in words[column] else None

    rows = []
    for row in out.frame(split).iter_rows(named=True):
        target = {c: word(c, row[c]) for c in words}
        events = zip(row["hist_item"], row["hist_category"], row["hist_action"], row["hist_time"], strict=True)
        past = [(word("item", i), word("category", c), a, t) for i, c, a, t in events]
        rows.append({"label": row["label"], "user_id": row["user_id"], "time": row["time"], "past": past, **target})
    return rows


@pytest.mark.parametrize("rule", ["global_time", "per_user"])
@pytest.mark.parametrize("buckets", [1, 4])
@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_rows_against_the_raw_file(rule: str, buckets: int, seed: int) -> None:
    """Every positive and every history, from the events one by one; several buckets and windows change none of it."""
    events, length, least = _events(seed), 7, 3
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = _write(Path(folder), events)
        if buckets > 1:
            patch.setattr(buckets_module, "BUCKET_BYTES", path.stat().st_size // buckets)
            patch.setattr(buckets_module, "WINDOW_ROWS", 90)
            patch.setattr(taobao_behaviour, "read", lambda p, a: taobao_reader.read(p, a, 2000))
        out = prepare(
            "taobao_behaviour", path, Path(folder) / "out", split=rule, positives="pv,buy", min_history=least,
            history=length, ratio=2,
        )  # fmt: skip
        rows = {s: _decoded(out, s) for s in SPLITS}
        known = {c: {int(v) for v in out.vocabulary(c)["value"]} for c in ("item", "category")}
    for column, values in known.items():
        assert values == {r[column] for r in rows["train"]}, "vocabulary is not of the train rows"
    own = {(u, i) for u, i, *_ in events}
    expected: Counter[tuple[int, int]] = Counter()
    for user, _, _, action, time in events:
        earlier = sum(u == user and t < time for u, *_, t in events)
        if action in ("pv", "buy") and earlier >= least:
            expected[user, time] += 1
    got = Counter((r["user_id"], r["time"]) for s in SPLITS for r in rows[s] if r["label"] == 1)
    assert got == expected
    negatives = Counter((r["user_id"], r["time"]) for s in SPLITS for r in rows[s] if r["label"] == 0)
    assert negatives == Counter({key: 2 * n for key, n in expected.items()})
    for split in SPLITS:
        times = [r["time"] for r in rows[split]]
        assert times == sorted(times)  # type: ignore[type-var]
        for r in rows[split]:
            _check_row(r, events, own, known, length)
    if rule == "global_time":
        assert max(r["time"] for r in rows["train"]) < min(r["time"] for r in rows["valid"])  # type: ignore[type-var]
        assert max(r["time"] for r in rows["valid"]) < TEST_FROM <= min(r["time"] for r in rows["test"])  # type: ignore[type-var,operator]


def _check_row(
    row: dict[str, object], events: list[Event], own: set[tuple[int, int]], known: dict[str, set[int]], length: int
) -> None:
    user, time, item = row["user_id"], row["time"], row["item"]
    earlier = sorted(
        ((t, p, i, c, a) for p, (u, i, c, a, t) in enumerate(events) if u == user and t < time), key=lambda e: e[:2]
    )
    assert row["past"] == [
        (i if i in known["item"] else None, c if c in known["category"] else None, ACTIONS[a], t)
        for t, _, i, c, a in earlier[-length:]
    ]
    if item is None:
        return
    assert isinstance(item, int)
    assert row["category"] in (item % 7, None)
    if row["label"] == 1:
        assert any((u, i, t) == (user, item, time) and a in ("pv", "buy") for u, i, _, a, t in events)
    else:
        assert (user, item) not in own, "a negative is one of the user's own items"


def test_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    """With no two events of a user in one second: the same positives and histories, whatever the order of the file."""
    events = list({(e[0], e[4]): e for e in _events(1)}.values())
    rng = np.random.default_rng(2)
    frames = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        out = prepare("taobao_behaviour", _write(folder, events), folder / "out")
        frames.append(out.frame("test").filter(pl.col("label") == 1).select("user_id", "time", "hist_action"))
        events = [events[i] for i in rng.permutation(len(events))]
    assert frames[0].height > 50
    assert frames[0].sort("user_id", "time").equals(frames[1].sort("user_id", "time"))


# ------------------------------------------------------------------ the sampler


def _pool(items: list[tuple[int, int, int]]) -> Pool:
    """A pool of (item, category, events), added in two chunks."""
    rows = pl.DataFrame(
        [(i, c) for i, c, n in items for _ in range(n)], schema=["item", "category"], orient="row"
    ).cast(pl.Int64)
    pool = Pool()
    pool.add(rows[::2])
    pool.add(rows[1::2])
    pool.close()
    assert pool.events == rows.height
    return pool


NONE = pl.DataFrame(schema={"user_id": pl.Int64, "item": pl.Int64})


@pytest.mark.parametrize("weighting", ["popularity", "uniform"])
def test_weighting_is_what_it_says(weighting: str) -> None:
    """40,000 draws of 4 items: shares within 4 standard errors (.01) of 1:2:3:10, or of a fourth each."""
    pool = _pool([(10, 1, 1), (20, 1, 2), (30, 2, 3), (40, 3, 10)])
    assert pool.items == 4
    sampler = Sampler(weighting=weighting, ratio=4)
    index_K = pool.draw(sampler, np.random.default_rng(0), np.zeros(10_000, np.int64), NONE)
    share = np.bincount(index_K, minlength=4) / 40_000
    expected = np.array([1, 2, 3, 10]) / 16 if weighting == "popularity" else np.full(4, 0.25)
    np.testing.assert_allclose(share, expected, atol=0.01)
    assert pool.rows(index_K[:1]).columns == ["item", "category"]


@given(st.integers(0, 10_000), st.sampled_from(["popularity", "uniform"]), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_own_items_are_never_drawn(seed: int, weighting: str, ratio: int) -> None:
    rng = np.random.default_rng(seed)
    pool = _pool([(int(i), int(i) % 5, int(rng.integers(1, 9))) for i in rng.permutation(40)])
    own = pl.DataFrame({"user_id": rng.integers(0, 6, 100), "item": rng.integers(0, 35, 100)})
    user_N = rng.choice(own["user_id"].unique().to_numpy(), 200)
    sampler = Sampler(weighting=weighting, ratio=ratio, seed=seed)
    drawn = pool.rows(pool.draw(sampler, np.random.default_rng(seed), user_N, own))
    assert drawn.height == 200 * ratio
    assert (drawn["category"] == drawn["item"] % 5).all()
    pairs = set(own.rows())
    assert not [p for p in zip(np.repeat(user_N, ratio).tolist(), drawn["item"], strict=True) if p in pairs]


def test_an_item_of_two_categories_is_one_own_item() -> None:
    pool = _pool([(1, 1, 50), (1, 2, 50), (2, 1, 1)])
    assert pool.items == 2
    own = pl.DataFrame({"user_id": [7], "item": [1]})
    index_K = pool.draw(Sampler(weighting="uniform"), np.random.default_rng(0), np.full(500, 7), own)
    assert set(pool.rows(index_K)["item"]) == {2}


def test_a_pool_of_own_items_only_is_refused() -> None:
    own = pl.DataFrame({"user_id": [7, 7], "item": [1, 2]})
    with pytest.raises(BadInput, match=r"pool of 2 items: .* user 7 only own items; give a larger pool"):
        _pool([(1, 1, 5), (2, 1, 5)]).draw(Sampler(), np.random.default_rng(0), np.full(3, 7), own)


def test_counting_in_many_chunks_is_counting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"item": rng.integers(0, 90, 3000), "category": rng.integers(0, 2, 3000)})
    once, often = Pool(), Pool()
    once.add(rows)
    once.close()
    monkeypatch.setattr("ctrbench.datasets.negatives.SORTED", 100)
    for part in rows.iter_slices(70):
        often.add(part)
    often.close()
    index = np.arange(once.rows(np.arange(150)).height)
    assert once.rows(index).equals(often.rows(index))
    for sampler in (Sampler(), Sampler(weighting="uniform")):
        draws = [p.draw(sampler, np.random.default_rng(1), np.zeros(99, np.int64), NONE) for p in (once, often)]
        np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("numbers", [[0, 2**32 - 1], [0, 2**32], [-1, 5], [None, 5], []])
def test_narrow_columns_hold_the_same_numbers(numbers: list[int | None]) -> None:
    rows = pl.DataFrame(
        {"a": pl.Series(numbers, dtype=pl.Int64), "label": pl.Series([1] * len(numbers), dtype=pl.Int8)}
    )
    narrow = buckets_module._narrow(rows)
    assert (narrow["a"].dtype == pl.UInt32) == (numbers == [0, 2**32 - 1])
    assert narrow.cast({pl.UInt32: pl.Int64}).equals(rows)
