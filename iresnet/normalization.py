"""Normalizations of weights: power and Gram iteration, the norms 1 and infinity, and all of them by name."""

__all__ = [
    "NORMALIZATIONS",
    "AbsoluteSums",
    "GramIteration",
    "InfinityNorm",
    "OneNorm",
    "PowerIteration",
    "make_normalization",
    "normalize_all",
]

import inspect
import math
from abc import ABC
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from iresnet.cayley import Cayley
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.operators import WeightStack, along_first, largest_absolute_sum, torus_matrices, unit_vectors
from iresnet.parametrization import Normalization
from iresnet.precision import use_precision
from iresnet.rescaling import AlmostOrthogonal


class PowerIteration(Normalization):
    r"""Parametrization that scales a weight down to spectral norm ``coeff`` when its estimated norm is above it.

    .. math:: W \mapsto W \min(1, c / \sigma), \quad \sigma = |W u|,

    where u, the buffer, approaches the first right singular vector: each use in train mode runs power iterations
    :math:`u \leftarrow W^T W u / |W^T W u|` from where the last one stopped, until u changes by less than ``tol`` or
    ``n_steps`` ran. In eval mode u does not change. The gradient flows through :math:`\sigma` with u held constant,
    which is the exact gradient of the norm at a singular vector. For a convolution, W is the zero-padded convolution
    itself on images of the declared size.

    :math:`\sigma` is a *lower* bound of the norm, so this certifies nothing by itself: see :func:`iresnet.certify`.

    Args:
        weight: the weight to normalize, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1); None for no constraint.
        image_size: (H, W) of a convolution's images; not used for a dense weight.
        n_steps: the largest number of power iterations at each use in train mode.
        tol: change of u, a unit vector, at which they stop; all of them run when 0, and on devices other than the CPU,
            where the comparison would wait for the device.

    Reference:
        Spectral Normalization for Generative Adversarial Networks, Miyato et al. 2018, https://arxiv.org/abs/1802.05957;
        Regularization of Neural Networks by Enforcing Lipschitz Continuity, Gouk et al. 2018,
        https://arxiv.org/abs/1804.04368

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5)
        >>> layer.weight = 10 * torch.eye(4)
        >>> bool(torch.linalg.matrix_norm(layer.weight, 2) < 0.51)
        True
    """

    rounding_above = 32.0
    rounding_below = 32.0

    u: Tensor

    def __init__(
        self, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int], n_steps: int = 1, tol: float = 1e-2
    ):
        super().__init__(coeff)
        if n_steps < 1:
            raise IResNetError(f"n_steps, the power iterations at each use in train mode, is at least 1, got {n_steps}")
        if not tol >= 0:
            raise IResNetError(f"tol, the change of a unit vector, must not be negative, got {tol}")
        self.n_steps = n_steps
        self.tol = tol
        # A 1x1 convolution is the same matrix at every pixel: one pixel has its norm.
        pixels = () if weight.dim() == 2 else (1, 1) if weight.shape[2:] == (1, 1) else image_size
        u = torch.randn(1, weight.shape[1], *pixels, dtype=weight.dtype, device=weight.device)
        self.register_buffer("u", unit_vectors(u))
        self.converge(weight, tol=1e-2, max_steps=20)

    def sigma(self, weight: Tensor) -> Tensor:
        """Return :math:`|W u|`, a lower bound of the norm."""
        with use_precision("float32", weight.device):
            return WeightStack(weight[None]).stretches(self.u.to(weight.dtype))[0]

    def advance(self, weight: Tensor) -> None:
        """Run power iterations until u changes by less than ``tol``, at most ``n_steps``."""
        self.iterate(weight, self.n_steps, self.tol if weight.is_cpu else 0.0)

    @torch.no_grad()
    def iterate(self, weight: Tensor, n_steps: int, tol: float = 0.0) -> None:
        """Run ``n_steps`` power iterations on the buffer, or fewer once it changes by less than ``tol``."""
        with use_precision("float32", weight.device):
            self.u.copy_(WeightStack(weight[None]).iterate(self.u, n_steps, tol))

    @torch.no_grad()
    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """Iterate until ten further steps change the estimate by less than ``tol`` relative, or ``max_steps`` ran."""
        last = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for _ in range(0, max_steps, 10):
            self.iterate(weight, 10)
            sigma = self.sigma(weight)
            if bool((sigma - last).abs() <= tol * sigma):
                return
            last = sigma

    def alike(self, weight: Tensor) -> Hashable:
        """Return a key that is the same for all whose weights :meth:`normalize_stack` can normalize together."""
        settings = self.coeff, self.n_steps, self.tol, self.training
        return weight.shape, weight.dtype, weight.device, self.u.shape, self.u.dtype, settings

    def normalize_stack(
        self,
        normalizations: "Sequence[PowerIteration]",
        weights: Tensor,  # (G, *W)
        *,
        advance: bool,
    ) -> Tensor:  # (G, *W)
        """Normalize each of a stack of weights.

        Args:
            normalizations: one for each weight, :meth:`alike` with this one.
            weights: unnormalized.
            advance: whether the iterations advance first in train mode.
        """
        us = torch.cat([normalization.u for normalization in normalizations])
        with use_precision("float32", weights.device):
            stack = WeightStack(weights)
            if advance and self._advances():
                with torch.no_grad():
                    us = stack.iterate(us, self.n_steps, self.tol if weights.is_cpu else 0.0)
                    copies = [normalization.u for normalization in normalizations]
                    torch._foreach_copy_(copies, list(us.split(1)))  # pyright: ignore[reportPrivateImportUsage]
            sigmas = stack.stretches(us.to(weights.dtype))
            return weights * along_first(self._scale(sigmas), weights)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight that is assigned to the layer as the unnormalized one."""
        if weight.shape[1:2] != self.u.shape[1:2]:
            raise IResNetError(f"the weight has {weight.shape[1]} input features, the layer {self.u.shape[1]}")
        return weight

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


class GramIteration(Normalization):
    r"""Parametrization by an upper bound of the norm, so a layer is certified at every step.

    .. math:: \sigma(W) \le |G_k|_F^{2^{-k}}, \quad G_0 = W, \; G_{j+1} = G_j^* G_j

    It converges doubly exponentially in k, has no state, and is differentiable; train and eval mode agree. For a
    convolution with a larger kernel than 1 x 1 it is the largest bound over the frequencies of the torus that contains
    the image and its padding. It costs matrix products on the smaller side of each matrix: cheap where one side is
    small, such as the few channels of an image, and tight on large images. On images of a few pixels the torus bound is
    up to 30 % above the norm, and :class:`PowerIteration` constrains less.

    Args:
        weight: the weight to normalize, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1); None for no constraint.
        image_size: (H, W) of a convolution's images; not used for a dense weight.
        n_steps: k; the bound is within a factor :math:`\mathrm{rank}^{2^{-k-1}}`.

    Reference:
        Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, Delattre et al. 2023,
        https://arxiv.org/abs/2305.16173

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalization="gram")
        >>> layer.weight = torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0]))
        >>> 0.499 < float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) <= 0.5
        True
    """

    def __init__(self, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int], n_steps: int = 7):  # noqa: ARG002
        super().__init__(coeff)
        if n_steps < 1:
            raise IResNetError(f"n_steps, the Gram iterations, is at least 1, got {n_steps}")
        self.image_size = image_size
        self.n_steps = n_steps

    def sigma(self, weight: Tensor) -> Tensor:
        """Return the upper bound."""
        if weight.dim() == 2 or weight.shape[2:] == (1, 1):
            matrices = weight.reshape(weight.shape[:2])
        else:
            matrices = torch.cat(list(torus_matrices(weight, self.image_size, max_numbers=math.inf)))
        rounding = 1 + 64 * torch.finfo(weight.dtype).eps
        with use_precision("float32", weight.device):
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

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


def _frobenius(matrices: Tensor) -> Tensor:
    # The norm has no gradient at 0, so the smallest number is added; the bound of a zero weight is still near 0.
    squares = torch.view_as_real(matrices).square().sum(-1) if matrices.is_complex() else matrices.square()
    return (squares.sum((-2, -1)) + torch.finfo(squares.dtype).tiny).sqrt()


class AbsoluteSums(Normalization, ABC):
    """Parametrization by an induced norm that is a largest sum of absolute values: exact, cheap and stateless.

    Contraction in any norm makes a block invertible; these are stricter on wide layers than the Euclidean one. For a
    convolution whose kernel is larger than the image the sum is an upper bound.

    Args:
        weight: the weight to normalize, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1); None for no constraint.
        image_size: not used.
    """

    def __init__(self, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int]):  # noqa: ARG002
        super().__init__(coeff)

    def sigma(self, weight: Tensor) -> Tensor:
        """Return the norm, rounded up."""
        return (1 + 64 * torch.finfo(weight.dtype).eps) * largest_absolute_sum(weight, self.norm)

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}"


class OneNorm(AbsoluteSums):
    r"""Parametrization by the norm induced by :math:`|x|_1`: the largest absolute sum of the weights of an input.

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalization="l1")
        >>> bool(layer.weight.abs().sum(0).max() <= 0.5)
        True
    """

    norm = 1.0


class InfinityNorm(AbsoluteSums):
    r"""Parametrization by the norm induced by :math:`|x|_\infty`: the largest absolute sum of weights of an output.

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalization="linf")
        >>> bool(layer.weight.abs().sum(1).max() <= 0.5)
        True
    """

    norm = math.inf


def normalize_all(
    normalizations: Sequence[Normalization], weights: Sequence[Tensor], *, advance: bool = True
) -> list[Tensor]:
    """Normalize each weight by its normalization, those of one shape together, in a few batched products.

    Args:
        normalizations: one for each weight.
        weights: unnormalized.
        advance: whether states are updated first in train mode.

    Example:
        >>> weights = list(torch.eye(3).expand(4, 3, 3))
        >>> normalizations = [PowerIteration(weight, coeff=0.5, image_size=(1, 1)) for weight in weights]
        >>> [round(float(weight.trace()), 2) for weight in normalize_all(normalizations, weights)]
        [1.5, 1.5, 1.5, 1.5]
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (normalization, weight) in enumerate(zip(normalizations, weights, strict=True)):
        alone = type(normalization) is not PowerIteration
        groups.setdefault(i if alone else normalization.alike(weight), []).append(i)
    found: dict[int, Tensor] = {}
    for group in groups.values():
        members: list[Any] = [normalizations[i] for i in group]
        if len(group) == 1:
            normalized = [(members[0] if advance else members[0].normalize)(weights[group[0]])]
        else:
            normalized = members[0].normalize_stack(members, torch.stack([weights[i] for i in group]), advance=advance)
        found.update(zip(group, normalized, strict=True))
    return [found[i] for i in range(len(weights))]


NORMALIZATIONS: dict[str, Callable[..., Normalization]] = {
    "power": PowerIteration,
    "gram": GramIteration,
    "aol": AlmostOrthogonal,
    "cayley": Cayley,
    "l1": OneNorm,
    "linf": InfinityNorm,
}
"""Normalizations by name.

``power``: Euclidean norm, estimated from below, cheap, lags behind changing weights; ``gram``: Euclidean norm, an upper
bound at every step; ``aol``: the same, by scaled channels; ``cayley``: orthogonal weights, of dense layers and 1x1
convolutions; ``l1`` and ``linf``: the induced norms 1 and infinity, exact.
"""


def make_normalization(
    name: str, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int] = (1, 1), n_steps: int | None = None
) -> Normalization:
    """Build the normalization of that name for a weight.

    Args:
        name: a key of :data:`NORMALIZATIONS`.
        weight: the weight to normalize.
        coeff: the largest norm allowed, in (0, 1); None for no constraint.
        image_size: (H, W) of a convolution's images.
        n_steps: iterations; the default of the class when None.

    Raises:
        UnknownNameError: lists the valid names.
    """
    if name not in NORMALIZATIONS:
        raise UnknownNameError("normalization", name, NORMALIZATIONS)
    cls, steps = NORMALIZATIONS[name], {} if n_steps is None else {"n_steps": n_steps}
    if steps and "n_steps" not in inspect.signature(cls).parameters:
        raise IResNetError(f"the normalization '{name}' is exact and takes no steps, got {n_steps}; leave them out")
    return cls(weight, coeff=coeff, image_size=image_size, **steps)
