"""Every normalisation against dense singular values."""

import pytest
import torch
from laws import close

import iresnet as ir
from iresnet.errors import UnknownNameError
from iresnet.normalisation import NORMALISATIONS, GramIteration, same_conv, torus_matrices

LAYERS = {
    "linear": lambda name: ir.LipschitzLinear(5, 7, 0.8, normalisation=name),
    "wide linear": lambda name: ir.LipschitzLinear(9, 2, 0.8, normalisation=name),
    "1x1": lambda name: ir.LipschitzConv2d(4, 3, 1, 0.8, image_size=(5, 4), normalisation=name),
    "3x3": lambda name: ir.LipschitzConv2d(2, 3, 3, 0.8, image_size=(6, 5), normalisation=name),
    "even kernel": lambda name: ir.LipschitzConv2d(3, 2, 4, 0.8, image_size=(5, 7), normalisation=name),
    "kernel larger than half": lambda name: ir.LipschitzConv2d(1, 1, 5, 0.8, image_size=(4, 4), normalisation=name),
}


def norm(layer) -> float:
    """Largest singular value of the layer's matrix."""
    weight = layer.weight.detach()
    if weight.dim() == 4:
        basis = torch.eye(layer.in_channels * layer.image_size[0] * layer.image_size[1], dtype=weight.dtype)
        weight = same_conv(basis.reshape(-1, layer.in_channels, *layer.image_size), weight).flatten(1)
    return float(torch.linalg.matrix_norm(weight, 2))


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_large_weight_is_brought_to_its_coefficient(kind, name):
    layer = LAYERS[kind](name).double()
    layer.weight = 30 * torch.randn_like(layer.unnormalised_weight)
    layer.normalisation.converge(layer.unnormalised_weight, tol=1e-14, max_steps=20_000)
    assert norm(layer) <= 0.8 * (1 + 1e-9)
    assert norm(layer) >= 0.8 * (0.6 if name == "gram" and "linear" not in kind and kind != "1x1" else 0.98)


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_small_weight_passes_unchanged(kind, name):
    layer = LAYERS[kind](name)
    layer.weight = 1e-3 * torch.randn_like(layer.unnormalised_weight)
    assert torch.equal(layer.weight, layer.unnormalised_weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 9])
@pytest.mark.parametrize("kind", LAYERS)
def test_gram_bounds_the_norm_from_above_at_every_weight(kind, n_steps, dtype):
    layer = LAYERS[kind]("gram").to(dtype)
    layer.normalisation.n_steps = n_steps
    for scale in (1e-8, 1.0, 1e8):
        layer.weight = scale * torch.randn_like(layer.unnormalised_weight)
        sigma = layer.normalisation.sigma(layer.unnormalised_weight)
        layer.normalisation.held = layer.unnormalised_weight.double()
        assert float(sigma.detach()) >= norm(layer.double())
        layer.normalisation.held = None
        layer.to(dtype)


def test_gram_is_tight_within_its_stated_factor():
    weight = torch.randn(6, 20, dtype=torch.float64)
    truth = torch.linalg.matrix_norm(weight, 2)
    for n_steps in (1, 3, 6):
        sigma = GramIteration(weight, coeff=0.9, image_size=(1, 1), n_steps=n_steps).sigma(weight).detach()
        assert 1 <= float(sigma / truth) <= 6 ** (2.0 ** (-n_steps - 1)) * (1 + 1e-9)


@pytest.mark.parametrize("kind", LAYERS)
def test_gram_gradient(kind):
    layer = LAYERS[kind]("gram").double()
    weight = torch.randn_like(layer.unnormalised_weight).requires_grad_()
    assert torch.autograd.gradcheck(layer.normalisation.sigma, (weight,))


@pytest.mark.parametrize("kind", LAYERS)
def test_gram_certifies_in_train_mode_as_in_eval_mode(kind):
    layer = LAYERS[kind]("gram").train()
    layer.weight = 9 * torch.randn_like(layer.unnormalised_weight)
    trained = layer.weight.clone()
    assert torch.equal(trained, layer.eval().weight)
    assert ir.certify(layer).layers[0].upper <= 0.8 * (1 + 1e-6)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_zero_weight_has_finite_gradients(name):
    layer = ir.LipschitzConv2d(2, 2, 3, image_size=(4, 4), normalisation=name)
    layer.weight = torch.zeros_like(layer.unnormalised_weight)
    layer.weight.sum().backward()
    assert torch.isfinite(layer.unnormalised_weight.grad).all()


def test_torus_matrices_are_the_circular_convolution():
    weight = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    parts = torch.cat(list(torus_matrices(weight, (4, 5), max_numbers=12)))
    padded = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    padded[:, :, :3, :2] = weight
    expected = torch.fft.rfft2(padded).flatten(2).permute(2, 0, 1)
    close(torch.view_as_real(parts), torch.view_as_real(expected))


def test_unknown_normalisation_and_steps():
    with pytest.raises(UnknownNameError, match="'gram'"):
        ir.LipschitzLinear(2, 2, normalisation="grm")
    with pytest.raises(ValueError, match="at least 1"):
        ir.LipschitzLinear(2, 2, normalisation="gram", n_steps=0)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_the_zoo_builds_with_every_normalisation(name):
    model = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8, normalisation=name)
    assert sum(isinstance(m, NORMALISATIONS[name]) for m in model.modules()) == 6
