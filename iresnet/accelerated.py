"""Solvers that accelerate fixed-point iteration: Anderson's and Newton's methods."""

__all__ = ["Anderson", "NewtonKrylov"]

from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.errors import IResNetError
from iresnet.krylov import KrylovSpace
from iresnet.solvers import Jacobian, Solver, State, Stepper


class Anderson(Solver):
    r"""Anderson acceleration: each step combines the last few so that the residual is smallest. The default.

    .. math:: x_{k+1} = f(x_k) - \sum_i \gamma_i \Delta f_i, \quad \gamma = \arg\min |r_k - \sum_i \gamma_i \Delta r_i|,

    with :math:`r = f(x) - x` and differences between successive steps. A step that neither halves a sample's residual
    nor reduces it as much as a plain step was seen to do is taken back and replaced by a plain one. So it converges for
    every contraction, in at most twice the evaluations that L or 1/2 a step would take. Where the Jacobian is close to
    a rotation of many dimensions it gains little; :class:`NewtonKrylov` with as many steps as dimensions does better.

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

    def _start(self, x: Tensor, jacobian: Jacobian) -> Stepper:  # noqa: ARG002
        return _AndersonStepper(x, self.window)


@dataclass
class _AndersonState(State):
    dr: Tensor  # (n, window, D), differences of residuals, of norm 1; unused slots are zero
    df: Tensor  # of f, divided by the same numbers


class _AndersonStepper(Stepper):
    state: _AndersonState

    def __init__(self, x: Tensor, window: int):
        zeros = x.new_zeros(len(x), window, x.shape[1])
        super().__init__(_AndersonState.start(x, dr=zeros, df=zeros.clone()))
        self.window = window

    def learn(self, x: Tensor, r: Tensor) -> None:
        if self.observed == 1:
            return
        state, slot = self.state, (self.observed - 2) % self.window
        dr, df = r - state.r, x + r - state.x - state.r
        scale = dr.norm(dim=1, keepdim=True)
        inverse = torch.where(scale > torch.finfo(r.dtype).tiny, 1 / scale, 0.0)
        state.dr[:, slot], state.df[:, slot] = inverse * dr, inverse * df

    def accelerate(self, active: Tensor) -> Tensor | None:  # noqa: ARG002
        if self.observed == 1:
            return None
        return self.state.x + self.state.r - torch.einsum("nw,nwd->nd", self._coefficients(), self.state.df)

    def _coefficients(self) -> Tensor:  # (n, window)
        """Least squares by the normal equations, damped so that unused and dependent slots get nothing."""
        dr, r = self.state.dr, self.state.r
        gram = torch.einsum("nwd,nvd->nwv", dr, dr)
        empty = (gram.diagonal(dim1=1, dim2=2) == 0).to(gram.dtype)
        gram = gram + torch.diag_embed(empty + 10 * torch.finfo(gram.dtype).eps)
        return torch.linalg.solve_ex(gram, torch.einsum("nwd,nd->nw", dr, r)[..., None])[0][..., 0]


class NewtonKrylov(Solver):
    r"""Newton's method, whose linear systems are projected on Krylov spaces: few steps, each of several products.

    .. math:: x_{k+1} = x_k + (I - J)^{-1} (f(x_k) - x_k), \quad J = df/dx(x_k)

    A step that neither halves a sample's residual nor reduces it as much as a plain step was seen to do is taken back
    and replaced by a plain one, so this too converges for every contraction. Costs ``n_steps`` Jacobian products for
    each evaluation of f: on mild contractions :class:`Anderson` needs fewer in all; this one wins for tight tolerances.

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

    def _start(self, x: Tensor, jacobian: Jacobian) -> Stepper:
        return _NewtonStepper(x, self.n_steps, jacobian)


class _NewtonStepper(Stepper):
    def __init__(self, x: Tensor, n_steps: int, jacobian: Jacobian):
        super().__init__(State.start(x))
        self.products = min(n_steps, x.shape[1])
        self.jacobian = jacobian

    def accelerate(self, active: Tensor) -> Tensor:
        product = self.jacobian(self.state.x, active)
        space = KrylovSpace(lambda v: -product(v), self.state.r, self.products)
        while not space.complete:
            space.extend()
        return self.state.x + space.inverse()
