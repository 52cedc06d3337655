"""LUM's section of the report, from SYNTHETIC rows."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from ctrbench.reports import tuning
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make
from ctrbench.reports.names import Names
from ctrbench.reports.tables import plain_text

BASE = {
    "run": "synthetic", "model": "lum", "preset": "small", "family": "transformer", "data": "synthetic",
    "split": "global_time", "track": "sequence", "device": "cpu", "dtype": "float32", "threads": 1, "batch": 256,
}  # fmt: skip


def test_a_tuned_entry_that_kept_its_defaults_is_held_against_its_host() -> None:
    rows = []
    for variant in ("host=composite", "tuned,host=composite"):
        base = BASE | {"variant": variant}
        for scope, value in (("lum", 0.3), ("popularity", 0.1), ("popularity_in_condition", 0.2)):
            rows.append(make(base, "recall_at_k", value, "measured", phase="train", scope=scope))
        delta = 0.002 if variant.startswith("tuned") else 0.001
        rows.append(make(base, "auc_delta", delta, "derived", phase="train", scope="vs:composite",
                         ci_low=delta / 2, ci_high=delta * 2))  # fmt: skip
    bodies = {"a": {"spec": {"model": "lum", "variant": "host=composite"}, "extra": {"host": "composite"}}}
    frame = tidy(pd.DataFrame([asdict(r) for r in rows]))
    context = Context(frame, bodies, Names(camps={"lum": "transformer"}), (("sequence", "synthetic"),))
    section = tuning.pretraining(context)
    assert section is not None
    gains = section.exhibits[0].table["ΔAUC vs its host"].map(plain_text)
    assert [text.split(" ")[0] for text in gains] == ["+0.0010", "+0.0020"]
