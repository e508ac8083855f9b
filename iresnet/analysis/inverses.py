"""How fast inverses converge, or do not: errors against iterations, beside the rate that is proved."""

__all__ = [
    "BlockCurve",
    "Curve",
    "InverseAnalysis",
    "Subject",
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
from iresnet.analysis.reference import Visit, visits
from iresnet.bijections import Bijection, ResidualBlock
from iresnet.bounds import upper_bound
from iresnet.certificates import norm_of
from iresnet.errors import IResNetError
from iresnet.lipschitz import LipschitzLayer, hold_weights, lipschitz_layers, replace_weights
from iresnet.solvers import FixedPointIteration, Solution, Solver

STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)
"""Iterations in every block after which errors are taken."""

ATOL = 1e-14
"""Tolerance of the solvers, in float64: close to rounding, so that the number of steps decides."""

SOLVERS: dict[str, tuple[Callable[..., Solver], int]] = {
    "fixed-point": (FixedPointIteration, 1),
    "anderson": (Anderson, 1),
    "newton-krylov": (partial(NewtonKrylov, n_steps=5), 6),
}
"""By name: what makes the solver, and what a step of it costs in evaluations of g and Jacobian products."""


@dataclass(frozen=True)
class Curve:
    """Errors of data -> latent -> data of a whole network, in units of the data's range, root mean square an example.

    Attributes:
        solver: its name.
        steps: the most that are made in every block.
        evaluations: of g, and products with its Jacobian, for each block and example that were made.
        median: of the examples' errors; infinite where an inverse is not finite.
        largest: likewise.
    """

    solver: str
    steps: list[int]
    evaluations: list[float]
    median: list[float]
    largest: list[float]

    @property
    def diverges(self) -> bool:
        """Whether the largest error ends above where it began, or is no number."""
        return not (math.isfinite(self.largest[-1]) and self.largest[-1] <= self.largest[0])

    def steps_to(self, error: float) -> int | None:
        """Steps from which on the largest error is at most so much."""
        above = [i for i, e in enumerate(self.largest) if not e <= error]
        reached = above[-1] + 1 if above else 0
        return self.steps[reached] if reached < len(self.steps) else None


@dataclass(frozen=True)
class BlockCurve:
    r"""One block by itself, from its true output: :math:`|x_k - x| / |x_0 - x|` by fixed-point iteration.

    Attributes:
        name: path of the block.
        bound: L, proved; infinite when nothing is.
        norm: p of the norm in which it is, and in which the errors are taken.
        errors: largest of the examples, after 1, 2, ... steps.
    """

    name: str
    bound: float
    norm: float
    errors: list[float]

    @property
    def within_bound(self) -> bool:
        """Whether every error is at most :math:`L^k`, up to rounding."""
        return all(e <= self.bound**k * (1 + 1e-9) + 1e-12 for k, e in enumerate(self.errors, start=1))


@dataclass(frozen=True)
class Subject:
    """One network, its inverse, and what is proved of it.

    Attributes:
        label: what to call it.
        coeff: the largest coefficient of its layers, None when a layer is held at none.
        bound: the largest of its blocks' bounds.
        curve: of fixed-point iteration through the whole network.
        blocks: each block by itself.
    """

    label: str
    coeff: float | None
    bound: float
    curve: Curve
    blocks: tuple[BlockCurve, ...]

    @property
    def title(self) -> str:
        """The label with the coefficient."""
        return f"{self.label} ({'no coefficient' if self.coeff is None else f'{self.coeff:g}'})"

    @property
    def verdict(self) -> str:
        """What was seen, and whether it is proved, in words."""
        slow = f"not converged in {self.curve.steps[-1]} steps"
        seen = "diverges" if self.curve.diverges else slow if self.curve.steps_to(1e-3) is None else "converges"
        return seen if self.bound < 1 else f"{seen}, not certified"


@dataclass(frozen=True)
class InverseAnalysis:
    """Inverses of one or several networks.

    Attributes:
        subjects: one a network.
        solvers: curves of all solvers on the first network.
        n: examples.
    """

    subjects: tuple[Subject, ...]
    solvers: tuple[Curve, ...]
    n: int

    @property
    def summary(self) -> str:
        """The main finding in one sentence."""
        found = "; ".join(map(_finding, self.subjects)) or "nothing was inverted"
        return f"Fixed-point iteration on {self.n} examples: {found}."

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        tree = {"summary": self.summary, **asdict(self)}
        for part, subject in zip(tree["subjects"], self.subjects, strict=True):
            part |= {"verdict": subject.verdict, "certified": subject.bound < 1, "diverges": subject.curve.diverges}
            for row, block in zip(part["blocks"], subject.blocks, strict=True):
                row["within_bound"] = block.within_bound
        return tree

    def __str__(self) -> str:
        return self.summary


def _finding(subject: Subject) -> str:
    curve = subject.curve
    steps = curve.steps_to(1e-6)
    if steps is None or curve.diverges:
        error = f" (error {curve.largest[-1]:.1e} of the data's range)" if math.isfinite(curve.largest[-1]) else ""
        return f"{subject.title}: {subject.verdict}{error}"
    return f"{subject.title}: within 1e-6 of the data's range after {steps} steps a block"


# -- curves ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def analyze_inverse(
    bijection: Bijection,
    x: Tensor,  # (N, *E)
    *,
    label: str,
    scale: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Subject:
    r"""Invert a network by so many fixed-point iterations a block, and each of its blocks by itself.

    A block with bound L proves :math:`|x_k - x| \le L^k |x_0 - x|`, where :math:`x_0 = z`.

    Args:
        bijection: the network, in float64.
        x: examples.
        label: what to call the network.
        scale: range of the data.
        progress: called with the number of curve points done.

    Raises:
        RecipeError: when there are no residual blocks.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=0.5)).double()
        >>> subject = analyze_inverse(block, torch.randn(4, 2, dtype=torch.float64), label="mlp", scale=1.0)
        >>> subject.verdict, subject.blocks[0].within_bound
        ('converges', True)
    """
    with hold_weights(bijection, iterate=False):
        passed = visits(bijection, x)
        blocks = tuple(_block_curve(visit) for visit in passed)
        curve = _curve(bijection, x, "fixed-point", scale, progress)
    return Subject(label, _coeff(bijection), max(block.bound for block in blocks), curve, blocks)


@torch.no_grad()
def solver_curves(
    bijection: Bijection,
    x: Tensor,  # (N, *E)
    *,
    scale: float,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Curve, ...]:
    """Errors of a network's inverse by every solver, against evaluations; arguments as :func:`analyze_inverse`."""
    curves = []
    with hold_weights(bijection, iterate=False):
        for i, name in enumerate(SOLVERS):
            curves.append(_curve(bijection, x, name, scale, lambda done, i=i: progress(i * len(STEPS) + done)))
    return tuple(curves)


def _curve(bijection: Bijection, x: Tensor, name: str, scale: float, progress: Callable[[int], None]) -> Curve:
    make, cost = SOLVERS[name]
    z = bijection(x)
    n_blocks = len(visits(bijection, x[:1]))
    curve = Curve(name, [], [], [], [])
    for i, steps in enumerate(STEPS, start=1):
        if (steps - 1) * cost < STEPS[-1]:
            solutions: list[Solution] = []
            back = bijection.inverse(
                z,
                solver=make(atol=ATOL, rtol=0.0, max_steps=steps),
                report=lambda block, solution, solutions=solutions: solutions.append(solution),
            )
            error = _rms(back - x).nan_to_num(nan=math.inf) / scale
            curve.steps.append(steps)
            curve.evaluations.append(sum(float(s.evaluations.double().mean()) for s in solutions) / n_blocks)
            curve.median.append(float(error.median()))
            curve.largest.append(float(error.max()))
        progress(i)
    return curve


def _rms(error: Tensor) -> Tensor:  # (N, *E) -> (N,)
    return error.flatten(1).square().mean(1).sqrt()


def _block_curve(visit: Visit) -> BlockCurve:
    g, norm = visit.block.g, norm_of(visit.block.g)

    def size(error: Tensor) -> Tensor:  # (N, *E) -> (N,)
        return torch.linalg.vector_norm(error.flatten(1), norm, dim=1).nan_to_num(nan=math.inf)

    y, errors = visit.z, []
    start = size(visit.z - visit.x).clamp(min=torch.finfo(y.dtype).tiny)
    for _ in range(STEPS[-1]):
        y = visit.z - g(y)
        errors.append(float((size(y - visit.x) / start).max()))
    return BlockCurve(visit.name, upper_bound(g, norm), norm, errors)


def _coeff(module: nn.Module) -> float | None:
    """The largest coefficient, None when a linear layer of a block has none."""
    coeffs = []
    for block in (m for m in module.modules() if isinstance(m, ResidualBlock)):
        for layer in block.g.modules():
            if isinstance(layer, LipschitzLayer) and layer.normalized:
                coeffs.append(layer.normalization.coeff)
            elif isinstance(layer, (nn.Linear, nn.Conv2d)):
                return None
    largest = max(coeffs, default=math.inf)
    return largest if math.isfinite(largest) else None


# -- the same weights at other coefficients ----------------------------------------------------------------------------


@contextmanager
def rescaled(bijection: Bijection, coeff: float) -> Iterator[None]:
    """Use all Lipschitz layers with their weights scaled from their own coefficient to another, for the context.

    The network is another one then: it was not trained so. From 1 on nothing proves that its blocks contract.

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
