"""Models that an import builds, and the numbers of a checkpoint put into them."""

__all__ = ["Imported", "fill", "fill_weight"]

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.config import Config
from iresnet.errors import DataError
from iresnet.imports.pickles import describe
from iresnet.inputs import Inputs
from iresnet.lipschitz import LipschitzLayer
from iresnet.normalization import PowerIteration
from iresnet.operators import WeightStack
from iresnet.zoo import Model


@dataclass(frozen=True)
class Imported:
    """A network of a published code as a model of this package.

    Attributes:
        config: the recipe of its architecture; how it was trained is not known.
        inputs: what it takes.
        model: with the weights, in eval mode, not sealed.
        about: what the checkpoint says of itself, for people.
    """

    config: Config
    inputs: Inputs
    model: Model
    about: dict[str, Any]


def fill(target: Tensor, source: Any, name: str) -> None:
    """Copy a tensor of a checkpoint, of the same shape.

    Args:
        target: changed in place.
        source: what the checkpoint holds.
        name: of the source, for the message.

    Raises:
        DataError: when it is of another shape.

    Example:
        >>> target = torch.zeros(2)
        >>> fill(target, torch.ones(2), "'bias' of a layer")
        >>> target
        tensor([1., 1.])
    """
    if not isinstance(source, Tensor) or source.shape != target.shape:
        raise DataError(f"expected a tensor of shape {tuple(target.shape)} as {name}, got {describe(source)}")
    target.copy_(source)


def fill_weight(layer: LipschitzLayer, weight: Tensor) -> None:
    """Let a layer normalized by power iteration use a weight as it is, though its norm may be above the coefficient.

    Args:
        layer: changed in place.
        weight: the normalized weight.

    Raises:
        DataError: when the weight stretches every direction by more than the coefficient.

    Example:
        >>> import iresnet as ir
        >>> layer = ir.LipschitzLinear(2, 2, coeff=0.9).eval()
        >>> with torch.no_grad():
        ...     fill_weight(layer, torch.diag(torch.tensor([0.95, 0.1])))
        >>> layer.weight.diag().tolist()
        [0.949999988079071, 0.10000000149011612]
    """
    layer.unnormalized_weight.copy_(weight)
    assert isinstance(layer.normalization, PowerIteration)
    _leave_unchanged(layer.normalization, layer.unnormalized_weight)


def _leave_unchanged(normalization: PowerIteration, weight: Tensor) -> None:
    r"""Choose u such that :math:`|W u| \le c`, so that a weight whose norm may be above c passes as it is.

    u is the first singular vector where the norm is below c. Elsewhere it goes from a random direction towards the last
    one, :math:`u \leftarrow u - W^T W u / \sigma^2`, until it is stretched by no more than c.
    """
    normalization.converge(weight, tol=1e-3, max_steps=100)
    norm = normalization.sigma(weight)
    u = torch.randn(normalization.u.shape, generator=torch.Generator().manual_seed(0))
    operator = WeightStack(weight[None])
    for _ in range(1000):
        if bool(normalization.sigma(weight) <= normalization.coeff):
            return
        normalization.u.copy_(F.normalize(u.flatten(), dim=0).view_as(u))
        u = normalization.u - operator.apply_transpose(operator.apply(normalization.u)) / norm.square()
    raise DataError(
        f"a weight of shape {tuple(weight.shape)} stretches every direction by more than its coefficient "
        f"{normalization.coeff}: its power iteration never ran; train it for a step with the code that wrote it"
    )
