"""Figures of docs/comparison.md: log-determinants, gradients and inverses of the residual blocks of normflows."""

import math
from importlib.metadata import version

import normflows as nf
import numpy as np
import torch
from torch import Tensor, nn


def halving(features: int) -> nn.Linear:
    """The map g(x) = x / 2, whose log-determinant is D log 1.5."""
    g = nn.Linear(features, features, bias=False)
    g.weight.data = 0.5 * torch.eye(features)
    return g


def logdets(block: nn.Module, *, calls: int = 200) -> tuple[float, float]:
    """Mean log-determinant per dimension, and its standard error; each call draws a length of the series."""
    x = torch.randn(5000, 8)
    means = torch.stack([block.inverse(x)[1].detach().mean() for _ in range(calls)]) / 8
    return float(means.mean()), float(means.std() / calls**0.5)


def gradient(block: nn.Module, x: Tensor, weights: Tensor) -> float:
    """Norm of the gradient of weighted log-determinants by the parameters."""
    block.zero_grad()
    (weights * block.inverse(x)[1]).sum().backward()
    return float(torch.stack([p.grad.norm() for p in block.parameters() if p.grad is not None]).norm())


def main() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (normflows draws from it)
    print(f"normflows {version('normflows')}, torch {version('torch')}")
    print(f"log-determinant per dimension of g(x) = x / 2: exactly {math.log(1.5):.4f}")
    for label, options, training in (
        ("in training, as it is", {}, True),
        ("in training, reduce_memory=False", {"reduce_memory": False}, True),
        ("in evaluation", {}, False),
    ):
        value, error = logdets(nf.flows.Residual(halving(8), **options).train(training))
        print(f"  {label}: {value:.4f} ± {error:.4f}")

    x, weights = torch.randn(64, 4), torch.ones(64)
    weights[0] = 0
    net = nf.nets.LipschitzMLP([4, 16, 4], lipschitz_const=0.9)
    print("gradient of the log-determinants of 64 samples, the first of which has weight 0:")
    for options in ({}, {"reduce_memory": False}):
        block = nf.flows.Residual(net, n_power_series=30, **options).train()
        print(f"  {options or 'as it is'}: norm {gradient(block, x, weights):.3f}")


if __name__ == "__main__":
    main()
