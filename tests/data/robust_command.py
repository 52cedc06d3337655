"""Commands that are no commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], object]


def nothing(folder: Path) -> None:
    """No file is needed."""


CASES: list[tuple[str, str, Make, str, int]] = [  # a row a case, all of one form
    ("no command", "", nothing, "required", 2),
    ("a file whose name is not UTF-8", "trace b\udcffd.sqlite", nothing, "not UTF-8", 2),
    ("a command misspelt", "reprot runs/one", nothing, "did you mean 'report'", 2),
    ("an option unknown", "list models --jsn", nothing, "--jsn", 2),
    ("nothing to list", "list", nothing, "required", 2),
    ("a list unknown", "list model", nothing, "invalid choice", 2),
    ("data that are not generated", "data generate criteo --out x", nothing, "data prepare criteo", 2),
    ("no rows", "data generate criteo_synthetic --rows 0 --out x", nothing, "rows", 2),
    ("a form unknown", "data generate criteo_synthetic --rows 100 --form x9 --out x", nothing, "x9", 2),
    ("a defect unknown", "data generate taobao_synthetic --users 5 --defect rust --out x", nothing, "rust", 2),
    ("a place that is a folder", "data generate taobao_synthetic --users 5 --out .", nothing, "is a folder", 2),
    ("a place without a name", "data generate criteo_synthetic --rows 100 --out ''", nothing, "is a folder", 2),
    ("no users", "data generate taobao_synthetic --users 0 --out x", nothing, "users", 2),
    ("generated over a file that is there", "data generate criteo_synthetic --rows 100 --out x",
     lambda f: (f / "x").write_text("mine"), "was not generated", 2),
    ("a tool unknown", "profile model=din --tool perf", nothing, "invalid choice", 2),
    ("a profile of two models", "profile model=din,fat --tool none", nothing, "one configuration", 2),
    ("a profile of no step", "profile model=din --tool none --steps 0", nothing, "--steps", 2),
    ("a data set's option unknown", "data prepare criteo --path x --option colour=red --out out", nothing, "colour", 2),
    ("a data set's option without value", "data prepare criteo --path x --option cap --out out", nothing, "cap", 2),
    ("a data set misspelt", "data prepare kriteo --path x --out out", nothing, "did you mean 'criteo'", 2),
    ("data without a path", "data prepare criteo --out out", nothing, "path", 2),
]  # fmt: skip
