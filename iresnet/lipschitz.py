"""Layers whose Lipschitz constant is held at a coefficient by normalising their weight."""

__all__ = ["LipschitzConv2d", "LipschitzLinear", "PowerIteration", "hold_weights", "same_conv", "same_conv_transpose"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, linearizes

# -- the operator that a weight stands for ---------------------------------------------------------------------------


def _same_padding(kernel: tuple[int, int]) -> tuple[int, int]:
    """Zeros put before the first row and column; an even kernel puts its odd one out at the end, as torch does."""
    return (kernel[0] - 1) // 2, (kernel[1] - 1) // 2


def same_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Zero-padded convolution that keeps the image size, for odd and even kernels.

    Args:
        x: images, (N, in, H, W).
        weight: kernel, (out, in, kh, kw).
        bias: (out,).
    """
    kh, kw = weight.shape[2:]
    top, left = _same_padding((kh, kw))
    if kh % 2 and kw % 2:
        return F.conv2d(x, weight, bias, padding=(top, left))
    return F.conv2d(F.pad(x, (left, kw // 2, top, kh // 2)), weight, bias)


def same_conv_transpose(y: Tensor, weight: Tensor) -> Tensor:
    """Transpose of :func:`same_conv` without bias.

    Args:
        y: images, (N, out, H, W).
        weight: kernel, (out, in, kh, kw).
    """
    kernel = (weight.shape[2], weight.shape[3])
    top, left = _same_padding(kernel)
    if kernel[0] % 2 and kernel[1] % 2:
        return F.conv_transpose2d(y, weight, padding=(top, left))
    full = F.conv_transpose2d(y, weight)
    return full[..., top : top + y.shape[2], left : left + y.shape[3]]


def _apply(weight: Tensor, u: Tensor) -> Tensor:
    return F.linear(u, weight) if weight.dim() == 2 else same_conv(u, weight)


def _apply_transpose(weight: Tensor, v: Tensor) -> Tensor:
    return F.linear(v, weight.t()) if weight.dim() == 2 else same_conv_transpose(v, weight)


# -- normalisation ---------------------------------------------------------------------------------------------------


class PowerIteration(nn.Module):
    r"""Parametrisation that scales a weight down to spectral norm ``coeff`` when its estimated norm is above it.

    .. math:: W \mapsto W \min(1, c / \sigma), \quad \sigma = |W u|,

    where u, the buffer, approaches the first right singular vector: each use in train mode runs ``n_steps`` power
    iterations :math:`u \leftarrow W^T W u / |W^T W u|` from where the last one stopped. In eval mode nothing moves.
    The gradient flows through :math:`\sigma` with u held constant, which is the exact gradient of the norm at a
    singular vector. For a convolution, W is the zero-padded convolution itself on images of the declared size.

    :math:`\sigma` is a *lower* bound of the norm, so this certifies nothing by itself: see :func:`iresnet.certify`.

    Args:
        weight: the weight to normalise, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1).
        domain: shape of the vectors that the operator acts on, (in,) or (in, H, W).
        n_steps: power iterations at each use in train mode.

    Reference:
        Spectral Normalization for Generative Adversarial Networks, Miyato et al. 2018, https://arxiv.org/abs/1802.05957;
        Regularisation of Neural Networks by Enforcing Lipschitz Continuity, Gouk et al. 2018,
        https://arxiv.org/abs/1804.04368

    Example:
        >>> layer = LipschitzLinear(4, 4, coeff=0.5)
        >>> layer.weight = 10 * torch.eye(4)
        >>> bool(torch.linalg.matrix_norm(layer.weight, 2) < 0.51)
        True
    """

    u: Tensor

    def __init__(self, weight: Tensor, *, coeff: float, domain: tuple[int, ...], n_steps: int = 1):
        super().__init__()
        self.coeff = _checked_coeff(coeff)
        if n_steps < 1:
            raise IResNetError(f"n_steps, the power iterations at each use in train mode, is at least 1, got {n_steps}")
        self.n_steps = n_steps
        self.held: Tensor | None = None
        self.register_buffer("u", _unit(torch.randn(1, *domain, dtype=weight.dtype, device=weight.device)))
        self.converge(weight, tol=1e-2, max_steps=20)

    def forward(self, weight: Tensor) -> Tensor:
        """Normalise the weight, after ``n_steps`` iterations in train mode."""
        if self.held is not None:
            return self.held
        if self.training:
            self.iterate(weight, self.n_steps)
        return self.normalise(weight)

    def normalise(self, weight: Tensor) -> Tensor:
        """Scale the weight with the present estimate of its norm, moving nothing."""
        # The estimate is taken in full precision also when the surrounding products are not.
        with torch.autocast(weight.device.type, enabled=False):
            sigma = _apply(weight, self.u.clone()).norm()  # a copy: backward may come after the next iteration
            return weight / torch.clamp(sigma / self.coeff, min=1.0)

    @torch.no_grad()
    def iterate(self, weight: Tensor, n_steps: int) -> None:
        """Run ``n_steps`` power iterations on the buffer."""
        with torch.autocast(weight.device.type, enabled=False):
            for _ in range(n_steps):
                u = _apply_transpose(weight, _apply(weight, self.u))
                # A zero weight maps u to 0, where it would stay for ever; the old direction is as good as any.
                self.u.copy_(torch.where(u.norm() > torch.finfo(u.dtype).tiny, _unit(u), self.u))

    @torch.no_grad()
    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """Iterate until ten further steps change the estimate by less than ``tol`` relative, or ``max_steps`` ran."""
        last = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for _ in range(0, max_steps, 10):
            self.iterate(weight, 10)
            sigma = _apply(weight, self.u).norm()
            if bool((sigma - last).abs() <= tol * sigma):
                return
            last = sigma

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the layer's weight sets the unnormalised one."""
        if weight.shape[1:2] != self.u.shape[1:2]:
            raise IResNetError(f"the weight has {weight.shape[1]} input features, the layer {self.u.shape[1]}")
        return weight

    def extra_repr(self) -> str:
        """Describe the parametrisation."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


def _unit(u: Tensor) -> Tensor:
    return u / u.norm().clamp(min=torch.finfo(u.dtype).tiny)


def _checked_coeff(coeff: float) -> float:
    if not 0.0 < coeff < 1.0:
        raise IResNetError(
            f"coeff is the Lipschitz bound of a layer and must lie in (0, 1) for x + g(x) to be invertible, got {coeff}"
        )
    return float(coeff)


@contextmanager
def hold_weights(module: nn.Module, *, iterate: bool = True) -> Iterator[None]:
    """Compute every normalised weight in ``module`` once and use it for the duration of the context.

    A training step uses each weight many times (value, Jacobian products, their backward) and pays for its
    normalisation once; a solver sees the same weight at every step. Unlike ``parametrize.cached()`` the scope is this
    module and not the process, and a weight is computed under the autograd mode in which the context is entered.

    Args:
        module: the layers inside it are held.
        iterate: whether layers in train mode advance their power iteration first.

    Example:
        >>> layer = LipschitzLinear(3, 3)
        >>> with hold_weights(layer):
        ...     layer.weight is layer.weight
        True
    """
    held = []
    try:
        for layer in module.modules():
            if not isinstance(layer, (LipschitzLinear, LipschitzConv2d)) or layer.normalisation.held is not None:
                continue
            weight = layer.weight if iterate else layer.normalisation.normalise(layer.unnormalised_weight)
            layer.normalisation.held = weight
            held.append(layer.normalisation)
        yield
    finally:
        for normalisation in held:
            normalisation.held = None


# -- layers ----------------------------------------------------------------------------------------------------------


class LipschitzLinear(nn.Linear):
    """A dense layer with spectral norm at most about ``coeff`` (see :class:`PowerIteration`).

    Args:
        in_features: size of the input.
        out_features: size of the output.
        coeff: the largest spectral norm allowed, in (0, 1).
        bias: whether to add a learned bias.
        n_steps: power iterations at each use in train mode.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1).

    Example:
        >>> layer = LipschitzLinear(3, 3, coeff=0.5)
        >>> x, y = torch.randn(2, 100, 3)
        >>> bool(((layer(x) - layer(y)).norm(dim=1) <= 0.51 * (x - y).norm(dim=1)).all())
        True
    """

    def __init__(self, in_features: int, out_features: int, coeff: float = 0.9, *, bias: bool = True, n_steps: int = 1):
        super().__init__(in_features, out_features, bias=bias)
        normalisation = PowerIteration(self.weight, coeff=coeff, domain=(in_features,), n_steps=n_steps)
        parametrize.register_parametrization(self, "weight", normalisation)

    @property
    def normalisation(self) -> PowerIteration:
        """The parametrisation that bounds the weight."""
        return self.parametrizations.weight[0]  # pyright: ignore

    @property
    def unnormalised_weight(self) -> Tensor:
        """The trained parameter, before normalisation."""
        return self.parametrizations.weight.original  # pyright: ignore


class LipschitzConv2d(nn.Conv2d):
    """A zero-padded "same" convolution with operator norm at most about ``coeff`` (see :class:`PowerIteration`).

    The norm is the one of the true operator on images of ``image_size``, zero padding included; images of another size
    would meet another operator and are refused.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd or even.
        coeff: the largest operator norm allowed, in (0, 1).
        image_size: height and width of the images.
        bias: whether to add a learned bias.
        n_steps: power iterations at each use in train mode.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H, W).

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1), or at use when the images have another size.

    Example:
        >>> layer = LipschitzConv2d(2, 4, 3, coeff=0.5, image_size=(8, 8))
        >>> x, y = torch.randn(2, 50, 2, 8, 8)
        >>> bool(((layer(x) - layer(y)).flatten(1).norm(dim=1) <= 0.51 * (x - y).flatten(1).norm(dim=1)).all())
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        coeff: float = 0.9,
        *,
        image_size: tuple[int, int],
        bias: bool = True,
        n_steps: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, padding="same", bias=bias)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        # A 1x1 convolution is the same matrix at every pixel: one pixel has its norm.
        domain = (in_channels, 1, 1) if self.kernel_size == (1, 1) else (in_channels, *self.image_size)
        normalisation = PowerIteration(self.weight, coeff=coeff, domain=domain, n_steps=n_steps)
        parametrize.register_parametrization(self, "weight", normalisation)

    normalisation = LipschitzLinear.normalisation
    unnormalised_weight = LipschitzLinear.unnormalised_weight

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Conv2d)
        """Convolve; see the class."""
        self._check_size(input)
        return same_conv(input, self.weight, self.bias)

    def _check_size(self, x: Tensor) -> None:
        if x.shape[-2:] != self.image_size:
            raise IResNetError(
                f"this convolution's bound holds for images of {self.image_size[0]}x{self.image_size[1]}, got "
                f"{x.shape[-2]}x{x.shape[-1]}; build the layer with image_size={tuple(x.shape[-2:])}"
            )

    def extra_repr(self) -> str:
        """Describe the layer, image size included."""
        return f"{super().extra_repr()}, image_size={self.image_size}"


@linearizes(LipschitzConv2d)
def _lipschitz_conv2d(g: LipschitzConv2d, x: Tensor) -> Linearization:
    g._check_size(x)
    weight = g.weight
    return Linearization(
        same_conv(x, weight, g.bias),
        jvp=lambda v: same_conv(v, weight),
        vjp=lambda w: same_conv_transpose(w, weight),
    )
