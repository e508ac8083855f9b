"""Densities on the plane, each with exact samples and an exact density."""

__all__ = [
    "CONDITIONAL_TOYS",
    "TOYS",
    "Checkerboard",
    "Curve",
    "PolarCurves",
    "Toy",
    "Turning",
    "TwistedGaussians",
    "toy_dataset",
]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from iresnet.data.columns import Column
from iresnet.data.dataset import Dataset, Split

_SIZES = {"train": 10_000, "validation": 2_000, "test": 10_000}


class Toy(ABC):
    """Probability density on the plane, most of it within [-4, 4] x [-4, 4].

    Since the density is known, so is the best possible value of a model's likelihood: the negative
    entropy, which the mean of ``log_prob`` over samples estimates.
    """

    @abstractmethod
    def sample(
        self,
        n: int,
        generator: Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:  # (n, 2)
        """Draw independent points.

        Args:
            n: how many.
            generator: source of randomness, on ``device``.
            dtype: type of the result.
            device: where to draw; the generator's device by default.

        Returns:
            The points, shape ``(n, 2)``.
        """

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:  # (N, 2) -> (N,)
        """Return the logarithm of the density, in nats, ``-inf`` where it is zero.

        Args:
            x: points, shape ``(N, 2)``.

        Returns:
            One value per point, shape ``(N,)``.
        """


@dataclass(frozen=True)
class TwistedGaussians(Toy):
    r"""Equal Gaussians around a circle, turned by an angle that grows with the radius.

    With :math:`f` from the mixture and :math:`R(a)` the rotation by the angle :math:`a`, a point is
    :math:`x = R(\omega |f|) f`. A rotation that depends on the radius alone keeps radii and areas, so
    :math:`p(x) = p_f(R(-\omega |x|) x)`.

    Args:
        n: number of Gaussians.
        radius: distance of their means from the origin.
        radial: standard deviation along the radius.
        tangential: standard deviation across it.
        twist: the angle :math:`\omega` per unit of radius.

    Example:
        >>> toy = TwistedGaussians(1, radius=0.0, radial=1.0, tangential=1.0)
        >>> bool(torch.isclose(toy.log_prob(torch.zeros(1, 2)), torch.tensor(-math.log(2 * math.pi))))
        True
    """

    n: int
    radius: float
    radial: float
    tangential: float
    twist: float = 0.0

    def sample(
        self,
        n: int,
        generator: Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw independent points, shape ``(n, 2)``; see :meth:`Toy.sample`."""
        device = _device(generator, device)
        which = torch.randint(self.n, (n,), generator=generator, device=device)
        noise = torch.randn(n, 2, generator=generator, dtype=dtype, device=device)
        local = torch.stack([self.radius + self.radial * noise[:, 0], self.tangential * noise[:, 1]], 1)
        return _rotate(local, which * (2 * math.pi / self.n) + self.twist * local.norm(dim=1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, shape ``(N,)``; see :meth:`Toy.log_prob`."""
        untwisted = _rotate(x, -self.twist * x.norm(dim=1))
        angles = torch.arange(self.n, dtype=x.dtype, device=x.device) * (2 * math.pi / self.n)
        local = torch.stack([_rotate(untwisted, -angle.expand(len(x))) for angle in angles])  # (n, N, 2)
        along = _log_normal(local[..., 0] - self.radius, self.radial)
        across = _log_normal(local[..., 1], self.tangential)
        return (along + across).logsumexp(0) - math.log(self.n)


@dataclass(frozen=True)
class Curve:
    r"""Curve in polar coordinates: radius :math:`a + b t` at the angle :math:`t + t_0`.

    Args:
        start: first value of :math:`t`.
        stop: last value of :math:`t`.
        radius: the radius :math:`a` at :math:`t = 0`.
        growth: the growth :math:`b` of the radius per radian.
        turn: the angle :math:`t_0`.
        center: origin of the radius.
    """

    start: float
    stop: float
    radius: float
    growth: float = 0.0
    turn: float = 0.0
    center: tuple[float, float] = (0.0, 0.0)

    def points(self, uniform: Tensor, noise: Tensor) -> Tensor:  # (n,), (n,) -> (n, 2)
        """Return the points at fractions of the range of :math:`t`, with noise added to the radius."""
        t = self.start + (self.stop - self.start) * uniform
        r = self.radius + self.growth * t + noise
        direction = torch.stack([(t + self.turn).cos(), (t + self.turn).sin()], 1)
        return r[:, None] * direction + torch.tensor(self.center, dtype=t.dtype, device=t.device)


@dataclass(frozen=True)
class PolarCurves(Toy):
    r"""Points along curves in polar coordinates, with Gaussian noise along the radius.

    A curve is chosen, all being equally likely, then its parameter, uniformly, then the radius
    :math:`r = a + b t + \sigma n` with :math:`n \sim N(0, 1)`. A position at the distance :math:`\rho` and
    the angle :math:`\phi` from the center is reached with :math:`r = \rho` at every parameter
    :math:`t \equiv \phi - t_0` modulo :math:`2 \pi`, and with :math:`r = -\rho` half a turn later, so

    .. math:: p(x) = \frac{1}{\rho} \sum_{s = \pm 1} \sum_t p(t)\, N(s \rho;\, a + b t, \sigma^2).

    Args:
        curves: the curves.
        noise: standard deviation :math:`\sigma` of the radius.

    Example:
        >>> ring = PolarCurves((Curve(0.0, 2 * math.pi, radius=2.0),), noise=0.1)
        >>> on, off = ring.log_prob(torch.tensor([[0.0, 2.0], [0.0, 0.5]])).exp()
        >>> bool(on > 0.3 and off < 1e-9)
        True
    """

    curves: tuple[Curve, ...]
    noise: float

    def sample(
        self,
        n: int,
        generator: Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw independent points, shape ``(n, 2)``; see :meth:`Toy.sample`."""
        device = _device(generator, device)
        which = torch.randint(len(self.curves), (n,), generator=generator, device=device)
        uniform = torch.rand(n, generator=generator, dtype=dtype, device=device)
        noise = self.noise * torch.randn(n, generator=generator, dtype=dtype, device=device)
        points = torch.stack([curve.points(uniform, noise) for curve in self.curves])  # (curves, n, 2)
        return points[which, torch.arange(n, device=device)]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, shape ``(N,)``; see :meth:`Toy.log_prob`."""
        each = torch.stack([self._log_prob(curve, x) for curve in self.curves])
        return each.logsumexp(0) - math.log(len(self.curves))

    def _log_prob(self, curve: Curve, x: Tensor) -> Tensor:
        offset = x - torch.tensor(curve.center, dtype=x.dtype, device=x.device)
        rho, phi = offset.norm(dim=1), torch.atan2(offset[:, 1], offset[:, 0]) - curve.turn
        terms = [term for sign in (1, -1) for term in self._passes(curve, sign * rho, phi + (sign < 0) * math.pi)]
        rho = rho.clamp_min(1e-3 * self.noise)  # cuts off the pole at the center, which has next to no mass
        return torch.stack(terms).logsumexp(0) - rho.log() - math.log(curve.stop - curve.start)

    def _passes(self, curve: Curve, r: Tensor, phi: Tensor) -> list[Tensor]:
        """Return the log-density of ``r`` at each parameter of the curve that has the angle ``phi``."""
        first = curve.start + torch.remainder(phi - curve.start, 2 * math.pi)
        turns = math.ceil((curve.stop - curve.start) / (2 * math.pi) - 1e-9)
        passes = []
        for turn in range(turns):
            t = first + 2 * math.pi * turn
            value = _log_normal(r - curve.radius - curve.growth * t, self.noise)
            passes.append(torch.where(t <= curve.stop, value, -torch.inf))
        return passes


@dataclass(frozen=True)
class Checkerboard(Toy):
    """Uniform density on every other square of a board with an even number of squares a side.

    Args:
        squares: number of squares a side, even.
        half_width: the board is [-half_width, half_width] in both directions.

    Example:
        >>> toy = Checkerboard()
        >>> toy.log_prob(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).exp()
        tensor([0.0312, 0.0000])
    """

    squares: int = 4
    half_width: float = 4.0

    def sample(
        self,
        n: int,
        generator: Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw independent points, shape ``(n, 2)``; see :meth:`Toy.sample`."""
        device = _device(generator, device)
        column = torch.randint(self.squares, (n,), generator=generator, device=device)
        half_row = torch.randint(self.squares // 2, (n,), generator=generator, device=device)
        square = torch.stack([column, 2 * half_row + column % 2], 1)
        inside = torch.rand(n, 2, generator=generator, dtype=dtype, device=device)
        return (square + inside) * self._width - self.half_width

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, shape ``(N,)``; see :meth:`Toy.log_prob`."""
        square = ((x + self.half_width) / self._width).floor()
        on_board = ((square >= 0) & (square < self.squares)).all(1)
        filled = square.sum(1).remainder(2) == 0
        area = (2 * self.half_width) ** 2 / 2
        return torch.where(on_board & filled, -math.log(area), -torch.inf).to(x.dtype)

    @property
    def _width(self) -> float:
        return 2 * self.half_width / self.squares


@dataclass(frozen=True)
class Turning:
    r"""Density on the plane given an angle, by which a toy is turned about the origin.

    .. math:: p(x \mid c) = p(R(-c) x)

    Angles are uniform on [0, pi).

    Args:
        toy: the density at the angle 0.

    Example:
        >>> moons = Turning(TOYS["moons"])
        >>> x, c = moons.sample(5)
        >>> moons.log_prob(x, c).shape
        torch.Size([5])
    """

    toy: Toy

    def sample(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:  # (n, 2), (n, 1)
        """Draw independent points with their angles."""
        x = self.toy.sample(n, generator)
        angle = math.pi * torch.rand(n, 1, generator=generator)
        return _rotate(x, angle[:, 0]), angle

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:  # (N, 2), (N, 1) -> (N,)
        """Return the log-density of points given their angles, in nats."""
        return self.toy.log_prob(_rotate(x, -context[:, 0]))


def _device(generator: Generator | None, device: torch.device | str | None) -> torch.device:
    return torch.device(device) if device is not None else generator.device if generator else torch.device("cpu")


def _rotate(x: Tensor, angle: Tensor) -> Tensor:  # (N, 2), (N,) -> (N, 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


def _log_normal(x: Tensor, sd: float) -> Tensor:
    return -0.5 * (x / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))


_PI = math.pi

#: The toy densities by name.
TOYS: dict[str, Toy] = {
    "8gaussians": TwistedGaussians(8, radius=2 * math.sqrt(2), radial=0.35, tangential=0.35),
    "2spirals": PolarCurves(
        tuple(Curve(0.5 * _PI, 3 * _PI, radius=0.0, growth=1 / 3, turn=turn) for turn in (0.0, _PI)), noise=0.1
    ),
    "checkerboard": Checkerboard(),
    "rings": PolarCurves(tuple(Curve(0.0, 2 * _PI, radius=0.75 * (i + 1)) for i in range(4)), noise=0.08),
    "moons": PolarCurves(
        (Curve(0.0, _PI, 2.0, center=(-1.0, -0.5)), Curve(_PI, 2 * _PI, 2.0, center=(1.0, 0.5))), noise=0.2
    ),
    "pinwheel": TwistedGaussians(5, radius=2.0, radial=0.6, tangential=0.2, twist=0.5),
    "swissroll": PolarCurves((Curve(1.5 * _PI, 4.5 * _PI, radius=0.0, growth=0.25),), noise=0.15),
}

#: The toy densities given a context, by name.
CONDITIONAL_TOYS: dict[str, Turning] = {"turning-moons": Turning(TOYS["moons"])}


def toy_dataset(name: str) -> Dataset:
    """Draw a fixed data set from a toy density: 10000 points to train on, 2000 and 10000 for validation and test.

    Args:
        name: one of :data:`TOYS` or :data:`CONDITIONAL_TOYS`.

    Returns:
        Points of shape ``(2,)``, float32, without labels or levels; with the angles that turned them as contexts.

    Example:
        >>> print(toy_dataset("moons"))
        moons: 10000 train, 2000 validation, 10000 test; 2, continuous, no labels
    """
    sizes, generator = list(_SIZES.values()), torch.Generator().manual_seed(0)
    source = "drawn from iresnet.data.TOYS with seed 0"
    if name in CONDITIONAL_TOYS:
        x, angle = CONDITIONAL_TOYS[name].sample(sum(sizes), generator)
        pairs = zip(x.split(sizes), angle.split(sizes), strict=True)
        return Dataset(
            name, *(Split(*pair) for pair in pairs), levels=None, source=source, context=(Column("angle", 1),)
        )
    return Dataset(name, *map(Split, TOYS[name].sample(sum(sizes), generator).split(sizes)), levels=None, source=source)
