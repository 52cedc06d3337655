"""Shuffled labels keep the rate and nothing else; planted leaks are found, clean data is not flagged."""

from __future__ import annotations

import runpy
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctrbench.bench import controls, registry
from ctrbench.bench.control_rows import control_row, t_interval
from ctrbench.bench.jobs import run_control
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.reports.records import Measurement

tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
USERS, ITEMS, ROWS = 60, 40, 4000
BASE = {"run": "r", "model": "deepfm", "data": "d", "track": "sequence"}
PEEKING = textwrap.dedent(
    """
    import dataclasses
    from ctrbench.legacy_baselines import deepfm

    class Peeking(deepfm.DeepFM):
        def forward(self, batch):
            return super().forward(batch) + 0.3 * batch.label_B

    SPEC = dataclasses.replace(deepfm.SPEC, name="peeking", title="Peeking", build=Peeking)
    """
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Ratings that depend on the user alone: one half of the users likes nine films in ten, the other one.

    The halves are the two genders of the file: a field that nearly tells the label must not flag a shuffle.
    """
    folder = tmp_path_factory.mktemp("controls")
    rng = np.random.default_rng(0)
    user, item = rng.integers(1, USERS + 1, ROWS), rng.integers(0, ITEMS, ROWS)
    liked = rng.random(ROWS) < np.where(user % 2, 0.9, 0.1)
    events = [
        (int(u), int(i), 5 if y else 1, 978_300_000 + t)
        for t, (u, i, y) in enumerate(zip(user, item, liked, strict=True))
    ]
    return prepare("movielens_1m", tiny["movielens_folder"](folder / "raw", events, ITEMS, USERS), folder / "out")


def spec_of(prepared: Prepared, shuffle: int = 0, **changes: object) -> RunSpec:
    spec = RunSpec(
        kind="shuffled", model="deepfm", data="movielens_1m", prepared=str(prepared.path), history_length=8,
        train_rows=2500, valid_rows=150, epochs=3, evaluations=2, patience=2, batch=64, eval_batch=256, lr=1e-3,
        seed=shuffle, shuffle=shuffle, level="",
    )  # fmt: skip
    return replace(spec, **changes)  # type: ignore[arg-type]


def judged(prepared: Prepared, folder: Path, **changes: object) -> Measurement:
    specs = [spec_of(prepared, s, **changes) for s in range(controls.SHUFFLES)]
    return control_row(BASE, "shuffled", [run_control(s, folder).extra for s in specs])


# ------------------------------------------------------------------ permutation


@pytest.mark.parametrize("shuffle", [0, 1, 4])
def test_a_shuffle_is_a_permutation_of_the_rows_used(prepared: Prepared, shuffle: int) -> None:
    spec = spec_of(prepared, shuffle)
    labels = controls.shuffled_labels(prepared, spec)
    for split, rows in (("train", 2500), ("valid", 150)):
        stored = prepared.frame(split, last=rows, columns=["label"])["label"].to_numpy()
        assert len(labels[split]) == rows
        assert labels[split].sum() == stored.sum()
        assert (labels[split] != stored).mean() > 0.3
    again = controls.shuffled_labels(prepared, spec)
    other = controls.shuffled_labels(prepared, spec_of(prepared, shuffle + 1))
    for split in labels:
        np.testing.assert_array_equal(labels[split], again[split])
        assert (labels[split] != other[split]).any()


@pytest.mark.parametrize("window", [100, 1000, 10**6])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("rows", [None, 777])
def test_the_loader_gives_each_row_its_label(
    prepared: Prepared, rows: int | None, seed: int | None, window: int
) -> None:
    """Each row is known by its time, which is unique here; the label put in its place is its number."""
    times = prepared.frame("train", last=rows, columns=["time"])["time"].to_numpy()
    labels = np.arange(len(times))
    loader = Loader(prepared, "train", 64, rows=rows, shuffle_seed=seed, window=window, labels=labels)
    for _ in range(2):
        seen = [(int(t), int(y)) for b in loader for t, y in zip(b.time_B, b.label_B, strict=True)]
        assert sorted(seen) == list(zip(times.tolist(), labels.tolist(), strict=True))


def test_labels_of_another_number_of_rows_are_refused(prepared: Prepared) -> None:
    with pytest.raises(BadInput, match="3 labels for 50 rows of train"):
        Loader(prepared, "train", 10, rows=50, labels=np.zeros(3))


# ------------------------------------------------------------------ planted leaks


def test_clean_data_is_not_flagged(prepared: Prepared, tmp_path: Path) -> None:
    row = judged(prepared, tmp_path)
    assert row.status == "ok"
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low <= 0.5 <= row.ci_high
    assert row.n == controls.SHUFFLES
    assert row.sd is not None
    assert row.sd > 0


def test_labels_shuffled_within_users_are_flagged(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shuffle that never leaves the user keeps each user's rate: the leak of a loader that pairs by user."""

    def within_users(prepared: Prepared, spec: RunSpec) -> dict[str, np.ndarray]:
        out = {}
        for split, rows in (("train", spec.train_rows), ("valid", spec.valid_rows)):
            frame = prepared.frame(split, last=rows, columns=["label", "user_id"])
            label_N, user_N = (frame[c].to_numpy() for c in ("label", "user_id"))
            mixed_N = np.random.default_rng(spec.shuffle).permutation(len(label_N))
            out[split] = np.empty_like(label_N)
            out[split][np.argsort(user_N, kind="stable")] = label_N[mixed_N][np.argsort(user_N[mixed_N], kind="stable")]
            assert out[split].sum() == label_N.sum()
        return out

    monkeypatch.setattr(controls, "shuffled_labels", within_users)
    row = judged(prepared, tmp_path)
    assert row.status == "unstable"
    assert row.value is not None
    assert row.value > 0.7
    assert "which leaves out .5: suspect labels that reach" in row.reason


def test_a_model_that_reads_the_label_is_flagged(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    file = tmp_path / "peeking.py"
    file.write_text(PEEKING)
    row = judged(prepared, tmp_path, model="peeking", model_path=str(file))
    assert row.status == "unstable"
    assert row.value is not None
    assert row.value > 0.6


# ------------------------------------------------------------------ target ids


def test_the_target_view_holds_item_fields_alone(prepared: Prepared) -> None:
    seen = controls.target_view(prepared)
    assert {f.name for f in seen.schema.fields} == {"item", "genre", "year"}
    (batch,) = Loader(seen, "valid", 10**6, rows=50)
    assert batch.ids.keys() == [f.name for f in seen.schema.fields]
    assert batch.dense_BI.shape == (50, 0)
    assert batch.event_times == {}
    assert prepared.schema.histories  # the data itself is as before


def test_ids_only_sees_no_user(prepared: Prepared, tmp_path: Path) -> None:
    """Labels here follow the user alone: with the user the model ranks well, on the target's ids at chance."""
    record = run_control(replace(spec_of(prepared), kind="ids_only", shuffle=-1), tmp_path)
    (row,) = record.rows
    assert row.metric == "auc_ids_only"
    assert row.value is not None
    assert abs(row.value - 0.5) < 0.06
    assert record.extra["fields"] == ["item", "genre", "year"]


# ------------------------------------------------------------------ judgement


def test_interval_by_hand() -> None:
    # sd .0158114, s.e. .0070711, t(.995, 4) = 4.60409 (tables): half width .032556
    assert t_interval([0.48, 0.49, 0.50, 0.51, 0.52]) == pytest.approx((0.467444, 0.532556), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([0.46, 0.53, 0.48, 0.52, 0.50], "ok"),
        ([0.5] * 5, "ok"),
        ([0.53, 0.53, 0.54, 0.53, 0.54], "unstable"),
        ([0.47, 0.47, 0.46, 0.47, 0.46], "unstable"),
        ([0.40, 0.63, 0.55, 0.60, 0.58], "ok"),  # far, but so is the spread
        ([0.9, 0.9, 0.9], "skipped"),
    ],
)
def test_the_mean_is_judged_by_its_own_spread(values: list[float], status: str) -> None:
    row = control_row(BASE, "shuffled", [{"auc": v} for v in values])
    assert row.status == status
    if status == "skipped":
        assert (row.value, row.reason) == (None, "3 of 5 shuffles finished")
    else:
        assert row.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("values", "sampled", "status"),
    [([0.72, 0.72], False, "ok"), ([0.72, 0.72], True, "unstable"), ([0.55], True, "ok"), ([0.4], True, "unstable")],
)
def test_ids_alone_are_judged_where_negatives_are_sampled(values: list[float], sampled: bool, status: str) -> None:
    row = control_row(BASE, "ids_only", [{"auc": v, "sampled": sampled} for v in values])
    assert row.status == status
    assert ("sampled negatives give labels away" in row.reason) == (status == "unstable")
