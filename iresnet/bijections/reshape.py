"""Maps that move elements and change none: squeeze, reorder, factor out, flatten, injective padding."""

__all__ = ["FactorOut", "Flatten", "InjectivePad", "Isometry", "Reorder", "Squeeze", "latent_shapes", "trace"]

import math
from collections.abc import Callable, Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.bijections.base import Bijection, Chain, LogDets, Report, check_events
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.solvers import Solver


class Isometry(Bijection):
    """Bijection that keeps volumes and distances, as one does that puts the elements of an event in other places."""

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        return self(x), x.new_zeros(x.shape[0])

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`."""
        return 1.0, 1.0


class Squeeze(Isometry):
    """Space to depth: every 2x2 square of pixels becomes 4 C channels of one pixel.

    Channels are ordered (row, column, channel), so that the first half holds the even rows of *all* colors, as in the
    2019 code, and not some of the colors.

    Shape:
        (N, C, H, W) -> (N, 4 C, H / 2, W / 2).

    Raises:
        IResNetError: at use, when H or W is odd.

    Example:
        >>> Squeeze()(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        check_events(x, "Squeeze", (None, None, None))
        n, c, h, w = x.shape
        if h % 2 or w % 2:
            raise IResNetError(
                f"Squeeze halves both sides of an image and needs even ones, got {h}x{w}; pad the images"
            )
        x = x.reshape(n, c, h // 2, 2, w // 2, 2)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        check_events(z, "the inverse of Squeeze", (None, None, None))
        n, c, h, w = z.shape
        if c % 4:
            raise IResNetError(f"the inverse of Squeeze makes 4 channels into one, got {c} channels")
        z = z.reshape(n, 2, 2, c // 4, h, w)
        return z.permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


class Reorder(Isometry):
    r"""Put the channels (or features) in another order.

    Args:
        order: for each channel of z the one of x, each once.

    Shape:
        (N, C, \*) -> the same.

    Raises:
        IResNetError: when ``order`` is no permutation of 0, ..., C - 1.

    Example:
        >>> Reorder([2, 0, 1])(torch.tensor([[10.0, 11.0, 12.0]]))
        tensor([[12., 10., 11.]])
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]):
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise IResNetError(f"Reorder takes each of 0, ..., {len(order) - 1} once, got {list(order)}")
        # Not saved: they follow from the architecture.
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(order).argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        check_events(x, f"Reorder of {len(self.order)} channels", (len(self.order), ...))
        return x[:, self.order]

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        check_events(z, f"the inverse of Reorder of {len(self.back)} channels", (len(self.back), ...))
        return z[:, self.back]


class Flatten(Isometry):
    r"""Flatten events to vectors.

    Args:
        shape: \*E, the event shape that :meth:`inverse` restores.

    Shape:
        (N, \*E) -> (N, D).

    Example:
        >>> Flatten((3, 4, 4))(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 48])
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        check_events(x, "Flatten", self.shape)
        return x.flatten(1)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        check_events(z, "the inverse of Flatten", (math.prod(self.shape),))
        return z.reshape(z.shape[0], *self.shape)

    def extra_repr(self) -> str:
        """Describe the map."""
        return f"shape={self.shape}"


class FactorOut(Bijection):
    r"""Send half of the channels straight to the latent, and the other half through the rest of the model.

    .. math:: z = (x_{1}, f(x_{2})), \quad \log|\det dz/dx| = \log|\det df/dx_2|

    where x_1 is the first half of the channels (the smaller one when odd).

    Args:
        shape: (C, H, W) of x.
        rest: the bijection f of the second half, (N, C - C // 2, H, W) -> (N, D').

    Raises:
        IResNetError: when there is only one channel.

    Shape:
        (N, C, H, W) -> (N, D), both parts flattened.

    Reference:
        Density Estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio 2017, https://arxiv.org/abs/1605.08803

    Example:
        >>> FactorOut((4, 2, 2), Flatten((2, 2, 2)))(torch.zeros(3, 4, 2, 2)).shape
        torch.Size([3, 16])
    """

    def __init__(self, shape: tuple[int, int, int], rest: Bijection):
        super().__init__()
        channels, height, width = shape
        if channels < 2:
            raise IResNetError(f"FactorOut needs at least 2 channels to halve, got {channels}; put a Squeeze before it")
        self.shape = (channels, height, width)
        self.out_shape = (channels // 2, height, width)
        self.rest_channels = channels - channels // 2
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        out, kept = self.split(x)
        return torch.cat([out.flatten(1), self.rest(kept)], dim=1)

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        out, kept = self.split(x)
        z, total = self.rest.forward_and_logdet(kept, logdet=logdet)
        return torch.cat([out.flatten(1), z], dim=1), total

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:
        """See :meth:`Bijection.inverse`."""
        out, latents = self.split_latents(z)
        return torch.cat([out, self.rest.inverse(latents, solver=solver, report=report)], dim=1)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        """See :meth:`Bijection.stretch`; half of the channels stay as they are."""
        lower, upper = self.rest.stretch(lipschitz)
        return min(1.0, lower), max(1.0, upper)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C // 2, H, W), (N, C - C // 2, H, W)
        """Split the channels into those that leave and those that go on."""
        check_events(x, "FactorOut", self.shape)
        return x.split([self.out_shape[0], self.rest_channels], dim=1)  # pyright: ignore[reportReturnType]

    def split_latents(self, z: Tensor) -> tuple[Tensor, Tensor]:  # (N, C // 2, H, W), (N, D')
        """Split latents into the channels that left and the latents of those that went on."""
        check_events(z, "the inverse of FactorOut", (math.prod(self.shape),))
        n_out = math.prod(self.out_shape)
        return z[:, :n_out].reshape(z.shape[0], *self.out_shape), z[:, n_out:]


class InjectivePad(Bijection):
    """Append channels of zeros: more room for a classifier, invertible on its image, but without a density.

    Args:
        channels: how many channels to append.

    Shape:
        (N, C, H, W) -> (N, C + channels, H, W).

    Raises:
        IResNetError: from :meth:`forward_and_logdet`, since the image of the map has volume zero.

    Reference:
        i-RevNet: Deep Invertible Networks, Jacobsen, Smeulders and Oyallon 2018, https://arxiv.org/abs/1802.07088

    Example:
        >>> InjectivePad(2)(torch.ones(1, 1, 1, 1)).flatten()
        tensor([1., 0., 0.])
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels < 1:
            raise IResNetError(f"InjectivePad appends at least 1 channel, got {channels}")
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        check_events(x, "InjectivePad", (None, None, None))
        return F.pad(x, (0, 0, 0, 0, 0, self.channels))

    def forward_and_logdet(
        self,
        x: Tensor,  # noqa: ARG002
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Refuse: a padded image has no density."""
        raise IResNetError(
            "InjectivePad maps onto a set of volume zero, so it has no log-determinant; use it for classification "
            "only, and Squeeze for densities"
        )

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """Drop the appended channels."""
        check_events(z, "the inverse of InjectivePad", (None, None, None))
        if z.shape[1] <= self.channels:
            raise IResNetError(f"the inverse of InjectivePad drops {self.channels} channels, got {z.shape[1]}")
        return z[:, : z.shape[1] - self.channels]

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`."""
        return 1.0, 1.0

    def extra_repr(self) -> str:
        """Describe the map."""
        return f"channels={self.channels}"


def latent_shapes(bijection: Callable[[Tensor], Tensor]) -> list[tuple[int, ...] | None]:
    """Return the shapes (C, H, W) of the images that make up a latent vector, one for each scale that leaves the model.

    Args:
        bijection: a map that ends by flattening an image, of which :class:`FactorOut` may have taken parts before.

    Returns:
        The shapes, one for each scale; None for the last when it is not known to be an image.

    Example:
        >>> latent_shapes(Chain([Squeeze(), FactorOut((4, 8, 8), Chain([Squeeze(), Flatten((8, 4, 4))]))]))
        [(2, 8, 8), (8, 4, 4)]
        >>> latent_shapes(Flatten((5,)))
        [None]
    """
    match bijection:
        case Chain() if len(bijection.bijections):
            return latent_shapes(bijection.bijections[-1])
        case FactorOut():
            return [bijection.out_shape, *latent_shapes(bijection.rest)]
        case Flatten() if len(bijection.shape) == 3:
            return [bijection.shape]
        case _:
            return [None]


def trace(
    bijection: Bijection,
    x: Tensor,  # (N, *E)
    *,
    density: bool = True,
    logdet: LogDets | None = None,
) -> Generator[tuple[Bijection, tuple[Tensor, ...]], None, Tensor]:
    """Run a bijection and yield what comes out of each bijection that it consists of, in the order of the data.

    Args:
        bijection: the map; those that a :class:`Chain` or a :class:`FactorOut` holds are run one by one.
        x: data.
        density: whether to compute log-determinants.
        logdet: replaces the estimators of the residual blocks.

    Yields:
        The bijection, and its z or (z, logdet).

    Returns:
        z of the whole.

    Example:
        >>> chain = Chain([Squeeze(), Flatten((4, 1, 1))])
        >>> [(type(inner).__name__, tuple(z.shape)) for inner, (z, _) in trace(chain, torch.ones(2, 1, 2, 2))]
        [('Squeeze', (2, 4, 1, 1)), ('Flatten', (2, 4))]
    """
    match bijection:
        case Chain():
            for inner in bijection.bijections:
                x = yield from trace(inner, x, density=density, logdet=logdet)  # pyright: ignore[reportArgumentType]
            return x
        case FactorOut():
            out, kept = bijection.split(x)
            z = yield from trace(bijection.rest, kept, density=density, logdet=logdet)
            return torch.cat([out.flatten(1), z], dim=1)
    outputs = bijection.forward_and_logdet(x, logdet=logdet) if density else (bijection(x),)
    yield bijection, outputs
    return outputs[0]
