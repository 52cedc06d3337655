"""The file of prices: dates, sources, ranges, what a wrong one says; and the price of a TFLOP/s."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ctrbench.bench.config import CONF
from ctrbench.bench.cost_prices import UNITS, load_prices, usd_per_tflops
from ctrbench.bench.cost_terms import Assumptions, assumptions_of
from ctrbench.bench.hardware import catalogue
from ctrbench.datasets.errors import BadInput

NEAR = pytest.approx


def test_every_shipped_price_has_date_and_source_and_agrees_with_the_catalogue() -> None:
    prices = load_prices()
    for record in prices.records():
        assert date.fromisoformat(record["read_on"]) <= date.today()
        assert record["source"]
        assert record["unit"] in UNITS
    for name, gpu in catalogue().items():
        found = prices.get(f"gpu.{name}")
        assert (found and (found.low, found.high)) == gpu.usd_per_hour, name


GOOD = """[vcpu]
value = 1.0
low = 0.5
high = 2.0
currency = "USD"
unit = "USD/vCPU-h"
region = "r"
provider = "p"
term = "t"
source = "s"
read_on = 2026-11-26
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value = 1.0", "value = -1.0", r"\[vcpu\] value: -1.0 is no price"),
        ("value = 1.0", "value = nan", "value: nan is no price"),
        ("low = 0.5", "low = 1.5", "order low, value, high"),
        ("USD/vCPU-h", "USD/core", "unknown unit 'USD/core'; one of"),
        ('source = "s"\n', "", "source: missing"),
        ("read_on = 2026-11-26", 'read_on = "soon"', "read_on: 'soon' is no date"),
        ("value = 1.0", "value = 1.0\nvalu = 1.0", "valu: unknown key"),
        ("[vcpu]", "[vcpu", "not TOML"),
        ('"USD"', '"EUR"', "currency: 'EUR'; convert"),
    ],
)
def test_a_bad_price_names_file_key_and_remedy(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(GOOD)
    assert load_prices(file).by_name["vcpu"].high == 2.0
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(BadInput, match=said) as raised:
        load_prices(file)
    assert str(file) in str(raised.value)


def test_a_missing_price_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="prices cannot be read"):
        load_prices(tmp_path / "none.toml")


def test_the_configuration_holds_the_defaults_of_the_assumptions() -> None:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "cost" / "default.yaml"))
    assert values.pop("prices") is None
    assert values == asdict(Assumptions())
    assert assumptions_of(values) == Assumptions()
    with pytest.raises(BadInput, match=r"did you mean 'cost\.qps'"):
        assumptions_of({"qpss": 1})
    for bad in ({"utilisation": 0.0}, {"qps": -1.0}, {"peak_to_mean": 0.5}, {"cache_resident": 2.0}, {"users": "many"}):
        with pytest.raises(BadInput, match=f"cost.{next(iter(bad))}="):
            assumptions_of(bad)


def test_a_tflops_hour_at_equal_width_of_numbers() -> None:
    found = {(r["gpu"], r["dtype"]): r for r in usd_per_tflops(load_prices())}
    v100, b200 = found["V100 SXM2", "fp16"], found["B200 SXM", "fp16"]
    assert v100["usd_per_tflops_hour"] == NEAR(1.805 / 125)  # middle of .55 and 3.06
    assert b200["times_v100_fp16"] == NEAR((1.805 / 125) / (8.275 / 2250))  # 3.9 times, not 20
    assert found["A40", "fp16"]["usd_per_tflops_hour"] is None
    assert "gpu.A40" in found["A40", "fp16"]["reason"]
