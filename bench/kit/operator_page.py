"""The page of a record of `bench.kit.operators`: what Triton, torch and the plain twins took on a device.

python -m ctrbench.bench.kit.operator_page docs/records/operators/RECORD.json -o docs/performance/triton_h100.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrbench.bench.operator_calls import RUN, TWIN
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.records import write_atomic

Row = Mapping[str, Any]
HEAD = """# Operators on {name}

Written by `python -m ctrbench.bench.kit.operator_page` from `{record}`, which
`python -m ctrbench.bench.kit.operators` measured: medians of windows of calls by CUDA events, all ways by turns, in
milliseconds. `eager` is as a model calls them: short kernels wait for Python there. `graph` replays a CUDA graph of the
same calls: nothing waits. `triton` is what models called on CUDA then; `torch` is the fastest way by graph without
Triton, `twin` the plain definition, both eager / graph. `times` is torch (or the twin) over triton by graph, with the
95 % interval of the rounds.

{device}, driver {driver}, torch {torch}, commit `{commit}`, float32 products as TF32.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """0 written, 2 no such record."""
    parser = argparse.ArgumentParser(prog="python -m ctrbench.bench.kit.operator_page")
    parser.add_argument("record", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args(argv)
    try:
        write_atomic(given.out, page(_load(given.record), given.record.as_posix()).encode())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _load(path: Path) -> dict[str, Any]:
    again = "give a record that `python -m ctrbench.bench.kit.operators --out` wrote"
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        body["rows"], body["device"], body["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: {type(error).__name__}: {error}; {again}") from None
    return body


def page(body: Mapping[str, Any], record: str) -> str:
    """Markdown: provenance, one row a shape, type and pass, then why what is missing is."""
    device, environment = body["device"], body["environment"]
    head = HEAD.format(
        name=device["catalogue"] or device["name"], record=record, device=device["name"], driver=device["driver"],
        torch=environment["torch"], commit=environment["commit"][:12],
    )  # fmt: skip
    lines = ["| operator | shape | type | pass | twin | torch | triton, eager | triton, graph | times |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    why: Counter[str] = Counter()
    for row in body["rows"]:
        if row["error"]:
            why[row["error"]] += 1
            continue
        lines.append(_line(row))
        why.update(of["reason"] for of in row["ways"].values() if of["reason"])
    missing = [f"- {count} times: {reason}" for reason, count in sorted(_short(why).items())]
    return head + "\n" + "\n".join([*lines, "", "`-` is a figure that could not be had:", "", *missing]) + "\n"


def _line(row: Row) -> str:
    ways, run = row["ways"], row["ways"][RUN]
    others = {w: of for w, of in ways.items() if w not in (RUN, TWIN) and of["graph_ms"] is not None}
    best = min(others, key=lambda w: others[w]["graph_ms"], default="")
    rival = best or TWIN
    times = ways[rival].get("graph_over_run")
    over = f"{times[0]:.2f} [{times[1]:.2f}, {times[2]:.2f}]" if times else "-"
    cells = [
        row["operator"], row["shape"], row["dtype"], row["pass"], _both(ways[TWIN]),
        f"{best}: {_both(ways[best])}" if best else "-", _ms(run["eager_ms"]), _ms(run["graph_ms"]),
        f"{over}{'' if best or not times else ' of the twin'}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _both(way: Row) -> str:
    return f"{_ms(way['eager_ms'])} / {_ms(way['graph_ms'])}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(why: Counter[str]) -> dict[str, int]:
    """Reasons without their numbers of bytes."""
    found: Counter[str] = Counter()
    for reason, count in why.items():
        found[reason.split(". ")[0].split(", but got")[0].split(" Tried to")[0].split("Tried")[0].strip()] += count
    return dict(found)


if __name__ == "__main__":
    sys.exit(main())
