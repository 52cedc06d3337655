"""SYNTHETIC records of a large set: many trainings of many variants; and names that try to be more than names."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.reports.measures import make
from ctrbench.reports.records import Measurement, frame

_one = runpy.run_path(str(Path(__file__).with_name("synthetic_report.py")))
MODELS = ("deepfm", "dcn_v2", "din", "dien", "composite", "dlrm", "fat", "onetrans", "hstu", "rankmixer")
ROWS_PER_RUN = 50
EVIL = (
    """</script><script>window.owned=1</script>"'><img src=x onerror="window.owned=1">{{7*7}}${7*7}%{x}<b>bold</b>"""
    "\u202eabc\u2066\x07|[link](https://a.invalid)![i](https://b.invalid)`c`"
)
"""Script tags, quotes, template syntax, Plotly's pseudo-HTML, bidi controls, a bell, Markdown."""
FORMULAS = ("=HYPERLINK(1)", "+SUM(1)", "-SUM(1)", "@SUM(1)", "\t=1+1")


def many_runs(runs: int = 200) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """SYNTHETIC (frame, bodies): `ROWS_PER_RUN` rows for each of `runs` variants, on two data sets."""
    rng = random.Random(0)
    rows: list[Measurement] = []
    bodies: dict[str, dict[str, Any]] = {}
    for i in range(runs):
        model, variant = MODELS[i % len(MODELS)], f"v{i // (2 * len(MODELS)):02d}" if i >= 2 * len(MODELS) else ""
        data, track = (("movielens_1m", "sequence"), ("criteo_synthetic", "tabular"))[i // len(MODELS) % 2]
        family = "legacy" if MODELS.index(model) < 6 else "transformer"
        base = {"run": f"run-{i}", "model": model, "variant": variant, "family": family, "data": data, "track": track,
                "phase": "train", "split": "time", "threads": 1, "batch": 512}  # fmt: skip
        auc, other = 0.78 + 0.02 * rng.random(), ("composite", "dcn_v2")[track == "tabular"]
        mine = [
            *_one["_quality"](rng, base, auc), *_one["_counts"](rng, base), *_one["_times"](rng, base, ""),
            *_one["_split"](rng, base),
            make(base, "auc_delta", auc - 0.79, "derived", scope=f"vs:{other}", ci_low=auc - 0.8, ci_high=auc - 0.785),
        ]  # fmt: skip
        mine += [make(base, "logloss", 0.5 + 0.1 * rng.random(), "measured", seed=s)
                 for s in range(ROWS_PER_RUN - len(mine))]  # fmt: skip
        rows += mine
        bodies[f"run-{i}"] = _one["_body"](rng, data, model, family)
        bodies[f"run-{i}"]["spec"]["variant"] = variant
    return frame(rows), bodies


def hostile_records() -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """SYNTHETIC (frame, bodies) in which titles, a data set, a variant, reasons, a path and a split are attacks."""
    rows, bodies = _one["synthetic_records"](0)
    titles = dict(zip(("fat", "din", "deepfm", "onetrans", "dcn_v2", "shared_fields"), (EVIL, *FORMULAS), strict=True))
    evil_data = f"data {EVIL}"
    rows["data"] = rows["data"].replace("movielens_1m", evil_data)
    rows.loc[(rows["model"] == "gpt_block") & (rows["status"] == "oom"), "reason"] = f"reason {EVIL}"
    rows.loc[rows["scope"] == "stage:other", "scope"] = f"stage:{EVIL}"
    for body in bodies.values():
        spec = body["spec"]
        if spec.get("data") == "movielens_1m":
            spec["data"] = evil_data
        if spec.get("model") in titles:
            body["extra"]["title"] = titles[spec["model"]]
            body["environment"] |= {"path": f"/data/{EVIL}", f"key {EVIL}": "x"}
    return rows, bodies
