"""Intervals of proportions."""

__all__ = ["wilson"]

import math


def wilson(proportion: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion that stays inside [0, 1].

    Args:
        proportion: the share of n trials that succeeded.
        n: how many trials.
        z: 1.96 for 95 %.

    Reference:
        Probable Inference, the Law of Succession, and Statistical Inference, Wilson 1927,
        https://doi.org/10.2307/2276774

    Example:
        >>> [round(end, 3) for end in wilson(0.5, 100)]
        [0.404, 0.596]
    """
    p = proportion
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)
