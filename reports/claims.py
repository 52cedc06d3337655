"""Claims on trial: every checkable statement of claims.toml, judged by its rule from the records of the report."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.reports import claim_rules_cited as from_sheets
from ctrbench.reports import claim_rules_counts as counts
from ctrbench.reports import claim_rules_laws as laws
from ctrbench.reports import claim_rules_mfu as mfu
from ctrbench.reports import claim_rules_quality as quality
from ctrbench.reports import claim_rules_scaling as scaling
from ctrbench.reports import claim_rules_serving as serving
from ctrbench.reports.cells import Cell, absent, pick, where
from ctrbench.reports.claim_evidence import OPEN, UNTESTABLE, WORDS, Claim, Evidence, Rule, Verdict, highest, listed
from ctrbench.reports.costs import RIDGE_GPU, cited
from ctrbench.reports.exhibits import Context, Section, exhibit

RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        mfu.mfu_below, mfu.mfu_reaches, mfu.mfu_ratio,
        counts.launches, counts.intensity, counts.tokens,
        serving.request, serving.serving_launches, serving.cost_by_class, serving.shared_cache,
        quality.auc_above, quality.fields_control, quality.both_parts, quality.option_costs, quality.joint,
        quality.weights_agree, quality.recall_above, quality.recall_reaches,
        scaling.grows, scaling.module_costs, scaling.fades, laws.follows,
        from_sheets.peak_growth, from_sheets.price_fall, from_sheets.value_growth, from_sheets.unrecorded,
    )
}  # fmt: skip
MFU_NOTE = (
    "Papers count FLOPs by different rules and take each MFU against the peak of its own precision. No MFU of "
    "FAT, LUM, "
    "RecIS or LONGER was found."
)


@cache
def _file() -> Mapping[str, Any]:
    return tomllib.loads((Path(__file__).parent / "claims.toml").read_text())


def claims() -> tuple[Claim, ...]:
    """All claims on trial, in the order of the file.

    Raises:
        TypeError: a row has a key that no claim has, or lacks one.
    """
    return tuple(Claim(**row) for row in _file()["claim"])


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """What the records say of a claim."""
    return RULES[claim.rule](evidence, claim)


def trial(c: Context) -> list[tuple[Claim, Verdict]]:
    """Every claim with its verdict."""
    evidence = Evidence.of(c)
    return [(claim, judge(claim, evidence)) for claim in claims()]


def verdicts(judged: list[tuple[Claim, Verdict]]) -> pd.DataFrame:
    """One row a claim: what is said of it, and on what that rests."""
    return pd.DataFrame([
        {
            "Id": claim.id, "Claim": claim.claim, "Verdict": v.word, "Confidence": v.confidence, "Reason": v.reason,
            "Numbers": "; ".join(n.text for n in v.numbers) or "—", "How known": v.known,
        }
        for claim, v in judged
    ])  # fmt: skip


def rules_table() -> pd.DataFrame:
    """One row a claim: where it is from and what decides, whatever was recorded."""
    return pd.DataFrame([
        {
            "Id": c.id, "Source": f"{c.source} ({c.grade})", "Models": c.models, "Hardware": c.hardware,
            "Precision": c.precision, "Confirmed where": c.confirms, "Refuted where": c.refutes,
            "Note": " ".join([c.caution, *(f"Cannot {k}: {why}." for k, why in c.cannot.items())]).strip() or "—",
        }
        for c in claims()
    ])  # fmt: skip


def section(c: Context) -> Section:
    """Always there: where nothing was recorded it says what is missing."""
    judged = trial(c)
    left = pd.DataFrame([{"Claim": r["claim"], "Reason": r["reason"]} for r in _file()["not_attempted"]])
    return Section(
        id="claims",
        title="Claims on trial",
        sentence=_sentence(judged),
        exhibits=exhibit(verdicts(judged), title="Verdicts", open=True)
        + exhibit(rules_table(), title="Where each claim is from, and what decides it")
        + exhibit(left, title="Claims not attempted")
        + exhibit(auc_anchors(c), title="Published AUC beside ours", note=_protocol())
        + exhibit(mfu_anchors(c), title="Published MFU beside our bounds", note=MFU_NOTE),
        caveat="Verdicts are computed from the records of this page by the rule named for the claim. An upper "
        "bound of MFU "
        "can exclude a use and never shows that it is reached; what a CPU reaches says nothing of a GPU. "
        "Generated labels decide no "
        "claim about quality, and ratings only its sign. Cited figures are shown beside ours and decide "
        "arithmetic alone.",
    )


def _sentence(judged: list[tuple[Claim, Verdict]]) -> str:
    by_word = {w: [claim.id for claim, v in judged if v.word == w] for w in WORDS}
    said = [f"{len(ids)} {w}" + (f" ({listed(ids, 12)})" if w not in (OPEN, UNTESTABLE) else "")
            for w, ids in by_word.items() if ids]  # fmt: skip
    return f"Of {len(judged)} claims {'; '.join(said)}."


def auc_anchors(c: Context) -> pd.DataFrame:
    """The means of five seeds of BARS beside what was trained here, and what keeps them apart."""
    evidence = Evidence.of(c)
    rows = []
    for anchor in evidence.sheet["auc"]:
        model = anchor.get("key", "")
        mine = where(evidence.rows("auc", trained=True), model=model) if model else c.frame.iloc[:0]
        data = [str(d) for d in dict.fromkeys(mine["data"])]
        parts = [(d, pick(where(mine, data=d, variant=""), "auc")) for d in data]
        rows += [_anchor(anchor, d, cell) for d, cell in parts] or [
            _anchor(anchor, "", absent("auc", "not trained here"))
        ]
    return pd.DataFrame(rows)


def _anchor(anchor: Mapping[str, Any], data: str, cell: Cell) -> dict[str, Any]:
    same = data.startswith("criteo_x1")
    return {
        "Model": anchor["model"], "Published AUC": Cell(anchor["auc"], "auc", "cited"),
        "sd over 5 seeds": Cell(anchor["sd"], "sd", "cited"),
        "Published log loss": Cell(anchor["logloss"], "logloss", "cited"),
        "Our AUC": cell, "Our data": data or "—",
        "Difference": "other data: no comparison" if data and not same else "see the published band" if same else "—",
    }  # fmt: skip


def _protocol() -> str:
    said = cited()["bars"]["protocol"]
    return (
        f"Published: Criteo_x1, {said['train_rows']:,} training rows, {said['seeds']} seeds, batch {said['batch']:,}, "
        f"learning rate {said['lr']}, L2 {said['table_l2']} on the {said['table_l2_rows'].replace('_', ' ')}; only "
        "`suite=bars` keeps that protocol. These are means of five seeds; the leaderboard itself prints the first."
    )


def mfu_anchors(c: Context) -> pd.DataFrame:
    """Published utilisation beside the upper bound of the nearest size traced here, and what keeps them apart."""
    evidence = Evidence.of(c)
    rows = []
    for anchor in evidence.sheet["mfu"]:
        bound, size = absent("mfu_bound", "no such size is traced"), "—"
        if "key" in anchor:
            gpu, phase, preset = RIDGE_GPU, anchor["phase"], f"published:{anchor['preset']}"
            mine = evidence.rows("mfu_bound", model=anchor["key"], preset=preset, phase=phase, scope=gpu)
            bound = highest(mine) if len(mine) else absent("mfu_bound", "not traced in these records")
            size = f"{evidence.title(anchor['key'], preset)}, {phase}, {gpu}"
        rows.append({
            "System": anchor["system"], "Hardware": anchor["hardware"],
            "Published MFU": Cell(anchor["mfu"], "mfu", "cited"),
            "Our bound": bound, "Nearest size here": size, "Source": f"{anchor['source']} ({anchor['grade']})",
            "Difference": anchor["differs"],
        })  # fmt: skip
    return pd.DataFrame(rows)
