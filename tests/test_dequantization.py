"""Variational dequantization: a bijection of each cell, whose mean log-density bounds the probability of integers."""

import math

import pytest
import torch
from laws import close, dense_logdet
from torch import nn

import iresnet as ir
from iresnet.data import Split
from iresnet.errors import RecipeError, UnknownNameError
from iresnet.evaluation import likelihood

LEVELS = 3
SHAPES = {"numbers": (1,), "pairs": (2,), "images": (2, 4, 4)}


def learned(shape, **options):
    """A float64 density of integers whose noise depends on them, without training."""
    torch.manual_seed(0)
    if len(shape) == 3:
        options = {"name": "iresnet", "blocks": (1, 1), "strides": (1, 2), "hidden": 4} | options
    else:
        options = {"name": "toy-mlp", "blocks": 2, "hidden": 8} | options
    flow = ir.zoo.build(shape=shape, dequantization="variational", mean=LEVELS / 2, std=LEVELS / 2, **options)
    with torch.no_grad():
        for parameter in flow.bijection.bijections[0].encoder[-1].parameters():
            parameter.normal_(std=0.3)
    return flow.double().eval().requires_grad_(False)


def parts(flow):
    """The noise, and the density that it is in front of."""
    noise, *others = flow.bijection.bijections
    assert isinstance(noise, ir.VariationalDequantization)
    return noise, ir.Flow(ir.Chain(others), flow.base, event_shape=flow.event_shape)


def points(shape, n=5):
    torch.manual_seed(1)
    return (LEVELS * torch.rand(n, *shape)).double()


def nodes(dims, n):
    """Midpoints of a grid of the unit cube, (n^D, D)."""
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.cartesian_prod(*[axis] * dims).view(-1, dims)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_a_bijection_of_each_cell_with_the_dense_log_determinant(shape):
    noise, _ = parts(learned(shape))
    x = points(shape)
    z, logdet = noise.forward_and_logdet(x)
    assert torch.equal(z.floor(), x.floor())
    assert float((z - x).abs().max()) > 0.05
    close(noise(x), z)
    close(noise.inverse(z), x, 1e-9)
    close(logdet, dense_logdet(noise, x), 1e-9)
    other = noise(x.floor().flip(0) + x - x.floor()) - x.floor().flip(0)  # the same place in another cell
    assert float((other - (z - x.floor())).abs().max()) > 0.01


def test_noise_integrates_to_one_and_no_mass_leaves_a_cell():
    noise, density = parts(learned((2,)))
    logits = torch.linspace(-30, 30, 60).double()  # densities may be infinite at the borders of a cell
    u = torch.cartesian_prod(logits, logits).sigmoid()
    weights = (u * (1 - u)).prod(1) * (logits[1] - logits[0]) ** 2
    for k in torch.tensor([[0.0, 0.0], [2.0, 1.0]]).double():
        v = noise.inverse(k + u)
        q = (-noise.forward_and_logdet(v)[1]).exp()
        assert float((weights * q).sum()) == pytest.approx(1, abs=1e-3)
        assert float((weights * q.square()).sum()) > 1.02
        z, logdet = noise.forward_and_logdet(k + u)
        inside, outside = (density.log_prob(at, logdet=ir.Exact()).exp() for at in (k + u, z))
        close((weights * outside * logdet.exp()).sum(), (weights * inside).sum(), 1e-3)


@pytest.mark.parametrize("shape", [(1,), (2,)], ids=["numbers", "pairs"])
def test_the_mean_log_density_bounds_the_probability_of_each_integer(shape):
    flow = learned(shape)
    _, density = parts(flow)
    v = nodes(shape[0], 48)
    for k in torch.cartesian_prod(*[torch.arange(LEVELS)] * shape[0]).view(-1, *shape).double():
        probability = density.log_prob(k + v, logdet=ir.Exact()).exp().mean()  # of the cell
        log_probs = flow.log_prob(k + v, logdet=ir.Exact())
        bound = log_probs.mean()
        assert float(bound) < float(probability.log())
        pairs = log_probs.view(2, -1)  # importance-weighted, of two draws
        assert float(bound) < float(torch.logaddexp(*pairs).mean() - math.log(2)) < float(probability.log()) + 1e-3


def test_noise_is_uniform_at_first():
    flow = learned((2, 4, 4))
    noise, density = parts(flow)
    for parameter in noise.encoder[-1].parameters():
        nn.init.zeros_(parameter)
    x = points((2, 4, 4)).float()
    close(flow.float().log_prob(x, logdet=ir.Exact()), density.log_prob(x, logdet=ir.Exact()), 1e-5)


def test_gradients_are_those_of_finite_differences():
    flow = learned((1, 2, 2), blocks=(1,), strides=(1,), logdet="exact")
    x = points((1, 2, 2))
    noise, _ = parts(flow.requires_grad_())
    loss = flow.bits_per_dim(x).mean()
    found = torch.autograd.grad(loss, list(noise.parameters()))
    for parameter, gradient in zip(noise.parameters(), found, strict=True):
        direction, step = torch.randn_like(parameter), 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                values.append(flow.bits_per_dim(x).mean())
                parameter -= sign * step * direction
        close((gradient * direction).sum(), (values[0] - values[1]) / (2 * step), 1e-6)


def test_rounding_moves_nothing_to_the_next_cell():
    torch.manual_seed(0)
    flow = ir.zoo.build("iresnet", shape=(1, 4, 4), dequantization="variational", blocks=(1,), strides=(1,), hidden=4)
    noise = flow.bijection.bijections[0].eval()
    for k in (-300.0, -1.0, 0.0, 1.0, 255.0):
        corner = torch.full((1, 1, 4, 4), k)
        for x in (corner, torch.nextafter(corner + 1, corner), torch.nextafter(corner, corner + 1)):
            for shift in (-30.0, 0.0, 30.0):
                noise.encoder[-1].bias.data.fill_(shift)
                z, logdet = noise.forward_and_logdet(x)
                assert bool((z.floor() == k).all())
                assert bool(torch.isfinite(logdet).all())
                assert bool((noise.inverse(z).floor() == k).all())


def test_bounds_are_named_and_improve_with_importance_weights():
    flow = learned((2,))
    split = Split(torch.randint(0, LEVELS, (200, 2), dtype=torch.uint8))
    results = [likelihood(flow, split, levels=LEVELS, dequantize_samples=n, n_repeated=16) for n in (1, 4, 16)]
    assert {result.bound for result in results} == {"variational dequantization"}
    assert results[0].nats.mean > results[1].nats.mean > results[2].nats.mean
    _, density = parts(flow)
    u = nodes(2, 48)
    exact = [density.log_prob(k + u, logdet=ir.Exact()).exp().mean().log() for k in split.x.double()]
    assert results[2].nats.mean > -float(torch.stack(exact).mean()) - 0.02
    assert likelihood(density, split, levels=LEVELS).bound == "uniform dequantization"
    assert likelihood(density, Split(split.x.double()), levels=None).bound == ""


def test_a_network_that_jumps_has_no_constants_but_certified_blocks():
    flow = learned((2, 4, 4))
    certificate = ir.seal(flow)
    assert certificate.certified
    assert certificate.network is None
    assert [line.split()[0] for line in repr(flow).splitlines()[2:6]] == ["dequantization", "scale", "scale", "base"]


def test_what_has_no_integers_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="variational"):
        ir.zoo.build("toy-mlp", shape=(2,), dequantization="variable")
    with pytest.raises(RecipeError, match="takes integers without noise"):
        ir.zoo.build("toy-mlp", shape=(2,), task="classify", n_classes=2, dequantization="variational")
    with pytest.raises(RecipeError, match=r"--model\.dequantization variational is for integers such as pixels"):
        ir.Trainer(ir.load_config("toy-density", ["--model.dequantization", "variational"])).fit(tmp_path / "run")
