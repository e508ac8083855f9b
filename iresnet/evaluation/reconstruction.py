"""Reconstruction: errors of data -> latent -> data, and of each solver with a limited number of steps."""

__all__ = [
    "BUDGETS",
    "Reconstruction",
    "RoundTrip",
    "evaluations_to",
    "reconstruction",
    "solver_errors",
]

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iresnet.bijections import Bijection
from iresnet.data import Split
from iresnet.evaluation.batching import evaluate_in_batches, evaluation_mode, input_batches
from iresnet.inputs import value_range
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


def reconstruction(
    bijection: Bijection,
    split: Split,
    *,
    levels: int | None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Reconstruction:
    """Map every example of a split to its latent and back, and measure the difference.

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
    scale = value_range(split.x, levels)
    batches = input_batches(bijection, split.x, batch_size, levels=levels, seed=seed)

    def evaluate(x: Tensor) -> Tensor:
        return ((bijection.inverse(bijection(x)) - x).abs().flatten(1).double() / scale).cpu()

    error = torch.cat(evaluate_in_batches(bijection, batches, evaluate, progress=progress))
    return Reconstruction(float(error.max()), float(error.mean()), len(split))


# -- solvers -----------------------------------------------------------------------------------------------------------


BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 40)
"""Numbers of steps that a solver may take in each block."""

ATOL = 1e-13
"""Tolerance of the solvers, close to rounding in float64, so that the number of steps decides."""


@dataclass(frozen=True)
class RoundTrip:
    """Error and cost of data -> latent -> data with a limited number of solver steps, in float64.

    Attributes:
        max_steps: limit of the solver's steps in each block.
        evaluations: of a map g, and products with its Jacobian, for one example in one block, on average.
        largest: error of any element of any example, in units of the data's range.
        mean: error of an element.
        converged: share of the examples that converged in all blocks to the last digits.
    """

    max_steps: int
    evaluations: float
    largest: float
    mean: float
    converged: float


def solver_errors(
    bijection: Bijection,
    split: Split,
    solvers: Mapping[str, Callable[..., Solver]],
    *,
    levels: int | None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, tuple[RoundTrip, ...]]:
    """Invert examples with each solver and each of :data:`BUDGETS`, on a copy of the map in float64.

    Args:
        bijection: the map.
        split: the examples; integer ones are dequantized.
        solvers: classes by name, such as :data:`iresnet.blocks.SOLVERS`.
        levels: values that an integer component takes; the range of continuous data is taken from the split.
        batch_size: examples at a time.
        seed: of the dequantization noise.
        progress: called with the number of budgets done, of ``len(solvers) * len(BUDGETS)``.

    Returns:
        By solver, one entry for each budget, up to the first with which all examples converged.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8)).eval()
        >>> errors = solver_errors(block, Split(torch.randn(4, 2)), {"anderson": ir.Anderson}, levels=None)
        >>> errors["anderson"][-1].largest < 1e-10
        True
    """
    exact = copy.deepcopy(bijection).double()
    batches = list(input_batches(exact, split.x, batch_size, levels=levels, seed=seed))
    scale = value_range(split.x, levels)
    found: dict[str, list[RoundTrip]] = {name: [] for name in solvers}
    with evaluation_mode(exact):  # weights are normalized once for all solvers
        for i, name in enumerate(solvers):
            for j, steps in enumerate(BUDGETS):
                solver = solvers[name](atol=ATOL, rtol=0.0, max_steps=steps)
                found[name].append(_round_trip(exact, batches, solver, scale))
                progress(i * len(BUDGETS) + j + 1)
                if found[name][-1].converged == 1:
                    break
    return {name: tuple(points) for name, points in found.items()}


def evaluations_to(points: tuple[RoundTrip, ...], error: float) -> float:
    """Return the fewest evaluations after which the largest error is at most ``error``, inf if no budget was enough."""
    return min((point.evaluations for point in points if point.largest <= error), default=math.inf)


def _round_trip(bijection: Bijection, batches: list[Tensor], solver: Solver, scale: float) -> RoundTrip:
    def evaluate(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return errors, (N, D), evaluations, averaged over blocks, (N,), and whether all blocks converged, (N,)."""
        solutions: list[Solution] = []

        def report(_: nn.Module, solution: Solution) -> None:
            solutions.append(solution)

        error = (bijection.inverse(bijection(x), solver=solver, report=report) - x).abs().flatten(1).cpu()
        if not solutions:
            return error, error.new_zeros(len(x)), error.new_ones(len(x))
        evaluations = torch.stack([solution.evaluations for solution in solutions]).double().mean(0)
        return error, evaluations.cpu(), torch.stack([solution.converged for solution in solutions]).all(0).cpu()

    results = evaluate_in_batches(bijection, batches, evaluate)
    errors, evaluations, converged = (torch.cat(column).double() for column in zip(*results, strict=True))
    error = errors / scale
    return RoundTrip(
        solver.max_steps,
        float(evaluations.mean()),
        float(error.max()),
        float(error.mean()),
        float(converged.mean()),
    )
