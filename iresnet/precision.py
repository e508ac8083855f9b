"""The precision of products: float32 proper where results must be right, TF32 or bf16 where training may be fast."""

__all__ = ["PRECISIONS", "autocasts", "default_precision", "without_autocast", "use_precision"]

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

from iresnet.errors import UnknownNameError

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "tf32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""By name, the type that autocast takes for the products; none for those that run without autocast.

``float32``: convolutions and matrix products in float32 proper. ``tf32``: convolutions in TF32 on the devices that have
it (NVIDIA GPUs from Ampere on): 10 bits of mantissa in the factors, sums in float32. ``bf16`` and ``fp16``: mixed
precision by ``torch.autocast``.
"""

_chosen: ContextVar[str | None] = ContextVar("precision", default=None)  # of this thread, by use_precision


@contextmanager
def use_precision(name: str, device: torch.device | str) -> Iterator[None]:
    """Compute in this precision for the duration of the context.

    Autocast is a setting of the thread. TF32 is one of the process: while several threads ask for different precisions,
    float32 proper wins, so that nobody gets less than what was asked for. The settings of torch are put back when the
    last context ends.

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
    if torch.compiler.is_compiling():  # whoever runs compiled code has set what is of the process
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
    """Return the context of a model that was told no precision: float32 proper, unless it is in train mode.

    Args:
        training: leave torch's own settings, which are of the loop that trains. They are left under
            :func:`use_precision` and ``torch.autocast`` too.
        device: where the model is.
    """
    if training or _chosen.get() is not None or torch.compiler.is_compiling() or autocasts(device):
        return nullcontext()
    return use_precision("float32", device)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which sums and small systems run in the types of their tensors, also in compiled code."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def _autocast(name: str, device: torch.device | str) -> AbstractContextManager[Any]:
    kind, dtype = torch.device(device).type, PRECISIONS[name]
    if dtype is not None:
        return torch.autocast(kind, dtype)
    return without_autocast(torch.device(device))


def autocasts(device: torch.device) -> bool:
    """Return whether ``torch.autocast`` mixes types on that device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


# -- settings of the process -----------------------------------------------------------------------------------------

_PER_BACKEND = hasattr(torch._C, "_get_fp32_precision_getter")  # since torch 2.9


class _ProcessSettings:
    """What torch may do to the float32 products of one kind of device, while any context asks for something.

    torch has two sets of these settings: an older one (``allow_tf32``, ``set_float32_matmul_precision``) and a newer
    one for each backend (``fp32_precision``), and refuses to read the older one where they contradict each other. So
    both are set, and both are put back.

    Args:
        convolutions: backends and operations that take TF32 where it is asked for.
        others: those that never do.
    """

    def __init__(self, convolutions: tuple[tuple[str, str], ...], others: tuple[tuple[str, str], ...]):
        self.convolutions, self.others = convolutions, others
        self.lock = threading.Lock()
        self.contexts = {True: 0, False: 0}  # how many ask for TF32, and how many for float32 proper
        self.restore: Callable[[], None] | None = None

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
            if self.restore is not None:
                self.restore()
            self.restore = None
            return
        tf32 = self.contexts[False] == 0 and bool(self.convolutions)
        if not self._is_applied(tf32):
            self.restore = self.restore or _restorer((*self.convolutions, *self.others))
            self._write(tf32)

    def _is_applied(self, tf32: bool) -> bool:
        consistent = not self.convolutions or _readable(torch._C._get_cudnn_allow_tf32) == tf32
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
    # Of cuDNN torch takes its two settings for one.
    "cuda": _ProcessSettings((("cuda", "conv"), ("cuda", "rnn")), (("cuda", "matmul"),)),
}


def _restorer(keys: tuple[tuple[str, str], ...]) -> Callable[[], None]:
    """Return a function that puts back the present settings, the newer ones last: they decide."""
    found = [(write, _readable(read)) for read, write in _OLDER]
    keys = (*keys, ("cuda", "matmul"), ("mkldnn", "matmul"))  # which the older setting of matrix products moves too
    newer = [(key, _get(key)) for key in keys] if _PER_BACKEND else []

    def restore() -> None:
        for write, value in found:
            if value is not None:
                write(value)
        for key, value in newer:
            _set(key, value)

    return restore


_OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch._C._get_cublas_allow_tf32, torch._C._set_cublas_allow_tf32),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
)


def _readable(read: Callable[[], Any]) -> Any:
    """Read an older setting; None where a newer one contradicts it, which torch refuses to read."""
    try:
        return read()
    except RuntimeError:
        return None


def _get(key: tuple[str, str]) -> str:
    return torch._C._get_fp32_precision_getter(*key)  # pyright: ignore[reportAttributeAccessIssue]


def _set(key: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*key, value)  # pyright: ignore[reportAttributeAccessIssue]
