"""The terms of a data set are shown before its first use: once a data set, as long as they do not change."""

from __future__ import annotations

import sys

from ctrbench.datasets.spec import DataSpec, cache_dir


def show_once(spec: DataSpec) -> None:
    """Prints the terms of others' rows on stderr; a file in the cache keeps what was shown."""
    if spec.own:
        return
    shown = cache_dir() / "terms" / spec.name
    if shown.is_file() and shown.read_text(encoding="utf-8") == spec.terms:
        return
    print(f"terms of {spec.name}: {spec.terms}", file=sys.stderr)
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.write_text(spec.terms, encoding="utf-8")
