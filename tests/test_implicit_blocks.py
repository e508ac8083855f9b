"""Implicit and monotone blocks, whose forward pass solves; more laws: test_bijections.py, test_context.py."""

import copy
import math

import pytest
import torch
from data_fixtures import isolated  # noqa: F401 (used by all)
from laws import close, dense_logdet, frozen, operator, randn, within_4_errors
from marks import slow
from torch import nn
from torch.func import functional_call

import iresnet as ir
from iresnet.bijections import RandomChunk
from iresnet.bijections.memory import MEMORY
from iresnet.bijections.monotone import _artanh
from iresnet.blocks import BLOCKS
from iresnet.bounds import upper_bound
from iresnet.errors import ConvergenceWarning, RecipeError
from iresnet.jacobian import linearize
from iresnet.lipschitz import DenseConcat

SOLVING = ("implicit", "monotone")
PRECISE = ir.Anderson(1e-13, max_steps=1000)


def block(kind, shape=(3,), **parts):
    def make_g():
        return ir.networks.mlp(*shape, 6) if len(shape) == 1 else ir.networks.conv_bottleneck(shape, 4)

    return frozen(BLOCKS[kind](make_g, **{"logdet": ir.Exact(), "solver": PRECISE} | parts))


def linear(matrix):
    """The linear map of a matrix, as g of a block."""
    g = nn.Sequential(nn.Linear(*matrix.shape, bias=False).double())
    g[0].weight = nn.Parameter(matrix)
    return g


def contraction(size, lipschitz):
    matrix = randn(size, size)
    return lipschitz * matrix / torch.linalg.matrix_norm(matrix, 2)


# -- the maps ----------------------------------------------------------------------------------------------------------


def test_an_implicit_block_solves_its_equation():
    implicit = block("implicit", (2, 2, 3))
    x = randn(4, 2, 2, 3)
    z, (first, second) = implicit(x), implicit.bijections
    close(z + second.bijection.g(z), x + first.g(x), 1e-11)
    assert float((z - x).detach().abs().max()) > 0.05


def test_of_linear_maps_the_blocks_are_those_of_linear_algebra():
    a, b, identity = contraction(4, 0.9), contraction(4, 0.8), torch.eye(4).double()
    parts = {"logdet": ir.Exact(), "solver": PRECISE}
    implicit = ir.Chain([ir.ResidualBlock(linear(a), **parts), ir.Inverse(ir.ResidualBlock(linear(b), **parts))])
    monotone = ir.MonotoneBlock(linear(a), **parts)
    x = randn(5, 4)
    for bijection, matrix in (
        (implicit, torch.linalg.solve(identity + b, identity + a)),
        (monotone, 2 * torch.linalg.inv(identity + a) - identity),
    ):
        z, logdet = bijection.forward_and_logdet(x)
        close(z, x @ matrix.mT, 1e-10)
        close(logdet, torch.linalg.slogdet(matrix)[1].expand(5), 1e-10)
        close(bijection.inverse(z), x, 1e-10)


def test_the_cayley_operator_of_a_monotone_block_is_its_map():
    monotone = block("monotone")
    x = randn(5, 3)
    z = monotone(x)
    close((x - z) / 2, monotone.resolvent.bijection.g((x + z) / 2), 1e-11)


@pytest.mark.parametrize("kind", SOLVING)
def test_in_train_mode_weights_move_once_and_the_block_is_one_map(kind):
    solving = block(kind).train()
    for layer in solving.modules():
        if isinstance(layer, ir.LipschitzLinear):
            layer.normalization.u = torch.ones_like(layer.normalization.u)  # lags behind
    x = randn(4, 3)
    z, logdet = solving.forward_and_logdet(x)
    now = copy.deepcopy(solving).eval()  # with the weights that were used
    close(z, now(x))
    close(logdet, dense_logdet(now, x))
    with torch.no_grad():
        assert float((z - solving(x)).abs().max()) > 1e-9  # they move at the next call


@pytest.mark.parametrize("kind", SOLVING)
def test_a_forward_pass_that_did_not_converge_warns(kind):
    solving = block(kind, solver=ir.FixedPointIteration(1e-13, max_steps=2))
    with pytest.warns(ConvergenceWarning, match="max_steps=2"):
        solving.forward_and_logdet(10 * randn(4, 3))


# -- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("kind", SOLVING)
def test_first_and_second_derivatives_by_data_and_parameters(kind, memory):
    solving = block(kind, memory=memory)
    names = [key for key, _ in solving.named_parameters()]

    def run(x, *parameters):
        return functional_call(solving, dict(zip(names, parameters, strict=True)), (x,))

    def logdet(x):
        return solving.forward_and_logdet(x)[1]

    x = randn(2, 3).requires_grad_()
    inputs = [x, *(p.detach().clone().requires_grad_() for p in solving.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(logdet, x, fast_mode=True)


@pytest.mark.parametrize("memory", sorted(MEMORY.keys() - {"keep"}))
@pytest.mark.parametrize("kind", SOLVING)
def test_every_memory_has_the_gradients_of_the_kept_graph(kind, memory):
    def gradients(memory):
        solving = copy.deepcopy(start)
        for module in solving.modules():
            if isinstance(module, ir.ResidualBlock):
                module.memory = memory
        torch.manual_seed(1)
        z, logdet = solving.forward_and_logdet(x)
        loss = (torch.arange(5.0) * logdet).sum() + z.pow(3).sum()
        return list(torch.autograd.grad(loss, list(solving.parameters())))

    start, x = block(kind, (2, 2, 3), logdet=ir.Krylov(2)), randn(5, 2, 2, 3)
    close(gradients(memory), gradients("keep"), 1e-9)


# -- log-determinants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [ir.Krylov(3), ir.PowerSeries(80), ir.RussianRoulette(20, 0.2)], ids=repr)
def test_estimates_of_a_monotone_block_have_the_dense_one_as_mean(estimator):
    monotone, x = block("monotone"), randn(2, 3)
    many = x.repeat(400, 1)
    with torch.no_grad():
        found = monotone.forward_and_logdet(many, logdet=estimator)[1].view(400, 2)
    within_4_errors(found, dense_logdet(monotone, x).detach(), bias=1e-9)


@pytest.mark.parametrize("grad", [True, False])
def test_even_terms_cancel_for_each_probe(grad):
    jacobian = operator(torch.stack([contraction(4, 0.9) for _ in range(3)]))
    with torch.set_grad_enabled(grad):
        for terms in (1, 3):
            torch.manual_seed(1)
            odd = _artanh(ir.PowerSeries(terms))(jacobian)
            torch.manual_seed(1)
            odd_and_even = _artanh(ir.PowerSeries(terms + 1))(jacobian)
            close(odd, odd_and_even, 1e-12)
            assert bool((odd.abs() > 1e-3).all())


def test_the_report_of_an_estimate_adds_what_both_cost():
    jacobian = linearize(linear(contraction(3, 0.9)), randn(2, 3))
    report = _artanh(ir.Krylov(2, 4)).estimate(jacobian)
    assert report.n_products == 2 * ir.Krylov(2, 4).estimate(jacobian).n_products
    assert bool((report.standard_error > 0).all())
    close(_artanh(ir.Exact()).estimate(jacobian).value, _artanh(ir.Exact())(jacobian).detach())


@pytest.mark.parametrize("kind", SOLVING)
def test_log_determinants_of_a_chunk_are_its_share(kind):
    solving, x = block(kind), randn(6, 3)
    z, whole = solving.forward_and_logdet(x)
    z_again, chunk = solving.forward_and_logdet(x, logdet=RandomChunk(ir.Exact(), 2, chosen=1))
    close(z_again, z)
    close(chunk, torch.cat([torch.zeros(3), 2 * whole[3:]]))


@pytest.mark.parametrize("kind", SOLVING)
def test_a_density_integrates_to_one_and_decoding_has_its_log_determinant(kind):
    flow = ir.Flow(ir.Chain([block(kind, (1,)) for _ in range(3)]), ir.StandardNormal(1)).double()
    x = torch.linspace(-30, 30, 4001).double()[:, None]
    density = flow.density(x)
    assert float(torch.trapezoid(density.log_prob.detach().exp(), x[:, 0])) == pytest.approx(1, abs=1e-6)
    back, logdet = flow.decode_and_logdet(flow.encode(x))
    close(back, x, 1e-8)
    close(logdet, -density.logdet, 1e-8)


# -- certificates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOLVING)
def test_certified_constants_hold_for_pairs_of_points(kind):
    network = ir.Chain([block(kind, (2, 2, 2)) for _ in range(2)])
    certificate = ir.certify(network)
    assert certificate.certified
    x, y = randn(200, 2, 2, 2), randn(200, 2, 2, 2)
    y = x + torch.logspace(-3, 1, 200).double().view(-1, 1, 1, 1) * (y - x)
    apart = (network(x) - network(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert certificate.network.lower <= float(apart.detach().min())
    assert float(apart.detach().max()) <= certificate.network.upper


def test_a_monotone_block_is_strongly_monotone_and_no_better_constants_hold():
    monotone = block("monotone", (4,))
    x, y = randn(2, 500, 4)
    step, rise = x - y, (monotone(x) - monotone(y)).detach()
    least, most = monotone.stretch()
    assert bool(((step * rise).sum(1) >= least * step.square().sum(1)).all())
    for sign, attained in ((1, least), (-1, most)):
        g = linear(sign * upper_bound(monotone.resolvent.bijection.g) * torch.eye(4).double())
        close(ir.MonotoneBlock(g, solver=PRECISE)(x), attained * x, 1e-9)


def test_constants_of_an_implicit_block_are_attained():
    parts = [ir.ResidualBlock(linear(lipschitz * torch.eye(2).double()), solver=PRECISE) for lipschitz in (0.9, -0.8)]
    implicit = ir.Chain([parts[0], ir.Inverse(parts[1])])
    least, most = implicit.stretch()
    assert (least, most) == pytest.approx((0.1 / 1.8, 1.9 / 0.2))
    x = randn(3, 2)
    close(implicit(x), most * x, 1e-9)


@torch.no_grad()  # gradients take one more step
def test_the_error_bound_of_a_monotone_block_is_attained_where_plain_steps_shrink_by_its_constant():
    monotone = ir.MonotoneBlock(linear(0.9 * torch.eye(3).double()), solver=PRECISE)
    x = randn(20, 3)
    inversion = ir.Flow(monotone, ir.StandardNormal(3)).invert(monotone(x), solver=ir.FixedPointIteration(1e-3))
    ((_, solution),) = inversion.solutions
    close((inversion.x - x).norm(dim=1) / solution.error_bound, torch.ones(20), 1e-6)


@pytest.mark.parametrize("kind", SOLVING)
def test_what_does_not_contract_is_not_certified(kind):
    solving = BLOCKS[kind](lambda: linear(1.5 * torch.eye(2).double()))
    certificate = ir.certify(solving)
    assert not certificate.certified
    assert (certificate.network.lower, certificate.network.upper) == (0, math.inf)
    assert type(certificate).from_dict(certificate.to_dict()) == certificate


@pytest.mark.parametrize("kind", SOLVING)
def test_errors_of_an_inverse_are_within_the_reported_bound(kind):
    solving = block(kind)
    x = randn(20, 3)
    inversion = ir.Flow(solving, ir.StandardNormal(3)).invert(solving(x), solver=ir.FixedPointIteration(1e-3))
    ((name, solution),) = inversion.solutions
    assert isinstance(solving.get_submodule(name), ir.ResidualBlock)
    error = (inversion.x - x).flatten(1).norm(dim=1).detach()
    assert float(error.max()) > 1e-6
    assert bool((error <= solution.error_bound).all())


# -- recipes and commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "certified"), [("implicit", 4), slow("monotone", 2)])
def test_a_model_of_such_blocks_is_trained_and_used_by_the_commands(kind, certified, call, tmp_path):
    run = tmp_path / "run"
    options = ("--model.blocks", "2", "--model.hidden", "8", "--train.max-steps", "10", "--train.n-pictures", "4")
    assert call("train", "toy-density", "--data.name", "moons", "--model.block", kind, *options, "--out", run)[0] == 0
    few = {"evaluate": ("--examples", 64), "reconstruct": ("--solver-examples", 2), "sample": ("-n", 4)}
    for command in ("evaluate", "sample", "certify", "reconstruct", "analyze lipschitz", "report"):
        status, _, err = call(*command.split(), run, *few.get(command, ()))
        assert status == 0, err
    for refused in (("analyze", "logdet", run), ("analyze", "inverse", run), ("export", run, "--what", "encode")):
        status, _, err = call(*refused)
        assert (status, err.count("\n")) == (2, 1), err
        assert "implicit or monotone blocks" in err
    assert f", {certified} blocks, " in str(ir.load(run))


@pytest.mark.parametrize("options", [("--train.sharding", "fsdp"), ("--train.compile", "true")])
def test_what_needs_residual_blocks_is_refused(options):
    for kind in ("implicit", "dense-monotone"):
        with pytest.raises(RecipeError, match=rf"residual blocks, got --model\.block {kind}"):
            ir.load_config("toy-density", ["--model.block", kind, *options])
    ir.load_config("toy-density", ["--model.block", "dense", *options])


@pytest.mark.parametrize("kind", SOLVING)
def test_dense_ones_differ_in_the_maps_alone(kind):
    plain, dense = (
        ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, block=name) for name in (kind, f"dense-{kind}")
    )
    kinds, dense_kinds = (
        [type(m) for m in flow.modules() if isinstance(m, (ir.Bijection, DenseConcat))] for flow in (plain, dense)
    )
    assert [k for k in dense_kinds if k is not DenseConcat] == kinds != dense_kinds


def test_an_unknown_kind_is_named():
    with pytest.raises(ir.errors.UnknownNameError, match=r"monoton.*monotone"):
        ir.zoo.build("toy-mlp", shape=(2,), block="monoton")
