"""Feature sets on which the transformer models are traced at published sizes.

Numbers of fields and lengths decide FLOPs and operators; where a source gives no table sizes, ours are round.
"""

from __future__ import annotations

from ctrbench.datasets.schema import FeatureSchema, Field, Role


def criteo_39(rows: int = 2_086_303) -> FeatureSchema:
    """Criteo: 13 numeric and 26 categorical fields; BARS' Criteo_x1 total of table rows, spread evenly by us."""
    each, rest = divmod(rows, 26)
    dense = [Field(name=f"I{i + 1}", kind="dense", role="context") for i in range(13)]
    cats = [
        Field(name=f"C{i + 1}", kind="categorical", role="context", cardinality=each + (rest if i == 0 else 0))
        for i in range(26)
    ]
    return FeatureSchema(name="criteo_39", track="tabular", fields=(*dense, *cats))


def taobao_like(length: int) -> FeatureSchema:
    """User, item and context fields and one history of `length` events (item, category, action); table sizes ours."""
    known: dict[str, tuple[Role, int]] = {
        "user_id": ("user", 1_000_000), "age_level": ("user", 10), "gender": ("user", 5), "city_level": ("user", 8),
        "item_id": ("item", 4_000_000), "category_id": ("item", 10_000), "brand_id": ("item", 300_000),
        "price_level": ("item", 20), "hour": ("context", 27), "position": ("context", 50),
    }  # fmt: skip
    cats = [Field(name=f, kind="categorical", role=r, cardinality=n) for f, (r, n) in known.items()]
    events = [
        Field(
            name=name, kind="sequence", role="behaviour", max_length=length, cardinality=rows, target=target,
            history="hist",
        )
        for name, target, rows in (
            ("hist_item", "item_id", 0), ("hist_category", "category_id", 0), ("hist_action", None, 7)
        )
    ]  # fmt: skip
    return FeatureSchema(name=f"taobao_like_{length}", track="sequence", fields=(*cats, *events))
