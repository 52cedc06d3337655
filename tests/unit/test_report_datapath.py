"""The section on the data path: a pure function of its rows, hidden without them, a tie said as a tie."""

from __future__ import annotations

from typing import Any

import pytest

from ctrbench.reports.measures import make
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import Measurement, frame

BODIES: dict[str, dict[str, Any]] = {"a": {"spec": {"kind": "datapath", "level": "standard"}, "extra": {}}}
MADE_UP = {"run": "a", "model": "", "preset": "datapath", "data": "", "phase": "prepare", "threads": 2}


def _way(part: str, way: str, place: str, seconds: float, over: tuple[float, float, float] | None) -> list[Measurement]:
    rows = [make(MADE_UP, "path_time", seconds, "measured", scope=f"{part}:{way}:{place}", n=15)]
    if over is not None:
        value, low, high = over
        rows.append(make(MADE_UP, "path_ratio", value, "derived", scope=f"{part}:{way}:{place}", ci_low=low,
                         ci_high=high, n=15))  # fmt: skip
    return rows


def _model(model: str, stall: float) -> list[Measurement]:
    base = {"run": "b", "model": model, "family": "legacy", "preset": "datapath", "data": "shop", "track": "tabular",
            "phase": "train"}  # fmt: skip
    return [make(base, "loader_stall", stall * k, "measured", scope=f"prefetch:{2 - k + 1}", ci_low=0.0, ci_high=0.5)
            for k in (1, 2, 3)] + [
        make(base, "path_ratio", 1.1, "derived", scope="stall:prefetch 0:step", ci_low=1.0, ci_high=1.2),
    ]  # fmt: skip


def _rows() -> list[Measurement]:
    base = {**MADE_UP, "data": "shop", "track": "tabular"}
    return [
        make(base, "load_rate", 2e6, "measured", scope="loader:memory:batch 256"),
        make(base, "load_rate", 1e6, "measured", scope="loader:parquet:batch 256"),
        make(base, "load_bytes", 5e8, "measured", scope="loader:memory:batch 256"),
        make(base, "load_bytes", 3e7, "measured", scope="loader:shards:batch 256"),
        make(base, "cpu_core_s_per_million", 0.5, "measured", scope="loader:memory:batch 256"),
        *_way("transforms", "fused", "40", 1e-3, None), *_way("transforms", "plain", "40", 3e-3, (3.0, 2.8, 3.2)),
        *_way("transforms", "fused", "600", 2e-2, None), *_way("transforms", "plain", "600", 2e-2, (1.02, 0.9, 1.1)),
        *_way("dedup", "direct", "alpha 1.5", 1e-2, None), *_way("dedup", "unique", "alpha 1.5", 2e-2, (2.0, 1.9, 2.1)),
        make(MADE_UP, "path_bytes", 1e7, "counted", scope="dedup:direct:alpha 1.5"),
        *_model("deepfm", 0.02), *_model("din", 0.06),
    ]  # fmt: skip


def _section(rows: list[Measurement]) -> Any:
    return next((s for s in make_report(frame(rows), BODIES).sections if s.id == "datapath"), None)


def test_every_part_has_its_table_and_the_sentence_says_what_they_say() -> None:
    section = _section(_rows())
    assert [e.title for e in section.exhibits] == [
        "The loader alone", "Beside a training step", "Feature transforms", "Distinct ids",
    ]  # fmt: skip
    said = section.sentence
    assert "1 M (shop, from Parquet) to 2 M rows a second (shop, from memory)" in said.replace("1.00 M", "1 M").replace(
        "2.00 M", "2 M"
    )
    assert "With prefetch 2 a step waits for 2.0 % (DeepFM) to 6.0 % (DIN) of its time, DIN at or above 5%" in said
    assert "3.00x at 40, 1.02x (tie) at 600" in said
    assert all(e.figures for e in section.exhibits[1:])
    load = section.exhibits[0].table
    assert load["Shards"].map(str).tolist()[0] == "not read"
    assert section.exhibits[3].table["Bytes touched"].iloc[0].value == 1e7


def test_no_row_no_section_and_other_tables_stay_as_they_are() -> None:
    others = [r for r in _rows() if r.preset != "datapath"]
    assert others == []
    base = {"run": "c", "model": "deepfm", "family": "legacy", "data": "shop", "track": "tabular", "phase": "train"}
    plain = [make(base, "step_time", 0.01, "measured"), make(base, "loader_stall", 0.01, "measured")]
    assert _section(plain) is None
    speed = [next(s for s in make_report(frame(r), BODIES).sections if s.id == "speed")
             for r in (plain, [*plain, *_rows()])]  # fmt: skip
    assert speed[0].sentence == speed[1].sentence


def test_the_page_renders() -> None:
    page = render(make_report(frame(_rows()), BODIES))
    assert "Data path (this CPU)" in page
    assert "all columns at once" in page


@pytest.mark.parametrize("kept", ["transforms", "loader", "prefetch"])
def test_a_part_alone_makes_a_section(kept: str) -> None:
    section = _section([r for r in _rows() if r.scope.startswith(kept)])
    assert section.sentence
    assert len(section.exhibits) == 1
