"""The contract of an invertible map with a log-determinant, and the composition of such maps."""

__all__ = ["Bijection", "Chain", "Solve", "check_dtype", "check_events"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iresnet.errors import IResNetError
from iresnet.logdet import LogDetEstimator
from iresnet.precision import autocasts
from iresnet.solvers import Solution

if TYPE_CHECKING:
    from iresnet.bijections.residual import ResidualBlock

Solve = Callable[["ResidualBlock", Tensor], Solution]
"""How a residual block is inverted: from the block and its output to the solution for its input."""


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
        logdet: LogDetEstimator | None = None,
    ) -> tuple[Tensor, Tensor]:  # (N, *F), (N,)
        """Map x to z and return log|det dz/dx| of every sample, in nats.

        Args:
            x: data.
            logdet: for this call, replaces the estimator of every residual block inside.
        """

    @abstractmethod
    def inverse(
        self,
        z: Tensor,  # (N, *F)
        *,
        solve: Solve | None = None,
    ) -> Tensor:  # (N, *E)
        """Map z back to x.

        Args:
            z: latents.
            solve: for this call, solves every residual block inside, and has the solutions to report. Without it a
                block uses its own solver, and warns when a sample did not converge.
        """


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

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        check_events(x, "a chain of bijections")
        total = x.new_zeros(len(x))
        for bijection in self.bijections:
            x, part = bijection.forward_and_logdet(x, logdet=logdet)  # pyright: ignore[reportCallIssue]
            total = total + part
        return x, total

    def inverse(self, z: Tensor, *, solve: Solve | None = None) -> Tensor:
        """See :meth:`Bijection.inverse`."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z, solve=solve)  # pyright: ignore[reportCallIssue]
        return z
