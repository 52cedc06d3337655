"""`run.table_rows`: fewer rows than values, shared by the remainder of the id; the same in every batch and count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, suite_specs
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader, shared_rows
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID
from ctrbench.reports import records

MOST = 40


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTRBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare("taobao_synthetic", users=60, pool_users=120)


def test_ids_of_batches_are_those_of_the_formula(prepared: Prepared) -> None:
    capped = prepared.with_table_rows(MOST)
    assert {f.cardinality for f in capped.schema.fields if f.kind != "dense"} >= {MOST}
    assert all(f.cardinality <= MOST for f in capped.schema.fields)
    shared = 0
    for plain, few in zip(Loader(prepared, "train", 64), Loader(capped, "train", 64), strict=True):
        assert few.ids.keys() == plain.ids.keys()
        assert few.ids.lengths().tolist() == plain.ids.lengths().tolist()
        for key in plain.ids.keys():
            for was, now in zip(plain.ids[key].values().tolist(), few.ids[key].values().tolist(), strict=True):
                assert now == (was if was < MOST else FIRST_ID + (was - FIRST_ID) % (MOST - FIRST_ID))
                assert now < capped.schema[key].cardinality
                shared += was >= MOST
    assert shared > 1000


def test_every_row_serves_as_many_values_as_any_other() -> None:
    found = np.bincount(shared_rows(np.arange(FIRST_ID, FIRST_ID + 37 * 10), MOST))
    assert found[:FIRST_ID].sum() == 0  # reserved ids are nobody's
    assert set(found[FIRST_ID:]) == {10}
    assert shared_rows(np.arange(FIRST_ID), MOST).tolist() == list(range(FIRST_ID))


def test_no_rows_beside_the_reserved_ids_is_an_error(prepared: Prepared) -> None:
    assert prepared.with_table_rows(0) is prepared
    with pytest.raises(BadInput, match=f"table_rows={FIRST_ID}: {FIRST_ID} ids are reserved"):
        prepared.with_table_rows(FIRST_ID)


def test_specs_carry_it_and_name_it(prepared: Prepared) -> None:
    def specs(*more: str) -> list[RunSpec]:
        plan = build_plan(["suite=ci", "data=taobao_synthetic", *more])
        return suite_specs(plan, [Ready(plan.jobs[0], prepared, prepared.path)])[0]

    made = specs("model=deepfm", f"run.table_rows={MOST}")
    assert {s.table_rows for s in made if s.kind not in ("floor", "published")} == {MOST}
    assert {s.variant for s in made if s.kind == "quality"} == {f"table_rows={MOST}"}
    assert {s.table_rows for s in specs("model=deepfm")} == {0}


@pytest.mark.slow
def test_a_run_has_smaller_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    argv = ["run", "suite=ci", "data=criteo_synthetic", "data.options.rows=3000", "data.options.cap=200",
            "model=deepfm", "timed=false", "floors=false", "published=false", "run.train_rows=1500",
            "run.seeds=1"]  # fmt: skip
    assert main([*argv, f"run.out={tmp_path / 'few'}", f"run.table_rows={MOST}"]) == 0
    table, _ = records.load(tmp_path / "few" / "latest")
    counted = table[table["metric"] == "bytes_tables"]["value"].max()
    assert counted <= 26 * MOST * 16 * 4 * 1.1  # with the first-order weights
    assert table[table["metric"] == "auc"]["value"].notna().any()


def test_models_that_retrieve_refuse_it(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path / "cache"))
    argv = ["run", "suite=ci", "data=taobao_synthetic", "model=lum", "run.table_rows=50", f"run.out={tmp_path}"]
    assert main(argv) == 2
    assert "run.table_rows=50: not with lum" in capsys.readouterr().err
