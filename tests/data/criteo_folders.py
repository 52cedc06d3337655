"""Reading and spoiling folders of Criteo files that the generator made."""

from __future__ import annotations

import gzip
from pathlib import Path


def rows_of(file: Path, delimiter: str) -> list[list[str]]:
    """Cells of every line, of the header too."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [line.split(delimiter) for line in data.decode().splitlines()]


def spoil(file: Path, line: int, edit: dict[int, str] | str, delimiter: str) -> None:
    """Replaces fields of a line (1-based), or all of it."""
    rows = rows_of(file, delimiter)
    if isinstance(edit, str):
        rows[line - 1] = edit.split(delimiter)
    else:
        for place, value in edit.items():
            rows[line - 1][place] = value
    text = "".join(delimiter.join(r) + "\n" for r in rows).encode()
    file.write_bytes(gzip.compress(text, mtime=0) if file.suffix == ".gz" else text)


def copy_folder(source: Path, target: Path, *, gz: bool = False) -> Path:
    """The same files in a new folder, CSV gzipped if so wanted."""
    target.mkdir()
    for file in source.iterdir():
        if gz and file.suffix == ".csv":
            (target / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        else:
            (target / file.name).write_bytes(file.read_bytes())
    return target
