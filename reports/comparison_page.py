"""The gate's verdicts as one HTML page: no script, nothing from elsewhere, opens offline."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ctrbench.reports import inert
from ctrbench.reports.comparison import (
    Comparison,
    described_cells,
    p_text,
    repeats_text,
    why,
)
from ctrbench.reports.records import write_atomic

HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLES = {"worse": "v-bad", "not comparable": "v-bad", "better": "v-better"}


def build_comparison(c: Comparison, out: Path) -> Path:
    """Writes the page; whole or not at all."""
    write_atomic(out, render(c).encode())
    return out


def render(c: Comparison) -> str:
    """HTML; every text that is not ours goes through Jinja's escaping."""
    rows = [
        (v.call, STYLES.get(v.call, ""), v.title, v.subject.text, v.values, v.moved, p_text(v), repeats_text(v), why(v))
        for v in c.verdicts
    ]
    facts = [
        (name, *(inert.line(dict(side.facts).get(name, "—")) for side in (c.base, c.new)))
        for name in dict.fromkeys(n for side in (c.base, c.new) for n, _ in side.facts)
    ]
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return env.from_string((HERE / "comparison.html").read_text()).render(
        policy=POLICY,
        css=Markup((HERE / "page.css").read_text()),
        base=inert.line(c.base.name),
        new=inert.line(c.new.name),
        headline=c.headline,
        alarm=c.exit_code != 0,
        method=c.method,
        rows=rows,
        notes=[inert.line(n) for n in c.notes],
        facts=facts,
        described=[described_cells(d) for d in sorted(c.described, key=lambda d: -d.size)],
        equal=c.equal,
    )
