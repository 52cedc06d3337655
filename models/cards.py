"""Writing fidelity cards: a row that turns to `adapted` when its switch leaves the paper's value."""

from __future__ import annotations

from typing import Any

from ctrbench.models.spec import CardRow, Status


def fixed(mechanism: str, status: Status, section: str, note: str = "", switch: str = "") -> CardRow:
    """A row that no switch moves; `switch` then only quotes values, e.g. sizes."""
    return CardRow(mechanism=mechanism, status=status, section=section, switch=switch, note=note)


def switched(
    config: Any, name: str, paper: Any, mechanism: str, section: str = "n/k", note: str = "", at: Status = "unknown"
) -> CardRow:
    """A row of the switch `name`: status `at` while it has the value `paper`, else adapted."""
    value = getattr(config, name)
    status: Status = at if value == paper else "adapted"
    return CardRow(mechanism=mechanism, status=status, section=section, switch=f"{name}={value}", note=note)


def shared_rows(config: Any, sizes: str) -> tuple[CardRow, ...]:
    """What every model on field embeddings does alike, whatever its paper: sizes, numeric fields, histories, optimizer.

    Args:
        config: with `missing_vector` and `tables`.
        sizes: the sizes in use, as `name=value` pairs.
    """
    least = "small preset kept above the design's least so as not to be weak"
    return fixed("sizes", "adapted", "n/k", least, sizes), *field_rows(config)


def field_rows(config: Any) -> tuple[CardRow, ...]:
    """`shared_rows` without the sizes."""
    return (
        fixed("numeric fields", "adapted", "n/k", "value times one learned vector (FuxiCTR); missing values may have "
              "their own vector", f"missing_vector={config.missing_vector}"),
        fixed("behaviour history", "adapted", "n/k",
              "the paper has none: each sequence field enters mean-pooled as one more field"),
        fixed("optimizer", "adapted", "n/k", "Adam on dense weights, the tables' own optimizer inside their backward",
              f"tables.optimizer={config.tables.optimizer}"),
    )  # fmt: skip
