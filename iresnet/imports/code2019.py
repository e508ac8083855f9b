"""Networks of the code of 2019, from what a checkpoint of it holds to models of this package."""

__all__ = ["CLASSES", "convert"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iresnet.bijections import ActNorm, Affine, Chain, ResidualBlock
from iresnet.classifiers import Classifier
from iresnet.config import Config, DataConfig, TaskConfig
from iresnet.data import Dataset
from iresnet.data.published import PUBLISHED
from iresnet.errors import DataError
from iresnet.flows import Flow
from iresnet.imports.filling import Imported, fill, fill_weight
from iresnet.imports.layers2019 import ACTIVATIONS, CLASSES, PREFIX, effective_weight, expect, items
from iresnet.imports.pickles import Inert, attribute, describe
from iresnet.inputs import Inputs, level_scale
from iresnet.lipschitz import LipschitzConv2d, lipschitz_layers
from iresnet.models import build_model, inputs_of
from iresnet.zoo import Model

_SINGLE, _MULTI = f"{PREFIX}conv_iResNet", f"{PREFIX}multiscale_conv_iResNet"
_PARALLEL = "torch.nn.parallel.data_parallel.DataParallel"

_SCALES = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Means and deviations of classified images in [0, 1], as constants of that code."""


@dataclass(frozen=True)
class _Network:
    """Architecture of an object of that code: the event shape of its data, its scales as lists of blocks, the rest."""

    root: Inert
    shape: tuple[int, int, int]
    scales: list[list[Inert]]
    strides: list[int]
    squeeze: bool
    pad: int
    multiscale: bool

    @property
    def blocks(self) -> list[Inert]:
        return [block for scale in self.scales for block in scale]

    @property
    def is_density(self) -> bool:
        return expect(self.root, "density_estimation", bool)


def convert(
    content: Any, name: str, *, dataset: Dataset | None = None, progress: Callable[[int, int], object] = lambda *_: None
) -> Imported:
    """Build the model of a checkpoint: outputs in eval mode are those of the code that wrote it.

    Its weights are normalized by the norm that its buffers of power iteration estimate, which is below the norm: so the
    model is certified only once it is sealed.

    Args:
        content: the whole checkpoint or a module alone, see :func:`~iresnet.imports.pickles.read_pickle`.
        name: of the checkpoint.
        dataset: the data that it was trained on. With it a classifier takes pixels, from 0 to 255; without, images that
            were normalized as that code did. A density takes dequantized pixels, in [0, 256).
        progress: called with the number of layers that are done, and of all.

    Raises:
        DataError: when it is no such network, or has a part that this package has not, which is told by its name.
    """
    network = _read(_find_module(content))
    config, inputs = _describe(network, name, dataset)
    model = build_model(config, inputs).eval()
    with torch.no_grad():
        _fill(model, network, dataset, progress)
    about = {key: content[key] for key in ("epoch", "objective", "acc") if isinstance(content, dict) and key in content}
    return Imported(config, inputs, model, {k: v for k, v in about.items() if isinstance(v, (int, float))})


# -- what it is --------------------------------------------------------------------------------------------------------


def _find_module(content: Any) -> Inert:
    module = content
    if isinstance(content, dict):
        if "state_dict" in content:
            raise DataError(
                "a dictionary of weights, as Residual Flows writes it: give --from residual-flows; the code of 2019 "
                "wrote whole modules"
            )
        if "model" not in content:
            keys = ", ".join(str(key) for key in list(content)[:5])
            raise DataError(f"expected a checkpoint with a whole 'model', got a dictionary of {keys}")
        module = content["model"]
    if describe(module) == _PARALLEL:
        module = attribute(module, "module")
    if describe(module) not in (_SINGLE, _MULTI):
        raise DataError(f"expected a network of the code of 2019, {_SINGLE} or {_MULTI}, got {describe(module)}")
    return module


def _read(root: Inert) -> _Network:
    multiscale = describe(root) == _MULTI
    stack = items(attribute(root, "stack"))
    if multiscale:
        squeeze = attribute(root, "init_squeeze") is not None
        padding = attribute(root, "inj_pad")
        pad = 0 if padding is None else expect(padding, "pad_size", int)
        scales = [items(attribute(scale, "stack")) for scale in stack]
        strides = [1 if attribute(scale, "squeeze") is None else 2 for scale in stack]
    else:
        squeeze, pad = expect(root, "init_ds", int) == 2, expect(root, "ipad", int)
        counts, scales = _sizes(expect(root, "nBlocks", (list, tuple))), []
        for n in counts:
            scales, stack = [*scales, stack[:n]], stack[n:]
        strides = [expect(scale[0], "stride", int) if scale else 1 for scale in scales]
        if stack:
            raise DataError(f"its network has {len(stack)} blocks more than it says, which are {counts}")
    if not any(scales):
        raise DataError("its network has no blocks")
    shapes = expect(root, "in_shapes", (list, tuple))
    channels, height, width = _sizes(shapes[0] if shapes else (), 3)
    shape = (channels - pad, height, width)
    if squeeze:
        shape = ((channels - pad) // 4, 2 * height, 2 * width)
    return _Network(root, shape, scales, strides, squeeze, pad, multiscale)


def _sizes(values: Any, n: int | None = None) -> list[int]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, int) and v >= 0 for v in values):
        raise DataError(f"expected whole numbers as the sizes of its network, got {str(values)[:60]}")
    if n not in (None, len(values)):
        raise DataError(f"expected {n} sizes of its images, got {str(values)[:60]}")
    return list(values)


def _describe(network: _Network, name: str, dataset: Dataset | None) -> tuple[Config, Inputs]:
    """Write the recipe of a network, and what it takes."""
    _refuse_unknown(network)
    first = network.blocks[0]
    model: dict[str, Any] = {
        "name": "iresnet-multiscale" if network.multiscale else "iresnet",
        "blocks": [len(scale) for scale in network.scales],
        "strides": network.strides,
        "hidden": [_hidden(scale) for scale in network.scales],
        "squeeze": network.squeeze,
        **({"injective_pad": network.pad} if network.pad else {}),
        "actnorm": attribute(first, "actnorm") is not None,
        "coeff": expect(first, "coeff", float),
        "activation": _activation(network.blocks),
        "n_power_steps": expect(first, "n_power_iter", int),
    }
    n_terms, n_probes = expect(first, "numSeriesTerms", int), expect(first, "numTraceSamples", int)
    if network.is_density and n_terms > 0 and n_probes > 0:
        model["logdet"] = {"name": "power-series", "n_terms": n_terms, "n_probes": n_probes}
    task = TaskConfig(1.0, 0.0) if network.is_density else TaskConfig(0.0, 1.0)
    config = Config(
        name=Path(name).stem,
        description=f"Imported from {name}, a checkpoint of the code of 2019",
        data=DataConfig(name=dataset.name if dataset else _published_data(network)),
        model=model,
        task=task,
    )
    return config, _inputs(network, task.kind, dataset)


def _inputs(network: _Network, kind: str, dataset: Dataset | None) -> Inputs:
    if dataset is not None:
        if (dataset.shape, dataset.levels) != (network.shape, 256):
            raise DataError(f"the network takes images of shape {network.shape} in 256 levels, and these are {dataset}")
        return inputs_of(dataset, kind)
    if kind == "density":
        (mean, std), published = level_scale(256), PUBLISHED.get(_published_data(network))
        return Inputs(network.shape, 256, published.class_names if published else (), (mean,), (std,))
    return Inputs(network.shape, None, tuple(map(str, range(expect(network.root, "nClasses", int)))), (0.0,), (1.0,))


def _published_data(network: _Network) -> str:
    """Name the data of the published density, where they fit; a checkpoint does not say of which it is."""
    n_classes = attribute(network.root, "nClasses")
    fits = network.is_density and network.shape == PUBLISHED["cifar10"].shape
    return {100: "cifar100"}.get(n_classes, "cifar10") if fits else ""


def _refuse_unknown(network: _Network) -> None:
    """Refuse networks that have no counterpart here."""
    if network.is_density and network.pad:
        raise DataError(
            f"its density is one of images with {network.pad} channels of zeros added (--inj_pad): such images have "
            "volume zero, so that there is none; a density without them can be imported"
        )
    if network.multiscale and not network.is_density:
        raise DataError(
            "its classifier is one of several scales (-multiScale), which sees the last scale alone, and has no "
            "counterpart here; classifiers of one scale, and densities, can be imported"
        )
    agree = ("coeff", "n_power_iter", "numSeriesTerms", "numTraceSamples")
    for name in agree:
        if len({attribute(block, name) for block in network.blocks}) > 1:
            raise DataError(f"its blocks differ in '{name}', and have one here")
    for scale in network.scales:
        if any(attribute(block, "stride") != 1 for block in scale[0 if network.multiscale else 1 :]):
            raise DataError("a block that is not the first of its scale has a stride of 2, which is not known")


def _hidden(scale: list[Inert]) -> int:
    return expect(_convolutions(scale[0])[0], "out_channels", int) if scale else 1


def _activation(blocks: list[Inert]) -> str:
    names = set()
    for i, block in enumerate(blocks):
        layers = [describe(layer) for layer in items(attribute(block, "bottleneck_block"))]
        names.update(layers[1::2] if i == 0 else layers[::2])
    if len(names) != 1 or not names <= ACTIVATIONS.keys():
        found = ", ".join(sorted(names)) or "none"
        raise DataError(f"expected one activation of {', '.join(ACTIVATIONS)}, got {found}")
    return ACTIVATIONS[names.pop()]


def _convolutions(block: Inert) -> list[Inert]:
    """Return the three convolutions of a block."""
    layers = [layer for layer in items(attribute(block, "bottleneck_block")) if describe(layer) not in ACTIVATIONS]
    if [describe(layer) for layer in layers] != 3 * ["torch.nn.modules.conv.Conv2d"]:
        raise DataError(f"expected a block of 3 convolutions, got {', '.join(map(describe, layers))}")
    return layers


# -- its numbers -------------------------------------------------------------------------------------------------------


def _fill(model: Model, network: _Network, dataset: Dataset | None, progress: Callable[[int, int], object]) -> None:
    bijection = model.bijection
    assert isinstance(bijection, Chain)
    residual = [module for module in bijection.modules() if isinstance(module, ResidualBlock)]
    norms = [module for module in bijection.modules() if isinstance(module, ActNorm)]
    for i, (block, target) in enumerate(zip(network.blocks, residual, strict=True)):
        layers = lipschitz_layers(target.g)
        for convolution, layer in zip(_convolutions(block), layers, strict=True):
            assert isinstance(layer, LipschitzConv2d)
            _fill_convolution(layer, convolution)
        if norms:
            _fill_actnorm(norms[i], attribute(block, "actnorm"))
        progress(i + 1, len(residual))
    if isinstance(model, Classifier):
        _fill_scale(bijection, dataset)
        _fill_head(model.head, network.root)
    else:
        assert isinstance(model, Flow)
        _copy(model.base.mean, network.root, "prior_mu")
        _copy(model.base.log_std, network.root, "prior_logstd")


def _copy(target: Any, owner: Inert, name: str) -> None:
    fill(target, attribute(owner, name), f"'{name}' of {describe(owner)}")


def _fill_convolution(layer: LipschitzConv2d, source: Inert) -> None:
    fill_weight(layer, effective_weight(source, tuple(layer.unnormalized_weight.shape)))
    assert layer.bias is not None
    _copy(layer.bias, source, "bias")


def _fill_actnorm(target: ActNorm, source: Inert) -> None:
    if attribute(source, "_init") is not True:
        raise DataError("an ActNorm of it has not seen data yet: train it for a step with the code of 2019")
    _copy(target.log_scale, source, "_log_scale")
    _copy(target.shift, source, "_shift")
    # x e^s + t there, (x + b) e^s here
    target.shift.copy_(target.shift.double() * (-target.log_scale.double()).exp())
    target.initialized.fill_(1.0)


def _fill_scale(bijection: Chain, dataset: Dataset | None) -> None:
    """Set the scale of pixels; that of images which are normalized already is one."""
    if dataset is None:
        return
    if dataset.name not in _SCALES:
        raise DataError(
            f"the code of 2019 classified {' and '.join(_SCALES)}, and knows no scale of {dataset.name}: leave --data "
            "out, and give the model normalized images"
        )
    scale = bijection.bijections[0]
    assert isinstance(scale, Affine)
    for target, numbers in zip((scale.mean, scale.std), _SCALES[dataset.name], strict=True):
        target.copy_(255 * torch.tensor(numbers, dtype=torch.float64).view(target.shape))


def _fill_head(head: nn.Module, root: Inert) -> None:
    norm, linear = attribute(root, "bn1"), attribute(root, "logits")
    expect(norm, "eps", float, 1e-5)
    assert isinstance(head.norm, nn.modules.batchnorm._BatchNorm)
    assert isinstance(head.linear, nn.Linear)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        _copy(getattr(head.norm, name), norm, name)
    for name in ("weight", "bias"):
        _copy(getattr(head.linear, name), linear, name)
