"""Estimators of log det(I + J) by power series: truncated, and of random length."""

__all__ = ["LENGTHS", "PowerSeries", "RussianRoulette"]

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from iresnet.devices import is_readable
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.logdet import Hutchinson, Quadratic


class PowerSeries(Hutchinson):
    r"""Log-determinant by the truncated power series of 2019, for comparison.

    .. math:: \log\det(I + J) \approx \sum_{k=1}^{n} \frac{(-1)^{k+1}}{k} v^T J^k v

    It is biased and converges slowly where eigenvalues approach -1. Use :class:`Krylov` for results: with the same
    number of Jacobian products its bias is orders of magnitude smaller.

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

    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> Quadratic:
        value, w = _series(vjp, v, [1.0] * self.n_terms)
        return Quadratic(
            value, w, lambda lipschitz: torch.full_like(value, self._tail_bound(lipschitz, v)), self.n_terms
        )

    def _tail_bound(self, lipschitz: float, v: Tensor) -> float:
        r"""Bound the expectation of the omitted terms, with :math:`|\mathrm{tr} J^k| \le D L^k`."""
        if not lipschitz < 1:
            return math.inf
        kept = sum(lipschitz**k / k for k in range(1, self.n_terms + 1))
        return v.shape[1] * (-math.log1p(-lipschitz) - kept)

    def __repr__(self) -> str:
        return f"PowerSeries(n_terms={self.n_terms}, n_probes={self.n_probes})"


def _series(
    vjp: Callable[[Tensor], Tensor], v: Tensor, weights: Sequence[float]
) -> tuple[Tensor, Tensor]:  # (N,), (N, D)
    """Sum the weighted series of v^T log(I + A) v and, for its gradient term by term, that of (I + A)^-1 v."""
    value = torch.zeros_like(v[:, 0])
    w = torch.zeros_like(v)
    term = v  # (-J^T)^(k-1) v
    for k, weight in enumerate(weights, start=1):
        w = w + weight * term  # the gradient of the k-th term is E[v^T (-J)^(k-1) dJ v]
        term = -vjp(term)
        value = value - weight * (term * v).sum(1) / k
    return value, w


LENGTHS: dict[str, Callable[[int, float], float]] = {
    "geometric": lambda k, p: (1 - p) ** k,
    "poisson": lambda k, rate: 1 - sum(math.exp(-rate) * rate**j / math.factorial(j) for j in range(k)),
}
"""Probability that at least k further terms are drawn, given the chance to stop before each, or their mean number."""


class RussianRoulette(Hutchinson):
    r"""Unbiased log-determinant by the power series, cut at a random length and reweighted.

    .. math::
        \log\det(I + J) = E\Big[\sum_{k=1}^{n + K} \frac{(-1)^{k+1}}{k} \frac{v^T J^k v}{P(K \ge k - n)}\Big]

    The first n terms are always computed. The length is drawn once for the batch, and is the same on all processes of a
    distributed run, so that they stay in step; with a generator of its own, each process draws by itself. The variance
    is finite only when the survival probabilities fall more slowly than :math:`L^{2k}`: for geometric lengths, when
    :math:`1 - p > L^2`. Use :class:`Krylov` unless you need an unbiased estimate: its bias is far below the standard
    error of this one.

    Args:
        n_exact: terms that are always computed.
        p: chance to stop before each further term (geometric), or mean number of further terms (poisson).
        n_probes: probes averaged for each sample.
        lengths: ``"geometric"`` or ``"poisson"``.
        probe: ``"rademacher"``, ``"hadamard"``, ``"fixed"`` or ``"shared"`` (see
            :class:`~iresnet.logdet.Hutchinson`), or ``"gaussian"``.
        generator: source of randomness; torch's global one when None.

    Reference:
        Residual Flows for Invertible Generative Modeling, Chen et al. 2019, https://arxiv.org/abs/1906.02735

    Example:
        >>> from iresnet import linearize
        >>> J = linearize(lambda x: 0.5 * x, torch.zeros(1, 2))
        >>> estimates = torch.stack([RussianRoulette()(J) for _ in range(1000)])
        >>> bool((estimates.mean() - 2 * torch.tensor(1.5).log()).abs() < 0.05)
        True
    """

    def __init__(
        self,
        n_exact: int = 2,
        p: float = 0.5,
        n_probes: int = 1,
        *,
        lengths: str = "geometric",
        probe: str = "rademacher",
        generator: torch.Generator | None = None,
    ):
        super().__init__(n_probes, probe, generator)
        if n_exact < 1:
            raise IResNetError(f"n_exact must be at least 1, got {n_exact}")
        if lengths not in LENGTHS:
            raise UnknownNameError("distribution of lengths", lengths, LENGTHS)
        if not 0 < p < (1 if lengths == "geometric" else math.inf):
            raise IResNetError(f"p must lie in (0, 1) for geometric lengths and be positive for poisson, got {p}")
        self.n_exact = n_exact
        self.p = p
        self.lengths = lengths

    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> Quadratic:
        survival = [LENGTHS[self.lengths](k, self.p) for k in range(1, self._draw_length() + 1)]
        weights = [1.0] * self.n_exact + [1 / chance for chance in survival]
        value, w = _series(vjp, v, weights)
        return Quadratic(value, w, lambda lipschitz: torch.zeros_like(value), len(weights))

    def _draw_length(self) -> int:
        """Draw the number of further terms: invert the survival function at a uniform number shared by all processes.

        It is drawn on the CPU, where it is needed, or by the generator of another device if there is one.
        """
        device = self.generator.device if self.generator else "cpu"
        u = torch.rand((), dtype=torch.float64, generator=self.generator, device=device).cpu()
        if not is_readable(u):
            raise IResNetError(
                "RussianRoulette draws one length for all samples, which torch.vmap and torch.compile cannot do; use "
                "Krylov there"
            )
        if dist.is_available() and dist.is_initialized() and self.generator is None:
            dist.broadcast(u, src=0)
        uniform, k = float(u), 0
        while uniform < LENGTHS[self.lengths](k + 1, self.p):
            k += 1
        return k

    def __repr__(self) -> str:
        return f"RussianRoulette(n_exact={self.n_exact}, p={self.p}, n_probes={self.n_probes})"
