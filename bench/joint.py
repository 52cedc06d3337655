"""One user model for retrieval and ranking, trained on both, against one that each has for itself (claim S21).

Every training of LUM's ranker is followed by the same retrieval: each test user's last event among the full catalogue.
Neither step 1 nor the ranker has trained on it; the ranker has on the last train event, which step 1's own figure asks.

Dims: S seeds, U test users, R draws
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrbench.bench.arrays import arrays
from ctrbench.bench.last_rows import event_log, last_rows
from ctrbench.bench.option_gains import same_seeds
from ctrbench.bench.pretrain import user_ranks
from ctrbench.bench.ranking import hits
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.statistics import paired_from_draws
from ctrbench.datasets.prepared import Prepared
from ctrbench.models.lum_answers import UserAnswers
from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement

if TYPE_CHECKING:
    from ctrbench.bench.summary import Run, Who

RANKS = "retrieved.npz"
"""Rank of each test user's last event, beside the record."""
TRAINING = ("frozen", "objective", "joint_weight", "pretrain_epochs")
"""Options that decide how the user model of a ranker is trained."""
DRAWS = 400


def retrieve_after(
    answers: UserAnswers, prepared: Prepared, base: Mapping[str, Any], seed: int, folder: Path
) -> list[Measurement]:
    """Recall of the user model as the ranker's training left it; keeps the ranks."""
    user = answers.user.eval()
    rows = last_rows(prepared, user.fields, splits=("test",))
    if not len(rows.spans_U2):
        return []
    rank_U = user_ranks(user, event_log(prepared, user.fields), rows, answers.length)
    np.savez(folder / RANKS, rank=rank_U.astype(np.float32))
    found = float(hits(rank_U).mean())
    return [make(base, "recall_after", found, "measured", phase="train", seed=seed, n=len(rank_U))]


def joint_rows(
    trained: Mapping[Who, list[Run]], base: Mapping[Who, Mapping[str, Any]], aucs: Mapping[Who, np.ndarray],
    draws: Mapping[Who, np.ndarray], runs_dir: Path,
) -> list[Measurement]:  # fmt: skip
    """AUC and recall of every ranker that trains its user model, less those of its twin with a frozen one."""
    out: list[Measurement] = []
    for who, runs in trained.items():
        other = _separate(who, trained)
        if other is None:
            continue
        mine, theirs = same_seeds(runs, trained[other])
        if not mine:
            continue
        delta = float(aucs[who][mine].mean() - aucs[other][theirs].mean())
        pair = paired_from_draws(delta, draws[who][mine], draws[other][theirs], seed=0)
        out.append(_row(base[who], "auc", (delta, pair.ci_low, pair.ci_high), len(mine)))
        hits = [
            _hits(runs[i], runs_dir) - _hits(trained[other][j], runs_dir) for i, j in zip(mine, theirs, strict=True)
        ]
        if all(h.size for h in hits):
            out.append(_row(base[who], "recall", _paired(np.stack(hits)), len(mine)))
    return out


def _row(base: Mapping[str, Any], scope: str, found: tuple[float, float, float], seeds: int) -> Measurement:
    value, low, high = found
    return make(base, "joint_gain", value, "derived", phase="train", scope=scope, n=seeds, ci_low=low, ci_high=high)


def _separate(who: Who, trained: Mapping[Who, list[Run]]) -> Who | None:
    """The variant that differs in `TRAINING` alone and has a pre-trained, frozen user model; None for itself."""
    spec = trained[who][0].spec
    if spec.kind != "quality" or spec.model != "lum" or _frozen(spec):
        return None
    for other, runs in trained.items():
        if runs[0].spec.kind == "quality" and _frozen(runs[0].spec) and _rest(runs[0].spec) == _rest(spec):
            return other
    return None


def _frozen(spec: RunSpec) -> bool:
    return bool(spec.config.get("frozen", True)) and spec.config.get("pretrain_epochs", 1) > 0


def _rest(spec: RunSpec) -> tuple[Any, ...]:
    options = {k: v for k, v in spec.config.items() if k not in TRAINING}
    return spec.model, options, spec.tuned, spec.train_rows, spec.epochs, spec.lr


def _hits(run: Run, runs_dir: Path) -> np.ndarray:
    path = runs_dir / "records" / run.record / RANKS
    return hits(arrays(path, "rank")["rank"]) if path.is_file() else np.zeros(0)


def _paired(gain_SU: np.ndarray) -> tuple[float, float, float]:
    """(mean, 95 % interval): seeds and users resampled jointly."""
    g = np.random.default_rng(0)
    seeds, users = gain_SU.shape
    drawn = [
        gain_SU[g.integers(0, seeds, seeds)].mean(axis=0)[g.integers(0, users, users)].mean() for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(gain_SU.mean()), float(low), float(high)
