"""Analyses of trained models: every number against a closed form or dense algebra, and every command on every task."""

import json
import math
import shutil
import statistics

import numpy as np
import pytest
import torch
from laws import close, dense_jacobian, frozen, randn
from marks import slow
from PIL import Image
from torch import nn

import iresnet as ir
from iresnet import analysis
from iresnet.analysis import (
    InverseAnalysis,
    analyze_inverse,
    analyze_latent,
    analyze_lipschitz,
    analyze_logdet,
    bijection_of,
    dequantized_examples,
    rescaled,
    solver_curves,
    spectra,
)
from iresnet.analysis.estimators import ESTIMATORS
from iresnet.analysis.figures import draw_inverse, draw_latent, draw_lipschitz, draw_logdet
from iresnet.analysis.latents import KSTest, latent_scales
from iresnet.analysis.reference import Converged, Dense, block_calls, reference
from iresnet.analysis.spectra import spectrum
from iresnet.bases import Base
from iresnet.data import Split
from iresnet.errors import DataError, IResNetError, RecipeError
from iresnet.evaluation import calibration
from iresnet.pictures import png, rendered

COMMANDS = ("logdet", "lipschitz", "inverse", "latent")


def linear_block(matrix):
    """x + W x, without a bias and without a constraint."""
    g = nn.Linear(*matrix.shape, bias=False).double()
    g.weight = nn.Parameter(matrix, requires_grad=False)
    return ir.ResidualBlock(nn.Sequential(g)).eval()


def matrix(d=6, norm=0.8):
    m = randn(d, d)
    return norm * m / torch.linalg.matrix_norm(m, 2)


def conv_block(coeff=0.9, hidden=4):
    return ir.ResidualBlock(frozen(ir.networks.conv_bottleneck((2, 3, 4), hidden, coeff=coeff))).double().eval()


# -- log-determinants ------------------------------------------------------------------------------------------------


def truncated(J, n):
    """The series of log(I + J) with n terms, and its error."""
    powers = [torch.linalg.matrix_power(J, k) for k in range(1, 200)]
    terms = [(-1) ** (k + 1) / k * power for k, power in enumerate(powers, start=1)]
    return sum(terms[:n]), -sum(terms[n:])


@pytest.fixture(scope="module")
def of_a_linear_map():
    torch.manual_seed(1)
    J = matrix()
    return J, analyze_logdet(linear_block(J), randn(2, 6), draws=800)


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("probe", ["Gaussian", "Rademacher"])
def test_a_series_has_the_bias_and_spread_of_its_matrix(probe, n, of_a_linear_map):
    J, analysis = of_a_linear_map
    kept, error = truncated(J, n)
    row = analysis.row(f"series, {probe}", n)
    assert row.products == n
    assert abs(row.bias - float(error.trace())) < 4 * row.bias_error + 1e-12
    symmetric = (kept + kept.T) / 2
    variance = 2 * symmetric.square().sum()
    if probe == "Rademacher":
        variance -= 2 * symmetric.diagonal().square().sum()
    assert row.sd == pytest.approx(math.sqrt(variance), rel=0.15)
    inverse = torch.linalg.inv(torch.eye(6).double() + J)
    neumann = sum((-1) ** k * torch.linalg.matrix_power(J, k) for k in range(n))
    expected = torch.linalg.matrix_norm(neumann - inverse) / torch.linalg.matrix_norm(inverse)
    assert row.gradient_error == pytest.approx(float(expected), rel=0.15)


def test_what_is_exact_is_found_to_be(of_a_linear_map):
    J, analysis = of_a_linear_map
    assert analysis.exact
    assert analysis.reference_error < 1e-12
    assert analysis.logdet == pytest.approx(float(torch.linalg.slogdet(torch.eye(6).double() + J)[1]))
    exact = analysis.row("Krylov", 6)  # as many steps as dimensions
    assert abs(exact.bias) < 1e-12
    assert exact.gradient_error < 1e-10
    roulette = analysis.row("roulette")
    assert abs(roulette.bias) < 4 * roulette.bias_error
    assert 2 < roulette.products < 4  # 2 and a geometric number of mean 1


def test_biases_add_up_over_blocks_and_average_over_examples():
    torch.manual_seed(2)
    chain = ir.Chain([conv_block(), ir.Affine(std=2.0), conv_block()]).double()
    x = randn(3, 2, 3, 4)
    analysis = analyze_logdet(chain, x, draws=8, estimators=ESTIMATORS[:1])
    jacobians = [dense_jacobian(call.block.g, call.x).detach() for call in block_calls(chain, x)]
    exact = sum(torch.linalg.slogdet(torch.eye(24).double() + J)[1] for J in jacobians)
    traces = sum(J.diagonal(dim1=1, dim2=2).sum(1) for J in jacobians)
    assert (analysis.blocks, analysis.n) == (2, 3)
    assert analysis.logdet == pytest.approx(float(exact.mean()))
    (row,) = analysis.rows  # of a single term: the trace
    assert abs(row.bias - float((traces - exact).mean())) < 4 * row.bias_error


def test_the_error_of_a_bias_is_its_spread_over_seeds():
    series = [c for c in ESTIMATORS if (c.family, c.size) == ("series, Gaussian", 2)]
    block, x = linear_block(matrix(4)), randn(2, 4)
    rows = [analyze_logdet(block, x, draws=32, seed=10_000 * i, estimators=series).rows[0] for i in range(100)]
    claimed = statistics.fmean(row.bias_error for row in rows)
    assert statistics.stdev(row.bias for row in rows) == pytest.approx(claimed, rel=0.4)


def test_large_blocks_are_compared_with_what_converges_to_the_dense_value(monkeypatch):
    block, x = conv_block(), randn(1, 2, 3, 4)
    (call,) = block_calls(block, x)
    v = randn(7, 24)
    dense, converged = Dense.of(call), Converged(call, tol=1e-9)
    for ours, theirs in zip(converged.evaluate(v)[:2], dense.evaluate(v)[:2], strict=True):
        close(ours, theirs, 1e-7)
    w = randn(3, 2, 3, 4)
    close(converged.linearization(3).vjp(w), dense.linearization(3).vjp(w))
    monkeypatch.setattr("iresnet.analysis.reference.DENSE_LIMIT", 23)
    assert isinstance(reference(call), Converged)
    few = [c for c in ESTIMATORS if (c.family, c.size) in (("series, Rademacher", 1), ("Krylov", 6))]
    analysis = analyze_logdet(block, x, draws=400, estimators=few)
    assert not analysis.exact
    assert "converged" in analysis.method
    assert analysis.reference_error < 1e-5
    sd = analysis.row("Krylov", 6).sd / math.sqrt(400)
    assert abs(analysis.logdet - dense.logdet) < 4 * sd
    assert abs(analysis.row("Krylov", 6).bias) < 1e-6
    trace = analysis.row("series, Rademacher", 1)
    assert abs(trace.bias - float(dense.jacobian.trace()) + dense.logdet) < 4 * trace.bias_error


def test_a_map_that_does_not_contract_is_compared_with_its_determinant():
    J = torch.diag(torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64))
    analysis = analyze_logdet(linear_block(J), randn(1, 3), draws=4)
    assert analysis.logdet == pytest.approx(math.log(2 * 1.5 * 3))
    row = analysis.row("series, Rademacher", 10)
    assert row.bias == pytest.approx(float(truncated(J, 10)[0].trace()) - analysis.logdet)
    assert analysis.row("series, Rademacher", 10).bias < -1000  # diverges


def test_a_spread_needs_two_draws():
    with pytest.raises(IResNetError, match="at least 2"):
        analyze_logdet(linear_block(matrix()), randn(1, 6), draws=1)


# -- Lipschitz constants ---------------------------------------------------------------------------------------------

LAYERS = {
    "dense": lambda: (ir.LipschitzLinear(5, 7, coeff=0.8), (5,)),
    "plain dense": lambda: (nn.Linear(4, 3), (4,)),
    "1x1": lambda: (ir.LipschitzConv2d(3, 5, 1, image_size=(2, 3)), (3, 2, 3)),
    "3x3 wide": lambda: (ir.LipschitzConv2d(2, 5, 3, image_size=(4, 3)), (2, 4, 3)),
    "3x3 narrow": lambda: (ir.LipschitzConv2d(5, 2, 3, image_size=(4, 3)), (5, 4, 3)),
    "even": lambda: (ir.LipschitzConv2d(2, 2, 2, image_size=(4, 4)), (2, 4, 4)),
    "plain": lambda: (nn.Conv2d(2, 3, 3, padding=1), (2, 4, 4)),
    "strided": lambda: (nn.Conv2d(2, 3, 3, padding=1, stride=2), (2, 4, 4)),
    "strided 1x1": lambda: (nn.Conv2d(2, 3, 1, stride=2), (2, 4, 4)),
    "grouped": lambda: (nn.Conv2d(4, 4, 3, padding=1, groups=2), (4, 3, 3)),
    "padded 1x1": lambda: (nn.Conv2d(2, 3, 1, padding=1), (2, 4, 4)),
}


def dense_values(layer, shape):
    return torch.linalg.svdvals(dense_jacobian(layer, torch.zeros(1, *shape).double())[0].detach())


@pytest.mark.parametrize("name", LAYERS)
def test_a_spectrum_is_that_of_the_dense_matrix(name):
    layer, shape = LAYERS[name]()
    frozen(layer)
    found = spectrum(layer, shape)
    assert found.kind == "exact"
    close(found.values, dense_values(layer, shape)[: len(found.values)], 1e-7)
    close(dense_values(layer, shape)[len(found.values) :], 0 * dense_values(layer, shape)[len(found.values) :], 1e-7)


@pytest.mark.parametrize("name", ["3x3 wide", "3x3 narrow", "even", "plain"])
def test_the_spectrum_of_the_torus_is_that_of_the_circular_convolution_and_lies_above(name, monkeypatch):
    layer, (c, h, w) = LAYERS[name]()
    frozen(layer)
    exact = spectrum(layer, (c, h, w)).values
    monkeypatch.setattr(spectra, "LARGEST_SIDE", 0)
    found = spectrum(layer, (c, h, w))
    kh, kw = layer.kernel_size

    def circular(x):
        return nn.functional.conv2d(nn.functional.pad(x, (0, kw - 1, 0, kh - 1), mode="circular"), layer.weight)

    on_torus = dense_values(circular, (c, h + kh - 1, w + kw - 1))
    close(found.values, on_torus[: len(found.values)], 1e-7)
    assert found.kind == "circular"
    assert bool((found.values[: len(exact)] >= exact - 1e-9).all())
    assert found.at(5)[0] == float(found.values[0]) >= found.at(5)[-1] == float(found.values[-1])


def test_what_is_too_large_and_no_plain_convolution_has_no_spectrum(monkeypatch):
    monkeypatch.setattr(spectra, "LARGEST_SIDE", 0)
    layer, shape = LAYERS["strided"]()
    assert spectrum(layer, shape) is None


@pytest.mark.parametrize("normalization", ["power", "gram", "linf"])
def test_bounds_of_layers_enclose_their_norms_and_blocks_multiply(normalization):
    g = frozen(ir.networks.conv_bottleneck((2, 4, 4), 4, coeff=0.8, normalization=normalization))
    model = ir.Chain([ir.ActNorm(2), ir.ResidualBlock(g)]).double().eval()
    analysis = analyze_lipschitz(model, (2, 4, 4))
    assert [row.name for row in analysis.layers] == [f"bijections.1.g.{i}" for i in (1, 3, 5)]
    assert analysis.certified
    for row in analysis.layers:
        assert row.coeff == 0.8
        assert row.norm == (math.inf if normalization == "linf" else 2)
        assert 0.9 * row.upper <= row.lower <= row.upper * (1 + 1e-9)
        assert row.estimate <= 0.8 * (1 + 1e-6)
        layer = model.get_submodule(row.name)
        largest = float(dense_values(layer, (layer.in_channels, 4, 4))[0])
        assert row.singular_values[0] == pytest.approx(largest)
        assert normalization == "linf" or row.lower == pytest.approx(largest) or row.lower > largest
    (block,) = analysis.blocks
    assert block.upper == pytest.approx(math.prod(row.upper for row in analysis.layers))
    assert analysis.network is not None


def test_layers_that_nothing_holds_have_no_coefficient_and_no_certificate():
    g = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.Conv2d(4, 2, 3, padding=1)).double()
    with torch.no_grad():
        g[0].weight.mul_(10)
    analysis = analyze_lipschitz(ir.ResidualBlock(g).eval(), (2, 4, 4))
    assert not analysis.certified
    assert [(row.coeff, row.estimate) for row in analysis.layers] == [(None, None)] * 2
    assert "not every map" in analysis.summary
    assert all(row.singular_values[0] <= row.upper for row in analysis.layers)


def test_a_network_without_blocks_shows_all_its_layers():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3)).eval()
    analysis = analyze_lipschitz(network, (1, 8, 8))
    assert [row.kind for row in analysis.layers] == ["conv 3x3", "dense"]
    assert not analysis.certified
    assert draw_lipschitz(analysis)
    with pytest.raises(RecipeError, match="is no bijection"):
        bijection_of(network)
    with pytest.raises(RecipeError, match="no residual blocks"):
        block_calls(ir.Chain([]), randn(2, 3))


# -- inverses --------------------------------------------------------------------------------------------------------


def test_errors_of_a_multiple_of_the_identity_fall_by_its_factor():
    subject = analyze_inverse(linear_block(-0.6 * torch.eye(3).double()), randn(4, 3), label="", scale=2.0)
    (block,) = subject.blocks
    assert subject.bound == pytest.approx(0.6)
    assert block.errors == pytest.approx([0.6**k for k in range(1, 41)], rel=1e-6)
    assert block.within_bound
    ratios = np.array(subject.curve.largest)[1:] / np.array(subject.curve.largest)[:-1]
    assert ratios[:5] == pytest.approx([0.6] * 5)  # steps 1 to 6
    assert subject.curve.evaluations == subject.curve.steps
    assert subject.verdict == "converges"
    assert subject.coeff is None


def test_the_error_is_that_of_the_round_trip_in_units_of_the_range():
    torch.manual_seed(4)
    block, x = conv_block(), randn(3, 2, 3, 4)
    curve = analyze_inverse(block, x, label="", scale=5.0).curve
    y = block(x)
    errors = {}
    for step in range(1, 41):
        y = block(x) - block.g(y)
        errors[step] = (y - x).flatten(1).square().mean(1).sqrt().detach() / 5
    expected = [errors[step] for step in curve.steps]
    assert curve.median == pytest.approx([float(e.median()) for e in expected], rel=1e-6, abs=1e-14)
    assert curve.largest == pytest.approx([float(e.max()) for e in expected], rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("normalization", ["power", "linf"])
@pytest.mark.parametrize("coeff", [0.5, 0.9])
def test_every_block_keeps_within_its_proved_rate(coeff, normalization):
    torch.manual_seed(3)
    gs = [frozen(ir.networks.mlp(5, 8, coeff=coeff, normalization=normalization)) for _ in range(3)]
    chain = ir.Chain([ir.ResidualBlock(g) for g in gs]).double().eval()
    subject = analyze_inverse(chain, 3 * randn(10, 5), label="", scale=1.0)
    assert subject.coeff == coeff
    assert subject.bound <= coeff**3 * (1 + 1e-6)
    for block in subject.blocks:
        assert block.within_bound
        assert block.norm == (2 if normalization == "power" else math.inf)
        tighter = [error / block.bound**k for k, error in enumerate(block.errors[:5], start=1)]
        assert max(tighter) <= 1 + 1e-9
    assert not subject.curve.diverges


def test_a_network_that_does_not_contract_diverges_and_is_said_to():
    torch.manual_seed(5)
    g = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 2, 3, padding=1)).double()
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.mul_(6)
    x = randn(4, 2, 4, 4)
    subject = analyze_inverse(ir.ResidualBlock(g).eval(), x, label="twin", scale=1.0)
    assert subject.curve.diverges
    assert subject.verdict == "diverges, not certified"
    assert subject.curve.steps_to(1e-3) is None
    analysis = InverseAnalysis((subject,), solver_curves(ir.ResidualBlock(g), x, scale=1.0), 4)
    assert "twin (no coefficient): diverges, not certified" in analysis.summary
    assert draw_inverse(analysis)


def test_a_network_that_hardly_contracts_is_not_said_to_converge():
    subject = analyze_inverse(linear_block(-0.99 * torch.eye(3).double()), randn(4, 3), label="", scale=1.0)
    assert not subject.curve.diverges
    assert subject.verdict == "not converged in 40 steps"


def test_accelerated_solvers_take_fewer_evaluations():
    torch.manual_seed(6)
    chain = ir.Chain([conv_block() for _ in range(2)])
    plain, anderson, newton = solver_curves(chain, randn(4, 2, 3, 4), scale=1.0)
    assert [curve.solver for curve in (plain, anderson, newton)] == ["fixed-point", "anderson", "newton-krylov"]
    assert anderson.largest[6] < 0.1 * plain.largest[6]  # after 8 steps
    for curve in (plain, anderson, newton):
        assert curve.largest[-1] < 1e-4 * curve.largest[0]
        assert all(n <= 45 for n in curve.evaluations)
    assert newton.evaluations[:3] == [1, 7, 13]


def test_steps_are_those_from_which_on_the_error_stays_below():
    curve = solver_curves(conv_block(), randn(2, 2, 3, 4), scale=1.0)[0]
    for error in (1e-1, 1e-3, 1e-6):
        step = curve.steps_to(error)
        i = curve.steps.index(step)
        assert max(curve.largest[i:]) <= error
        assert i == 0 or curve.largest[i - 1] > error
    assert curve.steps_to(1e-30) is None


def test_rescaled_layers_have_the_other_coefficient_for_the_time_being():
    block, x = conv_block(0.9), randn(3, 2, 3, 4)
    before = block(x)
    bound = ir.certify(block).blocks[0].upper
    with rescaled(block, 0.45):
        assert ir.certify(block).blocks[0].upper == pytest.approx(bound / 8)
    close(block(x), before)
    free = ir.ResidualBlock(frozen(ir.networks.mlp(2, 3)))
    free.g[0].normalization.coeff = math.inf
    with pytest.raises(IResNetError, match="without a coefficient"), rescaled(free, 0.5):
        pass


# -- latents ---------------------------------------------------------------------------------------------------------


def student(n, d):
    return torch.distributions.StudentT(torch.tensor(5.0).double()).sample((n, d)) / math.sqrt(5 / 3)


LATENTS = {
    "normal": (lambda: randn(2000, 6), []),
    "too wide": (lambda: 1.2 * randn(2000, 6), ["elements of scale 1", "lengths", "independence"]),
    "shifted": (lambda: randn(2000, 6) + 0.3, ["elements of scale 1", "lengths"]),
    "correlated": (lambda: randn(2000, 6) @ (0.8 * torch.eye(6) + 0.2).double() / 0.89, ["independence"]),
    "heavy tails": (lambda: student(4000, 20), ["elements of scale 1", "lengths"]),
    "lengths that vary": (lambda: randn(4000, 20) * (1 + 0.15 * randn(4000, 1)) / 1.01, ["lengths"]),
}


@pytest.mark.parametrize("name", LATENTS)
def test_a_normal_latent_passes_and_others_are_found_out(name):
    make, expected = LATENTS[name]
    z = make()
    analysis = analyze_latent(ir.Chain([]), z, base=ir.StandardNormal(z.shape[1]))
    assert set(expected) <= set(analysis.rejected)
    assert bool(expected) == bool(analysis.rejected)
    assert ("rejected by" in analysis.summary) == bool(expected)


def test_normal_latents_are_rejected_as_rarely_as_the_level_says():
    rejected = [
        r for _ in range(40) for r in analyze_latent(ir.Chain([]), randn(200, 8), base=ir.StandardNormal(8)).rejected
    ]
    assert len(rejected) <= 1


def test_latents_are_compared_with_the_learned_density():
    base = ir.DiagonalNormal(3).double()
    with torch.no_grad():
        base.mean.copy_(torch.tensor([1.0, -2.0, 0.0]))
        base.log_std.copy_(torch.tensor([0.5, -1.0, 0.2]))
    z = base.sample(3000).detach()
    analysis = analyze_latent(ir.Chain([]), z, base=base)
    assert analysis.rejected == []
    standardized = (z - torch.tensor([1.0, -2.0, 0.0])) / torch.tensor([0.5, -1.0, 0.2]).double().exp()
    close(torch.tensor(analysis.moments.mean), standardized.mean(0))
    close(torch.tensor(analysis.moments.sd), standardized.std(0))
    assert analysis.radius.mean == pytest.approx(float(standardized.square().mean()))
    assert sum(analysis.radius.counts) == 3000
    assert analyze_latent(ir.Chain([]), z, base=ir.StandardNormal(3)).rejected


@pytest.mark.parametrize("shape", [(50, 7), (12, 30), (9, 1)])
def test_principal_components_are_those_of_the_dense_decomposition(shape):
    z = randn(*shape) * torch.linspace(1, 3, shape[1]).double()
    labels = torch.arange(shape[0]) % 3
    found = analyze_latent(ir.Chain([]), z, labels).projection
    centered = z - z.mean(0)
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    close(torch.tensor(found.variances[: len(s)]), s[:20].square() / shape[0], 1e-9)
    points = torch.tensor(found.points)
    close(points.abs(), (u * s)[:, : min(2, shape[1])].abs(), 1e-8)
    assert found.labels == labels.tolist()
    assert found.edge is None


def test_scales_are_those_at_which_dimensions_leave():
    flow = ir.zoo.build("iresnet-multiscale", shape=(1, 8, 8), blocks=(1, 1, 1), strides=(1, 2, 1), hidden=4)
    assert latent_scales(flow.bijection, 64) == [("scale 1", 0, 32), ("scale 2", 32, 48), ("scale 3", 48, 64)]
    assert latent_scales(ir.Chain([]), 5) == [("scale 1", 0, 5)]


def test_latents_that_tell_nothing_are_refused():
    with pytest.raises(DataError, match="at least 8"):
        analyze_latent(ir.Chain([]), randn(7, 2))
    with pytest.raises(DataError, match="not finite"):
        analyze_latent(ir.Chain([]), torch.full((9, 2), math.nan))
    with pytest.raises(
        RecipeError, match=r"Other is not known to be normal with independent features, .* give it moments"
    ):
        analyze_latent(ir.Chain([]), randn(9, 2), base=type("Other", (Base,), {"log_prob": None, "sample": None})(2))
    assert str(KSTest(0.1, 0.5, 10)) == "KS 0.100 (p = 0.5, n = 10)"


def test_examples_are_dequantized_and_the_same_each_time():
    split = Split(torch.arange(200, dtype=torch.uint8).view(50, 4), torch.arange(50))
    first, again = (dequantized_examples(split, 8, levels=256, seed=3) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert first.x.dtype == torch.float64
    assert torch.equal(first.x.floor().to(torch.uint8), split.x[first.y])
    assert len(dequantized_examples(split, 99, levels=256)) == 50


# -- commands --------------------------------------------------------------------------------------------------------

FAST = {
    "logdet": ("--n", "2", "--draws", "4"),
    "inverse": ("--n", "2", "--coeff", "0.5", "1.2"),
    "latent": ("-n", "100"),
}


def read(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["density", slow("classify"), slow("hybrid"), "toy"])
def test_every_command_analyses_every_kind_of_run(kind, command, trained, tmp_path, call):
    folder = shutil.copytree(trained(kind), tmp_path / "run")
    status, out, err = call("analyze", command, folder, *FAST.get(command, ()))
    assert (status, err) == (0, "")
    tree = read(folder / "analysis" / f"{command}.json")
    assert tree["summary"].endswith(".")
    assert tree["summary"] in out or command == "logdet"
    assert len(tree["model_sha256"]) == 64
    assert f"wrote {folder / 'analysis' / f'{command}.json'}" in out
    with Image.open(folder / "analysis" / f"{command}.png") as picture:
        assert picture.width == 900
    check = {"logdet": check_logdet, "lipschitz": check_lipschitz, "inverse": check_inverse, "latent": check_latent}
    check[command](tree, kind)


def check_logdet(tree, _):
    assert tree["exact"]
    assert (tree["n"], tree["draws"], tree["blocks"]) == (2, 4, 2)
    assert len(tree["rows"]) == len(ESTIMATORS)
    biases = {(row["family"], row["size"]): abs(row["bias"]) for row in tree["rows"]}
    assert biases["Krylov", 6] < 0.1 * biases["series, Gaussian", 1]


def check_lipschitz(tree, _):
    assert tree["certified"]
    assert [len(tree["layers"]), len(tree["blocks"])] == [6, 2]
    assert all(0 < row["singular_values"][0] <= row["upper"] < 1.011 * row["coeff"] for row in tree["layers"])


def check_inverse(tree, _):
    own, half, beyond = tree["subjects"]
    assert (own["label"], own["certified"], own["diverges"]) == ("run", True, False)
    assert [half["coeff"], beyond["coeff"]] == [0.5, 1.2]
    assert half["bound"] < own["bound"] < 1 < beyond["bound"]
    assert all(block["within_bound"] for subject in (own, half) for block in subject["blocks"])
    assert own["curve"]["largest"][-1] < 1e-4
    assert len(tree["solvers"]) == 3


def check_latent(tree, kind):
    assert tree["n"] == 100
    assert (tree["radius"] is None) == (kind == "classify")
    assert len(tree["projection"]["points"]) == 100
    assert bool(tree["projection"]["labels"]) == (kind != "toy")
    if kind != "classify":
        assert len(tree["moments"]["mean"]) == tree["dims"]
        assert len(tree["scales"][0]["quantiles"]) == len(tree["normal_quantiles"])


def test_inverses_of_several_runs_are_curves_of_one_figure(trained, tmp_path, call):
    first = shutil.copytree(trained("density"), tmp_path / "first" / "toy")
    status, _, err = call("analyze", "inverse", first, trained("toy"), "--n", 2, "--out", tmp_path / "both")
    assert (status, err) == (0, "")
    tree = read(tmp_path / "both" / "analysis" / "inverse.json")
    assert [subject["label"] for subject in tree["subjects"]] == ["first", trained("toy").parent.name]
    assert tree["runs"] == [str(first), str(trained("toy"))]
    assert not (first / "analysis").exists()
    status, _, err = call("analyze", "inverse", first, trained("toy"), "--coeff", 0.5)
    assert (status, err.count("\n")) == (2, 1)
    assert "single run" in err


BAD = {
    "no run": (("logdet", "nowhere"), "not a run folder"),
    "no run for inverses": (("inverse", "nowhere"), "not a run folder"),
    "a split that is none": (("latent", "RUN", "--split", "tset"), "did you mean 'test'"),
    "one draw": (("logdet", "RUN", "--draws", "1"), ">= 2"),
    "a negative coefficient": (("inverse", "RUN", "--coeff", "-1"), "> 0"),
    "too few examples": (("latent", "RUN", "--n", "3"), "at least 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, trained, tmp_path, call):
    tokens, message = BAD[name]
    folder = shutil.copytree(trained("toy"), tmp_path / "run")
    status, out, err = call("analyze", *(folder if token == "RUN" else token for token in tokens))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (folder / "analysis").exists()


def test_help_says_what_each_command_does(call):
    status, out, _ = call("analyze", "--help")
    assert status == 0
    assert all(command in out for command in COMMANDS)
    for command in COMMANDS:
        assert call("analyze", command, "--help")[0] == 0


def test_figures_are_as_wide_as_a_page(of_a_linear_map):
    latent = analyze_latent(ir.Chain([]), randn(20, 2), torch.arange(20) % 9, base=ir.StandardNormal(2))
    for figure in (draw_logdet(of_a_linear_map[1]), draw_latent(latent, ["one", "two"])):
        assert png(rendered(figure)).startswith(b"\x89PNG")


EMPTY = {
    "logdet": analysis.LogDetAnalysis(
        rows=(), logdet=math.nan, exact=True, reference_error=0.0, dims=2, blocks=0, n=0, draws=2
    ),
    "lipschitz": analysis.LipschitzAnalysis(layers=(), blocks=(), network=None),
    "inverse": analysis.InverseAnalysis(networks=(), solvers=(), n=0),
    "calibration": calibration(torch.zeros(0), torch.zeros(0, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_results_without_entries_can_be_printed(name):
    assert str(EMPTY[name]).count("\n") == 0
    if name != "calibration":
        assert EMPTY[name].to_dict()["summary"].endswith(".")


def test_an_analysis_of_some_estimators_says_what_it_knows():
    chain = ir.Chain([ir.ResidualBlock(ir.networks.mlp(2, 4))]).double().eval()
    few = [c for c in ESTIMATORS if c.family == "Krylov"]
    found = analysis.analyze_logdet(chain, torch.randn(2, 2, dtype=torch.float64), draws=4, estimators=few)
    assert found.to_dict()["summary"] == f"The log-determinant is {found.logdet:.4g} nats (mean of 2 examples)."
