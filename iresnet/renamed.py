"""Old names of arguments, attributes and keys, accepted with a warning for one release."""

__all__ = ["RENAMED", "accept_old_names", "current_name", "old_attribute", "with_current_names"]

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

RENAMED = {
    "dequantise": "dequantize",
    "dequantise_samples": "dequantize_samples",
    "initialised": "initialized",
    "logdet_parts": "logdet_chunks",
    "normalisation": "normalization",
    "optimiser": "optimizer",
}
"""Old names of arguments, options and file keys, with the names that replace them."""


def accept_old_names(function: F) -> F:
    """Let a function accept arguments by their old names too.

    Example:
        >>> @accept_old_names
        ... def norm(normalization="power"):
        ...     return normalization
        >>> norm(normalisation="gram")
        'gram'
    """

    @functools.wraps(function)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        for old in RENAMED.keys() & kwargs.keys():
            warnings.warn(f"{old} is now {RENAMED[old]}", DeprecationWarning, stacklevel=2)
            kwargs[RENAMED[old]] = kwargs.pop(old)
        return function(*args, **kwargs)

    return renamed  # type: ignore[return-value]


def old_attribute(old: str, new: str) -> property:
    """Return a property that reads an attribute by its old name too.

    Example:
        >>> class Layer:
        ...     normalization = "power"
        ...     normalisation = old_attribute("normalisation", "normalization")
        >>> Layer().normalisation
        'power'
    """

    def read(self: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(read)


def with_current_names(tree: Any) -> Any:
    """Replace old keys in nested dictionaries and lists, such as those of a file written by an older release.

    Example:
        >>> with_current_names({"model": {"normalisation": "gram"}})
        {'model': {'normalization': 'gram'}}
        >>> with_current_names({"bijections.1.initialised": 1.0})
        {'bijections.1.initialized': 1.0}
    """
    if isinstance(tree, dict):
        return {current_name(key): with_current_names(value) for key, value in tree.items()}
    return [with_current_names(value) for value in tree] if isinstance(tree, list) else tree


def current_name(key: Any) -> Any:
    """Replace an old name at the end of a dotted key.

    Example:
        >>> current_name("model.normalisation")
        'model.normalization'
    """
    head, dot, last = str(key).rpartition(".")
    return f"{head}{dot}{RENAMED[last]}" if last in RENAMED else key
