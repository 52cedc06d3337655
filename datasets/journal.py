"""Finished steps of a preparation, so that one that was killed goes on where it stopped.

A step's line is written after its files, so what a killed step left is nobody's and is removed. Files are held to the
sizes that their lines name; where one differs (power was lost, someone looked after the folder) nothing is trusted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = ".journal.jsonl"


class Journal:
    """Steps in the order they were finished, and the files that they left.

    Args:
        folder: of the files; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._steps: dict[str, Mapping[str, Any]] = {}
        self._files: dict[str, int] = {}
        self._load()
        self._out = (folder / NAME).open("a", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._steps)

    def done(self, step: str) -> Mapping[str, Any] | None:
        """What a finished step noted; None if it is still to do."""
        return self._steps.get(step)

    def under(self, prefix: str) -> list[Mapping[str, Any]]:
        """Notes of the finished steps whose names begin so, in order."""
        return [body for step, body in self._steps.items() if step.startswith(prefix)]

    def finish(
        self, step: str, body: Mapping[str, Any], files: Iterable[Path] = (), spent: Iterable[Path] = ()
    ) -> None:
        """Notes a step as finished, then removes what nobody needs any more.

        Args:
            step: its name; a step may be finished again, and its last note counts.
            body: JSON that whoever goes on needs.
            files: whole files of this step.
            spent: files of earlier steps that are done with.
        """
        spent = list(spent)
        names = {self._name(f): f.stat().st_size for f in files}
        gone = [self._name(f) for f in spent]
        self._out.write(json.dumps({"step": step, "body": body, "files": names, "spent": gone}) + "\n")
        self._out.flush()
        self._take(step, body, names, gone)
        for file in spent:
            file.unlink()

    def close(self) -> None:
        """Ends the writing; the journal stays."""
        self._out.close()

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _take(self, step: str, body: Mapping[str, Any], files: Mapping[str, int], spent: Iterable[str]) -> None:
        self._steps.pop(step, None)  # again: it moves to the end
        self._steps[step] = body
        self._files |= files
        for name in spent:
            self._files.pop(name, None)

    def _load(self) -> None:
        lines = list(_whole_lines(self.folder / NAME))
        for line in lines:
            self._take(line["step"], line["body"], line["files"], line["spent"])
        if any(_size(self.folder / name) != size for name, size in self._files.items()):
            self._steps, self._files, lines = {}, {}, []
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = self._name(path)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif not path.is_dir() and name not in self._files and name != NAME:
                path.unlink()
        partial = self.folder / f"{NAME}.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        partial.replace(self.folder / NAME)


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Lines up to the first that is not whole."""
    if not file.is_file():
        return
    for text in file.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
            yield {key: line[key] for key in ("step", "body", "files", "spent")}
        except (ValueError, KeyError, TypeError, RecursionError):
            return


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


@contextmanager
def alone(locks: Path, target: Path) -> Iterator[None]:
    """One process at a time for a target: whoever comes second waits for the first.

    Args:
        locks: folder of the lock files, which stay: a lock that is removed is none.
        target: what is being made.
    """
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:16]
    with (locks / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def discard_others(keep: Path, pattern: str) -> None:
    """Removes what other configurations left half done beside `keep`."""
    for other in keep.parent.glob(pattern):
        if other != keep:
            shutil.rmtree(other, ignore_errors=True)
