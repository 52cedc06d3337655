"""Text that is not ours, made harmless: names of models, data, paths and kernels are shown, never obeyed.

HTML itself is escaped by Jinja. What is left is what escaping does not touch: characters that no one sees and that
turn the text around them, Plotly's pseudo-HTML and templates, and Markdown.
"""

from __future__ import annotations

import html
import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters other than tab and line ends, bidi controls and isolates, invisible format characters, tags, and
lone surrogates, which no file can hold. Joiners stay: scripts and emoji need them."""


def visible(text: str) -> str:
    """Unseen characters by their number: `⟨U+202E⟩` instead of a character that writes the rest backwards."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def line(text: str) -> str:
    """The same on one line: a name cannot forge a line of its own."""
    return " ".join(visible(text).split())


def plotly(text: str) -> str:
    """Text for any label of a figure: Plotly reads a subset of HTML and `$math$` in all, `%{...}` in templates."""
    return html.escape(visible(text), quote=False).replace("%{", "%&#123;").replace("$", "&#36;")


def markdown(text: str) -> str:
    """Text for a paragraph or a table's cell, one line: no HTML, link, image, code or column of its own."""
    out = re.sub(r"&(?=#?\w+;)", "&amp;", line(text))
    out = re.sub(r"<(?=[\w/!?])", "&lt;", out)
    return re.sub(r"(?<!\\)([`|]|(?<=!)\[|\](?=[(\[:]))", r"\\\1", out)
