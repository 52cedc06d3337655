"""Where sections with a file of their own stand among those of the table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from ctrbench.reports import sections
from ctrbench.reports.declared import modules_with
from ctrbench.reports.exhibits import Context, Section
from ctrbench.reports.names import Names

NOTHING = Context(pd.DataFrame(), {}, Names(), ())


def _named(name: str) -> Any:
    return lambda _: Section(id=name, title=name, sentence="", exhibits=()) if name else None


@pytest.mark.parametrize(
    ("own", "order"),
    [
        ([], "a b c"),
        ([("a", "new")], "a new b c"),
        ([("c", "new"), ("new", "later")], "a b c new later"),
        ([("missing", "new")], "a b c new"),
        ([("a", "")], "a b c"),
    ],
)
def test_own_sections_follow_the_one_they_name(
    monkeypatch: pytest.MonkeyPatch, own: list[tuple[str, str]], order: str
) -> None:
    modules = tuple(SimpleNamespace(AFTER=after, section=_named(name)) for after, name in own)
    monkeypatch.setattr(sections, "modules_with", lambda name: modules if name == "AFTER" else ())
    shown = sections.build_sections(NOTHING, [_named(n) for n in ("a", "", "b", "c")])
    assert " ".join(s.id for s in shown) == order


def test_nothing_shipped_has_a_file_of_its_own() -> None:
    assert modules_with("AFTER") == ()
