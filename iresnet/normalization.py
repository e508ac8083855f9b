"""Parametrizations that hold the norm of a weight's operator at a coefficient."""

__all__ = [
    "NORMALIZATIONS",
    "AbsoluteSums",
    "GramIteration",
    "InfinityNorm",
    "Normalization",
    "OneNorm",
    "PerThread",
    "PowerIteration",
    "make_normalization",
]

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.devices import is_transforming
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.operators import apply, apply_transpose, largest_absolute_sum, torus_matrices
from iresnet.precision import use_precision


class PerThread(threading.local):
    """A value that each thread sets for itself; copies and pickles of it begin with the default.

    A class of its own, and no context variable, since compiled code can read it.

    Args:
        value: until a thread sets another.

    Example:
        >>> parts = PerThread(1)
        >>> parts.value = 2
        >>> thread = threading.Thread(target=lambda: print(parts.value))
        >>> thread.start(), thread.join()
        1
        (None, None)
    """

    def __init__(self, value: Any = None):
        self.default = value
        self.value = value

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        """Leave behind what threads have set."""
        return type(self), (self.default,)


class Normalization(nn.Module, ABC):
    r"""Parametrization that scales a weight down to norm ``coeff`` when its norm is above it.

    .. math:: W \mapsto W \min(1, c / \sigma(W))

    Args:
        coeff: c, the largest norm allowed, in (0, 1); None for no constraint, c infinite.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1).
    """

    norm: float = 2.0
    """p of the operator norm that is bounded, from the p-norm to the p-norm."""

    rounding_above: float = 0.0
    """Units of rounding of its type by which a normalized weight may be larger than if computed in float64."""

    rounding_below: float = 128.0
    """The same for one that is smaller: norms are rounded up, where they bound from above."""

    def __init__(self, coeff: float | None):
        super().__init__()
        if coeff is not None and not 0.0 < coeff < 1.0:
            raise IResNetError(
                "coeff is the Lipschitz bound of a layer and must lie in (0, 1) for x + g(x) to be invertible, got "
                f"{coeff}; None (null in a recipe) leaves the layer unconstrained"
            )
        self.coeff = math.inf if coeff is None else float(coeff)
        self._held = PerThread()

    @property
    def held(self) -> Tensor | None:
        """The normalized weight that this thread holds, see :func:`~iresnet.lipschitz.hold_weights`."""
        return self._held.value

    def hold(self, weight: Tensor | None) -> None:
        """Let this thread use a normalized weight; None to compute it at each use again."""
        self._held.value = weight

    @property
    def constrained(self) -> bool:
        """Whether there is a coefficient; without one a weight passes as it is, and its norm is only watched."""
        return math.isfinite(self.coeff)

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
        """Normalize the weight, after an update of the state in train mode.

        Nothing moves in a backward pass, where checkpoints repeat what forward did, nor under transforms of
        :mod:`torch.func`, which allow no state.
        """
        if self.held is not None:
            return self.held
        if self.training and (torch.compiler.is_compiling() or not (_in_backward() or is_transforming())):
            self.advance(weight)
        return self.normalize(weight)

    def normalize(self, weight: Tensor) -> Tensor:
        """Scale the weight with the present state, moving nothing."""
        # The norm is taken in float32 proper also when the surrounding products are not.
        with use_precision("float32", weight.device):
            return weight / torch.clamp(self.sigma(weight) / self.coeff, min=1.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the layer's weight sets the unnormalized one."""
        return weight


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class PowerIteration(Normalization):
    r"""Parametrization that scales a weight down to spectral norm ``coeff`` when its estimated norm is above it.

    .. math:: W \mapsto W \min(1, c / \sigma), \quad \sigma = |W u|,

    where u, the buffer, approaches the first right singular vector: each use in train mode runs power iterations
    :math:`u \leftarrow W^T W u / |W^T W u|` from where the last one stopped, until u moves by less than ``tol`` or
    ``n_steps`` ran. In eval mode nothing moves.
    The gradient flows through :math:`\sigma` with u held constant, which is the exact gradient of the norm at a
    singular vector. For a convolution, W is the zero-padded convolution itself on images of the declared size.

    :math:`\sigma` is a *lower* bound of the norm, so this certifies nothing by itself: see :func:`iresnet.certify`.

    Args:
        weight: the weight to normalize, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1); None for no constraint.
        image_size: (H, W) of a convolution's images; not used for a dense weight.
        n_steps: the most power iterations at each use in train mode.
        tol: change of u, a unit vector, at which they stop; all of them run when 0, and on devices other than the CPU,
            where the answer would have to be waited for.

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
        self.register_buffer("u", _unit(u))
        self.converge(weight, tol=1e-2, max_steps=20)

    def sigma(self, weight: Tensor) -> Tensor:
        """:math:`|W u|`, a lower bound of the norm."""
        # A copy, since backward may come after the next iteration; of length 1, since a mean of several models is not.
        u = _unit(self.u.to(weight.dtype))
        with use_precision("float32", weight.device):
            return apply(weight, u).norm()

    def advance(self, weight: Tensor) -> None:
        """Run power iterations until u stands still, at most ``n_steps``."""
        self.iterate(weight, self.n_steps, self.tol if weight.is_cpu else 0.0)

    @torch.no_grad()
    def iterate(self, weight: Tensor, n_steps: int, tol: float = 0.0) -> None:
        """Run ``n_steps`` power iterations on the buffer, or fewer once it moves by less than ``tol``."""
        with use_precision("float32", weight.device):
            for _ in range(n_steps):
                u = apply_transpose(weight, apply(weight, self.u))
                # A zero weight maps u to 0, where it would stay for ever; the old direction is as good as any.
                u = torch.where(u.norm() > torch.finfo(u.dtype).tiny, _unit(u), self.u)
                still = tol > 0 and bool((u - self.u).norm() < tol)
                self.u.copy_(u)
                if still:
                    return

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

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the layer's weight sets the unnormalized one."""
        if weight.shape[1:2] != self.u.shape[1:2]:
            raise IResNetError(f"the weight has {weight.shape[1]} input features, the layer {self.u.shape[1]}")
        return weight

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


def _unit(u: Tensor) -> Tensor:
    return u / u.norm().clamp(min=torch.finfo(u.dtype).tiny)


class GramIteration(Normalization):
    r"""Parametrization by a bound that never lies below the norm, so a layer is certified at every step.

    .. math:: \sigma(W) \le |G_k|_F^{2^{-k}}, \quad G_0 = W, \; G_{j+1} = G_j^* G_j

    It converges doubly exponentially in k, has no state, and is differentiable; train and eval mode agree. A k x k
    convolution takes the largest bound over the frequencies of the torus that it is a compression of. Costs matrix
    products on the smaller side of each matrix: cheap where one side is small, such as an image's few channels, and
    tight on large images; on images of a few pixels the torus bound is up to 30 % above the norm, and
    :class:`PowerIteration` leaves more room.

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
        """The upper bound."""
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

    def advance(self, weight: Tensor) -> None:
        """There is no state."""

    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """There is no state."""

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


def _frobenius(matrices: Tensor) -> Tensor:
    # Away from 0, where the norm has no gradient; a weight of zeros gets a bound that is as good as 0.
    squares = torch.view_as_real(matrices).square().sum(-1) if matrices.is_complex() else matrices.square()
    return (squares.sum((-2, -1)) + torch.finfo(squares.dtype).tiny).sqrt()


class AbsoluteSums(Normalization, ABC):
    """Parametrization by an induced norm that is a largest sum of absolute values: exact, cheap, without state.

    Contraction in any norm makes a block invertible; this one is stricter on wide layers than the Euclidean norm. For a
    convolution whose kernel is larger than the image it is an upper bound.

    Args:
        weight: the weight to normalize, (out, in) or (out, in, kh, kw).
        coeff: the largest norm allowed, in (0, 1); None for no constraint.
        image_size: not used.
    """

    def __init__(self, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int]):  # noqa: ARG002
        super().__init__(coeff)

    def sigma(self, weight: Tensor) -> Tensor:
        """The norm, rounded up."""
        return (1 + 64 * torch.finfo(weight.dtype).eps) * largest_absolute_sum(weight, self.norm)

    def advance(self, weight: Tensor) -> None:
        """There is no state."""

    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """There is no state."""

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}"


class OneNorm(AbsoluteSums):
    r"""Bounds the norm induced by :math:`|x|_1`: the largest absolute sum of what one input sends out.

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalization="l1")
        >>> bool(layer.weight.abs().sum(0).max() <= 0.5)
        True
    """

    norm = 1.0


class InfinityNorm(AbsoluteSums):
    r"""Bounds the norm induced by :math:`|x|_\infty`: the largest absolute sum of what one output takes in.

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalization="linf")
        >>> bool(layer.weight.abs().sum(1).max() <= 0.5)
        True
    """

    norm = math.inf


NORMALIZATIONS: dict[str, Callable[..., Normalization]] = {
    "power": PowerIteration,
    "gram": GramIteration,
    "l1": OneNorm,
    "linf": InfinityNorm,
}
"""Ways to hold a weight at its coefficient, by name.

``power``: Euclidean norm, estimated from below and cheap, so it lags behind moving weights; ``gram``: Euclidean, an
upper bound at every step; ``l1`` and ``linf``: exact norms of other geometries.
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
    if n_steps is not None and NORMALIZATIONS[name] in (OneNorm, InfinityNorm):
        raise IResNetError(f"the normalization '{name}' is exact and takes no steps, got {n_steps}; leave them out")
    steps = {} if n_steps is None else {"n_steps": n_steps}
    return NORMALIZATIONS[name](weight, coeff=coeff, image_size=image_size, **steps)
