"""Fresh pairs of equal code through the gate: new processes in turns, some beside a noisy neighbour, kept in a file.

A pair is collected in a minute or two, so that many can be taken at different hours: the file grows by a line a pair
and nothing is lost but the pair in flight.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from ctrbench.bench.gate import PRIMARY, Draft, compare, process_value, ratio_test
from ctrbench.bench.gate_sides import load_side
from ctrbench.bench.gate_trials import LEAST_FOUND, LEAST_GATES, NULL_P, Rate, found_rate
from ctrbench.bench.pool import Outcome, run_all
from ctrbench.bench.power import THRESHOLD, Design, scatter
from ctrbench.bench.registry import model_names
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.significance import ALPHA, processes_needed
from ctrbench.bench.stopping import StoppingRule, look, planned
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import BadInput, UnknownName, nearest
from ctrbench.reports.comparison import Comparison, Subject, Verdict

MEASURES = tuple(m for m, kind in PRIMARY.items() if kind == "time")
LEAST_PAIRS = 40
"""From which on a file says something of the gate (measures.md, section 7)."""
WIDTH = 0.02
"""Half of the interval of the ratio at which no further process is asked for."""
_NEIGHBOUR = """
import random, sys, time
import numpy as np
g, a = random.Random(int(sys.argv[1])), np.ones((512, 512), np.float32)
while True:
    end = time.monotonic() + g.uniform(0.2, 3)
    while time.monotonic() < end:
        a @ a
    time.sleep(g.uniform(0.1, 3))
"""


def rule_of(most: int | None) -> StoppingRule:
    """One look at the fewest processes that can call a change; with `most`, two planned ones.

    Raises:
        BadInput: `most` is below the first of two looks.
    """
    if most is None:
        return StoppingRule(looks=(processes_needed(len(MEASURES)),), width=WIDTH, tests=len(MEASURES))
    try:
        return planned(most=most, looks=2, width=WIDTH, tests=len(MEASURES))
    except ValueError as error:
        raise BadInput(f"--most: {error}") from None


def tiny(model: str, **changes: Any) -> RunSpec:
    """One timed process of seconds, on random batches.

    Raises:
        UnknownName: no such model.
    """
    if model not in model_names():
        raise UnknownName(f"--model {nearest(model, model_names())}")
    data = "random_tabular"
    spec = RunSpec(
        kind="time", model=model, data=data, split=random_batches.SPLIT, fingerprint=random_batches.fingerprint(data),
        history_length=1, batch=128, lr=1e-3, warmup=10, steps=50, level="smoke",
    )  # fmt: skip
    return replace(spec, **changes)


@contextmanager
def neighbour(noisy: bool, seed: int) -> Iterator[None]:
    """A process that multiplies matrices in bursts for as long as the block runs."""
    if not noisy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", _NEIGHBOUR, str(seed)]) as process:
        try:
            yield
        finally:
            process.kill()


def collect(file: Path, pairs: int, most: int | None, model: str) -> int:
    """Adds pairs to a file; prints one line each.

    Raises:
        BadInput, UnknownName: an option, the file, or a process that failed.
    """
    rule, spec = rule_of(most), tiny(model)
    for number in range(len(pairs_in(file)), len(pairs_in(file)) + pairs):
        noisy, began = number % 2 == 1, time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, neighbour(noisy, number):
            found, reason = one_pair(Path(folder), spec, rule)
            line = _line(found, Path(folder), number, noisy, reason, time.perf_counter() - began)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        print(f"pair {number}{' (noisy)' if noisy else ''}: {line['calls']}, {line['seconds']:.0f} s", flush=True)
    return 0


def one_pair(folder: Path, spec: RunSpec, rule: StoppingRule) -> tuple[Comparison, str]:
    """A and B in turns, ABBA, until the rule stops; then the gate on the two run directories."""
    for n in range(rule.looks[-1]):
        for side in ("AB", "BA")[n % 2]:
            done: list[Outcome] = []
            run_all([replace(spec, repeat=n)], folder / side, workers=1, done=done.append)
            if done[0].status != "ok":
                raise BadInput(f"a process of {spec.model} {done[0].status}: {done[0].reason}")
        seconds = [values_of(folder / side)["step_time"] for side in "AB"]
        seen = look(rule, *seconds)
        if seen is not None and seen.stop:
            found = compare(load_side(str(folder / "A")), load_side(str(folder / "B")), alpha=rule.share)
            return found, seen.reason
    raise AssertionError("the last look always stops")


def values_of(run_dir: Path) -> dict[str, list[float]]:
    """Measure -> one value a process."""
    bodies = load_side(str(run_dir)).bodies.values()
    return {m: [process_value(b, m) for b in bodies] for m in MEASURES}


def _line(found: Comparison, folder: Path, number: int, noisy: bool, reason: str, seconds: float) -> dict[str, Any]:
    facts = dict(found.new.facts)
    return {
        "pair": number, "at": datetime.now(UTC).isoformat(timespec="seconds"), "noisy": noisy, "seconds": seconds,
        "model": found.verdicts[0].subject.model, "calls": {v.metric: v.call for v in found.verdicts},
        "reasons": {v.metric: v.reason for v in found.verdicts}, "stopped": reason, "commit": facts["commit"],
        "cpu": facts["CPU"], "values": {side: values_of(folder / side) for side in "AB"},
    }  # fmt: skip


def pairs_in(file: Path) -> list[dict[str, Any]]:
    """The pairs of a file; none if it is not there.

    Raises:
        BadInput: a line is damaged.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    out = []
    for i, text in enumerate(lines, 1):
        try:
            out.append({**json.loads(text)})
        except (ValueError, TypeError):
            raise BadInput(f"{file}:{i}: no pair: {text[:40]}; delete that line") from None
    return out


def check(file: Path) -> int:
    """Prints the false alarms and the power at the scatter of all pairs; 0 if both are as promised, of enough pairs."""
    pairs = pairs_in(file)
    if not pairs:
        raise BadInput(f"{file}: no pair; collect some with `gate_trials fresh {file}`")
    alarms = [p for p in pairs if {"better", "worse"} & set(p["calls"].values())]
    moved = sum("not comparable" in p["calls"].values() for p in pairs)
    p = float(binom.sf(len(alarms) - 1, len(pairs), ALPHA))
    hours = len({q["at"][:13] for q in pairs})
    print(
        f"{len(pairs)} fresh pairs of {hours} different hours, {sum(q['noisy'] for q in pairs)} beside a neighbour: "
        f"{len(alarms)} call a change between equal sides, one-sided binomial p {p:.3f} at alpha {ALPHA:g}; {moved} "
        "withheld because the machine moved"
    )
    kept = _planted(pairs)
    for q in alarms:
        print(f"  pair {q['pair']} of {q['at']}{' (noisy)' if q['noisy'] else ''}: {q['calls']}")
    if len(pairs) < LEAST_PAIRS:
        print(f"too few to say: {len(pairs)} of {LEAST_PAIRS} pairs")
    return int(len(pairs) < LEAST_PAIRS or p <= NULL_P or not kept)


def planted(pairs: Sequence[Mapping[str, Any]], size: float, gates: int = LEAST_GATES, seed: int = 0) -> Rate:
    """How often a slowdown by `size` of one side is found, its process values drawn from those of all pairs."""
    pools = {m: [np.array(p["values"][s][m]) for p in pairs for s in "AB"] for m in MEASURES}
    near = {m: np.concatenate([side / side.mean() for side in sides]) for m, sides in pools.items()}
    processes = min(map(len, pools["step_time"]))
    start = Verdict(subject=Subject(data="random", split="", model="all"), metric="step_time", call="undecided")

    def drafts(g: int) -> list[Draft]:
        rng, out = np.random.default_rng([seed, g]), []
        for m, values in near.items():
            base, new = rng.choice(values, (2, processes))
            factor = size if m == "step_time" else 1.0
            out.append(replace(ratio_test(replace(start, metric=m), base, factor * new, THRESHOLD), detectable="-"))
        return out

    return found_rate("step time", "step_time", gates, drafts)


def _planted(pairs: Sequence[Mapping[str, Any]]) -> bool:
    """Prints the scatter of step times, the slowdown that can be detected at it, and how often it is found."""
    sides = [p["values"][s]["step_time"] for p in pairs for s in "AB"]
    cv, processes = scatter(sides), min(map(len, sides))
    # A busy machine's times have a longer tail than the lognormal that the design assumes: some power in reserve.
    size = Design(processes=processes, cv=cv, tests=len(MEASURES), draws=200).detectable(0.98) if cv else None
    if size is None:
        print(f"scatter of step times {cv or 0:.1%}: no slowdown can be detected with {processes} processes a side")
        return True
    rate = planted(pairs, size)
    print(
        f"scatter of step times {cv:.1%}: a slowdown by {size - 1:.1%} can be detected with {processes} processes a "
        f"side; planted, it is found in {rate.share:.1%} of {rate.trials} gates"
    )
    return rate.share >= LEAST_FOUND
