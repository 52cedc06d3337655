"""Run against run, after the gate has decided: what was compared, the verdicts, and how they read as text.

The gate itself is `bench/gate.py`; nothing here computes a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from ctrbench.reports import inert
from ctrbench.reports.cells import text_of
from ctrbench.reports.measures import measure
from ctrbench.reports.records import write_atomic

Call = Literal["better", "worse", "same", "undecided", "not comparable"]
DIFFERENCES = ("auc",)
"""Measures whose change is a difference; of the others it is the ratio less 1."""
SHOWN = 20
"""Descriptive values in the Markdown summary, those that moved most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Whose number it is."""

    data: str
    split: str
    model: str
    variant: str = ""
    preset: str = "small"

    @property
    def text(self) -> str:
        """`din tuned on movielens_1m (per_user)`."""
        size = "" if self.preset == "small" else self.preset
        return inert.line(
            f"{' '.join(filter(None, (self.model, self.variant, size)))} on {self.data}"
            + (f" ({self.split})" if self.split else "")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One primary measure of one model."""

    subject: Subject
    metric: str
    call: Call
    reason: str = ""
    """Why it is not comparable or undecided; what was found otherwise."""
    failed: bool = False
    """Its run failed in NEW and not in BASE: no verdict, but no pass either."""
    base: float | None = None
    new: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval of `change`."""
    p: float | None = None
    """After Holm's correction over all that this gate decides."""
    repeats: tuple[int, int] | None = None
    """Processes, or seeds, of BASE and NEW."""
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return measure(self.metric).title

    @property
    def values(self) -> str:
        """`12.3 ms -> 14.0 ms`; a dash for what is not known."""
        return " → ".join("—" if v is None else text_of(v, self.metric) for v in (self.base, self.new))

    @property
    def moved(self) -> str:
        """`+13.8 % [+9.1, +18.0]`, or a difference of AUC."""
        if self.change is None:
            return "—"
        scale, digits, unit = (1, 4, "") if self.metric in DIFFERENCES else (100, 1, " %")
        text = f"{scale * self.change:+.{digits}f}{unit}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{scale * self.low:+.{digits}f}, {scale * self.high:+.{digits}f}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A number that both sides have and no test is made on."""

    subject: Subject
    metric: str
    scope: str
    phase: str
    origin: str
    base: float
    new: float

    @property
    def ratio(self) -> float | None:
        """new / base."""
        return self.new / self.base if self.base else None

    @property
    def size(self) -> float:
        """How far it moved, for ordering."""
        return float("inf") if self.ratio is None else abs(self.ratio - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where one side comes from."""

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One run of the gate."""

    base: Provenance
    new: Provenance
    alpha: float
    threshold: float
    verdicts: tuple[Verdict, ...]
    described: tuple[Described, ...] = ()
    """Only those that differ."""
    equal: int = 0
    """Descriptive values that are the same on both sides."""
    decided: int = 0
    """Tests that Holm's correction runs over."""
    needed: int = 0
    """Processes a side at which all of them could be called."""
    notes: tuple[str, ...] = ()

    def called(self, call: Call) -> list[Verdict]:
        """The verdicts of one kind."""
        return [v for v in self.verdicts if v.call == call]

    @property
    def exit_code(self) -> int:
        """1 where something is worse or failed in NEW alone, 2 where nothing could be compared, else 0."""
        if self.called("worse") or any(v.failed for v in self.verdicts):
            return 1
        return 2 if len(self.called("not comparable")) == len(self.verdicts) else 0

    @property
    def headline(self) -> str:
        """The answer in a sentence."""
        if self.exit_code == 2:
            reasons = list(dict.fromkeys(v.reason for v in self.verdicts)) or ["no model was timed or trained"]
            return f"Nothing is comparable: {'; '.join(map(inert.line, reasons[:3]))}."
        failed = [f"{v.title} of {v.subject.text}" for v in self.verdicts if v.failed]
        worse = [f"{v.title} of {v.subject.text} ({v.moved})" for v in self.called("worse")]
        said = [f"worse: {', '.join(worse)}"] if worse else []
        said += [f"failed in NEW: {', '.join(failed)}"] if failed else []
        others: tuple[Call, ...] = ("better", "same", "undecided", "not comparable")
        counts = [f"{n} {call}" for call in others if (n := len(self.called(call)))]
        text = "; ".join(said or ["nothing is worse"]) + (f" ({', '.join(counts)})" if counts else "")
        return text[0].upper() + text[1:] + "."

    @property
    def method(self) -> str:
        """What was tested, in a sentence."""
        return (
            f"{self.decided} tests decided together at alpha {self.alpha:g} (Holm); times and memory also need an "
            f"interval outside ±{self.threshold:.0%}, AUC a paired difference over users and seeds. To decide all "
            f"{len(self.verdicts) - len(self.called('not comparable'))} comparable measures takes {self.needed} "
            "processes a side."
        )


def as_json(c: Comparison) -> dict[str, Any]:
    """For another program."""
    whose = ("data", "split", "model", "variant", "preset")
    numbers = ("metric", "call", "reason", "failed", "base", "new", "change", "low", "high", "p", "repeats", "notes")
    rows = [{k: getattr(v.subject, k) for k in whose} | {k: getattr(v, k) for k in numbers} for v in c.verdicts]
    sides = {k: {"name": s.name, **dict(s.facts)} for k, s in (("base", c.base), ("new", c.new))}
    return {
        "exit_code": c.exit_code, "headline": c.headline, "alpha": c.alpha, "threshold": c.threshold,
        "decided": c.decided, "needed": c.needed, **sides, "verdicts": rows, "notes": list(c.notes),
    }  # fmt: skip


def markdown(c: Comparison) -> str:
    """A summary of a job, e.g. for GITHUB_STEP_SUMMARY."""
    sides = f"{inert.markdown(c.base.name)} → {inert.markdown(c.new.name)}"
    lines = [f"### ctrbench compare: {sides}", "", f"**{inert.markdown(c.headline)}**", "", c.method, ""]
    lines += ["| Verdict | Measure | Model | BASE → NEW | Change | p (Holm) | n | Why |", "|---" * 8 + "|"]
    for v in c.verdicts:
        call = f"**{v.call}**" if v.call not in ("same", "better") else v.call
        cells = (call, v.title, v.subject.text, v.values, v.moved, p_text(v), repeats_text(v), why(v))
        lines.append("| " + " | ".join([cells[0], *map(inert.markdown, cells[1:])]) + " |")
    lines += ["", *(f"- {inert.markdown(note)}" for note in c.notes)]
    moved = sorted(c.described, key=lambda d: -d.size)
    lines += ["", f"Descriptive, no test: {c.equal} values are equal, {len(moved)} differ."]
    if moved:
        lines += ["", "| Measure | Model | BASE | NEW | NEW / BASE |", "|---" * 5 + "|"]
        for d in moved[:SHOWN]:
            lines.append("| " + " | ".join(map(inert.markdown, described_cells(d))) + " |")
    return "\n".join([*lines, ""])


def described_cells(d: Described) -> tuple[str, ...]:
    """Measure, model, both values, ratio."""
    name = measure(d.metric).title + (f" ({d.scope})" if d.scope else "")
    ratio = "—" if d.ratio is None else f"{d.ratio:.3f}"
    return inert.line(name), d.subject.text, text_of(d.base, d.metric), text_of(d.new, d.metric), ratio


def p_text(v: Verdict) -> str:
    """The corrected p value, a dash where nothing was tested."""
    return "—" if v.p is None else f"{v.p:.2g}"


def repeats_text(v: Verdict) -> str:
    """`5 / 5`."""
    return "—" if v.repeats is None else " / ".join(map(str, v.repeats))


def why(v: Verdict) -> str:
    """Reason and notes."""
    return inert.line("; ".join(filter(None, (v.reason, *v.notes))))


def junit(c: Comparison, out: Path) -> Path:
    """Writes one test case a verdict: worse is a failure, what could not be decided is skipped with its reason."""
    calls = [v.call for v in c.verdicts]
    failures = sum(v.call == "worse" or v.failed for v in c.verdicts)
    skipped = calls.count("undecided") + calls.count("not comparable") - sum(v.failed for v in c.verdicts)
    suite = ElementTree.Element("testsuite", name="ctrbench compare", tests=str(len(calls)), failures=str(failures),
                                skipped=str(skipped), errors="0")  # fmt: skip
    for v, case in _cases(c, suite):
        told = f"{v.call}: {v.values}, {v.moved}, p {p_text(v)}; {why(v)}"
        kind = "failure" if v.call == "worse" or v.failed else "" if v.call in ("same", "better") else "skipped"
        if kind:
            ElementTree.SubElement(case, kind, message=told)
        else:
            ElementTree.SubElement(case, "system-out").text = told
    write_atomic(out, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
    return out


def _cases(c: Comparison, suite: ElementTree.Element) -> Iterator[tuple[Verdict, ElementTree.Element]]:
    for v in c.verdicts:
        yield v, ElementTree.SubElement(suite, "testcase", classname=v.subject.text, name=v.metric)
