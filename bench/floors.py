"""Floors: simple models on the very rows that the models get (data.md, section 7).

A model below a floor is reported as such. The floor that matters on the sequence track is `lightgbm_history`: six
counts of exactly the events and actions that the sequence models see. `target_ids` is no floor but a control: where
negatives are sampled, the target's ids alone must tell next to nothing. Floors sample neither rows nor features, so
another seed gives the same scores.

Dims: N rows, F features, K one-hot columns
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import lightgbm
import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ctrbench.bench.history_counts import Layout, history_counts
from ctrbench.bench.quality import auc, checked_labels
from ctrbench.datasets.errors import UnknownName, nearest
from ctrbench.datasets.schema import FeatureSchema

Floats = npt.NDArray[np.float32]
Key = tuple[str, ...]
"""Columns that together are one categorical value: a field, or a cross of two."""

FLOORS = ("popularity", "logistic", "lightgbm", "lightgbm_history", "target_ids")
HONEST_AUC = (0.45, 0.60)
"""AUC that target ids alone may have where negatives are sampled; a low one tells of the pool as much as a high one."""
SMOOTHING = 10.0
"""Rows at the train rate that every target statistic starts from."""
LR_C = (0.03, 0.1, 0.3, 1.0)
"""Inverse regularisation tried by LR on validation rows; the published floors have .03 (data.md, section 7)."""
LR_TOLERANCE = 1e-4
"""Largest gradient of the mean loss where Newton's method stops; 1e-5 changes no AUC by 2e-4."""
MISSING_BIN = -1_000_000
"""Bin of a missing dense value, far from any real one."""
LEAVES, RATE, ROUNDS, PATIENCE = 15, 0.05, 2000, 50
"""LightGBM of data.md, section 7; training ends after `PATIENCE` rounds without a gain on validation rows."""


class Source(Protocol):
    """What floors need of `datasets.prepared.Prepared`."""

    @property
    def schema(self) -> FeatureSchema: ...

    @property
    def aside(self) -> tuple[str, ...]: ...

    def frame(self, split: str, last: int | None = None, columns: Sequence[str] | None = None) -> pl.DataFrame: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FloorResult:
    """A trained floor and its scores."""

    scores: Floats
    """Probabilities of the test rows, in stored order."""
    fit_seconds: float
    """Features, tuning, fit and scoring; reading apart."""
    notes: Mapping[str, Any]
    """What was chosen and how; JSON values."""
    parts: Mapping[str, Floats] = field(default_factory=dict)
    """Of a control of several models: the scores of each; `scores` are those of one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The three parts of the data as a floor sees them."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame

    @property
    def parts(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        return self.train, self.valid, self.test

    @property
    def labels(self) -> tuple[Floats, Floats]:
        """Train and validation labels; those of test are never asked for."""
        return self.train["label"].to_numpy().astype(np.float32), self.valid["label"].to_numpy().astype(np.float32)


def skip_reason(name: str, schema: FeatureSchema) -> str | None:
    """Why a floor does not exist on data of this schema; None if it does.

    Raises:
        UnknownName: for a name that is no floor.
    """
    if name not in FLOORS:
        raise UnknownName(f"unknown floor {nearest(name, FLOORS)}")
    layout = Layout.of(schema)
    if name in ("popularity", "target_ids") and layout.item is None:
        return f"field_missing: {schema.name} has no item field"
    if name == "lightgbm_history" and (layout.action is None or layout.category is None):
        return f"field_missing: {schema.name} has no history with actions and categories"
    return None


def run_floor(
    name: str, prepared: Source, *, train_rows: int | None, history_length: int, seed: int, threads: int = 1,
    valid_rows: int | None = None, test_rows: int | None = None,
) -> FloorResult:  # fmt: skip
    """Trains a floor on the last `train_rows` rows of train and scores the whole test split.

    Args:
        name: one of `FLOORS`.
        prepared: the data. Only train rows are learnt from, only validation rows choose.
        train_rows: most recent rows of train; None for all.
        history_length: events that the sequence models see; `lightgbm_history` counts no others.
        seed: handed to LightGBM.
        threads: of LightGBM and of LR's linear algebra.
        valid_rows: most recent rows of validation; None for all.
        test_rows: most recent rows of test; None for all.

    Raises:
        UnknownName: for a name that is no floor.
        ValueError: if the floor does not exist on this data (`skip_reason`), or train or validation has one class.
    """
    schema = prepared.schema
    if (reason := skip_reason(name, schema)) is not None:
        raise ValueError(reason)
    layout = Layout.of(schema)
    columns = ["label", "time", *(f.name for f in (*schema.categorical, *schema.dense)), *prepared.aside]
    sees = name == "lightgbm_history"
    if sees:
        longest = min(f.max_length for f in schema.histories[str(layout.history)])
        if not 1 <= history_length <= longest:
            raise ValueError(
                f"history_length={history_length}: {schema.name} holds 1..{longest}; prepare more or ask for less"
            )
        columns += [*(f.name for f in schema.histories[str(layout.history)]), f"{layout.history}_time"]
    rows = Rows(
        train=prepared.frame("train", last=train_rows, columns=columns),
        valid=prepared.frame("valid", last=valid_rows, columns=columns),
        test=prepared.frame("test", last=test_rows, columns=columns),
    )
    for label_N in rows.labels:
        checked_labels(label_N, label_N)
    start = time.perf_counter()
    notes: dict[str, Any] = {"train_rows": len(rows.train), "valid_rows": len(rows.valid)}
    parts: dict[str, Floats] = {}
    if name == "popularity":
        assert layout.item is not None
        scores = _popularity(rows, layout.item.name)
    elif name == "logistic":
        with threadpool_limits(threads):  # BLAS threads that outnumber free cores made this ten times slower
            scores = _lr(rows, schema, layout.keys(schema), notes)
    elif name == "lightgbm":
        scores = _lightgbm(rows, *_statistics(rows, schema, layout.keys(schema)), notes, seed, threads)
    elif name == "target_ids":
        parts = _target_ids(rows, schema, layout, notes, seed, threads)
        scores = parts[notes["model"]]
    else:
        notes["history_length"] = history_length
        scores = _lightgbm_history(rows, schema, layout, notes, seed, threads)
    return FloorResult(scores=scores, fit_seconds=time.perf_counter() - start, notes=notes, parts=parts)


def _rates(train: pl.DataFrame, key: Key, rate: float) -> pl.DataFrame:
    """Of every value of `key`: its smoothed like-rate and its rows in train."""
    table = train.group_by(key).agg(pl.len().alias("rows"), pl.col("label").sum().alias("likes"))
    return table.select(*key, _smoothed(pl.col("likes"), pl.col("rows"), rate), "rows")


def _smoothed(likes: pl.Expr, rows: pl.Expr, rate: float) -> pl.Expr:
    return ((likes + SMOOTHING * rate) / (rows + SMOOTHING)).alias("rate")


def _looked_up(part: pl.DataFrame, key: Key, table: pl.DataFrame, rate: float) -> pl.DataFrame:
    """Like-rate and rows of each row's value; a value that train never had gets the train rate and 0."""
    joined = part.select(key).join(table, on=key, how="left", maintain_order="left")
    return joined.select(pl.col("rate").fill_null(rate), pl.col("rows").fill_null(0))


def _popularity(rows: Rows, item: str) -> Floats:
    rate = float(rows.labels[0].mean())
    table = _rates(rows.train, (item,), rate)
    return _looked_up(rows.test, (item,), table, rate)["rate"].to_numpy().astype(np.float32)


def _statistics(rows: Rows, schema: FeatureSchema, keys: Sequence[Key]) -> tuple[list[Floats], list[str]]:
    """Dense values, and like-rate and count of every key: [N, F] for train, validation, test, and names of columns.

    A train row's statistics hold the train rows stored before it and so never its own label (ordered target
    statistics, Prokhorenkova et al. 2018, "CatBoost", section 3.2); the other parts' hold all train rows.
    """
    rate = float(rows.labels[0].mean())
    dense = [f.name for f in schema.dense]
    parts = [[part.select(dense)] if dense else [] for part in rows.parts]
    for key in keys:
        before = (pl.col("label").cum_sum() - pl.col("label")).over(key)
        earlier = pl.int_range(pl.len()).over(key)
        parts[0].append(rows.train.select(_smoothed(before, earlier, rate), earlier.alias("rows")))
        table = _rates(rows.train, key, rate)
        for part, source in zip(parts[1:], rows.parts[1:], strict=True):
            part.append(_looked_up(source, key, table, rate))
    names = dense + [f"{' x '.join(key)} {what}" for key in keys for what in ("rate", "rows")]
    return [np.hstack([f.to_numpy().astype(np.float32) for f in part]) for part in parts], names


def _lightgbm(
    rows: Rows, parts: Sequence[Floats], names: Sequence[str], notes: dict[str, Any], seed: int, threads: int
) -> Floats:
    """Boosted trees on features [N, F] of train, validation and test; validation decides the number of trees."""
    label_train, label_valid = rows.labels
    options = {
        "objective": "binary", "metric": "auc", "num_leaves": LEAVES, "learning_rate": RATE, "seed": seed,
        "num_threads": threads, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    train = lightgbm.Dataset(parts[0], label_train)
    valid = lightgbm.Dataset(parts[1], label_valid, reference=train)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    trees = lightgbm.train(options, train, num_boost_round=ROUNDS, valid_sets=[valid], callbacks=[stop])
    notes |= {
        "features": list(names),
        "trees": int(trees.best_iteration),
        "valid_auc": float(trees.best_score["valid_0"]["auc"]),
    }
    return np.asarray(trees.predict(parts[2], num_threads=threads), dtype=np.float32)


def _lightgbm_history(
    rows: Rows, schema: FeatureSchema, layout: Layout, notes: dict[str, Any], seed: int, threads: int
) -> Floats:
    """The six counts beside all statistics, or in place of the user's: the better on validation rows.

    Train rows know their user's past from both, test rows of a new user from the counts alone; trees that lean on the
    user's statistics then fall short (MovieLens-1M, global time, all train rows: AUC .774 with them, .789 without).
    """
    counted = [history_counts(part, layout, int(notes["history_length"])) for part in rows.parts]
    choices = {"with": layout.keys(schema)}
    if layout.user is not None:
        choices["without"] = [key for key in choices["with"] if layout.user.name not in key]
    fits: dict[str, tuple[Floats, dict[str, Any]]] = {}
    for tag, keys in choices.items():
        parts, names = _statistics(rows, schema, keys)
        parts = [np.hstack(pair) for pair in zip(parts, counted, strict=True)]
        found: dict[str, Any] = {"user_statistics": tag}
        fits[tag] = _lightgbm(rows, parts, [*names, *layout.counts], found, seed, threads), found
    scores, found = max(fits.values(), key=lambda fit: fit[1]["valid_auc"])
    notes |= found | {"valid_auc_by_user_statistics": {tag: fit[1]["valid_auc"] for tag, fit in fits.items()}}
    return scores


def _target_ids(
    rows: Rows, schema: FeatureSchema, layout: Layout, notes: dict[str, Any], seed: int, threads: int
) -> dict[str, Floats]:
    """Scores of LR and LightGBM that see the target's item and category and nothing else.

    Ids are those of the file where the rows have them (`raw_<field>`): rare items that are hidden from the models still
    leak through what is counted of them, and a control without them finds nothing. The two models find different
    leaks, and LR often ranks the wrong way round; `notes["model"]` names the one whose AUC on validation rows is
    farther from .5.
    """
    targets = [f for f in (layout.item, layout.category) if f is not None]
    targets = [replace(f, name=f"raw_{f.name}") if f"raw_{f.name}" in rows.train.columns else f for f in targets]
    keys: list[Key] = [(f.name,) for f in targets]
    only = replace(schema, fields=tuple(targets))
    each: dict[str, dict[str, Any]] = {"lr": {}, "lightgbm": {}}
    with threadpool_limits(threads):
        parts = {"lr": _lr(rows, only, keys, each["lr"])}
    parts["lightgbm"] = _lightgbm(rows, *_statistics(rows, only, keys), each["lightgbm"], seed, threads)
    notes |= {"fields": [f.name for f in targets], **each}
    notes["model"] = max(each, key=lambda model: abs(each[model]["valid_auc"] - 0.5))
    return parts


def judge_pool(label_N: Floats, result: FloorResult) -> dict[str, Any]:
    """What the `target_ids` control says of the pool that negatives were drawn from.

    Args:
        label_N: of the rows that were scored.
        result: of the control.

    Returns:
        `target_ids_auc`: model -> AUC; `leaking_pool`: why the data's AUCs are invalid, empty if they are not.
    """
    found = {model: auc(label_N, score_N) for model, score_N in result.parts.items()}
    low, high = HONEST_AUC
    shown = ", ".join(f"{model} {value:.3f}" for model, value in found.items())
    leaks = any(not low <= value <= high for value in found.values())
    reason = (
        f"leaking pool: target ids alone reach AUC {shown}, outside {low:.2f}-{high:.2f}; draw negatives from a pool "
        "of far more events of the whole period"
    )
    return {"target_ids_auc": found, "leaking_pool": reason if leaks else ""}


def _lr(rows: Rows, schema: FeatureSchema, keys: Sequence[Key], notes: dict[str, Any]) -> Floats:
    """Logistic regression on one-hot values; C rises until the AUC on validation rows falls."""
    label_train, label_valid = rows.labels
    train_NK, valid_NK, test_NK = _one_hot(rows, schema, keys)
    tried: dict[str, float] = {}
    scores = np.empty(0, dtype=np.float32)
    for c in LR_C:
        model = LogisticRegression(C=c, solver="newton-cg", tol=LR_TOLERANCE).fit(train_NK, label_train)
        tried[str(c)] = auc(label_valid, model.decision_function(valid_NK))
        if tried[str(c)] < max(tried.values()):
            break  # weaker penalties overfit more and take longest
        scores = model.predict_proba(test_NK)[:, 1].astype(np.float32)
        notes |= {"C": c, "valid_auc": tried[str(c)]}
    notes |= {"columns": int(train_NK.shape[1]), "valid_auc_by_C": tried}
    return scores


def _one_hot(rows: Rows, schema: FeatureSchema, keys: Sequence[Key]) -> list[sparse.csr_matrix]:
    """Rows [N, K] of train, validation and test: one 1 for every key and every dense field.

    Columns are the values that train rows have, so nothing collides; other values share a last column, whose weight
    stays 0. Dense fields are stored as sign(x) * log1p|x| and fall in bins of half a unit; missing is its own bin.
    """
    blocks: list[list[npt.NDArray[np.int32]]] = [[], [], []]
    columns = 0
    for codes in _codes(rows, schema, keys):
        known = np.unique(codes[0])
        for block, code_N in zip(blocks, codes, strict=True):
            at_N = np.minimum(np.searchsorted(known, code_N), len(known) - 1)
            block.append(np.where(known[at_N] == code_N, at_N + columns, -1).astype(np.int32))
        columns += len(known)
    out = []
    for block in blocks:
        index_NF = np.stack(block, axis=1)
        index_NF[index_NF < 0] = columns
        n, f = index_NF.shape
        out.append(
            sparse.csr_matrix((np.ones(n * f), index_NF.ravel(), np.arange(0, n * f + 1, f)), shape=(n, columns + 1))
        )
    return out


def _codes(rows: Rows, schema: FeatureSchema, keys: Sequence[Key]) -> Iterator[list[npt.NDArray[np.int64]]]:
    """For every key and dense field: the values' codes in train, validation and test."""
    for key in keys:
        code = pl.lit(0, dtype=pl.Int64)
        for name in key:
            code = code * schema[name].cardinality + pl.col(name)
        yield [part.select(code.alias("code"))["code"].to_numpy() for part in rows.parts]
    for dense in schema.dense:
        code = (pl.col(dense.name) * 2).floor().cast(pl.Int64).fill_null(MISSING_BIN)
        yield [part.select(code.alias("code"))["code"].to_numpy() for part in rows.parts]
