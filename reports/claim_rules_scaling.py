"""Rules about size: AUC against FLOPs, modules that cost utilisation, tricks that fade; on observed labels alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from ctrbench.reports.cells import Cell, pick, where
from ctrbench.reports.claim_evidence import (
    OPEN,
    REFUTED,
    SEEDS,
    SUPPORTED,
    Claim,
    Evidence,
    Number,
    Verdict,
    Word,
    by_size,
    listed,
    minus,
    untestable,
)
from ctrbench.reports.claim_rules_mfu import divided, on_gpu
from ctrbench.reports.claim_rules_quality import option_of

SIZES = frozenset(
    {"dim", "width", "layers", "heads", "head", "hidden", "mlp", "towers", "attention", "cross_layers", "ffn_mult",
     "qk", "v"}
)  # fmt: skip
"""Options that make a model larger and nothing else; variants that differ in these alone are sizes of one model."""
GROUPS = ("tuned", "equal_flops")


@dataclass(frozen=True, slots=True)
class Curve:
    """AUC of every seed at every size, smallest first."""

    name: str
    model: str
    data: str
    options: tuple[tuple[str, str], ...]
    """What all sizes share; curves of one model differ in it."""
    doublings_N: np.ndarray
    """log2 of forward FLOPs a sample."""
    auc_NS: np.ndarray

    def slope(self) -> Cell:
        """AUC per doubling, Student's interval over seeds."""
        return interval(self._fit()[0])

    def line(self, doublings_M: np.ndarray) -> list[Cell]:
        """AUC of the straight line at each place, with Student's 95 % band over the lines of the seeds."""
        slope_S, start_S = self._fit()
        return [replace(interval(slope_S * x + start_S), metric="auc", signed=False) for x in doublings_M]

    def _fit(self) -> np.ndarray:
        """[slope, AUC at one FLOP] of every seed's least-squares line."""
        return np.asarray(np.polyfit(self.doublings_N, self.auc_NS, 1))

    def bend(self) -> Cell:
        """AUC per doubling between the two largest sizes less that between the two smallest."""
        step_NS = np.diff(self.auc_NS, axis=0) / np.diff(self.doublings_N)[:, None]
        return interval(step_NS[-1] - step_NS[0])


def interval(value_S: np.ndarray) -> Cell:
    """Mean over seeds with Student's 95 % interval."""
    n = len(value_S)
    half = float(t.ppf(0.975, n - 1) * value_S.std(ddof=1) / np.sqrt(n))
    mean = float(value_S.mean())
    return Cell(mean, "auc_delta", "derived", mean - half, mean + half, n, signed=True)


def curves(e: Evidence, models: Iterable[str], sizes: int) -> list[Curve]:
    """Every model with so many sizes that differ in size alone, on observed labels, at least three seeds each."""
    chosen = list(models)
    found: dict[tuple[Any, ...], list[tuple[float, pd.Series]]] = defaultdict(list)
    for _, data in e.logs:
        rows = e.rows("auc", data=data, trained=True)
        rows = rows[rows["model"].isin(chosen) & rows["seed"].notna()]
        for (model, variant, _), part in by_size(rows).items():
            config = option_of(e.context.bodies, model, variant)
            flops = pick(
                e.rows("flops_fwd_per_sample", model=model, variant=variant, data=data), "flops_fwd_per_sample"
            )
            if variant.split(",")[0] not in GROUPS and flops.value:
                rest = tuple(sorted((str(k), str(v)) for k, v in config.items() if k not in SIZES))
                seen = _seen(e, model, variant)
                found[model, data, rest, seen].append((flops.value, part.set_index("seed")["value"]))
    out = []
    for (model, data, rest, _), points in found.items():
        points.sort(key=lambda p: p[0])
        shared = pd.concat([auc for _, auc in points], axis=1, join="inner")
        if len({f for f, _ in points}) == len(points) >= sizes and len(shared) >= SEEDS:
            out.append(
                Curve(
                    f"{e.title(model)} on {data}",
                    model,
                    data,
                    rest,
                    np.log2([f for f, _ in points]),
                    shared.to_numpy().T,
                )
            )
    return out


def _seen(e: Evidence, model: str, variant: str) -> tuple[Any, ...]:
    """Rows, passes and history length of a variant: trainings that differ in these are no sizes."""
    specs = (body.get("spec", {}) for body in e.context.bodies.values())
    wanted = ("quality", model, variant)
    mine: Mapping[str, Any] = next(
        (s for s in specs if (s.get("kind"), s.get("model"), s.get("variant")) == wanted), {}
    )
    return tuple(mine.get(k) for k in ("train_rows", "epochs", "history_length"))


def grows(e: Evidence, claim: Claim) -> Verdict:
    """The slope of AUC over doublings of FLOPs lies above 0 for each named model; of the legacy ones it falls off."""
    options = claim.options
    sizes = int(options["sizes"])
    rising, bending = list(options["models"]), list(options.get("legacy", ()))
    found = curves(e, [*rising, *bending], sizes)
    have = {c.model for c in found}
    lost = [e.title(m) for m in rising if m not in have]
    if lost or (bending and not have & set(bending)):
        need = listed([*lost, *([] if have & set(bending) or not bending else ["a legacy model"])])
        return untestable(
            f"AUC of {need} at {sizes} sizes or more with {SEEDS} seeds each on observed labels: `suite=scaling`"
        )
    slopes = [(c, c.slope()) for c in found if c.model in rising]
    bends = [(c, c.bend()) for c in found if c.model in bending]
    ok = [s.low > 0 for _, s in slopes if s.low is not None] + [b.high < 0 for _, b in bends if b.high is not None]
    bad = [s.high < 0 for _, s in slopes if s.high is not None] + [b.low > 0 for _, b in bends if b.low is not None]
    word: Word = REFUTED if any(bad) else SUPPORTED if all(ok) else OPEN
    numbers = [Number(f"AUC per doubling of FLOPs, {c.name}", s) for c, s in slopes]
    numbers += [Number(f"change of that gain from the smallest to the largest sizes, {c.name}", b) for c, b in bends]
    said = "; ".join(f"{n.of}: {n.cell.text} {n.cell.band}" for n in numbers)
    return Verdict(word=word, reason=f"{said}.", numbers=tuple(numbers), caps=e.caps(c.data for c in found))


@dataclass(frozen=True, slots=True)
class Trick:
    """A mechanism switched on or off, and the AUC that comes with having it."""

    model: str
    data: str
    variant: str
    base: str
    what: str
    delta: Cell
    """AUC of the variant less the base's."""

    def name(self, e: Evidence) -> str:
        return f"{self.what} in {e.title(self.model)} on {self.data}"


def tricks(e: Evidence) -> list[Trick]:
    """Every option of `option_delta` on observed labels with three seeds."""
    out = []
    for _, data in e.logs:
        rows = e.rows("option_delta", data=data)
        for model, variant, scope in rows[["model", "variant", "scope"]].drop_duplicates().itertuples(index=False):
            base = str(scope).removeprefix("vs:")
            cell = pick(where(rows, model=model, variant=variant), "option_delta", scope=scope, signed=True)
            if variant.split(",")[0] in GROUPS or cell.low is None or cell.high is None or (cell.n or 0) < SEEDS:
                continue
            mine, theirs = (option_of(e.context.bodies, model, v) for v in (variant, base))
            what = ", ".join(f"{k}={v}" for k, v in mine.items() if theirs.get(k) != v and k not in SIZES)
            if what:
                out.append(Trick(model, data, variant, base, what, cell))
    return out


def module_costs(e: Evidence, claim: Claim) -> Verdict:
    """One module brings the stated AUC, Holm across modules, and leaves at most half of the MFU on a GPU."""
    least, share = float(claim.options["auc"]), float(claim.options["share"])
    judged = [(one, ratio) for one in tricks(e) if (ratio := _use_ratio(e, one)) is not None]
    if not judged:
        return untestable(
            f"`mfu` on a GPU of the variants of `option_delta` ({SEEDS} seeds, observed labels; "
            "`suite=ablation` makes the AUC, no suite the MFU)"
        )
    gained = [_gain(one) for one, _ in judged]
    p = [float(norm.sf((_value(c) - least) / max(_se(c), 1e-12))) for c in gained]
    surely = holm(p)
    found = [i for i, (_, r) in enumerate(judged) if surely[i] and (r.high or _value(r)) <= share]
    never = [i for i, (_, r) in enumerate(judged) if (gained[i].high or 0.0) < least or (r.low or _value(r)) > share]
    word: Word = SUPPORTED if found else REFUTED if len(never) == len(judged) else OPEN
    order = found or list(range(len(judged)))
    numbers = [Number(f"{what} {judged[i][0].name(e)}", c) for i in order[:2]
               for what, c in (("ΔAUC of having", gained[i]), ("MFU with over without,", judged[i][1]))]  # fmt: skip
    said = (
        f"{len(found)} of {len(judged)} modules bring {least:g} AUC at no more than {share:g} of the MFU, "
        f"Holm across them; {len(never)} surely do not."
    )
    return Verdict(word=word, reason=said, numbers=tuple(numbers), caps=e.caps(one.data for one, _ in judged))


def _gain(one: Trick) -> Cell:
    """ΔAUC of the side that ranks better: a variant may add a module or leave one out."""
    return one.delta if _value(one.delta) >= 0 else one.delta.negated()


def _use_ratio(e: Evidence, one: Trick) -> Cell | None:
    """MFU of the side that ranks better over that of the other, on the GPU at their best batch."""
    sides = []
    for variant in (one.variant, one.base):
        rows = on_gpu(e.rows("mfu", model=one.model, variant=variant, phase="train"))
        if rows.empty:
            return None
        sides.append(pick(rows[rows["value"] == rows["value"].max()].iloc[:1], "mfu", scope=None))
    mine, theirs = sides if _value(one.delta) >= 0 else sides[::-1]
    return divided(mine, theirs)


def _value(cell: Cell) -> float:
    assert cell.value is not None
    return cell.value


def _se(cell: Cell) -> float:
    assert cell.low is not None
    assert cell.high is not None
    return (cell.high - cell.low) / (2 * float(norm.ppf(0.975)))


def holm(p: list[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses fall at a family-wise error of alpha (Holm 1979)."""
    order = np.argsort(p)
    out = [False] * len(p)
    for rank, i in enumerate(order):
        if p[i] > alpha / (len(p) - rank):
            break
        out[i] = True
    return out


def fades(e: Evidence, claim: Claim) -> Verdict:
    """Every trick that helps at the smallest size vanishes at the largest: a resolved loss, and little left."""
    sizes, margin = int(claim.options["sizes"]), float(claim.options["margin"])
    groups: dict[tuple[str, str, str], list[tuple[float, Trick]]] = defaultdict(list)
    for one in tricks(e):
        rows = e.rows("flops_fwd_per_sample", model=one.model, variant=one.base, data=one.data)
        flops = pick(rows, "flops_fwd_per_sample")
        if flops.value:
            groups[one.model, one.data, one.what].append((flops.value, one))
    ready = [
        [t_ for _, t_ in sorted(g, key=lambda x: x[0])] for g in groups.values() if len({f for f, _ in g}) >= sizes
    ]
    if not ready:
        return untestable(
            f"`option_delta` of one mechanism at {sizes} sizes or more, {SEEDS} seeds, observed labels (suite=scaling "
            "trains sizes, each with all its mechanisms; suite=ablation one size without them)"
        )
    helpful = [g for g in ready if _resolved(g[0].delta)]
    fates = {g[0].name(e): _fate(g[0].delta, g[-1].delta, margin) for g in helpful}
    kinds = [f for f, _ in fates.values()]
    word: Word = REFUTED if "stays" in kinds else SUPPORTED if kinds and set(kinds) == {"fades"} else OPEN
    numbers = [Number(f"gain at the smallest less at the largest size, {n}", c) for n, (_, c) in fates.items()]
    said = (
        f"Of {len(ready)} mechanisms at {sizes} sizes or more {len(helpful)} help at the smallest; of these "
        f"{kinds.count('fades')} fade, {kinds.count('stays')} stay."
    )
    return Verdict(word=word, reason=said, numbers=tuple(numbers[:4]), caps=e.caps(g[0].data for g in ready))


def _resolved(cell: Cell) -> bool:
    return bool((cell.low is not None and cell.low > 0) or (cell.high is not None and cell.high < 0))


def _fate(small: Cell, large: Cell, margin: float) -> tuple[str, Cell]:
    """fades | stays | open, and the gain that was lost; the gain is the one that helps at the smallest size."""
    a, b = (small, large) if _value(small) > 0 else (small.negated(), large.negated())
    lost = minus(a, b, "auc_delta")
    assert b.low is not None
    assert b.high is not None
    assert lost.low is not None
    if lost.low > 0 and -margin <= b.low <= b.high <= margin:
        return "fades", lost
    return ("stays" if b.low > margin else "open"), lost
