"""Feature sets on which the sizes of the legacy models were published (BARS benchmark, reczoo/BARS)."""

from __future__ import annotations

from ctrbench.datasets.schema import FeatureSchema, Field, Role

CRITEO_X1_ROWS = 2_086_303
TAOBAO_AD_ROWS = 1_295_075


def criteo_x1() -> FeatureSchema:
    """Criteo_x1: 13 numeric fields, 26 categorical ones with 2,086,303 rows in all.

    Only the sum is fixed by the published parameter counts. It is spread here as a falling power over the fields:
    parameters, FLOPs and operators are as published, the size of a single table is not.
    """
    shares = [0.72**k for k in range(26)]
    rows = [4 + int((CRITEO_X1_ROWS - 26 * 4) * s / sum(shares)) for s in shares]
    rows[0] += CRITEO_X1_ROWS - sum(rows)
    dense = [Field(name=f"I{i + 1}", kind="dense", role="context") for i in range(13)]
    cats = [Field(name=f"C{i + 1}", kind="categorical", role="context", cardinality=n) for i, n in enumerate(rows)]
    return FeatureSchema(name="criteo_x1", track="tabular", fields=(*dense, *cats))


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
    cats = [Field(name=f, kind="categorical", role=r, cardinality=n) for f, (r, n) in known.items()]
    price = Field(name="price", kind="dense", role="item")
    events = [
        Field(name=f, kind="sequence", role="behaviour", max_length=50, target=target, history="history")
        for f, target in (("btag_his", "btag"), ("cate_his", "cate_id"), ("brand_his", "brand"))
    ]
    return FeatureSchema(name="taobao_ad_x1", track="sequence", fields=(*cats, price, *events))
