"""Every bijection: its inverse, its log-determinant and the gradients of both against the dense Jacobian."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from laws import CONTRACTIONS, close, contraction, dense_logdet, frozen, gradients, lipschitz_layers, randn
from torch import nn

import iresnet as ir
from iresnet import bijections
from iresnet.errors import ConvergenceWarning, IResNetError
from iresnet.zoo import SOLVERS, make_solver

pytestmark = pytest.mark.usefixtures("default_device")

EXACT = {"logdet": ir.Exact(), "solver": ir.Anderson(1e-12, max_steps=1000)}


def actnorm(channels):
    module = ir.ActNorm(channels)
    nn.init.normal_(module.shift)
    nn.init.normal_(module.log_scale)
    return module


def conv_block(*shape, **options):
    return ir.ResidualBlock(ir.networks.conv_bottleneck(shape, 4, **options), **EXACT)


def mlp_block(features, **options):
    return ir.ResidualBlock(ir.networks.mlp(features, 6, **options), **EXACT)


def two_scales():
    """Squeeze, blocks, factor out; then the same again inside."""
    inner = ir.Chain([actnorm(3), conv_block(3, 1, 2), ir.FactorOut((3, 1, 2), ir.Flatten((2, 1, 2)))])
    outer = ir.FactorOut((5, 1, 2), inner)
    return ir.Chain([conv_block(5, 1, 2, preactivation=False), actnorm(5), outer])


def spline(shape, bins, bound):
    module = ir.Spline(shape, bins, bound=bound)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def fitted_spline():
    module = ir.Spline(3, 5)
    module.fit(torch.randn(500, 3) * torch.tensor([0.1, 1.0, 10.0]) + 1)
    return module


def whitening():
    module = ir.Whitening(2, patch=2)
    module.fit(torch.rand(50, 2, 2, 4) + torch.rand(50, 1, 1, 1))
    return module


def implicit_block(make_g):
    return ir.Chain([ir.ResidualBlock(make_g(), **EXACT), ir.Inverse(ir.ResidualBlock(make_g(), **EXACT))])


BIJECTIONS = {
    "spline": (lambda: spline(3, 5, 4.0), (3,)),
    "spline with data outside": (lambda: spline(4, 3, 0.4), (4,)),
    "spline of images": (lambda: spline((2, 1, 2), 3, 2.0), (2, 1, 2)),
    "fitted spline": (fitted_spline, (3,)),
    "whitening": (whitening, (2, 2, 4)),
    "actnorm of vectors": (lambda: actnorm(3), (3,)),
    "actnorm of images": (lambda: actnorm(2), (2, 2, 3)),
    "affine": (lambda: ir.Affine(mean=0.3, std=2.5), (2, 3)),
    "affine a channel": (lambda: ir.Affine(torch.randn(2, 1, 1), torch.rand(2, 1, 1) + 0.1), (2, 2, 3)),
    "affine an element": (lambda: ir.Affine(torch.randn(4), torch.rand(4) + 0.1), (4,)),
    "logit": (lambda: ir.Logit(), (2, 3)),
    "logit of another alpha": (lambda: ir.Logit(1e-3), (5,)),
    "squeeze": (ir.Squeeze, (2, 4, 2)),
    "reorder of vectors": (lambda: ir.Reorder([2, 0, 1]), (3,)),
    "reorder of images": (lambda: ir.Reorder([1, 2, 3, 0]), (4, 1, 2)),
    "flatten": (lambda: ir.Flatten((2, 1, 3)), (2, 1, 3)),
    "factor out": (lambda: ir.FactorOut((4, 1, 2), ir.Flatten((2, 1, 2))), (4, 1, 2)),
    "two scales": (two_scales, (5, 1, 2)),
    "chain": (lambda: ir.Chain([ir.Affine(-1.0, 4.0), ir.Logit(), mlp_block(3), actnorm(3)]), (3,)),
    "empty chain": (lambda: ir.Chain([]), (3,)),
    "one dimension": (lambda: mlp_block(1), (1,)),
    "variational dequantization": (lambda: ir.VariationalDequantization(torch.nn.Linear(3, 6)), (3,)),
    "inverse of two scales": (lambda: ir.Inverse(two_scales()), (10,)),
    "implicit block of vectors": (lambda: implicit_block(lambda: ir.networks.mlp(3, 6)), (3,)),
    "implicit block of images": (lambda: implicit_block(lambda: ir.networks.conv_bottleneck((2, 2, 2), 4)), (2, 2, 2)),
    "monotone block of vectors": (lambda: ir.MonotoneBlock(ir.networks.mlp(3, 6), **EXACT), (3,)),
    "bilipschitz block of vectors": (
        lambda: ir.BiLipschitzBlock(partial(ir.FeedThrough, 3, 6), mu=0.5, nu=3.0, **EXACT),
        (3,),
    ),
    "bilipschitz block of images": (
        lambda: ir.BiLipschitzBlock(partial(ir.networks.conv_bottleneck, (2, 2, 2), 4), mu=0.5, nu=3.0, **EXACT),
        (2, 2, 2),
    ),
    "rotation of vectors": (lambda: ir.Orthogonal(4), (4,)),
    "rotation of images": (lambda: ir.Orthogonal(3), (3, 2, 1)),
    "monotone block of images": (
        lambda: ir.MonotoneBlock(ir.networks.conv_bottleneck((2, 2, 2), 4), **EXACT),
        (2, 2, 2),
    ),
} | {
    f"block of {name}": (lambda name=name: ir.ResidualBlock(CONTRACTIONS[name]()[0], **EXACT), None)
    for name in CONTRACTIONS
}


def build(name):
    make, shape = BIJECTIONS[name]
    x = CONTRACTIONS[name.removeprefix("block of ")]()[1] if shape is None else torch.rand(3, *shape).double()
    return frozen(make()), x


@pytest.mark.parametrize("name", BIJECTIONS)
def test_the_inverse_undoes_the_map_both_ways(name):
    bijection, x = build(name)
    z = bijection(x)
    close(bijection.inverse(z), x, 1e-9)
    close(bijection(bijection.inverse(z)), z, 1e-9)
    close(bijection.forward_and_logdet(x)[0], z, 1e-12)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_the_log_determinant_and_its_gradients_are_those_of_the_dense_jacobian(name):
    bijection, x = build(name)
    x.requires_grad_()
    z, logdet = bijection.forward_and_logdet(x)
    expected = dense_logdet(bijection, x)
    assert logdet.shape == (len(x),)
    assert z.dtype == logdet.dtype == x.dtype
    close(logdet, expected)
    weights = torch.linspace(-1, 2, len(x), dtype=x.dtype)
    inputs = [x, *bijection.parameters()]
    close(gradients((weights * logdet).sum(), inputs), gradients((weights * expected).sum(), inputs), 1e-9)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_an_estimator_given_to_one_call_reaches_every_block(name):
    bijection, x = build(name)
    for module in bijection.modules():
        if isinstance(module, ir.ResidualBlock):
            module.logdet = ir.PowerSeries(1)
    close(bijection.forward_and_logdet(x, logdet=ir.Exact())[1], dense_logdet(bijection, x))


@pytest.mark.parametrize("name", BIJECTIONS)
def test_gradients_through_the_inverse_pass_gradcheck(name):
    bijection, x = build(name)
    z = bijection(x).detach()[:1].requires_grad_()
    assert torch.autograd.gradcheck(bijection.inverse, z, atol=1e-6, check_undefined_grad=False)


def test_every_bijection_is_among_the_cases():
    made = {type(m) for make, _ in BIJECTIONS.values() for m in make().modules()} | {ir.InjectivePad}
    offered = (getattr(bijections, name) for name in bijections.__all__)
    public = {c for c in offered if isinstance(c, type) and issubclass(c, ir.Bijection)} - {ir.Bijection}
    assert public <= made, "add the new bijection to BIJECTIONS"


# -- residual blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_the_implicit_gradient_of_the_inverse_is_the_unrolled_one(name):
    g, x = contraction(name)
    block = ir.ResidualBlock(g, **EXACT)
    z = block(x).detach().requires_grad_()
    upstream = torch.randn_like(z)
    unrolled = z
    for _ in range(400):
        unrolled = z - g(unrolled)
    inputs = [z, *g.parameters()]
    close(
        gradients((upstream * block.inverse(z)).sum(), inputs),
        gradients((upstream * unrolled).sum(), inputs),
        1e-8,
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_gradient_of_the_inverse_is_as_accurate_for_a_loss_of_any_scale(scale, solver):
    block = ir.ResidualBlock(contraction("mlp")[0], solver=make_solver({"name": solver, "atol": 1e-6}))
    z = randn(4, 4).requires_grad_()
    upstream = randn(4, 4) * torch.tensor([0.0, 1.0, 1e-5, 1e5], dtype=torch.float64)[:, None]
    inputs = [z, *block.parameters()]
    gradient = gradients((upstream * block.inverse(z)).sum(), inputs)
    scaled = gradients((scale * upstream * block.inverse(z)).sum(), inputs)
    for a, b in zip(gradient, scaled, strict=True):
        close(b / scale / a.abs().max(), a / a.abs().max(), 1e-8)
    exact = ir.ResidualBlock(block.g, **EXACT)
    expected = gradients((upstream * exact.inverse(z)).sum(), [z])[0]
    assert bool(((gradient[0] - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all())


@pytest.mark.parametrize("name", ["mlp", "no rule"])
def test_the_inverse_in_train_mode_is_that_of_the_forward_just_run(name):
    g, x = contraction(name)
    block = ir.ResidualBlock(g, **EXACT).train()
    for layer in lipschitz_layers(block):
        nn.init.normal_(layer.unnormalized_weight)  # the norms are far from converged
    z = block(x)
    before = [layer.normalization.u.clone() for layer in lipschitz_layers(block)]
    y = block.inverse(z)
    y.sum().backward()
    close([layer.normalization.u for layer in lipschitz_layers(block)], before, 0.0)
    close(y, x, 1e-9)
    z, _ = block.forward_and_logdet(x)
    close(block.inverse(z), x, 1e-9)


@pytest.mark.parametrize("name", ["mlp", "no rule"])
def test_forward_and_logdet_in_train_mode_iterates_once(name):
    block = ir.ResidualBlock(contraction(name)[0], logdet=ir.Krylov(3)).train()
    twin = copy.deepcopy(block)
    for layer in lipschitz_layers(block) + lipschitz_layers(twin):
        nn.init.ones_(layer.unnormalized_weight)
    x = CONTRACTIONS[name]()[1]
    block.forward_and_logdet(x)[1].sum().backward()
    twin(x)
    close(*[[layer.normalization.u for layer in lipschitz_layers(b)] for b in (block, twin)], 0.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_map_that_does_not_contract_warns_with_advice(solver):
    stretch = nn.Linear(2, 2).double()
    with torch.no_grad():
        stretch.weight.copy_(torch.tensor([[0.0, -1.5], [1.5, 0.0]]))
    block = ir.ResidualBlock(nn.Sequential(stretch, nn.Tanh()), solver=make_solver({"name": solver, "max_steps": 3}))
    with pytest.warns(
        ConvergenceWarning, match=r"0 of 2 samples converged; residual.*steps 3 to 3.*iresnet.seal.*max_steps=3"
    ):
        block.inverse(randn(2, 2))
    solution = block.solve(randn(2, 2))
    assert not bool(solution.converged.any())
    assert bool((solution.error_bound == math.inf).all())


@pytest.mark.parametrize("name", CONTRACTIONS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_error_bound_of_a_solve_holds(solver, name):
    g, x = contraction(name)
    block = ir.ResidualBlock(g, solver=make_solver({"name": solver, "atol": 1e-3}))
    solution = block.solve(block(x))
    error = (solution.value - x).flatten(1).norm(dim=1)
    assert bool((error <= solution.error_bound + 1e-12).all())
    assert bool(solution.error_bound.isfinite().all()) == (name != "no rule")


def test_the_inverse_does_not_pay_for_a_bound_and_a_solve_reports_it(monkeypatch):
    g, x = contraction("mlp")
    block = ir.ResidualBlock(g, **EXACT)
    bound = ir.certify(g).blocks[0].upper
    calls = []
    monkeypatch.setattr("iresnet.bijections.residual.upper_bound", lambda g: calls.append(g) or bound)
    close(block.inverse(block(x)), x, 1e-9)
    assert calls == []
    assert "error at most" in str(block.solve(block(x)))
    assert calls == [g]


def test_a_residual_map_must_keep_the_shape():
    block = ir.ResidualBlock(ir.LipschitzLinear(3, 2))
    for use in (block, block.forward_and_logdet):
        with pytest.raises(IResNetError, match=r"\(3,\) -> \(2,\).*InjectivePad"):
            use(torch.zeros(4, 3))


def test_far_inputs_come_back_in_float32():
    block = ir.ResidualBlock(contraction("convolutions")[0].float())
    for x in (100 * torch.rand(20, 2, 3, 2), torch.zeros(2, 2, 3, 2), torch.full((2, 2, 3, 2), 2.56e4)):
        close(block.inverse(block(x)), x, 1e-5)


# -- actnorm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2000, 3), (200, 3, 4, 5)])
def test_actnorm_standardizes_the_first_training_batch_and_only_that(shape):
    x = 1e3 + torch.tensor([1.0, 20.0, 0.3]).view(1, 3, *[1] * (len(shape) - 2)) * torch.randn(*shape)
    module = ir.ActNorm(3).eval()
    close(module(x), x, 0.0)
    z = module.train()(x).transpose(0, 1).flatten(1)
    close(z.mean(1), torch.zeros(3), 1e-3)
    close(z.var(1), torch.ones(3), 2e-3)
    state = copy.deepcopy(module.state_dict())
    loaded = ir.ActNorm(3)
    loaded(x)
    loaded.load_state_dict(state)
    assigned = ir.ActNorm(3)
    assigned.load_state_dict(copy.deepcopy(state), assign=True)
    for other in (module, loaded, assigned, copy.deepcopy(module)):
        other.train()(5 * x)
        close(list(other.state_dict().values()), list(state.values()), 0.0)


def test_actnorm_leaves_the_scale_of_a_constant_channel_alone():
    x = torch.cat([torch.randn(20, 1, 3, 3), torch.full((20, 1, 3, 3), 5.0)], 1)
    module = ir.ActNorm(2)
    close(module(x)[:, 1], torch.zeros(20, 3, 3))
    assert module.log_scale[1].item() == 0.0


def test_an_actnorm_loaded_before_its_first_batch_is_still_initialized():
    module, fresh = ir.ActNorm(2), ir.ActNorm(2)
    module(torch.randn(50, 2))
    module.load_state_dict(fresh.state_dict())
    close(module(3 * torch.randn(500, 2)).std(0), torch.ones(2), 2e-3)


# -- splines ---------------------------------------------------------------------------------------------------------


def far_and_near(features):
    """Points across the knots and in both tails, dense enough for quadrature."""
    return torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None].expand(-1, features)


@pytest.mark.parametrize("bins", [1, 2, 16])
def test_a_spline_is_the_identity_at_first(bins):
    z, logdet = ir.Spline(3, bins).double().forward_and_logdet(far_and_near(3))
    close(z, far_and_near(3), 1e-12)
    close(logdet, torch.zeros(len(z)), 1e-12)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("bins", [1, 2, 7, 16])
def test_the_slope_of_a_spline_is_within_its_stretch_which_it_reaches(bins, scale):
    module = ir.Spline(3, bins).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)
    least, most = module.stretch()
    # Bins may be narrow.
    ends = module._table()[..., 0].T.detach()
    within = torch.lerp(ends[:-1, None], ends[1:, None], torch.linspace(0, 1, 500).double()[:, None]).flatten(0, 1)
    x = torch.cat([far_and_near(3), within]).requires_grad_()
    slopes = gradients(module(x).sum(), [x])[0]
    assert least * (1 - 1e-9) <= float(slopes.min())
    assert float(slopes.max()) <= most * (1 + 1e-9)
    for slope in (least, most):  # at some point, which the closest of many comes near
        assert float((slopes / slope).log().abs().min()) < 0.02


def test_a_spline_is_the_integral_of_its_slope():
    module, x = spline(3, 6, 4.0).double(), far_and_near(3).clone().requires_grad_()
    z = module(x)
    (slope,) = gradients(z.sum(), [x])  # elementwise: no other derivatives
    close(torch.cumulative_trapezoid(slope, x, dim=0), (z - z[:1])[1:], 1e-4)


@pytest.mark.parametrize(
    ("law", "entropy"),
    [(torch.distributions.Exponential(1.0), 1.0), (torch.distributions.Uniform(3.0, 5.0), math.log(2))],
    ids=["exponential", "uniform"],
)
def test_a_spline_fitted_to_data_makes_them_normal_and_their_density_known(law, entropy):
    module = ir.Spline(1, 32).double()
    module.fit(law.sample((20_000, 1)).double())
    x = law.sample((20_000, 1)).double()
    z, logdet = module.forward_and_logdet(x)
    levels = torch.linspace(-2.5, 2.5, 21).double()
    shares = (z < levels).double().mean(0)
    close(shares, torch.special.ndtr(levels), 0.015)
    nats = (z.square() / 2).sum(1) + math.log(2 * math.pi) / 2 - logdet
    close(nats.mean(), torch.tensor(entropy), 0.02)


def test_a_spline_does_not_throw_far_what_lies_beyond_the_data():
    """Even where a tenth of them have the largest value, so that the spline is steep there."""
    module = ir.Spline(1, 16).double()
    module.fit(torch.cat([torch.rand(900, 1), 1 + 1e-3 * torch.rand(100, 1)]).double())
    z = module(torch.tensor([[1.2]]).double())
    assert 4 < float(z.detach()) < 6


def test_a_spline_fitted_to_images_has_room_for_what_a_pixel_never_showed():
    x = torch.rand(200, 1, 2, 2).double()
    x[:, :, 0, 0] /= 256  # black in all examples
    module = ir.Spline((1, 2, 2), 16).double()
    module.fit(x)
    white = torch.full((1, 1, 2, 2), 0.9).double()
    assert float(module(white).detach().abs().max()) <= 4
    close(module.inverse(module(white)), white, 1e-9)


def test_a_spline_too_steep_for_float32_stays_finite_in_both_directions():
    module = ir.Spline(3, 16)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=5.0)
    x = far_and_near(3).float()
    for value in (*module.forward_and_logdet(x), module.inverse(x)):
        assert bool(value.isfinite().all())


def uneven_spline(features):
    """A spline of narrow and wide bins, whose slopes differ by up to 1e8."""
    module = ir.Spline(features, 16)
    for parameter, spread in ((module.widths, 4.0), (module.heights, 4.0), (module.slopes, 8.0)):
        nn.init.normal_(parameter, std=spread)
    return module


def test_the_slope_of_a_spline_is_within_its_stretch_in_float32_up_to_its_last_knot_and_beyond():
    """There the position in the last bin rounds to more than 1, where the formula of the slope may be negative."""
    for _ in range(100):
        module = uneven_spline(1)
        logdet = module.forward_and_logdet(4 + 2.0**-22 * torch.arange(-8, 8).view(-1, 1))[1].detach()
        least, most = map(math.log, module.stretch())
        assert least - 1e-3 <= float(logdet.min())
        assert float(logdet.max()) <= most + 1e-3


def test_the_inverse_of_a_spline_stays_between_knots_in_float32_where_slopes_differ_most():
    """There both coefficients of its quadratic equation nearly cancel in one of the two forms of the root."""
    module = uneven_spline(2000)
    z = (module._table()[:, 1:, 1].T.detach() - 1e-4 * torch.rand(15, 2000)).requires_grad_()
    x = module.inverse(z)
    assert float(x.detach().abs().max()) <= 4
    wrong = (module(x) - z).abs() > 1e-3
    assert float(wrong.double().mean()) < 0.01
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(x.sum(), [z, *module.parameters()]))


# -- reshaping -------------------------------------------------------------------------------------------------------


def test_squeeze_orders_channels_by_row_column_and_channel():
    x = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
    z = ir.Squeeze()(x)
    for row, column, channel in itertools.product(range(2), range(2), range(3)):
        close(z[0, 6 * row + 3 * column + channel], x[0, channel, row::2, column::2], 0.0)


@pytest.mark.parametrize("size", [(3, 4), (4, 5)])
def test_squeeze_refuses_odd_sides(size):
    with pytest.raises(IResNetError, match=f"even ones, got {size[0]}x{size[1]}"):
        ir.Squeeze()(torch.zeros(1, 1, *size))


def test_injective_pad_appends_zeros_drops_them_and_has_no_density():
    pad, x = ir.InjectivePad(3), randn(2, 2, 4, 4)
    z = pad(x)
    close(z, torch.cat([x, torch.zeros(2, 3, 4, 4)], 1), 0.0)
    close(pad.inverse(z + torch.tensor([0.0] * 2 + [7.0] * 3).view(1, 5, 1, 1)), x, 0.0)
    for bijection in (pad, ir.Chain([ir.Affine(), pad])):
        with pytest.raises(IResNetError, match=r"volume zero.*Squeeze for densities"):
            bijection.forward_and_logdet(x)


def test_factor_out_sends_the_first_half_of_the_channels_straight_out():
    x = randn(2, 5, 2, 1)
    z = ir.FactorOut((5, 2, 1), ir.Chain([ir.Affine(std=0.5), ir.Flatten((3, 2, 1))]))(x)
    close(z, torch.cat([x[:, :2].flatten(1), 2 * x[:, 2:].flatten(1)], 1), 0.0)


BAD = {
    "std of zero": (lambda: ir.Affine(std=0.0), "positive std"),
    "negative std": (lambda: ir.Affine(std=torch.tensor([1.0, -1.0])), "positive std"),
    "mean that is not a number": (lambda: ir.Affine(mean=math.nan), "finite mean"),
    "alpha of zero": (lambda: ir.Logit(0.0), r"\(0, 0.5\)"),
    "alpha of one half": (lambda: ir.Logit(0.5), r"\(0, 0.5\)"),
    "no bins": (lambda: ir.Spline(2, 0), "1 to 5000 bins, got 0"),
    "more bins than there is room for": (lambda: ir.Spline(2, 5001), "1 to 5000 bins, got 5001"),
    "a spline of a constant": (lambda: ir.Spline(2).fit(torch.ones(3, 2)), "no channel is constant"),
    "a spline of one example": (lambda: ir.Spline(2).fit(torch.randn(1, 2)), "no channel is constant, got 1"),
    "a spline of holes": (lambda: ir.Spline(1).fit(torch.tensor([[0.0], [math.nan]])), "finite examples"),
    "knots without end": (lambda: ir.Spline(2, bound=math.inf), "positive and finite"),
    "features that a spline has not": (lambda: ir.Spline(2)(torch.zeros(1, 3)), r"\(N, 2\), got \(1, 3\)"),
    "no channels": (lambda: ir.InjectivePad(0), "at least 1 channel"),
    "one channel to halve": (lambda: ir.FactorOut((1, 2, 2), ir.Flatten((1, 2, 2))), "at least 2 channels"),
    "an order that leaves one out": (lambda: ir.Reorder([0, 2, 2]), "0, ..., 2 once"),
    "another number of channels": (lambda: ir.Reorder([1, 0])(torch.zeros(1, 3)), r"\(N, 2, ...\), got \(1, 3\)"),
    "another shape": (lambda: ir.Flatten((2, 3))(torch.zeros(1, 3, 2)), r"\(N, 2, 3\), got \(1, 3, 2\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(IResNetError, match=message):
        make()


@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_logit_is_finite_at_both_ends(alpha):
    logit, x = ir.Logit(alpha), torch.tensor([[0.0, 1.0]]).double()
    z, logdet = logit.forward_and_logdet(x)
    assert bool(z.isfinite().all() & logdet.isfinite().all())
    close(logit.inverse(z), x, 1e-9)


def test_actnorm_leaves_the_scale_of_a_constant_channel():
    """Injective padding feeds channels of zeros: scaling them to unit variance would multiply their shift by 1000."""
    x = torch.randn(64, 3, 4, 4)
    x[:, 1] = 0.0
    module = ir.ActNorm(3)
    module(x)
    assert module.log_scale[1] == 0
    assert torch.all(module.log_scale[[0, 2]] != 0)


@pytest.mark.parametrize(
    ("layer", "words"),
    {
        "batch norm": (torch.nn.BatchNorm1d(3), "mixes samples"),
        "in place": (torch.nn.ReLU(inplace=True), "overwrites its input"),
        "dropout": (torch.nn.Dropout(0.1), "p=0.1"),
        "dropout of channels": (torch.nn.Dropout2d(0.5), "p=0.5"),
        "running statistics": (torch.nn.InstanceNorm1d(3, track_running_stats=True), "track_running_stats=False"),
    }.values(),
)
def test_unsound_layers_are_refused(layer, words):
    with pytest.raises(ValueError, match=words):
        ir.ResidualBlock(torch.nn.Sequential(layer, ir.LipschitzLinear(3, 3)))


class Mixing(torch.nn.Module):
    def forward(self, x):
        return 0.3 * (x - x.mean(0))


class InTraining(torch.nn.Module):
    """A map that is a function of each sample in eval mode alone."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return 0.3 * (self.change(x) if self.training else x)


UNSOUND = {
    "mixing": (Mixing, (5, 2)),
    "mixing in training": (lambda: InTraining(lambda x: x - x.mean(0)), (5, 2)),
    "dropout of its own": (lambda: InTraining(torch.nn.functional.dropout), (5, 1)),
    "random slopes": (lambda: InTraining(lambda x: torch.nn.functional.rrelu(x, training=True)), (5, 1)),
}


@pytest.mark.parametrize("evaluated_before", [True, False])
@pytest.mark.parametrize("name", UNSOUND)
def test_maps_that_mix_samples_or_are_random_are_refused_at_the_first_log_determinant(name, evaluated_before):
    make, batches = UNSOUND[name]
    for n in batches:
        block = ir.ResidualBlock(make())
        if evaluated_before and name != "mixing":
            block.eval().forward_and_logdet(torch.randn(5, 3))
        with pytest.raises(ValueError, match="mixes samples or is random"):
            block.train().forward_and_logdet(-1 - torch.rand(n, 3))


def test_dropout_without_chance_is_none():
    ir.ResidualBlock(torch.nn.Sequential(torch.nn.Dropout(0.0), ir.LipschitzLinear(3, 3)))


def test_solvers_and_reports_are_arguments_of_every_inverse():
    scale = ir.FactorOut(
        (4, 2, 2), ir.Chain([ir.ResidualBlock(ir.networks.conv_bottleneck((2, 2, 2), 4)), ir.Flatten((2, 2, 2))])
    )
    chain = ir.Chain([ir.ResidualBlock(ir.networks.conv_bottleneck((4, 2, 2), 4)), ir.ActNorm(4), scale]).eval()
    inner, outer = scale.rest.bijections[0], chain.bijections[0]
    z, reports = torch.randn(3, 16), []
    x = chain.inverse(z, solver=ir.FixedPointIteration(atol=1e-7), report=lambda *report: reports.append(report))
    assert [block for block, _ in reports] == [inner, outer]
    assert all(bool(solution.converged.all()) for _, solution in reports)
    close(chain(x), z, 1e-5)
    assert all(bool(torch.isinf(solution.error_bound).all()) for _, solution in reports)
    bounds = [solution.error_bound for _, solution in bijections.invert(chain, z).solutions]
    assert all(bool((bound < 1e-3).all()) for bound in bounds)
    with pytest.warns(ConvergenceWarning, match="max_steps=1 "):
        chain.inverse(z, solver=ir.FixedPointIteration(max_steps=1))


@pytest.mark.parametrize("density", [True, False])
def test_a_trace_is_a_pass_bijection_by_bijection(density):
    flow = ir.zoo.build("iresnet-multiscale", shape=(1, 8, 8), blocks=(1, 1), strides=(1, 2), hidden=4).eval()
    steps, x = [], 256 * torch.rand(3, 1, 8, 8)
    tracing = bijections.trace(flow.bijection, x, density=density)
    while True:
        try:
            steps.append(next(tracing))
        except StopIteration as end:
            close(end.value, flow.bijection(x), 1e-5)
            break
    inner = [m for m in flow.bijection.modules() if isinstance(m, ir.Bijection)]
    assert [b for b, _ in steps] == [b for b in inner if not isinstance(b, (ir.Chain, ir.FactorOut))]
    if density:
        close(sum(logdet for _, (_, logdet) in steps), flow.bijection.forward_and_logdet(x)[1], 1e-3)
