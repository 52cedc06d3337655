"""What of FAT follows its paper (2511.12081) under a config. The full text is not known to us (models.md section 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrbench.models.spec import CardRow, FidelityCard, Status

if TYPE_CHECKING:
    from ctrbench.models.fat import FatConfig


def _row(mechanism: str, status: Status, section: str, switch: str = "", note: str = "") -> CardRow:
    return CardRow(mechanism=mechanism, status=status, section=section, switch=switch, note=note)


def _unless(moved: bool, otherwise: Status) -> Status:
    return "adapted" if moved else otherwise


def card(config: FatConfig) -> FidelityCard:
    """Fidelity of FAT under `config`."""
    c = config
    quoted = "a re-implementation that quotes sections 3.1-3.4 is our source"
    own_width = _unless(c.d != c.dim, "faithful")
    faithful = (
        _row("field bias, zero start", _unless(c.bias_site != "input", "faithful"), "3.1", f"bias_site={c.bias_site}", quoted),
        _row("field vectors are the tokens", own_width, "3.1", f"width={c.width}", "a width other than dim adds a linear map a field"),
        _row("own Q, K, V of every field", "faithful", "3.2"),
        _row("scalar of the ordered field pair times the score, before softmax, no mask", "faithful", "3.2"),
        _row("own SiLU feed-forward part of every field", "faithful", "3.3"),
        _row("weights from shared bases: meta-embedding, linear router, top-K softmax", "faithful", "3.4",
             note="routing sees the field only; the choice gets no gradient, the K scores do"),
        _row("weights composed once and reused", _unless(c.weights != "composed", "faithful"), "3.4", f"weights={c.weights}",
             "once a step in training, cached in eval mode; on the fly gives the same values"),
        _row("logit from the sum over fields", "faithful", "3.3", note=quoted),
    )  # fmt: skip
    moved_pairs = "the literal N(0, .01) makes attention uniform at the start: ours adds 1"
    open_rows = (
        _row("start of pair weights", _unless(c.pair_init == "one", "faithful"), "3.2", f"pair_init={c.pair_init}", moved_pairs),
        _row("scope of pair weights", _unless(c.pair_scope != "layer", "unknown"), "n/k", f"pair_scope={c.pair_scope}",
             "the re-implementation shares one matrix over all layers"),
        _row("residual layout", _unless(c.residual != "paper", "unknown"), "n/k", f"residual={c.residual}",
             "paper: one residual around both parts, as the quoted equation"),
        _row("LayerNorm before attention", _unless(not c.prenorm, "unknown"), "n/k", f"prenorm={c.prenorm}"),
        _row("output projection of attention", _unless(c.out_proj != "none", "unknown"), "n/k", f"out_proj={c.out_proj}",
             "none in the quoted equations"),
        _row("scope of bases and routers", _unless(c.basis_scope != "layer", "unknown"), "n/k", f"basis_scope={c.basis_scope}",
             "the re-implementation shares them over all layers"),
        _row("start of bases, routers and meta-embeddings", _unless(c.basis_init != "xavier", "unknown"), "n/k",
             f"basis_init={c.basis_init}"),
        _row("sizes", "unknown", "n/k", f"bases={c.bases}, meta={c.meta}, top_k={c.top_k}, dim={c.dim}, layers={c.layers}, "
             f"heads={c.heads}, hidden={c.hidden}", "no source gives M, k, K, d, L or H"),
        _row("optimizer", "unknown", "n/k", f"tables.optimizer={c.tables.optimizer}",
             "Adam on dense weights, the tables' own optimizer inside their backward"),
        _row("behaviour history", "unknown", "n/k", f"sequence={c.sequence}", "each sequence field mean-pooled into one token"),
    )  # fmt: skip
    return FidelityCard(model="fat", paper="2511.12081", rows=faithful + open_rows)
