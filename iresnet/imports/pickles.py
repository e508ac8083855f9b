"""Pickles of torch, read without executing them: tensors, plain values, and inert objects of known classes."""

__all__ = ["Inert", "attribute", "describe", "read_pickle"]

import pickle
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor

from iresnet.errors import DataError


class _Fixed(type):
    """Class whose attributes cannot be set, which a pickle may try."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"a class of a checkpoint stays as it is, its '{name}' too")


class Inert(metaclass=_Fixed):
    """Stand-in for an object of a checkpoint: what it holds, by name, and nothing that it can do.

    Attributes:
        path: module and name of its class, in the code that wrote it.
    """

    path = ""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """Ignore the arguments: only the state of an object is read."""
        return object.__new__(cls)


def describe(value: Any) -> str:
    """Name a value of a checkpoint, in few words.

    Example:
        >>> describe({}), describe(torch.zeros(2, 3))
        ('dict', 'tensor of shape (2, 3)')
    """
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    return type(value).path if isinstance(value, Inert) else type(value).__name__


def attribute(owner: Any, name: str) -> Any:
    """Return an attribute, a parameter, a buffer or a submodule of an object of a checkpoint.

    Raises:
        DataError: when the object has none of that name.
    """
    if not isinstance(owner, Inert):
        raise DataError(f"expected an object with '{name}', got {describe(owner)}")
    state = vars(owner)
    for group in (state, *(state.get(key) for key in ("_parameters", "_buffers", "_modules"))):
        if isinstance(group, dict) and name in group:
            return group[name]
    raise DataError(f"its {describe(owner)} has no '{name}'")


# -- what a pickle may name ------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Rebuild a tensor as torch does, within its storage; whether it requires a gradient, and its hooks, go."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise DataError(f"a tensor of size {size} and stride {stride} at {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage._size():
        raise DataError(f"a tensor of size {size} that ends beyond its {storage._size()} numbers")
    return _rebuild_tensor(storage, offset, size, stride)


def _known(classes: Iterable[str]) -> dict[str, Any]:
    """Return all that a pickle may name: functions that build tensors, containers, and inert classes, made anew."""
    values: dict[str, Any] = {
        "torch._utils._rebuild_tensor": lambda *arguments: _tensor(*arguments),
        "torch._utils._rebuild_tensor_v2": lambda *arguments: _tensor(*arguments),
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": torch.Size,
        "collections.OrderedDict": OrderedDict,
        "builtins.set": set,
    }
    inert = {path: _Fixed(path.rpartition(".")[2], (Inert,), {"path": path, "__module__": "inert"}) for path in classes}
    return values | inert


def _unpickler(known: Mapping[str, Any]) -> type[pickle.Unpickler]:
    class Restricted(pickle.Unpickler):
        """Unpickler that finds nothing by itself: whatever a pickle names is in a dictionary, or refused."""

        def find_class(self, module: str, name: str) -> Any:
            path = f"{'builtins' if module == '__builtin__' else module}.{name}"
            if path not in known:
                raise _Unknown(path)
            return known[path]

    return Restricted


class _Unknown(Exception):  # noqa: N818 (told as a DataError, with the name of the file)
    """Name in a pickle that is not known."""


# -- reading ---------------------------------------------------------------------------------------------------------


def read_pickle(path: Path, classes: Iterable[str]) -> Any:
    """Read what ``torch.save`` wrote, in its zip files or those before them, and execute nothing of it.

    No class is imported, and no function called but those of torch that lay tensors into their storage. Objects become
    :class:`Inert` ones, which hold their state.

    Args:
        path: the file.
        classes: modules and names of the classes whose objects are expected, ``"torch.nn.modules.conv.Conv2d"``.

    Returns:
        Tensors on the CPU, plain values, containers, and inert objects.

    Raises:
        DataError: when there is no such file, it is damaged, or names anything else, which is told by its name.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a checkpoint that torch.save wrote")
    _refuse_archives(path)
    unpickler = _unpickler(_known(classes))
    module: Callable[..., Any] = lambda file, **options: unpickler(file, **options).load()  # noqa: E731
    pickles = SimpleNamespace(Unpickler=unpickler, load=module, __name__="pickle")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sources of classes are not here
            return torch.load(file, map_location="cpu", pickle_module=pickles, weights_only=False)
    except _Unknown as error:
        raise DataError(
            f"{path} names {error}, which is no tensor and no class of a known code: nothing of it was executed or kept"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged file leads the unpickler and torch anywhere
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path} is damaged, or was not written by torch.save: {reason}") from error


def _refuse_archives(path: Path) -> None:
    """Refuse what torch.load would pass on to other readers: archives of TorchScript, and tar files before 2017."""
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:  # no zip file, or a damaged one
        names = []
    if "constants.pkl" in names:
        raise DataError(f"{path} is a TorchScript archive, which is a program; give a checkpoint that torch.save wrote")
    if tarfile.is_tarfile(path):
        raise DataError(f"{path} is a tar file; give a checkpoint that torch.save wrote")
