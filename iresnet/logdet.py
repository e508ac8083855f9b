"""The contract of estimators of log det(I + J), the exact one, and what all stochastic ones share."""

__all__ = [
    "EXACT_LIMIT",
    "Exact",
    "Hutchinson",
    "Krylov",
    "LogDetEstimate",
    "LogDetEstimator",
    "Quadratic",
    "default_logdet",
]

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from iresnet.devices import is_differentiating, is_readable
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.implicit import Product, implicit, refuse_forward_over_forward, solve_linear
from iresnet.jacobian import Linearization, with_known_signature
from iresnet.krylov import KrylovSpace
from iresnet.operators import at_least_float32, to_events, to_vectors
from iresnet.precision import autocasts, without_autocast
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
        if not len(self.value):
            return "no samples"
        return (
            f"mean {float(self.value.mean()):.4f} nats, standard error {float(self.standard_error.mean()):.4f}, bias "
            f"{float(self.bias.mean()):.1e} (means of {len(self.value)} samples, {self.n_products} products each)"
        )


class LogDetEstimator(ABC):
    r"""Estimates :math:`\log \det (I + J)` of each sample, where J is the Jacobian of a contraction.

    Called with the linearization of the map at x, an estimator returns a tensor of shape (N,). Its value estimates the
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
            The rest: from the linearization at the same x to the estimates, (N,). It can be called again with that
            linearization computed anew, and gives the same numbers: so a block need not keep its graph.
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
            return _log_abs_det(identity + dense)

    @torch.no_grad()
    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:  # noqa: ARG002
        """Compute the log-determinant of every sample; nothing is uncertain."""
        value = self._logdet(jacobian)
        none = torch.zeros_like(value)
        return LogDetEstimate(value, none, none, jacobian.value.shape[1:].numel())

    def _dense(self, jacobian: Linearization) -> Tensor:  # (N, D, D)
        x = jacobian.value
        _check_square(jacobian.vjp(torch.zeros_like(x)), x)
        n, d = len(x), x.shape[1:].numel()
        gib = n * d * d * x.element_size() / 2**30
        if gib > self.max_gib:
            raise IResNetError(
                f"Exact needs {gib:.1f} GiB for {n} dense Jacobians of {d} x {d}, more than max_gib={self.max_gib}; "
                "use Krylov(tol=1e-3, max_steps=30), or a smaller batch"
            )
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
        if autocasts(x.device):  # which torch.vmap does not apply
            columns = torch.stack([jacobian.jvp(v) for v in basis])
        else:
            columns = torch.vmap(jacobian.jvp, chunk_size=max(1, 4096 // max(1, n)))(basis)  # (D, N, *E)
        return at_least_float32(columns.flatten(2).permute(1, 2, 0))

    def __repr__(self) -> str:
        return "Exact()"


def _log_abs_det(matrices: Tensor) -> Tensor:  # (..., D, D) -> (...)
    if forward_ad._current_level < 0:
        return torch.linalg.slogdet(matrices)[1]
    # In torch 2.13 the forward-mode derivative of slogdet has wrong derivatives itself.
    return torch.linalg.lu_factor_ex(matrices)[0].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


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
    of them where J is that of convolutions, so that 64 come close to the exact value; ``"fixed"`` ones are Hadamard
    probes that are the same at each call and for each sample.
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
        spread = values.std(0) if self.n_probes > 1 and values.numel() else torch.full_like(values[0], math.inf)
        bias = torch.stack([probe.bias(lipschitz) for probe in probes]).mean(0)
        return LogDetEstimate(
            values.mean(0), spread / math.sqrt(self.n_probes), bias, sum(probe.n_products for probe in probes)
        )

    def _evaluate(self, jacobian: Linearization) -> Iterator[tuple[Tensor, Quadratic]]:  # with probes (N, D)
        like = at_least_float32(jacobian.value.detach())
        _, vjp = _products(jacobian)
        with torch.no_grad():
            for v in PROBES[self.probe](like, self.n_probes, self.generator):
                # detached, since no_grad does not keep forward-mode derivatives out
                yield to_vectors(v), self._solve(lambda q: vjp(q).detach(), to_vectors(v))


def _products(jacobian: Linearization) -> tuple[Product, Product]:
    """Jacobian products, J v and J^T w, of vectors (N, D) in float32 at least."""
    shape, dtype = jacobian.value.shape, jacobian.value.dtype

    def run(product: Product, v: Tensor) -> Tensor:
        image = product(to_events(v, shape).to(dtype))
        _check_square(image, jacobian.value)
        return to_vectors(at_least_float32(image))

    return partial(run, jacobian.jvp), partial(run, jacobian.vjp)


def _check_square(product: Tensor, value: Tensor) -> None:  # (N, *E), (N, *F)
    if product.shape != value.shape:
        raise IResNetError(
            f"log det(I + J) needs a map that keeps the shape, got {tuple(product.shape[1:])} -> "
            f"{tuple(value.shape[1:])}"
        )


def _with_gradient(jacobian: Linearization, v: Tensor, value: Tensor, w: Tensor) -> Tensor:
    if not _is_differentiated(jacobian.value):
        return value
    refuse_forward_over_forward()
    image = _products(jacobian)[0](v)
    if torch.compiler.is_compiling():  # which has no second derivatives
        surrogate = (w * image).sum(1)
    else:
        surrogate = _Surrogate.apply(image, w, jacobian.again or (lambda *_: jacobian), *jacobian.inputs)
    return value + surrogate - surrogate.detach()  # pyright: ignore[reportOperatorIssue, reportOptionalMemberAccess]


def _is_differentiated(x: Tensor) -> bool:
    return (torch.is_grad_enabled() and x.requires_grad) or is_differentiating()


@with_known_signature
class _Surrogate(torch.autograd.Function):
    r"""The surrogate :math:`w^T J v`, whose gradient is that with w held constant, and whose further ones are not.

    Where the gradient is to be differentiated, w there depends on J as the solution of :math:`(I + J^T) w = v` does.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, w: Tensor, again: Callable, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return (w * image).sum(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG004
        _, w, ctx.again, *of_jacobian = inputs
        ctx.save_for_backward(w, *of_jacobian)
        ctx.save_for_forward(w, *of_jacobian)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        w, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            w = _differentiable(w, ctx.again, *inputs)
        return (upstream[:, None] * w, None, None, *[None for _ in inputs])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        w, *inputs = ctx.saved_tensors
        return (_differentiable(w, ctx.again, *inputs) * tangent).sum(1)


def _differentiable(w: Tensor, again: Callable, *inputs: Tensor) -> Tensor:  # (N, D)
    """Return w with the derivatives that the solution of (I + J^T) w = v has."""

    def equation(w: Tensor, *inputs: Tensor) -> tuple[Tensor, Product, Product]:
        jvp, vjp = _products(again(*inputs))
        return -w - vjp(w), vjp, jvp

    return implicit(equation(w, *inputs)[0], w, equation, solve_linear, *inputs)


class Krylov(Hutchinson):
    r"""Projects I + J on a Krylov space and takes the exact logarithm there: the default.

    Arnoldi on :math:`A = J^T` from the probe v gives an orthonormal basis Q (D x m) and :math:`H = Q^T A Q`, with

    .. math::
        v^T \log(I + A) v \approx |v|^2 e_1^T \log(I + H) e_1, \quad (I + A)^{-1} v \approx w + (v - (I + A) w), \;
        w = |v| Q (I + H)^{-1} e_1.

    Exact when m reaches D, or earlier when the space closes (J zero, a multiple of the identity, of low rank).

    Args:
        n_steps: m, Jacobian products for each probe.
        n_probes: probes averaged for each sample.
        tol: when given, steps are added until the value of every sample changes by at most ``tol`` nats, and
            ``n_steps`` is not used. Waits for the device at each step, so it is for evaluation.
        max_steps: the largest number of steps with ``tol``.
        probe: ``"rademacher"``, ``"hadamard"`` or ``"fixed"`` (see :class:`~iresnet.logdet.Hutchinson`), or
            ``"gaussian"``.
        generator: source of randomness; torch's global one when None.

    Reference:
        Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, Ubaru, Chen and Saad 2017,
        https://doi.org/10.1137/16M1104974 (symmetric case); Matrix Computations, Golub and Van Loan 2013, ch. 10
        (Arnoldi)

    Example:
        >>> from iresnet import linearize
        >>> J = linearize(lambda x: -0.9 * x, torch.zeros(2, 3, dtype=torch.float64))
        >>> bool(torch.allclose(Krylov(1)(J), 3 * torch.tensor(0.1, dtype=torch.float64).log()))
        True
    """

    def __init__(
        self,
        n_steps: int = 4,
        n_probes: int = 1,
        *,
        tol: float | None = None,
        max_steps: int = 30,
        probe: str = "rademacher",
        generator: torch.Generator | None = None,
    ):
        super().__init__(n_probes, probe, generator)
        if min(n_steps, max_steps) < 1:
            raise IResNetError(f"n_steps and max_steps must be at least 1, got {n_steps} and {max_steps}")
        if tol is not None and not tol > 0:
            raise IResNetError(f"tol is a change in nats and must be positive, got {tol}")
        self.n_steps = n_steps
        self.tol = tol
        self.max_steps = max_steps

    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> Quadratic:
        limit = self.n_steps if self.tol is None else self.max_steps
        space = KrylovSpace(vjp, v, min(limit, v.shape[1]))
        while not space.complete:
            space.extend()
            # At most one wait for the device a step, and none without a tolerance.
            if self.tol is not None and space.steps > 1 and is_readable(v) and space.settled(self.tol):
                break
        value, w = space.solve()
        return Quadratic(value, w, lambda lipschitz: space.last_change(), space.steps)

    def __repr__(self) -> str:
        steps = f"n_steps={self.n_steps}" if self.tol is None else f"tol={self.tol}, max_steps={self.max_steps}"
        return f"Krylov({steps}, n_probes={self.n_probes})"


EXACT_LIMIT = 128
"""Dimensions up to which the dense log-determinant is cheap."""


def default_logdet(features: int, *, training: bool) -> LogDetEstimator:
    """Return the estimator of those who chose none: cheap in training, and else one to be trusted.

    In eval mode it is exact up to :data:`EXACT_LIMIT` dimensions. Above, 64 probes that are always the same make it a
    function of the sample alone, without chance. Its error on bundled densities of 28x28 images was 0.06 nats at most,
    of some thousand (docs/numerics.md).

    Args:
        features: D, dimensions of an event.
        training: whether for a step of training.

    Example:
        >>> default_logdet(2, training=False), default_logdet(784, training=False)
        (Exact(), Krylov(tol=0.01, max_steps=30, n_probes=64))
    """
    if training:
        return Krylov()
    return Exact() if features <= EXACT_LIMIT else Krylov(tol=1e-2, n_probes=64, probe="fixed")
