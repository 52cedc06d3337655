"""Small tables of a stranger, made here, and the schemas that a stranger would write for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADER = ("uid", "sku", "kind", "price", "when", "clicked", "past_sku", "past_kind", "past_buy", "past_when", "extra")
START = 1_600_000_000

SEQUENCE = """
name: shop
label: {column: clicked}
user: uid
time: {column: when}
event_times:
  - {column: past_when, separator: "|"}
fields:
  - {name: user, column: uid, kind: categorical, role: user}
  - {name: item, column: sku, kind: categorical, role: item, min_count: 2}
  - {name: category, column: kind, kind: categorical, role: item}
  - {name: price, kind: dense, role: item}
  - {name: hist_item, column: past_sku, kind: sequence, target: item, separator: "|", max_length: 6}
  - {name: hist_category, column: past_kind, kind: sequence, target: category, separator: "|", max_length: 6}
  - {name: hist_action, column: past_buy, kind: sequence, values: [0, 1], separator: "|", max_length: 6}
"""
"""Oldest item first; `hist_action` is what models and floors take for disliked (0) and liked (1)."""

TABULAR = """
name: loans
delimiter: ";"
label: {column: paid, positive: [yes please], negative: [no]}
split: {rule: file_order}
fields:
  - {name: age, kind: dense, transform: standard}
  - {name: sum, kind: dense}
  - {name: city, kind: categorical, min_count: 2}
  - {name: job, kind: categorical}
"""


def sequence_rows(rows: int = 600, seed: int = 0) -> list[list[str]]:
    """Cells of `HEADER`; times unsorted with ties, histories of 0-8 items, some not earlier than their row."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(rows):
        time, n = START + int(rng.integers(0, rows)), int(rng.integers(0, 9))
        past = np.sort(time - rng.integers(-5, 1000, n))
        lists = [
            [f"s{i}" for i in rng.integers(0, 30, n)], [f"k{i}" for i in rng.integers(0, 4, n)],
            [str(i) for i in rng.integers(0, 2, n)], [str(t) for t in past],
        ]  # fmt: skip
        price = "" if rng.random() < 0.1 else f"{rng.random() * 10:.2f}"
        plain = [f"u{rng.integers(0, 40)}", f"s{rng.integers(0, 30)}", f"k{rng.integers(0, 4)}", price, str(time)]
        out.append([*plain, str(int(rng.random() < 0.4)), *("|".join(items) for items in lists), "x"])
    return out


def tabular_rows(rows: int = 600, seed: int = 0) -> list[list[str]]:
    """Cells of age, sum, city, job, paid; cities hold the delimiter, so that they need quotes."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(rows):
        age = "" if rng.random() < 0.2 else str(int(rng.integers(18, 90)))
        paid = "yes please" if rng.random() < 0.5 else "no"
        city = f"Bern; {'North' if rng.random() < 0.5 else 'South'} {rng.integers(0, 5)}"
        out.append([age, f"{rng.normal():.4f}", city, f"job {rng.integers(0, 9)}", paid])
    return out


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    """Lines with quotes where a cell holds the delimiter or a quote."""

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if delimiter in text or '"' in text else text

    return "".join(delimiter.join(map(cell, row)) + "\n" for row in [header, *rows])


def shop(folder: Path, rows: int = 600, schema: str = SEQUENCE) -> tuple[Path, Path]:
    """Table and schema of the sequence track."""
    table, file = folder / "shop.csv", folder / "shop.yaml"
    table.write_text(csv_text(HEADER, sequence_rows(rows)))
    file.write_text(schema)
    return table, file


def loans(folder: Path, rows: int = 600, schema: str = TABULAR) -> tuple[Path, Path]:
    """Table and schema of the tabular track."""
    table, file = folder / "loans.csv", folder / "loans.yaml"
    table.write_text(csv_text(("age", "sum", "city", "job", "paid"), tabular_rows(rows), ";"))
    file.write_text(schema)
    return table, file
