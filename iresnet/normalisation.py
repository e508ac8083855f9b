"""Norms of weights as operators, and the parametrisations that hold them at a coefficient."""

__all__ = [
    "NORMALISATIONS",
    "GramIteration",
    "Normalisation",
    "PowerIteration",
    "make_normalisation",
    "same_conv",
    "same_conv_transpose",
    "torus_matrices",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.errors import IResNetError, UnknownNameError

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


def torus_matrices(
    weight: Tensor, image_size: tuple[int, int], *, max_numbers: float = 2**24
) -> Iterator[Tensor]:  # (frequencies, out, in) at a time
    """The circular convolution on the torus of side H + kh - 1, W + kw - 1, one complex matrix a frequency.

    The zero-padded convolution on H x W is that one between an embedding and a restriction, so its norm is no larger.
    The matrices of a real kernel come in conjugate pairs, of which half are given.

    Args:
        weight: kernel, (out, in, kh, kw).
        image_size: (H, W).
        max_numbers: complex numbers at a time; the default are 256 MiB in double precision.
    """
    kh, kw = weight.shape[2:]
    height, width = image_size[0] + kh - 1, image_size[1] + kw - 1
    taps = weight.reshape(*weight.shape[:2], kh * kw)
    rows = torch.arange(kh, device=weight.device).repeat_interleave(kw)
    columns = torch.arange(kw, device=weight.device).repeat(kh)
    p, q = torch.meshgrid(
        torch.arange(height, device=weight.device), torch.arange(width // 2 + 1, device=weight.device), indexing="ij"
    )
    turns = p.reshape(-1, 1).double() * rows / height + q.reshape(-1, 1).double() * columns / width
    phases = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)  # (frequencies, taps)
    phases = phases.to(torch.complex128 if weight.dtype == torch.float64 else torch.complex64)
    chunk = int(max(1, min(max_numbers // taps[..., 0].numel(), len(phases))))
    for part in phases.split(chunk):
        yield torch.einsum("fk,oik->foi", part, taps.to(part.dtype))


# -- normalisation ---------------------------------------------------------------------------------------------------


class Normalisation(nn.Module, ABC):
    r"""Parametrisation that scales a weight down to norm ``coeff`` when its norm is above it.

    .. math:: W \mapsto W \min(1, c / \sigma(W))

    Args:
        coeff: c, the largest norm allowed, in (0, 1).

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1).
    """

    def __init__(self, coeff: float):
        super().__init__()
        if not 0.0 < coeff < 1.0:
            raise IResNetError(
                "coeff is the Lipschitz bound of a layer and must lie in (0, 1) for x + g(x) to be invertible, got "
                f"{coeff}"
            )
        self.coeff = float(coeff)
        self.held: Tensor | None = None

    @abstractmethod
    def sigma(self, weight: Tensor) -> Tensor:
        """The differentiable estimate or bound of the norm of the weight's operator, a scalar; moves nothing."""

    @abstractmethod
    def advance(self, weight: Tensor) -> None:
        """Update the state for a use in train mode."""

    @abstractmethod
    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """Sharpen :meth:`sigma` until it changes by less than ``tol`` relative, in at most ``max_steps`` steps."""

    def forward(self, weight: Tensor) -> Tensor:
        """Normalise the weight, after an update of the state in train mode."""
        if self.held is not None:
            return self.held
        if self.training:
            self.advance(weight)
        return self.normalise(weight)

    def normalise(self, weight: Tensor) -> Tensor:
        """Scale the weight with the present state, moving nothing."""
        # The norm is taken in full precision also when the surrounding products are not.
        with torch.autocast(weight.device.type, enabled=False):
            return weight / torch.clamp(self.sigma(weight) / self.coeff, min=1.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the layer's weight sets the unnormalised one."""
        return weight


class PowerIteration(Normalisation):
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
        image_size: (H, W) of a convolution's images; not used for a dense weight.
        n_steps: power iterations at each use in train mode.

    Reference:
        Spectral Normalization for Generative Adversarial Networks, Miyato et al. 2018, https://arxiv.org/abs/1802.05957;
        Regularisation of Neural Networks by Enforcing Lipschitz Continuity, Gouk et al. 2018,
        https://arxiv.org/abs/1804.04368

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5)
        >>> layer.weight = 10 * torch.eye(4)
        >>> bool(torch.linalg.matrix_norm(layer.weight, 2) < 0.51)
        True
    """

    u: Tensor

    def __init__(self, weight: Tensor, *, coeff: float, image_size: tuple[int, int], n_steps: int = 1):
        super().__init__(coeff)
        if n_steps < 1:
            raise IResNetError(f"n_steps, the power iterations at each use in train mode, is at least 1, got {n_steps}")
        self.n_steps = n_steps
        # A 1x1 convolution is the same matrix at every pixel: one pixel has its norm.
        pixels = () if weight.dim() == 2 else (1, 1) if weight.shape[2:] == (1, 1) else image_size
        u = torch.randn(1, weight.shape[1], *pixels, dtype=weight.dtype, device=weight.device)
        self.register_buffer("u", _unit(u))
        self.converge(weight, tol=1e-2, max_steps=20)

    def sigma(self, weight: Tensor) -> Tensor:
        """:math:`|W u|`, a lower bound of the norm."""
        return _apply(weight, self.u.clone()).norm()  # a copy: backward may come after the next iteration

    def advance(self, weight: Tensor) -> None:
        """Run ``n_steps`` power iterations."""
        self.iterate(weight, self.n_steps)

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


class GramIteration(Normalisation):
    r"""Parametrisation by a bound that never lies below the norm, so a layer is certified at every step.

    .. math:: \sigma(W) \le |G_k|_F^{2^{-k}}, \quad G_0 = W, \; G_{j+1} = G_j^* G_j

    It converges doubly exponentially in k, has no state, and is differentiable; train and eval mode agree. A k x k
    convolution takes the largest bound over the frequencies of the torus that it is a compression of. Costs matrix
    products on the smaller side of each matrix: cheap where one side is small, such as an image's few channels, and
    tight on large images; on images of a few pixels the torus bound is up to 30 % above the norm, and
    :class:`PowerIteration` leaves more room.

    Args:
        weight: the weight to normalise, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1).
        image_size: (H, W) of a convolution's images; not used for a dense weight.
        n_steps: k; the bound is within a factor :math:`\mathrm{rank}^{2^{-k-1}}`.

    Reference:
        Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, Delattre et al. 2023,
        https://arxiv.org/abs/2305.16173

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalisation="gram")
        >>> layer.weight = torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0]))
        >>> 0.499 < float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) <= 0.5
        True
    """

    def __init__(self, weight: Tensor, *, coeff: float, image_size: tuple[int, int], n_steps: int = 7):  # noqa: ARG002
        super().__init__(coeff)
        if n_steps < 1:
            raise IResNetError(f"n_steps, the Gram iterations, is at least 1, got {n_steps}")
        self.image_size = image_size
        self.n_steps = n_steps

    def sigma(self, weight: Tensor) -> Tensor:
        """The upper bound."""
        if weight.dim() == 2 or weight.shape[2:] == (1, 1):
            matrices = weight.reshape(weight.shape[:2])
        else:
            matrices = torch.cat(list(torus_matrices(weight, self.image_size, max_numbers=math.inf)))
        rounding = 1 + 64 * torch.finfo(weight.dtype).eps
        return rounding * self._bound(matrices).max()

    def _bound(self, matrices: Tensor) -> Tensor:  # (..., m, n) -> (...)
        gram = matrices.mH @ matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices @ matrices.mH
        log_scale = torch.zeros_like(gram[..., 0, 0].real)  # gram times exp(log_scale) is the true one
        for _ in range(self.n_steps - 1):
            size = _frobenius(gram)
            gram = gram / size[..., None, None]
            gram = gram @ gram
            log_scale = 2 * (log_scale + size.log())
        return torch.exp((log_scale + _frobenius(gram).log()) / 2**self.n_steps)

    def advance(self, weight: Tensor) -> None:
        """There is no state."""

    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """There is no state."""

    def extra_repr(self) -> str:
        """Describe the parametrisation."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


def _frobenius(matrices: Tensor) -> Tensor:
    # Away from 0, where the norm has no gradient; a weight of zeros gets a bound that is as good as 0.
    squares = torch.view_as_real(matrices).square().sum(-1) if matrices.is_complex() else matrices.square()
    return (squares.sum((-2, -1)) + torch.finfo(squares.dtype).tiny).sqrt()


NORMALISATIONS: dict[str, Callable[..., Normalisation]] = {"power": PowerIteration, "gram": GramIteration}
"""Ways to hold a weight at its coefficient, by name."""


def make_normalisation(
    name: str, weight: Tensor, *, coeff: float, image_size: tuple[int, int] = (1, 1), n_steps: int | None = None
) -> Normalisation:
    """Build the normalisation of that name for a weight.

    Args:
        name: a key of :data:`NORMALISATIONS`.
        weight: the weight to normalise.
        coeff: the largest norm allowed, in (0, 1).
        image_size: (H, W) of a convolution's images.
        n_steps: iterations; the default of the class when None.

    Raises:
        UnknownNameError: lists the valid names.
    """
    if name not in NORMALISATIONS:
        raise UnknownNameError("normalisation", name, NORMALISATIONS)
    steps = {} if n_steps is None else {"n_steps": n_steps}
    return NORMALISATIONS[name](weight, coeff=coeff, image_size=image_size, **steps)
