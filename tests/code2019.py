"""A small writer of checkpoints as the code of 2019 left them: modules of its names, with a forward pass of their own.

The classes stand in modules of the names that pickles hold; ``modules`` puts them there and takes them away again.
"""

import inspect
import sys
from contextlib import contextmanager
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn


class SpectralNormConv:
    """Hook that normalizes a kernel by u^T W v, on images of a size."""

    def __init__(self, coeff, input_dim, out_shape, n_power_iterations):
        self.coeff, self.input_dim, self.out_shape = coeff, input_dim, torch.Size(out_shape)
        self.name, self.eps, self.n_power_iterations = "weight", 1e-12, n_power_iterations

    def __call__(self, layer, _):
        weight, u, v = layer.weight_orig, layer.weight_u, layer.weight_v
        sigma = torch.dot(u, F.conv2d(v.view(self.input_dim), weight, padding=layer.padding).flatten())
        layer.weight = weight / (torch.clamp(sigma / self.coeff, min=1) + 1e-5)


class SpectralNorm:
    """Hook that normalizes a 1x1 kernel by u^T W v."""

    def __init__(self, coeff, n_power_iterations):
        self.coeff, self.n_power_iterations = coeff, n_power_iterations
        self.name, self.eps, self.dim = "weight", 1e-12, 0

    def __call__(self, layer, _):
        sigma = torch.dot(layer.weight_u, layer.weight_orig.flatten(1) @ layer.weight_v)
        layer.weight = layer.weight_orig / torch.clamp(sigma / self.coeff, min=1)


class SpectralNormConvStateDictHook:
    """Hook with a reference to another, as checkpoints have."""

    def __init__(self, fn):
        self.fn = fn

    def __call__(self, module, state, prefix, metadata):
        """Change nothing."""


class squeeze(nn.Module):  # noqa: N801 (names of that code)
    """Space to depth, channels ordered (row, column, channel)."""

    def __init__(self, block_size):
        super().__init__()
        self.block_size, self.block_size_sq = block_size, block_size**2

    def forward(self, x):
        corners = [x[:, :, i::2, j::2] for i in range(2) for j in range(2)]
        return torch.cat(corners, 1)


class injective_pad(nn.Module):  # noqa: N801
    """Channels of zeros."""

    def __init__(self, pad_size):
        super().__init__()
        self.pad_size, self.pad = pad_size, nn.ZeroPad2d((0, 0, 0, pad_size))

    def forward(self, x):
        return torch.cat([x, x.new_zeros(len(x), self.pad_size, *x.shape[2:])], 1)


class Split(nn.Module):
    """Two halves of the channels."""

    def forward(self, x):
        return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


class ActNorm2D(nn.Module):
    """x e^s + t, initialized."""

    def __init__(self, channels):
        super().__init__()
        self.eps, self.num_channels, self._init = 1e-5, channels, True
        self._log_scale = nn.Parameter(0.3 * torch.randn(channels))
        self._shift = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        scaled = x * self._log_scale.exp()[:, None, None] + self._shift[:, None, None]
        return scaled, self._log_scale.sum() * x.shape[2] * x.shape[3]


class MaxMinGroup(nn.Module):
    """Activation that sorts neighboring channels."""

    def forward(self, x):
        return torch.cat([torch.maximum(x[:, ::2], x[:, 1::2]), torch.minimum(x[:, ::2], x[:, 1::2])], 1)


def normalized(fan_in, fan_out, kernel, image, coeff, steps=3):
    """A convolution with the hook and the buffers of that code, after power iterations that have not converged."""
    layer = nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2)
    scale = 3 if torch.rand(()) < 0.7 else 0.2  # above its coefficient, or below
    weight = nn.Parameter(scale * layer.weight.data)
    del layer.weight
    layer.register_parameter("weight_orig", weight)
    layer.weight = weight.data
    images = torch.Size((1, fan_in, *(image if kernel > 1 else (1, 1))))
    v = torch.randn(images)
    for _ in range(steps):
        u = F.conv2d(v, weight.data, padding=kernel // 2)
        v = F.conv_transpose2d(u, weight.data, padding=kernel // 2)
        u, v = u / u.norm(), v / v.norm()
    layer.register_buffer("weight_u", u.flatten())
    layer.register_buffer("weight_v", v.flatten())
    layer.register_buffer("weight_sigma", torch.ones(1))
    hook = SpectralNormConv(coeff, images, u.shape, steps) if kernel > 1 else SpectralNorm(coeff, steps)
    layer.register_forward_pre_hook(hook)
    layer._register_state_dict_hook(SpectralNormConvStateDictHook(hook))
    weight.data *= 1.02  # the optimizer's last step
    return layer


class conv_iresnet_block(nn.Module):  # noqa: N801
    """Block of three convolutions; of one that squeezes the images are declared twice as large, as in that code."""

    def __init__(self, shape, hidden, stride=1, first=False, actnorm=True, coeff=0.9, nonlin=nn.ELU, terms=(3, 2)):
        super().__init__()
        channels, height, width = shape
        channels *= stride**2
        self.stride, self.squeeze, self.coeff, self.n_power_iter = stride, squeeze(stride), coeff, 3
        self.numSeriesTerms, self.numTraceSamples = terms
        sizes = ((channels, hidden, 3), (hidden, hidden, 1), (hidden, channels, 3))
        layers = []
        for fan_in, fan_out, kernel in sizes:
            layers += [nonlin(), normalized(fan_in, fan_out, kernel, (height, width), coeff)]
        self.bottleneck_block = nn.Sequential(*layers[1:] if first else layers)
        self.actnorm = ActNorm2D(channels) if actnorm else None

    def forward(self, x):
        x = self.squeeze(x) if self.stride == 2 else x
        x, logdet = self.actnorm(x) if self.actnorm is not None else (x, 0.0)
        return x + self.bottleneck_block(x), logdet


def squeezed(shape):
    return (4 * shape[0], shape[1] // 2, shape[2] // 2)


class scale_block(nn.Module):  # noqa: N801
    """Blocks of a scale, half of whose channels leave unless it is the last."""

    def __init__(self, shape, n, hidden, stride, first, last, **options):
        super().__init__()
        self.in_shape = shape
        self.squeeze = squeeze(2) if stride == 2 else None
        shape = squeezed(shape) if stride == 2 else shape
        self.split = None if last else Split()
        n_out = shape[0] // 2
        self.out_shapes = [shape] if last else [(n_out, *shape[1:]), (shape[0] - n_out, *shape[1:])]
        self.stack = nn.ModuleList(
            conv_iresnet_block(shape, hidden, first=first and i == 0, **options) for i in range(n)
        )

    def forward(self, x):
        x, logdet = self.squeeze(x) if self.squeeze is not None else x, 0.0
        for block in self.stack:
            x, more = block(x)
            logdet = logdet + more
        return [x] if self.split is None else list(self.split(x)), logdet


class _Network(nn.Module):
    def _finish(self, shape, density_estimation, classes, channels):
        self.density_estimation, self.nClasses, self.in_shapes = density_estimation, classes, [shape]
        features = shape[0] * shape[1] * shape[2]
        self.prior_mu = nn.Parameter(torch.randn(features))
        self.prior_logstd = nn.Parameter(0.1 * torch.randn(features))
        if classes is not None:
            self.bn1, self.logits = nn.BatchNorm2d(channels, momentum=0.9), nn.Linear(channels, classes)
            self.bn1.running_mean.normal_()
            self.bn1.running_var.uniform_(0.5, 2)
        else:
            self.logits = None

    def classify(self, z):
        return self.logits(F.relu(self.bn1(z)).mean((2, 3)))

    def log_prior(self, z):
        return torch.distributions.Normal(self.prior_mu, self.prior_logstd.exp()).log_prob(z).sum(1)


class conv_iResNet(_Network):  # noqa: N801
    """Network of one scale."""

    def __init__(self, shape, blocks, strides, channels, init_ds=1, pad=0, density=False, classes=10, **options):
        super().__init__()
        self.init_ds, self.ipad, self.nBlocks = init_ds, pad, blocks
        self.init_squeeze, self.inj_pad = squeeze(init_ds), injective_pad(pad)
        shape = squeezed(shape) if init_ds == 2 else shape
        shape = first = (shape[0] + pad, *shape[1:])
        stack = []
        for i, (n, stride, hidden) in enumerate(zip(blocks, strides, channels, strict=True)):
            for j in range(n):
                step = stride if j == 0 else 1
                stack.append(conv_iresnet_block(shape, hidden, step, first=i + j == 0, **options))
                shape = squeezed(shape) if step == 2 else shape
        self.stack, self.final_shape = nn.ModuleList(stack), shape
        self._finish(first, density, classes, shape[0])

    def forward(self, x):
        x = self.init_squeeze(x) if self.init_ds == 2 else x
        x, logdet = self.inj_pad(x), 0.0
        for block in self.stack:
            x, more = block(x)
            logdet = logdet + more
        return (x, self.log_prior(x.flatten(1)), logdet) if self.density_estimation else (self.classify(x), x)


class multiscale_conv_iResNet(_Network):  # noqa: N801
    """Network of several scales."""

    def __init__(self, shape, blocks, strides, channels, init=True, pad=0, density=True, classes=10, **options):
        super().__init__()
        self.nBlocks = blocks
        self.init_squeeze = squeeze(2) if init else None
        self.inj_pad = injective_pad(pad) if pad else None
        shape = squeezed(shape) if init else shape
        shape = first = (shape[0] + pad, *shape[1:])
        self.stack = nn.ModuleList()
        for i, (n, stride, hidden) in enumerate(zip(blocks, strides, channels, strict=True)):
            self.stack.append(scale_block(shape, n, hidden, stride, i == 0, i == len(blocks) - 1, **options))
            shape = self.stack[-1].out_shapes[-1]
        self._finish(first, density, classes, shape[0])

    def forward(self, x):
        x = self.init_squeeze(x) if self.init_squeeze is not None else x
        zs, logdet = [], 0.0
        for scale in self.stack:
            (*left, x), more = scale(x)
            zs, logdet = zs + left, logdet + more
        zs.append(x)
        return zs, self.log_prior(torch.cat([z.flatten(1) for z in zs], 1)), logdet


PLACES = {
    "models": (),
    "models.conv_iResNet": (conv_iResNet, multiscale_conv_iResNet, conv_iresnet_block, scale_block),
    "models.model_utils": (squeeze, injective_pad, Split, ActNorm2D, MaxMinGroup),
    "spectral_norm_conv_inplace": (SpectralNormConv, SpectralNormConvStateDictHook),
    "spectral_norm_fc": (SpectralNorm,),
}
"""Modules of that code, and the classes in each."""


@contextmanager
def modules(places):
    """Let the classes be found where a code has them, as pickling wants."""
    own = {cls: cls.__module__ for classes in places.values() for cls in classes}
    for name, classes in places.items():
        sys.modules[name] = ModuleType(name)
        for cls in classes:
            sys.modules[name].__file__ = inspect.getsourcefile(cls)  # old checkpoints hold the source of their classes
            cls.__module__ = name
            setattr(sys.modules[name], cls.__name__, cls)
    try:
        yield
    finally:
        for name in places:
            del sys.modules[name]
        for cls, module in own.items():
            cls.__module__ = module


def as_on_gpus(network):
    """Wrap a network as two GPUs would have it, of which there may be none here."""
    parallel = nn.DataParallel.__new__(nn.DataParallel)
    nn.Module.__init__(parallel)
    parallel.dim, parallel.module, parallel.device_ids, parallel.output_device = 0, network, [0, 1], 0
    parallel.src_device_obj = torch.device("cuda", 0)
    return parallel


def save(network, path, *, parallel=False, **options):
    """Write a checkpoint as that code does after a test, wrapped as on a machine with GPUs or not."""
    network.eval()
    network = as_on_gpus(network) if parallel else network
    with modules(PLACES):
        torch.save({"model": network, "objective": -3.5, "epoch": 7}, path, **options)
    return path
