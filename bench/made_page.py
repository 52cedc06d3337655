"""The command of a page that is made from the code: one argument, the file to write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ctrbench.reports.records import write_atomic


def write_page(page: Callable[[], str], usage: str | None, arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Writes the page; exit code 2 and the usage where no file, or more than one, is named."""
    if len(arguments) != 1:
        print(usage, file=sys.stderr)
        return 2
    write_atomic(Path(arguments[0]), page().encode())
    return 0
