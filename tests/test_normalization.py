"""Every normalization against dense singular values."""

import copy

import pytest
import torch
from laws import close

import iresnet as ir
from iresnet import normalization
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.lipschitz import hold_weights
from iresnet.normalization import NORMALIZATIONS, AbsoluteSums, GramIteration, normalize_all
from iresnet.operators import WeightStack, same_conv, same_conv_transpose, torus_matrices
from iresnet.rescaling import AlmostOrthogonal

pytestmark = pytest.mark.usefixtures("default_device")

LAYERS = {
    "linear": lambda name: ir.LipschitzLinear(5, 7, 0.8, normalization=name),
    "wide linear": lambda name: ir.LipschitzLinear(9, 2, 0.8, normalization=name),
    "1x1": lambda name: ir.LipschitzConv2d(4, 3, 1, 0.8, image_size=(5, 4), normalization=name),
    "3x3": lambda name: ir.LipschitzConv2d(2, 3, 3, 0.8, image_size=(6, 5), normalization=name),
    "even kernel": lambda name: ir.LipschitzConv2d(3, 2, 4, 0.8, image_size=(5, 7), normalization=name),
    "kernel larger than half": lambda name: ir.LipschitzConv2d(1, 1, 5, 0.8, image_size=(4, 4), normalization=name),
}


CASES = [(kind, name) for name in NORMALIZATIONS for kind in LAYERS if name != "cayley" or kind in ("linear", "1x1")]


def norm(layer) -> float:
    """Norm of the layer's matrix, in the geometry of its normalization."""
    weight = layer.weight.detach()
    if weight.dim() == 4:
        basis = torch.eye(layer.in_channels * layer.image_size[0] * layer.image_size[1], dtype=weight.dtype)
        weight = same_conv(basis.reshape(-1, layer.in_channels, *layer.image_size), weight).flatten(1).T
    return float(torch.linalg.matrix_norm(weight, layer.normalization.norm))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_large_weight_is_brought_to_its_coefficient(kind, name):
    layer = LAYERS[kind](name).double()
    layer.weight = 30 * torch.randn_like(layer.unnormalized_weight)
    layer.normalization.converge(layer.unnormalized_weight, tol=1e-14, max_steps=20_000)
    assert norm(layer) <= 0.8 * (1 + 1e-9)
    assert norm(layer) >= 0.8 * least(kind, name)


def least(kind, name) -> float:
    """Share of the coefficient that is used: bounds of small images are loose, norms are not."""
    loose = name == "gram" and "linear" not in kind and kind != "1x1"
    cut = name in ("l1", "linf", "aol") and kind == "kernel larger than half"
    return 0.2 if cut else 0.3 if name == "aol" else 0.6 if loose else 0.98


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_small_weight_passes_unchanged(kind, name):
    layer = LAYERS[kind](name)
    layer.weight = 1e-3 * torch.randn_like(layer.unnormalized_weight)
    assert torch.equal(layer.weight, layer.unnormalized_weight) == layer.normalization.idempotent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 9])
@pytest.mark.parametrize("kind", LAYERS)
def test_gram_bounds_the_norm_from_above_at_every_weight(kind, n_steps, dtype):
    layer = LAYERS[kind]("gram").to(dtype)
    layer.normalization.n_steps = n_steps
    for scale in (1e-8, 1.0, 1e8):
        layer.weight = scale * torch.randn_like(layer.unnormalized_weight)
        sigma = layer.normalization.sigma(layer.unnormalized_weight)
        layer.normalization.hold(layer.unnormalized_weight.double())
        assert float(sigma.detach()) >= norm(layer.double())
        layer.normalization.hold(None)
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
    weight = torch.randn_like(layer.unnormalized_weight).requires_grad_()
    assert torch.autograd.gradcheck(layer.normalization.sigma, (weight,))


@pytest.mark.parametrize("kind", LAYERS)
def test_gram_certifies_in_train_mode_as_in_eval_mode(kind):
    layer = LAYERS[kind]("gram").train()
    layer.weight = 9 * torch.randn_like(layer.unnormalized_weight)
    trained = layer.weight.clone()
    assert torch.equal(trained, layer.eval().weight)
    assert ir.certify(layer).layers[0].upper <= 0.8 * (1 + 1e-6)


# -- almost-orthogonal rescaling -------------------------------------------------------------------------------------


def rescaled(kind, n_steps=5, scale=30.0):
    layer = LAYERS[kind]("aol").double()
    layer.normalization.n_steps = n_steps
    layer.weight = scale * torch.randn_like(layer.unnormalized_weight)
    return layer


@pytest.mark.parametrize("n_steps", [1, 2, 5, 30])
@pytest.mark.parametrize("kind", LAYERS)
def test_rescaled_weights_keep_their_coefficient_at_every_step(kind, n_steps):
    """Also where channels are of very different size, alike, or zero."""
    layer = rescaled(kind, n_steps)
    weight = layer.unnormalized_weight.detach()
    sizes = (10 ** torch.linspace(-6, 3, weight.shape[1], dtype=weight.dtype)).view(1, -1, *[1] * (weight.dim() - 2))
    alike = weight[:, :1].expand_as(weight) + 1e-3 * weight
    for case in (weight, sizes * weight, alike, weight * (sizes > 1), alike[:1].expand_as(weight)):
        layer.weight = case.clone()
        assert norm(layer) <= 0.8 * (1 + 1e-12)
        assert bool(layer.weight.isfinite().all())


@pytest.mark.parametrize("n_steps", [1, 5])
@pytest.mark.parametrize("kind", ["linear", "wide linear", "1x1", "3x3", "even kernel"])
def test_the_bound_of_a_rescaled_weight_holds_against_gradient_ascent_and_is_reached(kind, n_steps):
    layer = rescaled(kind, n_steps)
    weight = layer.unnormalized_weight.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=3.0)
    worst = 0.0
    for _ in range(150):
        layer.normalization.hold(layer.normalization.normalize(weight))
        matrix = layer.weight if weight.dim() == 2 else dense(layer)
        true = torch.linalg.matrix_norm(matrix, 2)
        worst = max(worst, float(true.detach()))
        optimizer.zero_grad()
        (-true).backward()
        optimizer.step()
    assert (0.75 if weight.dim() == 4 and kind != "1x1" else 0.799) <= worst <= 0.8 * (1 + 1e-12)


def dense(layer):
    basis = torch.eye(layer.in_channels * layer.image_size[0] * layer.image_size[1], dtype=layer.weight.dtype)
    return same_conv(basis.reshape(-1, layer.in_channels, *layer.image_size), layer.weight).flatten(1).T


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize("channels", [(5, 3), (3, 5)])
def test_one_step_is_the_published_rescaling_of_the_dense_operator(channels, kernel):
    """The sums over a row of the Gram matrix, at a pixel that is far enough from the border."""
    weight = 9 * torch.randn(*channels, *kernel, dtype=torch.float64)
    layer = ir.LipschitzConv2d(channels[1], channels[0], kernel, 0.8, image_size=(9, 9), normalization="aol", n_steps=1)
    layer.double().normalization.hold(weight)
    operator = dense(layer)
    gram = operator.mT @ operator if channels[0] >= channels[1] else operator @ operator.mT
    sums = gram.abs().sum(0).view(min(channels), 9, 9)[:, 4, 4]
    scales = (0.8 / sums.sqrt()).view(*(1, -1) if channels[0] >= channels[1] else (-1, 1), 1, 1)
    close(layer.normalization.normalize(weight), scales * weight)


@pytest.mark.parametrize("kind", LAYERS)
def test_steps_lead_to_scales_that_spend_the_whole_bound_and_stay(kind):
    layer = rescaled(kind, n_steps=200)
    once = layer.weight.detach()
    close(layer.normalization.normalize(once), once)
    assert float(layer.normalization.sigma(once)) == pytest.approx(0.8)
    layer.normalization.n_steps = 5
    close(layer.weight, once, 1e-2)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_rescaled_weights(kind):
    layer = rescaled(kind, n_steps=2)
    weight = torch.randn_like(layer.unnormalized_weight).requires_grad_()
    assert torch.autograd.gradcheck(layer.normalization.normalize, (weight,))
    assert torch.autograd.gradgradcheck(layer.normalization.normalize, (weight,))


@pytest.mark.parametrize("kind", LAYERS)
def test_rescaled_weights_certify_in_float32_and_sealing_leaves_them(kind):
    block = ir.ResidualBlock(torch.nn.Sequential(rescaled(kind).float().train()))
    layer = block.g[0]
    before = layer.weight.detach().clone()
    assert ir.certify(block).certified
    assert norm(copy.deepcopy(layer).double()) <= upper_bound(layer) <= 0.8 * (1 + 1e-5)
    ir.seal(block.eval())
    assert torch.equal(layer.weight, before)


def test_steps_of_the_rescaling_are_at_least_one():
    with pytest.raises(IResNetError, match="at least 1, got 0"):
        AlmostOrthogonal(torch.eye(2), coeff=0.5, image_size=(1, 1), n_steps=0)


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_zero_weight_has_finite_gradients(name):
    layer = ir.LipschitzConv2d(2, 2, 1 if name == "cayley" else 3, image_size=(4, 4), normalization=name)
    layer.weight = torch.zeros_like(layer.unnormalized_weight)
    layer.weight.sum().backward()
    assert torch.isfinite(layer.unnormalized_weight.grad).all()


def test_torus_matrices_are_the_circular_convolution():
    weight = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    parts = torch.cat(list(torus_matrices(weight, (4, 5), max_numbers=12)))
    padded = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    padded[:, :, :3, :2] = weight
    expected = torch.fft.rfft2(padded).flatten(2).permute(2, 0, 1)
    close(torch.view_as_real(parts), torch.view_as_real(expected))


def test_unknown_normalization_and_steps():
    with pytest.raises(UnknownNameError, match="'gram'"):
        ir.LipschitzLinear(2, 2, normalization="grm")
    with pytest.raises(ValueError, match="at least 1"):
        ir.LipschitzLinear(2, 2, normalization="gram", n_steps=0)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_the_zoo_builds_with_every_normalization(name):
    model = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8, normalization=name)
    assert sum(isinstance(m, NORMALIZATIONS[name]) for m in model.modules()) == 6


# -- weights of one shape together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(5, 2), (2, 5), (3, 4, 1, 1), (4, 2, 3, 3), (2, 4, 3, 3), (3, 2, 4, 2), (2, 3, 2, 5)]
)
def test_a_stack_applies_each_operator_and_its_transpose(shape):
    weights = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    size = (6, 5) if len(shape) == 4 else ()
    u = torch.randn(3, shape[1], *size, dtype=torch.float64)
    v = torch.randn(3, shape[0], *size, dtype=torch.float64)
    stack = WeightStack(weights)
    for found, operator, of in ((stack.apply, same_conv, u), (stack.apply_transpose, same_conv_transpose, v)):
        if not size:
            expected = torch.einsum("goi,gi->go" if of is u else "goi,go->gi", weights, of)
        else:
            expected = torch.cat([operator(of[i : i + 1], weights[i]) for i in range(3)])
        close(found(of), expected)
        upstream = torch.randn_like(expected)
        close(*(torch.autograd.grad(y, weights, upstream, retain_graph=True)[0] for y in (found(of), expected)))


def layers_of_two_shapes(kind, tol=0.0):
    layers = [LAYERS[kind]("power").double() for _ in range(3)] + [ir.LipschitzLinear(3, 3).double()]
    for layer in layers:
        layer.normalization.n_steps, layer.normalization.tol = 3 if tol == 0 else 20, tol
        layer.weight = 5 * torch.randn_like(layer.unnormalized_weight)
    return torch.nn.ModuleList(layers)


@pytest.mark.parametrize("tol", [0.0, 0.1])  # with which some stop before others
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_weights_of_one_shape_are_normalized_together_as_each_alone(kind, training, tol):
    together = layers_of_two_shapes(kind, tol).train(training)
    alone = copy.deepcopy(together)
    with hold_weights(together):
        found = [layer.weight for layer in together]
    expected = [layer.weight for layer in alone]
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    for layers, weights in ((together, found), (alone, expected)):
        sum((weight**3).sum() for weight in weights).backward()
        assert all(layer.unnormalized_weight.grad.abs().sum() > 0 for layer in layers)
    for a, b in zip(together, alone, strict=True):
        close(a.normalization.u, b.normalization.u)
        close(a.unnormalized_weight.grad, b.unnormalized_weight.grad)


def test_those_of_other_settings_or_classes_are_normalized_apart():
    class Halved(normalization.PowerIteration):
        def sigma(self, weight):
            return 2 * super().sigma(weight)

    weights = list(4 * torch.eye(3).expand(4, 3, 3))
    options = {"image_size": (1, 1)}
    parts = [normalization.PowerIteration(weights[0], coeff=0.8, **options) for _ in range(2)]
    parts += [Halved(weights[0], coeff=0.8, **options), GramIteration(weights[0], coeff=0.4, **options)]
    parts[1].coeff = 0.6
    found = [float(weight[0, 0]) for weight in normalize_all(parts, weights)]
    assert found == pytest.approx([0.8, 0.6, 0.4, 0.4 / 3**0.5**7], rel=1e-2)


def test_a_weight_that_is_zero_or_not_finite_leaves_its_vector_and_the_others():
    layers = layers_of_two_shapes("3x3")
    before = [layer.normalization.u.clone() for layer in layers]
    for layer, value in zip(layers, (0.0, float("nan")), strict=False):
        layer.unnormalized_weight.data.fill_(value)
    with hold_weights(layers):
        weights = [layer.weight.detach() for layer in layers]
    assert torch.equal(layers[0].normalization.u, before[0])
    assert torch.equal(layers[1].normalization.u, before[1])
    assert not torch.equal(layers[2].normalization.u, before[2])
    assert [bool(torch.isfinite(weight).all()) for weight in weights] == [True, False, True, True]


# -- power iteration to a tolerance ----------------------------------------------------------------------------------


def test_power_iteration_stops_when_its_vector_stands_still(monkeypatch):
    layer = ir.LipschitzLinear(20, 20, n_steps=500).double().train()
    part, products = layer.normalization, []
    original = WeightStack.apply
    monkeypatch.setattr(WeightStack, "apply", lambda *args: products.append(1) or original(*args))
    part.u.copy_(torch.nn.functional.normalize(torch.randn_like(part.u)))
    part.advance(layer.unnormalized_weight)
    cold = len(products)
    assert 2 < cold < 500
    before = part.u.clone()
    part.advance(layer.unnormalized_weight)  # warm: one is enough to see that nothing moves
    assert len(products) == cold + 1
    assert (part.u - before).norm() < part.tol
    layer.unnormalized_weight.data += 0.5 * torch.randn_like(layer.unnormalized_weight)
    part.advance(layer.unnormalized_weight)
    assert len(products) > cold + 2


def test_the_cap_holds_and_a_tolerance_of_zero_runs_all(monkeypatch):
    products = []
    original = WeightStack.apply
    monkeypatch.setattr(WeightStack, "apply", lambda *args: products.append(1) or original(*args))
    part = normalization.PowerIteration(torch.eye(3), coeff=0.5, image_size=(1, 1), n_steps=7, tol=0.0)
    products.clear()
    part.advance(torch.eye(3))
    assert len(products) == 7
    with pytest.raises(IResNetError, match="not be negative"):
        normalization.PowerIteration(torch.eye(3), coeff=0.5, image_size=(1, 1), tol=-1.0)


class Frobenius(AbsoluteSums):
    def sigma(self, weight):
        return weight.norm()


@pytest.mark.parametrize("name", ["l1", "linf", "frobenius"])
def test_exact_norms_take_no_steps(name, monkeypatch):
    monkeypatch.setitem(NORMALIZATIONS, "frobenius", Frobenius)  # a new one, which needs nothing but its entry
    with pytest.raises(IResNetError, match="takes no steps"):
        ir.LipschitzLinear(2, 2, normalization=name, n_steps=3)


@pytest.mark.parametrize("name", ["l1", "linf"])
def test_maps_normalized_in_another_norm_are_certified_in_it(name):
    g = ir.networks.conv_bottleneck((2, 4, 4), 6, coeff=0.9, normalization=name)
    for layer in (g[1], g[3], g[5]):
        layer.weight = 10 * torch.randn_like(layer.unnormalized_weight)
    block = ir.ResidualBlock(g)
    certificate = ir.certify(block, search_steps=30)
    assert certificate.certified
    for bound in (*certificate.layers, *certificate.blocks):
        assert bound.norm == {"l1": 1, "linf": float("inf")}[name]
        assert 0 < bound.lower <= bound.upper
    assert f"norm {certificate.blocks[0].norm:g}" in str(certificate)
    x = torch.randn(5, 2, 4, 4)
    close(block.eval().inverse(block(x)), x, 1e-4)
