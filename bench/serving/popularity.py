"""Streams of users for a cache, and how often a cache that drops the least recently used finds them.

Dims: U users, N requests
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import Prepared


def user_stream(prepared: Prepared, n: int, seed: int = 0) -> np.ndarray:
    """Users [N], int64, of impressions of the test split drawn uniformly: as popular as in the data, in no order.

    Real users come in bursts, which a cache likes: what it finds of this stream is the lower end.

    Raises:
        BadInput: the data has no users.
    """
    user_N: np.ndarray = prepared.frame("test", columns=["user_id"])["user_id"].to_numpy()
    if (user_N < 0).all():
        raise BadInput(f"{prepared.path}: {prepared.schema.name} has no users, so no cache of users; serve other data")
    return np.random.default_rng(seed).choice(user_N, n)


def zipf_stream(users: int, exponent: float, n: int, seed: int = 0) -> np.ndarray:
    """Users [N], int64, of which number k comes with probability proportional to (k + 1)^-exponent.

    Raises:
        ValueError: no user, or a negative exponent.
    """
    if users < 1 or exponent < 0:
        raise ValueError(f"users={users} must be at least 1, exponent={exponent} at least 0")
    share_U = zipf_shares(users, exponent)
    # Not `rng.zipf`: that has no end and needs an exponent above 1.
    found_N = np.searchsorted(np.cumsum(share_U), np.random.default_rng(seed).random(n), side="right")
    return np.minimum(found_N, users - 1)


def zipf_shares(users: int, exponent: float) -> np.ndarray:
    """Probability of each user, most popular first, [U]."""
    weight_U = np.arange(1, users + 1, dtype=np.float64) ** -exponent
    return weight_U / weight_U.sum()


def hit_rate(stream: Iterable[int], users: int, *, warm: int = 0) -> float:
    """Share of requests whose user is found where the last `users` different ones are kept (LRU); exact.

    Args:
        stream: user of each request; the cache is empty before the first.
        users: that the memory budget holds; 0 finds no one.
        warm: first requests that fill the cache and are not counted.

    Raises:
        ValueError: no request is counted, or a negative number of users.
    """
    if users < 0:
        raise ValueError(f"users={users}: a cache holds none or some")
    held: OrderedDict[int, None] = OrderedDict()
    hits = count = 0
    for i, user in enumerate(stream):
        found = user in held
        if found:
            held.move_to_end(user)
        else:
            held[user] = None
            if len(held) > users:
                held.popitem(last=False)
        if i >= warm:
            hits, count = hits + found, count + 1
    if not count:
        raise ValueError(f"no request after the first {warm}; give a longer stream")
    return hits / count
