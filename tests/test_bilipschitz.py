"""Bi-Lipschitz blocks and orthogonal layers: the quadratic constraint, its certificate, and what attains it."""

import copy
import io
from functools import partial

import pytest
import torch
from laws import close, dense_jacobian, frozen, norm, randn
from torch import nn

import iresnet as ir
from iresnet.activations import MONOTONE, make_activation
from iresnet.bounds import lower_bound, upper_bound
from iresnet.cayley import cayley
from iresnet.errors import IResNetError, RecipeError
from iresnet.lipschitz import lipschitz_layers, replace_weights
from iresnet.normalization import NORMALIZATIONS
from iresnet.training.optim import Muon

EUCLIDEAN = sorted(NORMALIZATIONS.keys() - {"l1", "linf"})
EXACT = {"logdet": ir.Exact(), "solver": ir.Anderson(1e-13, max_steps=1000)}


def through(features=3, hidden=6, scale=3.0, **options):
    """A feed-through network with large random weights, normalized."""
    g = ir.FeedThrough(features, hidden, **options)
    for parameter in g.parameters():
        nn.init.normal_(parameter, std=scale)
    nn.init.normal_(g.log_scales)
    return frozen(g)


def weights(g):
    """U, W and the identity as dense matrices of all hidden units."""
    of_x, between = g.weights()
    hidden, n = len(of_x[0]), sum(map(len, of_x))
    w = torch.zeros(n, n).double()
    for k, block in enumerate(between):
        w[(k + 1) * hidden : (k + 2) * hidden, k * hidden : (k + 1) * hidden] = block.detach()
    return torch.cat(of_x).detach(), w, torch.eye(n).double()


# -- the quadratic constraint ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("normalization", EUCLIDEAN)
def test_weights_satisfy_the_linear_matrix_inequality(normalization, depth):
    g = through(normalization=normalization, depth=depth)
    u, w, identity = weights(g)
    least = torch.linalg.eigvalsh(identity - (w + w.mT) / 2 - u @ u.mT)[0]
    assert float(least) >= 0
    if normalization == "cayley":
        assert float(least) < 0.01  # nothing is wasted


@pytest.mark.parametrize("activation", MONOTONE)
def test_the_map_is_firmly_nonexpansive_between_any_two_points(activation):
    g = through(activation=activation, normalization="cayley", coeff=0.7)
    x, y = randn(2, 500, 3) * torch.logspace(-2, 1, 500).double()[:, None]
    step, rise = x - y, ((g(x) - g(y)) / 0.7 + x - y).detach() / 2
    assert bool(((step * rise).sum(1) >= rise.square().sum(1) * (1 - 1e-9)).all())
    assert lower_bound(g, search_steps=30) <= upper_bound(g) <= 0.7 * (1 + 1e-6)


@pytest.mark.parametrize("depth", [2, 4])
def test_where_all_units_are_active_the_jacobian_is_that_of_linear_algebra(depth):
    g = through(activation="relu", depth=depth, coeff=0.8)
    for k, layer in enumerate(g.layers):
        nn.init.constant_(layer.bias, 1e4 ** (k + 1))  # above what the layer before takes off
    u, w, identity = weights(g)
    expected = 0.8 * (2 * u.mT @ torch.linalg.solve(identity - w, u) - torch.eye(3).double())
    close(dense_jacobian(g, randn(1, 3))[0], expected, 1e-8)
    for layer in g.layers:
        nn.init.constant_(layer.bias, -1e6)
    close(dense_jacobian(g, randn(1, 3))[0], -0.8 * torch.eye(3).double())


@pytest.mark.parametrize(("of_v", "of_s"), [(1.0, 1.3), (0.9, 1.2), (0.5, 3.0)])
def test_the_certificate_is_that_of_the_weights_in_use_and_is_attained(of_v, of_s):
    """Also where they are too large: one hidden layer, all units active, has the Jacobian 2 U^T U - I."""
    g = through(activation="relu", depth=2, coeff=0.5)
    nn.init.constant_(g.layers[0].bias, 1e6)
    lift, layer = (torch.linalg.qr(m.weight.detach())[0] for m in lipschitz_layers(g))
    with replace_weights(g, [of_s * lift, of_v * layer]):
        true = norm(g, randn(1, 3))
        assert true == pytest.approx(0.5 * max(2 * (of_v * of_s) ** 2 - 1, 1 - 2 * (of_v * of_s) ** 2))
        assert upper_bound(g) == pytest.approx(0.5 * max(1, 2 * (of_v * of_s) ** 2 - 1))


def test_weights_that_break_the_constraint_are_not_certified():
    g = through(normalization="cayley")
    lift, first, second = (layer.weight.detach() for layer in lipschitz_layers(g))
    with replace_weights(g, [lift, 1.01 * first, 1.01 * second]):
        assert upper_bound(g) == float("inf")
    assert upper_bound(g, 1) == float("inf")  # it is a constraint of Euclidean norms


@pytest.mark.parametrize("normalization", EUCLIDEAN)
def test_in_float32_the_weights_in_use_are_certified(normalization):
    g = through(normalization=normalization, coeff=0.9).float()
    used = [layer.weight.detach().double() for layer in lipschitz_layers(g)]
    bound, exact = upper_bound(g), copy.deepcopy(g).double()
    with replace_weights(exact, used):
        assert lower_bound(exact, search_steps=30) <= upper_bound(exact) <= bound
    assert bound <= 0.9 * (1 + 1e-6)


def test_a_power_iteration_that_lags_behind_is_sealed():
    block = ir.BiLipschitzBlock(partial(ir.FeedThrough, 3, 8, normalization="power"), mu=0.5, nu=2.0)
    for layer in lipschitz_layers(block):
        layer.weight = 2 * torch.eye(*layer.weight.shape) * 0.1 ** torch.arange(len(layer.weight))[:, None]
        layer.normalization.u.fill_(1e-3)[0, -1] = 1  # has hardly seen the large singular value
    assert not ir.certify(block.eval()).certified
    certificate = ir.seal(block)
    assert certificate.certified
    assert "ok, by quadratic constraint" in str(certificate)
    assert "together" in str(certificate)
    assert type(certificate).from_dict(certificate.to_dict()) == certificate


@pytest.mark.parametrize("activation", MONOTONE)
def test_slopes_of_monotone_activations_lie_between_0_and_1(activation):
    x = torch.linspace(-30, 30, 4001).double()[:, None]
    slopes = dense_jacobian(make_activation(activation), x).detach()
    assert 0 <= float(slopes.min()) <= float(slopes.max()) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "maxmin"}, "slopes lie in .* one of elu, relu, softplus, got 'maxmin'"),
        ({"activation": "lipswish"}, "elu, relu, softplus, got 'lipswish'"),
        ({"activation": "rleu"}, "relu"),
        ({"normalization": "linf"}, "Euclidean norm, got 'linf'"),
        ({"coeff": None}, "got None"),
        ({"coeff": 1.0}, "got 1"),
        ({"depth": 1}, "depth=1"),
        ({"hidden": 0}, "hidden=0"),
    ],
)
def test_what_has_no_quadratic_constraint_is_refused(options, message):
    with pytest.raises(IResNetError, match=message):
        ir.FeedThrough(**({"features": 2, "hidden": 4} | options))


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_both_constants_of_a_block_are_attained_and_hold():
    block = ir.BiLipschitzBlock(partial(through, activation="relu", depth=2, normalization="cayley"), mu=0.2, nu=5.0)
    least, most = block.stretch()
    assert (least, most) == pytest.approx((0.2, 5.0), rel=1e-6)
    x, y = randn(2, 300, 3)
    step, rise = x - y, (block(x) - block(y)).detach()
    assert bool(((step * rise).sum(1) >= least * step.square().sum(1)).all())  # strongly monotone
    assert bool((rise.norm(dim=1) <= most * step.norm(dim=1)).all())
    for bias, attained in ((-1e6, 0.2), (1e6, 5.0)):
        nn.init.constant_(block.residual.g.layers[0].bias, bias)
        close(block(x) - block(y), attained * step, 0.02)  # all of it but for the margin of the norms


def slopes(g, **options):
    """Least and largest stretch of a block that is trained to squeeze at one point and to stretch at another."""
    torch.manual_seed(0)
    block = ir.BiLipschitzBlock(partial(g, **options), mu=0.1, nu=10.0, logdet=ir.Exact()).double()
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    x = torch.tensor([[-1.0] * 3, [1.0] * 3]).double()
    for _ in range(60):
        first, second = block.forward_and_logdet(x)[1]
        optimizer.zero_grad()
        (first - second).backward()
        optimizer.step()
    assert block.stretch() == pytest.approx((0.1, 10.0), rel=1e-3)
    singular = torch.linalg.svdvals(dense_jacobian(block, x).detach())
    return float(singular[0].mean()), float(singular[1].mean())


def test_attacks_come_closer_to_the_constants_than_with_a_product_of_norms():
    def product(coeff, **options):
        return ir.networks.mlp(3, 16, coeff=coeff ** (1 / 3), **options)

    options = {"activation": "relu", "normalization": "cayley"}
    least, most = slopes(partial(ir.FeedThrough, 3, 16), **options)
    assert least < 0.13
    assert most > 9.0
    least, most = slopes(product, **options)
    assert least > 0.4
    assert most < 6.0


def test_constants_that_cannot_be_kept_are_refused():
    for mu, nu in ((0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(IResNetError, match=f"got mu={mu}, nu={nu}"):
            ir.BiLipschitzBlock(partial(ir.FeedThrough, 2, 4), mu=mu, nu=nu)
    with pytest.raises(RecipeError, match="block=residual"):
        ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, mu=0.5)


# -- orthogonal layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (2, 6), (1, 1), (4, 1)])
def test_the_cayley_map_is_orthogonal_at_every_matrix(shape, dtype):
    for scale in (0.0, 1e-3, 1.0, 30.0):
        q = cayley(scale * torch.randn(shape, dtype=dtype)).double()
        gram = q @ q.mT if shape[0] < shape[1] else q.mT @ q
        close(gram, torch.eye(min(shape)).double(), 100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)])
def test_derivatives_of_the_cayley_map(shape):
    weight = randn(*shape).requires_grad_()
    assert torch.autograd.gradcheck(cayley, weight)
    assert torch.autograd.gradgradcheck(cayley, weight)


def test_the_cayley_map_of_a_skew_matrix_is_the_quotient():
    x = randn(4, 4)
    skew, identity = x - x.mT, torch.eye(4).double()
    close(cayley(x), (identity - skew) @ torch.linalg.inv(identity + skew))


ORTHOGONAL = {
    "square": lambda: ir.LipschitzLinear(5, 5, 0.8, normalization="cayley"),
    "tall": lambda: ir.LipschitzLinear(3, 6, 0.8, normalization="cayley"),
    "wide": lambda: ir.LipschitzLinear(6, 3, 0.8, normalization="cayley"),
    "1x1": lambda: ir.LipschitzConv2d(4, 3, 1, 0.8, image_size=(5, 4), normalization="cayley"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_all_singular_values_of_an_orthogonal_layer_are_its_coefficient(name, dtype):
    layer = ORTHOGONAL[name]().to(dtype)
    layer.weight = 3 * torch.randn_like(layer.unnormalized_weight)
    sizes = torch.linalg.svdvals(layer.weight.detach().double().flatten(1))
    close(sizes, torch.full_like(sizes, 0.8), 100 * torch.finfo(dtype).eps)
    (bound,) = ir.certify(layer).layers
    assert float(sizes.max()) <= bound.upper <= 0.8 * (1 + 100 * torch.finfo(dtype).eps) + 1e-9
    assert bound.lower > 0.79


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal_layers_are_saved_and_copied_bit_for_bit(name):
    layer, loaded, file = ORTHOGONAL[name](), ORTHOGONAL[name](), io.BytesIO()
    loaded.load_state_dict(layer.state_dict())
    torch.save(layer, file)
    file.seek(0)
    for other in (loaded, copy.deepcopy(layer), torch.load(file, weights_only=False)):
        close(other.weight, layer.weight, 0.0)


def test_muon_leaves_the_parameter_of_an_orthogonal_layer_to_its_own_steps():
    layer = ir.LipschitzLinear(4, 4, normalization="cayley", bias=False)
    start = layer.unnormalized_weight.detach().clone()
    optimizer = Muon(layer, lr=0.1)
    layer.weight.trace().backward()
    optimizer.step()
    close(torch.linalg.svdvals((start - layer.unnormalized_weight).detach()), torch.full((4,), 0.1), 0.05)


def test_larger_kernels_and_no_coefficient_are_refused():
    with pytest.raises(IResNetError, match="1x1 convolutions, got a kernel of 3x3; take 'aol' or 'gram'"):
        ir.networks.conv_bottleneck((2, 4, 4), 4, normalization="cayley")
    with pytest.raises(IResNetError, match="coeff=None"):
        ir.LipschitzLinear(2, 2, None, normalization="cayley")


def test_a_rotation_of_channels_is_the_same_at_each_pixel():
    rotation, x = ir.Orthogonal(3).double(), randn(2, 3, 4, 5)
    q = rotation.matrix().detach()
    close(q @ q.mT, torch.eye(3).double())
    close(rotation(x)[:, :, 1, 2], x[:, :, 1, 2] @ q.mT)
    assert float((q - torch.eye(3)).abs().max()) > 0.1
    with pytest.raises(IResNetError, match=r"Orthogonal\(3\) takes"):
        rotation(randn(2, 4))


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_a_model_of_such_blocks_is_trained_and_used_by_the_commands(call, tmp_path):
    run = tmp_path / "run"
    options = ("--model.blocks", "2", "--model.hidden", "8", "--train.max-steps", "10", "--train.n-pictures", "4")
    kind = ("--model.spline", "0", "--model.block", "bilipschitz", "--model.activation", "elu", "--model.mu", "0.5")
    assert call("train", "toy-density", "--data.name", "moons", *kind, *options, "--out", run)[0] == 0
    few = {"evaluate": ("--examples", 64), "reconstruct": ("--solver-examples", 2), "sample": ("-n", 4)}
    for command in ("evaluate", "sample", "reconstruct", "analyze lipschitz"):
        status, _, err = call(*command.split(), run, *few.get(command, ()))
        assert status == 0, err
    status, out, _ = call("certify", run)
    assert status == 0
    assert "quadratic constraint" in out
    flow = ir.load(run)
    assert [type(part) for part in flow.bijection.bijections[1:]] == [
        *[ir.ActNorm, ir.Orthogonal, ir.BiLipschitzBlock] * 2,
        ir.Orthogonal,
    ]
    assert "coefficient" in str(flow)


def test_images_take_maps_of_convolutions():
    flow = ir.zoo.build(
        "iresnet-multiscale", shape=(1, 4, 4), blocks=(1, 1), strides=(1, 1), hidden=4, block="bilipschitz"
    )
    certificate = ir.seal(flow.eval())
    assert certificate.certified
    assert {block.by for block in certificate.blocks} == {"norms"}
    x = 256 * torch.rand(3, 1, 4, 4)
    close(flow.decode(flow.encode(x)), x, 0.01)


@pytest.mark.parametrize("block", [ir.ResidualBlock, ir.MonotoneBlock])
def test_other_blocks_take_feed_through_networks_and_rotations(block):
    parts = [part for _ in range(2) for part in (ir.Orthogonal(2), block(ir.FeedThrough(2, 4)))]
    certificate = ir.seal(ir.Flow(ir.Chain(parts), ir.StandardNormal(2)).eval())
    assert [round(bound.upper, 3) for bound in certificate.blocks] == [0.9, 0.9]
