"""docs/at_scale.md says what the code says; rows of many accelerators follow from the counts; the report draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench import registry
from ctrbench.bench.at_scale import ID_BYTES, PLANS, VALUE_BYTES, WORLDS, fabrics
from ctrbench.bench.at_scale_page import QUICK, TABLES, main, renewed, sizes
from ctrbench.bench.at_scale_rows import SCALE_METRICS, scale_rows, work_of
from ctrbench.bench.counting.published import PublishedPoint, published_points
from ctrbench.datasets.errors import BadInput
from ctrbench.reports import at_scale, records
from ctrbench.reports.page import make_report
from ctrbench.reports.records import Measurement

FILE = Path(__file__).resolve().parents[2] / "docs" / "at_scale.md"
PAGE = FILE.read_text(encoding="utf-8")
GPUS = {f.gpu: "bf16" for f in fabrics().values()}


def points_of(model: str, batch: int = 4096) -> list[PublishedPoint]:
    return published_points(registry.model_spec(model), [256, batch], GPUS)


@pytest.fixture(scope="module")
def points() -> dict[str, list[PublishedPoint]]:
    return {model: points_of(model) for model in ("deepfm", "dcn_v2", "din")}


@pytest.fixture(scope="module")
def rows(points: dict[str, list[PublishedPoint]]) -> list[Measurement]:
    found = []
    for model, mine in points.items():
        spec = registry.model_spec(model)
        base = {"run": model, "model": model, "family": spec.family, "device": "meta", "dtype": "bf16"}
        found += scale_rows(base, spec, mine)
    return found


def test_the_cheap_tables_of_the_page_are_those_of_the_code() -> None:
    cheap = {name: make for name, make in TABLES.items() if name != "sizes"}
    assert renewed(PAGE, cheap) == PAGE, "python -m ctrbench.bench.at_scale_page docs/at_scale.md"
    assert all(f"<!-- table: {name} -->" in PAGE for name in TABLES)


def test_small_models_of_the_page_are_those_of_the_code() -> None:
    assert "\n".join(sizes(QUICK)) in PAGE, "python -m ctrbench.bench.at_scale_page docs/at_scale.md"


@pytest.mark.slow
def test_the_page_is_that_of_the_code() -> None:
    assert renewed(PAGE) == PAGE, "python -m ctrbench.bench.at_scale_page docs/at_scale.md"


def test_a_page_without_tables_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="page names table nothing; name one of links, sizes"):
        renewed("<!-- table: nothing -->\n<!-- end -->\n")
    (tmp_path / "page.md").write_text("no table")
    assert main([str(tmp_path / "page.md")]) == 2
    assert "page names table none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "ids", "features", "width"),
    [
        ("deepfm", 26.0, 26, 12),  # Criteo: one id a categorical column; 10 values stored as 12
        ("din", 166.0, 19, 32),  # 3 histories of 50, 16 plain columns
    ],
)
def test_work_is_what_was_counted(
    model: str, ids: float, features: int, width: int, points: dict[str, list[PublishedPoint]]
) -> None:
    spec = registry.model_spec(model)
    point = next(p for p in points[model] if p.phase == "train" and p.batch == 4096)
    work = work_of(spec, spec.published()[0], point)
    assert sum(t.ids for t in work.tables) == ids
    assert (work.samples, work.modules) == (4096, 1)
    assert sum(t.features for t in work.tables) == features
    assert {t.width for t in work.tables} == {width}
    assert all(t.trained for t in work.tables)
    counted = sum(r.bytes_own for r in point.counts.rows if r.op == "ctrbench.tbe" and r.part == "forward")
    moved = 4096 * sum(2 * t.values + 2 * ID_BYTES * t.ids for t in work.tables)
    assert moved + 8 == counted, "row in, row out, id and offset of every lookup"
    assert VALUE_BYTES == 4


@pytest.mark.slow
def test_frozen_tables_send_no_gradients() -> None:
    """LUM's user model is frozen: rows of its tables travel, their gradients do not."""
    spec = registry.model_spec("lum")
    preset = spec.published()[0]
    (point,) = (
        p for p in published_points(spec, [251], ["H100 SXM"]) if p.preset == preset.label and p.phase == "train"
    )
    work = work_of(spec, preset, point)
    assert work.modules == 2
    assert {t.trained for t in work.tables} == {True, False}


def test_every_number_is_modelled_with_its_band_or_withheld_with_a_reason(rows: list[Measurement]) -> None:
    assert {r.metric for r in rows} == set(SCALE_METRICS)
    for r in rows:
        if r.value is None:
            assert (r.metric, r.origin) == ("step_time_at_scale", "abstained")
            assert r.reason
            continue
        assert r.origin == "modelled"
        if r.metric not in ("communication_bytes", "mfu_bound_at_scale"):
            assert r.ci_low is not None
            assert r.ci_high is not None
            assert r.ci_low <= r.value <= r.ci_high
    scopes = {r.scope for r in rows if r.metric == "communication_time"}
    assert scopes == {f"{g}:{w}:{p}" for g in GPUS for w in WORLDS for p in PLANS}
    assert {r.batch for r in rows} == {4096}, "the largest batch alone"
    assert {r.phase for r in rows} == {"train"}


def test_the_bound_falls_with_the_machines_and_never_exceeds_that_of_one(
    rows: list[Measurement], points: dict[str, list[PublishedPoint]]
) -> None:
    one = {
        (p.model, f"published:{p.preset}", g): b.value
        for mine in points.values() for p in mine if p.phase == "train" and p.batch == 4096 for g, b in p.bounds.items()
    }  # fmt: skip
    found = {(r.model, r.preset, r.scope): r.value for r in rows if r.metric == "mfu_bound_at_scale"}
    assert found
    for model, preset, gpu in {(m, p, str(s).split(":")[0]) for m, p, s in found}:
        values = [found[model, preset, f"{gpu}:{world}"] for world in WORLDS]
        assert one[model, preset, gpu] >= values[0] >= values[1] >= values[2] > 0


def test_models_with_batches_of_their_own_have_no_rows() -> None:
    assert scale_rows({}, registry.model_spec("tiger"), []) == []


def section_of(rows: list[Measurement]) -> Any:
    bodies: dict[str, Any] = {}
    return next((s for s in make_report(records.frame(rows), bodies).sections if s.id == "at-scale"), None)


def test_the_report_has_a_table_of_them(rows: list[Measurement]) -> None:
    found = section_of(rows)
    assert [e.hardware for e in found.exhibits] == list(GPUS)
    table = next(e.table for e in found.exhibits if e.hardware == "H100 SXM")
    assert len(table) == 4 * len(WORLDS), "DIN has two sizes"
    din = table[(table["Model"] == "DIN") & (table["Preset"] == "taobao_ad")].set_index("Accelerators")
    assert list(din["Tables"]) == ["by row, small copied"] * 3, "by table whoever has the items sends for all"
    by_hand = next(r for r in rows if (r.model, r.preset, r.metric, r.scope) == (
        "din", "published:taobao_ad", "communication_bytes", "H100 SXM:64:small_replicated"))  # fmt: skip
    assert din.loc[64, at_scale.SENT].value == by_hand.value
    assert din.loc[64, at_scale.STEP].band
    deepfm = table[table["Model"] == "DeepFM"].set_index("Accelerators")
    assert deepfm.loc[64, at_scale.STEP].reason.startswith("coverage_low")
    assert deepfm.loc[64, at_scale.WAITS].low == 0
    assert "Nothing here was measured on more than one accelerator" in found.caveat
    assert "On 512 H100 SXM a step sends" in found.sentence


def test_without_such_rows_there_is_no_section(rows: list[Measurement]) -> None:
    assert section_of([r for r in rows if r.metric == "mfu_bound_at_scale"]) is None
