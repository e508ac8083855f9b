"""What models take: batches of their events, real numbers of their own type; also none, and half types."""

import copy
import threading

import numpy as np
import pytest
import torch
from laws import close
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import iresnet as ir
from iresnet.errors import IResNetError


def toy() -> ir.Flow:
    return ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4)


def image(**options) -> ir.Flow:
    return ir.zoo.build("iresnet-multiscale", shape=(3, 4, 4), blocks=(1,), strides=(2,), hidden=4, **options)


def unscaled() -> ir.Flow:
    """A flow that nobody told its event shape, without a layer that would notice."""
    mean = torch.zeros(3, 1, 1)
    return ir.Flow(ir.Chain([ir.Affine(mean, mean + 1), ir.Flatten((3, 4, 4))]), ir.StandardNormal(48))


def classifier() -> ir.Classifier:
    return ir.zoo.build("iresnet", shape=(3, 8, 8), task="classify", n_classes=3, blocks=(1,), strides=(1,), hidden=4)


SHAPES = {
    "one feature in a mean of three": (lambda: ir.Affine(torch.zeros(3)), (5, 1)),
    "one channel in a mean of three": (lambda: ir.Affine(torch.zeros(3, 1, 1)), (5, 1, 4, 4)),
    "an image in a mean of three": (lambda: ir.Affine(torch.zeros(3, 1, 1)), (3, 4, 4)),
    "a vector in a plain mean": (ir.Affine, (5,)),
    "a vector in a logit": (ir.Logit, (5,)),
    "three channels for one": (lambda: ir.ActNorm(1), (5, 3, 4, 4)),
    "one channel for three": (lambda: ir.ActNorm(3), (5, 1, 4, 4)),
    "a vector for three channels": (lambda: ir.ActNorm(3), (3,)),
    "vectors to squeeze": (ir.Squeeze, (5, 4)),
    "one image to squeeze": (ir.Squeeze, (1, 4, 4)),
    "another image to flatten": (lambda: ir.Flatten((3, 4, 4)), (5, 1, 4, 4)),
    "one image to flatten": (lambda: ir.Flatten((3, 4, 4)), (3, 4, 4)),
    "another image to factor out": (lambda: ir.FactorOut((4, 2, 2), ir.Flatten((2, 2, 2))), (5, 6, 2, 2)),
    "one image to pad": (lambda: ir.InjectivePad(2), (3, 4, 4)),
    "one feature for a layer": (lambda: ir.ResidualBlock(ir.networks.mlp(3, 4)), (5, 1)),
    "one channel for a layer": (lambda: ir.ResidualBlock(ir.networks.conv_bottleneck((3, 4, 4), 2)), (5, 1, 4, 4)),
    "a vector for a block": (lambda: ir.ResidualBlock(ir.networks.mlp(3, 4)), (3,)),
    "an image for a block": (lambda: ir.ResidualBlock(ir.networks.conv_bottleneck((3, 4, 4), 2)), (3, 4, 4)),
    "one feature for two": (toy, (5, 1)),
    "a vector for a flow": (toy, (2,)),
    "one channel for a flow": (image, (5, 1, 4, 4)),
    "as many elements": (image, (5, 12, 2, 2)),
    "one image for a flow": (image, (3, 4, 4)),
    "one channel for an unknown shape": (unscaled, (5, 1, 4, 4)),
    "one channel for a classifier": (classifier, (5, 1, 8, 8)),
    "one image for a classifier": (classifier, (3, 8, 8)),
    "a larger image for a classifier": (classifier, (5, 3, 10, 10)),
}


def uses(module: torch.nn.Module) -> list:
    names = ("__call__", "forward_and_logdet", "log_prob", "bits_per_dim", "encode", "features")
    return [getattr(module, name) for name in names if hasattr(module, name)]


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_are_refused_with_both(name):
    make, shape = SHAPES[name]
    module = make()
    sides = str(tuple(shape))[1:-1]
    for use in uses(module):
        if isinstance(module, ir.InjectivePad) and use.__name__ == "forward_and_logdet":
            continue
        with pytest.raises(IResNetError) as refused:
            use(torch.rand(shape))
        assert sides in str(refused.value) or sides.removeprefix("5, ") in str(refused.value)
    if len(shape) < 4 and "single event" in str(refused.value):
        assert "x[None]" in str(refused.value)


LATENTS = {
    "a vector for a flow": (toy, "decode", (2,)),
    "three features for two": (toy, "decode", (5, 3)),
    "images for a flow": (image, "decode", (5, 3, 4, 4)),
    "a shorter vector": (image, "invert", (5, 40)),
    "a vector to unflatten": (lambda: ir.Flatten((3, 4, 4)), "inverse", (48,)),
    "other vectors to unflatten": (lambda: ir.Flatten((3, 4, 4)), "inverse", (5, 96)),
    "other vectors factored out": (lambda: ir.FactorOut((4, 2, 2), ir.Flatten((2, 2, 2))), "inverse", (5, 15)),
    "three channels to unsqueeze": (ir.Squeeze, "inverse", (5, 3, 2, 2)),
    "too few channels to drop": (lambda: ir.InjectivePad(2), "inverse", (5, 2, 2, 2)),
    "one channel of three": (lambda: ir.ActNorm(3), "inverse", (5, 1, 2, 2)),
    "one feature of three": (lambda: ir.Affine(torch.zeros(3)), "inverse", (5, 1)),
    "a vector for a block": (lambda: ir.ResidualBlock(ir.networks.mlp(3, 4)), "inverse", (3,)),
}


@pytest.mark.parametrize("name", LATENTS)
def test_other_latents_are_refused(name):
    make, method, shape = LATENTS[name]
    with pytest.raises(IResNetError, match=r"got|drops"):
        getattr(make(), method)(torch.rand(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("make", [toy, image, classifier, lambda: ir.Affine(2.0, 3.0), lambda: ir.ActNorm(3), ir.Logit])
def test_integers_are_refused_with_what_to_do(make, dtype):
    module = make()
    shape = getattr(module, "event_shape", None) or (3, 4, 4)
    for use in uses(module):
        with pytest.raises(IResNetError, match=r"dequantize\(x, levels=256\)"):
            use(torch.ones(2, *shape, dtype=dtype))


def test_dequantized_pixels_have_the_density_of_their_integers():
    flow = image().eval()
    pixels = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8)
    noisy = ir.dequantize(pixels, levels=256, generator=torch.Generator().manual_seed(1))
    assert bool((noisy.floor() == pixels).all())
    close(flow.bits_per_dim(noisy), -flow.log_prob(noisy) / (48 * torch.tensor(2.0).log()), 1e-6)


@pytest.mark.parametrize("make", [toy, classifier, lambda: ir.ResidualBlock(ir.networks.mlp(2, 4))])
def test_other_types_are_refused_with_both(make):
    module = make()
    x = torch.rand(2, *(getattr(module, "event_shape", None) or (2,)))
    for use in uses(module):
        with pytest.raises(IResNetError, match=r"computes in float32, got float64; convert x with x\.float\(\)"):
            use(x.double())
        with pytest.raises(IResNetError, match="takes tensors, got ndarray"):
            use(np.asarray(x))
    with pytest.raises(IResNetError, match="computes in float64, got float32"):
        uses(copy.deepcopy(module).double())[0](x)


def test_latents_of_a_higher_type_are_refused_and_rounded_ones_are_not():
    flow = toy().eval()
    with pytest.raises(IResNetError, match="computes in float32, got float64"):
        flow.decode(torch.zeros(2, 2, dtype=torch.float64))
    block = ir.ResidualBlock(ir.networks.mlp(2, 4))
    assert block.inverse(torch.zeros(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


# -- no samples ------------------------------------------------------------------------------------------------------

ESTIMATORS = {
    "default": lambda: None,
    "exact": ir.Exact,
    "krylov": lambda: ir.Krylov(2),
    "krylov to a tolerance": lambda: ir.Krylov(tol=1e-2, n_probes=2, probe="hadamard"),
    "power series": ir.PowerSeries,
    "roulette": ir.RussianRoulette,
}


@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_samples_in_are_none_out(name, training, memory):
    for make in (toy, image):
        flow = make()
        for module in flow.modules():
            if isinstance(module, ir.ResidualBlock):
                module.memory = memory
        x = torch.zeros(0, *flow.event_shape, requires_grad=True)
        value = flow.train(training).log_prob(x, logdet=ESTIMATORS[name]())
        assert value.shape == (0,)
        value.sum().backward()
        assert x.grad.shape == x.shape
        assert flow.bits_per_dim(x).shape == (0,)
        assert flow.encode(x).shape == (0, flow.base.features)


@pytest.mark.parametrize("solver", [ir.Anderson(), ir.FixedPointIteration(), ir.NewtonKrylov()])
def test_no_latents_are_decoded_to_no_data(solver):
    flow = toy().eval()
    z = torch.zeros(0, 2, requires_grad=True)
    inversion = flow.invert(z, solver=solver)
    inversion.x.sum().backward()
    assert inversion.x.shape == z.grad.shape == (0, 2)
    assert "no samples" in str(inversion)
    assert flow.decode(z).shape == (0, 2)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "default"])
def test_reports_on_no_samples_print(name):
    jacobian = ir.linearize(lambda x: 0.5 * x, torch.zeros(0, 3))
    assert str(ESTIMATORS[name]().estimate(jacobian)) == "no samples"


def test_an_empty_batch_leaves_the_initialization_to_the_next():
    norm = ir.ActNorm(2)
    norm(torch.zeros(0, 2))
    assert not norm.initialized
    close(norm(3 + torch.randn(100, 2)).mean(0), torch.zeros(2), 1e-5)


def test_a_classifier_of_no_images():
    assert classifier().eval()(torch.zeros(0, 3, 8, 8)).shape == (0, 3)


# -- half types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_types_estimate_invert_and_train(dtype, name):
    flow = toy()
    x = torch.randn(6, 2)
    flow(x)
    exact = flow.eval().log_prob(x, logdet=ir.Exact())
    half = copy.deepcopy(flow).to(dtype)
    close(half.log_prob(x.to(dtype), logdet=ir.Exact()), exact, 0.1)
    value = half.log_prob(x.to(dtype), logdet=ESTIMATORS[name]())
    assert value.dtype == torch.float32
    close(value, exact, 2.0)
    z = half.encode(x.to(dtype))
    close(half.decode(z).float(), x, 0.1)
    (-half.train().log_prob(x.to(dtype), logdet=ESTIMATORS[name]()).mean()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in half.parameters())
    assert ir.seal(half).certified


# -- eval mode -------------------------------------------------------------------------------------------------------


def test_the_default_density_integrates_to_1_in_eval_mode():
    flow = ir.Flow(ir.Chain([ir.ResidualBlock(ir.networks.mlp(2, 32)) for _ in range(3)]), ir.StandardNormal(2)).eval()
    side = torch.linspace(-8, 8, 300)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_loaded_models_owe_nothing_to_chance():
    flow = ir.load("digits-density")
    x = 17 * torch.rand(3, 1, 8, 8)
    close(flow.log_prob(x), flow.log_prob(x), 0.0)
    close(flow.log_prob(x), flow.log_prob(x, logdet=ir.Exact()), 1e-6)


def test_the_default_density_of_many_dimensions_is_a_function_of_the_sample_alone():
    flow = ir.zoo.build("iresnet-multiscale", shape=(3, 8, 8), blocks=(2,), strides=(1,), hidden=8).eval()
    x = 256 * torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        value = flow.log_prob(x)
        close(flow.log_prob(x), value, 0.0)
        close(flow.log_prob(x[3:4]), value[3:4], 1e-4)
        assert float((value - flow.log_prob(x, logdet=ir.Exact())).abs().max()) < 0.1  # nats
        flow.train()
        assert not torch.equal(flow.log_prob(x), flow.log_prob(x))


# -- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_run_under_autocast_near_what_they_give_without(name, memory):
    for make in (toy, image):
        flow = make()
        x = torch.rand(4, *flow.event_shape)
        flow(x)
        exact = flow.eval().log_prob(x, logdet=ir.Exact()).detach()
        for module in flow.modules():
            if isinstance(module, ir.ResidualBlock):
                module.memory = memory
        for training in (True, False):
            x.requires_grad_().grad = None
            with torch.autocast("cpu", torch.bfloat16):
                value = flow.train(training).log_prob(x, logdet=ESTIMATORS[name]())
                value.sum().backward()
            assert bool(torch.isfinite(x.grad).all())
            close(value, exact, 0.1 if name == "exact" else 0.3)


# -- what would give a number and is none ----------------------------------------------------------------------------


class Broadcasting(torch.nn.Module):
    def forward(self, x):
        return 0.1 * x.mean(1, keepdim=True)


REFUSED = {
    "one feature of three in a base density": (lambda: ir.DiagonalNormal(3).log_prob(torch.zeros(4, 1)), r"\(N, 3\)"),
    "three features of two in a base density": (lambda: ir.StandardNormal(2).log_prob(torch.zeros(4, 3)), r"\(N, 2\)"),
    "one vector in a base density": (lambda: ir.StandardNormal(2).log_prob(torch.zeros(2)), r"got \(2,\)"),
    "a map that broadcasts, inverted": (
        lambda: ir.ResidualBlock(Broadcasting()).solve(torch.zeros(2, 3)),
        "keep the shape",
    ),
    "pixels in a logit": (lambda: ir.Logit()(torch.tensor([[2.0, 200.0]])), r"numbers in \[0, 1\], got 2 to 200"),
    "pixels beyond their levels": (lambda: ir.dequantize(torch.tensor([[300, -5]]), levels=256), r"0\.\.255"),
    "no levels": (lambda: ir.dequantize(torch.tensor([[0]]), levels=0), "at least 1"),
    "levels that round": (lambda: ir.dequantize(torch.tensor([[0]]), levels=2**25), "keeps apart"),
    "truths": (lambda: ir.dequantize(torch.tensor([[True]]), levels=2), "tensors of integers"),
    "an array": (lambda: ir.dequantize(np.zeros((1, 2), int), levels=2), "tensors of integers"),
    "the name of an estimator": (lambda: toy().log_prob(torch.rand(2, 2), logdet="exact"), r"logdet=ir\.Exact\(\)"),
    "the class of an estimator": (lambda: toy().log_prob(torch.rand(2, 2), logdet=ir.Exact), r"logdet=ir\.Exact\(\)"),
    "the name of a solver": (lambda: toy().invert(torch.rand(2, 2), solver="newton"), r"solver=ir\.NewtonKrylov\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_give_a_number_and_is_none_is_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(IResNetError, match=words):
        make()


class Unusual(torch.nn.Module):
    """A layer that cannot be copied, with a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.inner, self.lock = ir.LipschitzLinear(2, 2), threading.Lock()

    def forward(self, x):
        return self.inner(x)

    def get_extra_state(self):
        return "text"

    def set_extra_state(self, state):
        pass


def test_unusual_modules_are_not_certified():
    assert not ir.certify(ir.ResidualBlock(Unusual())).certified


LAYERS_WITHOUT_RULE = {
    "softsign": torch.nn.Softsign,
    "gelu": torch.nn.GELU,
    "linear": lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()),
    "encoder": lambda: torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
}


@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
@pytest.mark.parametrize("logdet", [ir.Exact(), ir.Krylov(2)])
@pytest.mark.parametrize("name", LAYERS_WITHOUT_RULE)
def test_layers_without_a_rule_run_under_autocast(name, logdet, memory):
    layers = [ir.LipschitzLinear(4, 4), LAYERS_WITHOUT_RULE[name](), ir.LipschitzLinear(4, 4)]
    block = ir.ResidualBlock(torch.nn.Sequential(*layers), logdet=logdet, memory=memory)
    x = torch.rand(3, 2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = block.forward_and_logdet(x)[1]
        value.sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    if isinstance(logdet, ir.Exact):
        close(value, block.eval().forward_and_logdet(x)[1], 0.1)


@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_around_models_with_any_memory_have_their_gradients(reentrant, memory):
    found = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        flow = toy().train()
        for module in flow.modules():
            if isinstance(module, ir.ResidualBlock):
                module.memory, module.logdet = memory, ir.Exact()
        x = torch.rand(4, 2, requires_grad=True)
        run(flow, x).sum().backward()
        found.append([x.grad, *(p.grad for p in flow.parameters() if p.grad is not None)])
    close(found[0], found[1], 1e-5)


@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
def test_maps_without_a_log_determinant_go_through_transforms(memory):
    flow = toy().eval()
    for module in flow.modules():
        if isinstance(module, ir.ResidualBlock):
            module.memory = memory
    x = torch.rand(2)
    expected = torch.autograd.functional.jacobian(lambda x: flow.encode(x[None])[0], x)
    close(torch.func.jacrev(lambda x: flow.encode(x[None])[0])(x), expected, 1e-6)


def test_an_inverse_refuses_dual_numbers_with_what_to_use():
    flow = toy().eval()
    with forward_ad.dual_level(), pytest.raises(IResNetError, match=r"torch\.func\.jvp"):
        flow.decode(forward_ad.make_dual(torch.rand(2, 2), torch.rand(2, 2)))
