"""Rules about serving: FLOPs of a request, what serving launches, cost by class, stages on one cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from ctrbench.reports import cost_tables as usd
from ctrbench.reports.cells import Cell, pick, where
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
    listed,
    untestable,
)
from ctrbench.reports.claim_rules_counts import PUBLISHED, largest
from ctrbench.reports.claim_rules_mfu import divided
from ctrbench.reports.drawing import known
from ctrbench.reports.serving_rows import REUSE, WHOLE, form_of, kept
from ctrbench.reports.serving_states import per_request

BY_PRICE = ("accelerator times are modelled", "columns and table sizes as recorded")
"""What keeps a verdict about cost from being more than low."""


def request(e: Evidence, claim: Claim) -> Verdict:
    """Candidates at which one request costs so many FLOPs: as served with sharing, or of models that share nothing."""
    options = claim.options
    flops, most = float(options["flops"]), float(options["candidates"])
    served, keys = _needed(e, REUSE, options["not_rankers"])
    rows = e.published("flops_fwd_per_sample", phase="infer")
    rows = rows[~rows["model"].isin([*options["not_rankers"], *_controls(e, rows)]) & (rows["value"] > 0)]
    keys |= {e.title(m, p, v): m for m, v, p in rows[["model", "variant", "preset"]].itertuples(index=False)}
    work = {n: c for n, c in largest(rows, e).items() if n not in served} if len(rows) else {}
    unshared, more = _needed(e, WHOLE, options["not_rankers"])
    keys |= more
    counts = served | {n: c for n, c in unshared.items() if n not in served and n not in work}
    if not counts and not work:
        return untestable(f"`tflop_candidates` (`suite=serving`) or `flops_fwd_per_sample` of {PUBLISHED}")
    needs = {n: flops / c.value for n, c in work.items() if c.value} | {n: c.value or 0.0 for n, c in counts.items()}
    sure = [n for n in needs if n in served or keys[n] in options["shares_nothing"]]
    reached = [n for n in sure if needs[n] <= most]
    shared = [n for n in needs if n not in sure and needs[n] <= most]
    word: Word = SUPPORTED if reached else OPEN if shared else REFUTED
    chosen = sorted(reached or shared or needs, key=lambda n: needs[n])
    said = f"{flops / 1e12:g} TFLOP takes " + listed(f"{max(0.0, needs[n]):,.0f} candidates of {n}" for n in chosen)
    said += f"; a request is taken to have at most {most:,.0f}."
    if shared and not reached:
        said += " These share work between the candidates of a request, and no record holds their FLOPs with sharing."
    numbers = [Number(f"candidates of {n}, {'with' if n in served else 'without'} sharing", counts[n]) if n in counts
               else Number(f"forward FLOPs a candidate of {n}", work[n]) for n in chosen[:4]]  # fmt: skip
    return Verdict(word=word, reason=said, numbers=tuple(numbers))


def _controls(e: Evidence, rows: pd.DataFrame) -> set[str]:
    return {str(m) for m in set(rows["model"]) if e.context.names.camp(str(m)) == "control"}


def _needed(e: Evidence, form: str, aside: Iterable[str]) -> tuple[dict[str, Cell], dict[str, str]]:
    """(size -> fewest candidates for 1 TFLOP in a form, over histories; size -> its model) of rankers."""
    rows = e.published("tflop_candidates")
    rows = kept(rows, (form_of(str(s)) == form for s in rows["scope"]))
    rows = rows[~rows["model"].isin([*aside, *_controls(e, rows)])]
    out, keys = {}, {}
    for (model, variant, preset), part in by_size(rows).items():
        least = part[part["value"] == part["value"].min()].iloc[:1]
        cell = pick(least, "tflop_candidates", scope=None)
        history = str(least["scope"].iloc[0]).partition(":")[2]
        title = e.title(model, preset, variant)
        out[title], keys[title] = replace(cell, note=f"history {history}"), model
    return out, keys


def cost_by_class(e: Evidence, claim: Claim) -> Verdict:
    """Accelerators below half of money and time for every legacy model, on the GPU that serves it cheapest.

    A share whose whole band is at half or more refutes, where the band holds tables of all sizes as well; one that only
    reaches it within its band leaves it open, since the band holds prices and the error of modelled times alike.
    """
    limit = float(claim.options["share"])
    money, half, sized = _money(e)
    if not money:
        return untestable("`usd_per_million_requests` of legacy models on a GPU (`suite=serving`)")
    time = _time(e, list(money))
    found = {f"accelerators' share of the money, {n}": c for n, c in money.items()}
    found |= {f"accelerators' share of the time, {n}": c for n, c in time.items()}
    over = [n for n, c in found.items() if _end(c.low, c) >= limit and n not in _unsized(money, sized)]
    maybe = [n for n, c in found.items() if _end(c.high, c) >= limit]
    word: Word = REFUTED if over else OPEN if maybe or not time else SUPPORTED
    order = sorted(over or maybe or found, key=lambda n: -(found[n].value or 0.0))
    sure, some = (_count(money, names, "money") for names in (over, maybe))
    said = (
        f"Of {len(money)} requests of legacy models, each on the GPU that serves it cheapest, accelerators take "
        f"{100 * limit:.0f} % of the money or more in {sure} over the whole box of prices and table sizes, in {some} "
        f"somewhere in it; larger tables are priced for {len(sized)} of them."
    )
    said += f" They would be half of it at {_factors(half)} times the price assumed."
    said += (f" Of the time they take that share in {_count(time, maybe, 'time')} of {len(time)}." if time
             else " Time by class is not known: no record has both the modelled GPU time of a request and the CPU time "
             "of its features.")  # fmt: skip
    return Verdict(word=word, reason=said, numbers=tuple(Number(n, found[n]) for n in order[:4]), caps=BY_PRICE)


def _end(end: float | None, cell: Cell) -> float:
    return (cell.value or 0.0) if end is None else end


def _unsized(money: Mapping[str, Cell], sized: set[str]) -> set[str]:
    """Shares of money whose band holds the recorded tables alone."""
    return {f"accelerators' share of the money, {n}" for n in money if n not in sized}


def _count(cells: Mapping[str, Cell], names: list[str], kind: str) -> int:
    return sum(f"accelerators' share of the {kind}, {n}" in names for n in cells)


def _factors(half: Mapping[str, Cell]) -> str:
    """The break-even surface in words: the lowest and the highest factor, with their places."""
    ends_of = sorted((c.value, n) for n, c in half.items() if c.value is not None)
    ends = [ends_of[0], ends_of[-1]] if len(ends_of) > 1 else ends_of
    return " to ".join(f"{v:.2g} ({n})" for v, n in ends) or "no"


def _money(e: Evidence) -> tuple[dict[str, Cell], dict[str, Cell], set[str]]:
    """(share of accelerators, factor of their price at which it is half) of each request on its cheapest GPU; and of
    which of them the band reaches down to what tables of all priced sizes leave of the share."""
    names = e.context.names
    frame = e.context.frame[e.context.frame["metric"].isin([usd.REQUESTS, usd.SAMPLES])]
    frame = kept(frame, (names.camp(str(m)) == "legacy" for m in frame["model"]))
    money, half, sized = {}, {}, set()
    for data in dict.fromkeys(str(d) for d in frame["data"]):
        table = usd.shares(frame, data, names)
        table = known(table, usd.SHARE).assign(key=lambda t: t.index)
        for (model, batch), part in table.groupby(["Model", "Candidates"], sort=False):
            row = part.iloc[int(np.argmin([c.value for c in part[usd.TOTAL]]))]
            place = f"{model}, {batch} candidates on {data}, {row['GPU']}"
            money[place], half[place] = row[usd.SHARE], row[usd.EQUAL]
            if grown := _with_tables(e, data, str(row["key"]), str(row["GPU"]), str(batch)):
                low = min(_end(money[place].low, money[place]), (row["Accelerators"].value or 0.0) / max(grown))
                money[place] = replace(money[place], low=low, high=_end(money[place].high, money[place]))
                sized.add(place)
    return money, half, sized


def _with_tables(e: Evidence, data: str, model: str, gpu: str, batch: str) -> list[float]:
    """USD of a million requests with tables of other sizes, of the best form of a model."""
    wanted = {"knob": "tables_gb", "data": data, "model": model, "variant": "", "form": REUSE, "deployment": gpu}
    costs = [b.get("extra", {}).get("cost", {}) for b in e.context.bodies.values()]
    return [float(w["usd"]) for c in costs for w in c.get("what_if", ()) if w["usd"] is not None
            and f"{w['batch']:,.0f}" == batch and all(w[k] == v for k, v in wanted.items())]  # fmt: skip


def _time(e: Evidence, places: list[str]) -> dict[str, Cell]:
    """Modelled GPU time over that and the CPU time of the features, of the requests whose money is known."""
    out = {}
    rows = e.rows("gpu_request_time")
    for model, variant, data, batch, scope in rows[["model", "variant", "data", "batch", "scope"]].itertuples(
        index=False
    ):
        form, _, gpu = str(scope).partition(":")
        place = f"{e.context.names.title(model, variant)}, {batch:,.0f} candidates on {data}, {gpu}"
        if form != REUSE or place not in places or place in out:
            continue
        busy = pick(where(rows, model=model, variant=variant, data=data, batch=batch), "gpu_request_time", scope=scope)
        paths = e.rows("feature_cpu", phase="serve", data=data, batch=batch)
        cpu = per_request(pick(paths, "feature_cpu", scope="legacy:total"), batch)
        if busy.value is not None and cpu.value is not None:
            out[place] = _share(busy, cpu)
    return out


def _share(part: Cell, rest: Cell) -> Cell:
    """Part over part and rest, with the band of both."""
    assert part.value is not None
    assert rest.value is not None
    low, high = _end(part.low, part), _end(part.high, part)
    ends = low / (low + _end(rest.high, rest)), high / (high + _end(rest.low, rest))
    return Cell(part.value / (part.value + rest.value), "usd_accelerator_share", "modelled", *ends)


def shared_cache(e: Evidence, claim: Claim) -> Verdict:
    """Scores of every stage on one cache equal those of the stage alone, and FLOPs are saved."""
    limit, stages = float(claim.options["difference"]), [str(s) for s in claim.options["stages"]]
    rows = pd.concat([e.rows("stages_diff", dtype="float32"), e.rows("stages_saved")])
    if rows.empty:
        return untestable("`stages_diff` and `stages_saved` of a model with retrieval and ranking (`suite=serving`)")
    held: list[str] = []
    failed: list[str] = []
    unknown: list[str] = []
    numbers: list[Number] = []
    for model, variant, data in dict.fromkeys(rows[["model", "variant", "data"]].itertuples(index=False, name=None)):
        mine = where(rows, model=model, variant=variant, data=data)
        name = f"{e.title(model, variant=variant)} on {data}"
        differ = {s: pick(mine, "stages_diff", scope=s) for s in stages}
        saved = pick(mine, "stages_saved", scope="flops")
        values = [c.value for c in differ.values() if c.value is not None]
        bad = any(v > limit for v in values) or (saved.value is not None and saved.value <= 0)
        whole = len(values) == len(stages) and saved.value is not None
        (failed if bad else held if whole else unknown).append(name)
        numbers += [Number(f"score difference of {s}, {name}", c) for s, c in differ.items() if c.value is not None]
        numbers += [Number(f"{k} saved, {name}", c, beside=k == "bytes") for k in ("flops", "bytes")
                    if (c := pick(mine, "stages_saved", scope=k)).value is not None]  # fmt: skip
    word: Word = REFUTED if failed and not held + unknown else SUPPORTED if held and not failed + unknown else OPEN
    words = {
        f"scores are equal within {limit:g} and FLOPs are saved": held,
        "scores differ, or nothing is saved,": failed,
        "a stage or what it saves is not known": unknown,
    }
    said = [f"{what} for {listed(who)}" for what, who in words.items() if who]
    text = "; ".join(said)
    return Verdict(word=word, reason=f"{text[0].upper()}{text[1:]}.", numbers=tuple(numbers))


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
    beside = _composed(e, name, str(claim.options["composed"]))
    numbers += beside
    said += "".join(f" {n.of[0].upper()}{n.of[1:]}: {n.cell.text}." for n in beside)
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


def _composed(e: Evidence, name: str, form: str) -> list[Number]:
    """FLOPs of a served request with weights written once and with weights made for it, at the same candidates."""
    rows = e.rows("flops_request", model=name, variant="")
    both = set(where(rows, scope=REUSE)["batch"]) & set(where(rows, scope=form)["batch"])
    if not both:
        return []
    at = where(rows, batch=max(both))
    words = {REUSE: "its weights written once", form: "its weights made for the request"}
    return [
        Number(f"FLOPs of a request of {max(both):,.0f} candidates, {said}", pick(at, "flops_request", scope=s), True)
        for s, said in words.items()
    ]


def _same_auc(e: Evidence, name: str, other: str) -> tuple[list[str], list[Cell]]:
    found = {}
    for _, data in e.logs:
        cell = pick(
            e.rows("auc_delta", model=name, variant="", data=data), "auc_delta", scope=f"vs:{other}", signed=True
        )
        if cell.value is not None and (cell.n or 0) >= 3:
            found[data] = cell
    return list(found), list(found.values())
