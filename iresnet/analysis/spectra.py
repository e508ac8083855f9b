"""Singular values of layers, and Lipschitz bounds of layers and blocks from below and above."""

__all__ = [
    "LayerRow",
    "LipschitzAnalysis",
    "Spectrum",
    "analyze_lipschitz",
    "linear_layers",
    "spectrum",
]

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from iresnet.bijections import ResidualBlock
from iresnet.bounds import lower_bound, upper_bound
from iresnet.certificates import Bound, Stretch, certify
from iresnet.errors import RecipeError
from iresnet.feedthrough import FeedThrough
from iresnet.flows import Flow
from iresnet.jacobian import linearize
from iresnet.lipschitz import LipschitzConv2d, LipschitzLayer, lipschitz_layers
from iresnet.operators import same_conv, same_conv_transpose, torus_matrices

# -- singular values ---------------------------------------------------------------------------------------------------


Product = Callable[[Tensor], Tensor]

LARGEST_SIDE, LARGEST_MATRIX = 1024, 2**24
"""Dense singular values are taken of matrices up to this smaller side and this number of elements."""

EXACT, TORUS = "exact", "circular"


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a layer, or of an operator that it is a compression of.

    Attributes:
        values: descending, (K,), in float64.
        kind: ``"exact"``, or ``"circular"`` for those of the circular convolution on a torus, of which the zero-padded
            one is a compression: its k-th value is at least the k-th of the layer.
    """

    values: Tensor
    kind: str

    def at(self, n: int) -> list[float]:
        """Return at most n values at evenly spaced ranks, the largest and the smallest included."""
        ranks = torch.linspace(0, len(self.values) - 1, min(n, len(self.values))).round().long()
        return self.values[ranks].tolist()


@torch.no_grad()
def spectrum(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> Spectrum | None:
    r"""Compute the singular values of a dense layer or of a convolution on images of a size.

    Args:
        layer: normalized or not; its weight is the one of eval mode.
        shape: event shape of its input.

    Returns:
        The values; None for a layer that is too large, and no plain convolution either.

    Reference:
        The Singular Values of Convolutional Layers, Sedghi, Gupta and Long 2019, https://arxiv.org/abs/1805.10408

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.weight.data = torch.diag(torch.tensor([3.0, 4.0]))
        >>> spectrum(layer, (2,)).values.tolist()
        [4.0, 3.0]
    """
    weight = layer.weight.double()
    if isinstance(layer, nn.Linear):
        return Spectrum(torch.linalg.svdvals(weight), EXACT)
    if (
        layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding in ("same", (0, 0))
    ):
        pixels = shape[-2] * shape[-1]
        return Spectrum(torch.linalg.svdvals(weight[:, :, 0, 0]).repeat_interleave(pixels), EXACT)
    fan_in = torch.Size(shape)
    fan_out = layer(torch.zeros(1, *shape).to(layer.weight)).shape[1:]
    small, large = sorted((fan_in.numel(), fan_out.numel()))
    if small <= LARGEST_SIDE and small * large <= LARGEST_MATRIX:
        return Spectrum(_singular_values(_matrix(layer, fan_in, fan_out)), EXACT)
    is_plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if is_plain and fan_in[1:] == fan_out[1:]:  # a compression of the circular convolution on a padded torus
        return Spectrum(_torus_singular_values(weight, (shape[-2], shape[-1])), TORUS)
    return None


def _matrix(layer: nn.Conv2d, fan_in: torch.Size, fan_out: torch.Size) -> Tensor:
    """Return the layer as a matrix in float64, transposed if that makes its first side the smaller one."""
    n = min(fan_in.numel(), fan_out.numel())
    basis = torch.eye(n, dtype=torch.float64, device=layer.weight.device)
    product, transposed = _products(layer, basis.new_zeros(n, *fan_in))
    if fan_in.numel() == n:
        return product(basis.view(n, *fan_in)).flatten(1)
    return transposed(basis.view(n, *fan_out)).flatten(1)


def _products(layer: nn.Conv2d, x: Tensor) -> tuple[Product, Product]:
    """Return the convolution without bias and its transpose, in float64."""
    weight = layer.weight.double()
    if isinstance(layer, LipschitzConv2d):
        return partial(same_conv, weight=weight), partial(same_conv_transpose, weight=weight)
    plain = copy.deepcopy(layer).double()
    plain.bias = None
    jacobian = linearize(plain, x)
    return jacobian.jvp, jacobian.vjp


def _singular_values(matrices: Tensor) -> Tensor:  # (..., m, n) with m <= n -> (..., m), descending
    return torch.linalg.eigvalsh(matrices @ matrices.mH).clamp(min=0).sqrt().flip(-1)


def _torus_singular_values(weight: Tensor, image_size: tuple[int, int]) -> Tensor:  # (K,), descending
    """Return the singular values of all frequencies, those of conjugate pairs, of which one is computed, twice."""
    smaller_first = weight if weight.shape[0] <= weight.shape[1] else weight.transpose(0, 1)
    values = torch.cat([_singular_values(chunk) for chunk in torus_matrices(smaller_first, image_size)])
    width = image_size[1] + weight.shape[3] - 1
    columns = torch.arange(width // 2 + 1, device=weight.device).repeat(image_size[0] + weight.shape[2] - 1)
    own_conjugate = (columns == 0) | (2 * columns == width)
    return torch.cat([values, values[~own_conjugate]]).flatten().sort(descending=True)[0]


# -- layers and blocks -------------------------------------------------------------------------------------------------


N_VALUES = 200
"""Singular values of a layer that are kept, at evenly spaced ranks."""


@dataclass(frozen=True)
class LayerRow:
    """Bounds and singular values of one linear layer.

    Attributes:
        name: path in the model.
        kind: of operator, such as ``"conv 3x3"``.
        coeff: norm that it is normalized to, None for a layer that is not normalized.
        estimate: norm according to its normalization, a lower bound for power iteration; None without one.
        lower: norm found by power iteration.
        upper: proved bound.
        norm: p of these norms.
        singular_values: descending, at evenly spaced ranks; empty where they are not affordable.
        count: number of singular values.
        spectrum: ``"exact"``, ``"circular"`` (an upper-bounding operator's), or ``"none"``.
    """

    name: str
    kind: str
    coeff: float | None
    estimate: float | None
    lower: float
    upper: float
    norm: float
    singular_values: list[float]
    count: int
    spectrum: str


@dataclass(frozen=True)
class LipschitzAnalysis:
    """Spectra and bounds of a model.

    Attributes:
        layers: one row for each linear layer, from the data on.
        blocks: bounds of the residual maps, as certified.
        network: bi-Lipschitz constants, None for a network that is no bijection.
    """

    layers: tuple[LayerRow, ...]
    blocks: tuple[Bound, ...]
    network: Stretch | None

    @property
    def certified(self) -> bool:
        """True if every block is proved to contract."""
        return bool(self.blocks) and all(block.upper < 1 for block in self.blocks)

    @property
    def summary(self) -> str:
        """Main finding in one sentence."""
        if not self.blocks:
            return f"Of {len(self.layers)} linear layers in no residual maps, nothing is proved or found."
        worst = max(self.blocks, key=lambda block: block.upper)
        verdict = "all maps are proved to contract" if self.certified else "not every map is proved to contract"
        slack = max((row.upper / row.lower - 1 for row in self.layers if row.lower > 0), default=math.nan)
        return (
            f"Of {len(self.layers)} linear layers in {len(self.blocks)} residual maps, {verdict}: the largest bound is "
            f"{worst.upper:.4g} (found from below: {worst.lower:.4g}), and the bounds of layers are at most "
            f"{100 * slack:.2g} % above norms that were found."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        return {"summary": self.summary, "certified": self.certified, **asdict(self)}

    def __str__(self) -> str:
        if self.network is None:
            return self.summary
        return f"{self.summary} Distances are stretched {self.network.lower:.3g} to {self.network.upper:.3g} times."


@torch.no_grad()
def analyze_lipschitz(
    model: nn.Module, shape: tuple[int, ...], *, progress: Callable[[int], None] = lambda done: None
) -> LipschitzAnalysis:
    r"""Compute singular values and bounds of every linear layer in the residual maps of a model.

    Spectra are exact for dense layers, 1x1 convolutions, and convolutions whose matrix is small enough; else those of
    the circular convolution that bounds them. A model without residual blocks has all its layers analyzed.

    Args:
        model: any module, in eval mode.
        shape: \*E, event shape of the data.
        progress: called with the number of layers done.

    Raises:
        RecipeError: when there are no linear layers.
        IResNetError: when a weight is not finite.

    Example:
        >>> import iresnet as ir
        >>> analysis = analyze_lipschitz(ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=0.5)).eval(), (2,))
        >>> len(analysis.layers), analysis.certified
        (3, True)
    """
    certificate = certify(model)
    rows = []
    for name, (layer, event) in linear_layers(model, shape).items():
        rows.append(_row(name, layer, event))
        progress(len(rows))
    return LipschitzAnalysis(tuple(rows), certificate.blocks, certificate.network)


def linear_layers(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]]:
    r"""Return the linear layers of the residual maps by name, in the order of their use, with their input shapes.

    Args:
        model: any module.
        shape: \*E, event shape of the data.
    """
    names = {module: name for name, module in model.named_modules()}
    maps = [module.g for module in names if isinstance(module, ResidualBlock)] or [model]
    layers = dict.fromkeys(m for g in maps for m in g.modules() if _is_linear(m) or isinstance(m, FeedThrough))
    found: dict[str, tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]] = {}

    def record(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if _is_linear(layer):
            found[names[layer]] = (layer, tuple(args[0].shape[1:]))
        for factor in lipschitz_layers(layer) if isinstance(layer, FeedThrough) else ():  # which it calls not
            record(factor, (torch.empty(1, *factor.input_shape),))

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        network = model.bijection if isinstance(model, Flow) else model
        network(torch.zeros(1, *shape).to(next(model.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise RecipeError("this model has no linear layers to analyze; train one with --model.blocks")
    return found


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(module, (nn.Linear, nn.Conv2d))


def _row(name: str, layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> LayerRow:
    coeff, estimate, norm = None, None, 2.0
    if isinstance(layer, LipschitzLayer) and layer.normalized:
        normalization = layer.normalization
        coeff, norm = normalization.coeff if math.isfinite(normalization.coeff) else None, normalization.norm
        estimate = float(normalization.sigma(normalization.normalize(layer.unnormalized_weight)))
    found = spectrum(layer, shape)
    largest = float(found.values[0]) if found and found.kind == "exact" and norm == 2 else 0.0
    kind = "dense" if isinstance(layer, nn.Linear) else f"conv {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    return LayerRow(
        name,
        kind,
        coeff,
        estimate,
        lower=max(lower_bound(layer, norm), largest),
        upper=upper_bound(layer, norm),
        norm=norm,
        singular_values=found.at(N_VALUES) if found else [],
        count=len(found.values) if found else 0,
        spectrum=found.kind if found else "none",
    )
