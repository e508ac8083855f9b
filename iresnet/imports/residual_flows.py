"""Densities of the code of Residual Flows, from the dictionaries that it saves to models of this package."""

__all__ = ["CLASSES", "convert"]

import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.activations import LipSwish
from iresnet.bijections import ActNorm, ResidualBlock
from iresnet.config import Config, DataConfig, TaskConfig
from iresnet.data import Dataset
from iresnet.data.published import PUBLISHED
from iresnet.errors import DataError
from iresnet.imports.filling import Imported, fill, fill_weight
from iresnet.imports.pickles import Inert, describe
from iresnet.inputs import Inputs, level_scale
from iresnet.lipschitz import LipschitzConv2d, LipschitzLinear
from iresnet.models import build_model
from iresnet.normalization import PowerIteration
from iresnet.zoo import Model

_MODULES = {
    "layers.act_norm": ("ActNorm1d", "ActNorm2d"),
    "layers.base.activations": ("Swish",),
    "layers.base.mixed_lipschitz": ("InducedNormConv2d", "InducedNormLinear"),
    "layers.elemwise": ("LogitTransform",),
    "layers.iresblock": ("iResBlock",),
    "layers.squeeze": ("SqueezeLayer",),
    "resflow": ("FCNet", "FCWrapper", "ResidualFlow", "StackediResBlocks"),
    "utils": ("ExponentialMovingAverage",),
}

CLASSES = (
    # The package was named lib before it could be installed.
    *(f"{package}.{m}.{name}" for package in ("resflows", "lib") for m, names in _MODULES.items() for name in names),
    "argparse.Namespace",
    "torch.nn.modules.activation.ELU",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.activation.Softplus",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
)
"""Classes whose objects such a checkpoint holds, those of the module that its averages are of."""

_ACTIVATIONS = {"swish": "lipswish", "elu": "elu", "relu": "relu", "softplus": "softplus"}

ONLY = {
    "task": "density",
    "block": "resblock",
    "kernels": "3-1-3",
    "vnorms": "2222",
    "learn_p": False,
    "batchnorm": False,
    "dropout": 0.0,
    "fc": False,
    "fc_actnorm": False,
    "quadratic": False,
    "preact": True,
    "first_resblock": True,
    "padding": 0,
    "add_noise": True,
}
"""Options of train_img.py without which there is no counterpart here; one that a checkpoint lacks has this value."""

_TOYS_ONLY = {"arch": "iresnet", "learn_p": False, "actnorm": False, "batchnorm": False}
"""Those of train_toy.py."""

_NOT_USED = {"scale", "spatial_dims", "geom_p", "lamb", "last_n_samples", "last_firmom", "last_secmom"}
"""Last parts of the names of numbers that change no output, or follow from others."""

Numbers = dict[str, Tensor]


def convert(
    content: Any, name: str, *, dataset: Dataset | None = None, progress: Callable[[int, int], object] = lambda *_: None
) -> Imported:
    """Build the model of a checkpoint: latents and densities in eval mode are those of the code that wrote it.

    Its weights are the averages over training, with which that code evaluates and draws, unless it was told not to
    (``--ema-val False``); those of ``train_toy.py`` are the last. They are normalized by the norm that the buffers of
    power iteration estimate, as for the code of 2019.

    Args:
        content: the dictionary, see :func:`~iresnet.imports.pickles.read_pickle`.
        name: of the checkpoint.
        dataset: the data that it was trained on, where the checkpoint does not say it.
        progress: called with the number of parts that are done, and of all.

    Raises:
        DataError: when it is no such dictionary, or has a part that this package has not, which is told by its name.
    """
    if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
        raise DataError(
            f"expected a dictionary with 'args' and 'state_dict', as Residual Flows saves it, got {describe(content)}"
        )
    options = _attributes(content, "args")
    config, inputs = (_toys if "arch" in options else _images)(options, name, dataset)
    model = build_model(config, inputs).eval()
    with torch.no_grad():
        _fill(model, _weights(content, options), progress)
    bits = content.get("test_bpd")
    return Imported(config, inputs, model, {"test_bpd": bits} if isinstance(bits, float) else {})


def _attributes(content: Mapping[Any, Any], name: str) -> dict[str, Any]:
    if not isinstance(content[name], Inert):
        raise DataError(f"expected an object as '{name}' of the checkpoint, got {describe(content[name])}")
    return vars(content[name])


def _weights(content: Mapping[Any, Any], options: Mapping[str, Any]) -> Numbers:
    numbers = content["state_dict"]
    if content.get("ema") is not None and options.get("ema_val", True):
        numbers = {**numbers, **_option(_attributes(content, "ema"), "shadow_params", dict)}
    for key, value in numbers.items():
        if not isinstance(value, Tensor):
            raise DataError(f"expected tensors in its 'state_dict', got {describe(value)} as '{key}'")
    return dict(numbers)


# -- what it is --------------------------------------------------------------------------------------------------------


def _images(options: Mapping[str, Any], name: str, dataset: Dataset | None) -> tuple[Config, Inputs]:
    """Write the recipe of a density of images, and what it takes."""
    _refuse_unknown(options, ONLY)
    data, size = _option(options, "data", str), _option(options, "imagesize", int)
    if data == "celebahq" and options.get("nbits", 8) != 8:
        raise DataError(
            f"its images have --nbits {options['nbits']}, which that code scales to other numbers than levels; those "
            "of 8 bits can be imported"
        )
    squeeze = _option(options, "squeeze_first", bool)
    sides = takewhile(lambda side: side >= 4, (size // 2 ** (i + squeeze) for i in range(32)))
    blocks = _whole_numbers(options, "nblocks")[: len(list(sides))]
    alpha = 1e-6 if data == "mnist" else 0.05
    model = {
        "name": "residual-flow",
        "blocks": blocks,
        "hidden": _option(options, "idim", int),
        "squeeze": squeeze,
        "factor_out": _option(options, "factor_out", bool),
        "dense_hidden": _option(options, "fc_idim", int) if _option(options, "fc_end", bool) else 0,
        "logit": alpha if options.get("logit_transform", True) else None,
        "actnorm": _option(options, "actnorm", bool),
    }
    shape, levels = (1 if data == "mnist" else 3, size, size), 32 if data == "celeba_5bit" else 256
    mean, std = level_scale(levels) if model["logit"] else (0.0, float(levels))
    fits = data in PUBLISHED and PUBLISHED[data].shape == shape
    inputs = Inputs(shape, levels, PUBLISHED[data].class_names if fits else (), (mean,), (std,))
    if dataset is not None and (dataset.shape, dataset.levels) != (shape, levels):
        raise DataError(f"the density takes images of shape {shape} in {levels} levels, and these are {dataset}")
    return _recipe(options, model, name, dataset.name if dataset else data if fits else ""), inputs


def _toys(options: Mapping[str, Any], name: str, dataset: Dataset | None) -> tuple[Config, Inputs]:
    """Write the recipe of a density of points in the plane, and what it takes."""
    _refuse_unknown(options, _TOYS_ONLY)
    sizes, norms = _whole_numbers(options, "dims"), _option(options, "vnorms", str)
    if set(norms) != {"2"}:
        raise DataError(f"its layers have --vnorms {norms}, which have no counterpart here; those of 2 alone do")
    if len(set(sizes)) != 1:
        raise DataError(f"its layers have sizes {options['dims']}; those of one size have a counterpart here")
    model = {
        "name": "toy-mlp",
        "blocks": _option(options, "nblocks", int),
        "hidden": sizes[0],
        "depth": len(sizes) + 1,
        "preactivation": True,
        "actnorm": False,
    }
    inputs = Inputs((2,), None, (), (0.0,), (1.0,))
    if dataset is not None:
        raise DataError("points of train_toy.py are not standardized, as those of data sets here are: leave --data out")
    return _recipe(options, model, name, ""), inputs


def _recipe(options: Mapping[str, Any], model: dict[str, Any], name: str, data: str) -> Config:
    activation = _option(options, "act", str)
    if activation not in _ACTIVATIONS:
        raise DataError(f"expected one activation of {', '.join(_ACTIVATIONS)} (--act), got {activation}")
    layers = {"activation": _ACTIVATIONS[activation], "coeff": _option(options, "coeff", float)}
    return Config(
        name=Path(name).stem,
        description=f"Imported from {name}, a checkpoint of Residual Flows",
        data=DataConfig(name=data),
        model={**model, **layers, "base": "standard-normal"},
        task=TaskConfig(1.0, 0.0),
    )


def _refuse_unknown(options: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    for name, value in only.items():
        found = options.get(name, value)
        if found != value:
            option = f"--{name.replace('_', '-')}"
            raise DataError(
                f"it was made with {option} {str(found)[:60]}, which has no counterpart here; that of {value} has one"
            )


def _option(options: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(options.get(name), kind):
        raise DataError(f"expected {kind.__name__} as '{name}' of its options, got {str(options.get(name))[:60]}")
    return options[name]


def _whole_numbers(options: Mapping[str, Any], name: str) -> list[int]:
    text = _option(options, name, str)
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})*", text):
        raise DataError(f"expected whole numbers as '{name}' of its options, as in 16-16-16, got {text[:60]}")
    return [int(number) for number in text.split("-")]


# -- its numbers -------------------------------------------------------------------------------------------------------


def _fill(model: Model, numbers: Numbers, progress: Callable[[int, int], object]) -> None:
    targets = [m for m in model.bijection.modules() if isinstance(m, (ActNorm, ResidualBlock))]
    chains = [f"{scale}chain." for scale in _children(numbers, "transforms.")] or ["chain."]
    parts = [part for chain in chains for part in _children(numbers, chain)]
    if len(parts) != len(targets):
        raise DataError(f"its options tell of {len(targets)} blocks and norms, and it has {len(parts)}")
    for i, (part, target) in enumerate(zip(parts, targets, strict=True)):
        if isinstance(target, ActNorm):
            _fill_actnorm(target, numbers, part)
        else:
            _fill_block(target, numbers, part)
        progress(i + 1, len(parts))
    unknown = [key for key in numbers if key.rpartition(".")[2] not in _NOT_USED]
    if unknown:
        raise DataError(f"it has '{unknown[0]}', which its options do not tell of")


def _children(numbers: Numbers, prefix: str) -> list[str]:
    """Return the prefixes of the numbered modules of a list, in order."""
    matches = (re.match(re.escape(prefix) + r"(\d{1,9})\.", key) for key in numbers)
    return [f"{prefix}{i}." for i in sorted({int(match[1]) for match in matches if match})]


def _fill_actnorm(target: ActNorm, numbers: Numbers, part: str) -> None:
    prefix = f"{part}fc_module." if f"{part}fc_module.weight" in numbers else part
    _check_initialized(numbers, prefix)
    fill(target.log_scale, numbers.pop(f"{prefix}weight", None), f"'{prefix}weight'")
    fill(target.shift, numbers.pop(f"{prefix}bias", None), f"'{prefix}bias'")
    target.initialized.fill_(1.0)


def _check_initialized(numbers: Numbers, prefix: str) -> None:
    flag = numbers.pop(f"{prefix}initialized", None)
    if flag is None or not bool(flag.all()):
        raise DataError(f"'{prefix}initialized' is not set: train it for a step with the code that wrote it")


def _fill_block(target: ResidualBlock, numbers: Numbers, part: str) -> None:
    network = f"{part}nnet.nnet." if _children(numbers, f"{part}nnet.nnet.") else f"{part}nnet."  # the former: dense
    layers = {f"{network}{i}.": layer for i, layer in enumerate(target.g.children()) if list(layer.parameters())}
    if list(layers) != (found := _children(numbers, network)):
        raise DataError(
            f"its options tell of the layers {', '.join(layers)} with numbers, and it has {', '.join(found)}"
        )
    for prefix, layer in layers.items():
        if isinstance(layer, (LipschitzConv2d, LipschitzLinear)):
            _fill_layer(layer, numbers, prefix)
        else:
            assert isinstance(layer, LipSwish)
            fill(layer.b.view(1), numbers.pop(f"{prefix}beta", None), f"'{prefix}beta'")


def _fill_layer(layer: LipschitzConv2d | LipschitzLinear, numbers: Numbers, prefix: str) -> None:
    r"""Give a layer the weight that that code uses, and its bias.

    .. math:: W / \max(1, \sigma / c), \quad \sigma = u^T W v
    """
    weight, u, v = (numbers.pop(f"{prefix}{name}", None) for name in ("weight", "u", "v"))
    normalized = torch.empty_like(layer.unnormalized_weight, dtype=torch.float64)
    fill(normalized, weight, f"'{prefix}weight'")
    if isinstance(layer, LipschitzConv2d):
        _check_initialized(numbers, prefix)
    assert isinstance(layer.normalization, PowerIteration)
    inputs = normalized.new_empty(layer.normalization.u.shape)
    fill(inputs.view(-1), v, f"'{prefix}v'")
    outputs = F.conv2d(inputs, normalized, padding="same") if inputs.dim() == 4 else F.linear(inputs, normalized)
    direction = torch.empty_like(outputs)
    fill(direction.view(-1), u, f"'{prefix}u'")
    sigma = float((direction * outputs).sum())
    fill_weight(layer, normalized / max(1.0, sigma / layer.normalization.coeff))
    assert layer.bias is not None
    fill(layer.bias, numbers.pop(f"{prefix}bias", None), f"'{prefix}bias'")
