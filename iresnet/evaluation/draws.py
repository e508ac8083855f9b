"""Evaluate a split in batches that processes share out, with noise and probes drawn from one seed."""

__all__ = [
    "Drawn",
    "Draws",
    "check_draws",
    "finite",
    "importance_weighted",
    "noisy",
    "shared",
]

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Generator, Tensor

from iresnet.collectives import gather, rank, world_size
from iresnet.data import dequantize
from iresnet.errors import DataError, IResNetError
from iresnet.flows import Flow
from iresnet.series import own_lengths

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def shared(batches: Iterable[Batch], evaluate: Callable[[Batch], Result]) -> Iterator[Result]:
    """Evaluate each batch in one of the processes, and yield the results of all, in order, in every process.

    What is drawn at random when a batch is made is drawn in every process, so that it does not depend on their number.

    Args:
        batches: the same in all processes.
        evaluate: from a batch to a result that can be pickled.

    Example:
        >>> list(shared([1, 2, 3], lambda n: n**2))
        [1, 4, 9]
    """
    remaining = iter(batches)
    while turn := list(islice(remaining, world_size())):
        with own_lengths():
            mine = evaluate(turn[rank()]) if rank() < len(turn) else None
        yield from gather(mine)[: len(turn)]  # pyright: ignore[reportReturnType]


class Draws:
    """Log-densities under noise and probes that follow from one seed.

    They are drawn on the CPU, so that they are the same on every device. All noise draws of an example meet the same
    probes. What errors of the log-determinants they share cancels in importance weights.

    Args:
        flow: the density.
        levels: values that an integer component takes, none for continuous data.
        n_draws: K, noise draws for each example.
        seed: of noise and probes.

    Attributes:
        of_probes: the generator that an estimator is to draw from; those that draw from torch's global one find it
            with the same seeds.

    Raises:
        DataError: several draws of continuous data, which have no noise.
        IResNetError: fewer than one draw; at use, a log-density that is not finite.
    """

    def __init__(self, flow: Flow, levels: int | None, n_draws: int, seed: int):
        check_draws(n_draws, levels)
        parameter = next(flow.parameters(), torch.zeros(()))
        self.flow, self.levels, self.n_draws = flow, levels, n_draws
        self.device, self.dtype = parameter.device, parameter.dtype
        self.noise = Generator().manual_seed(seed)
        self.probes = Generator().manual_seed(seed)
        self.of_probes = Generator()

    def draw(self, x: Tensor, n_probes: int = 1) -> "Drawn":  # (N, *E)
        """Take the next random numbers for K noise draws of these examples, all of which meet the same L probes."""
        seeds = torch.randint(2**31, (n_probes,), generator=self.probes).tolist()
        noise = self.noise.get_state()
        for _ in range(self.n_draws):
            noisy(x, self.levels, self.noise, self.dtype)
        return Drawn(x, noise, seeds)

    def log_probs(self, drawn: "Drawn") -> Tensor:  # (K, L, N)
        """Evaluate examples with the random numbers that were taken for them."""
        noise = Generator()
        noise.set_state(drawn.noise)
        draws = (noisy(drawn.x, self.levels, noise, self.dtype) for _ in range(self.n_draws))
        return torch.stack([torch.stack([self._log_prob(y, seed) for seed in drawn.seeds]) for y in draws])

    def repeat(self, x: Tensor, n_noise: int, n_probes: int) -> Tensor:  # (N, *E) -> (R, K, L, N)
        """Evaluate R sets of K noise draws, each set with its own L probes."""
        return torch.stack([self.log_probs(self.draw(x, n_probes)) for _ in range(n_noise)])

    def state(self) -> tuple[Tensor, Tensor]:
        """How many random numbers were taken: the states of the generators."""
        return self.noise.get_state(), self.probes.get_state()

    def rewind(self, state: tuple[Tensor, Tensor]) -> None:
        """Take the random numbers that come after a state."""
        self.noise.set_state(state[0])
        self.probes.set_state(state[1])

    def _log_prob(self, y: Tensor, seed: int) -> Tensor:  # (N, *E) -> (N,)
        self.of_probes.manual_seed(seed)
        torch.manual_seed(seed)
        return finite(self.flow.log_prob(y).double().cpu())


@dataclass(frozen=True)
class Drawn:
    """Examples with the random numbers that are theirs, wherever they are evaluated.

    Attributes:
        x: examples, (N, *E).
        noise: state of the generator of noise.
        seeds: one for each set of probes.
    """

    x: Tensor
    noise: Tensor
    seeds: list[int]


def importance_weighted(log_probs: Tensor, dim: int = 0) -> Tensor:  # (K, *) -> (*)
    r"""Negative log-likelihood from K noise draws: :math:`-\log \frac{1}{K} \sum_k p(x + u_k)`."""
    return math.log(log_probs.shape[dim]) - log_probs.logsumexp(dim)


def noisy(x: Tensor, levels: int | None, generator: Generator, dtype: torch.dtype) -> Tensor:  # (N, *E)
    """Data as a model sees them, with noise that does not depend on the precision of the model."""
    return x.to(dtype) if levels is None else dequantize(x, levels=levels, generator=generator).to(dtype)


def finite(values: Tensor) -> Tensor:  # (N,)
    """Refuse likelihoods that are no numbers: their mean is none, and nothing is left out of it."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise IResNetError(
            f"the likelihood of {bad} of {len(values)} examples is not finite: the model diverged or its weights are "
            "damaged; train with a smaller learning rate, or check that the data are what it was trained on"
        )
    return values


def check_draws(n_draws: int, levels: int | None) -> None:
    """Refuse numbers of noise draws that make no sense."""
    if n_draws < 1:
        raise IResNetError(f"dequantize_samples must be at least 1, got {n_draws}")
    if n_draws > 1 and levels is None:
        raise DataError(
            f"continuous data are evaluated as they are, without noise to draw: dequantize_samples must be 1, got "
            f"{n_draws}"
        )
