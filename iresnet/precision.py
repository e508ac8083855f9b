"""Precision of products: full float32 where results must be accurate, TF32 or bf16 where training may be fast."""

__all__ = ["PRECISIONS", "autocasts", "default_precision", "without_autocast", "use_precision"]

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch

from iresnet.errors import UnknownNameError

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "tf32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precisions by name, with the type of products under autocast; None for those without autocast.

``float32``: convolutions and matrix products in full float32. ``tf32``: convolutions in TF32 on the devices that have
it (NVIDIA GPUs from Ampere on): 10 bits of mantissa in the factors, sums in float32. ``bf16`` and ``fp16``: mixed
precision by ``torch.autocast``.
"""

_chosen: ContextVar[str | None] = ContextVar("precision", default=None)  # set by use_precision in this thread


@contextmanager
def use_precision(name: str, device: torch.device | str) -> Iterator[None]:
    """Compute in this precision for the duration of the context.

    Autocast is a setting of the thread, TF32 one of the process: while several threads ask for different precisions,
    full float32 wins, so that no thread gets less precision than it asked for. The settings of torch are restored when
    the last context ends.

    Args:
        name: a key of :data:`PRECISIONS`.
        device: where the products run.

    Raises:
        UnknownNameError: lists the valid names.

    Reference:
        Numerical accuracy, PyTorch documentation 2025, https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html

    Example:
        >>> x = torch.ones(1, 3)
        >>> with use_precision("bf16", x.device):
        ...     (x @ x.mT).dtype
        torch.bfloat16
        >>> with torch.autocast("cpu", torch.bfloat16), use_precision("float32", x.device):
        ...     (x @ x.mT).dtype
        torch.float32
    """
    if name not in PRECISIONS:
        raise UnknownNameError("precision", name, PRECISIONS)
    if torch.compiler.is_compiling():  # the settings of the process are those of the caller of compiled code
        with _autocast(name, device):
            yield
        return
    token, settings = _chosen.set(name), _SETTINGS["cpu" if torch.device(device).type == "cpu" else "cuda"]
    settings.enter(name == "tf32")
    try:
        with _autocast(name, device):
            yield
    finally:
        settings.leave(name == "tf32")
        _chosen.reset(token)


def default_precision(*, training: bool, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a model for which no precision was chosen: full float32, except in train mode.

    Args:
        training: keep torch's settings, which belong to the training loop. Under :func:`use_precision` and
            ``torch.autocast`` they are kept too.
        device: the device of the model.
    """
    if training or _chosen.get() is not None or torch.compiler.is_compiling() or autocasts(device):
        return nullcontext()
    return use_precision("float32", device)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which operations run in the types of their tensors, also in compiled code."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def _autocast(name: str, device: torch.device | str) -> AbstractContextManager[Any]:
    device, dtype = torch.device(device), PRECISIONS[name]
    return without_autocast(device) if dtype is None else torch.autocast(device.type, dtype)


def autocasts(device: torch.device) -> bool:
    """Return whether ``torch.autocast`` mixes types on that device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


# -- settings of the process -----------------------------------------------------------------------------------------

_PER_BACKEND = hasattr(torch._C, "_get_fp32_precision_getter")  # since torch 2.9


class _ProcessSettings:
    """Precision of float32 products of one device type, set while any context is active and then restored.

    torch has two sets of these settings: an older one (``allow_tf32``, ``set_float32_matmul_precision``) and a newer
    one for each backend (``fp32_precision``), and refuses to read the older one where they contradict each other. So
    both are set, and both are restored.

    Args:
        convolutions: backends and operations that use TF32 on request.
        others: those that never use it.
    """

    def __init__(self, convolutions: tuple[tuple[str, str], ...], others: tuple[tuple[str, str], ...]):
        self.convolutions, self.others = convolutions, others
        self.lock = threading.Lock()
        self.contexts = {True: 0, False: 0}  # the active ones that ask for TF32, and for full float32
        self.before: list[tuple[Callable[[Any], None], Any]] | None = None

    def enter(self, tf32: bool) -> None:
        with self.lock:
            self.contexts[tf32] += 1
            self._apply()

    def leave(self, tf32: bool) -> None:
        with self.lock:
            self.contexts[tf32] -= 1
            self._apply()

    def _apply(self) -> None:
        if not any(self.contexts.values()):
            for write, value in self.before or ():
                write(value)
            self.before = None
            return
        tf32 = self.contexts[False] == 0 and bool(self.convolutions)
        if not self._is_applied(tf32):
            if self.before is None:
                self.before = _present_settings((*self.convolutions, *self.others))
            self._write(tf32)

    def _is_applied(self, tf32: bool) -> bool:
        consistent = not self.convolutions or _read_older(torch._C._get_cudnn_allow_tf32) == tf32
        if not _PER_BACKEND:
            return torch.get_float32_matmul_precision() == "highest" and consistent
        return (
            consistent
            and all((_get(key) == "tf32") == tf32 for key in self.convolutions)
            and all(_get(key) in ("ieee", "none") for key in self.others)
        )

    def _write(self, tf32: bool) -> None:
        torch.set_float32_matmul_precision("highest")
        if self.convolutions:
            torch.backends.cudnn.allow_tf32 = tf32
        for key in (*self.convolutions, *self.others) if _PER_BACKEND else ():
            _set(key, "tf32" if tf32 and key in self.convolutions else "ieee")


_SETTINGS = {
    "cpu": _ProcessSettings((), (("mkldnn", "conv"), ("mkldnn", "matmul"))),
    # torch treats the two settings of cuDNN as one.
    "cuda": _ProcessSettings((("cuda", "conv"), ("cuda", "rnn")), (("cuda", "matmul"),)),
}


def _present_settings(keys: tuple[tuple[str, str], ...]) -> list[tuple[Callable[[Any], None], Any]]:
    """Return functions that set older and newer settings, with their present values; the newer ones decide, so last."""
    older = [
        (torch._C._set_cublas_allow_tf32, _read_older(torch._C._get_cublas_allow_tf32)),
        (torch.set_float32_matmul_precision, _read_older(torch.get_float32_matmul_precision)),
        (torch._C._set_cudnn_allow_tf32, _read_older(torch._C._get_cudnn_allow_tf32)),
    ]
    keys = (*keys, ("cuda", "matmul"), ("mkldnn", "matmul"))  # the older setting of matrix products changes these too
    newer = [(partial(_set, key), _get(key)) for key in keys] if _PER_BACKEND else []
    return [(write, value) for write, value in (*older, *newer) if value is not None]


def _read_older(read: Callable[[], Any]) -> Any:
    """Read an older setting; None where a newer one contradicts it, since torch then refuses to read it."""
    try:
        return read()
    except RuntimeError:
        return None


def _get(key: tuple[str, str]) -> str:
    return torch._C._get_fp32_precision_getter(*key)  # pyright: ignore[reportAttributeAccessIssue]


def _set(key: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*key, value)  # pyright: ignore[reportAttributeAccessIssue]
