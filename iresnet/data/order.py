"""Permutations that are the same on every machine, in every version of every library."""

__all__ = ["permutation"]

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def permutation(n: int, *key: int) -> np.ndarray:  # (n,) int64
    """Return a pseudo-random order of ``range(n)`` that depends on ``n`` and ``key`` alone.

    Position ``i`` gets the 64-bit hash of ``(key, i)`` and positions are sorted by their hash. No
    random generator is involved, so a data split or the order of an epoch outlives library upgrades.

    Args:
        n: how many items.
        key: integers that select the order, such as a seed and an epoch.

    Returns:
        The order, shape ``(n,)``.

    Reference:
        Fast Splittable Pseudorandom Number Generators, Steele, Lea and Flood, 2014,
        https://doi.org/10.1145/2660193.2660195 (the finalizer used as the hash).

    Example:
        >>> permutation(5, 0).tolist()
        [2, 0, 3, 1, 4]
        >>> sorted(permutation(1000, 7, 3).tolist()) == list(range(1000))
        True
    """
    state = 0
    for k in key:
        state = int(_mix(np.array([(state + _GOLDEN + int(k)) & _MASK], dtype=np.uint64))[0])
    hashes = _mix(np.uint64(state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return np.argsort(hashes, kind="stable")


def _mix(z: np.ndarray) -> np.ndarray:  # uint64, wraps modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
