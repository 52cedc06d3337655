"""TaobaoAd_x1 of BARS: impressions of the Taobao ad set with profile, ad and up to 50 joined events.

Its makers dropped missing tokens from each history apart, so the three may differ in length, and numbered ids by a
mapping known to be faulty: they do not join with the raw tables (`taobao_ad`). Format: data.md, 3.5.
"""

from __future__ import annotations

from ctrbench.datasets import listed_histories
from ctrbench.datasets.listed_histories import Listed
from ctrbench.datasets.published import Published
from ctrbench.datasets.spec import DataSpec

PROFILE = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level", "occupation",
    "new_user_class_level",
)  # fmt: skip
LISTED = Listed(
    name="taobao_ad_x1", label="clk", user="userid",
    roles={
        "userid": "user", **dict.fromkeys(PROFILE, "user"), "adgroup_id": "item", "cate_id": "item",
        "campaign_id": "item", "customer": "item", "brand": "item", "pid": "context",
    },
    histories={"cate_his": "cate_id", "brand_his": "brand"}, length=50, dense=("price",), missing=("0",),
    ignored=("btag", "btag_his"),
    published={
        "train": Published(rows=21_929_911, md5="eaabfc8629f23519b04593e26c7522fc"),
        "test": Published(rows=3_099_515, md5="f5ae6197e52385496d46e2867c1c8da1"),
    },
)  # fmt: skip

# Spelt out in every data set's file, like amazon_electronics_x1: each is read alone.
SPEC = DataSpec(
    name="taobao_ad_x1",
    title="TaobaoAd_x1 of BARS",
    track="sequence",
    description="user profile, ad and a history of categories and brands; give the folder with train.csv and test.csv",
    terms="Alibaba Tianchi data set 56: registration, research; ctrbench neither ships nor downloads it",
    splits=("files",),
    options={"min_count": 10, "history": 50},
    fetch=lambda path, options: listed_histories.fetch(LISTED, path),
    build=lambda raw, rule, options, account, shards: listed_histories.build(LISTED, raw, options, account, shards),
    room=4.0,
)
