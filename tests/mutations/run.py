"""Plants each mistake of `planted` in a copy of the sources and runs its tests there: every one must fail.

    python tests/mutations/run.py [MODEL ...]

Prints the test that caught each; exit code 1 if any mistake went unseen, or the tests fail without one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.mutations.planted import PLANTED, Mistake  # noqa: E402

COPIED = ("bench", "datasets", "kernels", "legacy_baselines", "models", "reports", "tests", "pyproject.toml", ".typing")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def sources(folder: Path) -> None:
    """Copies what the tests need; the package of the copy is that of its own folders."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def failing(folder: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    """(the first test that fails, empty if none; what pytest said last)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    env = os.environ | {"PYTHONPATH": str(folder / ".typing"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "", ""
    found = _FAILED.search(done.stdout)
    return found.group(1) if found else f"exit code {done.returncode}", (done.stdout + done.stderr)[-2000:]


def planted(folder: Path, mistake: Mistake) -> str:
    """Plants a mistake, runs its tests, takes it out; the first test that fails.

    Raises:
        ValueError: the place is not found exactly once.
    """
    file = folder / mistake.file
    text = file.read_text()
    if text.count(mistake.old) != 1:
        raise ValueError(f"{mistake.file}: {mistake.old!r} occurs {text.count(mistake.old)} times, not once")
    file.write_text(text.replace(mistake.old, mistake.new))
    try:
        return failing(folder, mistake.tests)[0]
    finally:
        file.write_text(text)


def main(models: list[str]) -> int:
    console = Console(highlight=False)
    chosen = [m for m in PLANTED if not models or m.model in models]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources(folder)
        clean, said = failing(folder, tuple(dict.fromkeys(test for m in chosen for test in m.tests)))
        if clean:
            console.print(f"{clean} fails without any mistake:\n{said}", markup=False)
            return 1
        for number, mistake in enumerate(chosen, start=1):
            caught = planted(folder, mistake)
            missed += not caught
            told = f"caught by {caught}" if caught else "NOT SEEN"
            console.print(
                f"[{number}/{len(chosen)}] {mistake.model}, {mistake.what}: {told}", markup=False, soft_wrap=True
            )
    console.print(f"{len(chosen) - missed} of {len(chosen)} planted mistakes are caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
