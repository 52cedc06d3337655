"""Schemas that benchmarks and the tests beside them share."""

from __future__ import annotations

from ctrbench.datasets.schema import FeatureSchema, Field

MOVIELENS_LIKE = FeatureSchema(
    name="movielens-like", track="sequence",
    fields=(
        Field(name="user", kind="categorical", role="user", cardinality=6043),
        Field(name="item", kind="categorical", role="item", cardinality=3709),
        Field(name="hist_item", kind="sequence", role="behaviour", max_length=50, target="item", history="hist"),
    ),
)  # fmt: skip
