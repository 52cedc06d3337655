"""What a frozen user embedding knows of its user: small heads on held-out users.

The idea is UQABench's, without its language model. The user model reads item, condition and side fields of events;
attributes of the user are never among its inputs.

Dims: U users, P pieces of histories, L events of a piece, N tokens, d width of the user model, K columns, C classes
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ctrbench.bench.last_rows import LastRows, event_log, last_rows, windows
from ctrbench.bench.pretrain import newest
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID
from ctrbench.models.lum_answers import UserAnswers
from ctrbench.models.lum_backbone import EventFields, UserModel
from ctrbench.models.lum_sid import SidUserModel
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

TEST_SHARE = 30
"""Percent of the users, by a hash of their id, that no head is fitted on."""
MOST_VALUES = 50
LEAST_USERS = 20
"""Of a class among the users that heads are fitted on; users of rarer classes are left out."""
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""C of the logistic regression, chosen by log loss in three folds."""
DRAWS = 400
PIECES = 512
HEADS = ("embedding", "counts", "majority")
EMBEDDING = (
    "mean of the last layer's states over all tokens of the history as step 1 read it, beside the state of its newest "
    "token; step 1 saw the histories of all users, none of their attributes, and no held-out event"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One attribute on the test users."""

    users: int
    classes: int
    accuracy: Mapping[str, tuple[float, float, float]]
    """Head -> (value, 95 % interval over users)."""
    auc: Mapping[str, tuple[float, float, float]]
    """Macro AUC, each class against the rest; a constant has .5."""
    gain: Mapping[str, tuple[float, float, float]]
    """`accuracy` and `auc` of the embedding less those of the counts, on the same users."""
    strength: Mapping[str, float]


def probe_rows(
    base: Mapping[str, Any], answers: UserAnswers, prepared: Prepared, train_rows: int, seed: int
) -> tuple[list[Measurement], dict[str, Any]]:
    """Rows of every attribute and of the held-out event's category, and what they rest on."""
    user, roles = answers.user.eval(), answers.fields
    rows, log = last_rows(prepared, roles, train_rows), event_log(prepared, roles)
    test_U = held_out(rows.user_U)
    columns = {"embedding": embed(user, log, rows.spans_U2, answers.length), "counts": counts(log, roles, rows)}
    out: list[Measurement] = []
    details: dict[str, Any] = {}
    for name, class_U in wanted(prepared, user, rows, train_rows).items():
        found = judge(columns, class_U, test_U, seed) if not isinstance(class_U, str) else class_U
        if isinstance(found, str):
            out.append(withheld(base, "probe_accuracy", found, phase="train", scope=f"{name}:embedding", seed=seed))
            continue
        details[name] = {"classes": found.classes, "C": dict(found.strength)}
        parts = [("probe_accuracy", "measured", found.accuracy), ("probe_auc", "measured", found.auc)]
        for metric, origin, values in (*parts, ("probe_gain", "derived", found.gain)):
            out += [
                make(base, metric, v, origin, phase="train", scope=f"{name}:{head}", seed=seed, n=found.users,  # type: ignore[arg-type]
                     ci_low=low, ci_high=high)
                for head, (v, low, high) in values.items()
            ]  # fmt: skip
    told = {"embedding": EMBEDDING, "reads": list(user.names), "users": len(test_U), "test": int(test_U.sum())}
    return out, {"probe": told | {"attributes": details}}


def held_out(user_U: np.ndarray) -> np.ndarray:
    """bool [U]: whether a user is a test user; the same users for every seed, model and data order."""
    return np.array([zlib.crc32(str(u).encode()) % 100 < TEST_SHARE for u in user_U.tolist()], dtype=bool)


def wanted(
    prepared: Prepared, user: UserModel | SidUserModel, rows: LastRows, train_rows: int
) -> dict[str, np.ndarray | str]:
    """Attribute -> class of every user [U], or why there are none.

    Attributes are user-side categorical fields of at most `MOST_VALUES` values that the user model does not read and
    that are constant in each user's train rows; then the condition of the held-out event.
    """
    schema, roles = prepared.schema, user.fields
    read = {schema[n].table for n in user.names}
    names = [
        f.name for f in schema.categorical
        if f.role == "user" and f.cardinality - FIRST_ID <= MOST_VALUES and f.table not in read
    ]  # fmt: skip
    out: dict[str, np.ndarray | str] = {}
    if names:
        scan = pl.scan_parquet([p for p, _ in prepared.shards("train")]).select("user_id", *names).tail(train_rows)
        every = [pl.col(n).n_unique().alias(f"{n}_values") for n in names]
        table = scan.group_by("user_id").agg(*every, *(pl.col(n).last() for n in names)).collect()
        mine = pl.DataFrame({"user_id": rows.user_U}).join(table, on="user_id", how="left", maintain_order="left")
        constant = [n for n in names if mine[f"{n}_values"].max() == 1]
        shared = [n for n in constant if 2 * mine[n].n_unique() <= len(mine)]  # an id of the user is no attribute
        out = {n: mine[n].to_numpy().astype(np.int64) for n in shared}
    if not out:
        out["attributes"] = (
            f"no user-side categorical field of at most {MOST_VALUES} values that is constant per user and no input of "
            "the user model"
        )
    values = schema[roles.cond_target].cardinality - FIRST_ID
    too_many = f"{values} values, at most {MOST_VALUES} are probed"
    out[f"next {roles.cond_target}"] = rows.cond_U if values <= MOST_VALUES else too_many
    return out


def embed(
    user: UserModel | SidUserModel, log: Mapping[str, np.ndarray], spans_U2: np.ndarray, length: int
) -> np.ndarray:
    """float64 [U, 2d]: mean of the states of all tokens of a user's history, and the state of its newest token."""
    pieces_P2 = windows(spans_U2, length)  # of each user from the newest back
    per_user = -(-(spans_U2[:, 1] - spans_U2[:, 0]) // length)
    owner_P, newest_P = np.repeat(np.arange(len(spans_U2)), per_user), np.zeros(len(pieces_P2), bool)
    newest_P[np.cumsum(per_user) - per_user] = True
    width = user.norm.normalized_shape[0]
    sum_Ud, last_Ud, tokens_U = (
        np.zeros((len(spans_U2), width)),
        np.zeros((len(spans_U2), width)),
        np.zeros(len(spans_U2)),
    )
    for begin in range(0, len(pieces_P2), PIECES):
        part = slice(begin, begin + PIECES)
        read = user.outputs(newest(user, log, pieces_P2[part], length))
        out_PNd, real_PN = read[0].double().numpy(), read[1].numpy()
        np.add.at(sum_Ud, owner_P[part], (out_PNd * real_PN[:, :, None]).sum(axis=1))
        np.add.at(tokens_U, owner_P[part], real_PN.sum(axis=1))
        last_Ud[owner_P[part][newest_P[part]]] = out_PNd[newest_P[part], -1]
    return np.concatenate([sum_Ud / tokens_U[:, None], last_Ud], axis=1)


def counts(log: Mapping[str, np.ndarray], roles: EventFields, rows: LastRows) -> np.ndarray:
    """float64 [U, K]: shares of the conditions (categories) in a user's history, and which one was the newest."""
    cond, users = log[roles.cond], len(rows.spans_U2)
    ids = np.unique(np.concatenate([cond[b:e] for b, e in rows.spans_U2]))
    place = np.zeros(int(cond.max()) + 1, np.int64)
    place[ids] = np.arange(len(ids))
    share_UK, newest_UK = np.zeros((users, len(ids))), np.zeros((users, len(ids)))
    for u, (begin, end) in enumerate(rows.spans_U2.tolist()):
        share_UK[u] = np.bincount(place[cond[begin:end]], minlength=len(ids)) / (end - begin)
        newest_UK[u, place[cond[end - 1]]] = 1.0
    return np.concatenate([share_UK, newest_UK], axis=1)


def judge(columns: Mapping[str, np.ndarray], class_U: np.ndarray, test_U: np.ndarray, seed: int) -> Judged | str:
    """Heads on the users outside the test, judged on those inside; or why there is nothing to judge."""
    label, size = np.unique(class_U[~test_U], return_counts=True)
    kept_U = np.isin(class_U, label[size >= LEAST_USERS])
    fit_U, score_U = kept_U & ~test_U, kept_U & test_U
    if len(np.unique(class_U[fit_U])) < 2 or len(np.unique(class_U[score_U])) < 2:
        return f"fewer than two classes with at least {LEAST_USERS} users to fit on and some to test"
    classes, truth_U = np.unique(class_U[fit_U]), class_U[score_U]
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    proba: dict[str, np.ndarray] = {}
    strength: dict[str, float] = {}
    for name, value_UK in columns.items():
        fit = {c: _head(c) for c in STRENGTHS}
        tried = {
            c: cross_val_score(m, value_UK[fit_U], class_U[fit_U], cv=folds, scoring="neg_log_loss").mean()
            for c, m in fit.items()
        }
        strength[name] = max(tried, key=lambda c: tried[c])
        proba[name] = fit[strength[name]].fit(value_UK[fit_U], class_U[fit_U]).predict_proba(value_UK[score_U])
    shares = np.array([(class_U[fit_U] == c).mean() for c in classes])
    proba["majority"] = np.tile(shares, (len(truth_U), 1))
    right = {n: (classes[p.argmax(axis=1)] == truth_U).astype(float) for n, p in proba.items()}
    draws = np.random.default_rng(seed).integers(0, len(truth_U), (DRAWS, len(truth_U)))
    accuracy = {n: np.array([r.mean(), *r[draws].mean(axis=1)]) for n, r in right.items()}
    member_UC = truth_U[:, None] == classes
    every = [np.arange(len(truth_U)), *draws]
    auc = {n: np.array([macro_auc(p[i], member_UC[i]) for i in every]) for n, p in proba.items()}
    gain = {"accuracy": accuracy["embedding"] - accuracy["counts"], "auc": auc["embedding"] - auc["counts"]}
    bands = [{n: _band(v) for n, v in kind.items()} for kind in (accuracy, auc, gain)]
    return Judged(len(truth_U), len(classes), bands[0], bands[1], bands[2], strength)


def _head(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def macro_auc(proba_UC: np.ndarray, member_UC: np.ndarray) -> float:
    """Mean over the classes present of the AUC of one class against the rest, ties half; NaN with one class alone."""
    n_C = member_UC.sum(axis=0)
    present_C = (n_C > 0) & (n_C < len(member_UC))
    below_C = (rankdata(proba_UC, axis=0) * member_UC).sum(axis=0) - n_C * (n_C + 1) / 2
    found_C = below_C[present_C] / (n_C * (len(member_UC) - n_C))[present_C]
    return float(found_C.mean()) if len(found_C) else float("nan")


def _band(values: np.ndarray) -> tuple[float, float, float]:
    """(the value, 95 % percentile interval of its resamplings, which follow it)."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)
