"""UserBehavior as a ranking task: schema, splits, what the manifest says of the sampler, options, identity."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from ctrbench.datasets import taobao_behaviour, taobao_synthetic
from ctrbench.datasets.errors import BadInput, UnknownName
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import SPLITS, Prepared
from ctrbench.datasets.schema import FIRST_ID, OOV
from ctrbench.datasets.taobao_behaviour import TEST_FROM
from ctrbench.datasets.taobao_reader import ACTIONS, END, START
from ctrbench.datasets.taobao_synthetic import Parameters, write


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "UserBehavior.csv"
    write(Parameters(users=40), path)
    return path


@pytest.fixture(scope="module")
def pool(file: Path) -> Path:
    path = file.with_name("pool.csv.gz")
    write(Parameters(users=160), path)
    return path


@pytest.fixture(scope="module")
def prepared(file: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare("taobao_behaviour", file, tmp_path_factory.mktemp("prepared") / "out", pool=str(pool))


def _raw(file: Path) -> pl.DataFrame:
    return pl.read_csv(file, has_header=False, new_columns=["user", "item", "category", "behaviour", "time"])


def test_schema_is_that_of_the_sequence_track(prepared: Prepared) -> None:
    schema = prepared.schema
    assert (schema.name, schema.track) == ("taobao_behaviour", "sequence")
    assert [(f.name, f.role) for f in schema.categorical] == [("user", "user"), ("item", "item"), ("category", "item")]
    assert [(f.name, f.target, f.max_length) for f in schema.sequences] == [
        ("hist_item", "item", 50), ("hist_category", "category", 50), ("hist_action", None, 50),
    ]  # fmt: skip
    assert schema["hist_action"].cardinality == FIRST_ID + 4
    assert schema["hist_item"].cardinality == schema["item"].cardinality == FIRST_ID + len(prepared.vocabulary("item"))
    assert set(ACTIONS.values()) == set(range(FIRST_ID, FIRST_ID + 4))


def test_period_and_cut_are_those_of_the_data_set() -> None:
    """Days in UTC+8: 2017-11-25, 2017-12-04 and 2017-12-02 at 00:00."""
    midnight = pl.Series(["2017-11-25", "2017-12-04", "2017-12-02"]).str.to_datetime().dt.replace_time_zone("Etc/GMT-8")
    assert (midnight.dt.epoch("s")).to_list() == [START, END, TEST_FROM]


def test_rows_are_positives_and_as_many_negatives(prepared: Prepared, file: Path) -> None:
    raw = _raw(file)
    manifest = prepared.manifest
    sampler = manifest["sampler"]
    assert manifest["rows"]["kept"] == raw.height == manifest["events"]["hist"]
    assert sum(prepared.rows(s) for s in SPLITS) == 2 * sampler["positive_events"]
    for split in SPLITS:
        assert prepared.positive_rate(split) == 0.5
    # Of 40 users' views all but those with fewer than five earlier events.
    views = raw.filter(pl.col("behaviour") == "pv").height
    assert views - 5 * 40 <= sampler["positive_events"] < views
    test = raw.filter((pl.col("behaviour") == "pv") & (pl.col("time") >= TEST_FROM)).height
    assert 0.8 * test < prepared.rows("test") / 2 <= test


def test_validation_is_the_last_tenth_before_the_cut(prepared: Prepared) -> None:
    cuts = prepared.manifest["split"]
    assert cuts["test_from_time"] == TEST_FROM
    before = prepared.rows("train") + prepared.rows("valid")
    assert prepared.rows("valid") / before == pytest.approx(0.1, abs=0.01)
    assert prepared.frame("valid", columns=["time"])["time"].min() == cuts["valid_from_time"]
    assert prepared.frame("train", columns=["time"])["time"].max() < cuts["valid_from_time"]


def test_manifest_states_the_sampler(prepared: Prepared, pool: Path) -> None:
    sampler = prepared.sampler
    assert sampler is not None
    stated = {k: sampler[k] for k in ("pool", "weighting", "ratio", "seed", "exclude_own", "positives", "min_history")}
    assert stated == {
        "pool": "pool.csv.gz", "weighting": "popularity", "ratio": 1, "seed": 0, "exclude_own": True, "positives": "pv",
        "min_history": 5,
    }  # fmt: skip
    events = gzip.decompress(pool.read_bytes()).count(b"\n")
    assert sampler["pool_events"] == events == sampler["pool_rows"]["kept"]
    assert sampler["pool_events"] > 2 * sampler["positive_events"]


def test_negatives_come_from_the_pool_alone(prepared: Prepared, file: Path, pool: Path) -> None:
    pairs = set(_raw(pool).select("item", "category").rows())
    words = {c: dict(prepared.vocabulary(c).select("id", "value").iter_rows()) for c in ("item", "category")}
    drawn = prepared.frame("train").filter(pl.col("label") == 0)
    got = {(int(words["item"][i]), int(words["category"][c])) for i, c in drawn.select("item", "category").iter_rows()}
    assert len(got) > 500
    assert got <= pairs
    assert not got <= set(_raw(file).select("item", "category").rows())


def test_rows_of_one_second_come_in_any_order(prepared: Prepared) -> None:
    """If the positive were always first, statistics of earlier rows would tell the label."""
    train = prepared.frame("train", columns=["label", "user_id", "time"])
    first = train.filter(pl.struct("user_id", "time").is_first_distinct())
    assert 0.45 < first["label"].mean() < 0.55  # type: ignore[operator]  # some 2,000 rows, s.e. .011


def test_per_user_split(file: Path, pool: Path, tmp_path: Path) -> None:
    out = prepare("taobao_behaviour", file, tmp_path / "out", split="per_user", pool=str(pool))
    frames = {s: out.frame(s).filter(pl.col("label") == 1) for s in SPLITS}
    users = frames["train"]["user_id"].unique()
    assert len(users) > 30
    for user in users:
        mine = [f.filter(pl.col("user_id") == user) for f in frames.values()]
        size = sum(m.height for m in mine)
        test = int(size * 0.2)
        assert [m.height for m in mine[1:]] == [int((size - test) * 0.1), test]
        ends = [(m["time"].min(), m["time"].max()) for m in mine if m.height]
        assert ends == sorted(ends)


def test_rare_values_are_out_of_vocabulary(file: Path, tmp_path: Path) -> None:
    out = prepare("taobao_behaviour", file, tmp_path / "out", min_count=3)
    assert out.vocabulary("item")["count"].min() == 3
    assert out.frame("train")["item"].value_counts().filter(pl.col("item") >= FIRST_ID)["count"].min() == 3
    assert out.manifest["rates"]["train"]["item"]["oov"] == (out.frame("train")["item"] == OOV).mean() > 0.2


def test_gzip_and_plain_make_the_same_rows(file: Path, tmp_path: Path) -> None:
    gz = tmp_path / "u.csv.gz"
    gz.write_bytes(gzip.compress(file.read_bytes()))
    a, b = (prepare("taobao_behaviour", p, tmp_path / n) for p, n in ((file, "a"), (gz, "b")))
    for split in SPLITS:
        assert a.frame(split).equals(b.frame(split))


def test_identity_follows_the_bytes_of_the_pool_and_not_its_name(file: Path, pool: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.csv.gz", tmp_path / "other.csv.gz"
    copy.write_bytes(pool.read_bytes())
    write(Parameters(users=161), other)
    made = [
        prepare("taobao_behaviour", file, tmp_path / str(n), **options)  # type: ignore[arg-type]
        for n, options in enumerate([{"pool": str(pool)}, {"pool": str(copy)}, {"pool": str(other)}, {}, {"seed": 1}])
    ]
    prints = [p.fingerprint for p in made]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert made[3].manifest["raw"].keys() == {"file", "bytes", "sha256"}
    assert made[0].manifest["raw"]["sha256_file"] == made[3].manifest["raw"]["sha256"]
    seeds = [m.frame("train").select("user_id", "time", "item", "label") for m in made[3:]]
    positives, negatives = ([f.filter(pl.col("label") == y) for f in seeds] for y in (1, 0))
    assert positives[0].height == positives[1].height
    assert negatives[0].height == negatives[1].height
    assert not negatives[0].equals(negatives[1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weighting": "popular"}, "'popular': did you mean 'popularity'"),
        ({"ratio": 0}, "ratio must be at least 1"),
        ({"seed": -1}, "seed at least 0"),
        ({"positives": "pv,bye"}, "unknown behaviour 'bye': did you mean 'buy'"),
        ({"positives": ""}, "unknown behaviour ''"),
        ({"duplicates": "drop"}, "did you mean 'drop_exact'"),
        ({"history": 0}, "history >= 1"),
        ({"min_history": -1}, "min_history >= 0"),
        ({"pool": "absent.csv"}, "absent.csv: cannot be read"),
        ({"ratio": "2"}, "option ratio='2' must be int"),
        ({"exclude_own": 1}, "option exclude_own=1 must be bool"),
    ],
)
def test_wrong_options_are_named(file: Path, tmp_path: Path, options: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        prepare("taobao_behaviour", file, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"taobao_behaviour: no file given; pass the path of UserBehavior.csv"):
        prepare("taobao_behaviour")
    with pytest.raises(UnknownName, match="unknown split 'time': did you mean 'global_time'"):
        prepare("taobao_behaviour", tmp_path / "x", split="time")
    with pytest.raises(UnknownName, match="unknown option 'pools': did you mean 'pool'"):
        prepare("taobao_behaviour", tmp_path / "x", pools="y")


def test_nothing_is_left_between_the_passes(prepared: Prepared) -> None:
    names = {p.name for p in prepared.path.iterdir()}
    expected = {f"{s}-00000.parquet" for s in SPLITS} | {"events-hist.parquet", "manifest.json"}
    assert names == expected | {f"vocabulary-{c}.parquet" for c in taobao_behaviour.CATEGORICAL}


def test_generated_data_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    options = {"users": 30, "pool_users": 90}
    out = prepare("taobao_synthetic", **options)  # type: ignore[arg-type]
    assert out.schema.name == "taobao_synthetic"
    assert out.manifest["synthetic"] is True
    assert out.manifest["raw"]["parameters"] == {"users": 30, "seed": 0, "defects": []}
    assert out.sampler is not None
    assert out.sampler["pool_rows"]["kept"] > out.manifest["rows"]["kept"]
    assert prepare("taobao_synthetic", **options).path == out.path  # type: ignore[arg-type]
    more = prepare("taobao_synthetic", users=30, pool_users=120)
    assert more.fingerprint != out.fingerprint
    with pytest.raises(BadInput, match="pool_users=10 is less than users=30"):
        prepare("taobao_synthetic", users=30, pool_users=10)
    with pytest.raises(BadInput, match=r"is generated and takes no path; .* data=taobao_behaviour"):
        prepare("taobao_synthetic", "x")
    raw = next((tmp_path / "raw").glob("*users30*.csv"))
    raw.write_bytes(raw.read_bytes() + b"x")
    with pytest.raises(BadInput, match=r"sha256 .* delete both files"):
        prepare("taobao_synthetic", **options)  # type: ignore[arg-type]
    assert taobao_synthetic.SPEC.splits == taobao_behaviour.SPEC.splits
