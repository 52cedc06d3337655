"""Names of an Nsight Systems export: ids of its table StringIds as indices into one list of distinct strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ctrbench.bench.trace.columns import NO_NAME, UNNAMED, Ints
from ctrbench.bench.trace.sqlite_tables import Tables

_VERSION = re.compile(r"_v\d+$")


class Strings:
    """The distinct strings of a file, the first one for names that it lacks.

    Args:
        tables: of the file; without StringIds every id is unknown.
    """

    def __init__(self, tables: Tables) -> None:
        self._codes: dict[str, int] = {NO_NAME: UNNAMED}
        known = dict(tables.texts("StringIds", "id", "value"))
        self._ids = np.array(sorted(known), np.int64)
        self._code_of_id = np.array([self.add(known[i]) for i in self._ids.tolist()], np.int64)

    def add(self, text: str) -> int:
        """Index of this text, a new one if it is new."""
        return self._codes.setdefault(text, len(self._codes))

    @property
    def values(self) -> list[str]:
        """All strings by index."""
        return list(self._codes)

    def codes(self, ids: Ints) -> Ints:
        """Indices of these ids, `UNNAMED` for an id that the table lacks."""
        if not len(self._ids):
            return np.full(len(ids), UNNAMED, np.int64)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[at] == ids, self._code_of_id[at], UNNAMED)

    def first_known(self, columns: Sequence[Ints]) -> Ints:
        """Per row the name of the first column whose id has one."""
        out = self.codes(columns[0])
        for column in columns[1:]:
            if (out == UNNAMED).any():
                out = np.where(out == UNNAMED, self.codes(column), out)
        return out

    def named(self, keys: Ints, texts: Mapping[int, str]) -> Ints:
        """Per row the index of the text of its key."""
        out = np.full(len(keys), UNNAMED, np.int64)
        for key, text in texts.items():
            out[keys == key] = self.add(text)
        return out

    def api_names(self, ids: Ints) -> Ints:
        """Names of API calls without their version (`_v3020`, `_v2`)."""
        codes = self.codes(ids)
        values = self.values
        for code in np.unique(codes).tolist():
            plain = self.add(_VERSION.sub("", values[code]))
            if plain != code:
                codes[codes == code] = plain
        return codes
