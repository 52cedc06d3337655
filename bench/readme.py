"""Writes README's result table from the records of a run: no number in README is typed."""

from __future__ import annotations

import sys
from pathlib import Path

from ctrbench.reports import records
from ctrbench.reports.tables import markdown

START, END = "<!-- table:", "<!-- /table -->"


def main() -> int:
    """`python -m ctrbench.bench.readme RUN_DIR` replaces the lines between the table marks of ./README.md."""
    runs, readme = Path(sys.argv[1]), Path("README.md")
    frame, bodies = records.load(runs)
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    mark, _, tail = rest.partition("\n")
    _, _, tail = tail.partition(END)
    readme.write_text(f"{head}{START}{mark}\n{markdown(frame, bodies)}\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
