"""Evaluation batch by batch: one loop, shared out among processes, with random numbers that follow from a seed."""

__all__ = [
    "Batch",
    "RandomNumbers",
    "check_draws",
    "check_finite",
    "evaluate_in_batches",
    "evaluation_mode",
    "importance_weighted",
    "input_batches",
    "model_inputs",
    "reference_tensor",
    "stream_in_batches",
]

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Generator, Tensor, nn

from iresnet.collectives import gather, rank, world_size
from iresnet.data import Split, dequantize
from iresnet.devices import device_of
from iresnet.errors import DataError, IResNetError
from iresnet.lipschitz import hold_weights

B = TypeVar("B", bound=Sized)
R = TypeVar("R")

# -- the loop ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_in_batches(
    model: nn.Module,
    batches: Iterable[B],
    function: Callable[[B], R],
    *,
    stop: Callable[[list[R]], bool] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[R]:
    """Evaluate a function of each batch in one of the processes, without gradients and in :func:`evaluation_mode`.

    Random numbers that are drawn when a batch is made do not depend on the number of processes, since every process
    makes every batch.

    Args:
        model: whose weights ``function`` uses.
        batches: the same in all processes.
        function: from a batch to a result that can be pickled.
        stop: called with the results so far after each batch; no more are evaluated when it returns True.
        progress: called with the number of examples done after each batch.

    Returns:
        The results in the order of the batches, the same in all processes.

    Example:
        >>> evaluate_in_batches(nn.Identity(), torch.arange(5.0).split(2), lambda x: float(x.sum()))
        [1.0, 5.0, 4.0]
    """
    results: list[R] = []
    done = 0
    for batch, result in stream_in_batches(model, batches, function):
        results.append(result)
        progress(done := done + len(batch))
        if stop and stop(results):
            break
    return results


@torch.no_grad()
def stream_in_batches(model: nn.Module, batches: Iterable[B], function: Callable[[B], R]) -> Iterator[tuple[B, R]]:
    """Yield each batch with its result as soon as it is there, and keep neither; see :func:`evaluate_in_batches`.

    Example:
        >>> batches = torch.arange(5.0).split(2)
        >>> [total for _, total in stream_in_batches(nn.Identity(), batches, lambda x: float(x.sum()))]
        [1.0, 5.0, 4.0]
    """
    remaining = iter(batches)
    with evaluation_mode(model):
        while turn := list(islice(remaining, world_size())):  # one batch for each process
            mine = function(turn[rank()]) if rank() < len(turn) else None
            yield from zip(turn, gather(mine), strict=False)  # pyright: ignore[reportReturnType]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Use a model in eval mode, with normalized weights computed once; restore its modes and torch's random state.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluation_mode(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), hold_weights(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


# -- what a model is given ---------------------------------------------------------------------------------------------


def input_batches(
    model: nn.Module,
    x: Tensor,  # (N, *E)
    batch_size: int,
    *,
    levels: int | None,
    seed: int,
) -> Iterator[Tensor]:
    """Split examples into batches on the device and in the dtype of a model, with dequantization noise.

    Args:
        model: the model, which decides on device and dtype.
        x: the examples.
        batch_size: examples at a time.
        levels: values that an integer component takes; none for data that get no noise.
        seed: of the noise.
    """
    tensor, noise = reference_tensor(model), Generator().manual_seed(seed)
    for batch in x.to(tensor.device).split(batch_size):
        yield model_inputs(batch, levels, noise, tensor.dtype)


def model_inputs(x: Tensor, levels: int | None, generator: Generator, dtype: torch.dtype) -> Tensor:  # (N, *E)
    """Dequantize integer data, with noise that does not depend on the dtype, and convert them to it."""
    return x.to(dtype) if levels is None else dequantize(x, levels=levels, generator=generator).to(dtype)


def reference_tensor(model: nn.Module) -> Tensor:
    """Return a tensor with the device and the floating dtype of a model."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))


# -- noise and probes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Examples with random numbers of their own, the same in whichever process they are evaluated.

    Attributes:
        x: examples, (N, *E).
        y: their labels or contexts, where there are any.
        noise: state of the generator of dequantization noise.
        seeds: one for each set of probes.
    """

    x: Tensor
    y: Tensor | None
    noise: Tensor
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.x)


class RandomNumbers:
    """Dequantization noise and probes for batches of examples.

    They are drawn on the CPU, so that they are the same on every device. All noise draws of an example meet the same
    probes: errors of the log-determinants that these share cancel in importance weights.

    Args:
        levels: values that an integer component takes; none for data that get no noise.
        dtype: of the model's inputs.
        n_draws: K, noise draws for each example.
        seed: of noise and probes.

    Attributes:
        probes: the generator that an estimator is to draw from, seeded by :meth:`seed_probes`.
    """

    def __init__(self, levels: int | None, dtype: torch.dtype, *, n_draws: int = 1, seed: int = 0):
        self.levels, self.dtype, self.n_draws = levels, dtype, n_draws
        self.probes = Generator()
        self._noise, self._seeds = Generator().manual_seed(seed), Generator().manual_seed(seed)
        self._states = [(self._noise.get_state(), self._seeds.get_state())]

    def batch(self, examples: Split, n_probes: int = 1) -> Batch:
        """Draw the next random numbers: K noise draws of these examples, all of which meet the same L probes."""
        seeds = torch.randint(2**31, (n_probes,), generator=self._seeds).tolist()
        noise = self._noise.get_state()
        for _ in range(self.n_draws):
            model_inputs(examples.x, self.levels, self._noise, self.dtype)
        self._states.append((self._noise.get_state(), self._seeds.get_state()))
        return Batch(examples.x, examples.y, noise, seeds)

    def inputs(self, batch: Batch) -> Iterator[Tensor]:  # K times (N, *E)
        """Add each of the K noise draws of a batch to its examples."""
        noise = Generator()
        noise.set_state(batch.noise)
        for _ in range(self.n_draws):
            yield model_inputs(batch.x, self.levels, noise, self.dtype)

    def seed_probes(self, seed: int) -> None:
        """Seed :attr:`probes`, and torch's global generator for estimators that draw from that one."""
        self.probes.manual_seed(seed)
        torch.manual_seed(seed)

    def rewind(self, n_batches: int) -> None:
        """Continue with the random numbers that come after the first ``n_batches`` batches."""
        noise, seeds = self._states[n_batches]
        self._noise.set_state(noise)
        self._seeds.set_state(seeds)


def importance_weighted(log_probs: Tensor, dim: int = 0) -> Tensor:  # (K, *) -> (*)
    r"""Return the negative log-likelihood from K noise draws, :math:`-\log \frac{1}{K} \sum_k p(x + u_k)`."""
    return math.log(log_probs.shape[dim]) - log_probs.logsumexp(dim)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_draws(n_draws: int, levels: int | None) -> None:
    """Refuse fewer than one noise draw, and several draws of continuous data, which have no noise."""
    if n_draws < 1:
        raise IResNetError(f"dequantize_samples must be at least 1, got {n_draws}")
    if n_draws > 1 and levels is None:
        raise DataError(
            f"continuous data are evaluated as they are, without noise to draw: dequantize_samples must be 1, got "
            f"{n_draws}"
        )


def check_finite(values: Tensor) -> Tensor:  # (N,)
    """Return likelihoods, and refuse those that are not finite: leaving them out would falsify the mean."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise IResNetError(
            f"the likelihood of {bad} of {len(values)} examples is not finite: the model diverged or its weights are "
            "damaged; train with a smaller learning rate, or check that the data are what it was trained on"
        )
    return values
