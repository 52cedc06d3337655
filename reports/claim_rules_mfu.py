"""Rules about MFU on GPUs: a measured or imported use decides; the upper bound can only exclude.

`mfu_cpu` is never read: a CPU's ridge is two orders of magnitude lower and ranks models otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from ctrbench.reports.cells import Cell
from ctrbench.reports.claim_evidence import (  # what rules speak in: the same names as in claim_rules_counts
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
from ctrbench.reports.costs import RIDGE_GPU

NO_USE = "rows of `mfu` from a GPU (no suite writes them yet; a timed step on a GPU would)"
NO_BOUND = "`mfu_bound` of these published sizes (`suite=quick` traces all of them)"


@dataclass(frozen=True, slots=True)
class Point:
    """One published size in one phase, at its best batch."""

    name: str
    use: Cell | None
    """MFU as run on a GPU."""
    bound: Cell | None
    bounds: tuple[float, ...] = ()
    """Of every traced batch and GPU."""

    def side(self, limit: float) -> str:
        """below | above | open: where the use lies, as far as use or bound say."""
        if self.use is not None and self.use.value is not None:
            low = self.use.value if self.use.low is None else self.use.low
            high = self.use.value if self.use.high is None else self.use.high
            return "above" if low >= limit else "below" if high < limit else "open"
        assert self.bound is not None
        assert self.bound.value is not None
        return "below" if self.bound.value < limit else "open"

    @property
    def number(self) -> Number:
        """What it is judged by."""
        cell = self.use if self.use is not None else self.bound
        assert cell is not None
        return Number(f"{'MFU' if self.use is not None else 'MFU bound'} of {self.name}", cell)


def on_gpu(rows: pd.DataFrame) -> pd.DataFrame:
    """Without what a CPU did."""
    return rows[~rows["device"].str.startswith("cpu").to_numpy(dtype=bool)]


def points(e: Evidence, claim: Claim, models: Iterable[str] = ()) -> list[Point]:
    """Every size that has a use or a bound.

    Options of the claim: `models` or `family`, `phases`, `gpus` (`any` takes each catalogued one), `presets`.
    """
    options = claim.options
    chosen = tuple(models) or tuple(options.get("models", ()))
    family, gpu = "" if chosen else str(options.get("family", "")), str(options.get("gpu", RIDGE_GPU))
    found = []
    for phase in options.get("phases", ("train",)):
        parts = {}
        for metric in ("mfu", "mfu_bound"):
            rows = on_gpu(e.published(metric, chosen, family, phase))
            rows = rows if gpu == "any" else rows[rows["scope"].str.startswith(gpu).to_numpy(dtype=bool)]
            parts[metric] = {
                key: part
                for key, part in by_size(rows).items()
                if not options.get("presets") or key[2].removeprefix("published:") in options["presets"]
            }
        for model, variant, preset in dict.fromkeys([*parts["mfu"], *parts["mfu_bound"]]):
            key = model, variant, preset
            use, bound = (highest(parts[m][key]) if key in parts[m] else None for m in ("mfu", "mfu_bound"))
            traced = tuple(parts["mfu_bound"][key]["value"]) if bound is not None else ()
            found.append(Point(f"{e.title(model, preset, variant)} ({phase})", use, bound, traced))
    return found


def _shown(found: list[Point], limit: float) -> tuple[Number, ...]:
    """The points that decide: highest first, at most three on either side."""
    order = sorted(found, key=lambda p: -(p.number.cell.value or 0.0))
    below = [p for p in order if p.side(limit) == "below"]
    rest = [p for p in order if p.side(limit) != "below"]
    return tuple(p.number for p in (*rest[:3], *below[:3]))


def _say(found: list[Point], limit: float) -> str:
    words = (
        ("above", "reach"),
        ("below", "stay below"),
        ("open", "are bounded above it only, so may or may not reach"),
    )
    parts = []
    for side, text in words:
        names = [p.name for p in found if p.side(limit) == side]
        if names:
            parts.append(f"{len(names)} of {len(found)} sizes {text} {100 * limit:.4g} % ({listed(names, 3)})")
    traced = [b for p in found for b in p.bounds]
    below = sum(b < limit for b in traced)
    said = f"At the best batch {'; '.join(parts)}."
    if traced:
        said += f" The upper bound alone puts {below} of {len(traced)} traced points (size, batch, GPU) below it."
    return said + (" A timed step on a GPU would decide." if any(p.side(limit) == "open" for p in found) else "")


def mfu_below(e: Evidence, claim: Claim) -> Verdict:
    """Every size uses less than the limit. A bound below it shows that; a bound above it shows nothing."""
    found = points(e, claim)
    if not found:
        return untestable(f"{NO_USE}, or {NO_BOUND}")
    limit = float(claim.options["limit"])
    sides = {p.side(limit) for p in found}
    word: Word = REFUTED if "above" in sides else SUPPORTED if sides == {"below"} else OPEN
    deciding = [p for p in found if word != REFUTED or p.side(limit) == "above"]
    return Verdict(word=word, reason=_say(found, limit), numbers=_shown(deciding, limit))


def mfu_reaches(e: Evidence, claim: Claim) -> Verdict:
    """Some size uses the limit or more. A bound below the limit at every size excludes it."""
    found = points(e, claim)
    if not found:
        return untestable(f"{NO_USE}, or {NO_BOUND}")
    limit = float(claim.options["limit"])
    sides = [p.side(limit) for p in found]
    word: Word = SUPPORTED if "above" in sides else REFUTED if set(sides) == {"below"} else OPEN
    deciding = [p for p in found if word != SUPPORTED or p.side(limit) == "above"]
    return Verdict(word=word, reason=_say(found, limit), numbers=_shown(deciding, limit))


def mfu_ratio(e: Evidence, claim: Claim) -> Verdict:
    """The first model reaches the limit, and its MFU over that of each other model lies in the range."""
    limit, (least, most) = float(claim.options["limit"]), claim.options["ratio"]
    name, *others = claim.options["models"]
    mine = points(e, claim, [name])
    if not mine:
        return untestable(f"{NO_USE}, or {NO_BOUND}")
    if all(p.side(limit) == "below" for p in mine):
        return Verdict(word=REFUTED, reason=_say(mine, limit), numbers=_shown(mine, limit))
    best = {m: _used(points(e, claim, [m])) for m in (name, *others)}
    if without := [e.title(m) for m, cell in best.items() if cell is None]:
        reason = f"{_say(mine, limit)} The ratio needs MFU as run on a GPU of {listed(without)}."
        return Verdict(word=OPEN, reason=reason, numbers=_shown(mine, limit))
    known = {m: cell for m, cell in best.items() if cell is not None}
    if len(kinds := {cell.note.rsplit(", batch", 1)[0] for cell in known.values()}) > 1:
        return Verdict(word=OPEN, reason=f"Run on unlike GPUs or precisions: {listed(sorted(kinds))}.",
                       numbers=tuple(Number(f"MFU of {e.title(m)}", cell) for m, cell in known.items()))  # fmt: skip
    ratios = {m: divided(known[name], known[m]) for m in others}
    high_enough = {"above": True, "below": False}.get(Point(name, known[name], None).side(limit))
    calls = [*(_inside(r, least, most) for r in ratios.values()), high_enough]
    word: Word = REFUTED if False in calls else SUPPORTED if all(calls) else OPEN
    numbers = (Number(f"MFU of {e.title(name)}", known[name]),
               *(Number(f"{e.title(name)} over {e.title(m)}", r) for m, r in ratios.items()))  # fmt: skip
    said = ", ".join(f"{r.text} times {e.title(m)}" for m, r in ratios.items())
    return Verdict(word=word, numbers=numbers,
                   reason=f"{e.title(name)} uses {known[name].text}, {said}; claimed {least} to {most} "
                       "times.")  # fmt: skip


def _used(found: list[Point]) -> Cell | None:
    """The highest use as run on a GPU."""
    return max((p.use for p in found if p.use is not None), key=lambda c: c.value or 0.0, default=None)


def divided(a: Cell, b: Cell) -> Cell:
    """a / b of positive numbers with the widest interval that both allow."""
    ratio = a.over(b, "ratio")
    if a.low is None or a.high is None or not b.low or b.high is None:
        return replace(ratio, low=None, high=None)
    return replace(ratio, low=a.low / b.high, high=a.high / b.low)


def _inside(ratio: Cell, least: float, most: float) -> bool | None:
    """Whether a ratio lies in the range; None where its interval crosses an end."""
    assert ratio.value is not None
    low = ratio.value if ratio.low is None else ratio.low
    high = ratio.value if ratio.high is None else ratio.high
    if least <= low and high <= most:
        return True
    return False if high < least or low > most else None
