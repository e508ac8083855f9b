"""Layers of the code of 2019: names of its classes, and the weights that it normalizes."""

__all__ = ["ACTIVATIONS", "CLASSES", "PREFIX", "effective_weight", "expect", "items"]

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.errors import DataError
from iresnet.imports.pickles import Inert, attribute, describe

PREFIX = "models.conv_iResNet."

ACTIVATIONS = {
    "torch.nn.modules.activation.ELU": "elu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Softplus": "softplus",
}
"""Activations, by their names in a checkpoint and here."""

_CONV, _DENSE = "spectral_norm_conv_inplace.SpectralNormConv", "spectral_norm_fc.SpectralNorm"

CLASSES = (
    *(PREFIX + name for name in ("conv_iResNet", "multiscale_conv_iResNet", "conv_iresnet_block", "scale_block")),
    *(f"models.model_utils.{name}" for name in ("ActNorm2D", "MaxMinGroup", "Split", "injective_pad", "squeeze")),
    *(name + suffix for name in (_CONV, _DENSE) for suffix in ("", "StateDictHook", "LoadStateDictPreHook")),
    *ACTIVATIONS,
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.module._WrappedHook",
    "torch.nn.modules.padding.ZeroPad2d",
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.backends.thnn._get_thnn_function_backend",  # in every module, before torch 1.5
    "torch.device",
)
"""Classes whose objects such a checkpoint holds."""


def expect(owner: Any, name: str, kind: type | tuple[type, ...], value: Any = None) -> Any:
    """Return an attribute, which has to be of a type, and of a value where one is given.

    Raises:
        DataError: when it is another.
    """
    found = attribute(owner, name)
    if not isinstance(found, kind) or (value is not None and found != value):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds) if value is None else repr(value)
        raise DataError(f"expected {wanted} as '{name}' of {describe(owner)}, got {str(found)[:60]}")
    return found


def items(container: Any) -> list[Inert]:
    """Return the modules of a list or a sequence of modules, in order."""
    modules = expect(container, "_modules", dict)
    if not all(isinstance(module, Inert) for module in modules.values()):
        raise DataError(f"expected modules in {describe(container)}, got {', '.join(map(describe, modules.values()))}")
    return list(modules.values())


def effective_weight(layer: Inert, shape: tuple[int, ...]) -> Tensor:
    r"""Compute the weight that a convolution of that code uses in eval mode, from its buffers.

    .. math:: W / (\max(1, \sigma / c) + \epsilon), \quad \sigma = u^T W v

    where :math:`\epsilon` is 1e-5 for kernels larger than 1x1, and 0 for 1x1. Without a hook it is the weight itself,
    as in the first version of that code, which clipped singular values after each step.

    Args:
        layer: a convolution.
        shape: of its weight.

    Raises:
        DataError: when the layer is another than those that this package has, or its buffers do not fit.
    """
    kernel = tuple(shape[2:])
    settings = {"stride": (1, 1), "padding": tuple(k // 2 for k in kernel), "dilation": (1, 1), "groups": 1}
    for name, value in {"kernel_size": kernel, **settings}.items():
        expect(layer, name, type(value), value)
    hooks = list(expect(layer, "_forward_pre_hooks", dict).values())
    if not hooks:
        return _tensor(layer, "weight", shape)
    if len(hooks) > 1 or describe(hooks[0]) not in (_CONV, _DENSE):
        raise DataError(f"expected a convolution with one spectral norm, got {', '.join(map(describe, hooks))}")
    name = expect(hooks[0], "name", str)
    weight = _tensor(layer, f"{name}_orig", shape)
    factor = (_sigma(layer, hooks[0], weight) / expect(hooks[0], "coeff", float)).clamp(min=1)
    return weight / (factor + 1e-5 if describe(hooks[0]) == _CONV else factor)


def _sigma(layer: Inert, hook: Inert, weight: Tensor) -> Tensor:
    """Return the norm that the buffers of a layer estimate."""
    name = attribute(hook, "name")
    if describe(hook) == _DENSE:
        matrix = weight.flatten(1)
        u, v = (_tensor(layer, f"{name}_{x}", (n,)) for x, n in zip("uv", matrix.shape, strict=True))
        return u @ matrix @ v
    # The images may be larger than those of the layer: a block that squeezes took the size from before.
    images = tuple(expect(hook, "input_dim", tuple))
    if len(images) != 4 or images[:2] != (1, weight.shape[1]):
        raise DataError(f"expected a spectral norm of images of {weight.shape[1]} channels, got {images}")
    v = _tensor(layer, f"{name}_v", (torch.Size(images).numel(),)).view(images)
    out = F.conv2d(v, weight, padding="same").flatten()
    return _tensor(layer, f"{name}_u", tuple(out.shape)) @ out


def _tensor(layer: Inert, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of a layer in float64."""
    found = attribute(layer, name)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        raise DataError(f"expected a tensor of shape {shape} as '{name}' of {describe(layer)}, got {describe(found)}")
    return found.double()
