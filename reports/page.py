"""The report: one self-contained offline page, a pure function of loaded records."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ctrbench.reports import grid, inert, kernel_rows, tables
from ctrbench.reports.cells import SWEEP, Cell, tidy
from ctrbench.reports.exhibits import Context, Exhibit, Section
from ctrbench.reports.filters import Facets, facets_of, named
from ctrbench.reports.limits import Limits, cpu_name, levels, limits
from ctrbench.reports.measures import MEASURES
from ctrbench.reports.names import Names, names_of
from ctrbench.reports.records import write_atomic
from ctrbench.reports.sections import build_sections

HERE = Path(__file__).parent
INLINE_REASON = 22
"""Longest reason that is printed in a cell; longer ones become a note below the table."""
ROWS_SHOWN = 100
"""Rows of a table that are laid out at once; a button or a filter shows the others."""
LONG_HEADS = frozenset(
    {
        "Reason", "Measures", "Value", "Meaning", "Note", "Formula", "Largest blocks", "Each seed", "Each shuffle",
        "Mechanism", "Flipped by", "Term", "Claim", "Numbers", "Confidence", "Difference", "Confirmed where",
        "Refuted where",
    }
)  # fmt: skip

WORDS = {
    "Tied group": "models that share a letter are tied with each other; b,c is tied with all of b and all of c, though "
    "some of b and c may differ",
    "Paired verdict": "by the 95 % interval of the paired difference alone, without a correction for many comparisons",
}
"""What heads mean that are no measure's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that is on the page, in order."""

    lead: str
    limits: Limits
    sections: tuple[Section, ...]
    origins: pd.DataFrame
    cards: tuple[tuple[str, str, pd.DataFrame], ...]
    """(title, count of statuses, mechanisms)"""
    environment: pd.DataFrame
    lost: pd.DataFrame
    measures: pd.DataFrame
    failures: tuple[str, ...] = ()
    records: int = 0
    facets: Facets = field(default_factory=Facets)


def build_report(
    frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]], out: Path, kernels: pd.DataFrame | None = None
) -> Path:
    """Writes the page of loaded records.

    Args:
        frame: rows of `records.load`.
        bodies: record.json by key, of `records.load`.
        out: file to write; whole or not at all.
        kernels: of `kernel_rows.load`; none if not given.

    Returns:
        `out`.
    """
    write_atomic(out, render(make_report(frame, bodies, kernels)).encode())
    return out


def make_report(
    frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]], kernels: pd.DataFrame | None = None
) -> Report:
    """Everything that the page says, before any HTML."""
    rows = tidy(frame)
    names = names_of(rows, bodies)
    dead = {data for _, data, _ in tables.skipped_tracks(rows)}
    data = tuple((t, d) for t, d in tables.groups(rows) if d not in dead)
    context = Context(rows, bodies, names, data, kernel_rows.empty() if kernels is None else kernels)
    missing = tables.lost(rows, names)
    broken = missing[missing["Status"].isin(["failed", "oom", "timeout"])]
    return Report(
        lead=_lead(bodies, data),
        limits=limits(rows, bodies),
        sections=tuple(build_sections(context)),
        origins=tables.origins(rows),
        cards=_cards(bodies, names),
        environment=tables.environment(bodies),
        lost=missing,
        measures=_measures(rows),
        failures=(
            *grid.gaps(bodies),
            *(f"{r['Model']} on {r['Data']}: {r['Status']}, {r['Reason']}" for _, r in broken.iterrows()),
        ),
        records=len(bodies),
        facets=facets_of(rows, bodies, names, tables.groups(rows)),
    )


def _lead(bodies: Mapping[str, Mapping[str, Any]], data: tuple[tuple[str, str], ...]) -> str:
    where = ", ".join(f"{d} ({t})" for t, d in data) or "no data set"
    level = ", ".join(levels(bodies)) or "not stated"
    commits = dict.fromkeys(str(b.get("environment", {}).get("commit") or "")[:7] for b in bodies.values())
    of = f" Commit: {', '.join(filter(None, commits))}." if any(commits) else ""
    return (
        f"Legacy CTR models and transformer rankers on the same rows: {where}. Level: {level}. Machine: "
        f"{cpu_name(bodies)}.{of}"
    )


def _cards(bodies: Mapping[str, Mapping[str, Any]], names: Names) -> tuple[tuple[str, str, pd.DataFrame], ...]:
    """One card a model and variant, the first record that carries it."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for body in bodies.values():
        card = body.get("extra", {}).get("card")
        if card:
            spec = body.get("spec", {})
            # The points of a sweep differ in sizes alone: one card a model.
            variant = "" if spec.get("preset") == SWEEP else str(spec.get("variant", ""))
            found.setdefault((str(spec.get("model") or card["model"]), variant), card)
    out = []
    for model, variant in sorted(found, key=lambda k: names.order(*k)):
        card = found[model, variant]
        rows = [
            {h: str(r.get(h.lower(), "") or "—") for h in ("Mechanism", "Status", "Section", "Switch", "Note")}
            | {"Held by": _tests(r)}
            for r in card["rows"]
        ]
        counts = pd.Series([r["Status"] for r in rows], dtype=object).value_counts()
        words = ", ".join(f"{counts[s]} {s}" for s in ("faithful", "adapted", "unknown") if s in counts)
        out.append((names.title(model, variant), f"{card.get('paper', '')}: {words}", pd.DataFrame(rows)))
    return tuple(out)


def _tests(row: Mapping[str, Any]) -> str:
    """The tests of a mechanism without their folders; older records do not say."""
    if "tests" not in row:
        return "—"
    return ", ".join(str(test).rsplit("/", 1)[-1] for test in row["tests"]) or "unproven"


def _measures(rows: pd.DataFrame) -> pd.DataFrame:
    words = {"up": "higher", "down": "lower", "none": "descriptive"}
    found = [MEASURES[m] for m in MEASURES if m in set(rows["metric"])]
    return pd.DataFrame(
        [
            {
                "Measure": m.title,
                "Id": m.id,
                "Unit": m.unit,
                "Better": words[m.better],
                "Formula": m.words,
                "Source": m.source,
            }
            for m in found
        ]
    )


@dataclass
class _Ids:
    """Numbers tables and figures, and collects the figures' JSON."""

    facets: Facets
    figures: dict[str, Any] = field(default_factory=dict)
    tables: int = 0

    def figure(self, caption: str, fig: Any) -> dict[str, Any]:
        name = f"figure-{len(self.figures) + 1}"
        self.figures[name] = json.loads(fig.to_json(), parse_float=_drawn)
        hardware = named(self.facets.hardware, caption)
        return {"id": name, "caption": caption, "height": int(fig.layout.height), "hardware": hardware}

    def table(self, body: pd.DataFrame, name: str, caption: str = "") -> dict[str, Any]:
        self.tables += 1
        notes: dict[str, str] = {}
        heads = [_head(body, str(c), self.facets) for c in body.columns]
        columns = [str(c) for c in body.columns]
        rows = [
            (self.facets.of_row(columns, row), [_entry(e, h, notes) for e, h in zip(row, heads, strict=True)])
            for row in body.itertuples(index=False, name=None)
        ]
        slug = re.sub(r"[^a-z0-9]+", "-", f"ctrbench {name}".lower()).strip("-")
        pairs = [(mark, reason) for reason, mark in notes.items()]
        return {
            "id": f"table-{self.tables}", "name": slug, "caption": caption or name, "heads": heads,
            "rows": rows[:ROWS_SHOWN], "rest": rows[ROWS_SHOWN:], "notes": pairs,
        }  # fmt: skip


def _head(body: pd.DataFrame, column: str, facets: Facets) -> dict[str, Any]:
    """A column whose numbers all have one origin says it once, in its head."""
    cells = [c for c in body[column] if isinstance(c, Cell)]
    origins = {c.origin for c in cells if c.value is not None}
    metric = cells[0].metric if cells else ""
    return {
        "text": column,
        "numeric": bool(cells),
        "origin": origins.pop() if len(origins) == 1 else "",
        "words": MEASURES[metric].words if metric in MEASURES else WORDS.get(column, ""),
        "hardware": named(facets.hardware, column),
    }


def _entry(entry: Any, head: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any]:
    if not isinstance(entry, Cell):
        text = str(entry)
        bad = text.startswith("UNEQUAL") or text in ("failed", "oom", "timeout") or text.startswith(tables.NO_BETTER)
        css = "v-bad" if bad else "v-better" if text == "better" else "long" if head["text"] in LONG_HEADS else ""
        return {"kind": "text", "text": text, "css": css}
    if entry.value is None:
        reason = entry.reason or "no row"
        mark = "" if len(reason) <= INLINE_REASON else notes.setdefault(reason, str(len(notes) + 1))
        return {"kind": "none", "reason": reason, "mark": mark}
    repeats = f"n = {entry.n}" if entry.n else ""
    return {
        "kind": "number",
        "text": entry.text,
        "band": entry.band,
        "note": entry.note,
        "origin": entry.origin,
        "tag": "" if head["origin"] else entry.origin,
        "unstable": entry.status == "unstable",
        "title": "; ".join(t for t in (entry.reason, repeats) if t),
        "value": f"{entry.value:.12g}",
        "low": "" if entry.low is None else f"{entry.low:.12g}",
        "high": "" if entry.high is None else f"{entry.high:.12g}",
    }


def plotly_js() -> str:
    """Plotly's library without the wrapper for Node around it: a browser reads 5 MB once less before it runs them.

    Its one task is the longest of the page; without the wrapper it takes a third less (docs/log.md). Where the wrapper
    is not the one known the text stays whole.
    """
    found = re.fullmatch(
        r"(/\*\*.*?\*/).*?(\"use strict\";var Plotly=.*)\nreturn Plotly;\n\}\)\);?\s*", get_plotlyjs(), re.S
    )
    return "\n".join(found.groups()) if found else get_plotlyjs()


def render(report: Report) -> str:
    """HTML of a report. Everything that is not ours goes through Jinja's escaping, unseen characters are named."""
    ids = _Ids(report.facets)
    sections = [_section(s, ids) for s in report.sections]
    cards = [
        {"title": t, "count": n, "table": ids.table(b, f"card {t}"), "facets": _card_facets(t, report.facets)}
        for t, n, b in report.cards
    ]
    plotly, js = plotly_js(), (HERE / "page.js").read_text()
    env = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )  # fmt: skip
    return env.from_string((HERE / "page.html").read_text()).render(
        csp=policy(plotly, js),
        css=Markup((HERE / "page.css").read_text()),
        plotly=Markup(plotly),
        js=Markup(js),
        lead=report.lead,
        limits=report.limits,
        failures=report.failures,
        sections=sections,
        cards=cards,
        origins=ids.table(report.origins, "origins"),
        environment=ids.table(report.environment, "environment"),
        lost=ids.table(report.lost, "skipped"),
        measures=ids.table(report.measures, "measures"),
        records=report.records,
        filters=report.facets.options(),
        figures_json=Markup(_script_json(ids.figures)),
    )


def _section(section: Section, ids: _Ids) -> dict[str, Any]:
    exhibits = [
        {
            "group": e.group,
            "title": e.title,
            "facets": _facets(e, ids.facets),
            "note": e.note,
            "open": e.open,
            "table": ids.table(e.table, f"{section.id} {e.title}", _caption(section, e)),
            "figures": [ids.figure(caption, fig) for caption, fig in e.figures],
        }
        for e in section.exhibits
    ]
    return {
        "id": section.id,
        "title": section.title,
        "sentence": section.sentence,
        "caveat": section.caveat,
        "flags": section.flags,
        "see": section.see,
        "groups": [
            (name, f"{section.id}-{n}", list(members))
            for n, (name, members) in enumerate(groupby(exhibits, key=lambda e: e["group"]), 1)
        ],
    }


def _caption(section: Section, exhibit: Exhibit) -> str:
    return ": ".join(dict.fromkeys(t for t in (section.title, exhibit.group, exhibit.title) if t))


def _facets(exhibit: Exhibit, facets: Facets) -> dict[str, str]:
    found = {
        "model": named(facets.models, exhibit.model),
        "track": named(facets.tracks, exhibit.data),
        "hardware": named(facets.hardware, exhibit.hardware),
    }
    return {kind: name for kind, name in found.items() if name}


def _card_facets(title: str, facets: Facets) -> dict[str, str]:
    name = named(facets.models, title)
    return {"model": name} if name else {}


def _shown(value: Any) -> Any:
    """What Jinja prints of a value: text with its unseen characters named; markup is ours."""
    return inert.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment in it."""
    text = inert.visible(json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False))
    return text.replace("<", "\\u003c")


def _drawn(digits: str) -> float:
    """A number of a figure: more digits than a pixel has would be a fifth of the page; the tables keep theirs."""
    return float(f"{float(digits):.7g}")


def policy(*scripts: str) -> str:
    """Content security policy: nothing from anywhere, and only these scripts.

    Styles are allowed inline because Plotly writes them at run time; images as data, for its PNG button.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
