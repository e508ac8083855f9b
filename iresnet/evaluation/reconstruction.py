"""Reconstruction: how exactly a model inverts, and what each solver makes of a budget."""

__all__ = [
    "BUDGETS",
    "Reconstruction",
    "Spent",
    "evaluations_to",
    "reconstruction",
    "solver_errors",
]

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from iresnet.bijections import Bijection
from iresnet.data import Batches, Split
from iresnet.devices import device_of
from iresnet.evaluation.draws import noisy, shared
from iresnet.lipschitz import hold_weights
from iresnet.solvers import Solution, Solver


@dataclass(frozen=True)
class Reconstruction:
    """Errors of data -> latent -> data, in units of the data's range: 1 is from black to white.

    Attributes:
        largest: over all elements of all examples.
        mean: over all elements of all examples.
        n: examples.
    """

    largest: float
    mean: float
    n: int

    def __str__(self) -> str:
        return f"reconstruction error at most {self.largest:.1e}, mean {self.mean:.1e} ({self.n} examples)"


@torch.no_grad()
def reconstruction(
    bijection: Bijection,
    split: Split,
    *,
    levels: int | None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Reconstruction:
    """Invert every example of a split and measure how far it comes back from itself.

    Args:
        bijection: the map, of a flow or of a classifier's features.
        split: the examples; integer ones are dequantized.
        levels: values that an integer component takes; the range of continuous data is taken from the split.
        batch_size: examples at a time.
        seed: of the dequantization noise.
        progress: called with the number of examples done after each batch.

    Example:
        >>> import iresnet as ir
        >>> reconstruction(ir.Affine(mean=1.0, std=2.0), Split(torch.randn(10, 2)), levels=None).largest < 1e-6
        True
    """
    tensors = chain(bijection.parameters(), bijection.buffers())
    tensor = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    split = split.to(tensor.device)
    generator = torch.Generator().manual_seed(seed)
    scale = float(levels or (split.x.max() - split.x.min())) or 1.0
    batches = Batches(split, batch_size, shuffle=False, drop_last=False).epoch()
    drawn = (noisy(x, levels, generator, tensor.dtype) for x, _ in batches)
    bijection.eval()

    def evaluate(x: Tensor) -> Tensor:
        return ((bijection.inverse(bijection(x)) - x).abs().flatten(1).double() / scale).cpu()

    errors = []
    with hold_weights(bijection):
        for error in shared(drawn, evaluate):
            errors.append(error)
            progress(sum(map(len, errors)))
    error = torch.cat(errors)
    return Reconstruction(float(error.max()), float(error.mean()), len(split))


# -- solvers -----------------------------------------------------------------------------------------------------------


BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 40)
"""Steps that a solver may take in each block."""

ATOL = 1e-13
"""Solvers are to use their budgets up, until rounding stops them."""


@dataclass(frozen=True)
class Spent:
    """A round trip data -> latent -> data with a budget, in float64.

    Attributes:
        max_steps: steps that the solver was allowed in each block.
        evaluations: of a map g, and products with its Jacobian, that it spent on one example in one block, on average.
        largest: error of any element of any example, in units of the data's range.
        mean: error of an element.
        converged: share of the examples that converged in all blocks to the last digits.
    """

    max_steps: int
    evaluations: float
    largest: float
    mean: float
    converged: float


@torch.no_grad()
def solver_errors(
    bijection: Bijection,
    split: Split,
    solvers: Mapping[str, Callable[..., Solver]],
    *,
    levels: int | None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, tuple[Spent, ...]]:
    """Invert examples with each solver and each of :data:`BUDGETS`, on a copy of the map in float64.

    Args:
        bijection: the map.
        split: the examples; integer ones are dequantized.
        solvers: classes by name, such as :data:`iresnet.zoo.SOLVERS`.
        levels: values that an integer component takes; the range of continuous data is taken from the split.
        batch_size: examples at a time.
        seed: of the dequantization noise.
        progress: called with the number of budgets done: in all, as many as there are for each solver.

    Returns:
        By solver, what each budget gave, up to the first with which all examples converged.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8)).eval()
        >>> errors = solver_errors(block, Split(torch.randn(4, 2)), {"anderson": ir.Anderson}, levels=None)
        >>> errors["anderson"][-1].largest < 1e-10
        True
    """
    exact = copy.deepcopy(bijection).double().eval()
    device = device_of(exact)
    noise = torch.Generator().manual_seed(seed)
    batches = [noisy(x, levels, noise, torch.float64) for x in split.x.to(device).split(batch_size)]
    scale = float(levels or (split.x.max() - split.x.min())) or 1.0
    found: dict[str, list[Spent]] = {name: [] for name in solvers}
    with hold_weights(exact):
        for i, name in enumerate(solvers):
            for j, steps in enumerate(BUDGETS):
                solver = solvers[name](atol=ATOL, rtol=0.0, max_steps=steps)
                found[name].append(_spend(exact, batches, solver, scale))
                progress(i * len(BUDGETS) + j + 1)
                if found[name][-1].converged == 1:
                    break
    return {name: tuple(points) for name, points in found.items()}


def evaluations_to(points: tuple[Spent, ...], error: float) -> float:
    """Fewest evaluations, of the budgets that were tried, after which the largest error is at most this; else inf."""
    return min((point.evaluations for point in points if point.largest <= error), default=math.inf)


def _spend(bijection: Bijection, batches: list[Tensor], solver: Solver, scale: float) -> Spent:
    trips = list(shared(batches, lambda x: _round_trip(bijection, x, solver)))
    errors, evaluations, converged = (torch.cat(column).double() for column in zip(*trips, strict=True))
    error = errors / scale
    return Spent(
        solver.max_steps,
        float(evaluations.mean()),
        float(error.max()),
        float(error.mean()),
        float(converged.mean()),
    )


def _round_trip(bijection: Bijection, x: Tensor, solver: Solver) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the elements, (N, D), evaluations a block, (N,), and which examples converged, (N,)."""
    solutions: list[Solution] = []

    def report(_: nn.Module, solution: Solution) -> None:
        solutions.append(solution)

    error = (bijection.inverse(bijection(x), solver=solver, report=report) - x).abs().flatten(1).cpu()
    if not solutions:
        return error, error.new_zeros(len(x)), error.new_ones(len(x))
    evaluations = torch.stack([solution.evaluations for solution in solutions]).double().mean(0)
    return error, evaluations.cpu(), torch.stack([solution.converged for solution in solutions]).all(0).cpu()
