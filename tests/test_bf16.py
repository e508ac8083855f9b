"""In mixed precision log-determinants and their gradients are those of single precision, within stated tolerances."""

import copy
import math

import pytest
import torch
from laws import gradients, trained_like

import iresnet as ir
from iresnet.lipschitz import hold_weights

pytestmark = pytest.mark.usefixtures("default_device")

ESTIMATORS = {
    "Krylov": lambda: ir.Krylov(4),
    "PowerSeries": lambda: ir.PowerSeries(5),
    "RussianRoulette": lambda: ir.RussianRoulette(),
    "Exact": lambda: ir.Exact(),
}
VALUE, GRADIENT = 0.002, 0.03
"""Nats for the root of each dimension, since roundings to eight bits are independent; and relative."""


def estimate(block, x, device, *, bf16):
    """Log-determinants with the same probes, and the gradients of their mean with respect to x and the parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        z, logdet = block.forward_and_logdet(x)
    assert (z.dtype, logdet.dtype) == (torch.float32, torch.float32)
    return logdet.detach(), torch.cat([g.flatten() for g in gradients(logdet.mean(), [x, *block.parameters()])])


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 4, 4)])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_agree_with_single_precision(name, shape, device):
    block = ir.ResidualBlock(trained_like(shape, 32), logdet=ESTIMATORS[name]())
    x = torch.randn(4, *shape)
    (value, gradient), (exact_value, exact_gradient) = (estimate(block, x, device, bf16=bf16) for bf16 in (True, False))
    assert bool(((value - exact_value).abs() <= VALUE * math.sqrt(x[0].numel())).all())
    assert bool((gradient - exact_gradient).norm() <= GRADIENT * exact_gradient.norm())


def test_the_norms_are_taken_in_single_precision(device):
    g = trained_like((4, 8, 8), 32).train()
    twin = copy.deepcopy(g)
    with torch.autocast(device, torch.bfloat16), hold_weights(g):
        weights = [layer.weight for layer in g if isinstance(layer, ir.LipschitzConv2d)]
    with hold_weights(twin):
        expected = [layer.weight for layer in twin if isinstance(layer, ir.LipschitzConv2d)]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
