"""Plants each mistake of `planted` in a copy of the sources and runs its tests there: every one must fail.

    python tests/mutations/run.py [MODEL ...]

Prints which test caught each and how long that took; exit code 1 if any mistake went unseen, or the tests fail without
one. As many copies as cores work side by side.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.mutations.mistake import Mistake  # noqa: E402
from tests.mutations.planted import PLANTED  # noqa: E402

COPIED = ("bench", "datasets", "kernels", "legacy_baselines", "models", "reports", "tests", "pyproject.toml", ".typing")
LEFT_OUT = ("tests/property/test_lum.py::test_pre_training_learns_what_popularity_cannot",)
"""Takes longer than all others together, and no mistake needs it."""
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one planted mistake."""

    mistake: Mistake
    caught: str
    """The first test that failed; empty if none did."""
    seconds: float


def sources(folder: Path) -> None:
    """Copies what the tests need; the package of the copy is that of its own folders."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def failing(folder: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    """(the first test that fails, empty if none; what pytest said last)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider",
               "--hypothesis-profile=no_shrink", *(f"--deselect={t}" for t in LEFT_OUT), *tests]  # fmt: skip
    env = os.environ | {
        "PYTHONPATH": str(folder / ".typing"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "", ""
    found = _FAILED.search(done.stdout)
    return found.group(1) if found else f"exit code {done.returncode}", (done.stdout + done.stderr)[-2000:]


def planted(folder: Path, mistake: Mistake) -> Finding:
    """Plants a mistake, runs its tests, takes it out.

    Raises:
        ValueError: the place is not found exactly once.
    """
    file = folder / mistake.file
    text = file.read_text()
    if text.count(mistake.old) != 1:
        raise ValueError(f"{mistake.file}: {mistake.old!r} occurs {text.count(mistake.old)} times, not once")
    start = time.monotonic()
    file.write_text(text.replace(mistake.old, mistake.new))
    try:
        caught = failing(folder, mistake.tests)[0]
    finally:
        file.write_text(text)
    return Finding(mistake, caught, time.monotonic() - start)


def run(chosen: list[Mistake], folders: list[Path], console: Console) -> list[Finding]:
    """Every mistake in one of the copies, one at a time in each; in the order of `chosen`."""
    free: SimpleQueue[Path] = SimpleQueue()
    for folder in folders:
        free.put(folder)

    def one(mistake: Mistake) -> Finding:
        folder = free.get()
        try:
            return planted(folder, mistake)
        finally:
            free.put(folder)

    findings = []
    with ThreadPoolExecutor(len(folders)) as pool:
        for number, found in enumerate(pool.map(one, chosen), start=1):
            findings.append(found)
            told = found.caught or "NOT SEEN"
            console.print(
                f"[{number}/{len(chosen)}] {found.mistake.model}, {found.mistake.what}: {told}, {found.seconds:.0f} s",
                markup=False, soft_wrap=True,
            )  # fmt: skip
    return findings


def table(findings: list[Finding]) -> Table:
    """One row a mistake."""
    out = Table("Model", "Mistake", "Caught by", "s")
    for f in findings:
        out.add_row(f.mistake.model, f.mistake.what, f.caught.split("/")[-1] or "NOT SEEN", f"{f.seconds:.0f}")
    return out


def main(models: list[str]) -> int:
    console = Console(highlight=False, width=max(170, Console().width))
    known = list(dict.fromkeys(m.model for m in PLANTED))
    if unknown := [m for m in models if m not in known]:
        console.print(f"no mistakes are planted in {', '.join(unknown)}; choose of {', '.join(known)}")
        return 2
    chosen = [m for m in PLANTED if not models or m.model in models]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(i) for i in range(os.cpu_count() or 1)]
        for folder in folders:
            folder.mkdir()
            sources(folder)
        clean, said = failing(folders[0], tuple(dict.fromkeys(test for m in chosen for test in m.tests)))
        if clean:
            console.print(f"{clean} fails without any mistake:\n{said}", markup=False)
            return 1
        findings = run(chosen, folders, console)
    console.print(table(findings))
    caught, minutes = sum(bool(f.caught) for f in findings), (time.monotonic() - start) / 60
    console.print(f"{caught} of {len(chosen)} planted mistakes are caught, {minutes:.1f} min")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
