"""What of OneTrans follows its paper (2510.26104 v3) under a config."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ctrbench.models.cards import fixed, switched
from ctrbench.models.spec import FidelityCard, Status

if TYPE_CHECKING:
    from ctrbench.models.onetrans import OneTransConfig

PRIMUS = "from a re-implementation (Primus-DLRM)"


def card(config: OneTransConfig) -> FidelityCard:
    """Fidelity of OneTrans under `config`."""
    c = config
    row, known = partial(switched, c), partial(switched, c, at="faithful")
    published = c.width >= 256
    cached: Status = "faithful" if c.mask == "causal" else "adapted"
    return FidelityCard(
        model="onetrans",
        paper="2510.26104 v3",
        rows=(
            fixed("event tokenizer: one MLP a behaviour type", "faithful", "3.2", "depth (two) and width (d) ours"),
            known("fusion", "time", "merging of histories", "3.2",
                  "by time with a type vector (additive form ours), or by intent with [SEP]: -.09 CTR AUC there"),
            known("ns", "auto", "tokenizer of other features", "3.2",
                  "one MLP cut into tokens, or one a hand-made group: -.10 CTR AUC there"),
            known("ns_weights", "own", "mixed weights: shared by S-tokens, own a NS-token", "3.3",
                  "shared by all: -.15 CTR AUC there"),
            fixed("pre-norm RMSNorm", "faithful", "3.3"),
            known("mask", "causal", "causal mask over S, then NS", "3.3", "a full mask cannot cache the S side"),
            known("pyramid", "full_first", "pyramid: only the newest S-tokens ask", "3.4",
                  f"linear from L_S to L_NS; that the first layer keeps all is {PRIMUS}"),
            known("round", 32, "rounding of kept tokens", "3.4", "32 in the paper; ours rounds up to the multiple"),
            fixed("two-stage caching inside a request", cached, "3.5", "exact"),
            fixed("reuse across requests", "adapted", "3.5",
                  "off, exact where that is provably a cold run, or streaming, which is an approximation"),
            fixed("candidate-specific histories", "adapted", "3.5", "none in our data, so none is pooled"),
            fixed("optimizer", "adapted", "4.1", "Adam and the tables' own; RMSProp and Adagrad in the paper",
                  f"tables.optimizer={c.tables.optimizer}"),
            fixed("objective", "adapted", "4.1", "one task (click or like); the paper sums CTR and CVR"),
            fixed("sizes", "faithful" if published else "adapted", "4.1", "the small preset is sized for a CPU",
                  f"layers={c.layers}, width={c.width}, l_ns={c.l_ns}, dim={c.dim}"),
            fixed("heads", "unknown", "4.1", "4 for S; not given for L", f"heads={c.heads}"),
            row("ffn_mult", 4, "feed-forward ratio", note="its parameters suggest about 14 d² a token set; 4 gives 11"),
            row("act", "gelu", "activation"),
            row("out_proj", "shared", "output projection of attention"),
            row("head", "flatten", "head", note=PRIMUS),
            row("pos", "learned_from_start", "positions",
                note="S-tokens only: ordinal inside the kept history, or time since the event before"),
            row("norm", "shared", "norm sharing"),
            row("ns_hidden", "d", "hidden width of the NS tokenizer"),
        ),
    )  # fmt: skip
