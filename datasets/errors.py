"""What can go wrong with names, files and sources; the command line maps these to exit codes and skipped rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """A file or an option that cannot be used: `path:line: reason: field, first 40 characters`, then what to do."""


class UnknownName(LookupError):
    """A name that is not in a catalogue; the message carries the nearest valid one."""


class DataUnavailable(RuntimeError):
    """A data set that cannot be had here and now (no network and no cache); the caller records a skipped row."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: the name, the closest valid one, and all valid ones.

    >>> nearest("deepfn", ["deepfm", "din"])
    "'deepfn': did you mean 'deepfm'? Valid: deepfm, din"
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.0)
    hint = f"did you mean {close[0]!r}? Valid: {', '.join(names)}" if close else "nothing is valid here"
    return f"{name!r}: {hint}"


def is_utf8(text: str) -> bool:
    """False for half a pair of surrogates, which JSON, YAML (`"\\ud800"`) and file names can hold, and no page."""
    return text == text.encode(errors="replace").decode()
