"""The contract of estimators of log det(I + J), the exact one, and what all stochastic ones share."""

__all__ = ["Exact", "Hutchinson", "LogDetEstimate", "LogDetEstimator", "Quadratic", "at_least_float32"]

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.errors import IResNetError, UnknownNameError
from iresnet.jacobian import Linearization
from iresnet.operators import to_events, to_vectors
from iresnet.precision import without_autocast
from iresnet.probes import PROBES


@dataclass(frozen=True)
class LogDetEstimate:
    """A log-determinant and how far it can be trusted, per sample, in nats.

    Attributes:
        value: the estimate, (N,).
        standard_error: over probes, (N,); infinite for a single probe, which tells nothing of its spread.
        bias: estimate or bound of the size of the bias, (N,): see the estimator.
        n_products: Jacobian products spent on each sample.
    """

    value: Tensor
    standard_error: Tensor
    bias: Tensor
    n_products: int

    def __str__(self) -> str:
        return (
            f"mean {float(self.value.mean()):.4f} nats, standard error {float(self.standard_error.mean()):.4f}, bias "
            f"{float(self.bias.mean()):.1e} (means of {len(self.value)} samples, {self.n_products} products each)"
        )


class LogDetEstimator(ABC):
    r"""Estimates :math:`\log \det (I + J)` of each sample, where J is the Jacobian of a contraction.

    Called with the linearisation of the map at x, an estimator returns a tensor of shape (N,). Its value estimates the
    log-determinant in nats, and its gradient with respect to x and the parameters estimates the gradient of the same
    quantity, also under per-sample upstream weights. Without autograd the work for the gradient is not done.
    """

    def __call__(
        self,
        jacobian: Linearization,  # of g at x, (N, *E) -> (N, *E)
    ) -> Tensor:  # (N,)
        """Estimate the log-determinant of every sample."""
        return self.prepare(jacobian)(jacobian)

    @abstractmethod
    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:
        """Do what needs no gradient, all that is random included.

        Args:
            jacobian: of g at x, (N, *E) -> (N, *E).

        Returns:
            The rest: from the linearisation at the same x to the estimates, (N,). It can be called again with that
            linearisation computed anew, and gives the same numbers: so a block need not keep its graph.
        """

    def drawing_from(self, generator: torch.Generator) -> "LogDetEstimator":  # noqa: ARG002
        """Return this estimator with this source of randomness; itself where it has one of its own, or needs none.

        A generator on the CPU gives the same probes on every device.
        """
        return self

    @abstractmethod
    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:
        """Estimate the log-determinant of every sample and report on it, without gradients.

        Args:
            jacobian: of g at x, (N, *E) -> (N, *E).
            lipschitz: a bound of g's Lipschitz constant, for a-priori bounds of the bias.
        """


# -- exact -----------------------------------------------------------------------------------------------------------


class Exact(LogDetEstimator):
    r"""The log-determinant of the dense matrix I + J, from D Jacobian products.

    For tests and small D: costs N D^2 numbers of memory and N D^3 time.

    Args:
        max_gib: refuse to build Jacobians larger than this.

    Raises:
        IResNetError: when the dense Jacobians would not fit.

    Example:
        >>> from iresnet import linearize
        >>> J = linearize(lambda x: 0.5 * x, torch.zeros(2, 3))
        >>> bool(torch.allclose(Exact()(J), 3 * torch.tensor(1.5).log()))
        True
    """

    def __init__(self, *, max_gib: float = 8.0):
        self.max_gib = max_gib

    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:  # noqa: ARG002
        """Everything here is differentiated: there is nothing to prepare."""
        return self._logdet

    def _logdet(self, jacobian: Linearization) -> Tensor:
        dense = self._dense(jacobian)
        with without_autocast(dense.device):
            identity = torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device)
            return torch.linalg.slogdet(identity + dense)[1]

    @torch.no_grad()
    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:  # noqa: ARG002
        """Compute the log-determinant of every sample; nothing is uncertain."""
        value = self._logdet(jacobian)
        none = torch.zeros_like(value)
        return LogDetEstimate(value, none, none, jacobian.value[0].numel())

    def _dense(self, jacobian: Linearization) -> Tensor:  # (N, D, D)
        x = jacobian.value
        _check_square(jacobian.vjp(torch.zeros_like(x)), x)
        n, d = x.shape[0], x[0].numel()
        gib = n * d * d * x.element_size() / 2**30
        if gib > self.max_gib:
            raise IResNetError(
                f"Exact needs {gib:.1f} GiB for {n} dense Jacobians of {d} x {d}, more than max_gib={self.max_gib}; "
                "use Krylov(tol=1e-3, max_steps=30), or a smaller batch"
            )
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
        columns = torch.vmap(jacobian.jvp, chunk_size=max(1, 4096 // n))(basis)  # (D, N, *E)
        return at_least_float32(columns.flatten(2).permute(1, 2, 0))

    def __repr__(self) -> str:
        return "Exact()"


# -- stochastic ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadratic:
    r"""What one probe v gives.

    Attributes:
        value: estimate of :math:`v^T \log(I + J) v`, (N,).
        w: estimate of :math:`(I + J^T)^{-1} v`, (N, D).
        bias: from a Lipschitz bound to the size of the bias, (N,).
        n_products: Jacobian products spent.
    """

    value: Tensor
    w: Tensor
    bias: Callable[[float], Tensor]
    n_products: int


class Hutchinson(LogDetEstimator):
    r"""Averages over random probes v, with :math:`\mathrm{tr}\, M = E[v^T M v]`.

    The gradient needs one differentiable Jacobian product for each probe and no more:

    .. math:: d \log\det(I + J) = E[w^T \, dJ \, v], \quad w \approx (I + J^T)^{-1} v,

    so the surrogate :math:`s = w^T J v` with w and v held constant has the right gradient, and ``value + s - stop(s)``
    has the right value too. Nothing ever differentiates through a series.

    Several independent ``"rademacher"`` probes average their errors. A power of two of ``"hadamard"`` ones cancels most
    of them where J is that of convolutions, so that 64 come close to the exact value.
    """

    def __init__(self, n_probes: int, probe: str, generator: torch.Generator | None):
        if n_probes < 1:
            raise IResNetError(f"n_probes must be at least 1, got {n_probes}")
        if probe not in PROBES:
            raise UnknownNameError("probe", probe, PROBES)
        self.n_probes = n_probes
        self.probe = probe
        self.generator = generator

    def drawing_from(self, generator: torch.Generator) -> "Hutchinson":
        """See :meth:`LogDetEstimator.drawing_from`."""
        if self.generator is not None:
            return self
        other = copy.copy(self)
        other.generator = generator
        return other

    @abstractmethod
    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> Quadratic:
        """Evaluate a probe v, (N, D)."""

    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:
        """Evaluate the probes: their values, and the vectors w of the surrogate."""
        # Not the whole of what a probe gives: its bias keeps the Jacobian at hand, and all activations with it.
        probes = [(v, probe.value, probe.w) for v, probe in self._evaluate(jacobian)]

        def estimate(jacobian: Linearization) -> Tensor:
            return torch.stack([_with_gradient(jacobian, *probe) for probe in probes]).mean(0)

        return estimate

    @torch.no_grad()
    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:
        """Estimate the log-determinant of every sample; the bias is the mean over probes of its sizes.

        The standard error is that of independent probes, of which ``"hadamard"`` ones have only a fraction.
        """
        probes = [probe for _, probe in self._evaluate(jacobian)]
        values = torch.stack([probe.value for probe in probes])
        spread = values.std(0) if self.n_probes > 1 else torch.full_like(values[0], math.inf)
        bias = torch.stack([probe.bias(lipschitz) for probe in probes]).mean(0)
        return LogDetEstimate(
            values.mean(0), spread / math.sqrt(self.n_probes), bias, sum(probe.n_products for probe in probes)
        )

    def _evaluate(self, jacobian: Linearization) -> Iterator[tuple[Tensor, Quadratic]]:
        like = at_least_float32(jacobian.value.detach())

        def vjp(q: Tensor) -> Tensor:
            product = jacobian.vjp(to_events(q, like.shape))
            _check_square(product, like)
            return to_vectors(at_least_float32(product))

        with torch.no_grad():
            for v in PROBES[self.probe](like, self.n_probes, self.generator):
                yield v, self._solve(vjp, to_vectors(v))


def _check_square(product: Tensor, value: Tensor) -> None:  # (N, *E), (N, *F)
    if product.shape != value.shape:
        raise IResNetError(
            f"log det(I + J) needs a map that keeps the shape, got {tuple(product.shape[1:])} -> "
            f"{tuple(value.shape[1:])}"
        )


def _with_gradient(jacobian: Linearization, v: Tensor, value: Tensor, w: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and jacobian.value.requires_grad):
        return value
    surrogate = (w * to_vectors(at_least_float32(jacobian.jvp(v)))).sum(1)
    return value + surrogate - surrogate.detach()


def at_least_float32(x: Tensor) -> Tensor:
    """Reductions and small solves run in float32 at least, whatever the Jacobian products run in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
