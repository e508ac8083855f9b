r"""Estimators of log det(I + J) whose value and gradient are estimates of the same quantity."""

__all__ = ["PROBES", "Exact", "Krylov", "LogDetEstimator", "PowerSeries"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from iresnet.errors import IResNetError, UnknownNameError
from iresnet.jacobian import Linearization


class LogDetEstimator(ABC):
    r"""Estimates :math:`\log \det (I + J)` of each sample, where J is the Jacobian of a contraction.

    Called with the linearisation of the map at x, an estimator returns a tensor of shape (N,). Its value estimates the
    log-determinant in nats, and its gradient with respect to x and the parameters estimates the gradient of the same
    quantity, also under per-sample upstream weights. Without autograd the work for the gradient is not done.
    """

    @abstractmethod
    def __call__(
        self,
        jacobian: Linearization,  # of g at x, (N, *E) -> (N, *E)
    ) -> Tensor:  # (N,)
        """Estimate the log-determinant of every sample."""


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

    def __call__(self, jacobian: Linearization) -> Tensor:
        """Compute the log-determinant of every sample."""
        dense = self._dense(jacobian)
        return torch.linalg.slogdet(torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device) + dense)[1]

    def _dense(self, jacobian: Linearization) -> Tensor:  # (N, D, D)
        x = jacobian.value
        n, d = x.shape[0], x[0].numel()
        gib = n * d * d * x.element_size() / 2**30
        if gib > self.max_gib:
            raise IResNetError(
                f"Exact needs {gib:.1f} GiB for {n} dense Jacobians of {d} x {d}, more than max_gib={self.max_gib}; "
                "use Krylov(tol=1e-3, max_steps=30), or a smaller batch"
            )
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
        columns = torch.vmap(jacobian.jvp, chunk_size=max(1, 4096 // n))(basis)  # (D, N, *E)
        return _work(columns.flatten(2).permute(1, 2, 0))

    def __repr__(self) -> str:
        return "Exact()"


# -- stochastic ------------------------------------------------------------------------------------------------------


def _rademacher(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(x).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _gaussian(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(x).normal_(generator=generator)


PROBES: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "rademacher": _rademacher,
    "gaussian": _gaussian,
}
"""Random vectors with E[v v^T] = I. Rademacher ones never have the larger variance."""


class _Hutchinson(LogDetEstimator):
    r"""Averages over random probes v, with :math:`\mathrm{tr}\, M = E[v^T M v]`.

    The gradient needs one differentiable Jacobian product for each probe and no more:

    .. math:: d \log\det(I + J) = E[w^T \, dJ \, v], \quad w \approx (I + J^T)^{-1} v,

    so the surrogate :math:`s = w^T J v` with w and v held constant has the right gradient, and ``value + s - stop(s)``
    has the right value too. Nothing ever differentiates through a series.
    """

    def __init__(self, n_probes: int, probe: str, generator: torch.Generator | None):
        if n_probes < 1:
            raise IResNetError(f"n_probes must be at least 1, got {n_probes}")
        if probe not in PROBES:
            raise UnknownNameError("probe", probe, PROBES)
        self.n_probes = n_probes
        self.probe = probe
        self.generator = generator

    @abstractmethod
    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the estimates of v^T log(I + J) v, (N,), and of (I + J^T)^-1 v, (N, D), for a probe v, (N, D)."""

    def __call__(self, jacobian: Linearization) -> Tensor:
        """Estimate the log-determinant of every sample."""
        return torch.stack([self._one_probe(jacobian) for _ in range(self.n_probes)]).mean(0)

    def _one_probe(self, jacobian: Linearization) -> Tensor:
        like = _work(jacobian.value.detach())
        v = PROBES[self.probe](like, self.generator)
        with torch.no_grad():
            value, w = self._solve(lambda q: _work(jacobian.vjp(q.view_as(like))).flatten(1), v.flatten(1))
        if not (torch.is_grad_enabled() and jacobian.value.requires_grad):
            return value
        surrogate = (w * _work(jacobian.jvp(v)).flatten(1)).sum(1)
        return value + surrogate - surrogate.detach()


def _work(x: Tensor) -> Tensor:
    """Reductions and small solves run in float32 at least, whatever the Jacobian products run in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class PowerSeries(_Hutchinson):
    r"""The truncated power series of 2019, kept for comparison: biased, and slow where eigenvalues approach -1.

    .. math:: \log\det(I + J) \approx \sum_{k=1}^{n} \frac{(-1)^{k+1}}{k} v^T J^k v

    Use :class:`Krylov` for results: with the same number of Jacobian products its bias is orders of magnitude smaller.

    Args:
        n_terms: terms of the series, n Jacobian products for each probe.
        n_probes: probes averaged for each sample.
        probe: ``"rademacher"`` or ``"gaussian"`` (the original).
        generator: source of randomness; torch's global one when None.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> from iresnet import linearize
        >>> J = linearize(lambda x: 0.5 * x, torch.zeros(1, 2))
        >>> float(PowerSeries(n_terms=2)(J)) == 2 * (0.5 - 0.5**2 / 2)
        True
    """

    def __init__(
        self,
        n_terms: int = 5,
        n_probes: int = 1,
        *,
        probe: str = "rademacher",
        generator: torch.Generator | None = None,
    ):
        super().__init__(n_probes, probe, generator)
        if n_terms < 1:
            raise IResNetError(f"n_terms must be at least 1, got {n_terms}")
        self.n_terms = n_terms

    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.zeros_like(v[:, 0])
        w = torch.zeros_like(v)
        term = v  # (-J^T)^(k-1) v
        for k in range(1, self.n_terms + 1):
            w = w + term  # the gradient of the k-th term is E[v^T (-J)^(k-1) dJ v]
            term = -vjp(term)
            value = value - (term * v).sum(1) / k
        return value, w

    def __repr__(self) -> str:
        return f"PowerSeries(n_terms={self.n_terms}, n_probes={self.n_probes})"


class Krylov(_Hutchinson):
    r"""Projects I + J on a Krylov space and takes the exact logarithm there: the default.

    Arnoldi on :math:`A = J^T` from the probe v gives an orthonormal basis Q (D x m) and :math:`H = Q^T A Q`, with

    .. math::
        v^T \log(I + A) v \approx |v|^2 e_1^T \log(I + H) e_1, \quad (I + A)^{-1} v \approx |v| Q (I + H)^{-1} e_1.

    Exact when m reaches D, or earlier when the space closes (J zero, a multiple of the identity, of low rank).

    Args:
        n_steps: m, Jacobian products for each probe.
        n_probes: probes averaged for each sample.
        tol: when given, steps are added until the value of every sample changes by at most ``tol`` nats, and
            ``n_steps`` is not used. Waits for the device at each step, so it is for evaluation.
        max_steps: the largest number of steps with ``tol``.
        probe: ``"rademacher"`` or ``"gaussian"``.
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

    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
        limit = self.n_steps if self.tol is None else self.max_steps
        space = _KrylovSpace(vjp, v, min(limit, v.shape[1]))
        if self.tol is None:
            while not space.complete:
                space.extend()
            return space.solve()
        space.extend()
        value, w = space.solve()
        change = math.inf
        while change > self.tol and not space.complete:
            last = value
            space.extend()
            value, w = space.solve()
            change = float((value - last).abs().max())
        return value, w

    def __repr__(self) -> str:
        steps = f"n_steps={self.n_steps}" if self.tol is None else f"tol={self.tol}, max_steps={self.max_steps}"
        return f"Krylov({steps}, n_probes={self.n_probes})"


class _KrylovSpace:
    """The Krylov space of A at v for each sample, grown one product with A at a time (Arnoldi's process)."""

    def __init__(self, product: Callable[[Tensor], Tensor], v: Tensor, max_steps: int):
        self.product = product
        self.steps = 0
        self.length = v.norm(dim=1)  # (N,)
        self.Q = v.new_zeros(len(v), max_steps, v.shape[1])
        self.H = v.new_zeros(len(v), max_steps, max_steps)
        self.Q[:, 0] = v / self.length.clamp(min=torch.finfo(v.dtype).tiny)[:, None]

    @property
    def complete(self) -> bool:
        return self.steps == self.Q.shape[1]

    def extend(self) -> None:
        """Multiply the newest vector with A and orthogonalise, twice, against all."""
        m = self.steps = self.steps + 1
        basis = self.Q[:, :m]
        r = self.product(self.Q[:, m - 1])
        size = r.norm(dim=1)
        h, r = _project_out(basis, r)
        correction, r = _project_out(basis, r)
        self.H[:, :m, m - 1] = h + correction
        if self.complete:
            return
        # What is left below rounding means that the space is closed: the zero vector then continues it, H gets zero
        # rows and columns, and the result is exact.
        left = r.norm(dim=1)
        closed = left <= 10 * torch.finfo(r.dtype).eps * size
        left = left.masked_fill(closed, 0.0)
        self.H[:, m, m - 1] = left
        self.Q[:, m] = torch.where(closed[:, None], 0.0, r / left.masked_fill(closed, 1.0)[:, None])

    def solve(self) -> tuple[Tensor, Tensor]:
        r"""Return :math:`v^T \log(I+A) v` and :math:`(I+A)^{-1} v`.

        The logarithm is an integral, taken on Gauss-Legendre nodes:
        :math:`\log(I+H) e_1 = \int_0^1 H (I + tH)^{-1} e_1 \, dt`. The inverse is the same system at t = 1.
        """
        m = self.steps
        H = self.H[:, :m, :m]
        identity = torch.eye(m, dtype=H.dtype, device=H.device)
        t = _NODES.to(H)[:, None, None, None]
        systems = identity + torch.cat([t, torch.ones_like(t[:1])]) * H  # (nodes + 1, N, m, m)
        # solve_ex does not stop on a singular system (a map that is no contraction): the NaN shows in the result.
        solutions = torch.linalg.solve_ex(systems, identity[:, :1].expand(*systems.shape[:-1], 1))[0][..., 0]
        integral = torch.einsum("t,tnm->nm", _WEIGHTS.to(H), solutions[:-1])
        value = self.length.square() * (H[:, 0] * integral).sum(1)
        w = self.length[:, None] * torch.einsum("nm,nmd->nd", solutions[-1], self.Q[:, :m])
        return value, w


def _project_out(basis: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:  # (N, m, D), (N, D) -> (N, m), (N, D)
    coefficients = torch.einsum("nmd,nd->nm", basis, r)
    return coefficients, r - torch.einsum("nm,nmd->nd", coefficients, basis)


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(nodes + 1) / 2, torch.from_numpy(weights) / 2


_NODES, _WEIGHTS = _gauss_legendre(16)
"""On [0, 1]. The error is about 1e-9 of the value for eigenvalues down to -0.9, and 1e-4 at -0.98."""
