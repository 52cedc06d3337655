"""A finished run priced: one record beside those of its processes, written again whenever prices change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.bench.cost import cost_extra, cost_rows
from ctrbench.bench.cost_prices import Prices, load_prices
from ctrbench.bench.cost_terms import Assumptions, assumptions_of
from ctrbench.datasets.errors import BadInput, nearest
from ctrbench.reports import records
from ctrbench.reports.records import RunRecord

KEY = "cost"
"""Of the record."""


def asked(options: Mapping[str, Any]) -> tuple[Prices, Assumptions]:
    """Prices and assumptions of the group `cost` of the configuration.

    Raises:
        BadInput: a file of prices, a key or a value that is wrong.
    """
    file = options.get("prices")
    values = {k: v for k, v in options.items() if k != "prices"}
    prices, assumptions = load_prices(Path(file) if file else None), assumptions_of(values)
    # a file without one of our prices withholds what needs it
    known = {n: p for n, p in {**load_prices().by_name, **prices.by_name}.items() if n.startswith("network")}
    if not isinstance(assumptions.network, str) or assumptions.network not in known:
        raise BadInput(f"cost.network: no price of bytes moved {nearest(str(assumptions.network), known)}")
    return prices, assumptions


def priced(table: pd.DataFrame, prices: Prices, assumptions: Assumptions) -> RunRecord | None:
    """The record of prices of a run's rows; None where it served nothing."""
    table = table[table["run"] != KEY]
    if not (table["phase"] == "serve").any():
        return None
    rows = tuple(cost_rows(table, prices, assumptions, KEY))
    return RunRecord(key=KEY, spec={"kind": KEY}, rows=rows, extra={"cost": cost_extra(table, prices, assumptions)})


def price_run(runs_dir: Path, options: Mapping[str, Any]) -> None:
    """Writes the record of prices of a run directory, if it served anything."""
    record = priced(records.load(runs_dir)[0], *asked(options))
    if record is not None:
        records.save(record, runs_dir)


def priced_again(table: pd.DataFrame, bodies: Mapping[str, Any], prices: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and bodies of a run at other prices and the assumptions that it was priced with; no file changes.

    Raises:
        BadInput: a file of prices that is wrong.
    """
    before = bodies.get(KEY, {}).get("extra", {}).get("cost", {}).get("assumptions", {})
    own = {k: v for k, v in before.items() if k in Assumptions.__dataclass_fields__}
    record = priced(table, load_prices(prices), assumptions_of(own))
    if record is None:
        return table, dict(bodies)
    kept = table[table["run"] != KEY]
    fresh = pd.concat([kept, records.frame(record.rows)], ignore_index=True)
    return fresh, {**bodies, KEY: {"spec": dict(record.spec), "extra": dict(record.extra)}}
