"""`ctrbench compare`: may NEW replace BASE? At most three primary measures a model, everything else is described.

Paired AUC difference (users and seeds, `delong.paired_auc_test`), median step time and peak memory (one value a
process, exact Mann-Whitney, and an interval of the ratio outside 1 +- threshold). Holm's correction runs over all tests
of the gate, whatever model they are of: its exit code is one decision.

Beside better, worse, same and not comparable there is a fifth word. With three processes a side no order of the values
reaches 0.05 (2 / C(6, 3) = 0.1): `same` would then be a verdict that nothing could have changed, so it is `undecided`,
with the number of repeats that a verdict takes.

Dims: S seeds, N test rows
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from ctrbench.bench.arrays import arrays
from ctrbench.bench.delong import paired_auc_test
from ctrbench.bench.gate_sides import CEILINGS, SCORES, Group, Side, remedy
from ctrbench.bench.power import THRESHOLD, Design, scatter
from ctrbench.bench.quality import auc
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.significance import (
    ALPHA,
    decidable,
    holm,
    mann_whitney,
    processes_needed,
    ratio_interval,
    smallest_p,
)
from ctrbench.bench.stability import judge
from ctrbench.bench.statistics import POWER_80, Z_95, percentiles
from ctrbench.datasets.errors import BadInput, UnknownName, nearest
from ctrbench.reports.comparison import Comparison, Described, Subject, Verdict
from ctrbench.reports.measures import MEASURES, measure

PRIMARY = {"auc": "quality", "step_time": "time", "rss_peak": "time"}
"""Measure -> kind of the processes that give it."""
LEAST_SEEDS = 3
"""Trainings a side below which the noise of seeds is not known well enough for a verdict."""
MACHINE_MOVED = 0.10
"""Change of this machine's own ceilings between the runs above which step times say more of the machine than of code;
`ceilings.CLOCK_DRIFT` inside one process."""
MUST_AGREE = ("fingerprint", "level", "device", "dtype", "threads", "batch", "history_length")
BUDGET = ("train_rows", "valid_rows", "epochs", "evaluations", "patience", "flops_budget")
HARDWARE = ("cpu", "cores", "threads", "usable_cpus", "gpu")
MAY_DIFFER = ("config", "model_sha256", "lr", "plateau", "compile", "tuned", "steps", "warmup")
"""What a change of code or options is about: said, and compared all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A comparison before the family is known: the verdict as far as it goes, and what its test says."""

    verdict: Verdict
    smallest: float = 1.0
    """Smallest p that its repeats could reach."""
    p: float = 1.0
    outside: float = 0.0
    """Margin that the interval must exclude, in units of the change."""
    sides: tuple[Sequence[float], Sequence[float]] = ((), ())
    """Process values, where there are any."""
    detectable: str = ""


def compare(
    base: Side, new: Side, *, alpha: float = ALPHA, threshold: float = THRESHOLD, models: Sequence[str] = ()
) -> Comparison:
    """Verdicts of every model that either side has.

    Args:
        base: what it is held against.
        new: what is judged.
        alpha: chance that equal code is called anything at all.
        threshold: relative change of times and memory that nobody cares about.
        models: only these are judged, so that Holm runs over fewer tests; empty judges all.

    Raises:
        BadInput: alpha or threshold is no share.
        UnknownName: neither side has such a model.
    """
    if not 0 < alpha < 1 or not 0 <= threshold < 1:
        raise BadInput(f"--alpha {alpha}, --threshold {threshold}: give shares, e.g. 0.05 and 0.03")
    subjects = list(dict.fromkeys((*base.groups, *new.groups)))
    names = {s.model for s, _ in subjects}
    if unknown := [m for m in models if m not in names]:
        raise UnknownName(f"--model {nearest(unknown[0], names)}")
    subjects = [(s, kind) for s, kind in subjects if not models or s.model in models]
    tested = [
        _prepare(subject, metric, base, new, threshold)
        for metric, wanted in PRIMARY.items() for subject, kind in subjects if kind == wanted
    ]  # fmt: skip
    verdicts, decided, needed = decide(tested, alpha)
    order = {s: i for i, (s, _) in enumerate(subjects)}
    verdicts.sort(key=lambda v: (order[v.subject], list(PRIMARY).index(v.metric)))
    described, equal = _described(base.table, new.table)
    return Comparison(
        base=base.provenance, new=new.provenance, alpha=alpha, threshold=threshold, verdicts=tuple(verdicts),
        described=tuple(described), equal=equal, decided=decided, needed=needed, notes=tuple(_notes(base, new)),
    )  # fmt: skip


def decide(tested: Sequence[Draft], alpha: float = ALPHA) -> tuple[list[Verdict], int, int]:
    """(verdicts, tests decided together, processes a side that would decide all).

    Which tests are decided hangs on the numbers of repeats alone, so it is fixed before any value is seen.
    """
    ready = [t for t in tested if t.verdict.call == "undecided"]
    needed = processes_needed(max(1, len(ready)), alpha)
    chosen = [t for t, yes in zip(ready, decidable([t.smallest for t in ready], alpha), strict=True) if yes]
    corrected = iter(holm([t.p for t in chosen]))
    kept, out = {id(t) for t in chosen}, []
    for t in tested:
        if id(t) in kept:
            out.append(_called(t, next(corrected), alpha, len(chosen)))
        elif t.verdict.call == "undecided":
            a, b = t.verdict.repeats or (0, 0)
            what, enough = ("seeds", LEAST_SEEDS) if t.verdict.metric == "auc" else ("processes", needed)
            out.append(
                replace(t.verdict, reason=f"too few to call any change: {a} / {b} {what}, {enough} needed a side")
            )
        else:
            out.append(t.verdict)
    return out, len(chosen), needed


def _called(t: Draft, p: float, alpha: float, tests: int) -> Verdict:
    v = t.verdict
    assert v.change is not None
    assert v.low is not None
    assert v.high is not None
    beyond = v.low > t.outside or v.high < -t.outside
    if p <= alpha and beyond:
        up = measure(v.metric).better == "up"
        return replace(v, p=p, call="better" if (v.change > 0) == up else "worse", reason="changed")
    found = t.detectable or _detectable(t, alpha, tests)
    inside = "a difference, but not one beyond the threshold" if p <= alpha else "no difference was called"
    return replace(v, p=p, call="same", reason=f"{inside}; {found}")


def _detectable(t: Draft, alpha: float, tests: int) -> str:
    """What these repeats would have found."""
    n, cv = min(map(len, t.sides)), scatter(t.sides)
    size = None if not cv else slowdown(n, round(cv, 3) or 0.001, tests, alpha, t.outside)
    if size is None:
        return "what could have been found is not known: the processes do not scatter, or too much"
    return f"an increase from {size - 1:.0%} on would most likely have been called"


@cache
def slowdown(processes: int, cv: float, tests: int, alpha: float, threshold: float) -> float | None:
    """`Design.detectable` from fewer trials, enough for a sentence."""
    return Design(
        processes=processes, cv=cv, tests=tests, alpha=alpha, threshold=threshold, trials=200, draws=200
    ).detectable()


def _prepare(subject: Subject, metric: str, base: Side, new: Side, threshold: float) -> Draft:
    """The test of one measure, or why there can be none."""
    olds, news = (side.groups.get((subject, PRIMARY[metric]), Group({})) for side in (base, new))
    sides = olds, news
    bad = Verdict(subject=subject, metric=metric, call="not comparable")
    for name, group in zip(("BASE", "NEW"), sides, strict=True):
        if not group.bodies:
            failed = name == "NEW" and bool(group.failures) and bool(olds.bodies)
            reason = f"failed in {name}: {group.failures[0]}" if group.failures else f"not in {name}"
            return Draft(verdict=replace(bad, reason=reason, failed=failed))
    notes = [f"{len(g.failures)} of {len(g.failures) + len(g.bodies)} failed in {name}: {g.failures[0]}"
             for name, g in zip(("BASE", "NEW"), sides, strict=True) if g.failures]  # fmt: skip
    if unequal := _unequal(olds, news):
        return Draft(verdict=replace(bad, reason=f"different {', '.join(unequal)}", notes=tuple(notes)))
    notes += _changed(olds, news)
    start = replace(bad, call="undecided", notes=tuple(notes))
    try:
        if metric == "auc":
            return auc_test(start, base, new, olds, news)
        return time_test(start, olds, news, threshold)
    except Incomparable as error:
        return Draft(verdict=replace(start, call="not comparable", reason=str(error)))


class Incomparable(BadInput):
    """Why two sides cannot be compared after all."""


def _values(group: Group, part: str, names: Sequence[str]) -> dict[str, set[str]]:
    """Name -> what the records say; an option that an older record does not know had its default."""
    bodies = group.bodies.values()
    said = [RunSpec.from_json(b["spec"]).to_json() if part == "spec" else b.get(part, {}) for b in bodies]
    return {n: {str(one.get(n)) for one in said} for n in names}


def _unequal(base: Group, new: Group) -> list[str]:
    """What makes a pair unfair, in words; a side that is of two minds differs too."""
    out = []
    for part, names in (("spec", (*MUST_AGREE, *BUDGET)), ("environment", HARDWARE)):
        a, b = _values(base, part, names), _values(new, part, names)
        for n in names:
            if len(a[n] | b[n]) > 1:
                label = f"hardware: {n}" if part == "environment" else n.replace("_", " ")
                out.append(f"{label} ({'/'.join(sorted(a[n]))} against {'/'.join(sorted(b[n]))})")
    return out


def _changed(base: Group, new: Group) -> list[str]:
    a, b = _values(base, "spec", MAY_DIFFER), _values(new, "spec", MAY_DIFFER)
    return [f"{n} was {'/'.join(sorted(a[n]))}, is {'/'.join(sorted(b[n]))}" for n in MAY_DIFFER if a[n] != b[n]]


def time_test(start: Verdict, base: Group, new: Group, threshold: float) -> Draft:
    """Step time or peak memory: one value a process."""
    if start.metric == "step_time":
        _check_machine(base, new)
    elif any("rss_peak" not in b["extra"] for g in (base, new) for b in g.bodies.values()):
        raise Incomparable("peak memory is withheld: a pytest process holds more than one model")
    notes = [*start.notes, *(_doubts(base, new) if start.metric == "step_time" else ())]
    values = [[process_value(b, start.metric) for b in g.bodies.values()] for g in (base, new)]
    return ratio_test(replace(start, notes=tuple(notes)), values[0], values[1], threshold)


def ratio_test(start: Verdict, base: Sequence[float], new: Sequence[float], threshold: float) -> Draft:
    """Two sets of process values, whatever they are of."""
    middle = median(base), median(new)
    shown = replace(start, base=middle[0], new=middle[1], change=middle[1] / middle[0] - 1,
                    repeats=(len(base), len(new)))  # fmt: skip
    if min(len(base), len(new)) < 2:
        return Draft(verdict=shown, sides=(base, new))
    low, high = ratio_interval(base, new)
    return Draft(
        verdict=replace(shown, low=low - 1, high=high - 1), smallest=smallest_p(len(base), len(new)),
        p=mann_whitney(base, new), outside=threshold, sides=(base, new),
    )  # fmt: skip


def process_value(body: Mapping[str, Any], metric: str) -> float:
    """The one value of a timed process: the median of its steps, or its peak memory."""
    extra = body["extra"]
    return float(extra["rss_peak"]) if metric == "rss_peak" else percentiles(extra["samples"]["step"])["p50"]


def _check_machine(base: Group, new: Group) -> None:
    """The machine's own ceilings, measured in turns with the steps, must not have moved between the runs."""
    for name in CEILINGS:
        middle = [
            [float(c[name]) for b in g.bodies.values() for c in b["extra"].get("ceilings", ()) if c.get(name)]
            for g in (base, new)
        ]
        if not all(middle):
            continue
        moved = median(middle[1]) / median(middle[0]) - 1
        if abs(moved) > MACHINE_MOVED:
            raise Incomparable(
                f"the machine itself moved: {name} {moved:+.0%} between the runs; run both again in turns"
            )


def _doubts(base: Group, new: Group) -> Iterator[str]:
    for name, group in (("BASE", base), ("NEW", new)):
        said: list[str] = []
        for body in group.bodies.values():
            steps = body["extra"]["samples"]["step"]
            said += judge(steps).doubts if len(steps) >= 24 else ()
            said += body["extra"].get("hints", ())
        if said:
            yield f"unsteady in {name}: {said[0]}" + (f" and {len(said) - 1} more" if len(said) > 1 else "")


def auc_test(start: Verdict, base: Side, new: Side, olds: Group, news: Group) -> Draft:
    """Test AUC, paired over the seeds that both sides finished."""
    if doubt := next((r for s in (base, new) if (r := _auc_doubt(s.table, start.subject))), ""):
        raise Incomparable(doubt)
    keys = [{int(b["spec"].get("seed", 0)): k for k, b in g.bodies.items()} for g in (olds, news)]
    seeds = sorted(set(keys[0]) & set(keys[1]))
    if not seeds:
        raise Incomparable(f"no seed in common: {sorted(keys[0])} against {sorted(keys[1])}")
    specs = [next(iter(g.bodies.values()))["spec"] for g in (olds, news)]
    rows = base.rows_of(specs[0]) or new.rows_of(specs[1])
    if rows is None:
        raise Incomparable(
            f"the labels of the test rows are gone: prepare {specs[0]['data']} again, or compare with a stored baseline"
        )
    label_N, user_N = rows
    b_SN, a_SN = (
        np.stack([scores_of(side, k[seed], len(label_N)) for seed in seeds])
        for side, k in zip((base, new), keys, strict=True)
    )
    try:
        return scored(replace(start, notes=(*start.notes, *_unpaired(keys, seeds))), label_N, a_SN, b_SN, user_N)
    except ValueError as error:  # rows of one label, or a class of one user
        raise Incomparable(str(error)) from None


def _unpaired(keys: Sequence[Mapping[int, str]], seeds: Sequence[int]) -> list[str]:
    left = sorted((set(keys[0]) | set(keys[1])) - set(seeds))
    return [f"seeds {left} are on one side only and left out"] if left else []


def scored(start: Verdict, label_N: np.ndarray, a_SN: np.ndarray, b_SN: np.ndarray, user_N: np.ndarray) -> Draft:
    """Scores of NEW (`a_SN`) against those of BASE on the same rows."""
    found = paired_auc_test(label_N, a_SN, b_SN, user_N)
    seeds, middle = len(a_SN), float(np.mean([auc(label_N, score_N) for score_N in b_SN]))
    verdict = replace(start, base=middle, new=middle + found.delta, change=found.delta, low=found.ci_low,
                      high=found.ci_high, repeats=(seeds, seeds))  # fmt: skip
    least = (Z_95 + POWER_80) * found.se
    return Draft(
        verdict=verdict, smallest=0.0 if seeds >= LEAST_SEEDS else 1.0, p=found.p,
        detectable=f"a true difference of {least:.4f} would be found four times in five, were it the only test"
        if least else "the scores are equal",
    )  # fmt: skip


def _auc_doubt(table: pd.DataFrame, s: Subject) -> str:
    """Why the run itself does not believe this AUC."""
    rows = table[(table["metric"] == "auc") & (table["status"] == "unstable")]
    for r in rows.to_dict("records"):
        if (r["data"], r["split"], r["model"], r["variant"]) == (s.data, s.split, s.model, s.variant):
            return str(r["reason"])
    return ""


def scores_of(side: Side, key: str, rows: int) -> np.ndarray:
    """Test scores of one training.

    Raises:
        Incomparable: there are none, or not one a test row.
        BadInput: they are damaged.
    """
    path = side.folder / "records" / key / SCORES
    if not path.is_file():
        raise Incomparable(f"test scores of {side.name} are gone: {path.parent.name}/{SCORES}")
    score_N = arrays(path, "score", remedy=remedy(side.folder))["score"]
    if score_N.shape != (rows,):
        raise Incomparable(f"{key} of {side.name} has {score_N.shape} scores for {rows} test rows")
    return score_N


def _described(base: pd.DataFrame, new: pd.DataFrame) -> tuple[list[Described], int]:
    """Values that both sides have and that differ, and how many are equal; primary measures are left out."""
    a, b = _numbers(base), _numbers(new)
    out, equal = [], 0
    for key in a:
        if key not in b:
            continue
        (old, origin), (value, _) = a[key], b[key]
        if old == value:
            equal += 1
            continue
        who, (metric, scope, phase) = Subject(**dict(zip(Subject.__slots__, key[:5], strict=True))), key[5:]
        out.append(Described(subject=who, metric=metric, scope=scope, phase=phase, origin=origin, base=old, new=value))
    return out, equal


def _numbers(table: pd.DataFrame) -> dict[tuple[str, ...], tuple[float, str]]:
    """(whose, metric, scope, phase) -> (value, origin) of rows over all seeds and processes; of files their median."""
    names = ["data", "split", "model", "variant", "preset", "metric", "scope", "phase"]
    rows = table[table["seed"].isna() & table["value"].notna() & ~table["metric"].isin(list(PRIMARY))]
    rows = rows[rows["metric"].isin(list(MEASURES))]
    keys = rows[names].astype(object).fillna("").astype(str).itertuples(index=False, name=None)
    found: dict[tuple[str, ...], list[tuple[float, str]]] = defaultdict(list)
    for key, value, origin in zip(keys, rows["value"].astype(float), rows["origin"].astype(str), strict=True):
        found[key].append((value, origin))
    return {key: (median(v for v, _ in values), values[0][1]) for key, values in found.items()}


def _notes(base: Side, new: Side) -> Iterator[str]:
    """Differences of the two sides that are no reason to refuse."""
    a, b = (dict(s.provenance.facts) for s in (base, new))
    for name in ("system", "python", "torch"):
        if a[name] != b[name]:
            yield f"{name} differs: {a[name]} against {b[name]}"
    if a["commit"] == b["commit"]:
        yield f"both sides are of one commit, {a['commit'][:12]}: nothing but options and chance differs"
