"""Feature sets on which models are traced at their published sizes; no row of data is behind them.

Numbers of fields, widths and lengths decide FLOPs and operators. Of the tables only the sum is published for the two
benchmark sets (BARS, reczoo/BARS); what a single table holds is said below to be ours.

Dims: K values of a column that keep a row of their own, most frequent first
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp

import numpy as np
from scipy.optimize import brentq
from scipy.special import zeta

from ctrbench.datasets.criteo_law import Category, categories
from ctrbench.datasets.schema import FIRST_ID, FeatureSchema, Field, Role

CRITEO_X1_ROWS = 2_086_303
TAOBAO_AD_ROWS = 1_295_075
BOUND_BATCHES = (256, 1024, 4096)
"""Not beyond the 4,584 rows on which the laws were checked; a larger batch touches at least the rows of 4,096."""
LAW_ERROR = 0.06
"""Distinct values of 4,584 rows follow the laws within 6 % (data.md section 5), within 5 where they are few:"""
FEW = 100
"""columns with fewer distinct values in that sample get no bound."""


@cache
def criteo_x1() -> FeatureSchema:
    """Criteo_x1: 13 numeric fields, 26 categorical ones with 2,086,303 rows in all.

    Only the sum is fixed by the published parameter counts. Every column keeps the values above one common frequency,
    by the law of its column (data.md section 3.1), and the cut is where the rows sum up; at the 45.8 million rows of
    the data it is a count of 6.6. Lower bounds of distinct rows are of the same laws: those of data.md's 4,584-row
    Criteo Kaggle sample, not of the benchmark's files.
    """
    laws = categories()

    def surplus(log_share: float) -> float:
        return sum(_kept(law, exp(log_share)) + FIRST_ID for law in laws.values()) - CRITEO_X1_ROWS

    share = exp(brentq(surplus, -25.0, -5.0))
    kept = {name: _kept(law, share) for name, law in laws.items()}
    kept["C3"] += CRITEO_X1_ROWS - sum(n + FIRST_ID for n in kept.values())  # the cut falls between two values
    dense = [Field(name=f"I{i + 1}", kind="dense", role="context") for i in range(13)]
    cats = [
        Field(
            name=name, kind="categorical", role="context", cardinality=n + FIRST_ID,
            unique_rows=_distinct_bounds(laws[name], n),
        )
        for name, n in kept.items()
    ]  # fmt: skip
    return FeatureSchema(name="criteo_x1", track="tabular", fields=(*dense, *cats))


def _tail(law: Category) -> float:
    """Share of all rows of rank k >= 2, less its factor (k - 1 + q)^-s."""
    ranks = law.size - 1
    # Column C20 alone has s < 1, where the zeta function is no sum; and it has three values.
    total = (
        zeta(law.s, 1 + law.q) - zeta(law.s, 1 + law.q + ranks)
        if law.s > 1
        else ((np.arange(1, law.size) + law.q) ** -law.s).sum()
    )
    return float((1 - law.missing) * (1 - law.top1) / total)


def _kept(law: Category, share: float) -> int:
    """Values with at least that share of all rows; the first always."""
    if _tail(law) * (law.size - 1 + law.q) ** -law.s >= share:
        return law.size
    return 1 + max(0, int((_tail(law) / share) ** (1 / law.s) - law.q))


def _distinct_bounds(law: Category, kept: int) -> tuple[tuple[int, float], ...]:
    """(batch, distinct kept values / rows): the law's expectation less 6 % and four standard deviations.

    Values that keep no row of their own share one, which is not counted. Whether single values occur is negatively
    associated, so the variance of their number is at most the sum of single variances.
    """
    if law.distinct < FEW:
        return ()
    share_K = np.r_[(1 - law.missing) * law.top1, _tail(law) * (np.arange(1, kept) + law.q) ** -law.s]
    out = []
    for batch in BOUND_BATCHES:
        seen_K = -np.expm1(batch * np.log1p(-share_K))
        least = (1 - LAW_ERROR) * seen_K.sum() - 4 * np.sqrt((seen_K * (1 - seen_K)).sum())
        out.append((batch, max(0.0, float(least)) / batch))
    return tuple(out)


def taobao_ad_x1() -> FeatureSchema:
    """TaobaoAd_x1: 16 categorical fields, the numeric price, and histories of behaviour, category and brand (T = 50).

    The six large vocabularies are those of minimum count 10 (data.md section 3.5). The ten small ones share what is
    left of the published total: a DNN of 512-256-128 on 20 fields of width 32 has 41,934,977 parameters, so tables
    and the price vector hold 1,295,076 rows. Which small field has how many is ours.
    """
    large: dict[str, tuple[Role, int]] = {
        "userid": ("user", 403_957), "brand": ("item", 308_869), "adgroup_id": ("item", 246_850),
        "campaign_id": ("item", 191_770), "customer": ("item", 132_135), "cate_id": ("item", 11_329),
    }  # fmt: skip
    small: dict[str, tuple[Role, int]] = {
        "cms_group_id": ("user", 15), "final_gender_code": ("user", 4), "age_level": ("user", 9),
        "pvalue_level": ("user", 6), "shopping_level": ("user", 5), "occupation": ("user", 4),
        "new_user_class_level": ("user", 7), "pid": ("context", 4), "btag": ("context", 7),
    }  # fmt: skip
    known = {**large, **small}
    known["cms_segid"] = ("user", TAOBAO_AD_ROWS - sum(n for _, n in known.values()))
    price = Field(name="price", kind="dense", role="item")
    mirrored = [("btag_his", "btag", 0), ("cate_his", "cate_id", 0), ("brand_his", "brand", 0)]
    fields = (*_categorical(known), price, *_events("history", 50, mirrored))
    return FeatureSchema(name="taobao_ad_x1", track="sequence", fields=fields)


def taobao_like(length: int) -> FeatureSchema:
    """User, item and context fields and one history of `length` events (item, category, action); table sizes ours."""
    known: dict[str, tuple[Role, int]] = {
        "user_id": ("user", 1_000_000), "age_level": ("user", 10), "gender": ("user", 5), "city_level": ("user", 8),
        "item_id": ("item", 4_000_000), "category_id": ("item", 10_000), "brand_id": ("item", 300_000),
        "price_level": ("item", 20), "hour": ("context", 27), "position": ("context", 50),
    }  # fmt: skip
    events = [("hist_item", "item_id", 0), ("hist_category", "category_id", 0), ("hist_action", None, 7)]
    fields = (*_categorical(known), *_events("hist", length, events))
    return FeatureSchema(name=f"taobao_like_{length}", track="sequence", fields=fields)


def _categorical(known: dict[str, tuple[Role, int]]) -> list[Field]:
    return [Field(name=f, kind="categorical", role=r, cardinality=n) for f, (r, n) in known.items()]


def _events(history: str, length: int, parts: Sequence[tuple[str, str | None, int]]) -> list[Field]:
    """Fields of one history from (name, target, rows of a table of its own where it has no target)."""
    return [
        Field(
            name=name, kind="sequence", role="behaviour", max_length=length, cardinality=rows, target=target,
            history=history,
        )
        for name, target, rows in parts
    ]  # fmt: skip
