"""Models as they are exported: constant weights, and loops in place of solvers and estimators."""

__all__ = ["WHAT", "Block", "blocks_of", "flow_of", "freeze", "shapes_of"]

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from iresnet.bijections import Bijection, Inverse, ResidualBlock
from iresnet.bijections.whitening import Root
from iresnet.bounds import upper_bound
from iresnet.cayley import Rotation
from iresnet.classifiers import Classifier, Hybrid
from iresnet.errors import RecipeError
from iresnet.jacobian import linearize_inner
from iresnet.lipschitz import LipschitzLayer, LipschitzLinear
from iresnet.zoo import Model


class Block(Bijection):
    """Residual block with constant weights, whose inverse and log-determinant are loops that ONNX has too.

    Torch's operator ``while_loop`` is called directly, with all tensors that it uses as arguments: torch.while_loop
    compiles its body first, which takes minutes for some blocks in a row.

    Args:
        g: the map, without normalizations.
        shape: of an event.
        bound: Lipschitz constant that g is proved to have at most.
        atol: tolerance of the inverse, as that of a :class:`~iresnet.Solver`; in nats that of the log-determinant.
        max_steps: steps at most.
    """

    def __init__(self, g: nn.Module, shape: tuple[int, ...], bound: float, *, atol: float, max_steps: int):
        super().__init__()
        self.g, self.shape, self.bound = g, shape, bound
        self.atol, self.max_steps = atol, max_steps

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        return x + self.g(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: Any = None) -> tuple[Tensor, Tensor]:
        """Sum the power series of v^T log(I + J) v until its tail is proved to be below the tolerance.

        .. math:: |tail| <= |v| |(J^T)^k v| L / ((k + 1) (1 - L))

        Args:
            x: data.
            logdet: in place of estimators, :class:`_Probes`, which also receive the bounds of the tails.
        """
        probes: _Probes = logdet
        v = probes.of[self].reshape(-1, *self.shape)
        step, tail = _zero(), torch.full_like(v.flatten(1)[:, 0], math.inf)
        names, weights = self._weights("g.")

        def goes_on(step: Tensor, term: Tensor, value: Tensor, tail: Tensor, *_: Tensor) -> Tensor:  # noqa: ARG001
            return (step < self.max_steps) & (tail > self.atol).any()

        def add(step: Tensor, term: Tensor, value: Tensor, tail: Tensor, x: Tensor, v: Tensor, *weights: Tensor):  # noqa: ARG001
            k = step + 1
            product = functional_call(_Vjp(self.g), dict(zip(names, weights, strict=True)), (x, term))
            lengths = v.flatten(1).norm(dim=1) * product.flatten(1).norm(dim=1)
            value = value + (product * v).flatten(1).sum(1) * (1 - 2 * (step % 2)) / k
            return k, product, value, lengths * (self.bound / (1 - self.bound)) / (k + 1)

        carried = (step, v.clone(), torch.zeros_like(tail), tail)
        _, _, value, tail = torch.ops.higher_order.while_loop(goes_on, add, carried, (x, v, *weights))
        probes.tails.append(tail)
        return self(x), value

    def inverse(self, z: Tensor, *, solver: Any = None, report: Any = None) -> Tensor:  # noqa: ARG002
        """Iterate x <- z - g(x) until one step changes no sample by more than the tolerance of torch's solvers.

        Args:
            z: latents.
            solver: not used.
            report: receives the largest last change of each sample, (N,), and the number of steps.
        """
        z = z.contiguous()
        rounding = 4 * torch.finfo(z.dtype).eps
        names, weights = self._weights()

        def goes_on(step: Tensor, x: Tensor, residual: Tensor, *_: Tensor) -> Tensor:
            size = x.abs().flatten(1).amax(1)
            return (step < self.max_steps) & (residual > self.atol + rounding * size).any()

        def iterate(step: Tensor, x: Tensor, residual: Tensor, z: Tensor, *weights: Tensor):  # noqa: ARG001
            after = z - functional_call(self.g, dict(zip(names, weights, strict=True)), (x,))
            return step + 1, after, (after - x).abs().flatten(1).amax(1)

        carried = (_zero(), z.clone(), torch.full_like(z.flatten(1)[:, 0], math.inf))
        steps, x, residual = torch.ops.higher_order.while_loop(goes_on, iterate, carried, (z, *weights))
        report(residual, steps)
        return x

    def _weights(self, prefix: str = "") -> tuple[list[str], list[Tensor]]:
        named = dict(self.g.named_parameters())
        return [prefix + name for name in named], list(named.values())


@dataclass
class _Probes:
    """Probes of each block, (N, D), and the proved bounds of what their series leave out, (N,), in nats."""

    of: dict[nn.Module, Tensor]
    tails: list[Tensor] = field(default_factory=list)


class _Vjp(nn.Module):
    """Product with the transposed Jacobian of g, as a module whose weights can be replaced."""

    def __init__(self, g: nn.Module):
        super().__init__()
        self.g = g

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return linearize_inner(self.g, x).vjp(w)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.long)


class _Encode(nn.Module):
    """Data to latents, or to the features of a classifier."""

    inputs, outputs = ("x",), ("z",)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.bijection(x)


class _Classify(_Encode):
    """Data to logits."""

    outputs = ("logits",)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Decode(_Encode):
    """Latents to data, with the largest last change of an element in any block, (N,), and the most steps of a block."""

    inputs, outputs = ("z",), ("x", "residual", "steps")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reports: list[tuple[Tensor, Tensor]] = []
        x = self.model.bijection.inverse(z, report=lambda *report: reports.append(report))
        residuals, steps = zip(*reports, strict=True)
        return x, torch.stack(residuals).amax(0), torch.stack(steps).amax(0)


class _LogProb(_Encode):
    """Data and probes to log-densities, their standard errors over probes, and proved bounds of the series' tails."""

    inputs, outputs = ("x", "probes"), ("log_prob", "standard_error", "tail_bound")

    def forward(self, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (N, *E), (M, P, B)
        flow = flow_of(self.model)
        n, p = x.shape[0], probes.shape[1]
        rows = torch.arange(n)
        rows = rows % torch.full_like(rows, probes.shape[0])  # one set for all samples, or a set for each
        blocks = [block for block in flow.modules() if isinstance(block, Block)]
        parts = probes[rows].flatten(0, 1).split([math.prod(block.shape) for block in blocks], 1)
        given: Any = _Probes(dict(zip(blocks, parts, strict=True)))
        repeated = x[:, None].expand(n, p, *x.shape[1:]).flatten(0, 1)
        values = flow.density(repeated, logdet=given).log_prob.view(n, p)
        mean = values.mean(1)
        variance = (values - mean[:, None]).square().sum(1) / (p - 1)
        return mean, (variance / p).sqrt(), torch.stack(given.tails).sum(0).view(n, p).mean(1)


WHAT: dict[str, type[_Encode]] = {"encode": _Encode, "decode": _Decode, "log-prob": _LogProb, "classify": _Classify}
"""What can be exported, by name."""


def flow_of(model: Any) -> Any:
    """Return the density of a model.

    Raises:
        RecipeError: for a classifier, which has none.
    """
    if isinstance(model, Classifier):
        raise RecipeError("this model is a classifier without a density, so it has no log-prob: export classify")
    return model.flow if isinstance(model, Hybrid) else model


def blocks_of(model: nn.Module) -> dict[str, ResidualBlock]:
    """Return the residual blocks of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ResidualBlock)}


@torch.no_grad()
def shapes_of(model: Model, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shapes of events in each residual block, from one pass, in the order of the data.

    Raises:
        RecipeError: for blocks that are solved in forward, which are not exported.
    """
    if any(isinstance(module, Inverse) for module in model.modules()):
        raise RecipeError("this model has implicit or monotone blocks, and only residual blocks are exported")
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        block.register_forward_pre_hook(partial(_note_shape, shapes, name)) for name, block in blocks_of(model).items()
    ]
    try:
        model.network(x) if isinstance(model, Classifier) else model.bijection(x)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _note_shape(shapes: dict[str, tuple[int, ...]], name: str, block: nn.Module, args: Any) -> None:  # noqa: ARG001
    shapes[name] = tuple(args[0].shape[1:])


def freeze(model: Model, shapes: Mapping[str, tuple[int, ...]], *, atol: float, max_steps: int) -> nn.Module:
    """Copy a model for export: its weights are constants, and its residual blocks are :class:`Block`."""
    bounds = {name: upper_bound(block.g) for name, block in blocks_of(model).items()}
    frozen = copy.deepcopy(model).eval()
    _replace(frozen, LipschitzLayer, lambda _, layer: _plain(layer))
    _replace(frozen, Rotation, lambda _, rotation: _Constant(rotation()))
    _replace(frozen, Root, lambda _, root: _FrozenRoot(root))
    make = partial(Block, atol=atol, max_steps=max_steps)
    _replace(frozen, ResidualBlock, lambda name, block: make(block.g, shapes[name], bounds[name]))
    return frozen.requires_grad_(False)


def _replace(model: nn.Module, kind: type[nn.Module], make: Callable[[str, Any], nn.Module]) -> None:
    for name, module in [(name, m) for name, m in model.named_modules() if isinstance(m, kind)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(name, module))


class _Constant(nn.Module):
    """Tensor that is returned as it is."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor = nn.Parameter(tensor.detach())

    def forward(self) -> Tensor:
        return self.tensor


class _FrozenRoot(nn.Module):
    """Matrix of a whitening with its inverse and log-determinant as constants, since ONNX has no factorizations."""

    def __init__(self, root: Root):
        super().__init__()
        self.matrix, self.logdet = (nn.Parameter(tensor.detach()) for tensor in root())
        self.inverse_matrix = nn.Parameter(root.inverse().detach())

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.matrix, self.logdet

    def inverse(self) -> Tensor:
        return self.inverse_matrix


def _plain(layer: Any) -> nn.Module:
    """Make a layer of torch with the normalized weight of a Lipschitz layer."""
    bias = layer.bias is not None
    if isinstance(layer, LipschitzLinear):
        plain: Any = nn.Linear(layer.in_features, layer.out_features, bias=bias)
    else:
        odd = all(size % 2 for size in layer.kernel_size)
        padding: Any = tuple(size // 2 for size in layer.kernel_size) if odd else "same"
        plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=padding, bias=bias)
    plain.weight, plain.bias = nn.Parameter(layer.weight.detach()), layer.bias
    return plain
