"""Monotone splines of each feature, learned."""

__all__ = ["Spline"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iresnet.bijections.base import Bijection, LogDets, Report, check_events
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.solvers import Solver

_LEAST = 1e-4
"""Smallest slope at a knot, whose inverse is the largest, and smallest bin, in parts of the interval over the bins."""
_STEEPEST = -math.log(_LEAST)
_PSEUDO = 1000
"""Of so many examples one is taken to lie anywhere in the interval, for data to come that a sample does not show."""


class Spline(Bijection):
    r"""Monotone rational-quadratic spline of each feature, the identity at first.

    Between two knots, with :math:`\xi \in [0, 1]` the position between them, h the difference of their values, s the
    slope of their chord and :math:`d_0, d_1` the slopes at the knots:

    .. math::
        z = z_0 + h \frac{s \xi^2 + d_0 \xi (1 - \xi)}{q}, \quad
        \frac{dz}{dx} = s^2 \frac{d_1 \xi^2 + 2 s \xi (1 - \xi) + d_0 (1 - \xi)^2}{q^2}, \quad
        q = s + (d_0 + d_1 - 2 s) \xi (1 - \xi)

    An interval, at first [-bound, bound], is mapped onto [-bound, bound], and its outside by the same scale and shift:
    an example beyond those seen in training must not be thrown far. Values, slopes and the position of knots are
    learned; :meth:`fit` starts them from data. Unlike a residual block a spline may be steep: where data have edges,
    gaps, levels or long tails it takes them off the blocks, along the axes. It mixes no features.

    Args:
        shape: \*E, the event shape; a number D for (D,).
        bins: K, intervals between knots.
        bound: end of the knots in z.

    Shape:
        (N, \*E) -> the same.

    Raises:
        IResNetError: for less than one bin, or more than 5000, or a bound that is not positive.

    Reference:
        Neural Spline Flows, Durkan, Bekasov, Murray and Papamakarios 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> spline = Spline(2, bins=4)
        >>> x = torch.tensor([[0.5, -7.0]])
        >>> spline(x).detach()
        tensor([[ 0.5000, -7.0000]])
        >>> _ = nn.init.normal_(spline.slopes)
        >>> bool(torch.allclose(spline.inverse(spline(x)), x, atol=1e-5))
        True
    """

    low: Tensor
    high: Tensor

    def __init__(self, shape: int | Sequence[int], bins: int = 8, *, bound: float = 4.0):
        super().__init__()
        if not 1 <= bins <= 0.5 / _LEAST:
            raise IResNetError(f"a spline has 1 to {0.5 / _LEAST:.0f} bins, got {bins}")
        if not 0 < bound < math.inf:
            raise IResNetError(f"the bound of a spline must be positive and finite, got {bound}")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.bound = bound
        features = math.prod(self.shape)
        self.register_buffer("low", torch.full((features,), -bound))
        self.register_buffer("high", torch.full((features,), bound))
        self.widths = nn.Parameter(torch.zeros(features, bins))
        self.heights = nn.Parameter(torch.zeros(features, bins))
        self.slopes = nn.Parameter(torch.zeros(features, bins - 1))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        r"""Start from data, over which each feature of z is then nearly standard normal.

        The interval becomes that of the data, of each channel, and the knots lie where :math:`\Phi^{-1}` of the
        distribution function has equal steps. One example in a thousand is added at even distances over the interval,
        for what the data do not show.

        Args:
            x: examples, (N, \*E).

        Raises:
            IResNetError: for less than two examples, and for channels that are constant or not finite.

        Example:
            >>> x = torch.randn(1000, 1).exp()
            >>> spline = Spline(1, bins=16)
            >>> spline.fit(x)
            >>> z = spline(x)
            >>> bool(z.mean().abs() < 0.05), bool((z.std() - 1).abs() < 0.05)
            (True, True)
        """
        self._check(x)
        places = (0, *range(2, x.dim()))
        low, high = (end.expand(x[:1].shape).flatten() for end in (x.amin(places, True), x.amax(places, True)))
        if not bool(((low < high) & torch.isfinite(high - low)).all()):
            raise IResNetError(
                f"a spline is fitted to finite examples of which no channel is constant, got {len(x)} from "
                f"{low.min():g} to {high.max():g}"
            )
        self.low.copy_(low)
        self.high.copy_(high)
        n_bins = self.widths.shape[1]
        heights = torch.linspace(-self.bound, self.bound, n_bins + 1, dtype=torch.float64, device=x.device)
        knots = _quantiles(self._scaled(x).double(), torch.special.ndtr(heights[1:-1]), self.bound)
        widths = (knots.diff(dim=1) / (2 * self.bound)).clamp(min=2 * _LEAST)
        widths /= widths.sum(1, keepdim=True)
        chords = 1 / (n_bins * widths)
        slopes = 2 / (1 / chords[:, 1:] + 1 / chords[:, :-1])  # the harmonic mean, as in monotone cubic interpolation
        self.widths.copy_((widths - _LEAST).log())
        self.heights.zero_()
        self.slopes.copy_(_STEEPEST * torch.atanh((slopes.log() / _STEEPEST).clamp(-0.99, 0.99)))

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        return self.forward_and_logdet(x)[0]

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        self._check(x)
        scaled = self._scaled(x)
        inside = scaled.clamp(-self.bound, self.bound)
        x0, z0, w, h, d0, d1 = self._bins_of(inside, 0)
        z, slope = _between(_within((inside - x0) / w), h, h / w, d0, d1)
        z = z0 + z + (scaled - inside)
        return z.view_as(x), (slope * (2 * self.bound / (self.high - self.low))).log().sum(1)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`; a quadratic equation."""
        self._check(z)
        flat = z.flatten(1)
        inside = flat.clamp(-self.bound, self.bound)
        x0, z0, w, h, d0, d1 = self._bins_of(inside, 1)
        s, y = h / w, inside - z0
        # a xi^2 + b xi = c with c >= 0, in the form of its root that loses no digits; a is positive where b is not.
        curvature = y * (d0 + d1 - 2 * s)
        a, b, c = h * (s - d0) + curvature, h * d0 - curvature, s * y
        root = b.abs() + (b.square() + 4 * a * c).clamp(min=torch.finfo(z.dtype).tiny).sqrt()  # 0 has no derivative
        xi = torch.where(b < 0, root, 2 * c) / torch.where(b < 0, 2 * a, root)
        scaled = x0 + w * _within(xi) + (flat - inside)
        return (self.low + (scaled + self.bound) * (self.high - self.low) / (2 * self.bound)).view_as(z)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`: the least and the largest slope, at knots and where the curvature is 0."""
        with torch.no_grad():
            _, _, w, h, d0, d1 = self._table().double().unbind(-1)
            s = h / w
            # With u = A xi + s - d0 and A = d0 + d1 - 2 s the curvature is that of u^3 + p u + r, up to a factor.
            curving, start = d0 + d1 - 2 * s, s - d0
            p = 3 * (d0 * d1 - s.square())
            r = curving * (start * s - curving * d0) - start**3 - p * start
            roots = _roots(p, r)
            inner = ((roots - start[..., None]) / curving[..., None]).nan_to_num(0.0).clamp(0, 1)
            positions = torch.cat([inner, torch.zeros_like(inner[..., :1]), torch.ones_like(inner[..., :1])], -1)
            slopes = _between(positions, *(v[..., None] for v in (h, s, d0, d1)))[1].flatten(1)
            slopes *= (2 * self.bound / (self.high - self.low).double())[:, None]
        return float(slopes.min()), float(slopes.max())

    def _scaled(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, D)
        """Map the interval to [-bound, bound]."""
        return (x.flatten(1) - self.low) * (2 * self.bound / (self.high - self.low)) - self.bound

    def _bins_of(
        self,
        values: Tensor,  # (N, D)
        side: int,
    ) -> tuple[Tensor, ...]:  # of (N, D)
        """Return the parameters of the bins that values of x (side 0) or of z (side 1) fall in."""
        table = self._table()
        bins = (values[..., None] >= table[:, 1:, side]).sum(-1)
        return table[torch.arange(len(table), device=bins.device), bins].unbind(-1)

    def _table(self) -> Tensor:  # (D, K, 6)
        """Return the parameters of every bin: where it begins, in x and z, its width and height, slopes at its ends."""
        sizes = [self._sizes(raw) for raw in (self.widths, self.heights)]
        starts = [F.pad(size.cumsum(-1)[:, :-1], (1, 0)) - self.bound for size in sizes]
        slopes = F.pad((_STEEPEST * torch.tanh(self.slopes / _STEEPEST)).exp(), (1, 1), value=1.0)
        return torch.stack([*starts, *sizes, slopes[:, :-1], slopes[:, 1:]], -1)

    def _sizes(self, raw: Tensor) -> Tensor:
        return 2 * self.bound * (_LEAST + (1 - raw.shape[1] * _LEAST) * raw.softmax(-1))

    def _check(self, x: Tensor) -> None:
        check_events(x, f"Spline({self.extra_repr()})", self.shape)

    def extra_repr(self) -> str:
        """Describe the map."""
        return f"{self.shape}, bins={self.widths.shape[1]}, bound={self.bound}"


def _quantiles(
    x: Tensor,  # (N, D)
    at: Tensor,  # (K - 1,)
    bound: float,
) -> Tensor:  # (D, K + 1)
    """Return quantiles of each feature, between the ends of the interval; examples at even distances are added."""
    n_added = 2 + len(x) // _PSEUDO
    added = torch.linspace(-bound, bound, n_added, dtype=x.dtype, device=x.device)
    values = torch.cat([x, added[:, None].expand(-1, x.shape[1])]).sort(0).values.T
    position = at * (values.shape[1] - 1)
    left = position.long().clamp(max=values.shape[1] - 2)
    inner = torch.lerp(values[:, left], values[:, left + 1], (position - left).expand(len(values), -1))
    return torch.cat([values[:, :1], inner, values[:, -1:]], 1)


def _within(xi: Tensor) -> Tensor:
    """Clamp a position between two knots, which may round to more than 1 before the second one; its derivative stays.

    Beyond 1 the formula of the slope may be negative.
    """
    return xi + (xi.clamp(0, 1) - xi).detach()


def _between(xi: Tensor, h: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value above that of the first knot, and the slope, at a position between two knots."""
    across = xi * (1 - xi)
    q = s + (d0 + d1 - 2 * s) * across
    value = h * (s * xi.square() + d0 * across) / q
    return value, (s / q).square() * (d1 * xi.square() + 2 * s * across + d0 * (1 - xi).square())


def _roots(p: Tensor, r: Tensor) -> Tensor:  # (*,), (*,) -> (*, 3)
    """Return the real parts of the roots of u^3 + p u + r, the eigenvalues of its companion matrix."""
    companion = p.new_zeros(*p.shape, 3, 3)
    companion[..., 1, 0] = companion[..., 2, 1] = 1.0
    companion[..., 0, 2], companion[..., 1, 2] = -r, -p
    return torch.linalg.eigvals(companion).real
