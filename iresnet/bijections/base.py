"""The contract of an invertible map with a log-determinant, chains of such maps, and inverses with a report."""

__all__ = [
    "Bijection",
    "Chain",
    "Inversion",
    "LogDets",
    "Report",
    "check_dtype",
    "check_events",
    "invert",
]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import EllipsisType

import torch
from torch import Tensor, nn

from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.logdet import LogDetEstimator
from iresnet.precision import autocasts
from iresnet.solvers import Solution, Solver, error_bound

LogDets = LogDetEstimator | Mapping[nn.Module, LogDetEstimator]
"""An estimator for all residual blocks, or one for each; a block that is not in the mapping uses its own."""

Report = Callable[[nn.Module, Solution], None]
"""Receives each residual block and the solution that inverted it."""


def check_events(x: Tensor, what: str, shape: tuple[int | EllipsisType | None, ...] = (...,)) -> None:
    """Refuse what is not a batch of events: torch would broadcast it against something, to a wrong number.

    Args:
        x: what came.
        what: takes the events, to begin the message with.
        shape: of an event: None for a size that may be any, and ``...`` at the end for any further ones.

    Raises:
        IResNetError: for another shape, an event without batch dimension, integers, and what is no tensor.

    Example:
        >>> import torch
        >>> try:
        ...     check_events(torch.zeros(2), "this model", (2,))
        ... except IResNetError as error:
        ...     print(error)
        this model takes batches of shape (N, 2), got (2,); of a single event x make a batch with x[None]
    """
    if not isinstance(x, Tensor):
        raise IResNetError(f"{what} takes tensors, got {type(x).__name__}; make one with torch.as_tensor")
    if not x.is_floating_point():
        raise IResNetError(
            f"{what} takes real numbers, got {x.dtype}; a density of integers, such as pixels, is that of "
            "iresnet.dequantize(x, levels=256), and classifiers take x.float()"
        )
    more = shape[-1:] == (...,)
    sizes = shape[:-1] if more else shape
    got = tuple(x.shape[1:])
    fits = x.dim() >= 2 and (len(got) >= len(sizes) if more else len(got) == len(sizes))
    if fits and all(size is None or size == n for size, n in zip(sizes, got, strict=False)):
        return
    names = ("N", *("*" if size is None else "..." if size is ... else str(size) for size in shape))
    single = x.dim() < 2 or (not more and x.dim() == len(sizes))
    raise IResNetError(
        f"{what} takes batches of shape ({', '.join(names)}), got {tuple(x.shape)}"
        + ("; of a single event x make a batch with x[None]" if single else "")
    )


def check_dtype(x: Tensor, what: str, module: nn.Module) -> None:
    """Refuse real numbers of another type than that of the parameters of ``module``, unless autocast mixes types.

    Args:
        x: what came.
        what: takes it, to begin the message with.
        module: has the parameters.

    Raises:
        IResNetError: with both types.

    Example:
        >>> import torch
        >>> try:
        ...     check_dtype(torch.zeros(1, 2), "it", nn.Linear(2, 2).double())
        ... except IResNetError as error:
        ...     print(error)
        it computes in float64, got float32; convert x with x.double(), or the model with model.float()
    """
    parameter = next((p for p in module.parameters() if p.is_floating_point()), x)
    if x.dtype == parameter.dtype or autocasts(x.device):
        return
    own, got = (str(dtype).removeprefix("torch.") for dtype in (parameter.dtype, x.dtype))
    to = {torch.float64: "double", torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16"}
    raise IResNetError(
        f"{what} computes in {own}, got {got}; convert x with x.{to.get(parameter.dtype, 'to')}(), or the model with "
        f"model.{to.get(x.dtype, 'to')}()"
    )


class Bijection(nn.Module, ABC):
    r"""An invertible map x -> z. Forward is from data to latent, and a log-determinant is always *added*.

    .. math:: \log p(x) = \log p(z) + \log |\det dz/dx|

    Event shapes are written \*E (of x) and \*F (of z).
    """

    @abstractmethod
    def forward(
        self,
        x: Tensor,  # (N, *E)
    ) -> Tensor:  # (N, *F)
        """Map x to z, without the cost of a log-determinant."""

    @abstractmethod
    def forward_and_logdet(
        self,
        x: Tensor,  # (N, *E)
        *,
        logdet: LogDets | None = None,
    ) -> tuple[Tensor, Tensor]:  # (N, *F), (N,)
        """Map x to z and return log|det dz/dx| of every sample, in nats.

        Args:
            x: data.
            logdet: for this call, replaces the estimators of the residual blocks inside.
        """

    @abstractmethod
    def inverse(
        self,
        z: Tensor,  # (N, *F)
        *,
        solver: Solver | None = None,
        report: Report | None = None,
    ) -> Tensor:  # (N, *E)
        """Map z back to x.

        Args:
            z: latents.
            solver: for this call, replaces the solvers of the residual blocks inside.
            report: receives the solution of every residual block, in the order in which they are solved: last block
                first. Without it a block warns when a sample did not converge.
        """

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        r"""Return proved bi-Lipschitz constants (a, b): how far the map squeezes and stretches distances.

        .. math:: a \, |x - y| \le |f(x) - f(y)| \le b \, |x - y|

        Args:
            lipschitz: bounds the Lipschitz constant of the map g of a residual block.

        Raises:
            NotImplementedError: for a bijection that does not state them; networks that hold it have none either.
        """
        raise NotImplementedError(f"{type(self).__name__} states no bi-Lipschitz constants: define stretch()")


class Chain(Bijection):
    """Bijections one after the other: the first is nearest to the data.

    Args:
        bijections: the parts, in the order of the forward direction.

    Example:
        >>> import torch, iresnet as ir
        >>> chain = ir.Chain([ir.Affine(mean=1.0, std=2.0), ir.Flatten((3, 2, 2))])
        >>> z, logdet = chain.forward_and_logdet(torch.ones(5, 3, 2, 2))
        >>> z.shape, bool(torch.allclose(logdet, torch.tensor(-12 * 0.6931472)))
        (torch.Size([5, 12]), True)
    """

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        for bijection in self.bijections:
            x = bijection(x)
        return x

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        check_events(x, "a chain of bijections")
        parts = [x.new_zeros(x.shape[0])]
        for bijection in self.bijections:
            x, part = bijection.forward_and_logdet(x, logdet=logdet)  # pyright: ignore[reportCallIssue]
            parts.append(part)
        return x, torch.stack(torch.broadcast_tensors(*parts)).sum(0)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:
        """See :meth:`Bijection.inverse`."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z, solver=solver, report=report)  # pyright: ignore[reportCallIssue]
        return z

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        """See :meth:`Bijection.stretch`."""
        lower, upper = 1.0, 1.0
        for bijection in self.bijections:
            least, most = bijection.stretch(lipschitz)  # pyright: ignore[reportCallIssue]
            lower, upper = lower * least, upper * most
        return lower, upper


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
        """Mask of the samples that converged in every block."""
        converged = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        for _, solution in self.solutions:
            converged = converged & solution.converged
        return converged

    @property
    def evaluations(self) -> Tensor:  # (N,)
        """Evaluations of the maps g and products with their Jacobians, in all blocks together, for each sample."""
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

    def report(block: nn.Module, solution: Solution) -> None:
        bound = error_bound(solution.last_step, upper_bound(block.g))  # pyright: ignore[reportArgumentType]
        solutions.append((names[block], replace(solution, error_bound=bound)))

    x = bijection.inverse(z, solver=solver, report=report)
    return Inversion(x, tuple(solutions))
