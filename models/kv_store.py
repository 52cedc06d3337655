"""What serving keeps of users between requests: a store under a fixed budget of bytes that forgets the oldest first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value that knows how much memory it holds; it never changes once it is stored."""

    @property
    def nbytes(self) -> int:
        """Bytes."""
        ...


V = TypeVar("V", bound=Sized)


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What happened in a store since it was made."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    """Entries dropped for others; one replaced by its successor is none."""
    refused: int = 0
    """Entries larger than the whole budget."""


class KVStore(Generic[V]):
    """User -> value, least recently used first out.

    Values are handed out as they are and replaced whole, never changed: what a request holds stays what it was.

    Args:
        budget: bytes of all values together.

    Raises:
        ValueError: a budget that is no positive number of bytes.
    """

    def __init__(self, budget: int) -> None:
        if budget < 1:
            raise ValueError(f"budget={budget}: give the bytes that kept users may hold together, 1 or more")
        self.budget, self.nbytes = budget, 0
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._hits = self._misses = self._evictions = self._refused = 0

    def get(self, key: Hashable) -> V | None:
        """The value, now the most recently used; None where it is not kept."""
        if key not in self._entries:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: V) -> bool:
        """Keeps a value in the place of its predecessor and evicts others until it fits.

        Returns False, and keeps neither it nor its predecessor, where it is larger than the budget.
        """
        self.drop(key)
        size = value.nbytes
        if size > self.budget:
            self._refused += 1
            return False
        while self.nbytes + size > self.budget:
            _, (_, freed) = self._entries.popitem(last=False)
            self.nbytes -= freed
            self._evictions += 1
        self._entries[key] = value, size
        self.nbytes += size
        return True

    def drop(self, key: Hashable) -> None:
        """Forgets a user, if known."""
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[1]

    def __len__(self) -> int:
        """Users kept."""
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        """Whether a user is kept; no use of it."""
        return key in self._entries

    @property
    def counts(self) -> StoreCounts:
        """Hits, misses, evictions and refusals so far."""
        return StoreCounts(self._hits, self._misses, self._evictions, self._refused)

    @property
    def bytes_per_user(self) -> float:
        """Mean over the users kept; 0 where there is none."""
        return self.nbytes / len(self._entries) if self._entries else 0.0
