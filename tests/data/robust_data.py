"""Data files that cannot be used as they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.data import public_logs, tiny_data, tiny_table

from ctrbench.datasets.criteo_synthetic import Generator, Parameters
from ctrbench.datasets.taobao_synthetic import Generator as Events
from ctrbench.datasets.taobao_synthetic import Parameters as EventParameters

Make = Callable[[Path], object]
CRITEO = "data prepare criteo --path train.txt --out out"
EVENTS = "data prepare taobao_behaviour --path UserBehavior.csv --out out"
MOVIES = "data prepare movielens_1m --path ml-1m --out out"
AVAZU = "data prepare avazu --path train --out out"
TABLE = "data prepare table --path shop.csv --schema shop.yaml --out out"


def criteo(
    edit: Callable[[list[bytes]], object] = lambda lines: None, name: str = "train.txt", end: bytes = b"\n"
) -> Make:
    """A generated file of 200 lines, edited in place."""

    def make(folder: Path) -> None:
        table = Generator(Parameters(rows=200, cap=1000)).table(0)
        lines = table.write_csv(include_header=False, separator="\t", quote_style="never").encode().splitlines()
        edit(lines)
        (folder / name).write_bytes(end.join([*lines, b""]))

    return make


def events(edit: Callable[[list[bytes]], object] = lambda lines: None) -> Make:
    """Generated events, edited in place."""

    def make(folder: Path) -> None:
        lines = (
            Events(EventParameters(users=20)).table(0).head(400).write_csv(include_header=False).encode().splitlines()
        )
        edit(lines)
        (folder / "UserBehavior.csv").write_bytes(b"\n".join([*lines, b""]))

    return make


def put(number: int, field: int, value: bytes, by: bytes = b"\t") -> Callable[[list[bytes]], object]:
    """Puts a value into a field of a line, both from 0."""

    def edit(lines: list[bytes]) -> None:
        fields = lines[number].split(by)
        fields[field] = value
        lines[number] = by.join(fields)

    return edit


def raw(name: str, data: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(data)


def squeezed(cut: int = 0, flip: int = 0) -> Make:
    """A gzip file without its last `cut` bytes, or with one byte turned."""

    def make(folder: Path) -> None:
        criteo()(folder)
        data = bytearray(gzip.compress((folder / "train.txt").read_bytes()))
        (folder / "train.txt").unlink()
        if flip:
            data[flip] ^= 0xFF
        (folder / "train.txt.gz").write_bytes(data[: len(data) - cut])

    return make


def movies(edit: Mapping[str, tuple[str, str]] = {}, without: str = "", header: str = "") -> Make:  # never written to
    """The three files; `edit`: file -> (text, what stands there instead); of `header` the first line is left."""

    def make(folder: Path) -> None:
        where = tiny_data.movielens_folder(folder / "ml-1m", tiny_data.random_events(0))
        for name, (old, new) in edit.items():
            file = where / f"ml-1m.{name}"
            data = file.read_bytes()
            assert old.encode() in data
            file.write_bytes(data.replace(old.encode(), new.encode(), 1))
        if without:
            (where / f"ml-1m.{without}").unlink()
        if header:
            file = where / f"ml-1m.{header}"
            file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])

    return make


def log(maker: str, target: str, file: str = "", old: str = "", new: str = "", without: str = "") -> Make:
    """A public log; the first `old` of `file` becomes `new`, or `without` is deleted."""

    def make(folder: Path) -> None:
        where = getattr(public_logs, maker)(folder / target)
        if file or old:
            path = where / file if file else where
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new, 1))
        if without:
            (where / without).unlink()

    return make


def shop(old: str = "", new: str = "", *, schema: tuple[str, str] | None = None, text: str | None = None) -> Make:
    """A stranger's table and its schema."""

    def make(folder: Path) -> None:
        table, file = tiny_table.shop(folder)
        if old:
            body = table.read_text()
            assert old in body
            table.write_text(body.replace(old, new, 1))
        if schema is not None:
            body = file.read_text()
            assert schema[0] in body
            file.write_text(body.replace(schema[0], schema[1], 1))
        if text is not None:
            file.write_text(text)

    return make


def _reviews(line: str) -> Make:
    def make(folder: Path) -> None:
        where = public_logs.amazon_electronics(folder / "amazon")
        file = where / "reviews_Electronics_5.json.gz"
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        lines[3] = line
        file.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))

    return make


AD = "data prepare taobao_ad --path ad --out out"
AD_X1 = "data prepare taobao_ad_x1 --path ad --out out"
KUAI = "data prepare kuairand --path kuai --out out"
AMAZON = "data prepare amazon_electronics --path amazon --out out"
AMAZON_X1 = "data prepare amazon_electronics_x1 --path amazon --out out"

CASES: list[tuple[str, str, Make, str, int]] = [  # a row a case, all of one form
    ("no such file", CRITEO, lambda f: None, "train.txt", 2),
    ("an empty file", CRITEO, raw("train.txt", b""), "empty", 2),
    ("a folder where a file belongs", CRITEO, lambda f: (f / "train.txt").mkdir(), "train.txt", 2),
    ("binary data", CRITEO, raw("train.txt", bytes(range(256)) * 40), "train.txt", 2),
    ("a line of 39 fields", CRITEO, criteo(lambda x: x.__setitem__(9, b"\t".join([b"0"] * 39))), "train.txt:10", 2),
    ("no line has a label (39 columns, the public test file)", CRITEO,
     criteo(lambda x: x.__setitem__(slice(None), [v.partition(b"\t")[2] for v in x])), "label", 2),
    ("label 2", CRITEO, criteo(put(9, 0, b"2")), "train.txt:10: label is not 0 or 1", 2),
    ("no label", CRITEO, criteo(put(9, 0, b"")), "train.txt:10: label is empty", 2),
    ("a count of 1.5", CRITEO, criteo(put(9, 5, b"1.5")), "train.txt:10", 2),
    ("a count beyond 64 bits", CRITEO, criteo(put(9, 5, b"9223372036854775808")), "train.txt:10", 2),
    ("bytes that are no UTF-8", CRITEO, criteo(put(9, 20, b"\xff\xfe")), "byte", 2),
    ("a NUL byte", CRITEO, criteo(put(9, 20, b"a\0b")), "byte", 2),
    ("all labels 0", CRITEO, criteo(lambda x: [put(i, 0, b"0")(x) for i in range(len(x))]), "rows of both classes", 2),
    ("lines ended by CRLF", CRITEO, criteo(end=b"\r\n"), "CRLF", 0),
    ("a byte order mark", CRITEO, criteo(lambda x: x.__setitem__(0, b"\xef\xbb\xbf" + x[0])), "byte order mark", 0),
    ("tokens that are no hex", CRITEO, criteo(put(9, 20, b"not-hex")), "hex", 0),
    ("gzip, cut", CRITEO.replace(".txt", ".txt.gz"), squeezed(cut=20), "train.txt.gz", 2),
    ("gzip, one byte turned", CRITEO.replace(".txt", ".txt.gz"), squeezed(flip=700), "train.txt.gz", 2),
    ("plain text named .gz", CRITEO.replace(".txt", ".txt.gz"), criteo(name="train.txt.gz"), "but plain text", 0),
    ("more bad lines than allowed, policy skip", CRITEO + " --policy skip",
     criteo(lambda x: [put(i, 0, b"2")(x) for i in range(5)]), "train.txt", 2),
    ("another form: commas and a header", CRITEO, raw("train.txt", b"Id,Label,I1\n1,0,5\n"), "train.txt:1", 2),
    ("UserBehavior with a header", EVENTS, events(lambda x: x.insert(0, b"user,item,cat,type,time")), ":1", 2),
    ("an unknown behaviour", EVENTS, events(put(9, 3, b"view", b",")), "UserBehavior.csv:10", 2),
    ("a time in milliseconds everywhere", EVENTS,
     events(lambda x: [put(i, 4, x[i].rpartition(b",")[2] + b"000", b",")(x) for i in range(len(x))]), "unit", 2),
    ("last line cut", EVENTS, events(lambda x: x.__setitem__(-1, x[-1].rpartition(b",")[0])), ".csv:400: ", 2),
    ("an id of letters", EVENTS, events(put(9, 1, b"abc", b",")), "UserBehavior.csv:10", 2),
    ("MovieLens without its users", MOVIES, movies(without="user"), "ml-1m.user", 2),
    ("MovieLens, a rating of 9", MOVIES, movies({"inter": ("\t5\t", "\t9\t")}), "ml-1m.inter", 2),
    ("MovieLens, a column missing", MOVIES, movies({"inter": ("rating:float", "stars:float")}), "rating", 2),
    ("MovieLens, an item nobody described", MOVIES, movies({"item": ("Film 3 (1990)\t", "Film X (1990)\t")}),
     "Film 3", 2),
    ("MovieLens, a header and no rating", MOVIES, movies(header="inter"), "no rows", 2),
    ("Avazu without its header", AVAZU, log("avazu", "train", "", "id,click", "0,0"), "train:1", 2),
    ("Avazu, a day that is none", AVAZU, log("avazu", "train", "", ",141021", ",149921"), "hour", 2),
    ("Taobao Ad without behavior_log.csv", AD, log("taobao_ad", "ad", without="behavior_log.csv"), "behavior_log", 2),
    ("Taobao Ad, nonclk equal to clk", AD,
     log("taobao_ad", "ad", "raw_sample.csv", ",430539_1007,1,0", ",430539_1007,0,0"), "raw_sample.csv", 2),
    ("Taobao Ad, header names with spaces", AD, log("taobao_ad", "ad", "user_profile.csv", "userid,", "userid ,"),
     "header names with spaces", 0),
    ("TaobaoAd_x1 without test.csv", AD_X1, log("taobao_ad_x1", "ad", without="test.csv"), "test.csv", 2),
    ("KuaiRand, two sizes in one folder", KUAI,
     lambda f: [public_logs.kuairand(f / "kuai", size=s) for s in ("1k", "27k")], "kuai", 2),
    ("KuaiRand, a click of 3", KUAI,
     log("kuairand", "kuai", "log_standard_4_08_to_4_21_1k.csv", ",1,0,0,0,0,0,", ",3,0,0,0,0,0,"), "is_click", 2),
    ("Amazon, a line that is no JSON", AMAZON, _reviews("{'reviewerID': 'A'}"), "json", 2),
    ("Amazon, a review without a time", AMAZON, _reviews(json.dumps({"reviewerID": "A", "asin": "B000000001"})),
     "unixReviewTime", 2),
    ("Amazon_x1, a label of -1", AMAZON_X1,
     log("amazon_electronics_x1", "amazon", "train.csv", "\n1,", "\n-1,"), "train.csv:", 2),
    ("your table, a column of the schema is missing", TABLE, shop("uid,sku", "uid,skuu"), "sku", 2),
    ("your table, a label that is neither", TABLE, shop(schema=("{column: clicked}", "{column: price}")), "label", 2),
    ("your table, schema that is no YAML", TABLE, shop(text="fields: [a, b"), "shop.yaml", 2),
    ("your table, schema of lists in lists in lists", TABLE, shop(text=f"a: {'[' * 3000}{']' * 3000}"), "too deep", 2),
    ("your table, half a character in its schema", TABLE, shop(schema=("name: shop", 'name: "\\ud800"')), "UTF-8", 2),
    ("your table, schema with a Python tag", TABLE,
     shop(schema=("name: shop", "name: !!python/object/apply:os.getcwd []")), "shop.yaml", 2),
    ("your table, a key of the schema misspelt", TABLE, shop(schema=("min_count", "mincount")), "min_count", 2),
    ("your table, a name of 300 letters", TABLE, shop(schema=("name: shop", f"name: {'a' * 300}")), "at most 100", 2),
    ("your table, no schema", TABLE.replace(" --schema shop.yaml", ""), shop(), "schema", 2),
    ("your table, a quote that never closes", TABLE, shop("\nu1", '\n"u1'), "shop.csv", 2),
]  # fmt: skip
