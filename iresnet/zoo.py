"""Names to models: the only place where architectures are put together."""

__all__ = ["ARCHITECTURES", "LOGDETS", "SOLVERS", "Model", "block", "build", "make_logdet", "make_solver", "options_of"]

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iresnet import networks
from iresnet.bases import BASES, Base, ContextNormal, DiagonalNormal
from iresnet.bijections import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    FactorOut,
    Flatten,
    InjectivePad,
    ResidualBlock,
    Squeeze,
)
from iresnet.classifiers import Classifier, Hybrid
from iresnet.context import ContextEncoder, at_context
from iresnet.errors import RecipeError
from iresnet.flows import Flow
from iresnet.inputs import level_scale
from iresnet.logdet import LogDetEstimator
from iresnet.named import LOGDETS, SOLVERS, check_options, make_logdet, make_solver, one_of, own_options
from iresnet.networks import PlainBlock
from iresnet.renamed import accept_old_names
from iresnet.solvers import Solver

Shape = tuple[int, ...]
ImageShape = tuple[int, int, int]
Model = Flow | Classifier | Hybrid


# -- blocks ----------------------------------------------------------------------------------------------------------


def block(
    g: Callable[..., nn.Sequential],
    *,
    coeff: float | None = 0.9,
    activation: str = "elu",
    normalization: str = "power",
    n_power_steps: int | None = None,
    logdet: LogDetEstimator | Mapping[str, Any] | str | None = None,
    solver: Solver | Mapping[str, Any] | str | None = None,
    memory: str = "keep",
    context: int = 0,
) -> ResidualBlock:
    """Build a residual block; all invertible architectures take these options.

    Args:
        g: builds the map from the options of its layers.
        coeff: Lipschitz coefficient of each layer, in (0, 1); None for no constraint: classification only, to compare.
        activation: one of :data:`iresnet.activations.ACTIVATIONS`.
        normalization: of weights, one of :data:`iresnet.normalization.NORMALIZATIONS`.
        n_power_steps: power iterations a step (1 when None), or Gram iterations (7 when None).
        logdet: estimator of log-determinants, its name, or a mapping of name and options.
        solver: solver of inverses, its name, or a mapping of name and options.
        memory: what is kept for backward, one of :data:`iresnet.bijections.memory.MEMORY`, see
            :class:`~iresnet.ResidualBlock`.
        context: features of a context on which the map depends.
    """
    layers = {"coeff": coeff, "activation": activation, "normalization": normalization, "n_steps": n_power_steps}
    return ResidualBlock(
        g(**layers, context=context), logdet=make_logdet(logdet), solver=make_solver(solver), memory=memory
    )


# -- architectures: data of a shape -> a list of bijections, the last of which ends in latent vectors or features ------


def iresnet(
    shape: Shape,
    *,
    blocks: Sequence[int] = (7, 7, 7),
    strides: Sequence[int] = (1, 2, 2),
    hidden: int | Sequence[int] = (32, 64, 128),
    squeeze: bool = False,
    injective_pad: int = 0,
    actnorm: bool = True,
    network: str = "conv-bottleneck",
    **options: Any,
) -> Chain:
    """Build the single-scale network of 2019: all channels go through all blocks. Defaults: the published classifier's.

    Args:
        shape: (C, H, W) of the images.
        blocks: residual blocks in each scale.
        strides: 2 squeezes at the start of a scale, 1 does not.
        hidden: channels inside the blocks, one number or one a scale.
        squeeze: squeeze once before everything.
        injective_pad: channels of zeros appended to the image; classification only.
        actnorm: put an ActNorm before each block.
        network: conv-bottleneck or dense-concat.
        options: of :func:`block`.
    """
    head, shape = _head(shape, squeeze=squeeze, injective_pad=injective_pad)
    scales = _check_scales(blocks, strides, hidden)
    return Chain(head + _scales(shape, scales, network, options, actnorm=actnorm, factor_out=False))


def iresnet_multiscale(
    shape: Shape,
    *,
    blocks: Sequence[int] = (16, 16, 16),
    strides: Sequence[int] = (1, 2, 2),
    hidden: int | Sequence[int] = 512,
    squeeze: bool = True,
    actnorm: bool = True,
    network: str = "conv-bottleneck",
    **options: Any,
) -> Chain:
    """Build the multi-scale network of 2019: half of the channels leave after each scale but the last.

    Defaults: the published density model's. Arguments as for :func:`iresnet`.
    """
    head, shape = _head(shape, squeeze=squeeze, injective_pad=0)
    scales = _check_scales(blocks, strides, hidden)
    return Chain(head + _scales(shape, scales, network, options, actnorm=actnorm, factor_out=True))


def toy_mlp(
    shape: Shape,
    *,
    blocks: int = 10,
    hidden: int = 64,
    depth: int = 3,
    actnorm: bool = True,
    network: str = "mlp",
    **options: Any,
) -> Chain:
    """Build blocks of multi-layer perceptrons, for vectors.

    Args:
        shape: (D,).
        blocks: residual blocks.
        hidden: size of the hidden layers.
        depth: dense layers in each block.
        actnorm: put an ActNorm before each block.
        network: mlp or dense-concat.
        options: of :func:`block`.
    """
    if len(shape) != 1:
        raise RecipeError(f"toy-mlp models vectors, got events of shape {shape}; use iresnet or iresnet-multiscale")
    if not isinstance(blocks, int) or blocks < 0:
        raise RecipeError(f"toy-mlp takes one number of blocks, got {blocks}")
    maps = {"mlp": partial(networks.mlp, shape[0]), "dense-concat": partial(networks.dense_concat, shape)}
    g = partial(one_of(maps, "network", network), hidden, depth=depth)
    return Chain(_blocks(shape, [g] * blocks, options, actnorm=actnorm))


def resnet(
    shape: Shape,
    *,
    blocks: Sequence[int] = (7, 7, 7),
    strides: Sequence[int] = (1, 2, 2),
    hidden: int | Sequence[int] = (32, 64, 128),
    squeeze: bool = False,
    injective_pad: int = 0,
    activation: str = "relu",
) -> nn.Sequential:
    """Build the plain residual network in the shapes of :func:`iresnet`, to compare with: it cannot be inverted.

    Batch norm, no ActNorm, no constraint; classification only. Arguments as for :func:`iresnet`.
    """
    head, shape = _head(shape, squeeze=squeeze, injective_pad=injective_pad)
    network = nn.Sequential(*head)
    for n_blocks, stride, width in _check_scales(blocks, strides, hidden):
        if stride == 2:
            network.append(Squeeze())
            shape = _squeezed(shape)
        network.extend(PlainBlock(shape[0], width, activation=activation) for _ in range(n_blocks))
    return network


ARCHITECTURES: dict[str, Callable[..., Chain | nn.Sequential]] = {
    "iresnet": iresnet,
    "iresnet-multiscale": iresnet_multiscale,
    "resnet": resnet,
    "toy-mlp": toy_mlp,
}


def options_of(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the options that an architecture, an estimator or a solver takes, by name.

    Args:
        function: a value of one of the dictionaries here; ``**options`` of an architecture are those of :func:`block`.

    Example:
        >>> list(options_of(ARCHITECTURES["toy-mlp"]))[:4]
        ['blocks', 'hidden', 'depth', 'actnorm']
    """
    takes_blocks = "options" in inspect.signature(function).parameters
    return own_options(function) | (own_options(block) if takes_blocks else {})


def _blocks(
    shape: Shape, maps: Sequence[Callable[..., nn.Sequential]], options: Mapping[str, Any], *, actnorm: bool
) -> list[Bijection]:
    """Build a residual block of each map g, after an ActNorm of its own."""
    bijections: list[Bijection] = []
    for g in maps:
        bijections += [ActNorm(shape[0])] if actnorm else []
        bijections.append(block(g, **options))
    return bijections


def _head(shape: Shape, *, squeeze: bool, injective_pad: int) -> tuple[list[Bijection], ImageShape]:
    """Build what comes before the first scale, and return the shape after it."""
    if len(shape) != 3:
        raise RecipeError(f"this architecture models images (C, H, W), got events of shape {shape}; use toy-mlp")
    head: list[Bijection] = [Squeeze()] if squeeze else []
    c, h, w = _squeezed(shape) if squeeze else shape
    if injective_pad:
        head.append(InjectivePad(injective_pad))
    return head, (c + injective_pad, h, w)


def _check_scales(
    blocks: Sequence[int], strides: Sequence[int], hidden: int | Sequence[int]
) -> list[tuple[int, int, int]]:
    """Return blocks, stride and width of each scale."""
    if isinstance(blocks, int) or isinstance(strides, int):
        raise RecipeError(f"blocks {blocks} and strides {strides} must be lists, with one entry a scale each")
    widths = [hidden] * len(blocks) if isinstance(hidden, int) else list(hidden)
    if not 0 < len(blocks) == len(strides) == len(widths):
        raise RecipeError(f"blocks {blocks}, strides {strides} and hidden {hidden} must have one entry a scale each")
    if min(blocks) < 0:
        raise RecipeError(f"blocks must not be negative, got {blocks}")
    if set(strides) - {1, 2}:
        raise RecipeError(f"strides must be 1 or 2, got {strides}")
    return list(zip(blocks, strides, widths, strict=True))


def _scales(
    shape: ImageShape,
    scales: Sequence[tuple[int, int, int]],
    network: str,
    options: Mapping[str, Any],
    *,
    actnorm: bool,
    factor_out: bool,
    first: bool = True,
) -> list[Bijection]:
    """Build the bijections of all scales; with ``factor_out`` the later ones are nested in a FactorOut."""
    (n_blocks, stride, width), *later = scales
    squeeze: list[Bijection] = []
    if stride == 2:
        squeeze, shape = [Squeeze()], _squeezed(shape)
    bottleneck, dense = (partial(g, shape, width) for g in (networks.conv_bottleneck, networks.dense_concat))
    maps = [one_of({"conv-bottleneck": bottleneck, "dense-concat": dense}, "network", network)] * n_blocks
    if first and n_blocks and network == "conv-bottleneck":
        # The published models have no activation before the very first convolution.
        maps[0] = partial(bottleneck, preactivation=False)
    scale = squeeze + _blocks(shape, maps, options, actnorm=actnorm)
    if not later:
        return [*scale, Flatten(shape)] if factor_out else scale
    c, h, w = shape
    kept = (c - c // 2, h, w) if factor_out else shape
    rest = _scales(kept, later, network, options, actnorm=actnorm, factor_out=factor_out, first=False)
    return [*scale, FactorOut(shape, Chain(rest))] if factor_out else scale + rest


def _squeezed(shape: ImageShape) -> ImageShape:
    c, h, w = shape
    if h % 2 or w % 2:
        raise RecipeError(
            f"images of {h}x{w} cannot be squeezed: pad them (--data.pad-to), or squeeze less often (strides, squeeze)"
        )
    return (4 * c, h // 2, w // 2)


# -- models ----------------------------------------------------------------------------------------------------------


@accept_old_names
def build(
    name: str,
    *,
    shape: Sequence[int],
    task: str = "density",
    n_classes: int = 0,
    mean: float | Tensor | None = None,
    std: float | Tensor | None = None,
    base: str = "diagonal-normal",
    head_hidden: int = 32,
    context: int | str | ContextEncoder = 0,
    **options: Any,
) -> Model:
    r"""Build a model by the name of its architecture.

    Args:
        name: a key of :data:`ARCHITECTURES`.
        shape: \*E, the event shape of the data: (C, H, W) or (D,).
        task: ``"density"`` gives a :class:`~iresnet.Flow`, ``"classify"`` a :class:`~iresnet.Classifier`,
            ``"hybrid"`` a :class:`~iresnet.Hybrid`.
        n_classes: for classifiers and hybrids, and densities given a class.
        mean: subtracted from the data first, a number or one a channel, (C, 1, 1). Default: 128 for images, which are
            expected on [0, 256), and 0 for vectors.
        std: the data is then divided by this. Default: 256 for images and 1 for vectors.
        base: base density, one of :data:`iresnet.bases.BASES`.
        head_hidden: channels of the head of a hybrid of images.
        context: of a conditional density: how many numbers the context has, which are encoded by a perceptron of 64
            hidden units; ``"class"`` for one of ``n_classes``; or an encoder.
        options: arguments of the architecture.

    Returns:
        The model, in train mode.

    Raises:
        UnknownNameError: for an unknown architecture, option or name within.
        RecipeError: when the options do not fit the shape or the task.

    Example:
        >>> flow = build("iresnet-multiscale", shape=(1, 16, 16), blocks=(1, 1), strides=(1, 2), hidden=8)
        >>> flow.bits_per_dim(256 * torch.rand(2, 1, 16, 16)).shape
        torch.Size([2])
    """
    architecture, model = one_of(ARCHITECTURES, "architecture", name), one_of(_TASKS, "task", task)
    check_options(f"architecture '{name}'", options_of(architecture), options)
    if task != "classify":
        _check_density(name, task, options)
    default_mean, default_std = level_scale(256) if len(shape) == 3 else (0.0, 1.0)
    scaling = {"mean": default_mean if mean is None else mean, "std": default_std if std is None else std}
    encoder = _encoder(context, task, n_classes)
    conditions = {"context": encoder.features} if encoder else {}
    scale, network = Affine(**scaling), architecture(tuple(shape), **options, **conditions)
    scaled = Chain([scale, *network.bijections]) if isinstance(network, Chain) else nn.Sequential(scale, *network)  # pyright: ignore[reportArgumentType]
    heads = {"n_classes": n_classes, "base": base, "head_hidden": head_hidden, "encoder": encoder}
    built = model(scaled, tuple(shape), **heads)
    given = {"name": name, "shape": tuple(shape), "task": task, "base": base, "head_hidden": head_hidden}
    given |= {"context": context} if encoder else {}
    built.origin = {**given, **scaling, **options}
    return built


def _encoder(context: int | str | ContextEncoder, task: str, n_classes: int) -> ContextEncoder | None:
    if context and task != "density":
        raise RecipeError(f"the task '{task}' takes no context; a density does")
    if isinstance(context, ContextEncoder):
        return context
    if context == "class" and n_classes > 0:
        return ContextEncoder([0.0] * n_classes, [1.0] * n_classes)
    if not isinstance(context, int) or context < 0:
        raise RecipeError(f"context is how many numbers it has, or 'class' with n_classes, got {context!r}")
    return ContextEncoder([0.0] * context, [1.0] * context, hidden=64) if context else None


def _check_density(name: str, task: str, options: Mapping[str, Any]) -> None:
    """Refuse what has no density."""
    if name == "resnet":
        raise RecipeError(
            f"resnet is a plain network without density for the task '{task}'; use iresnet, or classify alone "
            "(--task.nll-weight 0 --task.ce-weight 1)"
        )
    if options.get("injective_pad"):
        raise RecipeError(
            f"injective_pad={options['injective_pad']} leaves no density for the task '{task}': padded images have "
            "volume zero; set injective_pad=0, or use the task 'classify'"
        )
    if options.get("coeff", 0.9) is None:
        raise RecipeError(
            f"coeff=null leaves no density for the task '{task}': unconstrained blocks may fold space, and then "
            "log|det| is not what is estimated; give a coeff in (0, 1), or use the task 'classify'"
        )


def _flow(chain: Chain, shape: Shape, *, base: str, encoder: ContextEncoder | None = None, **_: Any) -> Flow:
    at_zero = chain if encoder is None else at_context(chain, torch.zeros(1, encoder.features))
    z = _dry_forward(at_zero, shape)
    flat = chain if len(z) == 1 else Chain([*chain.bijections, Flatten(z)])  # pyright: ignore[reportArgumentType]
    density: Base = one_of(BASES, "base density", base)(math.prod(shape))
    if encoder and isinstance(density, DiagonalNormal):
        density = ContextNormal(density.features, encoder.features)
    return Flow(flat, density, event_shape=shape, context_encoder=encoder)


def _classifier(network: nn.Module, shape: Shape, *, n_classes: int, **_: Any) -> Classifier:
    classifier = Classifier(network, n_classes, event_shape=shape)
    _dry_forward(classifier, shape)
    return classifier


def _hybrid(chain: Chain, shape: Shape, *, n_classes: int, base: str, head_hidden: int, **_: Any) -> Hybrid:
    hybrid = Hybrid(_flow(chain, shape, base=base), n_classes, hidden=head_hidden)
    _dry_forward(hybrid, shape)
    return hybrid


_TASKS: dict[str, Callable[..., Model]] = {"density": _flow, "classify": _classifier, "hybrid": _hybrid}


@torch.no_grad()
def _dry_forward(module: nn.Module, shape: Shape) -> Shape:
    """Run one event of zeros through, which fixes lazy sizes, and return the event shape that comes out."""
    training = module.training
    out = module.eval()(torch.zeros(1, *shape))
    module.train(training)
    return tuple(out.shape[1:])
