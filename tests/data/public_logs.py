"""Small logs in the exact public forms of data.md, 3.5 to 3.8; every value is made up here."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

AVAZU = [
    "id",
    "click",
    "hour",
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
    "C14",
    "C15",
    "C16",
    "C17",
    "C18",
    "C19",
    "C20",
    "C21",
]
KUAIRAND = [
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
    "is_rand",
    "tab",
]
VIDEOS = [
    "video_id",
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "visible_status",
    "video_duration",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
]
PROFILE = [
    "userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
    "occupation", "new_user_class_level ",
]  # fmt: skip
"""The last name ends in a space, as the publisher's does."""
TAOBAO_X1 = [
    "clk",
    "btag_his",
    "cate_his",
    "brand_his",
    "userid",
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
    "adgroup_id",
    "cate_id",
    "campaign_id",
    "customer",
    "brand",
    "price",
    "pid",
    "btag",
]
AMAZON_X1 = ["label", "user_id", "item_id", "cate_id", "item_history", "cate_history"]


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """A CSV with its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(map(str, r)) + "\n" for r in [header, *rows]), encoding="utf-8")
    return path


def avazu(path: Path, rows: int = 600, seed: int = 0) -> Path:
    """Ten days by the hour; ids beyond int64, sentinels for unknown devices."""
    draw = random.Random(seed)
    body = []
    for i in range(rows):
        hour = i * 240 // rows
        cats = [f"{draw.randrange(16**8):08x}" if draw.random() < 0.1 else f"{draw.randrange(9):08x}" for _ in range(9)]
        device = "a99f214a" if draw.random() < 0.87 else f"{draw.randrange(50):08x}"
        c20 = -1 if draw.random() < 0.6 else 100_000 + draw.randrange(20)
        body.append([
            draw.randrange(2**64), int(draw.random() < 0.3), f"1410{21 + hour // 24}{hour % 24:02d}", 1005,
            draw.randrange(3), *cats[:6], device, cats[6], cats[7], draw.randrange(3), draw.randrange(4),
            15_000 + draw.randrange(30), 320, 50, 1700 + draw.randrange(9), draw.randrange(4), 35, c20, 79,
        ])  # fmt: skip
    return write(path, AVAZU, body)


def kuairand(folder: Path, size: str = "1k", users: int = 9, events: int = 60, seed: int = 0) -> Path:
    """Two standard logs, the random log and the table of videos."""
    draw = random.Random(seed)
    start, second = 1_649_347_200_000, 1_650_556_800_000  # 2022-04-08 and 2022-04-22 in UTC+8
    end = 1_652_025_600_000
    for name, low, high in (("log_standard_4_08_to_4_21", start, second), ("log_standard_4_22_to_5_08", second, end),
                            ("log_random_4_22_to_5_08", second, end)):  # fmt: skip
        body = []
        for user in range(users):
            for at in sorted(draw.randrange(low, high) for _ in range(events)):
                flags = [int(draw.random() < p) for p in (0.4, 0.05, 0.02, 0.02, 0.02, 0.01, 0.2)]
                duration = "" if draw.random() < 0.03 else draw.randrange(3_000, 60_000)
                body.append([user, draw.randrange(80), 20220408, 400, at, *flags, draw.randrange(9_000), duration, 0, 0,
                             0, int("random" in name), draw.randrange(4)])  # fmt: skip
        write(folder / f"{name}_{size}.csv", KUAIRAND, body)
    videos = [[v, v % 7, "NORMAL", "2022-04-01", "ShortImport", "public", 9000, 720, 1280, v, 9,
               "" if v % 30 == 0 else f'"{v % 5},{v % 3}"'] for v in range(80)]  # fmt: skip
    write(folder / f"video_features_basic_{size}.csv", VIDEOS, videos)
    return folder


def taobao_ad(folder: Path, users: int = 30, seed: int = 0) -> Path:
    """The four raw tables; the log reaches into the impressions' week and has a negative time and a repeated row."""
    draw = random.Random(seed)
    start, end, log_start = 1_494_000_000, 1_494_691_200, 1_492_790_400
    sample = []
    for _ in range(users * 30):
        click = int(draw.random() < 0.3)
        sample.append([draw.randrange(users), draw.randrange(start, end), draw.randrange(40), "430539_1007", 1 - click,
                       click])  # fmt: skip
    log = [[draw.randrange(users), draw.randrange(log_start, end), draw.choice(["pv", "pv", "cart", "fav", "buy"]),
            draw.randrange(12), draw.randrange(30)] for _ in range(users * 80)]  # fmt: skip
    log += [log[5], log[5], [3, -1_593_340_000, "pv", 1, 1]]
    write(folder / "raw_sample.csv", ["user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"], sample)
    write(folder / "behavior_log.csv", ["user", "time_stamp", "btag", "cate", "brand"], log)
    ads = [
        [a, a % 12, a % 9, a % 5, "NULL" if a % 3 == 0 else a % 30, round(draw.uniform(1, 900), 2)] for a in range(40)
    ]
    write(folder / "ad_feature.csv", ["adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price"], ads)
    profiles = [[u, u % 9, u % 4, 1 + u % 2, u % 5, "" if u % 2 else 1 + u % 3, 3, 0, "" if u % 3 else 1 + u % 4]
                for u in range(users - 3)]  # fmt: skip
    write(folder / "user_profile.csv", PROFILE, profiles)
    return folder


def taobao_ad_x1(folder: Path, rows: int = 200, seed: int = 0) -> Path:
    """Histories of unequal lengths, most of them empty."""
    draw = random.Random(seed)
    for part, count in (("train", rows), ("test", rows // 3)):
        body = []
        for _ in range(count):
            n = 0 if draw.random() < 0.5 else draw.randrange(1, 51)
            his = [[draw.randrange(1, 40) for _ in range(max(0, n - short))] for short in (0, 0, draw.randrange(3))]
            joined = ["^".join(map(str, h)) for h in his]
            body.append([
                int(draw.random() < 0.3), *joined, draw.randrange(50), *[draw.randrange(5) for _ in range(8)],
                *[draw.randrange(40) for _ in range(5)], round(draw.uniform(1, 99), 1), "430548_1007", 1,
            ])  # fmt: skip
        write(folder / f"{part}.csv", TAOBAO_X1, body)
    return folder


def amazon_electronics_x1(folder: Path, rows: int = 200, seed: int = 0) -> Path:
    """Positive then negative; histories up to 100."""
    draw = random.Random(seed)
    for part, count in (("train", rows), ("test", rows // 4)):
        body = []
        for i in range(count):
            n = draw.randrange(1, 101)
            items = [draw.randrange(60) for _ in range(n)]
            item = draw.randrange(60)
            body.append([1 - i % 2, i // 2 % 40, item, item % 8, "^".join(map(str, items)),
                         "^".join(str(x % 8) for x in items)])  # fmt: skip
        write(folder / f"{part}.csv", AMAZON_X1, body)
    return folder


def amazon_electronics(folder: Path, users: int = 60, items: int = 30, seed: int = 0) -> Path:
    """Reviews of days, one JSON object a line, and descriptions, one Python literal a line; both gzipped."""
    draw = random.Random(seed)
    names = [f"B{i:09d}" for i in range(items)]
    reviews = []
    for user in range(users):
        for _ in range(draw.randrange(3, 9)):
            reviews.append({
                "reviewerID": f"A{user:012X}", "asin": draw.choice(names), "reviewerName": "A \"B\"", "helpful": [0, 0],
                "reviewText": "it's {fine}", "overall": 5.0, "unixReviewTime": 86_400 * (15_000 + draw.randrange(6)),
                "reviewTime": "01 1, 2011",
            })  # fmt: skip
    draw.shuffle(reviews)
    described = enumerate([*names[:-1], "B999999999"])  # one is missing, one was never reviewed
    meta = [{"asin": n, "title": "it's", "related": {"bought": ["B0"]}, "categories": [["Electronics", f"C{i % 7}"]]}
            for i, n in described]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        ("reviews_Electronics_5.json", map(json.dumps, reviews)),
        ("meta_Electronics.json", map(str, meta)),
    ):
        (folder / f"{name}.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return folder
