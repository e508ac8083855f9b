"""What a training step does, counted and not timed: operations, bytes, kernels and memory."""

__all__ = ["Count", "StepCounts", "count"]

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Count:
    """What some work does.

    Attributes:
        flops: operations of matrix products and convolutions, by the formulas of torch's counter.
        bytes: read and written, when every kernel reads its inputs and writes its outputs once.
        kernels: launched; views are none.
        in_use: bytes of the tensors that were made and are still in use, after each kernel.
    """

    flops: int
    bytes: int
    kernels: int
    in_use: tuple[int, ...]

    @property
    def memory(self) -> int:
        """The most bytes that the tensors made have at any time; what was there before is not among them."""
        return max(self.in_use, default=0)


def count(run: Callable[[], Any]) -> Count:
    """Do some work and count it; takes about twice its time.

    Args:
        run: the work, uncompiled.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> counted = count(lambda: a @ b)
        >>> counted.flops, counted.bytes, counted.kernels, counted.memory
        (48, 104, 1, 32)
    """
    with _Counter() as counter:
        run()
    return Count(counter.flops, counter.bytes, len(counter.in_use), tuple(counter.in_use))


class _Counter(TorchDispatchMode):
    """Sees every operation, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.flops = self.bytes = 0
        self.in_use: list[int] = []
        self._sizes: dict[int, int] = {}  # of the storages made that are in use
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=out)
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        self.bytes += sum(_size(tensor) for tensor in inputs + outputs)
        self._keep_account(inputs, outputs)
        return out

    def _keep_account(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        # An operation in place returns what was there before.
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        for storage in [tensor.untyped_storage() for tensor in outputs]:
            key = storage._cdata
            if key not in known and key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._total += storage.nbytes()
                weakref.finalize(storage, self._release, key).atexit = False
        self.in_use.append(self._total)

    def _release(self, key: int) -> None:
        self._total -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor in memory; those of an expanded one are fewer than its elements."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass(frozen=True)
class StepCounts:
    """Counts of one step on two batches, from which those on any batch follow: all of them are linear in the examples.

    Attributes:
        sizes: examples of the two batches.
        small: counted on the first.
        large: counted on the second.
    """

    sizes: tuple[int, int]
    small: Count
    large: Count

    def at(self, n: int) -> Count:
        """The count of a step on n examples.

        Exact, the memory too, when both batches met the same kernels: what is in use after each of them is linear, and
        the most of it need not be. Steps of random length (Russian roulette) are told roughly: each is one of many.
        """
        a, b = self.small, self.large
        same = len(a.in_use) == len(b.in_use)
        pairs = zip(a.in_use, b.in_use, strict=True) if same else [(a.memory, b.memory)]
        return Count(
            self._line(a.flops, b.flops, n),
            self._line(a.bytes, b.bytes, n),
            self._line(a.kernels, b.kernels, n),
            tuple(self._line(*pair, n) for pair in pairs),
        )

    def _line(self, small: int, large: int, n: int) -> int:
        first, second = self.sizes
        return small + (n - first) * max(0, large - small) // (second - first)
