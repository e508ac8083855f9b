"""Certificates: upper bounds that prove invertibility, and the sealing that makes a model have one."""

__all__ = ["Bound", "Certificate", "Excess", "Stretch", "certify", "excesses", "norm_of", "seal"]

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from iresnet.assembled import Assembled
from iresnet.bijections import Bijection, ResidualBlock
from iresnet.bounds import lower_bound, upper_bound
from iresnet.classifiers import Classifier
from iresnet.errors import IResNetError
from iresnet.feedthrough import FeedThrough
from iresnet.files import finite_or_none
from iresnet.lipschitz import LipschitzLayer, lipschitz_layers

_TOGETHER = "quadratic constraint"


@dataclass(frozen=True)
class Bound:
    r"""Bounds of one Lipschitz constant.

    Attributes:
        name: path of the module.
        lower: a ratio :math:`|g(x) - g(y)| / |x - y|` that was found: the constant is at least this.
        upper: proved bound: the constant is at most this.
        norm: p of the norm in which both hold; contraction in any proves invertibility.
        by: how the upper bound is proved: by the ``"norms"`` of layers, multiplied, or by a ``"quadratic constraint"``,
            which bounds the layers of a :class:`~iresnet.FeedThrough` together.
    """

    name: str
    lower: float
    upper: float
    norm: float = 2.0
    by: str = "norms"

    def steps(self, tolerance: float = 1e-5) -> float:
        r"""Fixed-point steps that are proved to shrink the distance to the inverse by the factor ``tolerance``.

        .. math:: L^k \le \mathrm{tolerance}

        Infinite without a contraction.
        """
        if self.upper == 0:
            return 1
        return math.ceil(math.log(tolerance) / math.log(self.upper)) if self.upper < 1 else math.inf


@dataclass(frozen=True)
class Stretch:
    r"""Bi-Lipschitz constants of a whole network f, proved: how far it stretches and squeezes distances.

    .. math:: \mathrm{lower} \, |x - y| \le |f(x) - f(y)| \le \mathrm{upper} \, |x - y|

    So an error of size e in the latent is one of at most e / lower in the data.

    Attributes:
        lower: product of 1 - L over the residual blocks, and of the least scales in between.
        upper: product of 1 + L over the residual blocks, and of the largest scales in between.
        norm: p of the norm.
    """

    lower: float
    upper: float
    norm: float


@dataclass(frozen=True)
class Certificate:
    """Lipschitz bounds of a model, from its weights in float64.

    Attributes:
        layers: one bound a Lipschitz layer.
        blocks: one bound a residual map g; without residual blocks, one for the whole module.
        network: bi-Lipschitz constants of the bijection; None for other modules, and where a part states none.
    """

    layers: tuple[Bound, ...]
    blocks: tuple[Bound, ...]
    network: Stretch | None = None

    @property
    def certified(self) -> bool:
        """True when every block is proved to contract, and so to be invertible."""
        return bool(self.blocks) and all(block.upper < 1 for block in self.blocks)

    @property
    def verdict(self) -> str:
        """One line: certified or not, and the largest bound of a block."""
        worst = max((b.upper for b in self.blocks), default=math.nan)
        return f"{'certified' if self.certified else 'not certified'}: largest block bound {worst:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, None for what is infinite; with the guaranteed steps of each block."""
        tree = {"certified": self.certified, **asdict(self)}
        for block, bound in zip(tree["blocks"], self.blocks, strict=True):
            block["steps_to_1e-5"] = bound.steps()
        return finite_or_none(tree)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "Certificate":
        """Read what :meth:`to_dict` wrote.

        Raises:
            KeyError: when a part is missing; TypeError and AttributeError when it is of another kind.
        """
        layers, blocks = (
            tuple(
                Bound(b["name"], *(_number(b[key]) for key in ("lower", "upper", "norm")), by=b.get("by", "norms"))
                for b in tree[key]
            )
            for key in ("layers", "blocks")
        )
        network = tree["network"] and Stretch(*(_number(tree["network"][key]) for key in ("lower", "upper", "norm")))
        return cls(layers, blocks, network)

    def __str__(self) -> str:
        width = max((len(b.name) for b in (*self.layers, *self.blocks)), default=0)
        rows = [_row(b, width) for b in self.layers]
        rows += [f"{_row(b, width)}  {b.steps():5}  {_verdict(b)}" for b in self.blocks]
        lines = [f"{'':<{width}}  lower   upper   steps", *rows]
        if any(b.by == _TOGETHER for b in self.blocks):
            lines.append(f"{_TOGETHER}: bounds the layers of a map together, closer than the product of their norms")
        if self.network:
            lines.append(
                f"distances: stretched at most {self.network.upper:.3g}, at least {self.network.lower:.3g} times"
            )
        return "\n".join([*lines, self.verdict])


def _number(value: float | None) -> float:
    """Read a number of JSON, which has no infinity."""
    return math.inf if value is None else float(value)


def _verdict(bound: Bound) -> str:
    if bound.upper >= 1:
        return "NOT CERTIFIED"
    return "ok" if bound.by == "norms" else f"ok, by {bound.by}"


def _row(bound: Bound, width: int) -> str:
    norm = "" if bound.norm == 2 else f"  (norm {bound.norm:g})"
    return f"{bound.name:<{width}}  {bound.lower:.4f}  {bound.upper:.4f}{norm}"


def certify(module: nn.Module, *, search_steps: int = 0) -> Certificate:
    r"""Bound the Lipschitz constants of a model, of a map g, or of a single layer.

    A block x + g(x) is invertible when :math:`\mathrm{Lip}(g) < 1`. Power iteration bounds norms from below and proves
    nothing; this takes upper bounds (:func:`iresnet.bounds.upper_bound`) and multiplies them through g, or proves a
    quadratic constraint of all of g (:class:`~iresnet.FeedThrough`).

    Args:
        module: any module; its residual blocks are found inside.
        search_steps: gradient-ascent steps of a search for the largest ratio in each block, see
            :func:`iresnet.bounds.lower_bound`: how close to the truth the bounds are.

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
        if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and not bool(torch.isfinite(tensor).all()):
            raise IResNetError(f"'{name}' has values that are not finite: such a model has no bounds; load a sound one")
    layers = tuple(_bound(name, layer) for name, layer in module.named_modules() if isinstance(layer, LipschitzLayer))
    blocks = tuple(_bound(name, g, search_steps) for name, g in _maps(module))
    certificate = Certificate(layers, blocks, _stretch_of(module, blocks))
    if isinstance(module, Assembled):
        module.note_certificate(certificate.verdict)
    return certificate


@dataclass(frozen=True)
class Excess:
    """A layer whose bound is above the coefficient that it should keep.

    Attributes:
        name: of the layer in the model.
        bound: proved, of its present weights.
        coeff: its coefficient.
    """

    name: str
    bound: float
    coeff: float


def excesses(model: nn.Module, *, tolerance: float = 0.01) -> tuple[Excess, ...]:
    """Find the layers whose bound has left their coefficient: power iteration lags behind weights that move fast.

    Args:
        model: as it is in training, not sealed.
        tolerance: relative, on top of the coefficient; that at which power iteration stands still by default.

    Example:
        >>> import iresnet as ir
        >>> layer = ir.LipschitzLinear(2, 2, coeff=0.9).eval()
        >>> layer.weight = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
        >>> layer.normalization.u = torch.tensor([[0.0, 1.0]])  # has not seen the large singular value
        >>> [(round(e.bound, 3), e.coeff) for e in excesses(layer)]
        [(5.0, 0.9)]
    """
    names = {module: name for name, module in model.named_modules()}
    found = [
        Excess(names[m] or type(m).__name__, upper_bound(m, m.normalization.norm), m.normalization.coeff)
        for m in lipschitz_layers(model)
    ]
    return tuple(excess for excess in found if excess.bound > (1 + tolerance) * excess.coeff)


def _maps(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the maps that have to contract, by the name of their block; the module itself when it has no blocks."""
    return [(name, m.g) for name, m in module.named_modules() if isinstance(m, ResidualBlock)] or [("", module)]


def _bound(name: str, g: nn.Module, search_steps: int = 0) -> Bound:
    norm = norm_of(g)
    lower = lower_bound(g, norm, search_steps=search_steps)
    by = _TOGETHER if any(isinstance(module, FeedThrough) for module in g.modules()) else "norms"
    return Bound(name or type(g).__name__, lower, upper_bound(g, norm), norm, by)


def norm_of(g: nn.Module) -> float:
    """Return p of the norm that all layers of g are normalized in: contraction in any proves invertibility.

    The Euclidean one where they differ; that of the smallest bound where none is normalized (any more).

    Example:
        >>> import iresnet as ir
        >>> norm_of(ir.networks.mlp(2, 8, normalization="linf"))
        inf
    """
    norms = {layer.normalization.norm for layer in lipschitz_layers(g)}
    if not norms:
        return min((2.0, 1.0, math.inf), key=lambda norm: upper_bound(g, norm))
    return norms.pop() if len(norms) == 1 else 2.0


# -- the whole network -----------------------------------------------------------------------------------------------


def _stretch_of(module: nn.Module, blocks: tuple[Bound, ...]) -> Stretch | None:
    bijection = module.network if isinstance(module, Classifier) else getattr(module, "bijection", module)
    if not isinstance(bijection, Bijection):
        return None
    norms = {block.norm for block in blocks}
    norm = norms.pop() if len(norms) == 1 else 2.0
    proved = {g: bound for (_, g), bound in zip(_maps(module), blocks, strict=True)}

    def lipschitz(g: nn.Module) -> float:
        return proved[g].upper if proved[g].norm == norm else upper_bound(g, norm)

    try:
        return Stretch(*bijection.stretch(lipschitz), norm)
    except NotImplementedError:  # a bijection that states no constants
        return None


# -- sealing ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def seal(model: nn.Module, *, target: float = 0.99) -> Certificate:
    r"""Make a model certify: converge the norm estimates, and scale down what is then still not proved to contract.

    Power iteration lags behind moving weights, so after training a layer may be somewhat above its coefficient. Sealing
    brings it back. It changes the model a little: evaluate afterwards. Models are sealed when they are saved. A block
    with an unconstrained layer is left as it is, and not certified unless its bound happens to be below 1.

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
    for layer in lipschitz_layers(model):
        layer.normalization.converge(layer.unnormalized_weight)
    certificate = certify(model)
    if certificate.certified:
        return certificate
    for _, g in _maps(model):
        _scale_down(g, target)
    return certify(model)


def _scale_down(g: nn.Module, target: float) -> None:
    """Multiply all layers of g by one factor, so that its bound becomes ``target``."""
    bound = upper_bound(g, norm_of(g))
    layers = lipschitz_layers(g)
    if bound < 1 or not layers or not math.isfinite(bound):
        return
    if not all(m.normalization.constrained and m.normalization.idempotent for m in layers):
        return
    factor = (target / bound) ** (1 / len(layers))
    for layer in layers:
        # Below its coefficient a weight passes its normalization unchanged.
        layer.weight = factor * layer.normalization.normalize(layer.unnormalized_weight)
