"""Floors on a small frame whose signal is planted, and the ways in which a floor could cheat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from ctrbench.bench import floors, history_counts
from ctrbench.bench.floors import FLOORS, Rows, judge_pool, run_floor, skip_reason
from ctrbench.bench.history_counts import LIKED, LIKES, RECURRENCES, Layout
from ctrbench.bench.quality import auc
from ctrbench.datasets import movielens_1m
from ctrbench.datasets.errors import UnknownName
from ctrbench.datasets.schema import FIRST_ID, OOV, FeatureSchema, Field

ITEMS, GENRES, EVENTS, LIKE, DISLIKE = 30, 4, 40, LIKED, FIRST_ID
USERS = {"train": 150, "valid": 60, "test": 100}

SCHEMA = FeatureSchema(
    name="planted",
    track="sequence",
    fields=(
        Field(name="user", kind="categorical", role="user", cardinality=FIRST_ID + USERS["train"]),
        Field(name="item", kind="categorical", role="item", cardinality=FIRST_ID + ITEMS),
        Field(name="genre", kind="categorical", role="item", cardinality=FIRST_ID + GENRES),
        Field(name="hist_item", kind="sequence", role="behaviour", max_length=EVENTS, target="item", history="hist"),
        Field(name="hist_genre", kind="sequence", role="behaviour", max_length=EVENTS, target="genre", history="hist"),
        Field(name="hist_action", kind="sequence", role="behaviour", max_length=EVENTS, cardinality=5, history="hist"),
    ),
)
TABULAR = FeatureSchema(
    name="plain",
    track="tabular",
    fields=(
        Field(name="I1", kind="dense", role="context"),
        Field(name="C1", kind="categorical", role="context", cardinality=FIRST_ID + 9),
    ),
)


@dataclass
class Memory:
    """A prepared data set in memory."""

    schema: FeatureSchema
    frames: dict[str, pl.DataFrame]
    aside: tuple[str, ...] = ()

    def frame(self, split: str, last: int | None = None, columns: Sequence[str] | None = None) -> pl.DataFrame:
        rows = self.frames[split]
        rows = rows if last is None else rows.tail(last)
        return rows if columns is None else rows.select(columns)


def user_rows(rng: np.random.Generator, user_id: int, encoded: int) -> pl.DataFrame:
    """One user's rows: likes .9 of the items of the genres of a taste that only the history shows."""
    item = rng.integers(0, ITEMS, EVENTS)
    genre = item % GENRES
    taste = rng.permutation(GENRES) < GENRES // 2
    label = (rng.random(EVENTS) < np.where(taste[genre], 0.9, 0.1)).astype(np.int64)
    time = np.cumsum(rng.integers(1, 1000, EVENTS))

    def before(values: np.ndarray) -> list[list[int]]:
        return [values[:n].tolist() for n in range(EVENTS)]

    return pl.DataFrame(
        {
            "label": label, "user_id": np.full(EVENTS, user_id), "time": time,
            "user": np.full(EVENTS, encoded, dtype=np.int32),
            "item": (item + FIRST_ID).astype(np.int32), "genre": (genre + FIRST_ID).astype(np.int32),
            "hist_item": pl.Series(before(item + FIRST_ID), dtype=pl.List(pl.Int32)),
            "hist_genre": pl.Series(before(genre + FIRST_ID), dtype=pl.List(pl.Int32)),
            "hist_action": pl.Series(before(np.where(label == 1, LIKE, DISLIKE)), dtype=pl.List(pl.Int32)),
            "hist_time": pl.Series(before(time), dtype=pl.List(pl.Int64)),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted() -> Memory:
    """Users of validation and test are new, so that no statistic of train rows knows their taste."""
    rng = np.random.default_rng(0)
    frames, first = {}, 0
    for split, users in USERS.items():
        known = split == "train"
        parts = [user_rows(rng, first + u, FIRST_ID + u if known else 2) for u in range(users)]
        frames[split] = pl.concat(parts).sort("time", maintain_order=True)
        first += users
    return Memory(SCHEMA, frames)


def score(name: str, data: Memory, *, history_length: int = EVENTS, seed: int = 0) -> np.ndarray:
    return np.asarray(run_floor(name, data, train_rows=None, history_length=history_length, seed=seed).scores)


def test_planted_history_is_found_by_the_counts_alone(planted: Memory) -> None:
    label = planted.frames["test"]["label"].to_numpy()
    found = {name: auc(label, score(name, planted)) for name in FLOORS}
    # Knowing the taste gives AUC .90 (likes .9 against .1); early rows have no history, so a little less.
    assert 0.78 < found["lightgbm_history"] < 0.90
    for blind in ("popularity", "logistic", "lightgbm", "target_ids"):
        assert 0.44 < found[blind] < 0.56, blind  # noise: 4000 rows of 100 users, s.e. about .01 to .02


def test_validation_chooses_whether_user_statistics_stay(planted: Memory) -> None:
    """All users of validation and test are new here: what train rows know of their user only misleads."""
    notes = run_floor("lightgbm_history", planted, train_rows=None, history_length=EVENTS, seed=0).notes
    tried = notes["valid_auc_by_user_statistics"]
    assert set(tried) == {"with", "without"}
    assert notes["user_statistics"] == "without"
    assert notes["valid_auc"] == tried["without"] == max(tried.values())
    assert not [f for f in notes["features"] if f.startswith("user")]
    assert set(LIKES) <= set(notes["features"])


def test_a_shorter_history_knows_less(planted: Memory) -> None:
    label = planted.frames["test"]["label"].to_numpy()
    long, short = (auc(label, score("lightgbm_history", planted, history_length=n)) for n in (EVENTS, 2))
    assert long > short + 0.05


@pytest.mark.parametrize("name", FLOORS)
def test_shuffled_labels_teach_nothing(planted: Memory, name: str) -> None:
    rng = np.random.default_rng(1)
    frames = dict(planted.frames)
    for split in ("train", "valid"):
        label = pl.Series("label", rng.permutation(frames[split]["label"].to_numpy()))
        frames[split] = frames[split].with_columns(label)
    assert 0.44 < auc(frames["test"]["label"].to_numpy(), score(name, replace(planted, frames=frames))) < 0.56


@pytest.mark.parametrize("name", FLOORS)
def test_test_labels_are_never_read_and_runs_repeat(planted: Memory, name: str) -> None:
    test = planted.frames["test"]
    blind = replace(planted, frames=planted.frames | {"test": test.with_columns(pl.lit(0, pl.Int64).alias("label"))})
    np.testing.assert_array_equal(score(name, planted), score(name, blind, seed=7))


def _features(planted: Memory, train: pl.DataFrame) -> np.ndarray:
    rows = Rows(train=train, valid=planted.frames["valid"], test=planted.frames["test"])
    return floors._statistics(rows, SCHEMA, Layout.of(SCHEMA).keys(SCHEMA))[0][0]


def test_train_statistics_hold_earlier_rows_only(planted: Memory) -> None:
    """Flipping two labels (one each way, so that the train rate stays) leaves the features up to the first alone."""
    train = planted.frames["train"]
    label = train["label"].to_numpy().copy()
    at = 3000 + int(np.argmax(label[3000:] != label[2999]))  # a row whose label differs from that of row 2999
    label[[2999, at]] = label[[at, 2999]]
    before, after = _features(planted, train), _features(planted, train.with_columns(pl.Series("label", label)))
    np.testing.assert_array_equal(before[:3000], after[:3000])
    assert (before[3000:] != after[3000:]).any()


def test_target_statistics_by_hand() -> None:
    # Value 3 has labels 1 0 1, value 4 has 1; rate 3/4, smoothing 10 rows: ordered rates
    # 7.5/10, 8.5/11, 7.5/10 (value 4), 8.5/12; whole rates 9.5/13 (3) and 8.5/11 (4); unseen 5: .75.
    train = pl.DataFrame({"label": [1, 0, 1, 1], "C1": [3, 3, 4, 3], "I1": [0.0, None, 1.0, 2.0]})
    other = pl.DataFrame({"label": [0, 1, 0], "C1": [4, 5, 3], "I1": [0.5, 0.5, None]})
    parts, names = floors._statistics(Rows(train=train, valid=other, test=other), TABULAR, [("C1",)])
    assert names == ["I1", "C1 rate", "C1 rows"]
    np.testing.assert_allclose(parts[0][:, 1], [7.5 / 10, 8.5 / 11, 7.5 / 10, 8.5 / 12], rtol=1e-6)
    np.testing.assert_allclose(parts[0][:, 2], [0, 1, 0, 2])
    np.testing.assert_allclose(parts[1][:, 1:], [[8.5 / 11, 1], [0.75, 0], [9.5 / 13, 3]], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(parts[0][:, 0]), [False, True, False, False])


@pytest.mark.parametrize("length", [1, 7, EVENTS])
def test_counts_equal_a_plain_loop(planted: Memory, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_counts, "CHUNK", 700)  # several chunks
    rows = planted.frames["train"].head(1500)
    got = history_counts.history_counts(rows, Layout.of(SCHEMA), length)
    for i, row in enumerate(rows.iter_rows(named=True)):
        events = list(zip(row["hist_genre"], row["hist_action"], row["hist_time"], strict=True))[-length:]
        likes = [a == LIKE for _, a, _ in events]
        same = [a == LIKE for g, a, _ in events if g == row["genre"]]
        last = likes[-5:]
        wanted = [
            len(events), np.mean(likes) if likes else np.nan, np.mean(same) if same else np.nan, len(same),
            np.mean(last) if last else np.nan, row["time"] - events[-1][2] if events else np.nan,
        ]  # fmt: skip
        np.testing.assert_allclose(got[i], wanted, rtol=1e-6)


def test_one_hot_by_hand() -> None:
    train = pl.DataFrame({"C1": [3, 5, 3], "I1": [0.2, None, -0.3]})
    other = pl.DataFrame({"C1": [4, 5], "I1": [0.4, 9.0]})
    train_NK, valid_NK, _ = floors._one_hot(Rows(train=train, valid=other, test=other), TABULAR, [("C1",)])
    # Columns: C1=3, C1=5, I1 missing, I1 in [-.5, 0), I1 in [0, .5), unknown.
    np.testing.assert_array_equal(train_NK.toarray(), [[1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(valid_NK.toarray(), [[0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 1]])


def test_only_the_rows_given_are_learnt_from(planted: Memory) -> None:
    last = planted.frames["train"].tail(900)
    few = run_floor("logistic", planted, train_rows=900, history_length=EVENTS, seed=0)
    same = replace(planted, frames=planted.frames | {"train": last})
    np.testing.assert_array_equal(few.scores, score("logistic", same))
    assert few.notes["train_rows"] == 900


def test_tabular_data_has_the_floors_it_can_have() -> None:
    rng = np.random.default_rng(0)
    c = rng.integers(0, 9, 6000)
    x = rng.normal(size=6000)
    label = (rng.random(6000) < 1 / (1 + np.exp(-(c - 4) / 2 - x))).astype(np.int64)
    rows = pl.DataFrame(
        {"label": label, "time": np.arange(6000), "C1": (c + FIRST_ID).astype(np.int32), "I1": x.astype(np.float32)}
    )
    data = Memory(TABULAR, {"train": rows[:4000], "valid": rows[4000:5000], "test": rows[5000:]})
    oracle = auc(label[5000:], (c / 2 + x)[5000:])
    for name in ("logistic", "lightgbm"):
        assert auc(label[5000:], score(name, data)) > oracle - 0.02
    for name, reason in (
        ("popularity", "no item field"),
        ("target_ids", "no item field"),
        ("lightgbm_history", "no history"),
    ):
        assert reason in str(skip_reason(name, TABULAR))
        with pytest.raises(ValueError, match=reason):
            run_floor(name, data, train_rows=None, history_length=1, seed=0)


BEHAVIOURS = replace(
    SCHEMA, fields=tuple(replace(f, cardinality=FIRST_ID + 4) if f.name == "hist_action" else f for f in SCHEMA.fields)
)


def test_the_kind_of_actions_decides_the_counts() -> None:
    assert Layout.of(SCHEMA).counts == LIKES
    assert Layout.of(BEHAVIOURS).counts == RECURRENCES
    assert skip_reason("lightgbm_history", SCHEMA) is skip_reason("lightgbm_history", BEHAVIOURS) is None
    assert movielens_1m.LIKED == LIKED


@pytest.mark.parametrize("length", [1, 12, EVENTS])
def test_recurrences_equal_a_plain_loop(planted: Memory, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with values out of vocabulary, which recur for no one."""
    monkeypatch.setattr(history_counts, "CHUNK", 700)  # several chunks
    monkeypatch.setattr(history_counts, "WINDOW", 30)  # shorter than the longest history
    rows = planted.frames["train"].head(1500)
    hidden = [pl.col(c).replace(FIRST_ID + 1, OOV) for c in ("item", "genre")]
    lists = [pl.col(f"hist_{c}").list.eval(pl.element().replace(FIRST_ID + 1, OOV)) for c in ("item", "genre")]
    rows = rows.with_columns(*hidden, *lists)
    got = history_counts.history_counts(rows, Layout.of(BEHAVIOURS), length)
    hits = 0
    for i, row in enumerate(rows.iter_rows(named=True)):
        events = list(zip(row["hist_item"], row["hist_genre"], strict=True))[-length:]
        newest = events[::-1][:30]
        genre = [g == row["genre"] != OOV for _, g in newest]
        items = [n == row["item"] != OOV for n, _ in newest]
        far = genre.index(True) + 1 if True in genre else np.nan
        wanted = [sum(genre), sum(genre[:10]), sum(genre[:1]), sum(items), len(events), far]
        np.testing.assert_array_equal(got[i], wanted)
        hits += sum(items)
    assert hits > 100 or length == 1


# ------------------------------------------------------------------ target ids as the control of sampled negatives


def _sampled(rng: np.random.Generator, known: float, reverse: bool = False) -> Memory:
    """Rows whose item is of the first half, with probability `known`, where the label is 1, else any of all items."""
    frames = {}
    for split, size in (("train", 6000), ("valid", 2000), ("test", 4000)):
        label = rng.integers(0, 2, size)
        told = (rng.random(size) < known) & (label == 1)
        item = np.where(told, rng.integers(0, ITEMS // 2, size), rng.integers(0, ITEMS, size))
        if reverse and split == "test":
            label = 1 - label
        frames[split] = pl.DataFrame({
            "label": label, "time": np.arange(size), "user": rng.integers(3, 50, size).astype(np.int32),
            "item": (item + FIRST_ID).astype(np.int32), "genre": (item % GENRES + FIRST_ID).astype(np.int32),
        })  # fmt: skip
    return Memory(SCHEMA, frames)


@pytest.mark.parametrize(("known", "reverse", "leaks"), [(0.0, False, False), (0.6, False, True), (0.6, True, True)])
def test_a_pool_that_tells_labels_is_flagged(known: float, reverse: bool, leaks: bool) -> None:
    """Above .60 and below .45 alike; an honest pool is not flagged."""
    data = _sampled(np.random.default_rng(0), known, reverse)
    label = data.frames["test"]["label"].to_numpy()
    result = run_floor("target_ids", data, train_rows=None, history_length=1, seed=0)
    judged = judge_pool(label, result)
    assert set(judged["target_ids_auc"]) == {"lr", "lightgbm"}
    for model, value in judged["target_ids_auc"].items():
        assert value == auc(label, result.parts[model])
        low, high = ((0.2, 0.45) if reverse else (0.6, 0.8)) if leaks else (0.45, 0.55)
        assert low < value < high
    assert bool(judged["leaking_pool"]) == leaks
    if leaks:
        assert judged["leaking_pool"].startswith("leaking pool: target ids alone reach AUC lr 0.")
        assert "outside 0.45-0.60; draw negatives from a pool of far more events" in judged["leaking_pool"]


def test_one_of_two_models_outside_is_enough() -> None:
    label = np.array([0.0, 1.0] * 50)
    scores = {"lr": np.linspace(0, 1, 100), "lightgbm": label}
    result = floors.FloorResult(scores=label, fit_seconds=0.0, notes={}, parts=scores)
    assert "lr 0.510, lightgbm 1.000" in judge_pool(label, result)["leaking_pool"]


def test_the_control_sees_target_ids_and_nothing_else(planted: Memory) -> None:
    """The same scores whatever user, history and time are."""
    blind = replace(planted, frames={
        s: f.with_columns(pl.lit(7, pl.Int32).alias("user"), pl.lit(0, pl.Int64).alias("user_id"))
        .drop("hist_item", "hist_genre", "hist_action", "hist_time")
        for s, f in planted.frames.items()
    })  # fmt: skip
    a, b = (run_floor("target_ids", d, train_rows=None, history_length=1, seed=0) for d in (planted, blind))
    assert a.notes["fields"] == ["item", "genre"]
    for model in ("lr", "lightgbm"):
        np.testing.assert_array_equal(a.parts[model], b.parts[model])
    np.testing.assert_array_equal(a.scores, a.parts[a.notes["model"]])


def test_the_control_sees_ids_that_models_do_not() -> None:
    """A leak through items that are all out of vocabulary for the models."""
    data = _sampled(np.random.default_rng(0), 0.6)
    for split, rows in data.frames.items():
        hidden = pl.lit(OOV, pl.Int32).alias("item"), pl.lit(OOV, pl.Int32).alias("genre")
        data.frames[split] = rows.with_columns(pl.col("item").cast(pl.Int64).alias("raw_item"), *hidden)
    label = data.frames["test"]["label"].to_numpy()
    blind, seeing = data, replace(data, aside=("raw_item",))
    found = [judge_pool(label, run_floor("target_ids", d, train_rows=None, history_length=1, seed=0))
             for d in (blind, seeing)]  # fmt: skip
    assert set(found[0]["target_ids_auc"].values()) == {0.5}
    assert found[0]["leaking_pool"] == ""
    assert found[1]["leaking_pool"].startswith("leaking pool")


def test_test_rows_can_be_limited(planted: Memory) -> None:
    few = run_floor("logistic", planted, train_rows=None, history_length=1, seed=0, test_rows=300)
    np.testing.assert_array_equal(few.scores, score("logistic", planted)[-300:])


def test_wrong_requests_are_named(planted: Memory) -> None:
    with pytest.raises(UnknownName, match="did you mean 'lightgbm'"):
        run_floor("lightgmb", planted, train_rows=None, history_length=1, seed=0)
    with pytest.raises(ValueError, match=r"history_length=41: planted holds 1\.\.40"):
        run_floor("lightgbm_history", planted, train_rows=None, history_length=41, seed=0)
    one = replace(planted, frames=planted.frames | {"train": planted.frames["train"].filter(pl.col("label") == 1)})
    with pytest.raises(ValueError, match="rows have one label"):
        run_floor("logistic", one, train_rows=None, history_length=1, seed=0)
