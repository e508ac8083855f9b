"""Values of files: checked for their type, and formatted as people read them."""

__all__ = [
    "DASH",
    "TIMES",
    "amount",
    "clipped",
    "duration",
    "estimate",
    "evenly_spaced",
    "finite",
    "interval",
    "label",
    "number",
    "percent",
    "plus_minus",
    "quantity",
    "span",
    "sublist",
    "subtree",
]

import math
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

DASH = "\N{EN DASH}"
"""Stands for what is not there."""

TIMES = " \N{MULTIPLICATION SIGN} "
"""Stands between the sides of a picture."""

_MAX_LENGTH = 300
"""Characters of a cell."""

_UNITS = ((60, 1, ("min", "s")), (3600, 60, ("h", "min")), (86400, 3600, ("d", "h")))

_LABELS = {
    "auroc": "AUROC",
    "bits_per_dim": "bits/dim",
    "ece": "expected calibration error",
    "fpr95": "FPR95",
    "grad_norm": "gradient norm",
    "half_width": "± (95 %)",
    "logdet": "log-determinant",
    "log_prior": "log prior",
    "lr": "learning rate",
    "nll": "negative log-likelihood",
    "ood": "out of distribution",
}
"""Names for keys that do not say it themselves."""


# -- checked values ----------------------------------------------------------------------------------------------------


def subtree(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the dictionary under a key, empty when there is none."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def sublist(tree: dict[str, Any], key: str) -> list[Any]:
    """Return the list under a key, empty when there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []


def finite(value: Any) -> float | None:
    """Return the value as a float if it is a finite number, else None.

    Example:
        >>> finite(3), finite("3"), finite(True), finite(float("nan"))
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def estimate(tree: Any) -> tuple[float, float] | None:
    """Return mean and half-width if the value is an estimate, else None."""
    if not isinstance(tree, dict) or not {"mean", "half_width"} <= tree.keys():
        return None
    mean, half = finite(tree["mean"]), finite(tree["half_width"])
    return None if mean is None or half is None else (mean, half)


def interval(value: Any) -> tuple[float, float] | None:
    """Return the two ends if the value is a list of two finite numbers, else None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = map(finite, value)
    return None if low is None or high is None else (low, high)


def evenly_spaced(items: Sequence[T], n: int) -> list[T]:
    """Return at most n of the items, evenly spaced, with the first and the last.

    Example:
        >>> evenly_spaced(range(9), 3)
        [0, 4, 8]
    """
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


# -- formatted values --------------------------------------------------------------------------------------------------


def label(key: Any) -> str:
    """Name a key of a file in plain words.

    Example:
        >>> label("bits_per_dim"), label("cross_entropy")
        ('bits/dim', 'cross entropy')
    """
    return _LABELS.get(str(key)) or clipped(str(key).replace("_", " "))


def clipped(text: str) -> str:
    """Put a text in one line, cut where it is too long for a cell."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 1] + "…"


def number(value: Any, digits: int = 4) -> str:
    """Format a number with so many significant digits.

    Example:
        >>> number(2.158612), number(0.0000076), number(48640), number(9321.4)
        ('2.159', '7.6e-6', '48,640', '9,321')
    """
    x = finite(value)
    if x is None:
        return DASH if value is None else "not finite"
    if x == int(x) and abs(x) < 1e15:
        return f"{int(x):,}"
    if 1e-3 <= abs(x) < 1e6:
        return f"{x:,.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def plus_minus(mean: float, half_width: float) -> str:
    """Format an estimate, with two digits of its half-width.

    Example:
        >>> plus_minus(2.428809, 0.024238), plus_minus(8.0, 0.0)
        ('2.429 ± 0.024', '8.0000 ± 0.0000')
    """
    places = _places(half_width)
    return f"{mean:,.{places}f} ± {half_width:.{places}f}"


def span(low: float, high: float) -> str:
    """Format an interval, with two digits of half its width.

    Example:
        >>> span(2.40457, 2.453047), span(0.0652, 0.2675)
        ('2.405 to 2.453', '0.07 to 0.27')
    """
    places = _places((high - low) / 2)
    return f"{low:,.{places}f} to {high:,.{places}f}"


def _places(width: float) -> int:
    """Count the decimals that show two digits of a width, 4 where it is next to nothing."""
    return min(max(0, 1 - math.floor(math.log10(width))), 7) if width > 1e-6 else 4


def percent(value: float) -> str:
    """Format a fraction as a percentage.

    Example:
        >>> percent(0.95)
        '95.0 %'
    """
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Format a time.

    Example:
        >>> duration(0.84), duration(125), duration(3780), duration(200000)
        ('0.8 s', '2 min 5 s', '1 h 3 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    large, small, names = _UNITS[(seconds >= 3600) + (seconds >= 86400)]
    return f"{int(seconds) // large} {names[0]} {int(seconds) % large // small} {names[1]}"


def amount(size: float) -> str:
    """Format a size in bytes.

    Example:
        >>> amount(324_896)
        '325 kB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def quantity(n: int, noun: str) -> str:
    """Format a count with its noun.

    Example:
        >>> quantity(1, "block"), quantity(8, "block")
        ('1 block', '8 blocks')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
