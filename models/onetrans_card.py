"""What of OneTrans follows its paper (2510.26104 v3) under a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrbench.models.spec import CardRow, FidelityCard, Status

if TYPE_CHECKING:
    from ctrbench.models.onetrans import OneTransConfig


def _row(mechanism: str, status: Status, section: str, switch: str = "", note: str = "") -> CardRow:
    return CardRow(mechanism=mechanism, status=status, section=section, switch=switch, note=note)


def _unless(moved: bool, otherwise: Status) -> Status:
    return "adapted" if moved else otherwise


def card(config: OneTransConfig) -> FidelityCard:
    """Fidelity of OneTrans under `config`."""
    c = config
    known = (
        _row("event tokenizer: one MLP a behaviour type", "faithful", "3.2", note="depth and hidden width ours: two layers, d"),
        _row("merging of histories", _unless(c.fusion != "time", "faithful"), "3.2", f"fusion={c.fusion}",
             "by time with a type vector (its additive form is ours), or by intent with learned [SEP], which costs .09 CTR AUC % there"),
        _row("tokenizer of other features", _unless(c.ns != "auto", "faithful"), "3.2", f"ns={c.ns}",
             "one MLP cut into tokens, or one a hand-made group, which costs .10 CTR AUC % there"),
        _row("mixed weights: shared by S-tokens, own a NS-token", "faithful", "3.3"),
        _row("pre-norm RMSNorm", "faithful", "3.3"),
        _row("causal mask over S then NS", _unless(c.mask != "causal", "faithful"), "3.3", f"mask={c.mask}"),
        _row("pyramid: only the newest S-tokens ask", _unless(c.pyramid != "full_first", "faithful"), "3.4", f"pyramid={c.pyramid}",
             "linear from L_S to L_NS; that the first layer keeps all is from a re-implementation (Primus)"),
        _row("two-stage caching inside a request", _unless(c.mask != "causal", "faithful"), "3.5", "",
             "exact; `mask=full` cannot cache"),
        _row("reuse across requests", "adapted", "3.5", note="left out: every request encodes its history"),
        _row("rounding of kept tokens", _unless(c.round != 32, "faithful"), "3.4", f"round={c.round}", "32 in the paper"),
        _row("optimizer", "adapted", "4.1", f"tables.optimizer={c.tables.optimizer}",
             "Adam on dense weights and the tables' own optimizer; RMSProp and Adagrad in the paper"),
        _row("objective", "adapted", "4.1", note="one task (click or like); the paper sums CTR and CVR"),
        _row("candidate-specific histories", "adapted", "3.5", note="none in our data, so none is pooled into NS-tokens"),
    )  # fmt: skip
    unknown = (
        _row("feed-forward ratio", _unless(c.ffn_mult != 4, "unknown"), "n/k", f"ffn_mult={c.ffn_mult}",
             "parameters of the paper suggest 11-12 d² where 4 gives 11"),
        _row("activation", _unless(c.act != "gelu", "unknown"), "n/k", f"act={c.act}"),
        _row("output projection of attention", _unless(c.out_proj != "shared", "unknown"), "n/k", f"out_proj={c.out_proj}"),
        _row("head", _unless(c.head != "flatten", "unknown"), "n/k", f"head={c.head}", "from a re-implementation (Primus)"),
        _row("positions", _unless(c.pos != "learned_from_start", "unknown"), "n/k", f"pos={c.pos}",
             "of S-tokens only; ordinal inside the kept history, or distance in time from the event before"),
        _row("norm sharing", _unless(c.norm != "shared", "unknown"), "n/k", f"norm={c.norm}"),
        _row("hidden width of the NS tokenizer", _unless(c.ns_hidden != "d", "unknown"), "n/k", f"ns_hidden={c.ns_hidden}"),
        _row("heads", "unknown", "4.1", f"heads={c.heads}", "4 for S; not given for L"),
        _row("sizes", "adapted" if c.width < 256 else "faithful", "4.1",
             f"layers={c.layers}, width={c.width}, l_ns={c.l_ns}", "the small preset is sized for a CPU"),
    )  # fmt: skip
    return FidelityCard(model="onetrans", paper="2510.26104 v3", rows=known + unknown)
