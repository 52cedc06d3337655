"""The section of `suite=modes`: a pure function of its rows, hidden without them."""

from __future__ import annotations

from typing import Any

from ctrbench.reports import modes_section
from ctrbench.reports.cells import tidy
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.names import names_of
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import Measurement, frame

EMULATED = "bf16 emulated: this CPU has no bf16 units"


def _base(model: str, variant: str) -> dict[str, Any]:
    return {"run": "summary", "model": model, "variant": variant, "preset": "sweep", "family": "legacy",
            "data": "random_tabular", "split": "random", "track": "tabular", "phase": "train", "threads": 2,
            "dtype": variant.split(",")[-1], "batch": 256}  # fmt: skip


def _mode(model: str, mode: str, ratio: float, reason: str = "") -> list[Measurement]:
    base = _base(model, mode)
    return [
        make(base, "step_time", 0.02 * ratio, "measured", n=1), make(base, "mfu_cpu", 0.3, "derived"),
        make(base, "mode_time", ratio, "measured", ci_low=ratio - 0.05, ci_high=ratio + 0.05, reason=reason),
        make(base, "compile_time", 12.0, "measured", scope="cold"), make(base, "recompiles", 0, "counted"),
    ]  # fmt: skip


def _rows() -> list[Measurement]:
    plain = [make(_base(m, "eager,float32"), "step_time", 0.02, "measured", n=1) for m in ("deepfm", "dcn_v2")]
    attention = _base("onetrans", "attention")
    return [
        *_mode("deepfm", "compile,float32", 0.7), *_mode("dcn_v2", "compile,float32", 1.2),
        *_mode("deepfm", "eager,bfloat16", 3.0, EMULATED), *plain,
        withheld(_base("deepfm", "cuda_graph,float32"), "mode_time", "cuda_graph: needs a CUDA device"),
        make(attention, "attention_time", 1.0, "measured", scope="math"),
        withheld(attention, "attention_time", "refused: no kernel", scope="efficient"),
    ]  # fmt: skip


def test_the_section_counts_models_that_a_mode_makes_faster() -> None:
    report = make_report(frame(_rows()), {})
    (section,) = [s for s in report.sections if s.id == "modes"]
    assert "compile float32: 1 of 2 models faster than eager float32, 1 slower (ratios 0.70 to 1.20)." in (
        section.sentence
    )
    assert len(section.flags) == 1
    assert EMULATED in section.flags[0]
    assert [len(e.figures) for e in section.exhibits] == [1, 0]
    page = render(report)
    assert "cuda_graph: needs a CUDA device" in page
    assert "refused: no kernel" in page


def test_the_table_has_eager_float32_first_and_the_reason_of_what_was_not_run() -> None:
    rows = tidy(frame(_rows()))
    table = modes_section.modes(rows, names_of(rows, {}))
    assert table.loc["deepfm", "Mode"].iloc[0] == "eager float32"
    skipped = table[table["Mode"] == "cuda_graph float32"][modes_section.OVER].iloc[0]
    assert skipped.value is None
    assert "CUDA" in skipped.text
    assert modes_section.console(frame(_rows()), {})


def test_without_modes_there_is_no_section() -> None:
    rows = [make(_base("deepfm", "d=16,T=50"), "step_time", 0.02, "measured")]
    assert all(s.id != "modes" for s in make_report(frame(rows), {}).sections)
    assert modes_section.console(frame(rows), {}) == []
