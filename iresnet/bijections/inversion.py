"""The inverse of a whole bijection, with the report of every residual block."""

__all__ = ["Inversion", "invert"]

from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.bijections.base import Bijection
from iresnet.bijections.residual import ResidualBlock
from iresnet.solvers import Solution, Solver


@dataclass(frozen=True)
class Inversion:
    r"""Data that latents were mapped back to, and how far they can be trusted.

    Attributes:
        x: the data, (N, \*E).
        solutions: name and solution of every residual block, in the order in which they were solved: last block first.
    """

    x: Tensor
    solutions: tuple[tuple[str, Solution], ...]

    @property
    def converged(self) -> Tensor:  # (N,)
        """Whether a sample converged in every block."""
        converged = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        for _, solution in self.solutions:
            converged = converged & solution.converged
        return converged

    @property
    def evaluations(self) -> Tensor:  # (N,)
        """Evaluations of all maps g, and products with their Jacobians, that were spent on a sample."""
        total = torch.zeros(len(self.x), dtype=torch.long, device=self.x.device)
        for _, solution in self.solutions:
            total = total + solution.evaluations
        return total

    def __str__(self) -> str:
        n, converged, evaluations = len(self.x), int(self.converged.sum()), self.evaluations
        mean = float(evaluations.double().mean()) if n else 0.0
        total = (
            f"{converged} of {n} samples converged in all of {len(self.solutions)} blocks; {mean:.1f} evaluations a "
            f"sample, at most {int(evaluations.max()) if n else 0}"
        )
        width = max((len(name) for name, _ in self.solutions), default=0)
        return "\n".join([total, *(f"{name:<{width}}  {solution}" for name, solution in self.solutions)])


def invert(bijection: Bijection, z: Tensor, *, solver: Solver | None = None) -> Inversion:
    r"""Map latents back to data, and report on every residual block instead of warning.

    The gradient of ``x`` is that of :meth:`Bijection.inverse`.

    Args:
        bijection: the map.
        z: latents, (N, \*F).
        solver: for this call, replaces the solver of every residual block.

    Returns:
        The data and the report. Its error bounds cost a Lipschitz bound a block, which
        :meth:`Bijection.inverse` does without.

    Example:
        >>> import iresnet as ir
        >>> chain = ir.Chain([ir.ResidualBlock(ir.networks.mlp(2, 16)) for _ in range(3)])
        >>> inversion = invert(chain, torch.randn(5, 2))
        >>> [name for name, solution in inversion.solutions], bool(inversion.converged.all())
        (['bijections.2', 'bijections.1', 'bijections.0'], True)
    """
    names = {module: name for name, module in bijection.named_modules()}
    solutions: list[tuple[str, Solution]] = []

    def solve(block: ResidualBlock, z: Tensor) -> Solution:
        solution = block.solve(z, solver=solver)
        solutions.append((names[block], solution))
        return solution

    x = bijection.inverse(z, solve=solve)
    return Inversion(x, tuple(solutions))
