"""AmazonElectronics_x1 of BARS: reviews as in DIN's paper, one positive and one random negative a user in test.

Rates are exactly .5. The test row is each user's own last event: other users' train events lie later. Format: data.md,
3.7.
"""

from __future__ import annotations

from ctrbench.datasets import listed_histories
from ctrbench.datasets.listed_histories import Listed
from ctrbench.datasets.published import Published
from ctrbench.datasets.spec import DataSpec

LISTED = Listed(
    name="amazon_electronics_x1", label="label", user="user_id",
    roles={"user_id": "user", "item_id": "item", "cate_id": "item"},
    histories={"item_history": "item_id", "cate_history": "cate_id"}, length=100,
    published={
        "train": Published(rows=2_608_764, positive_rate=0.5, md5="e9bf80b92985e463db18fdc753d347b5"),
        "test": Published(rows=384_806, positive_rate=0.5, md5="57a20e82fe736dd495f2eaf0669bf6d0"),
    },
)  # fmt: skip

SPEC = DataSpec(
    name="amazon_electronics_x1",
    title="AmazonElectronics_x1 of BARS",
    track="sequence",
    description="user, item, category and the history of both; give the folder with train.csv and test.csv",
    terms="Amazon review data of J. McAuley, research; ctrbench neither ships nor downloads it",
    splits=("files",),
    options={"min_count": 1, "history": 100},
    fetch=lambda path, options: listed_histories.fetch(LISTED, path),
    build=lambda raw, rule, options, account, shards: listed_histories.build(LISTED, raw, options, account, shards),
    room=6.0,
)
