"""Solvers of fixed-point equations x = f(x), sample by sample."""

__all__ = ["Anderson", "FixedPointIteration", "Solution", "Solver"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.errors import IResNetError


@dataclass(frozen=True)
class Solution:
    r"""What a solver found, and how far it can be trusted; all but ``value`` are per sample, shape (N,).

    Attributes:
        value: the solution x, (N, \*E).
        converged: whether the last step was within the tolerance.
        residual: largest change of any element in the last step, :math:`|x_k - x_{k-1}|_\infty`.
        steps: evaluations of f that the sample took part in.
        error_bound: upper bound of the Euclidean distance to the true solution,
            :math:`L/(1-L) \, |x_k - x_{k-1}|_2`, from a Lipschitz bound L of f; infinite when none below 1 is known.
    """

    value: Tensor
    converged: Tensor
    residual: Tensor
    steps: Tensor
    error_bound: Tensor

    def __str__(self) -> str:
        error = float(self.error_bound.max())
        return (
            f"{int(self.converged.sum())} of {len(self.converged)} samples converged; residual at most "
            f"{float(self.residual.max()):.1e}, steps {int(self.steps.min())} to {int(self.steps.max())}"
            + (f", error at most {error:.1e}" if math.isfinite(error) else "")
        )


class Solver(ABC):
    """Finds x = f(x) for maps f that contract, by steps that use f's values alone.

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
    def _start(self, x: Tensor) -> "_Stepper":
        """Return the memory of a solve that starts at x, (N, D)."""

    @torch.no_grad()
    def solve(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,  # (N, *E)
        *,
        lipschitz: float = math.inf,
    ) -> Solution:
        r"""Solve x = f(x).

        Args:
            f: called with x, (n, \*E), and the indices (n,) of the samples that are still active.
            x: where to start.
            lipschitz: a bound of f's Lipschitz constant, for the error bound.

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
        stepper = self._start(x.flatten(1))
        rtol = 4 * torch.finfo(x.dtype).eps if self.rtol is None else self.rtol
        for _ in range(self.max_steps if n else 0):
            fx = f(x, active)
            change = (fx - x).flatten(1)
            largest = change.abs().amax(1)
            value[active], residual[active], distance[active] = fx, largest, change.norm(dim=1)
            steps[active] += 1
            finite = torch.isfinite(largest)  # else inf <= atol + rtol * inf would pass for convergence
            done = finite & (largest <= self.atol + rtol * fx.flatten(1).abs().amax(1))
            converged[active] = done
            keep = finite & ~done
            active = active[keep]
            if len(active) == 0:
                break
            x = stepper.step(x.flatten(1), fx.flatten(1), keep).view(-1, *x.shape[1:])
        factor = lipschitz / (1 - lipschitz) if lipschitz < 1 else math.inf
        bound = torch.where(distance == 0, 0.0, factor * distance)
        return Solution(value, converged, residual, steps, bound)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(atol={self.atol}, max_steps={self.max_steps})"


class _Stepper(ABC):
    """Proposes the next x of the samples that stay."""

    @abstractmethod
    def step(self, x: Tensor, fx: Tensor, keep: Tensor) -> Tensor:
        """From x and f(x), both (n, D), return the next x of the samples where ``keep``, (n,), is true."""


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

    def _start(self, x: Tensor) -> _Stepper:  # noqa: ARG002
        return _PlainStepper()


class _PlainStepper(_Stepper):
    def step(self, x: Tensor, fx: Tensor, keep: Tensor) -> Tensor:  # noqa: ARG002
        return fx[keep]


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

    def _start(self, x: Tensor) -> _Stepper:
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

    def step(self, x: Tensor, fx: Tensor, keep: Tensor) -> Tensor:
        self._drop(keep)
        fx, r = fx[keep], (fx - x)[keep]
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
        return self.last_f - torch.einsum("nw,nwd->nd", self._coefficients(r), self.df)

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
