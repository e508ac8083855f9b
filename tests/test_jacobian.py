"""linearize(g, x): the plain-code rules, torch.func and the dense Jacobian are one and the same operator."""

import pytest
import torch
from laws import close, dense_jacobian, frozen, gradients, randn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import iresnet as ir
from iresnet.activations import ACTIVATIONS, make_activation
from iresnet.bijections.monotone import _Negative
from iresnet.context import Shift
from iresnet.jacobian import RULES, _transformed

pytestmark = pytest.mark.usefixtures("default_device")


class Doubled(nn.ELU):
    def forward(self, x):
        return 2 * super().forward(x)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ir.LipschitzLinear(5, 5)

    def forward(self, x):
        return torch.sin(x) * self.inner(x)


def hooked():
    layer = nn.Linear(5, 5)
    layer.register_forward_hook(lambda _module, _args, y: y.square())
    return layer


def pre_hooked():
    layer = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    layer[1].register_forward_pre_hook(lambda _module, args: (3 * args[0],))
    return layer


def patched():
    layer = nn.ELU()
    layer.forward = lambda x: torch.sin(x)
    return layer


VECTOR, IMAGE = (5,), (4, 5, 3)

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), VECTOR),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), VECTOR),
    "LipschitzLinear": (lambda: ir.LipschitzLinear(5, 6), VECTOR),
    "tanh": (nn.Tanh, VECTOR),
    "shift by a context": (lambda: Shift(torch.ones(1, 5)), VECTOR),
    "change of sign": (_Negative, VECTOR),
    "identity": (nn.Identity, VECTOR),
    "flatten": (nn.Flatten, IMAGE),
    "elu of another alpha": (lambda: nn.ELU(alpha=0.3), VECTOR),
    "softplus past its threshold": (lambda: nn.Softplus(beta=2.0, threshold=0.5), VECTOR),
    "plain convolution": (lambda: nn.Conv2d(4, 3, 3, padding=1), IMAGE),
    "padded beyond its kernel": (lambda: nn.Conv2d(4, 3, (2, 1), padding=(0, 2)), IMAGE),
    "dilated, grouped": (lambda: nn.Conv2d(4, 6, (2, 3), padding=(1, 2), dilation=(1, 2), groups=2), IMAGE),
    "strided": (lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1), IMAGE),
    "reflecting": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGE),
    "padding by name": (lambda: nn.Conv2d(4, 3, 3, padding="same"), IMAGE),
    "mlp": (lambda: ir.networks.mlp(5, 7, activation="softplus"), VECTOR),
    "bottleneck": (lambda: ir.networks.conv_bottleneck(IMAGE, 6), IMAGE),
    "feed-through": (lambda: ir.FeedThrough(5, 7, depth=4, normalization="gram"), VECTOR),
    "dense concatenation": (lambda: ir.networks.dense_concat(VECTOR, 3), VECTOR),
    "dense concatenation of images": (lambda: ir.networks.dense_concat(IMAGE, 3, depth=2), IMAGE),
    "nested": (lambda: nn.Sequential(nn.ELU(), nn.Sequential(nn.Flatten(), nn.Linear(60, 2))), IMAGE),
    "empty": (nn.Sequential, VECTOR),
    "subclass with its own forward": (Doubled, VECTOR),
    "hooked": (hooked, VECTOR),
    "hooked inside": (pre_hooked, VECTOR),
    "forward replaced in the instance": (patched, VECTOR),
    "no rule": (nn.GELU, VECTOR),
    "no rule, with a Lipschitz layer inside": (Skip, VECTOR),
    "function": (lambda: lambda x: x * x.flip(1), VECTOR),
    "layer norm": (lambda: nn.LayerNorm(5), VECTOR),
    "layer norm without weights": (lambda: nn.LayerNorm((4, 5, 3), elementwise_affine=False), IMAGE),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "instance norm with running statistics": (lambda: nn.InstanceNorm2d(4, track_running_stats=True).eval(), IMAGE),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), (3, 4)),
    "a linear system": (lambda: lambda x: torch.linalg.solve(torch.eye(5) * 3 + x[:, :, None] * x[:, None], x), VECTOR),
}
for kernel in [1, 2, 3, 4, 5, (1, 3), (3, 2), (2, 5)]:
    LAYERS[f"LipschitzConv2d {kernel}"] = (lambda k=kernel: ir.LipschitzConv2d(4, 3, k, image_size=(5, 3)), IMAGE)
for name in ACTIVATIONS:
    LAYERS[name] = (lambda name=name: make_activation(name), IMAGE)


def build(name):
    make, shape = LAYERS[name]
    g = make()
    return frozen(g) if isinstance(g, nn.Module) else g, 2 * randn(3, *shape)


def parameters(g):
    return list(g.parameters()) if isinstance(g, nn.Module) else []


@pytest.mark.parametrize("path", [ir.linearize, _transformed])
@pytest.mark.parametrize("name", LAYERS)
def test_value_products_and_their_gradients_are_those_of_the_dense_jacobian(name, path):
    g, x = build(name)
    x.requires_grad_()
    jacobian = path(g, x)
    with sdpa_kernel(SDPBackend.MATH):  # plain attention has one derivative
        dense = dense_jacobian(g, x)
    v, w = torch.randn_like(x).requires_grad_(), torch.randn_like(jacobian.value).requires_grad_()
    products = {
        "jvp": (w * jacobian.jvp(v)).sum(),
        "vjp": (v * jacobian.vjp(w)).sum(),
    }
    expected = torch.einsum("ni,nij,nj->", w.flatten(1), dense, v.flatten(1))
    close(jacobian.value, g(x))
    close(jacobian.jvp(v).flatten(1), torch.einsum("nij,nj->ni", dense, v.flatten(1)))
    close(jacobian.vjp(w).flatten(1), torch.einsum("nij,ni->nj", dense, w.flatten(1)))
    assert jacobian.jvp(v).shape == w.shape
    assert jacobian.vjp(w).shape == x.shape
    inputs = [x, v, w, *parameters(g)]
    for product in products.values():
        close(gradients(product, inputs), gradients(expected, inputs))
    close(gradients(jacobian.value.square().sum(), inputs), gradients(g(x).square().sum(), inputs))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c)])
def test_blocks_with_norms_have_the_derivatives_of_their_differences(norm, order, n):
    convolutions = [ir.LipschitzConv2d(i, o, 3, 0.7, image_size=(4, 4)) for i, o in ((2, 4), (4, 2))]
    block = (
        ir.ResidualBlock(nn.Sequential(convolutions[0], norm(4), convolutions[1]), logdet=ir.Exact()).double().eval()
    )
    x, w, v = (randn(n, 2, 4, 4).contiguous(memory_format=order) for _ in range(3))

    def total(x):
        z, logdet = block.forward_and_logdet(x)
        return (z * w).sum() + logdet.sum() + (block(x) * w).sum()

    x.requires_grad_()
    (slope,) = torch.autograd.grad(total(x), x)
    with torch.no_grad():
        difference = (total(x + 1e-5 * v) - total(x - 1e-5 * v)) / 2e-5
    close((slope * v).sum(), difference, 1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_without_autograd_the_products_are_the_same_and_record_nothing(name):
    g, x = build(name)
    v = torch.randn_like(x)
    with_grad = ir.linearize(g, x)
    with torch.no_grad():
        jacobian = ir.linearize(g, x)
        jv, jw = jacobian.jvp(v), jacobian.vjp(jacobian.value)
    assert not any(y.requires_grad for y in (jacobian.value, jv, jw))
    close(jv, with_grad.jvp(v))
    close(jw, with_grad.vjp(with_grad.value))


def test_every_rule_is_among_the_cases():
    modules = [make() for make, _ in LAYERS.values()]
    tested = {type(m).forward for g in modules if isinstance(g, nn.Module) for m in g.modules()}
    assert set(RULES) <= tested, "add a layer of the new rule to LAYERS"


@pytest.mark.parametrize("name", ["bottleneck", "no rule, with a Lipschitz layer inside", "clipswish"])
def test_products_are_differentiable_twice(name):
    g, x = build(name)
    x = x[:1, ..., :2].requires_grad_() if name == "clipswish" else x[:1].requires_grad_()
    v, w = torch.randn_like(x), torch.randn_like(g(x))
    assert torch.autograd.gradcheck(lambda x: ir.linearize(g, x).jvp(v), x)
    assert torch.autograd.gradgradcheck(lambda x: ir.linearize(g, x).vjp(w), x, atol=1e-4)


def test_a_rule_computes_a_parametrized_weight_once():
    layer = ir.LipschitzLinear(3, 3).double().train()
    u = layer.normalization.u.clone()
    layer.normalization.iterate(layer.unnormalized_weight, 1)
    once, layer.normalization.u = layer.normalization.u, u
    jacobian = ir.linearize(layer, randn(2, 3))
    jacobian.vjp(jacobian.jvp(randn(2, 3)))
    close(layer.normalization.u, once, 0.0)


@pytest.mark.parametrize("make", [nn.Sigmoid, lambda: nn.Linear(3, 3)], ids=["no rule", "rule"])
def test_products_run_under_bf16_autocast(make):
    g, (x, v) = nn.Sequential(nn.Linear(3, 3), make()), torch.randn(2, 4, 3)
    exact = ir.linearize(g, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        jacobian = ir.linearize(g, x)
        close(jacobian.jvp(v).float(), exact.jvp(v), 0.05)
        close(jacobian.vjp(v).float(), exact.vjp(v), 0.05)
