"""Folders of Criteo files that the generator makes, read and spoilt."""

from __future__ import annotations

import gzip
from pathlib import Path

from ctrbench.datasets.criteo_forms import write_form
from ctrbench.datasets.criteo_synthetic import Parameters

PARAMETERS = Parameters(rows=3000, seed=2, cap=300)


def write_folders(folder: Path) -> Path:
    """The folder with the folders x1, x4 and 1tb (three days)."""
    for form in ("x1", "x4", "1tb"):
        write_form(form, PARAMETERS, folder / form, days=3)
    return folder


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
