"""The generator against the figures it must reproduce; prints band and value of each (`pytest -s`).

Bands: data.md, section 5, Taobao-like, item 5; they enclose the figures of 114 real users (9,996 events) or, for shares
and slopes, of 120,300 real events. What is measured and how is said at each statistic, since another reading of a name
gives another number.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ctrbench.bench.floors import judge_pool, run_floor
from ctrbench.bench.history_counts import RECURRENCES, Layout, history_counts
from ctrbench.bench.quality import auc
from ctrbench.datasets.movielens_1m import with_history
from ctrbench.datasets.negatives import Pool, Sampler
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import history_index
from ctrbench.datasets.taobao_behaviour import TEST_FROM, schema
from ctrbench.datasets.taobao_synthetic import Generator, Parameters

EVENTS = 200_000
USERS, POOL_USERS = 900, 2_700
"""Of the task; the bands were set with 900 users and a pool of at least twice the positives' events."""


def _judge(values: dict[str, tuple[float, float, float]]) -> None:
    """Prints every band beside its value; fails naming those outside."""
    for name, (low, high, value) in values.items():
        print(f"{name:34} band {low:8.4f} .. {high:8.4f} value {value:9.4f} {'' if low <= value <= high else 'OUT'}")
    out = {n: v for n, v in values.items() if not v[0] <= v[2] <= v[1]}
    assert not out, f"outside the band (low, high, value): {out}"


def _events(users: int, seed: int = 0) -> pl.DataFrame:
    generator = Generator(Parameters(users=users, seed=seed))
    return pl.concat([generator.table(n) for n in range(generator.chunks)])


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    """Events in file order with the previous event of the user beside them."""
    rows = _events(2_100)

    def previous(column: str) -> pl.Expr:
        return pl.col(column).shift(1).over("user").alias(f"previous_{column}")

    order = pl.int_range(pl.len()).over("user").alias("order")
    return rows.with_columns(order, *(previous(c) for c in ("item", "category", "time")))


def test_recurrence(events: pl.DataFrame) -> None:
    """Shares of all events; `equals previous` of those that have a previous one."""

    def seen(column: str) -> float:
        return 1 - float(events.select(pl.struct("user", column).is_first_distinct().mean()).item())

    later = events.filter(pl.col("previous_item").is_not_null())
    same = later["category"] == later["previous_category"]
    runs = events.select((pl.col("category") != pl.col("previous_category")).fill_null(True).sum()).item()
    distance = (pl.col("order") - pl.col("order").shift(1).over("user", "category")).alias("distance")
    back = events.select(distance)["distance"].drop_nulls()
    _judge({
        "item seen before": (0.20, 0.26, seen("item")),
        "category seen before": (0.71, 0.78, seen("category")),
        "category equals the previous": (0.37, 0.44, float(same.mean())),  # type: ignore[arg-type]
        "item equals the previous, events": (0, 0, float((later["item"] == later["previous_item"]).sum())),
        "run of one category, mean": (1.60, 1.75, events.height / runs),
        "category recurrence, median": (1, 1, back.quantile(0.5) or np.nan),
        "category recurrence, .75": (4, 5, back.quantile(0.75) or np.nan),
        "category recurrence, .9": (15, 21, back.quantile(0.9) or np.nan),
    })  # fmt: skip


def test_visits_and_lengths(events: pl.DataFrame) -> None:
    """A visit ends with a gap of more than 30 minutes; categories over length is the mean of the users' ratios."""
    gap = (events["time"] - events["previous_time"]).drop_nulls()
    begins = (pl.col("time") - pl.col("previous_time") > 1800).fill_null(True)
    visits = int(events.select(begins.sum()).item())
    users = events.group_by("user").agg(pl.len().alias("n"), pl.col("category").n_unique().alias("categories"))
    share = users.select((pl.col("categories") / pl.col("n")).mean()).item()
    _judge({
        "events of one second": (0, 0.01, float((gap == 0).mean())),
        "visits a user": (14, 18, visits / users.height),
        "events a visit": (5.6, 6.3, events.height / visits),
        "gap, median seconds": (70, 90, gap.median()),  # type: ignore[dict-item]
        "categories over length": (0.26, 0.36, share),
        "length, mean": (91, 111, users["n"].mean()),  # type: ignore[dict-item]  # 101.4 in the full public file
    })  # fmt: skip


def test_shares_of_200_000_events(events: pl.DataFrame) -> None:
    """Slopes of log count on log rank, every rank weighted alike."""
    first = events.head(EVENTS)
    assert first.height == EVENTS

    def counts(column: str) -> npt.NDArray[np.int64]:
        return first.group_by(column).len()["len"].sort(descending=True).to_numpy().astype(np.int64)

    def slope(of: npt.NDArray[np.int64], low: int, high: int) -> float:
        ranks = np.arange(low, high + 1)
        return float(np.polyfit(np.log(ranks), np.log(of[low - 1 : high]), 1)[0])

    categories, items = counts("category"), counts("item")
    _judge({
        "largest category": (0.04, 0.06, categories[0] / EVENTS),
        "slope of categories, ranks 10-1000": (-1.20, -1.05, slope(categories, 10, 1000)),
        "slope of items, ranks 10-2000": (-0.42, -0.30, slope(items, 10, 2000)),
        "items seen once": (0.70, 0.85, float((items == 1).mean())),
    })  # fmt: skip


def test_behaviours_hours_and_days(events: pl.DataFrame) -> None:
    """Against data.md, sections 3.4 and 5; hours of visits are drawn, not of events, so they are a little wider."""
    shares = dict(events["behaviour"].value_counts(normalize=True).iter_rows())
    wanted = {"pv": 0.897, "cart": 0.054, "fav": 0.028, "buy": 0.021}
    local = events["time"] + 8 * 3600
    hour = (local % 86_400 // 3600).value_counts(normalize=True).sort("time")["proportion"].to_numpy()
    day = ((local - local.min() // 86_400 * 86_400) // 86_400).value_counts(normalize=True).sort("time")["proportion"]  # type: ignore[operator]
    days = np.array([0.109, 0.080, 0.078, 0.110, 0.102, 0.103, 0.118, 0.159, 0.143])
    _judge({f"behaviour {n}": (p - 0.003, p + 0.003, shares[n]) for n, p in wanted.items()})
    _judge({f"day {i + 1}": (p - 0.02, p + 0.02, v) for i, (p, v) in enumerate(zip(days, day, strict=True))})
    busiest, quiet = int(hour.argmax()), float(hour[2:6].sum())
    _judge({"busiest hour": (20, 22, busiest), "events from 2 to 6": (0.01, 0.05, quiet)})


# ------------------------------------------------------------------ the task


@pytest.fixture(scope="module")
def task() -> dict[str, pl.DataFrame]:
    """Train and test rows with raw ids, so that items new to the test days count as seen before where they are."""
    actions = pl.col("behaviour").replace_strict({"pv": 3, "cart": 4, "fav": 5, "buy": 6})
    rows = _events(POOL_USERS).select(pl.col("user").alias("user_id"), "item", "category", "time", actions)
    pool = Pool()
    pool.add(rows)
    pool.close()
    users = _events(USERS)["user"].unique()
    own = rows.filter(pl.col("user_id").is_in(users.implode())).with_row_index("position")
    log = with_history(own.with_columns(pl.col("position").cast(pl.Int64)))
    positive = log.filter((pl.col("behaviour") == 3) & (pl.col("hist_end") - pl.col("hist_begin") >= 5))
    assert pool.events >= 2 * positive.height
    drawn = pool.draw(Sampler(), np.random.default_rng(0), positive["user_id"].to_numpy(), own)
    negative = positive.with_columns(pool.rows(drawn))
    both = pl.concat([p.with_columns(pl.lit(y).alias("label")) for y, p in ((1, positive), (0, negative))])
    index_N, n_B = history_index(both["hist_begin"].to_numpy(), both["hist_end"].to_numpy(), 50)
    parts = np.repeat(np.arange(both.height), n_B)
    for column in ("item", "category"):
        lists = pl.DataFrame({"row": parts, f"hist_{column}": log[column].to_numpy()[index_N]})
        both = both.hstack(lists.group_by("row", maintain_order=True).agg(f"hist_{column}").drop("row"))
    test = pl.col("time") >= TEST_FROM
    return {"train": both.filter(~test), "test": both.filter(test)}


def test_counts_tell_as_much_as_in_real_rows(task: dict[str, pl.DataFrame]) -> None:
    """AUC on the test days: three counts alone, and logistic regression on all six."""
    layout = Layout.of(schema("raw", {"user": 10**9, "item": 10**9, "category": 10**6}, 50))
    assert layout.counts == RECURRENCES
    x = {s: np.nan_to_num(history_counts(rows, layout, 50), nan=51) for s, rows in task.items()}
    label = {s: rows["label"].to_numpy() for s, rows in task.items()}
    scaler = StandardScaler().fit(x["train"])
    model = LogisticRegression().fit(scaler.transform(x["train"]), label["train"])

    def alone(name: str) -> float:
        return auc(label["test"], x["test"][:, RECURRENCES.index(name)])

    _judge({
        "category in the last 50 events": (0.82, 0.86, alone("category_in_last_50")),
        "category of the last event": (0.69, 0.71, alone("category_is_last")),
        "item in the last 50 events": (0.59, 0.62, alone("item_in_last_50")),
        "LR on six counts": (0.85, 0.89, auc(label["test"], model.decision_function(scaler.transform(x["test"])))),
    })  # fmt: skip


def test_floors_of_the_prepared_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Target ids alone tell nothing; LightGBM on ids and the six counts is the floor of this data."""
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    prepared = prepare("taobao_synthetic", users=USERS, pool_users=POOL_USERS)
    label = prepared.frame("test", columns=["label"])["label"].to_numpy()
    ids, counts = (
        run_floor(name, prepared, train_rows=None, history_length=50, seed=0)
        for name in ("target_ids", "lightgbm_history")
    )
    judged = judge_pool(label, ids)
    assert judged["leaking_pool"] == ""
    _judge({
        "target ids, LR": (0.45, 0.55, judged["target_ids_auc"]["lr"]),
        "target ids, LightGBM": (0.45, 0.55, judged["target_ids_auc"]["lightgbm"]),
        "LightGBM on ids and six counts": (0.87, 0.90, auc(label, counts.scores)),
    })  # fmt: skip
