"""docs/reference.md is what the code declares."""

from __future__ import annotations

from pathlib import Path

from ctrbench.bench.reference_page import page

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_page_is_what_the_code_declares() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "python -m ctrbench.bench.reference_page docs/reference.md"


def test_every_kind_of_thing_is_on_it() -> None:
    text = page()
    parts = ("### `ctrbench data prepare`", "| `run.lr` | `0.001` |", "- `scaling`: ", "| `onetrans` |", "| `avazu` |",
             "| `mfu_bound` |")  # fmt: skip
    assert [part for part in parts if part not in text] == []
