"""Prices of what serving and training occupy: read from a dated file with sources, never written in code."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from ctrbench.bench.hardware import Gpu, catalogue
from ctrbench.datasets.errors import BadInput, nearest

DEFAULT = Path(__file__).resolve().parent / "prices.toml"
GPU = "gpu."
"""Prefix of the price of an hour of an accelerator; the rest is its name in hardware.toml."""
VCPU, RAM, SSD, OBJECT = "vcpu", "ram", "ssd", "object"
UNITS = ("USD/GPU-h", "USD/vCPU-h", "USD/GB-h", "USD/GB-month", "USD/GB")
_TEXTS = ("currency", "unit", "region", "provider", "term", "source")


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """One price with the range seen; GB are 1e9 bytes, a month has 730 hours."""

    name: str
    value: float
    low: float
    high: float
    currency: str
    unit: str
    """One of `UNITS`."""
    region: str
    provider: str
    term: str
    """On demand, committed, list price ..."""
    source: str
    """Where it was read: an address, or `unverified`."""
    read_on: date
    note: str = ""


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices of a file by name."""

    by_name: Mapping[str, Price]
    file: str = DEFAULT.name

    def get(self, name: str) -> Price | None:
        """The price, or None where the file has none: what needs it is withheld."""
        return self.by_name.get(name)

    def at(self, name: str, value: float) -> Prices:
        """The same prices with one of them known exactly.

        Raises:
            BadInput: there is no such price.
        """
        if name not in self.by_name:
            raise BadInput(f"{self.file}: no price {nearest(name, self.by_name)}")
        exact = replace(self.by_name[name], value=value, low=value, high=value)
        return Prices({**self.by_name, name: exact}, self.file)

    def records(self) -> list[dict[str, Any]]:
        """One JSON-able record a price, in the order of the file."""
        return [
            {**{f.name: getattr(p, f.name) for f in fields(p)}, "read_on": p.read_on.isoformat()}
            for p in self.by_name.values()
        ]


def load_prices(path: Path | None = None) -> Prices:
    """Prices of a TOML file, one table a price: `[vcpu]`, `[ram]`, `[gpu."L4"]` ...; without a path the shipped ones.

    Raises:
        BadInput: the file cannot be read or is no TOML; a price is negative, outside its range, of an unknown unit or
            currency, or without source or date. The message names the file, the price, the key and the remedy.
    """
    file = DEFAULT if path is None else path
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"{file}: prices cannot be read: {error.strerror}; give a TOML file like {DEFAULT.name}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{file}: not TOML: {error}; see {DEFAULT.name} for the form") from None
    gpus = tables.pop("gpu", {})
    named = {**tables, **({GPU + n: row for n, row in gpus.items()} if isinstance(gpus, dict) else {"gpu": gpus})}
    return Prices({name: _price(file, name, row) for name, row in named.items()}, file.name)


def _price(file: Path, name: str, row: Any) -> Price:
    def wrong(key: str, said: str, remedy: str) -> BadInput:
        return BadInput(f"{file}: [{name}] {key}: {said}; {remedy}")

    if not isinstance(row, dict):
        raise wrong("table", f"{row!r} is no table", 'write [vcpu] or [gpu."L4"] with its keys below')
    known = [f.name for f in fields(Price) if f.name != "name"]
    for key in row:
        if key not in known:
            raise wrong(key, "unknown key", f"known: {', '.join(known)}")
    for key in ("value", "low", "high"):
        number = row.get(key)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number) or number < 0:
            raise wrong(key, f"{number!r} is no price", "give a number of at least 0")
    if not row["low"] <= row["value"] <= row["high"]:
        raise wrong("low", f"{row['low']} <= {row['value']} <= {row['high']} does not hold", "order low, value, high")
    for key in _TEXTS:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise wrong(key, "missing", "every price names it; write `unverified` for a source that you do not have")
    if row["unit"] not in UNITS:
        raise wrong("unit", f"unknown unit {row['unit']!r}", f"one of {', '.join(UNITS)}")
    if row["currency"] != "USD":
        raise wrong("currency", f"{row['currency']!r}", "convert to USD and say the rate in `note`")
    if type(row.get("read_on")) is not date:
        raise wrong("read_on", f"{row.get('read_on')!r} is no date", "write the day it was read, e.g. 2026-11-26")
    texts = {key: str(row[key]) for key in _TEXTS}
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    note = str(row.get("note", ""))
    return Price(name=name, value=value, low=low, high=high, read_on=row["read_on"], note=note, **texts)


def usd_per_tflops(prices: Prices, gpus: Iterable[Gpu] | None = None) -> list[dict[str, Any]]:
    """USD for an hour of one dense TFLOP/s, a record a GPU and dtype: `gpu, dtype, tflops, usd_per_tflops_hour, low,
    high, times_v100_fp16, reason`.

    `times_v100_fp16` is how many times cheaper than on V100 at fp16, by the middle prices; at `fp16` the comparison is
    at equal width of numbers. A GPU without a price has its reason and no numbers. What a buyer pays once is not here:
    these are prices of renting.
    """
    known = {g.name: g for g in (catalogue().values() if gpus is None else gpus)}
    old = prices.get(GPU + "V100 SXM2")
    then = old.value / known["V100 SXM2"].peak_tflops["fp16"] if old and "V100 SXM2" in known else None
    out = []
    for gpu in known.values():
        price = prices.get(GPU + gpu.name)
        for dtype, tflops in gpu.peak_tflops.items():
            row: dict[str, Any] = {"gpu": gpu.name, "dtype": dtype, "tflops": tflops}
            ends = [e / tflops for e in (price.value, price.low, price.high)] if price else [None] * 3
            row |= dict(zip(("usd_per_tflops_hour", "low", "high"), ends, strict=True))
            row["times_v100_fp16"] = then / ends[0] if then and ends[0] else None
            row["reason"] = "" if price else f"no price of {GPU}{gpu.name} in {prices.file}"
            out.append(row)
    return out
