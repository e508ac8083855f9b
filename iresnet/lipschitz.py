"""Layers of known Lipschitz constant: linear maps with normalized weights, and concatenation."""

__all__ = [
    "DenseConcat",
    "LipschitzConv2d",
    "LipschitzLayer",
    "LipschitzLinear",
    "hold_weights",
    "lipschitz_layers",
    "replace_weights",
]

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, Product, linearize_inner, linearizes
from iresnet.joint import Joint, join_layer, joins, linear
from iresnet.normalization import make_normalization, normalize_all
from iresnet.operators import same_conv, same_conv_transpose
from iresnet.parametrization import Normalization
from iresnet.renamed import accept_old_names, old_attribute


def lipschitz_layers(module: nn.Module) -> "list[LipschitzLayer]":
    """Return the layers in ``module`` whose weights are normalized, in the order of its modules.

    Layers that ``torch.nn.utils.parametrize.remove_parametrizations`` has turned into plain ones are left out.

    Example:
        >>> len(lipschitz_layers(nn.Sequential(LipschitzLinear(3, 3), nn.ELU(), nn.Linear(3, 3))))
        1
    """
    return [m for m in module.modules() if isinstance(m, LipschitzLayer) and m.normalized]


@contextmanager
def hold_weights(module: nn.Module, *, iterate: bool = True) -> Iterator[None]:
    """Compute every normalized weight in ``module`` once and use it for the duration of the context.

    A training step uses each weight many times (value, Jacobian products, their backward) and pays for its
    normalization once; a solver sees the same weight at every step. Unlike ``parametrize.cached()`` the scope is this
    module in this thread, and a weight is computed under the autograd mode in which the context is entered.

    Args:
        module: the layers inside it are held.
        iterate: whether layers in train mode advance their power iteration first.

    Example:
        >>> layer = LipschitzLinear(3, 3)
        >>> with hold_weights(layer):
        ...     layer.weight is layer.weight
        True
    """
    layers = [layer for layer in lipschitz_layers(module) if layer.normalization.held is None]
    normalizations = [layer.normalization for layer in layers]
    weights = normalize_all(normalizations, [layer.unnormalized_weight for layer in layers], advance=iterate)
    try:
        for normalization, weight in zip(normalizations, weights, strict=True):
            normalization.hold(weight)
        yield
    finally:
        for normalization in normalizations:
            normalization.hold(None)


@contextmanager
def replace_weights(module: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Use these tensors as the normalized weights in ``module``, in the order of its modules.

    Args:
        module: the layers inside it use the tensors.
        weights: one for each Lipschitz layer.
    """
    layers = lipschitz_layers(module)
    before = [layer.normalization.held for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer.normalization.hold(weight)
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.normalization.hold(weight)


class LipschitzLayer(nn.Module):
    """Linear layer whose weight is normalized by the parametrization ``parametrizations.weight`` of torch.

    A subclass defines :attr:`input_shape`, calls ``_normalize`` at the end of its ``__init__``, and registers its
    linearization (:func:`~iresnet.jacobian.linearizes`) and its bound (:func:`~iresnet.bounds.bounds`).

    It can be pickled, which torch refuses for parametrized modules in general. To deploy it without its normalization,
    ``torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`` leaves a plain layer of the same weight,
    which certifies as before.
    """

    weight: Tensor

    def _normalize(self, normalization: str, **options: Any) -> None:
        parametrization = make_normalization(normalization, self.weight, **options)  # pyright: ignore[reportArgumentType]
        parametrize.register_parametrization(self, "weight", parametrization)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Event shape of the input."""
        raise NotImplementedError

    @property
    def normalized(self) -> bool:
        """True until the parametrization is removed."""
        return parametrize.is_parametrized(self, "weight")

    @property
    def normalization(self) -> Normalization:
        """The parametrization that bounds the weight."""
        return self.parametrizations.weight[0]  # pyright: ignore

    @property
    def unnormalized_weight(self) -> Tensor:
        """The trained parameter, before normalization."""
        return self.parametrizations.weight.original  # pyright: ignore

    normalisation = old_attribute("normalisation", "normalization")
    normalised = old_attribute("normalised", "normalized")
    unnormalised_weight = old_attribute("unnormalised_weight", "unnormalized_weight")

    @property
    def _as_built(self) -> bool:
        """True where the weight has its normalization and no other parametrization."""
        lists: Any = self._modules.get("parametrizations")
        return lists is not None and list(lists) == ["weight"] and len(lists["weight"]) == 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "LipschitzLayer":
        """Copy with a class of its own: copies by torch share one, and all lose their weight with any of them."""
        if self._as_built:
            rebuild, (cls, *parts) = self.__reduce_ex__(2)
            layer = memo[id(self)] = rebuild(cls, *copy.deepcopy(parts, memo))
        else:
            layer = memo[id(self)] = type(self).__new__(type(self))
            vars(layer).update(copy.deepcopy(vars(self), memo))
        return layer

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Reduce to the class before torch replaced it, its state, the weight and the normalization."""
        if not self._as_built:
            return super().__reduce_ex__(protocol)
        modules = {name: module for name, module in self._modules.items() if name != "parametrizations"}
        state = {**vars(self), "_modules": modules}
        return _rebuilt, (type(self).__bases__[0], state, self.unnormalized_weight, self.normalization)


def _rebuilt(
    cls: type[LipschitzLayer], state: dict[str, Any], weight: nn.Parameter, normalization: Normalization
) -> LipschitzLayer:
    layer, training = cls.__new__(cls), normalization.training
    vars(layer).update(state)
    layer.register_parameter("weight", weight)
    parametrize.register_parametrization(layer, "weight", normalization, unsafe=True)  # unsafe: without trying it
    layer.parametrizations.train(layer.training)  # pyright: ignore
    normalization.train(training)
    return layer


class LipschitzLinear(LipschitzLayer, nn.Linear):
    """Dense layer with spectral norm at most about ``coeff`` (see :mod:`iresnet.normalization`).

    Args:
        in_features: size of the input.
        out_features: size of the output.
        coeff: the largest spectral norm allowed, in (0, 1); None for no constraint, and then no certificate.
        bias: whether to add a learned bias.
        normalization: ``"power"`` (cheap, lags behind moving weights), ``"gram"`` or ``"aol"`` (upper bounds at every
            step).
        n_steps: iterations; 1 at each use in train mode for power, 7 for gram and 5 for aol when None.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1).

    Example:
        >>> import torch
        >>> layer = LipschitzLinear(3, 3, coeff=0.5)
        >>> x, y = torch.randn(2, 100, 3)
        >>> bool(((layer(x) - layer(y)).norm(dim=1) <= 0.51 * (x - y).norm(dim=1)).all())
        True
    """

    @accept_old_names
    def __init__(
        self,
        in_features: int,
        out_features: int,
        coeff: float | None = 0.9,
        *,
        bias: bool = True,
        normalization: str = "power",
        n_steps: int | None = None,
    ):
        super().__init__(in_features, out_features, bias=bias)
        self._normalize(normalization, coeff=coeff, n_steps=n_steps)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """Multiply; see the class."""
        self._check_size(input)
        return super().forward(input)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See :attr:`LipschitzLayer.input_shape`."""
        return (self.in_features,)

    def _check_size(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.in_features,):
            raise IResNetError(
                f"this layer takes {self.in_features} features in the last dimension, got a tensor of shape "
                f"{tuple(x.shape)}"
            )


@linearizes(LipschitzLinear)
def _lipschitz_linear(g: LipschitzLinear, x: Tensor) -> Linearization:
    g._check_size(x)
    weight = g.weight
    return Linearization(F.linear(x, weight, g.bias), lambda v: F.linear(v, weight), lambda w: F.linear(w, weight.t()))


@joins(LipschitzLinear)
def _join_linear(g: LipschitzLinear, joint: Joint) -> tuple[Tensor, Product]:
    g._check_size(joint.tensor)
    weight = g.weight
    return linear(joint, lambda x: F.linear(x, weight), g.bias), lambda w: F.linear(w, weight.t())


class LipschitzConv2d(LipschitzLayer, nn.Conv2d):
    """Zero-padded "same" convolution with operator norm at most about ``coeff`` (see :mod:`iresnet.normalization`).

    The norm is that of the operator on images of ``image_size``, zero padding included. On images of another size the
    operator has another norm, so they are refused.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd or even.
        coeff: the largest operator norm allowed, in (0, 1); None for no constraint, and then no certificate.
        image_size: height and width of the images.
        bias: whether to add a learned bias.
        normalization: ``"power"`` (cheap, lags behind moving weights), ``"gram"`` or ``"aol"`` (upper bounds at every
            step).
        n_steps: iterations; 1 at each use in train mode for power, 7 for gram and 5 for aol when None.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H, W).

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1), or at use when the images have another size.

    Example:
        >>> import torch
        >>> layer = LipschitzConv2d(2, 4, 3, coeff=0.5, image_size=(8, 8))
        >>> x, y = torch.randn(2, 50, 2, 8, 8)
        >>> bool(((layer(x) - layer(y)).flatten(1).norm(dim=1) <= 0.51 * (x - y).flatten(1).norm(dim=1)).all())
        True
    """

    @accept_old_names
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        coeff: float | None = 0.9,
        *,
        image_size: tuple[int, int],
        bias: bool = True,
        normalization: str = "power",
        n_steps: int | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, padding="same", bias=bias)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self._normalize(normalization, coeff=coeff, image_size=self.image_size, n_steps=n_steps)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Conv2d)
        """Convolve; see the class."""
        self._check_size(input)
        return same_conv(input, self.weight, self.bias)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See :attr:`LipschitzLayer.input_shape`."""
        return (self.in_channels, *self.image_size)

    def _check_size(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise IResNetError(
                f"this convolution takes batches of images (N, {self.in_channels}, {self.image_size[0]}, "
                f"{self.image_size[1]}), got a tensor of shape {tuple(x.shape)}"
            )
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


@joins(LipschitzConv2d)
def _join_conv2d(g: LipschitzConv2d, joint: Joint) -> tuple[Tensor, Product]:
    g._check_size(joint.tensor)
    weight, bias = g.weight, None if g.bias is None else g.bias.view(-1, 1, 1)
    return linear(joint, lambda x: same_conv(x, weight), bias), lambda w: same_conv_transpose(w, weight)


class DenseConcat(nn.Module):
    r"""Concatenation of x with f(x), weighted so that its Lipschitz constant is at most 1 where that of f is.

    .. math:: x \mapsto [a x, b f(x)], \quad a^2 + b^2 = 1, \quad \mathrm{Lip} \le \sqrt{a^2 + b^2 \mathrm{Lip}(f)^2}

    The weights are learned, :math:`(a, b) \propto \mathrm{softplus}(\eta)`.

    Args:
        f: maps (N, C, \*) to (N, K, \*).

    Shape:
        (N, C, \*) -> (N, C + K, \*).

    Reference:
        Invertible DenseNets with Concatenated LipSwish, Perugachi-Diaz, Tomczak and Bhulai 2021,
        https://arxiv.org/abs/2102.02694

    Example:
        >>> import torch
        >>> DenseConcat(LipschitzLinear(3, 2))(torch.zeros(5, 3)).shape
        torch.Size([5, 5])
    """

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f
        self.eta = nn.Parameter(torch.zeros(2))

    def weights(self) -> Tensor:  # (2,)
        """Return the weights a and b."""
        return F.normalize(F.softplus(self.eta), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate; see the class."""
        a, b = self.weights()
        return torch.cat([a * x, b * self.f(x)], 1)


@linearizes(DenseConcat)
def _dense_concat(g: DenseConcat, x: Tensor) -> Linearization:
    (a, b), inner = g.weights(), linearize_inner(g.f, x)
    return Linearization(
        torch.cat([a * x, b * inner.value], 1),
        jvp=lambda v: torch.cat([a * v, b * inner.jvp(v)], 1),
        vjp=lambda w: a * w[:, : x.shape[1]] + b * inner.vjp(w[:, x.shape[1] :]),
    )


@joins(DenseConcat)
def _join_dense_concat(g: DenseConcat, joint: Joint) -> tuple[Tensor, Product]:
    (a, b), x = g.weights(), joint.tensor
    inner, vjp = join_layer(g.f, joint)
    return torch.cat([a * x, b * inner], 1), lambda w: a * w[:, : x.shape[1]] + b * vjp(w[:, x.shape[1] :])
