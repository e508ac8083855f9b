"""A graph of operations on the CPU that is recorded and replayed as CUDA graphs are: same tensors, numbers baked in.

What reads a number from the host within a step, a learning rate or the number of a chunk, replays the recorded one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recorder(TorchDispatchMode):
    """Notes every operation, and the values that tensors had before they were changed."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # by storage: the bytes, and a copy of them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name != "aten::_local_scalar_dense", "the host waits for a number"
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(tensors(value))
        self._keep(tensors([value for name, value in kwargs.items() if "out" in name or "grad_input" in name]))
        if "native_batch_norm" in func._schema.name:  # whose schema does not say that it moves its averages
            self._keep(tensors(args[3:5]))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    def _keep(self, written: list[Tensor]) -> None:
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.before:
                view = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.before[storage._cdata] = (view, view.clone())


class Recording:
    """Graph of the operations of a function."""

    def __init__(self):
        self.n_replays = 0

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        return run()

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        random = torch.get_rng_state()
        with Recorder() as recorder:
            result = run()
        for view, copy in recorder.before.values():  # as if nothing had run
            view.copy_(copy)
        torch.set_rng_state(random)
        self.operations = recorder.operations
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.n_replays += 1
        for func, args, kwargs, out in self.operations:
            if func.is_view:
                continue
            given = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage()._cdata not in given:
                    old.copy_(new)
