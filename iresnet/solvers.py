"""Solvers of fixed-point equations x = f(x), sample by sample."""

__all__ = ["Anderson", "FixedPointIteration", "NewtonKrylov", "Solution", "Solver"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, linearize
from iresnet.krylov import KrylovSpace


@dataclass(frozen=True)
class Solution:
    r"""What a solver found, and how far it can be trusted; all but ``value`` are per sample, shape (N,).

    Attributes:
        value: the solution x, (N, \*E).
        converged: whether the last step was within the tolerance.
        residual: largest change of any element in the last step, :math:`|x_k - x_{k-1}|_\infty`.
        steps: steps that the sample took part in, each with one evaluation of f.
        evaluations: evaluations of f and products with its Jacobian that were spent on the sample.
        error_bound: upper bound of the Euclidean distance to the true solution,
            :math:`L/(1-L) \, |x_k - x_{k-1}|_2`, from a Lipschitz bound L of f; infinite when none below 1 is known.
    """

    value: Tensor
    converged: Tensor
    residual: Tensor
    steps: Tensor
    evaluations: Tensor
    error_bound: Tensor

    def __str__(self) -> str:
        error = float(self.error_bound.max())
        return (
            f"{int(self.converged.sum())} of {len(self.converged)} samples converged; residual at most "
            f"{float(self.residual.max()):.1e}, steps {int(self.steps.min())} to {int(self.steps.max())}"
            + (f", error at most {error:.1e}" if math.isfinite(error) else "")
        )


class Solver(ABC):
    """Finds x = f(x) for maps f that contract.

    A sample has converged when one application of f changes none of its elements by more than ``atol``, or than the
    rounding of f itself: ``rtol`` times its largest element. Samples that have converged, or are not finite any more,
    leave the batch, so hard samples do not make easy ones pay, nor spoil them.

    Args:
        atol: tolerance on the largest change of an element in one step.
        rtol: the same, relative to the largest element; four units of rounding when None.
        max_steps: evaluations of f after which a sample is given up.

    Raises:
        IResNetError: when a tolerance or the number of steps cannot be used.
    """

    def __init__(self, atol: float = 1e-5, *, rtol: float | None = None, max_steps: int = 200):
        if not atol > 0 or (rtol is not None and not rtol >= 0):
            raise IResNetError(f"tolerances must be positive, got atol={atol} and rtol={rtol}")
        if max_steps < 1:
            raise IResNetError(f"max_steps must be at least 1, got {max_steps}")
        self.atol = atol
        self.rtol = rtol
        self.max_steps = max_steps

    @abstractmethod
    def _start(self, x: Tensor, linearized: Callable[[Tensor, Tensor], Linearization]) -> "_Stepper":
        """Return the memory of a solve that starts at x, (N, D)."""

    @torch.no_grad()
    def solve(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,  # (N, *E)
        *,
        lipschitz: float = math.inf,
        linearized: Callable[[Tensor, Tensor], Linearization] | None = None,
    ) -> Solution:
        r"""Solve x = f(x).

        Args:
            f: called with x, (n, \*E), and the indices (n,) of the samples that are still active.
            x: where to start.
            lipschitz: a bound of f's Lipschitz constant, for the error bound.
            linearized: called like f, returns its linearisation, for solvers that use one; ``torch.func`` makes it
                from f when None.

        Returns:
            The solution of every sample and its report.
        """
        n = len(x)
        value = x.clone()
        residual = x.new_full((n,), math.inf)
        distance = x.new_full((n,), math.inf)
        converged = torch.zeros(n, dtype=torch.bool, device=x.device)
        steps = torch.zeros(n, dtype=torch.long, device=x.device)
        active = torch.arange(n, device=x.device)
        evaluations = torch.zeros_like(steps)
        stepper = self._start(x.flatten(1), linearized or (lambda x, active: linearize(lambda x: f(x, active), x)))
        rtol = 4 * torch.finfo(x.dtype).eps if self.rtol is None else self.rtol
        for _ in range(self.max_steps if n else 0):
            fx = f(x, active)
            change = (fx - x).flatten(1)
            largest = change.abs().amax(1)
            value[active], residual[active], distance[active] = fx, largest, change.norm(dim=1)
            steps[active] += 1
            evaluations[active] += 1
            finite = torch.isfinite(largest)  # else inf <= atol + rtol * inf would pass for convergence
            done = finite & (largest <= self.atol + rtol * fx.flatten(1).abs().amax(1))
            converged[active] = done
            keep = finite & ~done
            active = active[keep]
            if len(active) == 0:
                break
            x = stepper.step(x[keep], fx[keep], keep, active)
            evaluations[active] += stepper.products
        factor = lipschitz / (1 - lipschitz) if lipschitz < 1 else math.inf
        bound = torch.where(distance == 0, 0.0, factor * distance)
        return Solution(value, converged, residual, steps, evaluations, bound)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(atol={self.atol}, max_steps={self.max_steps})"


class _Stepper(ABC):
    """Proposes the next x of the samples that stay."""

    products = 0
    """Jacobian products spent on each sample in a step."""

    @abstractmethod
    def step(self, x: Tensor, fx: Tensor, keep: Tensor, active: Tensor) -> Tensor:
        r"""Return the next x of the samples that stay.

        Args:
            x: of the samples that stay, (n, \*E).
            fx: f(x).
            keep: which of the samples of the last step stay.
            active: their indices, (n,).
        """


class FixedPointIteration(Solver):
    r"""Plain iteration :math:`x_{k+1} = f(x_k)`: converges for every contraction, by a factor L a step.

    Use :class:`Anderson` unless you want to compare with the published method: it takes a fraction of the steps.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> solution = FixedPointIteration(atol=1e-6).solve(lambda x, active: 0.5 * x + 1, torch.zeros(3, 2))
        >>> bool((solution.value - 2).abs().max() < 1e-5)
        True
    """

    def _start(self, x: Tensor, linearized: Callable) -> _Stepper:  # noqa: ARG002
        return _PlainStepper()


class _PlainStepper(_Stepper):
    def step(self, x: Tensor, fx: Tensor, keep: Tensor, active: Tensor) -> Tensor:  # noqa: ARG002
        return fx


class Anderson(Solver):
    r"""Anderson acceleration: each step combines the last few so that the residual is smallest. The default.

    .. math:: x_{k+1} = f(x_k) - \sum_i \gamma_i \Delta f_i, \quad \gamma = \arg\min |r_k - \sum_i \gamma_i \Delta r_i|,

    with :math:`r = f(x) - x` and differences between successive steps. A step that does not reduce a sample's residual
    is taken back and replaced by a plain one, which does: so the residual never grows. Where the
    Jacobian is close to a rotation it gains little; :class:`NewtonKrylov` does better there.

    Args:
        atol: see :class:`Solver`.
        window: how many differences are combined.
        rtol: see :class:`Solver`.
        max_steps: see :class:`Solver`.

    Reference:
        Anderson Acceleration for Fixed-Point Iterations, Walker and Ni 2011, https://doi.org/10.1137/10078356X

    Example:
        >>> solution = Anderson(atol=1e-6).solve(lambda x, active: torch.cos(x), torch.zeros(1, 4))
        >>> bool(solution.converged.all()), int(solution.steps.max()) < 10
        (True, True)
    """

    def __init__(self, atol: float = 1e-5, *, window: int = 5, rtol: float | None = None, max_steps: int = 200):
        super().__init__(atol, rtol=rtol, max_steps=max_steps)
        if window < 1:
            raise IResNetError(f"window must be at least 1, got {window}")
        self.window = window

    def _start(self, x: Tensor, linearized: Callable) -> _Stepper:  # noqa: ARG002
        return _AndersonStepper(x, self.window)


class _AndersonStepper(_Stepper):
    def __init__(self, x: Tensor, window: int):
        n, d = x.shape
        self.window = window
        self.dr = x.new_zeros(n, window, d)  # differences of residuals; unused slots are zero
        self.df = x.new_zeros(n, window, d)
        self.last_r = x.new_zeros(n, d)
        self.last_f = x.new_zeros(n, d)
        self.last_size = x.new_full((n,), math.inf)
        self.count = 0

    def step(self, x: Tensor, fx: Tensor, keep: Tensor, active: Tensor) -> Tensor:  # noqa: ARG002
        self._drop(keep)
        shape, fx = x.shape, fx.flatten(1)
        r = fx - x.flatten(1)
        size = r.norm(dim=1)
        grew = size > self.last_size
        if self.count:
            slot = (self.count - 1) % self.window
            self.dr[:, slot] = r - self.last_r
            self.df[:, slot] = fx - self.last_f
            self.dr[grew] = 0.0
            self.df[grew] = 0.0
        # A step that made it worse is taken back: from the last f, whose residual is at most L times the last one.
        self.last_r = torch.where(grew[:, None], self.last_r, r)
        self.last_f = torch.where(grew[:, None], self.last_f, fx)
        self.last_size = torch.where(grew, self.last_size, size)
        self.count += 1
        return (self.last_f - torch.einsum("nw,nwd->nd", self._coefficients(r), self.df)).view(shape)

    def _drop(self, keep: Tensor) -> None:
        if not bool(keep.all()):
            for name in ("dr", "df", "last_r", "last_f", "last_size"):
                setattr(self, name, getattr(self, name)[keep])

    def _coefficients(self, r: Tensor) -> Tensor:  # (n, window)
        """Least squares by the normal equations, scaled and damped so that unused and dependent slots get nothing."""
        scale = self.dr.norm(dim=2)
        unit = self.dr / scale.clamp(min=torch.finfo(r.dtype).tiny)[..., None]
        gram = torch.einsum("nwd,nvd->nwv", unit, unit)
        damping = 10 * torch.finfo(r.dtype).eps * torch.eye(self.window, dtype=r.dtype, device=r.device)
        empty = torch.diag_embed((scale == 0).to(r.dtype))
        gamma = torch.linalg.solve_ex(gram + damping + empty, torch.einsum("nwd,nd->nw", unit, r)[..., None])[0][..., 0]
        return torch.where(scale > 0, gamma / scale.clamp(min=torch.finfo(r.dtype).tiny), 0.0)


class NewtonKrylov(Solver):
    r"""Newton's method, whose linear systems are projected on Krylov spaces: few steps, each of several products.

    .. math:: x_{k+1} = x_k + (I - J)^{-1} (f(x_k) - x_k), \quad J = df/dx(x_k)

    A step that does not reduce a sample's residual is followed by a plain one. Costs ``n_steps`` Jacobian products for
    each evaluation of f: on mild contractions :class:`Anderson` needs fewer in all; this one wins for tight tolerances,
    and where the Jacobian is close to a rotation.

    Args:
        atol: see :class:`Solver`.
        n_steps: Jacobian products in each linear solve.
        rtol: see :class:`Solver`.
        max_steps: see :class:`Solver`.

    Reference:
        Jacobian-free Newton-Krylov methods: a survey of approaches and applications, Knoll and Keyes 2004,
        https://doi.org/10.1016/j.jcp.2003.08.010

    Example:
        >>> solution = NewtonKrylov(atol=1e-6).solve(lambda x, active: torch.cos(x), torch.zeros(1, 4))
        >>> bool(solution.converged.all()), int(solution.steps.max()) < 7
        (True, True)
    """

    def __init__(self, atol: float = 1e-5, *, n_steps: int = 5, rtol: float | None = None, max_steps: int = 200):
        super().__init__(atol, rtol=rtol, max_steps=max_steps)
        if n_steps < 1:
            raise IResNetError(f"n_steps must be at least 1, got {n_steps}")
        self.n_steps = n_steps

    def _start(self, x: Tensor, linearized: Callable[[Tensor, Tensor], Linearization]) -> _Stepper:
        return _NewtonStepper(x, self.n_steps, linearized)


class _NewtonStepper(_Stepper):
    def __init__(self, x: Tensor, n_steps: int, linearized: Callable[[Tensor, Tensor], Linearization]):
        self.products = min(n_steps, x.shape[1])
        self.linearized = linearized
        self.last_size = x.new_full((len(x),), math.inf)

    def step(self, x: Tensor, fx: Tensor, keep: Tensor, active: Tensor) -> Tensor:
        r = (fx - x).flatten(1)
        size = r.norm(dim=1)
        grew = size > self.last_size[keep]
        # After a plain step, whose residual is at most L times this one, Newton's step is tried again.
        self.last_size = torch.where(grew, math.inf, size)
        jacobian = self.linearized(x, active)
        space = KrylovSpace(lambda v: -jacobian.jvp(v.view_as(x)).flatten(1), r, self.products)
        while not space.complete:
            space.extend()
        newton = x + space.inverse().view_as(x)
        return torch.where(grew.view(-1, *[1] * (x.dim() - 1)), fx, newton)
