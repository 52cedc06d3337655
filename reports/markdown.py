"""The report as Markdown, for a pull request or a page of the documentation: sentences and tables, no figures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ctrbench.reports.cells import Cell
from ctrbench.reports.exhibits import Section
from ctrbench.reports.inert import markdown as inert
from ctrbench.reports.page import make_report
from ctrbench.reports.records import write_atomic
from ctrbench.reports.tables import CAPTION, plain_text


def build_markdown(
    frame: pd.DataFrame,
    bodies: Mapping[str, Mapping[str, Any]],
    out: Path,
    only: Collection[str] = (),
    kernels: pd.DataFrame | None = None,
) -> Path:
    """Writes the sections of loaded records.

    Args:
        frame: rows of `records.load`.
        bodies: record.json by key, of `records.load`.
        out: file to write; whole or not at all.
        only: ids of the sections wanted; empty takes all.
        kernels: of `kernel_rows.load`; none if not given.

    Returns:
        `out`.

    Raises:
        ValueError: the records give no section of that id.
    """
    report = make_report(frame, bodies, kernels)
    known = [s.id for s in report.sections]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"no section {unknown[0]!r}; these records give {', '.join(known)}")
    lines = [inert(report.lead), "", *(f"- {inert(text)}" for text in report.limits.cannot), ""]
    lines += [f"- **Skipped: {inert(text)}**" for text in report.limits.skipped]
    lines += [f"- **Failed: {inert(text)}**" for text in report.failures] + [""]
    for section in report.sections:
        if not only or section.id in only:
            lines += _section(section)
    if not only and len(report.lost):
        lines += ["## What is not there, or not steady", "", *_table(report.lost), ""]
    write_atomic(out, "\n".join([*lines, CAPTION, ""]).encode())
    return out


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {inert(section.title)}", "", inert(section.sentence), "")
    for flag in section.flags:
        yield f"- **{inert(flag)}**"
    if section.flags:
        yield ""
    for exhibit in section.exhibits:
        if title := ": ".join(t for t in (exhibit.group, exhibit.title) if t):
            yield from (f"**{inert(title)}**", "")
        yield from (*_table(exhibit.table), "")
        if exhibit.note:
            yield from (inert(exhibit.note), "")
    if section.caveat:
        yield from (inert(section.caveat), "")


def _table(body: pd.DataFrame) -> Iterator[str]:
    yield "| " + " | ".join(inert(str(c)) for c in body.columns) + " |"
    yield "|---" * len(body.columns) + "|"
    for row in body.itertuples(index=False, name=None):
        yield "| " + " | ".join(entry_text(entry) for entry in row) + " |"


def entry_text(entry: Any) -> str:
    """An entry of a table; a withheld number comes with its reason."""
    text = entry.text if isinstance(entry, Cell) and entry.value is None else plain_text(entry)
    return inert(text)
