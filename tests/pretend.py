"""A pretended accelerator: another device, whose tensors are computed on the CPU, and which is as strict as a GPU.

It refuses to mix its tensors with those of the CPU, counts every time that the host waits for it, and rounds the
factors of convolutions to TF32 wherever a GPU's cuDNN may. So what goes wrong on a GPU goes wrong on every machine.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # torch 2.10 or so

CONVOLUTIONS = ("convolution", "convolution_backward")
COPIES = ("_to_copy", "copy_", "_copy_from")
READS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "unique2", "_unique2", "item")
"""Operations whose result, or its size, the host has to know."""

waits: list[str] = []
"""Names of the operations that the host waited for, since :func:`counted_waits` began."""

_counting = False


class PretendTensor(Tensor):
    """A tensor of the device, with its values in a tensor of the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendTensor":
        geometry = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = Tensor._make_wrapper_subclass(cls, values.size(), device=torch.device(NAME, 0), **geometry)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # by which torch knows that it wraps another tensor
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> "PretendTensor":
        return PretendTensor(parts["values"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:  # torch's would copy the memory that a part of it has not
        if id(self) not in memo:
            copied = PretendTensor(self.values.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def tolist(self) -> Any:
        _note("tolist")
        return self.values.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __repr__(self) -> str:
        return f"PretendTensor({self.values!r})"


def _values(x: Any) -> Any:
    return x.values if isinstance(x, PretendTensor) else x


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, PretendTensor)]
    target = kwargs.get("device")
    if name not in COPIES:
        _refuse_mixtures(name, tensors, here)
    if kwargs.get("generator") is not None and (here or (target and torch.device(target).type == NAME)):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    _note_waits(name, args, tensors, target)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(_values, (args, kwargs))
    if name in CONVOLUTIONS and _tf32_allowed():
        args = tree_map(_rounded, args)
    out = func(*args, **kwargs)
    known = {id(x.values): x for x in here}  # operations in place return what they were given

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        on_device = bool(here) if target is None else torch.device(target).type == NAME
        return known.get(id(x)) if id(x) in known else PretendTensor(x) if on_device else x

    return tree_map(wrapped, out)


def _refuse_mixtures(name: str, tensors: list[Tensor], here: list[PretendTensor]) -> None:
    """As a GPU does: a number may stand beside its tensors, but not in a list of tensors to put together."""
    others = [x for x in tensors if not isinstance(x, PretendTensor)]
    strict = name in ("cat", "stack", "index_put_", "index_put", "where") or name.startswith("_foreach")
    if here and any(x.dim() > 0 or strict for x in others) and not (name.startswith("index") and not strict):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found {NAME}:0 and cpu")


def _note_waits(name: str, args: tuple, tensors: list[Tensor], target: Any) -> None:
    """Reading a value waits, a copy from the host's memory too, and an index by a mask, whose size is not known."""
    places = {x.device.type for x in tensors} | ({torch.device(target).type} if target else set())
    by_mask = name.startswith("index") and any(
        isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in tree_leaves(args[1:2])
    )
    if name in READS or by_mask or (name in COPIES and len(places) == 2):
        _note(name)


def _note(name: str) -> None:
    if _counting:
        waits.append(name)


# -- TF32 ------------------------------------------------------------------------------------------------------------


def _tf32_allowed() -> bool:
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def round_to_tf32(x: Tensor) -> Tensor:
    """Round to 10 bits of mantissa, to the nearest."""
    return ((x.clone().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _rounded(x: Any) -> Any:
    return round_to_tf32(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


RESIZED = ("eye", "eye.m", "arange", "arange.start", "arange.start_step", "linspace", "logspace", "randperm")
RESIZED += ("randperm.generator",)
"""Operations that torch makes of an empty tensor that is resized, as these here cannot be."""

# -- the device ------------------------------------------------------------------------------------------------------


class Module(backend_registration._DummyBackendModule if AVAILABLE else object):
    """What torch asks of a device: the types that its autocast takes, none."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []


_library: Any = None


def register() -> None:
    """Make the device known to torch, once in a process."""
    global _library
    if _library is None:
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
        _library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        _library[0].fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
        for name in RESIZED:
            operation, _, overload = name.partition(".")
            overload = getattr(getattr(torch.ops.aten, operation), overload or "default")
            run = functools.partial(lambda func, *args, **kwargs: _run(func, args, kwargs), overload)
            _library[1].impl(name, run, "PrivateUse1")


@contextlib.contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Yield a list that names what the host waits for, as it does."""
    global _counting
    waits.clear()
    _counting = True
    try:
        yield waits
    finally:
        _counting = False
