"""NVTX ranges around a launch, as Nsight Compute names them: two columns of its CSV, or the state in a report file.

A cell holds each range in double quotes, the outermost first, as `domain:name` and six attributes (payload, colour and
message with their types, `none` where there is none); push/pop ranges behind their thread, start/end ranges with their
id: `42  "<default domain>:forward:none:none:none:none:none:none"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ctrbench.bench.trace.names import BLOCK_PREFIX, DEFAULT_DOMAIN, DOMAIN, OP_PREFIX, STAGE_PREFIX

COLUMN = re.compile(r".*(Push/Pop_Range|Start/Stop_Range).*")
"""Names of the two columns."""
_NO_DOMAIN = "<default domain>"
_ATTRIBUTES = 6
_ID = re.compile(r"^\d+:")


class NvtxRange(NamedTuple):
    """A range that is open at a launch."""

    domain: str
    name: str


def ranges_of(cell: str) -> tuple[NvtxRange, ...]:
    """The ranges of a cell in their order; what has no domain is no range."""
    quoted = re.findall(r'"([^"]*)"', cell)
    return tuple(found for text in (quoted or [cell]) if (found := _range(text)) is not None)


def _range(text: str) -> NvtxRange | None:
    parts = _ID.sub("", text.strip()).split(":")
    if len(parts) < 2:
        return None
    # a name may hold colons itself, the attributes behind it do not
    end = len(parts) - _ATTRIBUTES if len(parts) >= 2 + _ATTRIBUTES else len(parts)
    name = parts[1:end]
    if parts[0] == DOMAIN and not name[0].startswith(OP_PREFIX[:-1]):
        name = name[:2]  # ours: a message that repeats the name brings a colon of its own among the attributes
    return NvtxRange(_domain(parts[0]), ":".join(name))


def ranges_of_state(state: Any) -> tuple[NvtxRange, ...]:
    """The ranges of an `INvtxState` of NVIDIA's library, which is None where none was open."""
    if state is None:
        return ()
    found = []
    for number in state.domains():
        domain = state.domain_by_id(number)
        names = (*domain.push_pop_ranges(), *domain.start_end_ranges())
        found += [NvtxRange(_domain(domain.name()), name) for name in names]
    return tuple(found)


def _domain(text: str) -> str:
    return DEFAULT_DOMAIN if text in ("", _NO_DOMAIN) else text


def place_of(ranges: Iterable[NvtxRange], stage: str = "") -> tuple[str, str]:
    """(stage, block) of a launch: of our ranges around it; empty where there is none, or more than one.

    Blocks do not nest, and ncu runs one launch at a time: two open at once belong to different threads, and which of
    them launched is not told.

    Args:
        ranges: around the launch.
        stage: where it is known, as ncu was filtered by it.
    """
    ours = [r.name for r in ranges if r.domain == DOMAIN]
    return stage or _only(ours, STAGE_PREFIX), _only(ours, BLOCK_PREFIX)


def _only(names: Sequence[str], prefix: str) -> str:
    found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return found.pop() if len(found) == 1 else ""
