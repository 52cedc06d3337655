"""Names of the ranges of a step, defined once: what NVTX emits, readers look for and records are joined by.

`cfg:<hash>` > `iter` > `stage:<stage>` > `block:<submodule>` > `op:<operator>` in the domain `ctrbench`. Numbers are
payload (the batch size on `cfg`, the step on all else), so that names aggregate; and no name holds one of the
characters `@ , [ ] / * +`, which ncu's range filter reads as its own (measures.md, section 9).
"""

from __future__ import annotations

DOMAIN = "ctrbench"
DEFAULT_DOMAIN = "default"
"""What `--domain` calls the ranges without a domain."""
STAGES = ("data", "h2d", "embedding", "interaction", "dense", "loss", "backward", "optimizer", "comm")
"""Each is an NVTX category too: that of its stage range and of all ranges inside."""
OTHER = "other"
"""What of a step lies in no stage."""
ITER = "iter"
TRACER = "tracer"
"""Range around the tracer's own work between forward and backward; a split takes it out of the step."""
CONFIG_PREFIX, STAGE_PREFIX, BLOCK_PREFIX, OP_PREFIX = "cfg:", "stage:", "block:", "op:"

COLORS = {
    "data": 0xFF7F7F7F, "h2d": 0xFFBCBD22, "embedding": 0xFF1F77B4, "interaction": 0xFF9467BD, "dense": 0xFF2CA02C,
    "loss": 0xFFE377C2, "backward": 0xFFD62728, "optimizer": 0xFFFF7F0E, "comm": 0xFF17BECF,
}  # fmt: skip
"""ARGB of a stage and all ranges inside."""
NEUTRAL = 0xFFC7C7C7
"""ARGB of ranges of no stage."""


def join_key(stage: str, block: str = "") -> str:
    """Key of the records: `ctrbench/<stage>[/<block>]`."""
    return f"{DOMAIN}/{stage}/{block}" if block else f"{DOMAIN}/{stage}"
