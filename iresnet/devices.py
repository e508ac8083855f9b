"""Devices: the choice of one, tests of the autograd and tracing mode, and random states."""

__all__ = [
    "choose_device",
    "describe_device",
    "deterministic_algorithms",
    "device_of",
    "host_random_state",
    "in_a_checkpoint",
    "is_differentiating",
    "is_readable",
    "is_transforming",
    "keep_freed_memory",
    "kept_random_state",
    "random_device",
    "random_state",
    "refuse_forward_over_forward",
    "seed_all",
    "set_random_state",
]

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from iresnet.errors import IResNetError, RecipeError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Choose a device, and make it torch's current one of its type.

    Of several processes on a machine each takes the GPU of its local rank.

    Args:
        name: ``"auto"``, a GPU when there is one and else the CPU; ``"cpu"``, ``"cuda"``, or one GPU of several,
            ``"cuda:1"``.

    Returns:
        The device, of GPUs with its number.

    Raises:
        RecipeError: when there is no such device, or it has no float64, which certificates need.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(_automatic() if name == "auto" else name)
    except RuntimeError as error:
        raise RecipeError(f"--device is auto, cpu, cuda, or one GPU of several such as cuda:1, got '{name}'") from error
    if device.type == "cuda":
        device = torch.device("cuda", _gpu_number(device))
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        _check_usable(device)
    return device


def describe_device(device: torch.device) -> str:
    """Describe a device to a person, as ``NVIDIA H200 (cuda:0)`` or ``CPU (2 threads)``."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"CPU ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a model; the CPU for one without parameters and buffers."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def random_device(generator: Generator | None, like: Tensor) -> torch.device:
    """Return the device to draw random numbers on: that of the generator, whose seed then decides everywhere."""
    return generator.device if generator else like.device


def is_transforming() -> bool:
    """Return whether a transform of :mod:`torch.func` is under way, such as ``grad`` or ``vmap``.

    Example:
        >>> torch.func.vmap(lambda x: x * is_transforming())(torch.ones(2)), is_transforming()
        (tensor([1., 1.]), False)
    """
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is not None


def is_differentiating() -> bool:
    """Return whether derivatives are taken that ``torch.is_grad_enabled`` does not report.

    Those are transforms of :mod:`torch.func` and forward mode; False in compiled code.

    Example:
        >>> torch.func.jvp(lambda x: x * is_differentiating(), (torch.ones(1),), (torch.ones(1),))[0]
        tensor([1.])
    """
    return not torch.compiler.is_compiling() and (is_transforming() or forward_ad._current_level >= 0)


def refuse_forward_over_forward() -> None:
    """Refuse nested forward mode, which torch gets wrong for functions with custom derivatives.

    Raises:
        IResNetError: within ``torch.func.jvp`` inside of another.
    """
    levels = get_interpreter_stack() if is_transforming() else None
    if sum(level.key() == TransformType.Jvp for level in levels or ()) > 1:
        raise IResNetError(
            "inverses and estimated log-determinants have no second derivatives by forward mode inside forward mode "
            "(jacfwd of jacfwd); use torch.func.hessian, or the estimator Exact"
        )


def in_a_checkpoint() -> bool:
    """Return whether the caller runs in :func:`torch.utils.checkpoint.checkpoint`, with ``use_reentrant=False``.

    Example:
        >>> checkpoint(lambda x: (x, print(in_a_checkpoint()))[0], torch.ones(1), use_reentrant=False)
        True
        tensor([1.])
    """
    hooks = None if torch.compiler.is_compiling() else _top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == checkpoint.__module__


def is_readable(x: Tensor) -> bool:
    """Return whether Python may read the values of x: not on the meta device, in compiled code, or in ``vmap``.

    Example:
        >>> is_readable(torch.ones(2)), is_readable(torch.ones(2, device="meta"))
        (True, False)
    """
    if x.is_meta or torch.compiler.is_compiling():
        return False
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return False
        x = get_unwrapped(x)
    return True


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed for what is allocated next: less time for the same work on a CPU.

    glibc gives large blocks back to the system at once, and takes them anew a moment later, page by page, which takes
    as long as an elementwise operation on them. The memory in use stays at its largest instead. Other C libraries are
    left as they are.

    Reference:
        mallopt(3), Linux manual pages, https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def _automatic() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _gpu_number(device: torch.device) -> int:
    found = torch.cuda.device_count()
    if not found:
        raise RecipeError(
            f"--device {device} needs a GPU, and torch finds none on this machine; use --device cpu, or install the "
            "build of torch for its GPUs"
        )
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together and device.index is not None:
        raise RecipeError(f"each of several processes takes the GPU of its number: use --device cuda, got '{device}'")
    number = int(os.environ.get("LOCAL_RANK", "0")) if together else device.index or 0
    if number >= found:
        raise RecipeError(f"there is no cuda:{number}: torch finds {found} GPUs on this machine, from cuda:0")
    return number


def _check_usable(device: torch.device) -> None:
    try:
        usable = device.type != "meta" and float(torch.ones(1, dtype=torch.float64, device=device)) == 1
    except (RuntimeError, TypeError, NotImplementedError, AssertionError):
        usable = False
    if not usable:
        raise RecipeError(f"--device {device} is not here, or lacks float64, which certificates need: use --device cpu")


# -- random states -----------------------------------------------------------------------------------------------------


State = dict[str, Any]


def seed_all(seed: int) -> None:
    """Seed torch's generators on all devices, Python's and NumPy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one, which others may use)


def random_state() -> State:
    """Return the states of all generators that are in use, as tensors and plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    numpy = (name, torch.from_numpy(np.asarray(keys, np.int64)), *(value for value in rest))
    return {"cpu": torch.get_rng_state(), **cuda, "python": random.getstate(), "numpy": numpy}


def host_random_state() -> tuple[Any, ...]:
    """Return what tells whether random numbers were drawn on the host, by comparison."""
    state = random_state()
    name, keys, *rest = state["numpy"]
    return bytes(state["cpu"].numpy()), state["python"], name, bytes(keys.numpy()), *rest


def set_random_state(state: State) -> None:
    """Restore states from :func:`random_state`, those of devices that are missing excepted."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the states of all generators at the end of the context."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Restrict torch to algorithms that give the same bits each time on the same device.

    Args:
        wanted: whether to do so; an operation without such an algorithm then raises a RuntimeError.

    Example:
        >>> with deterministic_algorithms(True):
        ...     torch.are_deterministic_algorithms_enabled()
        True
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a setting that type checkers do not see
    filled = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing here reads memory that it did not write
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
