"""Capture of a training step: a GPU replays all of its kernels as one graph, and the host launches none of them."""

__all__ = ["Captured", "CudaGraph", "obstacle"]

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from iresnet.config import Config, has_residual_blocks
from iresnet.devices import host_random_state
from iresnet.errors import RunWarning

Run = Callable[[Tensor, Tensor | None], Tensor]

WARM_UP = 3
"""Calls before a capture, in which libraries choose their algorithms and all state is made."""


class Graph(Protocol):
    """Recording of the work that a function gives to a device."""

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        """Run a function as it will be recorded."""
        ...

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """Record a function without running it; its result is a tensor that each replay fills."""
        ...

    def replay(self) -> None:
        """Run what was recorded, on tensors at the same addresses."""


class CudaGraph:
    """Graph of CUDA kernels.

    Reference:
        CUDA Graphs, PyTorch documentation 2025, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self):
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream()

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        """Run a function on a stream of its own, since a capture cannot use what belongs to the default one."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = run()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """Record a function, see :class:`Graph`."""
        # Other threads, such as one that writes a file, may use the device meanwhile.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            return run()

    def replay(self) -> None:
        """Run what was recorded."""
        self.graph.replay()


class Captured:
    """Function of a batch that is recorded after a few calls and then replayed; batches of other shapes run as before.

    The function must work on the device alone: it may not read values back, copy from the host, or draw random numbers
    there. Where it does, it goes on uncaptured, and a warning says why.

    Args:
        run: from examples and labels to one tensor of results, on their device.
        make_graph: records it.

    Warns:
        RunWarning: in one line, when the function cannot be captured.
    """

    def __init__(self, run: Run, make_graph: Callable[[], Graph] = CudaGraph):
        self.run, self.make_graph = run, make_graph
        self.graph: Graph | None = None
        self.calls = 0
        self.given_up = False

    def __call__(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Run the function; the result is overwritten by the next call."""
        if self.given_up or (self.calls > 0 and not self._fits(x)):
            return self.run(x, y)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(x, y)
        self.x.copy_(x)
        if y is not None and self.y is not None:
            self.y.copy_(y)
        if self.calls == WARM_UP + 1 and not self._record():
            return self.run(x, y)
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _fits(self, x: Tensor) -> bool:
        return x.shape == self.x.shape and x.dtype == self.x.dtype

    def _warm_up(self, x: Tensor, y: Tensor | None) -> Tensor:
        if self.graph is None:
            self.graph, self.x, self.y = self.make_graph(), x.clone(), None if y is None else y.clone()
        before = host_random_state()
        result = self.graph.warm_up(lambda: self.run(x, y))
        if host_random_state() != before:
            self._give_up("it draws random numbers on the host, as russian-roulette does for its length")
        return result

    def _record(self) -> bool:
        assert self.graph is not None
        try:
            self.result = self.graph.record(lambda: self.run(self.x, self.y))
        except RuntimeError as error:
            self._give_up(str(error).strip().splitlines()[0])
        return not self.given_up

    def _give_up(self, reason: str) -> None:
        self.given_up, self.graph = True, None
        warnings.warn(
            f"training steps are not captured as one graph, and launch their kernels one by one: {reason}; "
            "--train.capture never hides this line",
            RunWarning,
            stacklevel=2,
        )


def obstacle(config: Config, n_processes: int = 1) -> str | None:
    """Return why a GPU does not replay the steps of a recipe as one graph, None if it does."""
    if config.train.capture == "never":
        return "--train.capture never"
    if config.train.precision == "fp16":
        return "fp16 asks the host for the scale of its losses"
    if not has_residual_blocks(config):
        return f"{config.model['block']} blocks solve in forward, and look which samples have converged"
    return "several processes exchange gradients" if n_processes > 1 else None
