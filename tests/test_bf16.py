"""In mixed precision log-determinants and their gradients are those of single precision, within stated tolerances."""

import copy
import math

import pytest
import torch
from laws import gradients

import iresnet as ir
from iresnet.lipschitz import hold_weights

ESTIMATORS = {
    "Krylov": lambda: ir.Krylov(4),
    "PowerSeries": lambda: ir.PowerSeries(5),
    "RussianRoulette": lambda: ir.RussianRoulette(),
    "Exact": lambda: ir.Exact(),
}
VALUE, GRADIENT = 0.002, 0.03
"""Nats for the root of each dimension, since roundings to eight bits are independent; and relative."""


def trained_like(shape, hidden):
    """A map whose layers are at their coefficients."""
    g = ir.networks.conv_bottleneck(shape, hidden, coeff=0.9)
    for layer in g:
        if isinstance(layer, ir.LipschitzConv2d):
            with torch.no_grad():
                layer.unnormalised_weight.mul_(5)
                layer.normalisation.converge(layer.unnormalised_weight)
    return g.eval()


def estimate(block, x, *, bf16):
    """Log-determinants with the same probes, and the gradients of their mean with respect to x and the parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        z, logdet = block.forward_and_logdet(x)
    assert (z.dtype, logdet.dtype) == (torch.float32, torch.float32)
    return logdet.detach(), torch.cat([g.flatten() for g in gradients(logdet.mean(), [x, *block.parameters()])])


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 4, 4)])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_agree_with_single_precision(name, shape):
    block = ir.ResidualBlock(trained_like(shape, 32), logdet=ESTIMATORS[name]())
    x = torch.randn(4, *shape)
    (value, gradient), (exact_value, exact_gradient) = (estimate(block, x, bf16=bf16) for bf16 in (True, False))
    assert bool(((value - exact_value).abs() <= VALUE * math.sqrt(x[0].numel())).all())
    assert bool((gradient - exact_gradient).norm() <= GRADIENT * exact_gradient.norm())


def test_the_norms_are_taken_in_single_precision():
    g = trained_like((4, 8, 8), 32).train()
    twin = copy.deepcopy(g)
    with torch.autocast("cpu", torch.bfloat16), hold_weights(g):
        weights = [layer.weight for layer in g if isinstance(layer, ir.LipschitzConv2d)]
    with hold_weights(twin):
        expected = [layer.weight for layer in twin if isinstance(layer, ir.LipschitzConv2d)]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
