"""Certificates: upper bounds that prove invertibility, and the sealing that makes a model have one."""

__all__ = ["Bound", "Certificate", "certify", "seal"]

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from iresnet.bijections import ResidualBlock
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.jacobian import linearize
from iresnet.lipschitz import LipschitzConv2d, LipschitzLinear, hold_weights


@dataclass(frozen=True)
class Bound:
    """What is known of one Lipschitz constant.

    Attributes:
        name: path of the module.
        lower: a ratio |J v| / |v| that was found: the constant is at least this.
        upper: proved bound: the constant is at most this.
    """

    name: str
    lower: float
    upper: float


@dataclass(frozen=True)
class Certificate:
    """Lipschitz bounds of a model, from its weights in float64.

    Attributes:
        layers: one bound a Lipschitz layer.
        blocks: one bound a residual map g, the product of the bounds of its layers; without residual blocks, one for
            the whole module.
    """

    layers: tuple[Bound, ...]
    blocks: tuple[Bound, ...]

    @property
    def certified(self) -> bool:
        """Whether every block is proved to contract, and so to be invertible."""
        return bool(self.blocks) and all(block.upper < 1 for block in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"certified": self.certified, **asdict(self)}

    def __str__(self) -> str:
        width = max((len(b.name) for b in (*self.layers, *self.blocks)), default=0)
        rows = [f"{b.name:<{width}}  {b.lower:.4f}  {b.upper:.4f}" for b in self.layers]
        rows += [
            f"{b.name:<{width}}  {b.lower:.4f}  {b.upper:.4f}  {'ok' if b.upper < 1 else 'NOT CERTIFIED'}"
            for b in self.blocks
        ]
        worst = max((b.upper for b in self.blocks), default=math.nan)
        verdict = "certified" if self.certified else "not certified"
        return "\n".join([f"{'':<{width}}  lower   upper", *rows, f"{verdict}: largest block bound {worst:.4f}"])


def certify(module: nn.Module) -> Certificate:
    r"""Bound the Lipschitz constants of a model, of a map g, or of a single layer.

    A block x + g(x) is invertible when :math:`\mathrm{Lip}(g) < 1`. Power iteration bounds norms from below and proves
    nothing; this takes upper bounds (:func:`iresnet.bounds.upper_bound`) and multiplies them through g.

    Args:
        module: any module; its residual blocks are found inside.

    Returns:
        The certificate; ``certified`` is true only when it is proved.

    Raises:
        IResNetError: when a weight is not finite.

    Example:
        >>> import iresnet as ir
        >>> certificate = certify(ir.networks.mlp(2, 32, coeff=0.9))
        >>> certificate.certified, len(certificate.layers)
        (True, 3)
    """
    for name, tensor in module.state_dict().items():
        if not is_lazy(tensor) and not bool(torch.isfinite(tensor).all()):
            raise IResNetError(f"'{name}' has values that are not finite: such a model has no bounds; load a sound one")
    layers = tuple(_bound(name, layer) for name, layer in module.named_modules() if _is_layer(layer))
    blocks = tuple(_bound(name, g) for name, g in _maps(module))
    return Certificate(layers, blocks)


def _maps(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The maps that have to contract, by the name of their block: the module itself when it has no blocks."""
    return [(name, m.g) for name, m in module.named_modules() if isinstance(m, ResidualBlock)] or [("", module)]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (LipschitzLinear, LipschitzConv2d))


def _bound(name: str, g: nn.Module) -> Bound:
    return Bound(name or type(g).__name__, lower=_lower_bound(g), upper=upper_bound(g))


@torch.no_grad()
def _lower_bound(g: nn.Module, *, n_points: int = 4, max_steps: int = 50) -> float:
    """Largest |J u| of unit vectors u found by power iteration at random points; 0 where the input shape is unknown."""
    shape = _input_shape(g)
    if shape is None:
        return 0.0
    parameter = next(g.parameters())
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.randn(n_points, *shape, generator=generator).to(parameter) for _ in range(2))
    with hold_weights(g, iterate=False):
        try:
            jacobian = linearize(g, x)
        except (RuntimeError, IResNetError):  # layers in between change the shape
            return 0.0
        for _ in range(max_steps):
            u = _unit(jacobian.vjp(jacobian.jvp(_unit(u))))
        stretch = jacobian.jvp(u).flatten(1).double().norm(dim=1).max()
    return float(stretch) * (1 - 64 * torch.finfo(u.dtype).eps)  # less what rounding may have added


def _input_shape(g: nn.Module) -> tuple[int, ...] | None:
    """Event shape that the first layer of g asks for, if it is one that asks."""
    for layer in g.modules():
        if isinstance(layer, LipschitzConv2d):
            return (layer.in_channels, *layer.image_size)
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if next(layer.parameters(recurse=False), None) is not None:
            return None
    return None


def _unit(u: Tensor) -> Tensor:
    norm = u.flatten(1).norm(dim=1).clamp(min=torch.finfo(u.dtype).tiny)
    return u / norm.view(-1, *[1] * (u.dim() - 1))


@torch.no_grad()
def seal(model: nn.Module, *, target: float = 0.99) -> Certificate:
    r"""Make a model certify: converge the norm estimates, and scale down what is then still not proved to contract.

    Power iteration lags behind moving weights, so after training a layer may be somewhat above its coefficient. Sealing
    brings it back. It changes the model a little: evaluate afterwards. Models are sealed when they are saved.

    Args:
        model: changed in place.
        target: bound of the blocks that have to be scaled down.

    Returns:
        The certificate of the sealed model.

    Raises:
        IResNetError: when a weight is not finite.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(torch.nn.Sequential(ir.LipschitzLinear(2, 2, coeff=0.99)))
        >>> block.g[0].weight = 5 * torch.eye(2)
        >>> seal(block).certified
        True
    """
    for layer in model.modules():
        if isinstance(layer, (LipschitzLinear, LipschitzConv2d)):
            layer.normalisation.converge(layer.unnormalised_weight)
    certificate = certify(model)
    if certificate.certified:
        return certificate
    for _, g in _maps(model):
        _scale_down(g, target)
    return certify(model)


def _scale_down(g: nn.Module, target: float) -> None:
    """Multiply all layers of g by one factor, so that its bound becomes ``target``."""
    bound = upper_bound(g)
    layers = [m for m in g.modules() if isinstance(m, (LipschitzLinear, LipschitzConv2d))]
    if bound < 1 or not layers or not math.isfinite(bound):
        return
    factor = (target / bound) ** (1 / len(layers))
    for layer in layers:
        # Below its coefficient a weight passes its normalisation unchanged.
        layer.weight = factor * layer.normalisation.normalise(layer.unnormalised_weight)
