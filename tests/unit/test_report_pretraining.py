"""LUM's section of the report, from SYNTHETIC rows."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from ctrbench.reports import tuning
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context, Section
from ctrbench.reports.measures import make
from ctrbench.reports.names import Names
from ctrbench.reports.tables import plain_text

BASE = {
    "run": "synthetic", "model": "lum", "preset": "small", "family": "transformer", "data": "synthetic",
    "split": "global_time", "track": "sequence", "device": "cpu", "dtype": "float32", "threads": 1, "batch": 256,
}  # fmt: skip


def section(data: str, host: str, tuned_recall: float = 0.3) -> Section:
    """LUM's section with a default and a standing tuned entry on one host."""
    rows = []
    for variant in (f"host={host}", f"tuned,host={host}"):
        base = BASE | {"variant": variant, "data": data}
        recall = tuned_recall if variant.startswith("tuned") else 0.3
        for scope, value in (("model", recall), ("popularity", 0.1), ("popularity_in_condition", 0.2)):
            rows.append(make(base, "recall_at_k", value, "measured", phase="train", scope=scope))
        delta = 0.002 if variant.startswith("tuned") else 0.001
        rows.append(make(base, "auc_delta", delta, "derived", phase="train", scope=f"vs:{host}",
                         ci_low=delta / 2, ci_high=delta * 2))  # fmt: skip
    bodies = {"a": {"spec": {"model": "lum", "variant": f"host={host}"}, "extra": {"host": host}}}
    frame = tidy(pd.DataFrame([asdict(r) for r in rows]))
    found = tuning.pretraining(Context(frame, bodies, Names(camps={"lum": "transformer"}), (("sequence", data),)))
    assert found is not None
    return found


def columns(data: str, host: str) -> pd.DataFrame:
    return section(data, host).exhibits[0].table.map(plain_text)


def test_a_tuned_entry_that_kept_its_defaults_is_held_against_its_host() -> None:
    gains = columns("synthetic", "composite")["ΔAUC vs its host"]
    assert [text.split(" ")[0] for text in gains] == ["+0.0010", "+0.0020"]


def test_the_papers_gain_stands_beside_the_data_it_was_published_for() -> None:
    claim = "Paper's ΔAUC, that host"
    assert columns("movielens_1m", "din")[claim].str.startswith("+0.0017").all()
    for data, host in (("taobao_synthetic", "din"), ("movielens_1m", "composite")):
        assert (columns(data, host)[claim] == "—").all()


def test_variants_that_retrieve_alike_are_said_once() -> None:
    assert section("synthetic", "din").sentence == (
        "On synthetic 2 variants of LUM retrieve 0.3000 of held-out items among 10, popularity 0.1000; that is above "
        "the 0.2000 of popularity inside the asked condition. Each against its host alone: LUM · host=din gains "
        "(+0.0010 [+0.0005, +0.0020]); LUM · tuned,host=din gains (+0.0020 [+0.0010, +0.0040])."
    )


def test_variants_that_retrieve_otherwise_have_sentences_of_their_own() -> None:
    first, second = section("synthetic", "din", tuned_recall=0.15).sentence.split(" On synthetic ")
    assert first == (
        "On synthetic LUM · host=din retrieves 0.3000 of held-out items among 10, popularity 0.1000; that is above the "
        "0.2000 of popularity inside the asked condition. Against its host alone it gains: +0.0010 [+0.0005, +0.0020]."
    )
    assert second == (
        "LUM · tuned,host=din retrieves 0.1500 of held-out items among 10, popularity 0.1000; that is not above the "
        "0.2000 of popularity inside the asked condition. Against its host alone it gains: +0.0020 [+0.0010, +0.0040]."
    )
