"""Muon: steps against the dense singular value decomposition, weights on their ball, Adam against torch's own."""

import copy
import math

import pytest
import torch
from torch import nn

import iresnet as ir
from iresnet.config import OptimConfig
from iresnet.training.optim import Muon, make_optimizer, orthogonalize, set_learning_rate

SHAPES = {"square": (6, 6), "wide": (3, 20), "tall": (20, 3), "many": (4, 2, 7, 5), "a row": (1, 9), "a number": (1, 1)}


def polar(matrix):
    """U V^T of the dense decomposition."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def with_singular_values(shape, low, dtype=torch.float64):
    """A random matrix with singular values from ``low`` to 1."""
    *_, m, n = shape
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=dtype), full_matrices=False)
    return u * torch.logspace(math.log10(low), 0, min(m, n), dtype=dtype) @ vh


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 3e-3), (torch.float32, 4e-3)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_orthogonalize_against_the_singular_value_decomposition(shape, dtype, atol, size):
    matrix = size * with_singular_values(shape, 0.02, dtype)
    result = orthogonalize(matrix)
    assert result.dtype == dtype
    torch.testing.assert_close(
        torch.linalg.svdvals(result), torch.ones_like(torch.linalg.svdvals(matrix)), rtol=0, atol=atol
    )
    torch.testing.assert_close(result, polar(matrix), rtol=0, atol=atol)


def test_small_singular_values_grow_and_none_exceeds_one():
    values = torch.logspace(-8, 0, 50, dtype=torch.float64)
    values /= values.norm()
    grown = orthogonalize(torch.diag(values)).diagonal()
    assert bool((grown > 0.98 * values).all())
    assert bool((grown[values < 0.01] > 50 * values[values < 0.01]).all())
    assert bool((grown < 1.003).all())
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


# -- steps of Lipschitz weights --------------------------------------------------------------------------------------

LAYERS = {
    "dense": lambda **kw: ir.LipschitzLinear(5, 8, **kw),
    "3x3": lambda **kw: ir.LipschitzConv2d(2, 6, 3, image_size=(5, 4), **kw),
    "1x1": lambda **kw: ir.LipschitzConv2d(6, 4, 1, image_size=(5, 4), **kw),
    "dense, gram": lambda **kw: ir.LipschitzLinear(5, 8, normalization="gram", **kw),
    "dense, aol": lambda **kw: ir.LipschitzLinear(5, 8, normalization="aol", n_steps=99, **kw),
    "3x3, aol": lambda **kw: ir.LipschitzConv2d(2, 6, 3, image_size=(5, 4), normalization="aol", n_steps=99, **kw),
    "3x3, l1": lambda **kw: ir.LipschitzConv2d(2, 6, 3, image_size=(5, 4), normalization="l1", **kw),
}


def layer_of(case, scale=1.0):
    """A layer in eval mode, its unnormalized weight multiplied by ``scale``, and inputs for it."""
    layer = LAYERS[case]().double().eval()
    layer.weight = scale * layer.unnormalized_weight.detach()
    layer.normalization.converge(layer.unnormalized_weight)
    shape = (layer.in_features,) if case.startswith("dense") else (layer.in_channels, *layer.image_size)
    return layer, torch.randn(3, *shape, dtype=torch.float64)


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_a_step_turns_the_weight_and_leaves_the_function_where_it_is(case, scale):
    """The step is that of the dense decomposition; what follows it changes the weight, not what the layer computes."""
    layer, x = layer_of(case, scale)
    layer(x).square().sum().backward()
    weight, grad = layer.unnormalized_weight.detach().clone(), layer.unnormalized_weight.grad
    reference = copy.deepcopy(layer)
    Muon(layer, lr=0.05, momentum=0.9).step()
    flat = grad.flatten(1)
    rows_per_column = max(1.0, flat.shape[0] / flat.shape[1])
    reference.weight = weight - 0.05 * math.sqrt(rows_per_column) * polar(flat).view_as(weight)
    reference.bias = layer.bias
    torch.testing.assert_close(layer(x), reference(x), rtol=1e-3, atol=1e-3)
    moved = layer.unnormalized_weight.detach()
    torch.testing.assert_close(layer.weight, moved, rtol=1e-12, atol=0)
    assert float(layer.normalization.sigma(moved)) <= layer.normalization.coeff * (1 + 1e-12)
    assert not torch.equal(moved, weight)


def test_momentum_is_nesterovs_average():
    layer = ir.LipschitzLinear(4, 3, bias=False).double().eval()
    layer.weight = 0.01 * layer.unnormalized_weight.detach()
    optimizer = Muon(layer, lr=0.003, momentum=0.8)
    expected, average = layer.unnormalized_weight.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(4):
        layer.unnormalized_weight.grad = grad = with_singular_values((3, 4), 0.1)
        optimizer.step()
        average = 0.8 * average + 0.2 * grad
        expected -= 0.003 * polar(0.2 * grad + 0.8 * average)
    torch.testing.assert_close(layer.unnormalized_weight.detach(), expected, rtol=0, atol=1e-4)


def descend(layer, target, n_steps=60):
    """Squared distances of the weight to a target, while Muon reduces them; the bias gets no gradient."""
    optimizer, losses = Muon(layer, momentum=0.5), []
    for step in range(n_steps):
        layer.normalization.converge(layer.unnormalized_weight)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / n_steps)
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("case", ["dense", "3x3"])
def test_steps_descend_a_quadratic_to_its_minimum(case):
    layer, _ = layer_of(case)
    target = layer.weight.detach().clone()
    layer.weight = torch.zeros_like(target)
    losses = descend(layer, target)
    assert losses[1] < losses[0]
    assert losses[-1] < 1e-3 * losses[0]


def test_steps_find_the_nearest_weight_in_the_ball():
    """The weight of norm c nearest to a multiple of an isometry is c times the isometry."""
    layer, _ = layer_of("dense")
    isometry = polar(torch.randn(8, 5, dtype=torch.float64))
    losses = descend(layer, 5 * isometry)
    assert losses[-1] == pytest.approx(5 * (5 - layer.normalization.coeff) ** 2, rel=1e-2)


def on_the_ball(model):
    """The model in eval mode, its weights replaced by the normalized ones."""
    for layer in model.eval():
        if isinstance(layer, ir.LipschitzLinear):
            layer.weight = layer.weight.detach()
    return model


def test_no_gradient_and_a_gradient_of_zeros_do_no_harm():
    model = on_the_ball(ir.networks.mlp(2, 8))
    optimizer = Muon(model)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def test_weight_decay_shrinks_what_gets_no_gradient():
    model = on_the_ball(ir.networks.mlp(2, 8))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Muon(model, lr=0.1, adam_lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.95 * before[name], rtol=1e-5, atol=1e-7)


# -- everything else -------------------------------------------------------------------------------------------------


def test_other_parameters_are_trained_by_adam():
    torch.manual_seed(1)
    ours = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    theirs = copy.deepcopy(ours)
    optimizers = (
        Muon(ours, adam_lr=0.03, betas=(0.9, 0.95), weight_decay=0.2),
        torch.optim.AdamW(theirs.parameters(), lr=0.03, betas=(0.9, 0.95), weight_decay=0.2),
    )
    for _ in range(10):
        x = torch.randn(5, 3, dtype=torch.float64)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_each_parameter_is_trained_once():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4)
    optimizer = Muon(flow)
    lipschitz, others = (group["params"] for group in optimizer.param_groups)
    assert sum(p.dim() == 2 for p in lipschitz) == len(lipschitz) == 6
    assert sorted(map(id, [*lipschitz, *others])) == sorted(map(id, flow.parameters()))


def test_groups_keep_the_ratio_of_their_rates():
    model = ir.networks.mlp(2, 4)
    optimizer = make_optimizer(model, OptimConfig(name="muon", lr=0.02, adam_lr=0.06))
    for rate in (0.01, 0.0, 0.04):
        set_learning_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, 3 * rate])


def test_a_restored_optimizer_continues_bit_for_bit():
    def model_and_optimizer():
        torch.manual_seed(0)
        flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8, logdet="exact")
        return flow, make_optimizer(flow, OptimConfig(name="muon", lr=0.02))

    def steps(flow, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            flow.bits_per_dim(torch.randn(16, 2)).mean().backward()
            optimizer.step()

    whole, optimizer = model_and_optimizer()
    steps(whole, optimizer, range(6))
    first, optimizer = model_and_optimizer()
    steps(first, optimizer, range(3))
    state = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer = model_and_optimizer()
    second.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    steps(second, optimizer, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )
