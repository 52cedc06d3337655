"""Controls of a model: the same training on labels that tell nothing, and on the target's ids alone (data.md, 7).

With shuffled labels nothing can be learnt, so that the mean test AUC of several shuffles lies at .5 by their own
spread; if it does not, labels reach the scores by another way than as training labels. What a shuffle cannot find is
a field that equals the label: a model ranks by it with either sign, and only the spread widens (one such field on
2,500 rows: mean .500, standard deviation .137 over 40 shuffles, AUC 1.000 on true labels).

Dims: N rows
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ctrbench.bench.runspec import Kind, RunSpec
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FeatureSchema

CONTROLS: tuple[Kind, ...] = ("shuffled", "ids_only")
METRICS: Mapping[str, str] = {"shuffled": "auc_shuffled", "ids_only": "auc_ids_only"}
"""Kind -> its measure."""
SHUFFLES = 5
"""Shuffles of the training labels a model: one alone says nothing, clean data gave .46 to .53."""
SEED = 20_26
ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "datasets", "models", "legacy_baselines")
LIBRARIES = ("torch", "torchrec", "numpy")
HARNESS = ("controls", "jobs", "pretrain", "quality", "step", "train")
"""Modules of `bench/` that a control's number depends on."""


def shuffled_labels(prepared: Prepared, spec: RunSpec) -> dict[str, np.ndarray]:
    """Labels of the train and validation rows that a training uses, each permuted among themselves.

    Validation labels too: they choose the best look, and among looks at noise the true ones would choose what happens
    to rank the test rows well. The positive rates stay exactly what they are.

    Returns:
        split -> int64 [N], in stored order of the last N rows.
    """
    out = {}
    for part, (split, rows) in enumerate((("train", spec.train_rows), ("valid", spec.valid_rows))):
        label_N = prepared.frame(split, last=rows, columns=["label"])["label"].to_numpy()
        out[split] = np.random.default_rng([SEED, spec.shuffle, part]).permutation(label_N)
    return out


def missing_target(schema: FeatureSchema) -> str | None:
    """Why there is nothing to train on but ids of the target; None if there is."""
    if any(f.kind == "categorical" and f.role == "item" for f in schema.fields):
        return None
    return f"field_missing: {schema.name} has no item field"


def target_view(prepared: Prepared) -> Prepared:
    """The same rows with the target's categorical fields alone: no user, context, dense value or history."""
    body = prepared.manifest["schema"]
    fields = [f for f in body["fields"] if f["kind"] == "categorical" and f["role"] == "item"]
    return replace(prepared, manifest={**prepared.manifest, "schema": {**body, "fields": fields}})


def view(spec: RunSpec) -> Prepared:
    """The prepared data as the run sees it."""
    prepared = Prepared.open(Path(spec.prepared)).with_table_rows(spec.table_rows)
    return target_view(prepared) if spec.kind == "ids_only" else prepared


def _code_digest() -> str:
    files = [f for room in ROOMS for f in sorted((ROOT / room).glob("*.py"))]
    files += [ROOT / "bench" / f"{name}.py" for name in HARNESS]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\n".encode() + file.read_bytes())
    for package in LIBRARIES:
        digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()[:16]


CODE = _code_digest()
"""Hash of the code that makes a control's number: a kept result of other code is no result of this one. Taken on
import, since a file may be edited while a suite runs."""


def code_of(build: object) -> str:
    """Hash of that code with the file of a model that another package brings.

    Args:
        build: `ModelSpec.build`, of a shipped model or not.
    """
    file = Path(inspect.getsourcefile(inspect.unwrap(getattr(build, "func", build))) or "")  # type: ignore[arg-type]
    if not file.is_file() or file.parent.parent == ROOT:
        return CODE
    return hashlib.sha256(CODE.encode() + file.read_bytes()).hexdigest()[:16]
