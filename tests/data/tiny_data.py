"""Small data sets in the exact public forms, made here; no real row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctrbench.datasets.criteo_synthetic import Parameters, write

GENRES = ("Drama", "Comedy", "Sci-Fi", "Children's")


def criteo_file(folder: Path, rows: int = 900, seed: int = 0) -> Path:
    """A generated Criteo TSV."""
    path = folder / "train.txt"
    write(Parameters(rows=rows, seed=seed, cap=1000), path)
    return path


def movielens_folder(folder: Path, events: list[tuple[int, int, int, int]], items: int = 30, users: int = 12) -> Path:
    """The three files of the wheel for (user, item, rating, time) events, in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    inter += [f"1m_{u}\tFilm {i} (1990)\t{r}\t{t}" for u, i, r, t in events]
    item = ["item_id:token\tmovie_title:token\trelease_year:float\tgenre:token"]
    item += [f"Film {i} (1990)\tFilm {i}\t{1990 + i % 9}\t{GENRES[i % 4]} {GENRES[(i + 1) % 4]}" for i in range(items)]
    user = ["user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token"]
    user += [f"1m_{u}\t{(18, 25, 35)[u % 3]}\t{'FM'[u % 2]}\t{u % 5}\t0{u:04d}" for u in range(1, users + 1)]
    for name, lines in (("inter", inter), ("item", item), ("user", user)):
        (folder / f"ml-1m.{name}").write_bytes("\r\n".join([*lines, ""]).encode())
    return folder


def random_events(
    seed: int, count: int = 400, items: int = 30, users: int = 12, seconds: int = 60
) -> list[tuple[int, int, int, int]]:
    """Unsorted events with many ties in time."""
    rng = np.random.default_rng(seed)
    columns = (
        rng.integers(1, users + 1, count), rng.integers(0, items, count), rng.integers(1, 6, count),
        978_300_000 + rng.integers(0, seconds, count),
    )  # fmt: skip
    return [(int(u), int(i), int(r), int(t)) for u, i, r, t in zip(*columns, strict=True)]
