"""Krylov spaces: logarithm and inverse of I + A times a vector, from a few products with A."""

__all__ = ["KrylovSpace"]

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from iresnet.devices import is_transforming
from iresnet.precision import without_autocast


class KrylovSpace:
    """Krylov space of A at v for each sample, grown one product with A at a time (Arnoldi's process).

    Args:
        product: u -> A u, (N, D) -> (N, D).
        v: (N, D).
        max_steps: products after which the space is complete.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], v: Tensor, max_steps: int):
        if is_transforming():  # torch.vmap must map Q and H, which are made from v, wherever it maps the products
            v = v + 0 * product(v)
        self.product = product
        self.steps = 0
        self._solved: dict[int, tuple[Tensor, Tensor]] = {}  # by number of steps
        self.length = vector_norm(v, dim=1)  # (N,)
        # Each vector is contiguous, as convolutions want it. H has a column of zeros in front, see _shifted.
        self.Q = v.new_empty(max_steps, *v.shape)
        self._H = v.new_zeros(v.shape[0], max_steps, max_steps + 1)
        _store(torch.div, v, self.length.clamp(min=torch.finfo(v.dtype).tiny)[:, None], self.Q[0])

    @property
    def H(self) -> Tensor:  # (N, m, m)  # noqa: N802 (its name in the books)
        """Projection of A, of all steps."""
        return self._H[..., 1:]

    @property
    def complete(self) -> bool:
        """True once all steps are done."""
        return self.steps == len(self.Q)

    def extend(self) -> None:
        """Multiply the newest vector with A and orthogonalize the product twice against the basis."""
        r = self.product(self.Q[self.steps])
        self.steps += 1
        with without_autocast(r.device):
            self._orthogonalize(r, self.steps)

    def _orthogonalize(self, r: Tensor, m: int) -> None:
        basis = self.Q[:m].transpose(0, 1)  # (N, m, D)
        h, rest = _project_out(basis, r[:, None])
        correction, left = _project_out(basis, rest)
        self.left = left[:, 0]
        _store(torch.add, h[:, 0], correction[:, 0], self.H[:, :m, m - 1])
        if self.complete:
            return
        # A remainder below rounding means that the space is invariant: the next vectors are zero, H gets zero rows and
        # columns, and the result is exact.
        length = vector_norm(self.left, dim=1).clamp(min=torch.finfo(r.dtype).tiny)
        is_open = length > 10 * torch.finfo(r.dtype).eps * vector_norm(r, dim=1)
        _store(torch.mul, length, is_open, self.H[:, m, m - 1])
        _store(torch.mul, self.left, (is_open / length)[:, None], self.Q[m])

    def inverse(self) -> Tensor:  # (N, D)
        """Return :math:`(I+A)^{-1} v`: see :meth:`solve`."""
        with without_autocast(self.Q.device):
            identity = torch.eye(self.steps, dtype=self.H.dtype, device=self.H.device)
            systems = identity + self.H[:, : self.steps, : self.steps]
            # With pivots, as linear solves are also done for maps that are no contractions. solve_ex does not stop on a
            # singular system: the numbers in the result show it.
            return self._improved(torch.linalg.solve_ex(systems, identity[:, 0].expand(systems.shape[:-1]))[0])

    def solve(self) -> tuple[Tensor, Tensor]:  # (N,), (N, D)
        r"""Return :math:`v^T \log(I+A) v`, projected, and :math:`(I+A)^{-1} v`, projected and then improved.

        The residual :math:`r = v - (I+A) w` of the projection :math:`w = |v| Q (I+H)^{-1} e_1` costs nothing: it is a
        multiple of the remainder of the last product outside of the space. The error of w + r is A times that of w, up
        to the sign, so it is smaller for every contraction.
        """
        with without_autocast(self.Q.device):
            value, y = self._small(self.steps)
            return value, self._improved(y)

    def last_change(self) -> Tensor:  # (N,)
        """Return how much the last step changed the value: 0 once the space is invariant or has dimension D."""
        if self.steps == self.Q.shape[-1]:
            return torch.zeros_like(self.length)
        with without_autocast(self.Q.device):
            before = self._small(self.steps - 1)[0] if self.steps > 1 else torch.zeros_like(self.length)
            return (self._small(self.steps)[0] - before).abs()

    def settled(self, tol: float) -> bool:
        """Return whether the last step changed no value by more than ``tol``."""
        return bool((self.last_change() <= tol).all())

    def _small(self, m: int) -> tuple[Tensor, Tensor]:  # (N,), (N, m)
        r"""Return :math:`|v|^2 e_1^T \log(I+H) e_1` and :math:`(I+H)^{-1} e_1` for the first m steps; computed once.

        The logarithm is an integral, taken by quadrature:
        :math:`\log(I+H) e_1 = \int_0^1 H (I + tH)^{-1} e_1 \, dt`. The inverse is the same system at t = 1.
        """
        if m not in self._solved:
            t, weights, template = _constants(self._H)
            y = self._shifted(t, template, m)
            integral = torch.einsum("t,tnm->nm", weights, y[:-1])
            self._solved[m] = self.length.square() * torch.linalg.vecdot(self.H[:, 0, :m], integral), y[-1]
        return self._solved[m]

    def _shifted(self, t: Tensor, template: Tensor, m: int) -> Tensor:  # (T,), (M, M + 1) -> (T, N, m)
        """Solve (I + t H) y = e_1 for every t and the first m steps, by elimination along the subdiagonal of H.

        The template is [e_1, I]: each system has its right side in front. It needs no pivots, since the symmetric part
        of I + t H is positive for every contraction. For other maps the numbers in the result show what they are.
        """
        systems = torch.addcmul(template[:m, : m + 1], t[:, None, None, None], self._H[:, :m, : m + 1])
        rows = [systems[..., 0, :]]  # (T, N, m + 1) each
        for i in range(1, m):
            factor = systems[..., i, i] / rows[-1][..., i]
            rows.append(torch.addcmul(systems[..., i, :], factor[..., None], rows[-1], value=-1))
        y: list[Tensor] = [t] * m
        for i in reversed(range(m)):
            right = rows[i][..., 0]
            for j in range(i + 1, m):
                right = torch.addcmul(right, rows[i][..., j + 1], y[j], value=-1)
            y[i] = right / rows[i][..., i + 1]
        return torch.stack(y, -1)

    def _improved(self, y: Tensor) -> Tensor:  # (N, m) -> (N, D)
        projected = (y[:, None] @ self.Q[: self.steps].transpose(0, 1))[:, 0]
        return self.length[:, None] * torch.addcmul(projected, y[:, -1:], self.left, value=-1)


def _store(operation: Callable[..., Tensor], a: Tensor, b: Tensor, target: Tensor) -> None:
    """Write what an operation gives into a part of a tensor: directly, but where torch.vmap or a compiler cannot."""
    if torch.compiler.is_compiling() or is_transforming():
        target.copy_(operation(a, b))
    else:
        operation(a, b, out=target)


def _project_out(basis: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:  # (N, m, D), (N, 1, D) -> (N, 1, m), (N, 1, D)
    # Products of rows, which a CPU takes ten times faster than those of columns.
    coefficients = r @ basis.mT
    return coefficients, torch.baddbmm(r, coefficients, basis, alpha=-1)


# Gauss-Legendre nodes u on [0, 1], moved to t = 1 - u^2 with weights 2 u du. For an eigenvalue near -1 the integrand
# has a pole just beyond t = 1; the substitution replaces its distance by the square root, which is larger.
_U, _DU = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
_U = (_U + 1) / 2
_NODES_AND_1, _WEIGHTS = torch.cat([1 - _U.square(), _U.new_ones(1)]), _U * _DU
_COPIES: dict[tuple[torch.dtype, torch.device, int], tuple[Tensor, Tensor, Tensor]] = {}


def _constants(H: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (N, M, M + 1) -> (T + 1,), (T,), (M, M + 1)
    """Return the nodes followed by t = 1, the weights, and [e_1, I]; copied to a device once, since a copy blocks."""
    if torch.compiler.is_compiling():
        return _copied_constants(H)
    key = H.dtype, H.device, H.shape[1]
    if key not in _COPIES:
        _COPIES[key] = _copied_constants(H)
    return _COPIES[key]


def _copied_constants(H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    identity = torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    return _NODES_AND_1.to(H), _WEIGHTS.to(H), torch.cat([identity[:, :1], identity], 1)
