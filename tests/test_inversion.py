"""Round trips of trained models, data -> latent -> data, for every solver and kind of image."""

import pytest
import torch
from laws import close

import iresnet as ir
from iresnet.data import dequantize, load
from iresnet.lipschitz import hold_weights
from iresnet.zoo import SOLVERS, make_solver

pytestmark = pytest.mark.usefixtures("default_device")

N = 20


def images(kind: str) -> torch.Tensor:
    """Images of 8 x 8 pixels on the scale of the data, 0 to 17, in float64."""
    generator = torch.Generator().manual_seed(0)
    digits = dequantize(load("digits").test.x[:N], levels=17, generator=generator).double()
    noise = torch.rand(digits.shape, generator=generator, dtype=torch.float64)
    return {
        "test images": digits,
        "uniform noise": 17 * noise,
        "constant": torch.linspace(0, 17, N).double().view(-1, 1, 1, 1).expand_as(digits),
        "black and white": 17.0 * (noise > 0.5),
        "values x 100": 100 * digits,
        "black, negative and huge": torch.tensor([0.0, -1e3, 1e5])
        .double()
        .view(-1, 1, 1, 1)
        .expand(3, *digits[0].shape),
    }[kind]


KINDS = ("test images", "uniform noise", "constant", "black and white", "values x 100", "black, negative and huge")


@pytest.fixture(scope="module", params=["density", "hybrid"])
def bijection(request, trained):
    """The bijection of a trained model, in float64, without the logit, which takes no values outside of the data's."""
    return ir.load(trained(request.param)).double().bijection


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_sample_comes_back_within_the_tolerance(bijection, solver, kind):
    x = images(kind)
    with hold_weights(bijection), torch.no_grad():
        inversion = ir.bijections.invert(bijection, bijection(x), solver=make_solver({"name": solver, "atol": 1e-9}))
    assert bool(inversion.converged.all()), inversion
    scale = bijection.bijections[0]
    error = (scale(inversion.x) - scale(x)).flatten(1).abs().amax(1)
    assert bool((error <= 1e-7 + 1e-12 * scale(x).flatten(1).abs().amax(1)).all()), error


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_report_names_every_block_and_bounds_its_error(bijection, solver):
    x, atol = images("test images"), 1e-6
    inputs = {}
    blocks = {name: module for name, module in bijection.named_modules() if isinstance(module, ir.ResidualBlock)}
    handles = [
        block.register_forward_pre_hook(lambda block, args, name=name: inputs.update({name: args[0]}))
        for name, block in blocks.items()
    ]
    with hold_weights(bijection), torch.no_grad():
        z = bijection(x)
        inversion = ir.bijections.invert(bijection, z, solver=make_solver({"name": solver, "atol": atol}))
    for handle in handles:
        handle.remove()
    assert [name for name, _ in inversion.solutions] == list(reversed(blocks))
    total = torch.stack([solution.evaluations for _, solution in inversion.solutions]).sum(0)
    assert inversion.evaluations.tolist() == total.tolist()
    # The block solved first was given the exact latents, so its error is its own.
    name, solution = inversion.solutions[0]
    error = (solution.value - inputs[name]).flatten(1).norm(dim=1)
    assert bool((error <= solution.error_bound).all())
    for _, solution in inversion.solutions:
        assert bool((solution.residual <= atol * 1.01).all())
        assert bool(solution.error_bound.isfinite().all())


def test_a_solver_that_stops_too_early_is_reported_by_block(trained):
    flow = ir.load(trained("density"))
    z = flow.encode(images("test images").float())
    inversion = flow.invert(z, solver=ir.FixedPointIteration(1e-7, max_steps=2))
    assert not bool(inversion.converged.any())
    assert "0 of 20 samples converged" in str(inversion)
    for module in flow.modules():
        if isinstance(module, ir.ResidualBlock):
            module.solver = ir.FixedPointIteration(1e-7, max_steps=2)
    with pytest.warns(ir.errors.ConvergenceWarning):
        x = flow.decode(z)
    close(x, inversion.x, 1e-6)
