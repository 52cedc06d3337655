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
