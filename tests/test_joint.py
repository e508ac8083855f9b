"""The joint pass of values and tangents against one after the other: values, products, first and second derivatives."""

import math

import pytest
import torch
from laws import close, randn
from torch import nn

import iresnet as ir
from iresnet import joint
from iresnet.activations import LipSwish, MaxMin
from iresnet.jacobian import linearize
from iresnet.joint import linearize_along
from iresnet.lipschitz import DenseConcat, hold_weights

pytestmark = pytest.mark.usefixtures("default_device")


class Cubic(nn.Module):
    def forward(self, x):
        return 0.1 * x**3


MAPS = {
    "dense": lambda: (ir.networks.mlp(3, 6), (3,)),
    "images": lambda: (ir.networks.conv_bottleneck((2, 5, 4), 6), (2, 5, 4)),
    "few channels": lambda: (ir.networks.conv_bottleneck((2, 5, 4), 16), (2, 5, 4)),
    "without bias": lambda: (nn.Sequential(ir.LipschitzLinear(3, 3, bias=False), nn.ELU()), (3,)),
    "other slope": lambda: (nn.Sequential(ir.LipschitzLinear(3, 3), nn.ELU(alpha=0.5)), (3,)),
    "other activations": lambda: (
        nn.Sequential(LipSwish(), ir.LipschitzLinear(3, 4), MaxMin(), ir.LipschitzLinear(4, 3), nn.Tanh()),
        (3,),
    ),
    "nested": lambda: (nn.Sequential(DenseConcat(ir.LipschitzLinear(3, 2)), ir.LipschitzLinear(5, 3)), (3,)),
    "dense, of sequences": lambda: (nn.Sequential(ir.LipschitzLinear(3, 3), nn.ELU()), (4, 3)),
    "no rule": lambda: (Cubic(), (3,)),
}


@pytest.mark.parametrize("rows", [(0, 6), (0, 2), (2, 5), (5, 6)])
@pytest.mark.parametrize("name", MAPS)
def test_values_products_and_derivatives_are_those_of_one_after_the_other(name, rows):
    g, shape = MAPS[name]()
    g = g.double().eval()
    x, v = randn(6, *shape).requires_grad_(), randn(rows[1] - rows[0], *shape).requires_grad_()
    w = randn(*v.shape)
    with hold_weights(g):
        value, at = linearize_along(g, x, v, rows)
        expected = linearize(g, x[slice(*rows)])
        close(value, g(x))
        close(at.value, expected.value)
        close(at.image, expected.jvp(v))
        close(at.jvp(v + 1), expected.jvp(v + 1))
        close(at.vjp(w), expected.vjp(w))

        def derivatives(value, image):
            loss = (value.sin() + value).sum() + (image**2).sum()
            inputs = [x, v, *g.parameters()]
            first = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
            of_these = sum((grad**2).sum() for grad in first)
            second = torch.autograd.grad(of_these, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            return [*first, *second]

        close(derivatives(value, at.image), derivatives(g(x), expected.jvp(v)), 1e-9)


def test_it_is_what_a_block_in_training_uses(monkeypatch):
    block = ir.ResidualBlock(ir.networks.mlp(3, 8), logdet=ir.Krylov(2)).train()
    passes = []
    original = joint.linearize_along
    monkeypatch.setattr(
        "iresnet.bijections.memory.linearize_along", lambda *args: (passes.append(1), original(*args))[1]
    )
    x = torch.randn(4, 3)
    block.forward_and_logdet(x)
    assert len(passes) == 1
    with torch.no_grad():
        block.forward_and_logdet(x)
    torch.func.jvp(lambda x: block.eval().forward_and_logdet(x)[1], (x,), (x,))
    block.forward_and_logdet(x, logdet=ir.Krylov(2, n_probes=2))  # no single direction
    assert len(passes) == 1


def test_hooks_are_seen():
    g = nn.Sequential(ir.LipschitzLinear(2, 2), nn.ELU())
    g[1].register_forward_hook(lambda module, args, out: 2 * out)
    x, v = torch.randn(4, 2), torch.randn(4, 2)
    value, at = linearize_along(g, x, v, (0, 4))
    close(value, g(x), 1e-6)
    close(at.image, linearize(g, x).jvp(v), 1e-6)


def test_slopes_at_both_ends():
    x = torch.tensor([[-1e30, -200.0, -1e-3, 0.0, 1e-30, 200.0, 1e30]]).T
    x.requires_grad_()
    v = torch.ones_like(x)
    value, at = linearize_along(nn.ELU(), x, v, (0, 7))
    close(value, nn.functional.elu(x), 1e-7)
    small = math.exp(-1e-3)
    close(at.image[:, 0], torch.tensor([0.0, 0.0, small, 1.0, 1.0, 1.0, 1.0]), 1e-7)
    (grad,) = torch.autograd.grad(at.image.sum(), x)
    close(grad[:, 0], torch.tensor([0.0, 0.0, small, 0.0, 0.0, 0.0, 0.0]), 1e-7)
