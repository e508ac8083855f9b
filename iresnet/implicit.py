"""Solutions of equations, differentiated to any order by solving linear systems."""

__all__ = ["Equation", "Product", "implicit", "solve_linear"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iresnet.accelerated import Anderson
from iresnet.devices import is_transforming, refuse_forward_over_forward
from iresnet.jacobian import with_known_signature
from iresnet.krylov import KrylovSpace
from iresnet.operators import to_events, to_vectors
from iresnet.solvers import Solver, warn_unless_converged

Product = Callable[[Tensor], Tensor]
Equation = Callable[..., tuple[Tensor, Product, Product]]
"""From a solution u and its inputs to r(u, inputs), up to a constant, and the products with A and its transpose."""
LinearSolve = Callable[[Product, Tensor], Tensor]


def implicit(residual: Tensor, value: Tensor, equation: Equation, solve: LinearSolve, *inputs: Tensor) -> Tensor:
    r"""Return the solution of an equation, with its derivatives.

    .. math::
        r(u, \theta) = 0, \quad \partial r / \partial u = -(I + A), \quad
        du = (I + A)^{-1} \, \partial_\theta r \, d\theta

    A derivative costs one solve. It is the solution of a linear equation itself, so higher orders are right too.

    Args:
        residual: :math:`r(u, \theta)` at the solution, (N, \*E), with the graph of first derivatives.
        value: the solution u, without derivatives; any solver may have found it.
        equation: computes r again from u and the inputs, for derivatives of higher order.
        solve: from the products with A and a right-hand side b to :math:`(I + A)^{-1} b`; not differentiated.
        inputs: :math:`\theta`.

    Reference:
        Efficient and Modular Implicit Differentiation, Blondel et al. 2022, https://arxiv.org/abs/2105.15183

    Example:
        >>> def equation(u, a):  # (1 + a) u = 3
        ...     return 3 - u - a * u, lambda v: a * v, lambda v: a * v
        >>> a = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
        >>> value = 3 / (1 + a.detach())
        >>> u = implicit(equation(value, a)[0], value, equation, solve_linear, a)
        >>> round(torch.autograd.grad(u, a)[0].item(), 6)
        -1.333333
    """
    refuse_forward_over_forward()
    return _Implicit.apply(residual, value, equation, solve, *inputs)  # pyright: ignore[reportReturnType]


@with_known_signature
class _Implicit(torch.autograd.Function):
    """Identity on the solution, whose derivatives are those of the equation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, value: Tensor, equation: Equation, solve: LinearSolve, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, _, ctx.equation, ctx.solve, *of_equation = inputs
        ctx.save_for_backward(output, *of_equation)
        ctx.save_for_forward(output, *of_equation)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        value, *inputs = ctx.saved_tensors
        none = [None] * (4 + len(inputs))
        if upstream is None:
            return tuple(none)
        u = _solve_with_derivatives(ctx.equation, ctx.solve, upstream, value, *inputs, transposed=True)
        if not torch.is_grad_enabled():
            return (u, *none[1:])
        # Derivatives with respect to the inputs alone; the solution is held constant in the residual.
        pulled_back = torch.func.vjp(lambda *inputs: ctx.equation(value, *inputs)[0], *inputs)[1]
        return (*none[:4], *pulled_back(u))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        value, *inputs = ctx.saved_tensors
        along = [torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents[4:], strict=True)]
        b = torch.func.jvp(lambda *inputs: ctx.equation(value, *inputs)[0], tuple(inputs), tuple(along))[1]
        return _solve_with_derivatives(ctx.equation, ctx.solve, b, value, *inputs, transposed=False)


def _solve_with_derivatives(
    equation: Equation, solve: LinearSolve, b: Tensor, value: Tensor, *inputs: Tensor, transposed: bool
) -> Tensor:
    """Solve u + A u = b, or with the transpose of A; differentiable in grad mode."""

    def linear(u: Tensor, b: Tensor, value: Tensor, *inputs: Tensor) -> tuple[Tensor, Product, Product]:
        _, *products = equation(value, *inputs)  # with A, and with its transpose
        product, adjoint = products[transposed], products[not transposed]
        return b - u - product(u), product, adjoint

    with torch.no_grad():
        _, *products = equation(value, *inputs)
        u = solve(products[transposed], b.detach()).detach()
    if not torch.is_grad_enabled():
        return u
    return implicit(linear(u, b, value, *inputs)[0], u, linear, solve, b, value, *inputs)


def solve_linear(product: Product, b: Tensor, *, solver: Solver | None = None) -> Tensor:  # (N, *E)
    """Solve u + A u = b for a contraction A, without derivatives.

    Under transforms of :mod:`torch.func`, which forbid looking at values, it is solved by projection on a Krylov space.

    Args:
        product: u -> A u.
        b: right-hand sides.
        solver: Anderson acceleration to near the rounding of the type when None.

    Warns:
        ConvergenceWarning: when a sample did not converge.
    """
    if is_transforming():
        return _solve_by_projection(product, b)
    solver = solver or Anderson(torch.finfo(b.dtype).eps ** (2 / 3))
    # The tolerance of the solver is absolute, so each right-hand side is scaled to size 1.
    size = b.flatten(1).abs().amax(1).view(-1, *[1] * (b.dim() - 1))
    unit = b / torch.where(size > 0, size, 1.0)

    def step(u: Tensor, active: Tensor) -> Tensor:
        # The product acts on the full batch; converged samples are zero in it and dropped from the result.
        batch = torch.zeros_like(unit).index_copy(0, active, u)
        return (unit - product(batch))[active]

    solution = solver.solve(step, unit)
    warn_unless_converged("a derivative of an inverse or of a log-determinant", solution, solver)
    return solution.value * size


PROJECTION_STEPS = 64


def _solve_by_projection(product: Product, b: Tensor) -> Tensor:
    shape, v = b.shape, to_vectors(b)
    space = KrylovSpace(lambda v: to_vectors(product(to_events(v, shape))), v, min(PROJECTION_STEPS, v.shape[1]))
    while not space.complete:
        space.extend()
    return to_events(space.inverse(), shape)
