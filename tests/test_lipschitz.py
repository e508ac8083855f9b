"""Contractive layers and their bounds against the singular values of the dense operator."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import close, dense_jacobian, frozen, gradients, lipschitz_layers, norm, randn
from torch import nn

import iresnet as ir
from iresnet.activations import ACTIVATIONS, make_activation
from iresnet.bounds import BOUNDS, _dense_operator, _largest_singular_value, _torus_norm, lower_bound, upper_bound
from iresnet.context import ContextShift, Shift
from iresnet.errors import IResNetError
from iresnet.lipschitz import DenseConcat, LipschitzLayer, hold_weights
from iresnet.normalization import PowerIteration
from iresnet.operators import same_conv, same_conv_transpose

pytestmark = pytest.mark.usefixtures("default_device")


def conv(in_channels, out_channels, kernel_size, height, width, coeff=0.7):
    return ir.LipschitzConv2d(in_channels, out_channels, kernel_size, coeff, image_size=(height, width))


LAYERS = {
    "linear": lambda: ir.LipschitzLinear(6, 4, coeff=0.7),
    "wide linear": lambda: ir.LipschitzLinear(3, 9, coeff=0.7, bias=False),
    "3x3": lambda: conv(2, 3, 3, 4, 4),
    "1x1": lambda: conv(4, 3, 1, 5, 4),
    "even": lambda: conv(2, 2, 2, 4, 5),
    "larger than half of the image": lambda: conv(2, 2, 5, 4, 4),
    "larger than the image": lambda: conv(1, 2, 4, 2, 3),
    "one channel": lambda: conv(1, 1, 3, 4, 5),
    "not square": lambda: conv(3, 2, (4, 3), 3, 7),
    "one row": lambda: conv(2, 2, (1, 3), 1, 9),
    "one pixel": lambda: conv(2, 3, 3, 1, 1),
}


def large(layer):
    """A layer in float64 of large weights, whose own estimate of their norm has not converged."""
    layer.unnormalized_weight.data.mul_(10)
    return layer.double().eval()


def point(layer):
    if isinstance(layer, nn.Linear):
        return randn(1, layer.in_features)
    return randn(1, layer.in_channels, *layer.image_size)


def size(layer):
    return norm(layer, point(layer))


# -- normalization ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_large_weight_is_scaled_to_the_coefficient(name):
    layer = frozen(LAYERS[name](), scale=30.0)
    assert size(layer) == pytest.approx(0.7, abs=1e-6)
    ratio = layer.unnormalized_weight / layer.weight
    close(ratio, ratio.flatten()[0].expand_as(ratio))


@pytest.mark.parametrize("name", LAYERS)
def test_a_small_weight_passes_unchanged(name):
    layer = frozen(LAYERS[name](), scale=1e-3)
    close(layer.weight, layer.unnormalized_weight, 0.0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_the_normalized_weight_goes_through_the_norm(name):
    layer = frozen(LAYERS[name](), scale=30.0)
    weight = layer.unnormalized_weight
    upstream = torch.randn_like(weight)

    def by_svd(weight):
        def plain(x):
            return x @ weight.T if weight.dim() == 2 else same_conv(x, weight)

        return weight * 0.7 / torch.linalg.matrix_norm(dense_jacobian(plain, point(layer))[0], 2)

    actual = gradients((upstream * layer.weight).sum(), [weight])
    close(actual, gradients((upstream * by_svd(weight)).sum(), [weight]), 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_power_iteration_moves_at_use_in_train_mode_only(name):
    layer = LAYERS[name]().double()
    start = layer.normalization.u.clone()
    layer.eval()(point(layer))
    close(layer.normalization.u, start, 0.0)
    with torch.no_grad():
        layer.unnormalized_weight.add_(3 * torch.randn_like(layer.unnormalized_weight))
    layer.train()
    for _ in range(300):
        layer(point(layer))
    assert size(layer.eval()) == pytest.approx(0.7, abs=1e-2)
    assert layer.normalization.u.norm() == pytest.approx(1.0)


@pytest.mark.parametrize("name", LAYERS)
def test_two_uses_before_one_backward_have_each_their_own_gradient(name):
    layer = LAYERS[name]().double().train()
    with torch.no_grad():
        layer.unnormalized_weight.mul_(10)
    x, twin = point(layer), copy.deepcopy(layer)
    parts = [gradients(twin(x).square().sum(), [twin.unnormalized_weight])[0] for _ in range(2)]
    both = layer(x).square().sum() + layer(x).square().sum()
    close(gradients(both, [layer.unnormalized_weight])[0], sum(parts))


def test_a_1x1_convolution_iterates_on_one_pixel():
    assert conv(4, 3, 1, 5, 4).normalization.u.shape == (1, 4, 1, 1)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_each_use_in_train_mode_runs_n_steps_iterations(n_steps):
    layer = ir.LipschitzLinear(5, 6, n_steps=n_steps).double().train()
    layer.normalization.tol = 0.0
    weight, u = layer.unnormalized_weight, layer.normalization.u[0].clone()
    for _ in range(n_steps):
        u = weight.T @ (weight @ u)
    layer(randn(2, 5))
    close(layer.normalization.u[0], u / u.norm())


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_that_was_zero_is_normalized_again_when_it_is_not(name):
    layer = LAYERS[name]().double().train()
    weight = layer.unnormalized_weight.detach().clone()
    with torch.no_grad():
        layer.unnormalized_weight.zero_()
        layer(point(layer))
        assert bool(layer.weight.isfinite().all())
        layer.unnormalized_weight.copy_(100 * weight)
        for _ in range(100):
            layer(point(layer))
    assert size(layer.eval()) < 0.75


@pytest.mark.parametrize("name", LAYERS)
def test_saved_loaded_and_copied_layers_are_identical_bit_for_bit(name):
    layer = LAYERS[name]()
    for _ in range(3):
        layer(point(layer).float())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = LAYERS[name]()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = point(layer).float()
    expected = layer.eval()(x)
    for other in (loaded.eval(), copy.deepcopy(layer)):
        close(other(x), expected, 0.0)
        other.train()(x)
    close(layer(x), expected, 0.0)


def test_bad_layers_are_refused():
    for coeff in (0.0, 1.0, -0.5, 1.5, float("nan")):
        for make in (lambda c: ir.LipschitzLinear(2, 2, c), lambda c: conv(1, 1, 3, 4, 4, c)):
            with pytest.raises(IResNetError, match=r"\(0, 1\)"):
                make(coeff)
    with pytest.raises(IResNetError, match="at least 1"):
        ir.LipschitzLinear(2, 2, n_steps=0)
    with pytest.raises(IResNetError, match="input features"):
        ir.LipschitzLinear(2, 2).weight = torch.zeros(2, 3)


@pytest.mark.parametrize("use", [lambda layer, x: layer(x), ir.linearize], ids=["forward", "linearize"])
def test_another_image_size_than_declared_is_refused(use):
    with pytest.raises(IResNetError, match=r"4x5, got 5x4; build the layer with image_size=\(5, 4\)"):
        use(conv(1, 1, 3, 4, 5), torch.zeros(1, 1, 5, 4))


# -- weights held for a while ----------------------------------------------------------------------------------------


@pytest.fixture
def uses(monkeypatch):
    """How often a weight was normalized, and a norm iterated."""
    calls = {"normalize": 0, "iterate": 0}

    def count(name, original):
        def counting(self, *args):
            calls[name] += 1
            return original(self, *args)

        monkeypatch.setattr(PowerIteration, name, counting)

    for name in calls:
        count(name, getattr(PowerIteration, name))
    return calls


@pytest.mark.parametrize("iterate", [True, False])
def test_held_weights_are_computed_once_and_let_go(iterate, uses):
    g, x = ir.networks.mlp(3, 4).train(), torch.randn(2, 3)
    uses.update(normalize=0, iterate=0)
    with hold_weights(g, iterate=iterate):
        held = g[0].weight
        with hold_weights(g), hold_weights(g, iterate=False):
            g(x)
        assert g[0].weight is held
        ir.linearize(g, g(x)).jvp(x)
    assert uses == {"normalize": 3, "iterate": 3 * iterate}
    assert g[0].weight is not held
    assert held.requires_grad


def test_weights_are_let_go_after_an_error():
    g = ir.networks.mlp(3, 4)
    with pytest.raises(IResNetError, match="takes 3 features"), hold_weights(g):
        g(torch.zeros(1, 5))
    with pytest.raises(ZeroDivisionError), hold_weights(g):
        _ = 1 / 0
    assert all(layer.normalization.held is None for layer in lipschitz_layers(g))


# -- the operator and its bounds -------------------------------------------------------------------------------------

SIZES = st.integers(1, 6)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), SIZES, SIZES)


@given(SHAPES)
def test_same_convolution_agrees_with_torch_and_its_transpose_is_the_transpose(shape):
    fan_in, fan_out, kh, kw, height, width = shape
    weight, x, y = randn(fan_out, fan_in, kh, kw), randn(2, fan_in, height, width), randn(2, fan_out, height, width)
    # Zeros on all sides, then a valid convolution: the definition.
    padded = nn.functional.pad(x, ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2))
    close(same_conv(x, weight), nn.functional.conv2d(padded, weight))
    close((same_conv(x, weight) * y).sum(), (x * same_conv_transpose(y, weight)).sum())


@given(SHAPES)
def test_lower_bound_true_norm_dense_bound_and_torus_bound_stand_in_this_order(shape):
    fan_in, fan_out, *kernel, height, width = shape
    layer = large(conv(fan_in, fan_out, tuple(kernel), height, width))
    weight = layer.weight.detach()
    true = size(layer)
    dense = _largest_singular_value(_dense_operator(weight, (height, width)))
    torus = _torus_norm(weight, (height, width))
    (bound,) = ir.certify(layer).layers
    assert bound.lower <= true * (1 + 1e-9)
    assert bound.lower >= 0.99 * true
    assert true <= dense <= true * (1 + 1e-8)
    assert true <= torus * (1 + 1e-9)
    assert true <= bound.upper


@pytest.mark.parametrize("name", LAYERS)
def test_the_bound_of_a_layer_is_tight(name):
    layer = frozen(LAYERS[name]())
    assert size(layer) <= upper_bound(layer) <= size(layer) * (1 + 1e-8)
    layer.float()
    assert size(copy.deepcopy(layer).double()) <= upper_bound(layer) * (1 + 1e-6)


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_upper_and_lower_bounds_hold_the_true_norm_between_them_at_every_size(side, kernel):
    layer = large(conv(1, 1, kernel, side, side))
    basis = torch.eye(side * side, dtype=torch.float64).reshape(-1, 1, side, side)
    true = float(torch.linalg.matrix_norm(same_conv(basis, layer.weight.detach()).flatten(1), 2))
    assert lower_bound(layer) <= true * (1 + 1e-9)
    assert true <= upper_bound(layer) <= true * (1 + 1e-8)
    assert true <= _torus_norm(layer.weight.detach(), (side, side)) * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["density", "classify", "toy"])
def test_upper_and_lower_bounds_hold_the_true_norm_of_trained_and_loaded_layers_between_them(kind, trained):
    model = ir.load(trained(kind))
    certificate = ir.certify(model)
    layers = lipschitz_layers(model)
    for layer, bound in zip(layers, certificate.layers, strict=True):
        exact = copy.deepcopy(layer).double()
        exact.normalization.hold(layer.normalization.normalize(layer.unnormalized_weight).detach().double())
        true = size(exact)
        assert bound.lower <= true * (1 + 1e-9)
        assert true <= bound.upper * (1 + 1e-9)
        assert bound.lower >= 0.9 * true
    assert len(layers) == len(certificate.layers) > 5


@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_torus_bound_approaches_the_norm_as_the_image_grows(side):
    layer = frozen(conv(2, 2, 3, side, side))
    torus = _torus_norm(layer.weight.detach(), (side, side))
    assert size(layer) < torus < size(layer) * (1 + 4 / side**1.5)


@pytest.mark.parametrize("max_numbers", [1, 20])
def test_the_torus_bound_is_the_same_in_parts(max_numbers):
    weight = randn(3, 2, 3, 2)
    assert _torus_norm(weight, (4, 5), max_numbers=max_numbers) == pytest.approx(_torus_norm(weight, (4, 5)))


def test_a_large_layer_takes_the_torus_bound():
    layer = ir.LipschitzConv2d(8, 8, 3, image_size=(16, 16)).double().eval()
    assert upper_bound(layer) == pytest.approx(_torus_norm(layer.weight.detach(), (16, 16)), rel=1e-13)


@pytest.mark.parametrize("kernel", [(1, 2), (2, 2), (3, 3), (3, 1)])
def test_the_torus_bound_holds_for_the_worst_kernel_that_gradient_ascent_finds(kernel):
    weight = randn(1, 1, *kernel).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    worst = 0.0
    for _ in range(60):
        true = torch.linalg.matrix_norm(dense_jacobian(lambda x: same_conv(x, weight), randn(1, 1, 3, 2))[0], 2)
        worst = max(worst, float(true.detach()) / _torus_norm(weight.detach(), (3, 2)))
        optimizer.zero_grad()
        (-true / weight.norm()).backward()
        optimizer.step()
    assert 0.5 < worst <= 1 + 1e-9


OTHERS = {
    "plain linear": (lambda: nn.Linear(5, 4), (5,)),
    "plain convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2), (2, 6, 5)),
    "dilated and grouped": (lambda: nn.Conv2d(4, 6, (2, 3), padding=3, dilation=2, groups=2), (4, 5, 4)),
    "constant kernel": (lambda: constant(nn.Conv2d(1, 1, 3, padding=1)), (1, 9, 9)),
    "dense concatenation": (lambda: concat(ir.LipschitzLinear(5, 3)), (5,)),
    "dense concatenation of images": (lambda: ir.networks.dense_concat((2, 4, 3), 3), (2, 4, 3)),
    "sequence": (lambda: ir.networks.conv_bottleneck((2, 4, 3), 5), (2, 4, 3)),
    "feed-through": (lambda: ir.FeedThrough(4, 6, normalization="cayley"), (4,)),
    "elu of a large alpha": (lambda: nn.ELU(alpha=2.5), (7,)),
    "elu of a negative alpha": (lambda: nn.ELU(alpha=-2.5), (7,)),
    "tanh": (nn.Tanh, (7,)),
    "shift by a context": (lambda: Shift(torch.ones(1, 7)), (7,)),
    "identity": (nn.Identity, (7,)),
    "flatten": (nn.Flatten, (7,)),
} | {name: (lambda name=name: make_activation(name), (8,)) for name in ACTIVATIONS}


def concat(f):
    layer = DenseConcat(f)
    nn.init.normal_(layer.eta)
    return layer


def constant(layer):
    nn.init.ones_(layer.weight)
    return layer


@pytest.mark.parametrize("p", [1, 2, float("inf")])
@pytest.mark.parametrize("name", OTHERS)
def test_no_jacobian_is_larger_than_the_bound(name, p):
    make, shape = OTHERS[name]
    g = make().double()
    bound = upper_bound(g, p)
    assert bound < float("inf") or (name == "feed-through" and p != 2)
    jacobians = dense_jacobian(g, torch.cat([scale * randn(10, *shape) for scale in (0.01, 1.0, 10.0)])).detach()
    true = float(torch.linalg.matrix_norm(jacobians, p).max())
    assert true <= bound * (1 + 1e-12)
    assert lower_bound(g, p, search_steps=20) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_the_constant_of_a_dense_concatenation_is_attained(p):
    layer = concat(ir.LipschitzLinear(5, 3)).double().eval()
    attained = torch.linalg.matrix_norm(dense_jacobian(layer, randn(1, 5))[0].detach(), p)
    assert float(attained) == pytest.approx(upper_bound(layer, p), rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, float("inf")])
@pytest.mark.parametrize("name", LAYERS)
def test_power_iteration_in_a_p_norm_comes_close_to_the_norm_of_a_layer(name, p):
    layer = frozen(LAYERS[name]())
    true = float(torch.linalg.matrix_norm(dense_jacobian(layer, point(layer))[0].detach(), p))
    assert (0.99 if p == 2 else 0.6) * true <= lower_bound(layer, p) <= true * (1 + 1e-9)
    assert true <= upper_bound(layer, p) * (1 + 1e-9)


def test_the_search_comes_closer_than_power_iteration_at_random_points():
    g = frozen(ir.networks.conv_bottleneck((1, 4, 4), 4))
    assert lower_bound(g) < lower_bound(g, search_steps=200) <= upper_bound(g)


def test_a_norm_without_bounds_is_refused():
    with pytest.raises(IResNetError, match="1, 2 and infinity"):
        upper_bound(nn.ReLU(), 3.0)


def test_every_bound_is_among_the_cases():
    modules = [make() for make, _ in OTHERS.values()] + [make() for make in LAYERS.values()]
    without_context = {ContextShift.forward}  # a Shift at each context
    assert set(BOUNDS) - without_context <= {type(m).forward for m in modules}, "add a layer of the new bound to OTHERS"


def test_a_new_layer_is_certified_once_it_has_a_shape_and_a_bound(monkeypatch):
    class PerRow(LipschitzLayer):
        input_shape = (5, 3)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(3 * torch.eye(3) + torch.randn(3, 3))
            self._normalize("gram", coeff=0.8)

        def forward(self, x):
            return x @ self.weight.mT

    def bound(layer, p):
        return float(torch.linalg.matrix_norm(layer.weight, p)) * (1 + 1e-10)

    monkeypatch.setitem(BOUNDS, PerRow.forward, bound)
    certificate = ir.certify(ir.ResidualBlock(PerRow().double()))
    assert certificate.certified
    assert 0.79 < certificate.layers[0].lower <= certificate.layers[0].upper <= 0.8 * (1 + 1e-9)


def test_a_forward_that_is_not_the_class_s_own_has_no_bound():
    hooked, patched = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda _module, _args, y: 2 * y)
    patched.forward = lambda x: 2 * x
    steps = nn.Softplus(threshold=0.1)  # jumps from softplus(x) to x there
    reflecting = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    for layer in (hooked, patched, steps, reflecting, nn.GELU(), nn.Sequential(nn.ReLU(), nn.GELU())):
        assert upper_bound(layer) == float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_have_no_bound(value):
    layer, zero = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.zeros_(zero.weight)
    assert upper_bound(nn.Sequential(nn.GELU(), zero)) == float("inf")
    assert upper_bound(layer) == upper_bound(nn.Sequential(nn.Tanh(), layer)) == float("inf")


# -- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [-5.0, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_never_stretch(name, b):
    activation = make_activation(name).double()
    for parameter in activation.parameters():  # the trained ones too
        nn.init.constant_(parameter, b)
    # Pairs of values, since some activations compare channels.
    grid = torch.cartesian_prod(*[torch.linspace(-12, 12, 241, dtype=torch.float64)] * 2)
    assert norm(activation, grid) <= 1 + 1e-12
    step = 0.05 * randn(*grid.shape)
    assert bool(((activation(grid + step) - activation(grid)).norm(dim=1) <= step.norm(dim=1) * (1 + 1e-9)).all())


ROOT = 1.199678640257734
"""Of u tanh u = 1: the slopes of swish, x sigmoid(x), are largest and least at -2u and 2u."""

WIDENING = {
    "cpila": (4 / math.e / 1.06, math.hypot(1, 19 * math.exp(-4)) / 1.06, 1 / 1.06),
    "clipswish": (ROOT / 1.1044, math.sqrt((1 + ROOT**2) / 2) / 1.1044, (1 + ROOT) / 2 / 1.1044),
}
"""Activations of two channels for each, and their constants in the norms 1, 2 and infinity."""


@pytest.mark.parametrize(("name", "b"), [("cpila", None), ("clipswish", -5.0), ("clipswish", 0.5), ("clipswish", 20.0)])
def test_the_constants_of_activations_that_widen_are_attained_and_no_larger(name, b):
    assert ROOT * math.tanh(ROOT) == pytest.approx(1, abs=1e-15)
    activation = make_activation(name).double()
    for parameter in activation.parameters():
        nn.init.constant_(parameter, b)
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)[:, None]
    x = x if b is None else x / math.log1p(math.exp(b))
    slopes = ir.linearize(activation, x).jvp(torch.ones_like(x)).detach()  # of the two channels
    for p, largest in zip((1, 2, math.inf), WIDENING[name], strict=True):
        found = float(torch.linalg.vector_norm(slopes, p, dim=1).max())
        assert largest * (1 - 1e-6) <= found <= largest * (1 + 1e-9) <= upper_bound(activation, p) * (1 + 1e-9)
    assert upper_bound(activation, 1) == pytest.approx(WIDENING[name][0])


@pytest.mark.parametrize("name", WIDENING)
@pytest.mark.parametrize("make", [ir.networks.mlp, ir.networks.conv_bottleneck, ir.networks.dense_concat])
@pytest.mark.parametrize("preactivation", [False, True])
def test_layers_after_an_activation_that_widens_take_what_it_makes(make, preactivation, name):
    shape = 3 if make is ir.networks.mlp else (3, 4, 4)
    options = {} if make is ir.networks.dense_concat else {"preactivation": preactivation}
    g = make(shape, 5, activation=name, **options)
    x = torch.randn(2, 3) if make is ir.networks.mlp else torch.randn(2, *shape)
    assert g(x).shape == x.shape
    assert 0 < lower_bound(g) <= upper_bound(g) < 1


@pytest.mark.parametrize("name", ["maxmin", "householder"])
def test_activations_of_pairs_need_pairs(name):
    for use in (lambda g, x: g(x), ir.linearize):
        with pytest.raises(IResNetError, match="even number of them, got 3"):
            use(make_activation(name), torch.zeros(2, 3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_maxmin_are_permuted_exactly(dtype, layout):
    x = torch.randint(-2, 3, (5, 6, 4, 4)).to(dtype=dtype, memory_format=layout).requires_grad_()  # a fifth are ties
    weights = torch.randn(x.shape, requires_grad=True)
    order = x.detach().unflatten(1, (2, 3)).argsort(dim=1, descending=True, stable=True)
    wanted = torch.empty(5, 2, 3, 4, 4).scatter(1, order, weights.detach().unflatten(1, (2, 3))).flatten(1, 2)
    (gradient,) = torch.autograd.grad((ir.MaxMin()(x) * weights).sum(), x, create_graph=True)
    assert torch.equal(gradient, wanted.to(dtype))
    assert torch.equal(ir.linearize(ir.MaxMin(), x).vjp(weights), wanted)
    (of_weights,) = torch.autograd.grad((gradient * x.detach()).sum(), weights)
    assert torch.equal(of_weights, ir.MaxMin()(x).float())


@pytest.mark.parametrize("angle", [-3.0, -0.4, 0.0, 0.7, math.pi / 2, 2.2, 9.0])
def test_householder_reflects_what_lies_below_its_line(angle):
    g = make_activation("householder").double()
    nn.init.constant_(g.angle, angle)
    z = randn(100, 2)
    v = torch.tensor([math.sin(angle / 2), -math.cos(angle / 2)], dtype=torch.float64)
    reflected = z - 2 * (z @ v)[:, None] * v
    close(g(z), torch.where((z @ v < 0)[:, None], reflected, z))
    jacobians = dense_jacobian(g, z).detach()
    for p in (1, 2, float("inf")):  # reached, not only kept
        largest = float(torch.linalg.matrix_norm(jacobians, p).max())
        assert largest == pytest.approx(upper_bound(g, p))


def test_householder_starts_as_maxmin():
    x = randn(50, 6, 2, 2)
    close(make_activation("householder").double()(x), ir.MaxMin()(x), 1e-6)
