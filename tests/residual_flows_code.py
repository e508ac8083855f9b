"""A small writer of checkpoints as the code of Residual Flows left them: modules of its names, with a forward pass of
their own.

The classes stand in modules of the names that pickles hold by ``code2019.modules``.
"""

import argparse
from itertools import pairwise

import code2019
import torch
import torch.nn.functional as F
from torch import nn


class Swish(nn.Module):
    """x sigmoid(softplus(beta) x) / 1.1, with a beta of its own."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.randn(1))

    def forward(self, x):
        return x * torch.sigmoid(F.softplus(self.beta) * x) / 1.1


class _Normed(nn.Module):
    """Weight, divided by u^T W v where that is above the coefficient, after iterations that have hardly converged."""

    def _start(self, weight, coeff, v):
        self.coeff, self.weight = coeff, nn.Parameter(weight * (3 if torch.rand(()) < 0.7 else 0.2))
        self.bias = nn.Parameter(torch.randn(len(weight)))
        self.register_buffer("scale", torch.tensor(0.0))
        for _ in range(20):
            u = F.normalize(self._apply_weight(v).detach(), dim=0)
            v = F.normalize(torch.autograd.functional.vjp(self._apply_weight, v, u)[1], dim=0)
        self.register_buffer("u", u)
        self.register_buffer("v", v.detach())

    def normalized(self):
        sigma = self.u @ self._apply_weight(self.v).flatten()
        return self.weight / torch.clamp(sigma / self.coeff, min=1)


class InducedNormLinear(_Normed):
    """Dense layer."""

    def __init__(self, fan_in, fan_out, coeff):
        super().__init__()
        self._start(torch.randn(fan_out, fan_in) / fan_in**0.5, coeff, torch.randn(fan_in))

    def _apply_weight(self, v):
        return self.weight @ v

    def forward(self, x):
        return F.linear(x, self.normalized(), self.bias)


class InducedNormConv2d(_Normed):
    """Convolution on images of a size; one of a single pixel is normalized as a matrix."""

    def __init__(self, fan_in, fan_out, kernel, image, coeff):
        super().__init__()
        self.image = (1, fan_in, *(image if kernel > 1 else (1, 1)))
        self.register_buffer("spatial_dims", torch.tensor(image).float())
        self.register_buffer("initialized", torch.tensor(1))
        weight = torch.randn(fan_out, fan_in, kernel, kernel) / (fan_in * kernel**2) ** 0.5
        self._start(weight, coeff, torch.randn(self.image).flatten())

    def _apply_weight(self, v):
        return F.conv2d(v.view(self.image), self.weight, padding="same").flatten()

    def forward(self, x):
        return F.conv2d(x, self.normalized(), self.bias, padding="same")


class ActNorm2d(nn.Module):
    """(x + b) e^s, initialized."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.3 * torch.randn(channels)), nn.Parameter(torch.randn(channels))
        self.register_buffer("initialized", torch.tensor(1))

    def forward(self, x):
        s, b = (p.view(-1, *[1] * (x.dim() - 2)) for p in (self.weight, self.bias))
        return (x + b) * s.exp()


class ActNorm1d(ActNorm2d):
    """That of vectors."""


class FCWrapper(nn.Module):
    """Map of vectors, for images."""

    def __init__(self, fc_module):
        super().__init__()
        self.fc_module = fc_module

    def forward(self, x):
        return self.fc_module(x.flatten(1)).view_as(x)


class FCNet(nn.Module):
    """Map g of vectors, for images."""

    def __init__(self, nnet):
        super().__init__()
        self.nnet = nnet

    def forward(self, x):
        return self.nnet(x.flatten(1)).view_as(x)


class iResBlock(nn.Module):  # noqa: N801 (names of that code)
    """x + g(x), and numbers of its roulette."""

    def __init__(self, nnet):
        super().__init__()
        self.nnet = nnet
        self.geom_p, self.lamb = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(2.0))
        for name in ("last_n_samples", "last_firmom", "last_secmom"):
            self.register_buffer(name, torch.zeros(1))

    def forward(self, x):
        return x + self.nnet(x)


class SqueezeLayer(nn.Module):
    """Space to depth, channels ordered (channel, row, column)."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


class LogitTransform(nn.Module):
    """Logit of numbers in [0, 1], kept away from its ends."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        s = self.alpha + (1 - 2 * self.alpha) * x
        return s.log() - (1 - s).log()


class StackediResBlocks(nn.Module):
    """A scale."""

    def __init__(self, chain):
        super().__init__()
        self.chain = nn.ModuleList(chain)

    def forward(self, x):
        for module in self.chain:
            x = module(x)
        return x


ACTIVATIONS = {"swish": Swish, "elu": nn.ELU, "relu": nn.ReLU, "softplus": nn.Softplus}


def perceptron(sizes, act, coeff):
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [ACTIVATIONS[act](), InducedNormLinear(fan_in, fan_out, coeff)]
    return nn.Sequential(*layers)


class ResidualFlow(nn.Module):
    """Scales, between which half of the channels leave or not."""

    def __init__(self, shape, options):
        super().__init__()
        act, coeff, hidden = ACTIVATIONS[options.act], options.coeff, options.idim
        self.squeeze_first, self.factor_out = options.squeeze_first, options.factor_out
        shape = squeezed(shape) if self.squeeze_first else shape
        counts, scales = [int(n) for n in options.nblocks.split("-")], []
        side, possible = min(shape[1:]), 0
        while side >= 4:
            side, possible = side // 2, possible + 1
        counts = counts[:possible]
        for i, n in enumerate(counts):
            last, chain = i == len(counts) - 1, []
            if i == 0 and options.logit_transform:
                chain.append(LogitTransform(1e-6 if options.data == "mnist" else 0.05))
            if i == 0 and options.actnorm:
                chain.append(ActNorm2d(shape[0]))
            for j in range(n):
                layers = [] if i == j == 0 and not last else [act()]
                for k, (fan_in, fan_out, kernel) in enumerate(
                    ((shape[0], hidden, 3), (hidden, hidden, 1), (hidden, shape[0], 3))
                ):
                    layers += [act()] if k else []
                    layers.append(InducedNormConv2d(fan_in, fan_out, kernel, shape[1:], coeff))
                chain.append(iResBlock(nn.Sequential(*layers)))
                chain += [ActNorm2d(shape[0])] if options.actnorm else []
            size = shape[0] * shape[1] * shape[2]
            for _ in range(4 if last and options.fc_end else 0):
                sizes = [size, options.fc_idim, options.fc_idim, size]
                chain.append(iResBlock(FCNet(perceptron(sizes, options.act, coeff))))
                chain += [FCWrapper(ActNorm1d(size))] if options.actnorm else []
            if not last:
                chain.append(SqueezeLayer())
                shape = squeezed(shape)
                shape = (shape[0] // 2, *shape[1:]) if self.factor_out else shape
            scales.append(StackediResBlocks(chain))
        self.transforms = nn.ModuleList(scales)

    def forward(self, x):
        x, left = SqueezeLayer()(x) if self.squeeze_first else x, []
        for i, scale in enumerate(self.transforms):
            x = scale(x)
            if self.factor_out and i < len(self.transforms) - 1:
                half = x.shape[1] // 2
                x, away = x[:, :half], x[:, half:]
                left.append(away.flatten(1))
        return torch.cat([*left, x.flatten(1)], 1)


class ToyFlow(StackediResBlocks):
    """Blocks of points in the plane; that code pickles no class of it."""

    def __init__(self, options):
        sizes = [2, *(int(n) for n in options.dims.split("-")), 2]
        super().__init__([iResBlock(perceptron(sizes, options.act, options.coeff)) for _ in range(options.nblocks)])


def squeezed(shape):
    return (4 * shape[0], shape[1] // 2, shape[2] // 2)


class ExponentialMovingAverage:
    """Averages of parameters, with the module that they are of."""

    def __init__(self, module):
        self.module, self.decay, self.nparams = module, 0.999, 1
        # far from the parameters themselves, as after a training
        self.shadow_params = {name: p.data * (1 + 0.1 * torch.randn_like(p)) for name, p in module.named_parameters()}


PLACES = {
    "": (),
    ".layers": (),
    ".layers.base": (),
    ".layers.act_norm": (ActNorm1d, ActNorm2d),
    ".layers.base.activations": (Swish,),
    ".layers.base.mixed_lipschitz": (InducedNormConv2d, InducedNormLinear),
    ".layers.elemwise": (LogitTransform,),
    ".layers.iresblock": (iResBlock,),
    ".layers.squeeze": (SqueezeLayer,),
    ".resflow": (FCNet, FCWrapper, ResidualFlow, StackediResBlocks),
    ".utils": (ExponentialMovingAverage,),
}
"""Modules of that code within its package, and the classes in each."""

IMAGES = {
    "data": "cifar10",
    "imagesize": 8,
    "nbits": 8,
    "block": "resblock",
    "coeff": 0.9,
    "vnorms": "2222",
    "learn_p": False,
    "factor_out": False,
    "act": "swish",
    "idim": 5,
    "nblocks": "2-1-1",
    "squeeze_first": False,
    "actnorm": True,
    "fc_actnorm": False,
    "batchnorm": False,
    "dropout": 0.0,
    "fc": False,
    "kernels": "3-1-3",
    "logit_transform": True,
    "add_noise": True,
    "quadratic": False,
    "fc_end": True,
    "fc_idim": 6,
    "preact": True,
    "padding": 0,
    "first_resblock": True,
    "ema_val": True,
    "task": "density",
    "lr": 1e-3,
    "save": "experiment1",
}
"""Options of train_img.py, of small networks."""

TOYS = {
    "data": "pinwheel",
    "arch": "iresnet",
    "coeff": 0.9,
    "vnorms": "22222",
    "learn_p": False,
    "dims": "7-7-7",
    "act": "swish",
    "nblocks": 3,
    "actnorm": False,
    "batchnorm": False,
}
"""Options of train_toy.py."""


def images(**changed):
    """A density of images after training, with its averages, and what its checkpoint holds."""
    options = argparse.Namespace(**IMAGES | changed)
    shape = (1 if options.data == "mnist" else 3, options.imagesize, options.imagesize)
    network = ResidualFlow(shape, options).eval()
    averages = ExponentialMovingAverage(network)
    content = {
        "state_dict": network.state_dict(),
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-3}]},
    }
    return network, content | {"args": options, "ema": averages, "test_bpd": 3.25}


def toys(**changed):
    """A density of points in the plane, and what its checkpoint holds."""
    options = argparse.Namespace(**TOYS | changed)
    network = ToyFlow(options).eval()
    return network, {"args": options, "state_dict": network.state_dict()}


def evaluated(network, content):
    """The network with the weights with which that code evaluates it."""
    if content.get("ema") is not None and content["args"].ema_val:
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(content["ema"].shadow_params[name])
    return network


def save(content, path, *, package="resflows", **options):
    """Write a checkpoint; the package was named lib before."""
    with code2019.modules({package + place: classes for place, classes in PLACES.items()}):
        torch.save(content, path, **options)
    return path
