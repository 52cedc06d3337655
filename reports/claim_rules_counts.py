"""Rules about counts: launches, intensity, FLOPs of a request, what serving launches, tokens of semantic IDs."""

from __future__ import annotations

import pandas as pd

from ctrbench.reports import recorded
from ctrbench.reports.cells import Cell, pick
from ctrbench.reports.claim_evidence import (
    OPEN,
    REFUTED,
    SUPPORTED,
    Claim,
    Evidence,
    Number,
    Verdict,
    Word,
    by_size,
    highest,
    listed,
    untestable,
)
from ctrbench.reports.claim_rules_mfu import divided
from ctrbench.reports.costs import RIDGE_GPU, gpu_limits
from ctrbench.reports.kernel_rows import KERNEL, SHORT_NS, short_share

PUBLISHED = "published sizes (`suite=quick` traces all of them)"


def largest(rows: pd.DataFrame, e: Evidence) -> dict[str, Cell]:
    """Size -> the number at the batch where it is highest."""
    return {e.title(m, p, v): highest(part) for (m, v, p), part in by_size(rows).items()}


def launches(e: Evidence, claim: Claim) -> Verdict:
    """More than half of the legacy sizes launch so many kernels a step, and half of a step's launches are so short."""
    least = float(claim.options["launches"])
    sizes = largest(e.published("kernels_per_step", family="legacy", phase="train"), e)
    found = [r for r in recorded.recordings(e.context) if (r.launches["kind"] == KERNEL).any()
             and e.context.names.camp(r.model) == "legacy"]  # fmt: skip
    sizes |= {f"{r.group}, recorded": Cell(float(r.launches["launches"].sum()) / r.steps, "launches_recorded", r.origin)
              for r in found}  # fmt: skip
    if not sizes:
        return untestable(f"`kernels_per_step` of legacy {PUBLISHED}, or kernels of a recording of a legacy training")
    shares = {r.group: short_share(r.launches, "launches") for r in found}
    brief = {g: Cell(s, "kernel_size_hist", "imported") for g, s in shares.items() if s is not None}
    low = [n for n, c in sizes.items() if (c.value if c.high is None else c.high) < least]  # type: ignore[operator]
    high = [n for n, c in sizes.items() if (c.value if c.low is None else c.low) >= least]  # type: ignore[operator]
    many = len(sizes) / 2
    tiny = bool(brief) and all((c.value or 0.0) >= 0.5 for c in brief.values())
    word: Word = REFUTED if len(low) > many else SUPPORTED if len(high) > many and tiny else OPEN
    word = REFUTED if brief and all((c.value or 0.0) < 0.5 for c in brief.values()) else word
    order = sorted(sizes, key=lambda n: -(sizes[n].value or 0.0))
    shown = order if word == OPEN else [n for n in order if n in (low if len(low) > many else high)]
    said = (
        f"{len(low)} of {len(sizes)} legacy sizes launch fewer than {least:,.0f} kernels a training step "
        f"with their whole band, {len(high)} at least that many{f' ({listed(high)})' if high else ''}."
    )
    said += (f" Launches of at most {SHORT_NS // 1000} µs: {listed(f'{c.text} ({g})' for g, c in brief.items())}."
             if brief else " No recording says how long a kernel takes.")  # fmt: skip
    numbers = (*(Number(f"kernels a step of {n}", sizes[n]) for n in shown[:4]),
               *(Number(f"short launches of {g}", c) for g, c in list(brief.items())[:2]))  # fmt: skip
    return Verdict(word=word, reason=said, numbers=numbers)


def intensity(e: Evidence, claim: Claim) -> Verdict:
    """Every legacy size stays below the share of the ridge at each batch; more than half reaching it refutes."""
    sizes = largest(e.published("ai_operands", family="legacy", phase="train"), e)
    if not sizes:
        return untestable(f"`ai_operands` of legacy {PUBLISHED}")
    ridge = gpu_limits(e.context.frame)[2]
    assert ridge.value is not None
    limit = ridge.value * float(claim.options["share"])
    over = [n for n, c in sizes.items() if (c.value or 0.0) >= limit]
    word: Word = SUPPORTED if not over else REFUTED if len(over) > len(sizes) / 2 else OPEN
    top = sorted(sizes, key=lambda n: -(sizes[n].value or 0.0))
    return Verdict(
        word=word, numbers=tuple(Number(f"FLOP/B of {n}", sizes[n]) for n in top[:4]),
        reason=f"{len(over)} of {len(sizes)} legacy sizes reach {limit:.0f} FLOP/B, "
            f"{float(claim.options['share']):.2f} "
        f"of the ridge of {RIDGE_GPU} ({ridge.text}), over a whole training step without fusion; the highest is "
            f"{sizes[top[0]].text} ({top[0]}).",
    )  # fmt: skip


def request(e: Evidence, claim: Claim) -> Verdict:
    """Candidates at which one request costs so many FLOPs; only models that share nothing between candidates decide."""
    rows = e.published("flops_fwd_per_sample", phase="infer")
    controls = {m for m in set(rows["model"]) if e.context.names.camp(m) == "control"}
    rows = rows[~rows["model"].isin([*claim.options["not_rankers"], *controls]) & (rows["value"] > 0)]
    if rows.empty:
        return untestable(f"`flops_fwd_per_sample` of {PUBLISHED}")
    flops, most = float(claim.options["flops"]), float(claim.options["candidates"])
    keys = {e.title(m, p, v): m for m, v, p in rows[["model", "variant", "preset"]].itertuples(index=False)}
    work = largest(rows, e)
    needs = {n: flops / c.value for n, c in work.items() if c.value}
    alone = [n for n in needs if keys[n] in claim.options["shares_nothing"]]
    reached = [n for n in alone if needs[n] <= most]
    shared = [n for n in needs if n not in alone and needs[n] <= most]
    word: Word = SUPPORTED if reached else OPEN if shared else REFUTED
    chosen = reached or shared or sorted(needs, key=lambda n: needs[n])
    said = f"{flops / 1e12:g} TFLOP takes " + listed(
        f"{needs[n]:,.0f} candidates of {n}" for n in sorted(chosen, key=lambda n: needs[n])
    )
    said += f"; a request is taken to have at most {most:,.0f}."
    if shared and not reached:
        said += (
            " These share work between the candidates of a request, and no suite records FLOPs of a request "
            "with sharing."
        )
    return Verdict(
        word=word, reason=said, numbers=tuple(Number(f"forward FLOPs a candidate of {n}", work[n]) for n in chosen[:4])
    )


def serving_launches(e: Evidence, claim: Claim) -> Verdict:
    """The model launches at most a share of the other's kernels in a forward call, at the same or a better AUC."""
    name, other = claim.options["model"], claim.options["other"]
    mine, theirs = (list(largest(e.published("kernels_per_step", [m], phase="infer"), e).items())
                    for m in (name, other))  # fmt: skip
    if not mine or not theirs:
        return untestable(
            f"`kernels_per_step` of a forward call of {e.title(name)} and {e.title(other)} at {PUBLISHED}"
        )
    most = max(mine, key=lambda c: c[1].value or 0.0)
    least = min(theirs, key=lambda c: c[1].value or 0.0)
    ratio, share = divided(most[1], least[1]), float(claim.options["share"])
    assert ratio.value is not None
    numbers = [Number(f"kernels of {n} ({phase})", c) for (n, c), phase in ((most, "forward"), (least, "forward"))]
    said = (
        f"A forward call of {most[0]} launches {most[1].text} kernels, {ratio.text} {ratio.band} times "
        f"{least[0]} ({least[1].text})."
    )
    few = (
        None
        if ratio.low is not None and ratio.high is not None and ratio.low <= share < ratio.high
        else ratio.value <= share
    )
    if few is False:
        return Verdict(word=REFUTED, reason=f"{said} That is not far fewer (limit {share:g}).", numbers=tuple(numbers))
    data, deltas = _same_auc(e, name, other)
    if few is None or not deltas:
        why = " The bands leave it open whether that is far fewer."
        if few is not None:
            why = f" No record pairs the AUC of {e.title(name)} with {e.title(other)} on observed labels."
        return Verdict(word=OPEN, reason=f"{said}{why}", numbers=tuple(numbers))
    numbers += [
        Number(f"AUC of {e.title(name)} minus {e.title(other)} on {d}", c) for d, c in zip(data, deltas, strict=True)
    ]
    behind = [d for d, c in zip(data, deltas, strict=True) if c.high is None or c.high < 0]
    if behind:
        return Verdict(word=OPEN, reason=f"{said} But its AUC is lower on {listed(behind)}, so these are not "
            "rankers of the same AUC.",
                       numbers=tuple(numbers))  # fmt: skip
    return Verdict(
        word=SUPPORTED,
        reason=f"{said} Its AUC is not lower on {listed(data)}.",
        numbers=tuple(numbers),
        caps=e.caps(data),
    )


def _same_auc(e: Evidence, name: str, other: str) -> tuple[list[str], list[Cell]]:
    found = {}
    for _, data in e.logs:
        cell = pick(
            e.rows("auc_delta", model=name, variant="", data=data), "auc_delta", scope=f"vs:{other}", signed=True
        )
        if cell.value is not None and (cell.n or 0) >= 3:
            found[data] = cell
    return list(found), list(found.values())


def tokens(e: Evidence, claim: Claim) -> Verdict:
    """Semantic IDs: codes in the vocabulary over items, and codes an item. More than one makes a sequence longer."""
    found: dict[str, tuple[int, int, int]] = {}
    for body in e.context.bodies.values():
        spec, ids = body.get("spec", {}), body.get("extra", {}).get("semantic_ids")
        if ids and spec.get("model"):
            words = [int(v) for v in ids["vocabulary"]]
            found[f"{e.title(str(spec['model']), variant=str(spec.get('variant', '')))} on {spec.get('data', '')}"] = (
                int(ids["items"]), sum(words), len(words))  # fmt: skip
    if not found:
        return untestable("records with semantic IDs (`suite=retrieval` makes TIGER's and LUM's)")
    least, claimed = float(claim.options["items"]), float(claim.options["shrink"])
    longer = [n for n, (_, _, codes) in found.items() if codes > 1]
    shrunk = [n for n, (items, words, _) in found.items() if items >= least and items >= claimed * words]
    word: Word = REFUTED if longer else SUPPORTED if len(shrunk) == len(found) else OPEN
    numbers = []
    for name, (items, size, codes) in list(found.items())[:2]:
        numbers += [Number(f"codes an item, {name}", Cell(float(codes), "codes", "counted")),
                    Number("items over codes in the vocabulary, "
                        f"{name}", Cell(items / size, "ratio", "counted"))]  # fmt: skip
    first, (items, size, codes) = next(iter(found.items()))
    said = (
        f"{first} writes {items:,} items with a vocabulary of {size:,} codes, {codes} an item: a history of "
        f"the same events is {codes} times as long."
    )
    return Verdict(word=word, reason=said, numbers=tuple(numbers))
