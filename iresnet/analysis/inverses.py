"""Convergence of inverses: errors against iterations, beside the rate that is proved."""

__all__ = [
    "BlockCurve",
    "Curve",
    "InverseAnalysis",
    "NetworkCurves",
    "analyze_inverse",
    "rescaled",
    "solver_curves",
]

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.accelerated import Anderson, NewtonKrylov
from iresnet.analysis.reference import BlockCall, block_calls
from iresnet.bijections import Bijection, ResidualBlock
from iresnet.bounds import upper_bound
from iresnet.certificates import norm_of
from iresnet.errors import IResNetError
from iresnet.lipschitz import LipschitzLayer, hold_weights, lipschitz_layers, replace_weights
from iresnet.solvers import FixedPointIteration, Solution, Solver

STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)
"""Numbers of iterations in every block after which errors are measured."""

ATOL = 1e-14
"""Tolerance of the solvers, in float64: close to rounding, so that the number of steps decides."""

SOLVERS: dict[str, tuple[Callable[..., Solver], int]] = {
    "fixed-point": (FixedPointIteration, 1),
    "anderson": (Anderson, 1),
    "newton-krylov": (partial(NewtonKrylov, n_steps=5), 6),
}
"""Constructor of each solver, and the cost of a step in evaluations of g and Jacobian products."""


@dataclass(frozen=True)
class Curve:
    """Root mean square errors of data -> latent -> data through a network, in units of the data's range.

    Attributes:
        solver: name of the solver.
        steps: largest number of steps in every block.
        evaluations: of g, and products with its Jacobian, for each block and example.
        median: of the examples' errors; infinite where an inverse is not finite.
        largest: of the examples' errors, likewise.
    """

    solver: str
    steps: list[int]
    evaluations: list[float]
    median: list[float]
    largest: list[float]

    @property
    def diverges(self) -> bool:
        """True if the largest error is larger after the last step than after the first, or not finite."""
        return not (math.isfinite(self.largest[-1]) and self.largest[-1] <= self.largest[0])

    def steps_to(self, error: float) -> int | None:
        """Return the number of steps from which on the largest error is at most ``error``, None without one."""
        above = [i for i, e in enumerate(self.largest) if not e <= error]
        reached = above[-1] + 1 if above else 0
        return self.steps[reached] if reached < len(self.steps) else None


@dataclass(frozen=True)
class BlockCurve:
    r"""Errors :math:`|x_k - x| / |x_0 - x|` of one block by fixed-point iteration, from its true output.

    Attributes:
        name: path of the block.
        bound: proved Lipschitz bound L; infinite when there is none.
        norm: p of the norm of the bound and of the errors.
        errors: largest of the examples, after 1, 2, ... steps.
    """

    name: str
    bound: float
    norm: float
    errors: list[float]

    @property
    def within_bound(self) -> bool:
        """True if every error is at most :math:`L^k`, up to rounding."""
        return all(e <= self.bound**k * (1 + 1e-9) + 1e-12 for k, e in enumerate(self.errors, start=1))


@dataclass(frozen=True)
class NetworkCurves:
    """Convergence of one network's inverse, beside the bounds that are proved of it.

    Attributes:
        label: name of the network in tables and figures.
        coeff: largest coefficient of its layers, None when a layer has none.
        bound: largest of its blocks' bounds.
        curve: of fixed-point iteration through the network.
        blocks: each block by itself.
    """

    label: str
    coeff: float | None
    bound: float
    curve: Curve
    blocks: tuple[BlockCurve, ...]

    @property
    def title(self) -> str:
        """Label with the coefficient."""
        return f"{self.label} ({'no coefficient' if self.coeff is None else f'{self.coeff:g}'})"

    @property
    def verdict(self) -> str:
        """Observed convergence, and whether it is certified, in words."""
        slow = f"not converged in {self.curve.steps[-1]} steps"
        seen = "diverges" if self.curve.diverges else slow if self.curve.steps_to(1e-3) is None else "converges"
        return seen if self.bound < 1 else f"{seen}, not certified"

    @property
    def finding(self) -> str:
        """Steps to an error of 1e-6, or the verdict, in words."""
        steps, last = self.curve.steps_to(1e-6), self.curve.largest[-1]
        if steps is None or self.curve.diverges:
            error = f" (error {last:.1e} of the data's range)" if math.isfinite(last) else ""
            return f"{self.title}: {self.verdict}{error}"
        return f"{self.title}: within 1e-6 of the data's range after {steps} steps a block"


@dataclass(frozen=True)
class InverseAnalysis:
    """Inverses of one or several networks.

    Attributes:
        networks: one for each network; ``subjects`` in files.
        solvers: curves of all solvers on the first network.
        n: examples.
    """

    networks: tuple[NetworkCurves, ...]
    solvers: tuple[Curve, ...]
    n: int

    @property
    def summary(self) -> str:
        """Main finding in one sentence."""
        found = "; ".join(network.finding for network in self.networks) or "nothing was inverted"
        return f"Fixed-point iteration on {self.n} examples: {found}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        rows = []
        for network in self.networks:
            row = asdict(network)
            row |= {"verdict": network.verdict, "certified": network.bound < 1, "diverges": network.curve.diverges}
            for tree, block in zip(row["blocks"], network.blocks, strict=True):
                tree["within_bound"] = block.within_bound
            rows.append(row)
        solvers = tuple(asdict(curve) for curve in self.solvers)
        return {"summary": self.summary, "subjects": tuple(rows), "solvers": solvers, "n": self.n}

    def __str__(self) -> str:
        return self.summary


# -- curves ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def analyze_inverse(
    bijection: Bijection,
    x: Tensor,  # (N, *E)
    *,
    label: str,
    scale: float,
    progress: Callable[[int], None] = lambda done: None,
) -> NetworkCurves:
    r"""Invert a network by fixed-point iteration with each number of :data:`STEPS`, and each of its blocks by itself.

    A block with bound L proves :math:`|x_k - x| \le L^k |x_0 - x|`, where :math:`x_0 = z`.

    Args:
        bijection: the network, in float64.
        x: examples.
        label: name of the network in tables and figures.
        scale: range of the data.
        progress: called with the number of curve points done.

    Raises:
        RecipeError: when there are no residual blocks.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=0.5)).double()
        >>> network = analyze_inverse(block, torch.randn(4, 2, dtype=torch.float64), label="mlp", scale=1.0)
        >>> network.verdict, network.blocks[0].within_bound
        ('converges', True)
    """
    with hold_weights(bijection, iterate=False):
        blocks = tuple(_block_curve(call) for call in block_calls(bijection, x))
        curve = _curve(bijection, x, "fixed-point", scale, progress)
    return NetworkCurves(label, _largest_coeff(bijection), max(block.bound for block in blocks), curve, blocks)


@torch.no_grad()
def solver_curves(
    bijection: Bijection,
    x: Tensor,  # (N, *E)
    *,
    scale: float,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Curve, ...]:
    """Invert a network by every solver with each number of :data:`STEPS`; arguments as :func:`analyze_inverse`."""
    curves = []
    with hold_weights(bijection, iterate=False):
        for i, name in enumerate(SOLVERS):
            curves.append(_curve(bijection, x, name, scale, lambda done, i=i: progress(i * len(STEPS) + done)))
    return tuple(curves)


def _curve(bijection: Bijection, x: Tensor, name: str, scale: float, progress: Callable[[int], None]) -> Curve:
    make, cost = SOLVERS[name]
    z = bijection(x)
    n_blocks = len(block_calls(bijection, x[:1]))
    curve = Curve(name, [], [], [], [])
    for i, steps in enumerate(STEPS, start=1):
        if (steps - 1) * cost < STEPS[-1]:
            back, solutions = _invert(bijection, z, make(atol=ATOL, rtol=0.0, max_steps=steps))
            error = (back - x).flatten(1).square().mean(1).sqrt().nan_to_num(nan=math.inf) / scale
            curve.steps.append(steps)
            curve.evaluations.append(sum(float(s.evaluations.double().mean()) for s in solutions) / n_blocks)
            curve.median.append(float(error.median()))
            curve.largest.append(float(error.max()))
        progress(i)
    return curve


def _invert(bijection: Bijection, z: Tensor, solver: Solver) -> tuple[Tensor, list[Solution]]:
    """Return the inverse and the solution of each block."""
    solutions: list[Solution] = []
    return bijection.inverse(z, solver=solver, report=lambda _, solution: solutions.append(solution)), solutions


def _block_curve(call: BlockCall) -> BlockCurve:
    g, norm = call.block.g, norm_of(call.block.g)

    def size(error: Tensor) -> Tensor:  # (N, *E) -> (N,)
        return torch.linalg.vector_norm(error.flatten(1), norm, dim=1).nan_to_num(nan=math.inf)

    y, errors = call.z, []
    start = size(call.z - call.x).clamp(min=torch.finfo(y.dtype).tiny)
    for _ in range(STEPS[-1]):
        y = call.z - g(y)
        errors.append(float((size(y - call.x) / start).max()))
    return BlockCurve(call.name, upper_bound(g, norm), norm, errors)


def _largest_coeff(module: nn.Module) -> float | None:
    """Return the largest coefficient of the blocks, None when one of their linear layers has none."""
    coeffs = []
    for block in (m for m in module.modules() if isinstance(m, ResidualBlock)):
        for layer in block.g.modules():
            if isinstance(layer, LipschitzLayer) and layer.normalized:
                coeffs.append(layer.normalization.coeff)
            elif isinstance(layer, (nn.Linear, nn.Conv2d)):
                return None
    largest = max(coeffs, default=math.inf)
    return largest if math.isfinite(largest) else None


# -- other coefficients ----------------------------------------------------------------------------------------------


@contextmanager
def rescaled(bijection: Bijection, coeff: float) -> Iterator[None]:
    """Scale the weights of all Lipschitz layers from their own coefficient to another, for the context.

    The network was not trained with this coefficient. From 1 on nothing proves that its blocks contract.

    Args:
        bijection: the network.
        coeff: the coefficient, positive.

    Raises:
        IResNetError: when a layer has no coefficient of its own.

    Example:
        >>> import iresnet as ir
        >>> layer = ir.LipschitzLinear(2, 2, coeff=0.9)
        >>> before = layer.weight.detach()
        >>> with rescaled(layer, 0.45):
        ...     bool(torch.allclose(layer.weight, 0.5 * before, atol=1e-6))
        True
    """
    layers = lipschitz_layers(bijection)
    if not all(math.isfinite(layer.normalization.coeff) for layer in layers):
        raise IResNetError("layers without a coefficient cannot be rescaled to another; give a constrained model")
    with torch.no_grad():
        weights = [coeff / m.normalization.coeff * m.normalization.normalize(m.unnormalized_weight) for m in layers]
    with replace_weights(bijection, weights):
        yield
