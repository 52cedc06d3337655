"""Fidelity card of HSTU."""

from __future__ import annotations

from typing import Any

from ctrbench.models.cards import fixed, switched
from ctrbench.models.spec import FidelityCard


def card(config: Any) -> FidelityCard:
    """What follows the paper under `config` (models.hstu.HstuConfig)."""
    code = "public code"
    return FidelityCard(
        model="hstu",
        paper="2402.17152",
        rows=(
            fixed("pointwise attention: SiLU of the scores over a constant, no softmax", "faithful", "3.2"),
            fixed("gate U on the normed attention output", "faithful", "3.2", "", f"concat_ua={config.concat_ua}"),
            switched(config, "rab", "pos_time", "relative bias of places and bucketed time", "3.2",
                     "time runs to the query's next event; the production flavour has none", "faithful"),
            fixed("the constant is the longest sequence, never the batch's", "faithful", code),
            fixed("candidates see the history and themselves, all in one place", "faithful", code,
                  "one candidate a row in training; at serving they share one history, in micro-batches"),
            switched(config, "flavour", "research", "form of the layer", code,
                     "production: affine norms, SiLU on the gate alone, scaled scores, output from three parts",
                     "faithful"),
            switched(config, "stoch_alpha", 0.0, "stochastic length", "3.3", "off by default", "faithful"),
            fixed("task", "adapted", "2.2", "one logit of the candidate's row; actions are part of the event's token"),
            fixed("retrieval: next item at every place, sampled softmax on unit vectors, temperature .05", "faithful",
                  code, "a job of its own without actions and user; 128 uniform negatives, drawn once a user and not "
                  "once a place; trained by Adam, the item table too"),
            fixed("retrieval: events before a question", "adapted", "n/k", "the newest but the oldest of as many as "
                  "training rows hold: behind a full row no answer is trained"),
            fixed("user's fields", "adapted", "n/k", "one token before the events, which sees all of them"),
            fixed("ragged kernels", "adapted", "3.2", "left-padded and masked; padding changes no result"),
            fixed("other fields of the candidate", "adapted", "n/k", "added to its token"),
            fixed("sizes", "adapted", code, "small preset sized for a CPU; industrial sizes are not established",
                  f"width={config.width}, layers={config.layers}, heads={config.heads}, qk={config.qk}, v={config.v}"),
            fixed("optimizer", "adapted", code, "Adam on dense weights, where the public runs have AdamW",
                  f"tables.optimizer={config.tables.optimizer}"),
        ),
    )  # fmt: skip
