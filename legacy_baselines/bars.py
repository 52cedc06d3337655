"""What BARS (reczoo/BARS) published of these models."""

from __future__ import annotations

from typing import Any

from ctrbench.datasets.published_schemas import criteo_x1
from ctrbench.models.spec import Preset


def criteo_x1_run(config: Any, parameters: int) -> tuple[Preset, ...]:
    """The Criteo_x1 run of one model, whose log states how many `parameters` it had."""
    note = f"BARS Criteo_x1 log: {parameters:,} parameters; rows per field spread by us, their sum is published"
    return (Preset(label="criteo_x1", config=config, schema=criteo_x1(), note=note),)
