"""FLOPs of a request to LUM in the form `reuse`, in closed form: all but the host's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctrbench.datasets.schema import FeatureSchema
from ctrbench.models.histories import questioned
from ctrbench.models.lum_fields import event_fields
from ctrbench.models.semantic_ids import vocabulary_of

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig


@dataclass(frozen=True, slots=True)
class RequestFlops:
    """Executed FLOPs of one request by what they depend on."""

    user: float
    """The history, once a request."""
    questions: float
    """All different conditions of the request, their answers mapped to the host's fields."""
    candidate: float
    """One candidate: item token, matches, map to the host's fields."""
    count: int

    @property
    def total(self) -> float:
        """Of the request."""
        return self.user + self.questions + self.candidate * self.count


def request_flops(
    config: LumConfig, schema: FeatureSchema, lengths: Mapping[str, int] | None, count: int, conditions: int, *,
    host_dim: int,
) -> RequestFlops:  # fmt: skip
    """Steps 1 and 2 as group query runs them, and what LUM adds to step 3.

    Padding is left out; attention within the history is a whole square; its last layer makes keys and values alone.

    Args:
        config, schema: of the model.
        lengths: history name -> its events; None is a full history.
        count: candidates.
        conditions: different ones among those of the candidates and the Q - 1 common ones; not read without conditions.
        host_dim: width of the host's fields.
    """
    roles = event_fields(schema, config.cond)
    top = questioned(schema.histories[roles.history][0].max_length)
    events = top if lengths is None else min(top, lengths[roles.history])
    d, layers, q = config.width, config.layers, config.queries
    sizes = vocabulary_of(config.sids) if config.target == "sid" else ()
    per_event = 1 + len(sizes) if sizes else 2 if config.condition else 1
    tokens, asked, side = per_event * events, conditions if config.condition else 1, len(roles.side)
    mapped = 0.0 if sizes else 2.0 * config.dim * d
    maps = mapped * (per_event + side) * events if config.condition else mapped * (1 + side) * (events + 1)
    history = maps + (layers - 1) * (24.0 * d * d * tokens + 4.0 * d * tokens**2) + 4.0 * d * d * tokens
    direct = 2.0 * d * host_dim if config.use != "match" else 0.0
    block = max(1, len(sizes))

    def behind(blocks: float, own: int) -> float:
        return layers * blocks * own * (24.0 * d * d + 4.0 * d * (tokens + own))

    questions = asked * direct + behind(asked, 1) + (mapped * asked if config.condition else 0.0)
    match = behind(q, block) + 2.0 * d * sum(sizes) * q * block if sizes else 2.0 * d * q
    return RequestFlops(history, questions, mapped + direct + (match if config.use != "direct" else 0.0), count)
