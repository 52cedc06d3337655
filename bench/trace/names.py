"""Names of the ranges of a step, defined once: the join key of recordings, records and reports.

Rules: measures.md section 9.
"""

from __future__ import annotations

DOMAIN = "ctrbench"
STAGES = ("data", "h2d", "embedding", "interaction", "dense", "loss", "backward", "optimizer", "comm")
TRACER = "tracer"
"""Range around the tracer's own work between forward and backward; a split takes it out of the step."""
ITER = "iter"
OTHER = "other"
"""What of a step lies in no stage."""
