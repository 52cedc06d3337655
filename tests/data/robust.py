"""Bad input of every kind through the command line, each case run where it stands and read as a user reads it.

    python -m tests.data.robust docs/robustness.md      (`make robustness`)

writes the page from what happens. `robust_*.py` beside it hold the cases: (what, command, maker of its files, words
that the message must have, exit code).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ctrbench.bench import registry
from ctrbench.bench.cli import main

AREAS = {
    "data": "Data files", "config": "Settings", "records": "Records and reports", "traces": "Recordings",
    "checkpoints": "Checkpoints and prepared data", "command": "Command line",
}  # fmt: skip
CACHE = "cache"
"""Of a case: what the program writes there is its own, and no input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One bad input."""

    area: str
    what: str
    command: str
    """As typed in the folder of its files."""
    make: Callable[[Path], object]
    says: str
    code: int

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "_", f"{self.area}_{self.what}").lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What happened."""

    verdict: str
    """`error`: exit 2 with a message; `note`: it went on and said so; `silent`; `crash`."""
    code: int
    message: str
    changed: tuple[str, ...]
    """Files there before that are gone or other now."""
    left: tuple[str, ...]
    """Files that were not there before, outside the cache."""


def cases() -> list[Case]:
    """All, by area."""
    out = []
    for area in AREAS:
        for what, command, make, says, code in importlib.import_module(f"tests.data.robust_{area}").CASES:
            out.append(Case(area=area, what=what, command=command, make=make, says=says, code=code))
    return out


def outcome(case: Case, folder: Path) -> Outcome:
    """Makes the files in the empty `folder`, types the command there and looks at what it said and left.

    In this process: an exception that leaves `main` is what a user would see as a traceback.
    """
    case.make(folder)
    before = dict(_files(folder))
    said, code, crashed = _typed(case.command, folder)
    after = {k: v for k, v in _files(folder) if not k.startswith(f"{CACHE}/")}
    changed = sorted(k for k, v in before.items() if not k.startswith(f"{CACHE}/") and after.get(k) != v)
    message = crashed or _message(said, case.says)
    verdict = "crash" if crashed or code not in (0, 1, 2) else "silent" if not message else \
        "error" if code else "note"  # fmt: skip
    message = message.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
    return Outcome(verdict=verdict, code=code, message=message, changed=tuple(changed),
                   left=tuple(sorted(set(after) - set(before))))  # fmt: skip


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink():
            yield file.relative_to(folder).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()


def _typed(command: str, folder: Path) -> tuple[str, int, str]:
    """All that was printed, the exit code, and the exception that came out of it."""
    printed, crashed, code, old = io.StringIO(), "", 0, Path.cwd()
    kept, models = os.environ.get("CTRBENCH_CACHE"), dict(registry._OWN)
    os.environ["CTRBENCH_CACHE"] = str(folder / CACHE)
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(shlex.split(command))
    except SystemExit as error:  # argparse: wrong options
        code = int(error.code or 0)
    except Exception as error:
        crashed = f"{type(error).__name__}: {error}"
    finally:
        os.chdir(old)
        registry._OWN.clear()  # a model file of this case is nobody else's
        registry._OWN.update(models)
        if kept is None:
            del os.environ["CTRBENCH_CACHE"]
        else:
            os.environ["CTRBENCH_CACHE"] = kept
    return printed.getvalue(), code, crashed


def _message(said: str, wanted: str) -> str:
    """The error line, else the line that has the words, else nothing."""
    lines = [line.strip().removesuffix(",") for line in said.splitlines()]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return next(iter(errors), "") or next((line for line in lines if wanted and wanted in line), "")


def page(results: list[tuple[Case, Outcome]]) -> str:
    """docs/robustness.md."""
    kinds = [o.verdict for _, o in results]
    out = [
        "# Bad input: what happens", "",
        "Made by `make robustness` from what each command did; `tests/unit/test_robustness.py` runs every row again "
        "and compares. Exit code 2: wrong input, nothing was changed and nothing half-made is left. `note`: the input "
        "is usable, and the run says what it saw.", "",
        f"{len(results)} cases: {', '.join(f'{kinds.count(k)} {k}' for k in ('error', 'note', 'silent', 'crash'))}.",
    ]  # fmt: skip
    for area, title in AREAS.items():
        out += ["", f"## {title}", "", "| input | command | exit | message | left behind |", "|---|---|---|---|---|"]
        for case, seen in results:
            if case.area == area:
                out.append("| " + " | ".join(map(_cell, (
                    case.what, f"`{case.command}`", f"{seen.code}, {seen.verdict}", seen.message, _left(seen),
                ))) + " |")  # fmt: skip
    return "\n".join(out) + "\n"


def _left(seen: Outcome) -> str:
    parts = [f"CHANGED: {', '.join(seen.changed)}"] if seen.changed else []
    if seen.left:
        shown = ", ".join(seen.left[:2]) + (f" and {len(seen.left) - 2} more" if len(seen.left) > 2 else "")
        parts.append(f"new: {shown}")
    return "; ".join(parts) or "nothing new, all as it was"


def _cell(text: str) -> str:
    return text.encode(errors="backslashreplace").decode().replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    found = []
    for one in cases():
        with tempfile.TemporaryDirectory() as place:
            found.append((one, outcome(one, Path(place).resolve())))
            print(found[-1][1].verdict, one.id, found[-1][1].message[:150], file=sys.__stderr__)
    Path(sys.argv[1]).write_text(page(found), encoding="utf-8")
