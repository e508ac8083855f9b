"""Read pickled arrays without running what a pickle asks to run."""

__all__ = ["unpickle_arrays"]

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np


def unpickle_arrays(content: bytes) -> Any:
    """Read a pickle of containers, numbers, strings, bytes and NumPy arrays.

    A pickle is a program. Here every function that it names, other than those that rebuild an array,
    is refused before it is called. Strings of Python 2 become bytes.

    Args:
        content: the pickle.

    Returns:
        What was pickled.

    Raises:
        pickle.UnpicklingError: it names anything else, or is damaged; damage can raise other errors too.

    Example:
        >>> unpickle_arrays(pickle.dumps({b"labels": [3, 1]}))
        {b'labels': [3, 1]}
        >>> unpickle_arrays(pickle.dumps(print))
        Traceback (most recent call last):
        _pickle.UnpicklingError: refused to run builtins.print, which array data has no need of
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"refused to run {name}, which array data has no need of") from None


def _dtype(spec: str | bytes, align: int = 0, copy: int = 0) -> np.dtype:
    """Build a type as NumPy pickles it; old pickles give its flags as integers, at which NumPy now warns."""
    name = spec.decode("ascii") if isinstance(spec, bytes) else spec
    if not isinstance(name, str) or not name.strip("<>|=").isalnum() or np.dtype(name).hasobject:
        raise pickle.UnpicklingError(f"refused the array type {spec!r}")
    return np.dtype(name, bool(align), bool(copy))


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 stores bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused the codec {encoding!r}")
    return text.encode("latin1")


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}
