"""Text that is not ours: shown as it is, obeyed by nobody."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from ctrbench.reports.inert import markdown, plotly, visible
from ctrbench.reports.markdown import build_markdown
from ctrbench.reports.page import make_report, render

_many = runpy.run_path(str(Path(__file__).parents[1] / "data" / "synthetic_many.py"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc\u202edcb", "abc⟨U+202E⟩dcb"),
        ("\u2066a\u2069", "⟨U+2066⟩a⟨U+2069⟩"),
        ("D\u200bIN", "D⟨U+200B⟩IN"),
        ("bell\x07 \x1b[2J", "bell⟨U+0007⟩ ⟨U+001B⟩[2J"),
        ("half \ud800", "half ⟨U+D800⟩"),
        ("tag\U000e0041", "tag⟨U+E0041⟩"),
    ],
)
def test_unseen_characters_are_named(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("text", ["DCN-v2 + DIN", "ΔAUC — 10⁶ µs", "日本語 العربية", "a\tb\nc", "👩\u200d💻"])
def test_what_is_seen_stays(text: str) -> None:
    assert visible(text) == text


def test_plotly_reads_no_tag_entity_or_template() -> None:
    assert plotly("<b>&amp;%{x}$y$\u202e") == "&lt;b&gt;&amp;amp;%&#123;x}&#36;y&#36;⟨U+202E⟩"


@pytest.mark.parametrize(
    ("text", "inert"),
    [  # a table of pairs, like other tables of cases in form alone
        ("a | b", "a \\| b"),
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("p < 0.05 & q", "p < 0.05 & q"),
        ("&lt;b", "&amp;lt;b"),
        ("[x](https://a.invalid)", "[x\\](https://a.invalid)"),
        ("![i](https://b.invalid)", "!\\[i\\](https://b.invalid)"),
        ("`code`", "\\`code\\`"),
        ("two\n\n# lines", "two # lines"),
        ("0.75 [0.74, 0.76] d", "0.75 [0.74, 0.76] d"),
    ],
)
def test_markdown_has_no_markup_of_others(text: str, inert: str) -> None:
    assert markdown(text) == inert


def test_exports_of_hostile_records_hold_no_attack(tmp_path: Path) -> None:
    rows, bodies = _many["hostile_records"]()
    said = build_markdown(rows, bodies, tmp_path / "r.md").read_text(encoding="utf-8")
    page = render(make_report(rows, bodies))
    for text in (said, page[page.index("<main>") : page.index("</main>")]):
        assert "window.owned=1" in text
        assert "<script" not in text
        assert "<img" not in text
        assert not {"\u202e", "\u2066", "\x07"} & set(text)
    assert "](http" not in said.replace("\\](", "")
    figures = page[page.index('id="figures">') : page.index("</script>", page.index('id="figures">'))]
    # `meta` is what the filters compare with the tables' cells; Plotly draws it nowhere.
    drawn = re.sub(r'"meta":\{.*?\}', "", figures)
    assert "\\u003cscript" not in drawn
    assert "\u202e" not in figures
