"""The zoo: published architectures, trainable everywhere, the same after saving, refusing what cannot be."""

import copy
import io
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from laws import close, frozen, gradients, norm
from torch import nn

import iresnet as ir
from iresnet.activations import ELU
from iresnet.bases import BASES
from iresnet.bijections.memory import MEMORY
from iresnet.bounds import upper_bound
from iresnet.config import WITHOUT
from iresnet.errors import IResNetError, RecipeError, UnknownNameError
from iresnet.lipschitz import DenseConcat
from iresnet.networks import BatchNorm
from iresnet.normalization import PowerIteration
from iresnet.zoo import ARCHITECTURES, LOGDETS, SOLVERS, block, build, make_logdet, make_solver, options_of

TASKS = ("density", "classify", "hybrid")
PLAIN = ("resnet",)
INVERTIBLE = [name for name in ARCHITECTURES if name not in PLAIN]
MODELS = [*((name, task) for name in INVERTIBLE for task in TASKS), *((name, "classify") for name in PLAIN)]
TINY = {"blocks": (1, 2), "strides": (1, 2), "hidden": 6}


def tiny(name: str, task: str = "density", **options):
    """A small model of any architecture, and data for it: images, or vectors if it takes no images."""
    parameters = options_of(ARCHITECTURES[name])
    image = isinstance(parameters["blocks"].default, tuple)
    shape = (2, 4, 8) if image else (4,)
    options = {k: v for k, v in TINY.items() if k in parameters} | ({} if image else {"blocks": 2}) | options
    x = 256 * torch.rand(6, *shape) if image else torch.randn(6, *shape)
    return build(name, shape=shape, task=task, n_classes=3, **options), x


def loss_of(model, x):
    y = torch.arange(len(x)) % 3
    if isinstance(model, ir.Flow):
        return -model.log_prob(x).mean()
    if isinstance(model, ir.Classifier):
        return F.cross_entropy(model(x), y)
    log_prob, logits = model.log_prob_and_logits(x)
    return F.cross_entropy(logits, y) - log_prob.mean()


# -- every architecture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_every_parameter_gets_a_gradient(name, task):
    model, x = tiny(name, task)
    if task != "density":
        model.head.eval()  # batch norm in train mode takes the last bias away again
    loss_of(model, x).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert bool(value.grad.isfinite().all()), parameter
        assert bool((value.grad != 0).any()), parameter


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_float64_end_to_end(name, task):
    model, x = tiny(name, task)
    model.double()
    loss = loss_of(model, x.double())
    assert loss.dtype == torch.float64
    loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float64}
    flow = getattr(model, "flow", model)
    if task != "classify":
        assert flow.sample(2).dtype == torch.float64


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_a_saved_model_loads_into_a_new_one_bit_for_bit(name, task):
    options = {} if name in PLAIN else {"logdet": "exact"}
    model, x = tiny(name, task, **options)
    for _ in range(2):  # moves the power iteration and the batch norm, initializes the actnorm
        loss_of(model, x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded, _ = tiny(name, task, **options)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(model)):
        close(loss_of(other.eval(), x), loss_of(model.eval(), x), 0.0)
        close(loss_of(other.train(), x), loss_of(copy.deepcopy(model).train(), x), 0.0)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_models_are_invertible_certified_and_sampled(name):
    flow, x = tiny(name, logdet="exact", solver={"name": "anderson", "atol": 1e-10})
    flow.double()
    flow.log_prob(x.double())
    flow.eval()
    close(flow.decode(flow.encode(x.double())), x.double(), 1e-6)
    certificate = ir.certify(flow)
    assert certificate.certified
    assert len(certificate.blocks) == sum(isinstance(m, ir.ResidualBlock) for m in flow.modules())
    assert flow.sample(2).shape == (2, *x.shape[1:])
    assert flow.encode(x.double()).shape == (6, x[0].numel())


@pytest.mark.parametrize("actnorm", [True, False])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_actnorm_stands_before_each_block_or_nowhere(name, actnorm):
    model, _ = tiny(name, actnorm=actnorm)
    kinds = [type(m) for m in model.modules() if isinstance(m, (ir.ActNorm, ir.ResidualBlock))]
    expected = ([ir.ActNorm, ir.ResidualBlock] if actnorm else [ir.ResidualBlock]) * (len(kinds) // (1 + actnorm))
    assert kinds == expected + ([ir.ActNorm] if actnorm and name == "residual-flow" else [])


@pytest.mark.parametrize("name", INVERTIBLE)
def test_options_reach_every_block(name):
    options = {"coeff": 0.6, "activation": "maxmin", "n_power_steps": 4, "logdet": "exact", "solver": "fixed-point"}
    model, _ = tiny(name, **options, base="standard-normal")
    blocks = [m for m in model.modules() if isinstance(m, ir.ResidualBlock)]
    layers = [m for m in model.modules() if isinstance(m, PowerIteration)]
    assert {type(b.logdet) for b in blocks} == {ir.Exact}
    assert {type(b.solver) for b in blocks} == {ir.FixedPointIteration}
    assert {(layer.coeff, layer.n_steps) for layer in layers} == {(0.6, 4)}
    assert any(isinstance(m, ir.MaxMin) for m in model.modules())
    assert isinstance(model.base, ir.StandardNormal)
    for memory in MEMORY:
        model, _ = tiny(name, memory=memory)
        assert {m.memory for m in model.modules() if isinstance(m, ir.ResidualBlock)} == {memory}


@pytest.mark.parametrize("name", INVERTIBLE)
def test_dense_blocks_and_other_norms_make_models_that_certify_and_invert(name):
    model, x = tiny(name, block="dense", coeff=0.95, activation="clipswish", normalization="linf")
    model(x)
    model.double().eval()
    maps = [m.g for m in model.modules() if isinstance(m, ir.ResidualBlock)]
    assert all(isinstance(layer, DenseConcat) for g in maps for layer in g[:-1])
    assert ir.certify(model).certified
    close(model.decode(model.encode(x.double())), x.double(), 1e-3)


def test_dense_blocks_of_an_architecture_that_has_none_are_refused():
    with pytest.raises(RecipeError, match="no dense blocks, got the block 'dense-implicit'"):
        block(partial(ir.networks.mlp, 2, 4), block="dense-implicit")


# -- as published ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_power_iteration(monkeypatch):
    monkeypatch.setattr(PowerIteration, "iterate", lambda *_: None)


def bottleneck(channels: int, hidden: int) -> int:
    return 2 * 9 * channels * hidden + hidden**2 + 2 * hidden + channels


def block_shapes(model):
    """(channels, height, width, hidden) of every residual block, in order."""
    layers = [
        [m for m in b.g if isinstance(m, ir.LipschitzConv2d)]
        for b in model.modules()
        if isinstance(b, ir.ResidualBlock)
    ]
    assert all([layer.kernel_size for layer in three] == [(3, 3), (1, 1), (3, 3)] for three in layers)
    return [(a.in_channels, *a.image_size, a.out_channels) for a, _, _ in layers]


def first_layers(model):
    return [type(b.g[0]) is ELU for b in model.modules() if isinstance(b, ir.ResidualBlock)]


@pytest.mark.usefixtures("_no_power_iteration")
def test_the_classifier_of_2019():
    model = build("iresnet", shape=(3, 32, 32), task="classify", n_classes=10, injective_pad=13)
    assert block_shapes(model) == [(16, 32, 32, 32)] * 7 + [(64, 16, 16, 64)] * 7 + [(256, 8, 8, 128)] * 7
    assert first_layers(model) == [False] + [True] * 20
    kinds = Counter(type(m) for m in model.modules())
    assert kinds[ir.ActNorm] == 21
    assert kinds[ir.Squeeze] == 2
    assert kinds[ir.InjectivePad] == 1
    assert [type(m) for m in model.head.children()] == [BatchNorm, nn.Linear]
    blocks = [(16, 32), (64, 64), (256, 128)]
    head = 2 * 256 + 256 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == 7 * sum(bottleneck(c, h) + 2 * c for c, h in blocks) + head


@pytest.mark.usefixtures("_no_power_iteration")
def test_the_density_model_of_2019():
    model = build("iresnet-multiscale", shape=(3, 32, 32))
    expected = [(12, 16, 16, 512)] * 16 + [(24, 8, 8, 512)] * 16 + [(48, 4, 4, 512)] * 16
    assert block_shapes(model) == expected
    assert first_layers(model) == [False] + [True] * 47
    kinds = Counter(type(m) for m in model.modules())
    assert kinds[ir.Squeeze] == 3
    assert kinds[ir.FactorOut] == 2
    assert isinstance(model.base, ir.DiagonalNormal)
    assert model.base.features == 3 * 32 * 32
    parameters = 16 * sum(bottleneck(c, 512) + 2 * c for c in (12, 24, 48)) + 2 * 3072
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(layer.coeff == 0.9 for layer in model.modules() if isinstance(layer, PowerIteration))


@pytest.mark.usefixtures("_no_power_iteration")
@pytest.mark.parametrize("factor_out", [False, True])
def test_the_residual_flow_of_2019(factor_out):
    model = build("residual-flow", shape=(3, 32, 32), factor_out=factor_out, logit=0.05, activation="lipswish")
    dense = [b for b in model.modules() if isinstance(b, ir.ResidualBlock) and isinstance(b.g[1], ir.LipschitzLinear)]
    scales = [(3, 32), (6, 16), (12, 8)] if factor_out else [(3, 32), (12, 16), (48, 8)]
    size = scales[-1][0] * 64
    kinds = Counter(type(m) for m in model.modules())
    assert (kinds[ir.ActNorm], kinds[ir.Squeeze], kinds[ir.FactorOut], len(dense)) == (53, 2, 2 * factor_out, 4)
    assert [type(m) for m in model.bijection.bijections[:3]] == [ir.Affine, ir.Logit, ir.ActNorm]
    convolutions = [m for m in model.modules() if isinstance(m, ir.LipschitzConv2d)][::3]
    assert [(m.in_channels, m.image_size[0]) for m in convolutions] == [scale for scale in scales for _ in range(16)]
    images = sum(16 * (bottleneck(c, 512) + 2 * c) for c, _ in scales) + 2 * 3
    vectors = 4 * (2 * size * 128 + 128**2 + 2 * 128 + size + 2 * size)
    slopes = 3 * (48 + 4) - 1  # of activations: the first block has none before its first convolution
    assert sum(p.numel() for p in model.bijection.parameters()) == images + vectors + slopes


def test_a_residual_flow_orders_channels_by_color_and_lets_the_second_half_leave():
    options = {"blocks": (0, 0), "dense_hidden": 0, "actnorm": False, "mean": 0.0, "std": 1.0}
    x = torch.rand(2, 3, 4, 6)
    squeezed = F.pixel_unshuffle(x, 2)
    close(build("residual-flow", shape=(3, 4, 6), **options).encode(x), squeezed.flatten(1))
    halves = [squeezed[:, 6:].flatten(1), squeezed[:, :6].flatten(1)]
    close(build("residual-flow", shape=(3, 4, 6), factor_out=True, **options).encode(x), torch.cat(halves, 1))
    first = build("residual-flow", shape=(3, 4, 6), squeeze=True, **options | {"blocks": (0,)})
    close(first.encode(x), squeezed.flatten(1))


def test_a_logit_takes_all_pixels_of_a_residual_flow():
    options = {"blocks": (0,), "dense_hidden": 0, "actnorm": False, "logit": 0.05}
    x = torch.tensor([[0.0, 64.0, 128.0, 256.0]]).view(1, 1, 2, 2)
    z = build("residual-flow", shape=(1, 2, 2), **options).encode(x)
    close(z, torch.tensor([[0.05, 0.275, 0.5, 0.95]]).logit())
    levels = build("residual-flow", shape=(1, 2, 2), mean=8.0, std=16.0, **options)
    close(levels.encode(x / 16), z)


@pytest.mark.parametrize("n_scales", [1, 2])
def test_the_first_convolution_of_a_residual_flow_has_no_activation_before_it_unless_there_is_one_scale(n_scales):
    model = build("residual-flow", shape=(1, 4, 4), blocks=(2,) * n_scales, hidden=3, dense_hidden=2)
    assert first_layers(model) == [n_scales == 1] + [True] * (2 * n_scales - 1 + 4)


# -- to compare with -------------------------------------------------------------------------------------------------


def test_the_plain_network_has_the_shapes_of_the_invertible_one():
    plain, x = tiny("resnet", "classify", squeeze=True, injective_pad=2)
    invertible, _ = tiny("iresnet", "classify", squeeze=True, injective_pad=2, actnorm=False)
    close(torch.tensor(plain.features(x).shape), torch.tensor(invertible.features(x).shape))
    shapes = [[p.shape for p in m.parameters() if p.dim() == 4] for m in (plain, invertible)]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 3 * sum(TINY["blocks"])


def test_a_plain_block_is_batch_norm_activation_and_convolution_three_times():
    model, x = tiny("resnet", "classify", blocks=(1,), strides=(1,), hidden=5, activation="elu")
    block, scaled = model.network[1], model.network[0](x)
    expected = scaled
    for i in (0, 3, 6):
        mean, variance = expected.mean((0, 2, 3), keepdim=True), expected.var((0, 2, 3), keepdim=True, correction=0)
        normal = (expected - mean) / (variance + 1e-5).sqrt()
        expected = F.conv2d(F.elu(normal), block.g[i + 2].weight, padding=block.g[i + 2].weight.shape[-1] // 2)
    close(block(scaled), scaled + expected, 1e-4)


def test_the_plain_network_says_that_it_has_no_inverse():
    model, x = tiny("resnet", "classify")
    for ask in (lambda: model.invert(model.features(x)), lambda: model.bijection):
        with pytest.raises(IResNetError, match="plain network without inverse"):
            ask()
    assert not ir.certify(model).certified
    assert not ir.seal(model).certified
    with pytest.raises(UnknownNameError, match="option of architecture 'resnet'"):
        tiny("resnet", "classify", coeff=0.9)


def test_its_recipe_is_that_of_the_invertible_one_without_the_options_that_it_lacks():
    options = {name: set(options_of(ARCHITECTURES[name])) for name in ARCHITECTURES}
    for name in PLAIN:
        assert set(WITHOUT[name]) - {"base"} == options["iresnet"] - options[name] | {"activation"}


@pytest.mark.parametrize("name", INVERTIBLE)
def test_without_a_coefficient_weights_are_free_and_nothing_is_proved(name):
    options = {"coeff": None, "block": "dense"} if name == "toy-mlp" else {"coeff": None}
    model, x = tiny(name, "classify", **options)
    layers = [m for m in model.modules() if isinstance(m, (ir.LipschitzConv2d, ir.LipschitzLinear))]
    for layer in layers:
        layer.weight = 3 * torch.randn_like(layer.unnormalized_weight)
    free = [layer.weight.detach().clone() for layer in layers]
    assert not ir.seal(model.eval()).certified
    for layer, weight in zip(layers, free, strict=True):
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.weight, layer.unnormalized_weight)
        assert not layer.normalization.constrained
    with pytest.warns(ir.errors.ConvergenceWarning, match="did not converge"):
        model.invert(model.features(x))


def test_images_are_scaled_and_vectors_are_not():
    image, _ = tiny("iresnet")
    vector, _ = tiny("toy-mlp")
    close(image.bijection.bijections[0](torch.tensor([[0.0, 128.0, 256.0]])), torch.tensor([[-0.5, 0.0, 0.5]]))
    close(vector.bijection.bijections[0](torch.tensor([[3.0]])), torch.tensor([[3.0]]))


def test_the_multiscale_latent_holds_the_factored_halves_first():
    model, x = tiny("iresnet-multiscale", squeeze=False)
    z = model.eval().encode(x)
    parts = model.bijection.bijections
    after_first = ir.Chain(parts[:-1])(x)
    close(z[:, :32], after_first[:, :1].flatten(1))
    close(z[:, 32:], parts[-1].rest(after_first[:, 1:]))


# -- refusals --------------------------------------------------------------------------------------------------------

IMAGE = {"shape": (1, 8, 8), "blocks": (1,), "strides": (1,), "hidden": 4}

BAD = {
    "architecture": (lambda: build("iresnt", shape=(2,)), UnknownNameError, "did you mean 'iresnet'"),
    "task": (lambda: build("iresnet", shape=(2,), task="densty"), UnknownNameError, "did you mean 'density'"),
    "option": (lambda: build("iresnet", **IMAGE, hiden=4), UnknownNameError, "did you mean 'hidden'"),
    "base": (lambda: build("iresnet", **IMAGE, base="diagonal"), UnknownNameError, "did you mean 'diagonal-normal'"),
    "activation": (lambda: build("iresnet", **IMAGE, activation="relo"), UnknownNameError, "did you mean 'relu'"),
    "estimator": (lambda: build("iresnet", **IMAGE, logdet="krilov"), UnknownNameError, "did you mean 'krylov'"),
    "solver": (lambda: build("iresnet", **IMAGE, solver="andersen"), UnknownNameError, "did you mean 'anderson'"),
    "option of an estimator": (lambda: make_logdet({"name": "krylov", "n_step": 3}), UnknownNameError, "'n_steps'"),
    "option of a solver": (lambda: make_solver({"name": "anderson", "windw": 3}), UnknownNameError, "'window'"),
    "coefficient": (lambda: build("iresnet", **IMAGE, coeff=1.0), IResNetError, r"\(0, 1\)"),
    "density without coefficient": (lambda: build("iresnet", **IMAGE, coeff=None), RecipeError, "may fold space"),
    "density of a plain network": (lambda: build("resnet", **IMAGE), RecipeError, "without density"),
    "padded density": (lambda: build("iresnet", **IMAGE, injective_pad=2), RecipeError, "volume zero"),
    "padded hybrid": (lambda: build("iresnet", **IMAGE, injective_pad=2, task="hybrid"), RecipeError, "volume zero"),
    "odd size": (
        lambda: build("iresnet-multiscale", shape=(1, 28, 28), blocks=(1, 1, 1), hidden=4),
        RecipeError,
        "7x7 cannot be squeezed",
    ),
    "image of one row": (lambda: build("iresnet", **IMAGE | {"shape": (1, 1, 8), "strides": (2,)}), RecipeError, "1x8"),
    "lengths": (lambda: build("iresnet", **IMAGE | {"strides": (1, 2)}), RecipeError, "one entry a scale"),
    "hidden lengths": (lambda: build("iresnet", **IMAGE | {"hidden": (4, 4)}), RecipeError, "one entry a scale"),
    "stride": (lambda: build("iresnet", **IMAGE | {"strides": (3,)}), RecipeError, "1 or 2"),
    "vectors": (lambda: build("iresnet", shape=(5,)), RecipeError, "use toy-mlp"),
    "images for vectors": (lambda: build("toy-mlp", shape=(1, 8, 8)), RecipeError, "use iresnet"),
    "one number of blocks": (lambda: build("iresnet", **IMAGE | {"blocks": 1}), RecipeError, "one entry a scale"),
    "numbers of blocks for vectors": (lambda: build("toy-mlp", shape=(2,), blocks=(1, 2)), RecipeError, "blocks"),
    "no scales": (lambda: build("iresnet", **IMAGE | {"blocks": (), "strides": ()}), RecipeError, "one entry a scale"),
    "negative blocks for vectors": (lambda: build("toy-mlp", shape=(2,), blocks=-1), RecipeError, "blocks"),
    "negative blocks": (lambda: build("iresnet", **IMAGE | {"blocks": (-1,)}), RecipeError, "blocks"),
    "no hidden channels": (lambda: build("iresnet", **IMAGE | {"hidden": 0}), IResNetError, "positive"),
    "no classes": (lambda: build("iresnet", **IMAGE, task="classify"), IResNetError, "at least 2 classes"),
    "maxmin of odd channels": (
        lambda: build("iresnet", **IMAGE | {"hidden": 3}, activation="maxmin"),
        IResNetError,
        "even",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_with_advice(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("registry", "make"), [(LOGDETS, make_logdet), (SOLVERS, make_solver)], ids=["logdet", "solver"]
)
def test_names_build_what_they_say(registry, make):
    for name, kind in registry.items():
        made = make(name)
        assert type(made) is type(make({"name": name})) is kind
        assert make(made) is made
        assert repr(made).startswith(kind.__name__)


def test_without_a_name_there_are_the_defaults():
    assert make_logdet(None) is None
    assert isinstance(make_solver(None), ir.Anderson)


@pytest.mark.parametrize("name", BASES)
def test_every_base_builds_and_trains(name):
    model, x = tiny("toy-mlp", base=name)
    assert type(model.base) is BASES[name]
    inputs = list(model.parameters())
    assert all(bool(g.isfinite().all()) for g in gradients(loss_of(model, x), inputs))


# -- the maps of the blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preactivation", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_mlp_has_the_depth_and_the_bound_that_it_says(depth, preactivation):
    g = frozen(ir.networks.mlp(3, 5, depth=depth, coeff=0.8, preactivation=preactivation), scale=100.0)
    assert isinstance(g[0], ELU) == preactivation
    layers = [m for m in g if isinstance(m, ir.LipschitzLinear)]
    assert [(m.in_features, m.out_features) for m in layers] == list(
        zip([3] + [5] * (depth - 1), [5] * (depth - 1) + [3], strict=True)
    )
    assert isinstance(g[-1], ir.LipschitzLinear)
    assert upper_bound(g) == pytest.approx(0.8**depth, rel=1e-6)
    assert norm(g, torch.randn(20, 3).double()) <= 0.8**depth * (1 + 1e-6)


@pytest.mark.parametrize("preactivation", [True, False])
def test_the_bottleneck_is_activation_and_convolution_three_times(preactivation):
    g = ir.networks.conv_bottleneck((2, 4, 6), 5, preactivation=preactivation)
    kinds = [ELU, ir.LipschitzConv2d] * 3
    assert all(isinstance(m, kind) for m, kind in zip(g, kinds if preactivation else kinds[1:], strict=True))
    assert [m.kernel_size[0] for m in g if isinstance(m, ir.LipschitzConv2d)] == [3, 1, 3]
    for bad in ({"shape": (0, 4, 4), "hidden": 2}, {"shape": (1, 4, 4), "hidden": 0}):
        with pytest.raises(IResNetError, match="must be positive"):
            ir.networks.conv_bottleneck(**bad)
    with pytest.raises(IResNetError, match="must be positive"):
        ir.networks.mlp(2, 4, depth=0)
