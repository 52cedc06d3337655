"""What of FAT follows its paper (2511.12081) under a config; its full text is not known to us."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ctrbench.models.cards import fixed, switched
from ctrbench.models.spec import FidelityCard

if TYPE_CHECKING:
    from ctrbench.models.fat import FatConfig

QUOTED = "known through a re-implementation that cites sections 3.1-3.4"


def card(config: FatConfig) -> FidelityCard:
    """Fidelity of FAT under `config`."""
    c = config
    row, known = partial(switched, c), partial(switched, c, at="faithful")
    sizes = f"bases={c.bases}, meta={c.meta}, top_k={c.top_k}, dim={c.dim}, hidden={c.hidden}, layers={c.layers}"
    return FidelityCard(
        model="fat",
        paper="2511.12081",
        rows=(
            known("bias_site", "input", "field bias, zero start", "3.1", QUOTED),
            known("width", 0, "field vectors are the tokens", "3.1", "another width adds a linear map a field"),
            known("qkv", "own", "own Q, K, V of every field", "3.2"),
            known("pairs", True, "scalar of the ordered field pair times the score, before softmax, no mask", "3.2"),
            fixed("own SiLU feed-forward part of every field", "faithful", "3.3"),
            known("hypernetwork", True, "weights from shared bases: meta-embedding, linear router, top-K softmax",
                  "3.4", "routing sees the field only; the choice gets no gradient, the K scores do"),
            known("weights", "composed", "weights composed once and reused", "3.4",
                  "once a step in training, cached in eval mode; on the fly gives the same values"),
            fixed("logit from the sum over fields", "faithful", "3.3", QUOTED),
            known("pair_init", "paper", "start of pair weights", "3.2",
                  "the literal N(0, .01) makes attention uniform at the start; `one` adds 1"),
            row("pair_scope", "layer", "scope of pair weights", note="the re-implementation: one for all layers"),
            row("residual", "paper", "residual layout", note="paper: one around both parts, as the quoted equation"),
            row("prenorm", True, "LayerNorm before attention"),
            row("out_proj", "none", "output projection of attention", note="none in the quoted equations"),
            row("basis_scope", "layer", "scope of bases and routers", note="the re-implementation: one for all layers"),
            row("basis_init", "xavier", "start of bases, routers and meta-embeddings"),
            fixed("sizes", "unknown", "n/k", "no source gives M, k, K, d, L or H", f"{sizes}, heads={c.heads}"),
            fixed("optimizer", "unknown", "n/k", "Adam on dense weights, the tables' own inside their backward",
                  f"tables.optimizer={c.tables.optimizer}"),
            row("sequence", "pooled", "behaviour history", note="each sequence field mean-pooled into one token"),
        ),
    )  # fmt: skip
