"""Arrays that a record keeps beside its numbers: scores, ranks, labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctrbench.datasets.errors import BadInput

RUN_AGAIN = "delete its folder and run with run.resume=true"


def arrays(path: Path, *needed: str, remedy: str = RUN_AGAIN) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name, each finite numbers.

    Raises:
        BadInput: it is not there or damaged, lacks one that is needed, or holds something else than numbers.
    """
    try:
        with np.load(path) as stored:
            found = dict(stored)
        if absent := [n for n in needed if n not in found]:
            raise ValueError(f"{absent[0]!r} is missing")
        if odd := [n for n, a in found.items() if a.dtype.kind not in "biuf" or not np.isfinite(a).all()]:
            raise ValueError(f"{odd[0]!r} holds what is no number")
    except PermissionError as error:
        raise BadInput(f"{path}: {error.strerror}; make it readable") from None
    except Exception as error:  # tokenize, ast, zlib, lzma and struct have errors of their own for other bytes
        raise BadInput(f"{path}: damaged: {error}; {remedy}") from None
    return found
