"""The NVTX table of an Nsight Systems export: ranges, marks and the names of domains, categories and threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctrbench.bench.trace.columns import MISSING, UNNAMED, BadRecording, Ints, Mask
from ctrbench.bench.trace.names import DEFAULT_DOMAIN, DOMAIN
from ctrbench.bench.trace.nsys_strings import Strings
from ctrbench.bench.trace.sqlite_tables import Tables

TABLE = "NVTX_EVENTS"
CATEGORY, MARK, THREAD_NAME, PUSH_POP, START_END, DOMAIN_CREATE = 33, 34, 39, 59, 60, 75


@dataclass(frozen=True, kw_only=True)
class Nvtx:
    """Ranges in columns, and what else the table says."""

    columns: Mapping[str, Ints]
    """name, start, end, thread (the file's globalTid), domain, category, payload."""
    own: Mask
    """By range: names a part of the program."""
    ours: Mask
    """By range: of our domain."""
    facts: dict[str, Any]


def read_nvtx(tables: Tables, strings: Strings, domain: str | None) -> Nvtx | None:
    """Reads the table; None if the file has none.

    Raises:
        BadRecording: a column is missing, a range has no start or ends before it, or no range is of the domain.
    """
    if TABLE not in tables.names:
        if domain is not None:
            raise BadRecording(f"{tables.path}: --domain {domain}: the file holds no NVTX events")
        return None
    optional = ("start", "end", "textId", "domainId", "category", "endGlobalTid", "int64Value", "int32Value")
    found = tables.integers(TABLE, ("eventType", "globalTid"), optional)
    kind = found["eventType"]
    found["domainId"] = np.where(found["domainId"] == MISSING, 0, found["domainId"])
    text, has_text = _texts(tables, strings, len(kind))
    name = np.where(has_text, text, strings.codes(found["textId"]))
    ranges = np.flatnonzero((kind == PUSH_POP) | (kind == START_END))
    start, end = found["start"][ranges], found["end"][ranges]
    for wrong, what in (
        (start == MISSING, "has no start"),
        ((end < start) & (end != MISSING), "ends before it starts"),
    ):
        if wrong.any():
            row = int(ranges[np.flatnonzero(wrong)[0]]) + 1
            raise BadRecording(f"{tables.path}: table {TABLE}, row {row}: the range {what}; export it again")
    domains = _named(strings, found, name, kind == DOMAIN_CREATE)
    thread = found["globalTid"][ranges]
    of = list(zip(((thread >> 24) & 0xFFFFFF).tolist(), found["domainId"][ranges].tolist(), strict=True))
    payload = np.where(found["int64Value"] == MISSING, found["int32Value"], found["int64Value"])[ranges]
    columns = {
        "name": name[ranges], "start": start, "end": end, "thread": thread, "domain": found["domainId"][ranges],
        "category": found["category"][ranges], "payload": payload,
    }  # fmt: skip
    ours = np.array([domains.get(key) == DOMAIN for key in of], bool)
    facts = _facts(strings, found, name, has_text, domains)
    return Nvtx(columns=columns, own=_own(tables, domain, of, domains), ours=ours, facts=facts)


def _texts(tables: Tables, strings: Strings, n: int) -> tuple[Ints, Mask]:
    """(index of the text in the row itself, whether it has one)."""
    if "text" not in tables.columns(TABLE):
        return np.full(n, UNNAMED, np.int64), np.zeros(n, bool)
    codes: list[int] = []
    for rows in tables.query(f'SELECT "text" FROM "{TABLE}"'):
        codes += [UNNAMED if text is None else strings.add(str(text)) for (text,) in rows]
    found = np.array(codes, np.int64)
    return found, found != UNNAMED


def _named(strings: Strings, found: Mapping[str, Ints], name: Ints, rows: Mask) -> dict[tuple[int, int], str]:
    """(process, domain id) -> name of the domain: ids are those of one process."""
    values, at = strings.values, np.flatnonzero(rows & (name != UNNAMED))
    process, domain = (found["globalTid"][at] >> 24) & 0xFFFFFF, found["domainId"][at]
    keys = zip(process.tolist(), domain.tolist(), strict=True)
    return {key: values[code] for key, code in zip(keys, name[at].tolist(), strict=True)}


def _own(tables: Tables, domain: str | None, of: list[tuple[int, int]], domains: Mapping[tuple[int, int], str]) -> Mask:
    """Ranges of the domain asked for; if none was, of the default one and of ours."""
    known = {key: DEFAULT_DOMAIN if key[1] == 0 else domains.get(key, f"#{key[1]}") for key in set(of)}
    wanted = (DEFAULT_DOMAIN, DOMAIN) if domain is None else (domain,)
    own = np.array([known[key] in wanted for key in of], bool)
    if domain is not None and not own.any():
        held = ", ".join(sorted(set(known.values()))) or "no range at all"
        raise BadRecording(f"{tables.path}: --domain {domain}: no range of it; the file has {held}")
    return own


def _facts(
    strings: Strings, found: Mapping[str, Ints], name: Ints, has_text: Mask, domains: Mapping[tuple[int, int], str]
) -> dict[str, Any]:
    kind, values = found["eventType"], strings.values
    kinds, counts = np.unique(kind, return_counts=True)
    ranges = (kind == PUSH_POP) | (kind == START_END)
    ended = ranges & (found["endGlobalTid"] != MISSING) & (found["endGlobalTid"] != 0)
    by_id: dict[str, set[str]] = {}
    for (_, number), text in domains.items():
        by_id.setdefault(str(number), set()).add(text)
    categories = np.flatnonzero((kind == CATEGORY) & (name != UNNAMED))
    threads = np.flatnonzero((kind == THREAD_NAME) & (name != UNNAMED))
    return {
        "events": len(kind),
        "by_eventType": {str(k): int(n) for k, n in zip(kinds.tolist(), counts.tolist(), strict=True)},
        "name_in_text": int((ranges & has_text).sum()),
        "name_in_textId": int((ranges & ~has_text & (found["textId"] != MISSING)).sum()),
        "domains": {number: ", ".join(sorted(texts)) for number, texts in sorted(by_id.items())},
        "categories": sorted({values[c] for c in name[categories].tolist()}),
        "named_threads": sorted({values[c] for c in name[threads].tolist()}),
        "marks": int((kind == MARK).sum()),
        "ended_on_another_thread": int((ended & (found["endGlobalTid"] != found["globalTid"])).sum()),
    }
