"""Rules about counts: launches of a step, intensity, tokens of semantic IDs."""

from __future__ import annotations

import pandas as pd

from ctrbench.reports import recorded
from ctrbench.reports.cells import Cell
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
