"""Architectures by name: from the shape of the data to a chain of bijections."""

__all__ = ["ARCHITECTURES", "Shape", "variational_dequantization"]

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from iresnet import networks
from iresnet.bijections import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    FactorOut,
    Flatten,
    InjectivePad,
    Logit,
    Orthogonal,
    Reorder,
    Squeeze,
    VariationalDequantization,
)
from iresnet.blocks import block
from iresnet.errors import RecipeError
from iresnet.feedthrough import FeedThrough
from iresnet.lipschitz import LipschitzConv2d, LipschitzLinear
from iresnet.networks import PlainBlock

Shape = tuple[int, ...]
ImageShape = tuple[int, int, int]
Maps = tuple[Callable[..., nn.Module], Callable[..., nn.Module]]
"""What builds the map g of a block, and what builds that of a dense block."""


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
    **options: Any,
) -> Chain:
    """Build the single-scale network of 2019: all channels go through all blocks. Defaults: the published classifier's.

    Args:
        shape: (C, H, W) of the images.
        blocks: residual blocks in each scale.
        strides: 2 squeezes at the start of a scale, 1 does not.
        hidden: channels inside the blocks, which each layer of a dense one adds; one number or one a scale.
        squeeze: squeeze once before everything.
        injective_pad: channels of zeros appended to the image; classification only.
        actnorm: put an ActNorm before each block.
        options: of :func:`block`.
    """
    head, shape = _head(shape, squeeze=squeeze, injective_pad=injective_pad)
    scales = _check_scales(blocks, strides, hidden)
    return Chain(head + _scales(shape, scales, options, actnorm=actnorm, factor_out=False))


def iresnet_multiscale(
    shape: Shape,
    *,
    blocks: Sequence[int] = (16, 16, 16),
    strides: Sequence[int] = (1, 2, 2),
    hidden: int | Sequence[int] = 512,
    squeeze: bool = True,
    actnorm: bool = True,
    **options: Any,
) -> Chain:
    """Build the multi-scale network of 2019: half of the channels leave after each scale but the last.

    Defaults: the published density model's. Arguments as for :func:`iresnet`.
    """
    head, shape = _head(shape, squeeze=squeeze, injective_pad=0)
    scales = _check_scales(blocks, strides, hidden)
    return Chain(head + _scales(shape, scales, options, actnorm=actnorm, factor_out=True))


def toy_mlp(
    shape: Shape,
    *,
    blocks: int = 10,
    hidden: int = 64,
    depth: int = 3,
    actnorm: bool = True,
    preactivation: bool = False,
    orthogonal: bool | None = None,
    **options: Any,
) -> Chain:
    """Build blocks of multi-layer perceptrons, for vectors.

    Args:
        shape: (D,).
        blocks: residual blocks.
        hidden: size of the hidden layers, in dense blocks what each of them adds.
        depth: layers in each block.
        actnorm: put an ActNorm before each block.
        preactivation: put an activation before the first layer of each block, as Residual Flows do; not of dense and
            bilipschitz ones.
        orthogonal: put an :class:`~iresnet.Orthogonal` before each block and one after the last; when None, only if
            the blocks are bilipschitz, whose maps are feed-through networks, with the normalization cayley unless
            another is given.
        options: of :func:`block`.
    """
    if len(shape) != 1:
        raise RecipeError(f"toy-mlp models vectors, got events of shape {shape}; use iresnet or iresnet-multiscale")
    if not isinstance(blocks, int) or blocks < 0:
        raise RecipeError(f"toy-mlp takes one number of blocks, got {blocks}")
    mlp = partial(networks.mlp, shape[0], hidden, depth=depth, preactivation=preactivation)
    dense = partial(networks.dense_concat, shape, hidden, depth=depth)
    if bilipschitz := options.get("block") == "bilipschitz":
        mlp = partial(FeedThrough, shape[0], hidden, depth=depth)
        options = {"normalization": "cayley", **options}
    rotated = bilipschitz if orthogonal is None else orthogonal
    chain = _blocks(shape, [(mlp, dense)] * blocks, options, actnorm=actnorm, orthogonal=rotated)
    return Chain([*chain, *([Orthogonal(shape[0])] if rotated else [])])


def residual_flow(
    shape: Shape,
    *,
    blocks: Sequence[int] = (16, 16, 16),
    hidden: int | Sequence[int] = 512,
    squeeze: bool = False,
    factor_out: bool = False,
    dense_hidden: int = 128,
    logit: float | None = None,
    actnorm: bool = True,
    **options: Any,
) -> Chain:
    """Build the network of Residual Flows: scales of blocks, with a squeeze in between, blocks of vectors at the end.

    Published with the activation lipswish, the coefficient 0.98 and the base density standard-normal. Latents are in
    the order of that code.

    Args:
        shape: (C, H, W) of the images.
        blocks: residual blocks in each scale.
        hidden: channels inside the blocks, which each layer of a dense one adds; one number or one a scale.
        squeeze: squeeze once before everything.
        factor_out: let half of the channels leave after each scale but the last.
        dense_hidden: size inside the four blocks of dense layers after the last scale; 0 for no such blocks.
        logit: alpha of a logit of the pixels, published with 0.05, and 1e-6 for MNIST; null for none.
        actnorm: put an ActNorm before the first block and after each.
        options: of :func:`block`.

    Reference:
        Residual Flows for Invertible Generative Modeling, Chen et al. 2019, https://arxiv.org/abs/1906.02735
    """
    head: list[Bijection] = [] if logit is None else [Logit(logit)]
    _, shape = _head(shape, squeeze=False, injective_pad=0)
    if squeeze:
        head, shape = head + _squeeze_by_color(shape[0]), _squeezed(shape)
    scales = _check_scales(blocks, blocks if isinstance(blocks, int) else [1, *[2] * (len(blocks) - 1)], hidden)
    head += [ActNorm(shape[0])] if actnorm else []
    make = partial(_normed_after, options=options, actnorm=actnorm)
    return Chain(head + _flow_scales(shape, scales, make, factor_out=factor_out, dense_hidden=dense_hidden))


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
    "residual-flow": residual_flow,
    "resnet": resnet,
    "toy-mlp": toy_mlp,
}


# -- noise of dequantization -------------------------------------------------------------------------------------------


def variational_dequantization(
    shape: Shape,
    scale: Affine,
    *,
    features: int = 16,
    coeff: float | None = 0.9,
    normalization: str = "power",
    n_power_steps: int | None = None,
    **_: Any,
) -> VariationalDequantization:
    """Build noise that is learned, with an encoder of two Lipschitz layers, which optimizers move as those of blocks.

    Args:
        shape: (C, H, W), and the layers are 3x3 convolutions; or (D,).
        scale: standardizes the integers.
        features: of the encoder, channels of images.
        coeff: of the layers, and so on as for :func:`block`; further options of a model are not looked at.
        normalization: of the layers.
        n_power_steps: iterations of the normalization.
    """
    channels, *pixels = shape
    options = {"coeff": coeff, "normalization": normalization, "n_steps": n_power_steps}
    if pixels:
        layer = partial(LipschitzConv2d, kernel_size=3, image_size=(pixels[0], pixels[1]), **options)
        last = nn.Conv2d(features, 2 * channels, 1)
    else:
        layer = partial(LipschitzLinear, **options)
        last = nn.Linear(features, 2 * channels)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)  # uniform noise at first
    layers = (layer(channels, features), nn.ELU(), layer(features, features), nn.ELU(), last)
    return VariationalDequantization(nn.Sequential(scale, *layers))


def _blocks(
    shape: Shape,
    maps: Sequence[Maps],
    options: Mapping[str, Any],
    *,
    actnorm: bool,
    orthogonal: bool = False,
) -> list[Bijection]:
    """Build a block of each map g, after an ActNorm and a rotation of its own."""
    bijections: list[Bijection] = []
    for g, dense in maps:
        bijections += [ActNorm(shape[0])] if actnorm else []
        bijections += [Orthogonal(shape[0])] if orthogonal else []
        bijections.append(block(g, dense, **options))
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
    maps = _maps(shape, n_blocks, width, first=first)
    scale = squeeze + _blocks(shape, maps, options, actnorm=actnorm)
    if not later:
        return [*scale, Flatten(shape)] if factor_out else scale
    c, h, w = shape
    kept = (c - c // 2, h, w) if factor_out else shape
    rest = _scales(kept, later, options, actnorm=actnorm, factor_out=factor_out, first=False)
    return [*scale, FactorOut(shape, Chain(rest))] if factor_out else scale + rest


def _maps(shape: ImageShape, n_blocks: int, width: int, *, first: bool) -> list[Maps]:
    """Return what builds the maps g of the blocks of a scale."""
    bottleneck, dense = (partial(g, shape, width) for g in (networks.conv_bottleneck, networks.dense_concat))
    # The published models have no activation before the very first convolution.
    return [(partial(bottleneck, preactivation=not first or i > 0), dense) for i in range(n_blocks)]


def _flow_scales(
    shape: ImageShape,
    scales: Sequence[tuple[int, int, int]],
    make: Callable[..., list[Bijection]],
    *,
    factor_out: bool,
    dense_hidden: int,
    first: bool = True,
) -> list[Bijection]:
    """Build the scales of a residual flow, which end in latent vectors; those after a FactorOut are nested in it."""
    (n_blocks, _, width), *later = scales
    # In a model of one scale the published code has an activation before its very first convolution too.
    scale = make(shape, _maps(shape, n_blocks, width, first=first and bool(later)))
    if not later:
        size = math.prod(shape)
        mlp = partial(networks.mlp, size, dense_hidden, preactivation=True)
        dense = partial(networks.dense_concat, (size,), dense_hidden)
        return [*scale, Flatten(shape), *make((size,), [(mlp, dense)] * (4 if dense_hidden else 0))]
    scale += _squeeze_by_color(shape[0], swap_halves=factor_out)
    c, h, w = shape = _squeezed(shape)
    kept = (c // 2, h, w) if factor_out else shape
    rest = _flow_scales(kept, later, make, factor_out=factor_out, dense_hidden=dense_hidden, first=False)
    return [*scale, FactorOut(shape, Chain(rest))] if factor_out else scale + rest


def _normed_after(shape: Shape, maps: Sequence[Maps], *, options: Mapping[str, Any], actnorm: bool) -> list[Bijection]:
    """Build a residual block of each map g, before an ActNorm of its own."""
    parts = _blocks(shape, maps, options, actnorm=actnorm)
    return parts[1:] + parts[:1] if actnorm else parts


def _squeeze_by_color(channels: int, *, swap_halves: bool = False) -> list[Bijection]:
    """Build a squeeze to channels (channel, row, column), of which the second half comes first when they swap.

    Residual Flows let the second half leave, where a FactorOut takes the first.
    """
    order = [j % 4 * channels + j // 4 for j in range(4 * channels)]
    return [Squeeze(), Reorder(order[2 * channels :] + order[: 2 * channels] if swap_halves else order)]


def _squeezed(shape: ImageShape) -> ImageShape:
    c, h, w = shape
    if h % 2 or w % 2:
        raise RecipeError(
            f"images of {h}x{w} cannot be squeezed: pad them (--data.pad-to), or squeeze less often (strides, squeeze)"
        )
    return (4 * c, h // 2, w // 2)
