"""SYNTHETIC cited figures for the rules that are arithmetic on them: for each verdict the figures that give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctrbench.reports.claim_evidence import OPEN, REFUTED, SUPPORTED, Word

Sheets = dict[Word, dict[str, list[dict[str, Any]]]]


def peak_growth(o: Mapping[str, Any]) -> Sheets:
    def at(peak: float) -> dict[str, list[dict[str, Any]]]:
        old = {"name": o["old"], f"{o['old_dtype']}_tflops": 10.0, "gbs": 1000.0, "source": "synthetic"}
        new = {"name": o["new"], f"{o['old_dtype']}_tflops": 60.0, f"{o['new_dtype']}_tflops": 10 * peak,
               "gbs": 1000 * o["bandwidth"], "source": "synthetic"}  # fmt: skip
        return {"gpu": [old, new]}

    return {SUPPORTED: at(1.1 * o["peak"]), REFUTED: at(0.5 * o["peak"]), OPEN: at(1.001 * o["peak"])}


def price_fall(o: Mapping[str, Any]) -> Sheets:
    def at(times: float) -> dict[str, list[dict[str, Any]]]:
        old = {"name": o["old"], "usd_per_tflops": 80.0, "dtype": "FP16", "source": "synthetic"}
        new = {"name": o["new"], "usd_per_tflops": 80.0 / times, "dtype": "FP4", "tflops": 4.0, "tflops_wide": 1.0,
               "source": "synthetic"}  # fmt: skip
        return {"price": [old, new]}

    return {SUPPORTED: at(1.1 * o["times"]), REFUTED: at(0.5 * o["times"]), OPEN: at(o["times"])}


def value_growth(o: Mapping[str, Any]) -> Sheets:
    def at(gpu: float) -> dict[str, list[dict[str, Any]]]:
        kinds = {"gpu": gpu, "cpu": sum(o["ranges"]["cpu"]) / 2}
        return {"value": [
            {"kind": kind, "name": f"{kind} {year}", "year": year, "tflops": tflops, "usd": 1.0, "source": "synthetic"}
            for kind, growth in kinds.items() for year, tflops in ((2016, 1.0), (2026, growth))
        ]}  # fmt: skip

    least, most = o["ranges"]["gpu"]
    return {SUPPORTED: at((least + most) / 2), REFUTED: at(2 * most), OPEN: at(least)}
