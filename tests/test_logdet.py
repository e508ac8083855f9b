"""Estimators of log det(I + J): value and gradient against dense determinants and matrix logarithms."""

import itertools
import math

import pytest
import scipy.linalg
import torch
from laws import (
    CONTRACTIONS,
    close,
    contraction,
    counted,
    dense_jacobian,
    dense_logdet,
    gradients,
    operator,
    randn,
    within_4_errors,
)
from torch import Tensor

import iresnet as ir
from iresnet.errors import IResNetError
from iresnet.krylov import KrylovSpace
from iresnet.probes import PROBES
from iresnet.series import LENGTHS
from iresnet.zoo import LOGDETS, make_logdet

pytestmark = pytest.mark.usefixtures("default_device")


def normed(matrix: Tensor, size: float) -> Tensor:
    return size * matrix / torch.linalg.matrix_norm(matrix, 2)


def spectrum(*eigenvalues: float) -> Tensor:
    q = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues)))[0]
    return q * torch.tensor(eigenvalues, dtype=torch.float64) @ q.T


ORDINARY = {
    "random": lambda: normed(randn(6, 6), 0.8),
    "far from normal": lambda: normed(randn(5, 5).triu(1) + 0.1 * randn(5, 5), 0.9),
    "Jordan block": lambda: (
        0.45 * (torch.eye(5, dtype=torch.float64) + torch.eye(5, dtype=torch.float64).roll(1, 1).triu())
    ),
    "rotation": lambda: 0.9 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64),
    "contracting": lambda: spectrum(-0.9, -0.89, -0.8, -0.5),
    "expanding": lambda: spectrum(0.9, 0.89, 0.8, 0.5),
}
BREAKDOWNS = {
    "zero": lambda: torch.zeros(4, 4, dtype=torch.float64),
    "one dimension": lambda: -0.7 * torch.ones(1, 1, dtype=torch.float64),
    "multiple of the identity": lambda: -0.8 * torch.eye(7, dtype=torch.float64),
    "multiple that rounds": lambda: 0.3 / 7 * torch.eye(6, dtype=torch.float64),
    "rank one": lambda: normed(randn(6, 1) @ randn(1, 6), 0.9),
    "nilpotent": lambda: 0.9 * torch.eye(3, dtype=torch.float64).roll(1, 1).triu(),
    "projection": lambda: -0.5 * spectrum(1.0, 1.0, 0.0, 0.0, 0.0),
}
MATRICES = ORDINARY | BREAKDOWNS


@pytest.fixture(autouse=True)
def _all_signs(monkeypatch):
    """Probes that run through all sign vectors: over 2^D samples the mean is the expectation, without chance."""

    def signs(x, _n, _generator):
        yield torch.tensor(list(itertools.product([-1.0, 1.0], repeat=x[0].numel())), dtype=x.dtype).view_as(x)

    monkeypatch.setitem(PROBES, "all signs", signs)


def identity_plus(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype) + matrix


def matrix_log(matrix: Tensor) -> Tensor:
    return torch.from_numpy(scipy.linalg.logm(identity_plus(matrix).numpy()).real)


def series(matrix: Tensor, n_terms: int) -> Tensor:
    return sum(-torch.linalg.matrix_power(-matrix, k) / k for k in range(1, n_terms + 1))


# -- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_exact_is_the_dense_determinant_in_value_and_gradient(name):
    g, x = contraction(name)
    x.requires_grad_()
    weights = torch.linspace(-1, 2, len(x), dtype=x.dtype)
    actual = ir.Exact()(ir.linearize(g, x))
    expected = dense_logdet(lambda x: x + g(x), x)
    close(actual, expected)
    inputs = [x, *g.parameters()]
    close(gradients((weights * actual).sum(), inputs), gradients((weights * expected).sum(), inputs))


def test_exact_refuses_what_does_not_fit_and_says_what_to_use():
    with pytest.raises(IResNetError, match=r"GiB for 2 dense Jacobians of 3 x 3.*Krylov"):
        ir.Exact(max_gib=1e-9)(operator(torch.zeros(2, 3, 3)))


# -- the value for a given probe, and its expectation -----------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_krylov_with_all_steps_is_the_matrix_logarithm_for_every_probe(name):
    matrix = MATRICES[name]()
    d = len(matrix)
    value = ir.Krylov(d + 3, probe="all signs")(operator(matrix.expand(2**d, d, d)))
    v = next(PROBES["all signs"](torch.empty(2**d, d, dtype=torch.float64), 1, None))
    close(value, torch.einsum("ni,ij,nj->n", v, matrix_log(matrix), v), 1e-7)


@pytest.mark.parametrize("n_terms", [1, 2, 5])
@pytest.mark.parametrize("name", MATRICES)
def test_power_series_is_its_own_truncated_series_for_every_probe(name, n_terms):
    matrix = MATRICES[name]()
    d = len(matrix)
    value = ir.PowerSeries(n_terms, probe="all signs")(operator(matrix.expand(2**d, d, d)))
    v = next(PROBES["all signs"](torch.empty(2**d, d, dtype=torch.float64), 1, None))
    close(value, torch.einsum("ni,ij,nj->n", v, series(matrix, n_terms), v))


TRUTHS = {
    "krylov": (lambda: ir.Krylov(9, probe="all signs"), lambda a: torch.linalg.slogdet(identity_plus(a))[1]),
    "krylov to a tolerance": (
        lambda: ir.Krylov(tol=1e-12, probe="all signs"),
        lambda a: torch.linalg.slogdet(identity_plus(a))[1],
    ),
    "one term": (lambda: ir.PowerSeries(1, probe="all signs"), lambda a: series(a, 1).trace()),
    "two terms": (lambda: ir.PowerSeries(2, probe="all signs"), lambda a: series(a, 2).trace()),
    "five terms": (lambda: ir.PowerSeries(5, probe="all signs"), lambda a: series(a, 5).trace()),
}


@pytest.mark.parametrize("estimator", TRUTHS)
@pytest.mark.parametrize("name", MATRICES)
def test_expected_value_and_gradient_are_those_of_the_closed_form(name, estimator):
    matrix = MATRICES[name]().requires_grad_()
    make, truth = TRUTHS[estimator]
    value = make()(operator(matrix.expand(2 ** len(matrix), -1, -1))).mean()
    expected = truth(matrix)
    close(value, expected, 1e-7)
    close(gradients(value, [matrix]), gradients(expected, [matrix]), 1e-7)


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_expected_gradient_of_a_network_is_exact(name):
    g, x = contraction(name)
    x = x[:1].requires_grad_()
    jacobian = ir.linearize(g, x.expand(2 ** x.numel(), *x.shape[1:]))
    inputs = [x, *g.parameters()]
    value = ir.Krylov(x.numel(), probe="all signs")(jacobian).mean()
    expected = dense_logdet(lambda x: x + g(x), x).sum()
    close(value, expected, 1e-7)
    close(gradients(value, inputs), gradients(expected, inputs), 1e-7)


# -- every estimator -------------------------------------------------------------------------------------------------

MILD = 0.1  # |J| at which every default estimator's truncation is below 1e-5


@pytest.mark.parametrize("name", LOGDETS)
def test_every_estimator_is_unbiased_in_value_and_gradient(name):
    matrix = normed(randn(5, 5), MILD).requires_grad_()
    batch = matrix.detach().expand(50, 5, 5).clone().requires_grad_()
    estimator = make_logdet(name)
    values, slopes = [], []
    for _ in range(400):  # calls, since the samples of one call may share some of its randomness
        value = estimator(operator(batch)).mean()
        values.append(value.detach())
        slopes.append(gradients(value, [batch])[0].sum(0))
    expected = torch.linalg.slogdet(identity_plus(matrix))[1]
    within_4_errors(torch.stack(values), expected.detach(), bias=1e-5)
    within_4_errors(torch.stack(slopes), gradients(expected, [matrix])[0], bias=1e-4)


@pytest.mark.parametrize("name", LOGDETS)
def test_upstream_weights_act_per_sample(name):
    batch = torch.stack([normed(randn(4, 4), 0.5) for _ in range(6)]).requires_grad_()
    weights = torch.linspace(-3, 3, 6, dtype=torch.float64)

    def gradient(weights: Tensor) -> Tensor:
        torch.manual_seed(1)
        return gradients((weights * make_logdet(name)(operator(batch))).sum(), [batch])[0]

    close(gradient(weights), weights.view(-1, 1, 1) * gradient(torch.ones_like(weights)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("matrix", BREAKDOWNS)
@pytest.mark.parametrize("name", LOGDETS)
def test_breakdown_is_finite(name, matrix, batch, dtype):
    a = BREAKDOWNS[matrix]().to(dtype).expand(batch, -1, -1).clone().requires_grad_()
    value = make_logdet(name)(operator(a))
    (gradient,) = gradients(value.sum(), [a])
    assert value.shape == (batch,)
    assert value.dtype == gradient.dtype == dtype
    assert bool(value.isfinite().all() & gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("matrix", "n_steps"),
    [
        ("zero", 1),
        ("one dimension", 1),
        ("multiple of the identity", 1),
        ("multiple that rounds", 1),
        ("rank one", 2),
        ("projection", 2),
    ],
)
@pytest.mark.parametrize("more", [0, 1, 5])
def test_krylov_is_exact_once_its_space_is_closed(matrix, n_steps, more, dtype):
    a = BREAKDOWNS[matrix]()
    batch = a.to(dtype).expand(2 ** len(a), -1, -1).clone().requires_grad_()
    value = ir.Krylov(n_steps + more, probe="all signs")(operator(batch))
    v = next(PROBES["all signs"](torch.empty(2 ** len(a), len(a), dtype=torch.float64), 1, None))
    tol = 1e-7 if dtype == torch.float64 else 2e-5
    close(value.double(), torch.einsum("ni,ij,nj->n", v, matrix_log(a), v), tol)
    expected = torch.linalg.inv(identity_plus(a)).T
    close(gradients(value.mean(), [batch])[0].sum(0).double(), expected, tol)


@pytest.mark.parametrize("wrap", [lambda g: g, lambda g: lambda x: g(x)], ids=["rules", "torch.func"])
@pytest.mark.parametrize("name", LOGDETS)
def test_bf16_autocast_keeps_reductions_in_float32(name, wrap):
    g = ir.networks.conv_bottleneck((2, 4, 4), 8).eval()
    x = torch.randn(3, 2, 4, 4)

    def run():
        torch.manual_seed(2)
        value = make_logdet(name)(ir.linearize(wrap(g), x))
        return value, gradients(value.sum(), g.parameters())

    value, gradient = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, half_gradient = run()
    assert half.dtype == torch.float32
    close(half, value, 0.1)
    close(half_gradient, gradient, 0.15)


@pytest.mark.parametrize("name", LOGDETS)
def test_without_autograd_nothing_is_recorded(name):
    jacobian, calls = counted(operator(torch.stack([normed(randn(4, 4), 0.5)] * 2).requires_grad_()))
    with torch.no_grad():
        value = make_logdet(name)(jacobian)
    assert calls["recorded"] == 0
    assert not value.requires_grad


# -- costs, probes, options ------------------------------------------------------------------------------------------

STOCHASTIC = {name: cls for name, cls in LOGDETS.items() if cls is not ir.Exact}


@pytest.mark.parametrize("n_probes", [1, 3])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_only_one_product_a_probe_is_recorded(name, n_probes):
    jacobian, calls = counted(operator(torch.stack([normed(randn(9, 9), 0.5)] * 2).requires_grad_()))
    STOCHASTIC[name](n_probes=n_probes)(jacobian)
    assert calls["recorded"] == calls["jvp"] == n_probes
    jacobian, calls = counted(operator(torch.zeros(2, 9, 9)))
    STOCHASTIC[name](n_probes=n_probes)(jacobian)
    assert calls["recorded"] == calls["jvp"] == 0


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("make", [ir.Krylov, ir.PowerSeries])
def test_steps_and_terms_cost_one_product_each(make, n):
    jacobian, calls = counted(operator(torch.stack([normed(randn(9, 9), 0.5)] * 2)))
    make(n)(jacobian)
    assert calls["vjp"] == n


@pytest.mark.parametrize("options", [{"n_steps": 9}, {"tol": 1e-300}])
def test_krylov_takes_no_more_steps_than_there_are_dimensions(options):
    jacobian, calls = counted(operator(torch.stack([normed(randn(3, 3), 0.5)] * 2)))
    ir.Krylov(**options)(jacobian)
    assert calls["vjp"] == 3


def test_the_krylov_basis_stays_orthonormal_where_one_projection_loses_it():
    matrix = -0.5 * torch.eye(200) + 1e-5 * torch.randn(200, 200)  # in float32 the new directions are near rounding
    space = KrylovSpace(lambda q: q @ matrix, torch.randn(4, 200), max_steps=6)
    while not space.complete:
        space.extend()
    basis = space.Q.transpose(0, 1)
    close(basis @ basis.mT, torch.eye(6).expand(4, 6, 6), 1e-5)


def test_a_krylov_basis_depends_neither_on_the_size_of_the_matrix_nor_on_other_samples():
    """A small matrix leaves little beside the basis; that is not rounding, and the space not closed."""
    matrix, sizes = normed(randn(8, 8), 0.9), torch.tensor([1.0, 1e-9, 1e-20], dtype=torch.float64)[:, None]
    space = KrylovSpace(lambda q: sizes * (q @ matrix.T), randn(1, 8).expand(3, 8), max_steps=4)
    for _ in range(3):
        space.extend()
    close(space.Q[:, 1:], space.Q[:, :1].expand(-1, 2, -1), 1e-10)
    close(space.H[1:] / sizes[1:, None], space.H[:1].expand(2, -1, -1), 1e-10)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_probes_are_averaged_and_drawn_from_the_generator(name):
    jacobian = operator(normed(randn(6, 6), 0.8).expand(5, 6, 6))
    generator = torch.Generator()

    def estimate(n_probes: int) -> Tensor:
        return STOCHASTIC[name](n_probes=n_probes, generator=generator)(jacobian)

    generator.manual_seed(3)
    single = torch.stack([estimate(1) for _ in range(3)])
    generator.manual_seed(3)
    close(estimate(3), single.mean(0))
    assert bool((single.std(0) > 0).all()), "a probe was drawn twice"
    assert bool((single.std(1) > 0).all()), "samples share a probe"


@pytest.mark.parametrize("n", [1, 5, 8])
@pytest.mark.parametrize("probe", sorted(set(PROBES) - {"fixed", "shared"}))
def test_each_probe_has_the_identity_as_second_moment(probe, n):
    probes = list(PROBES[probe](torch.empty(20_000, 3, dtype=torch.float64), n, torch.Generator().manual_seed(4)))
    assert len(probes) == n
    for v in probes:
        within_4_errors(v, 0.0)
        within_4_errors(torch.einsum("ni,nj->nij", v, v), torch.eye(3).double(), bias=1e-12)


def test_fixed_probes_are_the_same_signs_for_every_sample_and_call():
    first, second = (torch.stack(list(PROBES["fixed"](torch.empty(n, 4, 4, 4), 8, None))) for n in (5, 2))
    assert bool((first == first[:, :1]).all())
    close(second, first[:, :2], 0.0)
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    gram = first[:, 0].flatten(1) @ first[:, 0].flatten(1).T
    assert float(gram.fill_diagonal_(0).abs().max()) == 0


@pytest.mark.parametrize("probe", ["hadamard", "fixed"])
@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 2, 5), (1, 8, 8), (13,)])
def test_as_many_hadamard_probes_as_dimensions_give_the_exact_trace(shape, probe):
    d = math.prod(shape)
    matrix = normed(randn(d, d), 0.8)
    n = 2 ** sum((size - 1).bit_length() for size in (shape if len(shape) == 1 else (shape[0], *2 * (max(shape[1:]),))))
    probes = torch.stack(list(PROBES[probe](torch.empty(5, *shape, dtype=torch.float64), n, None))).flatten(2)
    close(torch.einsum("kni,ij,knj->n", probes, matrix, probes) / n, matrix.trace().expand(5))


def test_hadamard_probes_nearly_cancel_the_errors_of_local_jacobians():
    """Of a convolution, 64 have less than a hundredth of the variance of 64 independent ones."""
    g = ir.networks.conv_bottleneck((2, 8, 8), 8)
    x = randn(1, 2, 8, 8).expand(32, 2, 8, 8)
    jacobian = ir.linearize(g.double(), x)
    exact = ir.Exact()(ir.linearize(g, x[:1]))
    variance = {}
    for probe in ("hadamard", "rademacher"):
        values = ir.Krylov(12, n_probes=64, probe=probe, generator=torch.Generator().manual_seed(1))(jacobian).detach()
        within_4_errors(values, exact.detach(), bias=1e-6)
        variance[probe] = float(values.var())
    assert variance["hadamard"] < 0.01 * variance["rademacher"]


@pytest.mark.parametrize("name", MATRICES)
def test_the_krylov_inverse_is_its_projection_and_a_step_along_the_residual(name):
    a = MATRICES[name]()
    v = randn(4, len(a))
    for m in range(1, len(a) + 1):
        space = KrylovSpace(lambda q: q @ a.T, v, m)
        while not space.complete:
            space.extend()
        powers = torch.stack([torch.linalg.matrix_power(a, k) @ v.T for k in range(m)])  # (m, D, N)
        for i in range(len(v)):
            u, s, _ = torch.linalg.svd(powers[:, :, i].T, full_matrices=False)
            q = u[:, s > 1e-9 * s[0]]
            w = q @ torch.linalg.solve(q.T @ identity_plus(a) @ q, q.T @ v[i])
            close(space.solve()[1][i], w + v[i] - identity_plus(a) @ w, 1e-6)
            close(space.inverse()[i], space.solve()[1][i])


def test_rademacher_probes_have_the_smaller_variance():
    batch = operator(normed(randn(8, 8), 0.8).expand(4000, 8, 8))
    variance = {probe: ir.Krylov(8, probe=probe)(batch).var() for probe in ("rademacher", "gaussian")}
    assert variance["rademacher"] < 0.9 * variance["gaussian"]


SPECTRA = {
    "random": (lambda: normed(randn(10, 10), 0.8), 1),
    "contracting": (lambda: spectrum(*torch.linspace(-0.9, 0, 10).tolist()), 20),
    "expanding": (lambda: spectrum(*torch.linspace(0, 0.9, 10).tolist()), 20),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_krylov_error_falls_geometrically_and_below_that_of_the_series(name):
    make, gain = SPECTRA[name]
    batch = operator(make().expand(2**10, 10, 10))
    exact = ir.Krylov(10, probe="all signs")(batch)
    errors = [float((ir.Krylov(m, probe="all signs")(batch) - exact).abs().max()) for m in (1, 3, 5, 7)]
    assert all(later < earlier / 3 for earlier, later in itertools.pairwise(errors)), errors
    assert errors[2] < float((ir.PowerSeries(5, probe="all signs")(batch) - exact).abs().max()) / gain


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("name", ORDINARY)
def test_krylov_stops_when_its_tolerance_is_reached_and_not_later(name, tol):
    block = ORDINARY[name]()
    matrix = torch.block_diag(*[block * s for s in torch.linspace(0.3, 1, 5, dtype=torch.float64)])
    d = len(matrix)

    def run(estimator):
        jacobian, calls = counted(operator(matrix.expand(64, d, d)))
        torch.manual_seed(5)
        return estimator(jacobian), calls["vjp"]

    exact, _ = run(ir.Krylov(d))
    value, steps = run(ir.Krylov(tol=tol, max_steps=d))
    assert float((value - exact).abs().max()) <= tol
    assert steps <= 2 or float((run(ir.Krylov(steps - 1))[0] - run(ir.Krylov(steps - 2))[0]).abs().max()) > tol
    assert run(ir.Krylov(tol=1e-300, max_steps=3))[1] == 3


BAD = {
    "no probes": lambda: ir.Krylov(n_probes=0),
    "no steps": lambda: ir.Krylov(0),
    "no maximum": lambda: ir.Krylov(tol=0.1, max_steps=0),
    "no tolerance": lambda: ir.Krylov(tol=0.0),
    "tolerance that is not a number": lambda: ir.Krylov(tol=float("nan")),
    "no terms": lambda: ir.PowerSeries(0),
    "misspelt probe": lambda: ir.Krylov(probe="rademaker"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    with pytest.raises(IResNetError, match=r"at least 1|must be positive|did you mean 'rademacher'"):
        BAD[name]()


@pytest.mark.parametrize("name", LOGDETS)
def test_names_and_options_build_the_estimator_that_its_repr_shows(name):
    estimator = make_logdet(name)
    assert type(estimator) is LOGDETS[name]
    assert make_logdet(estimator) is estimator
    assert repr(estimator).startswith(LOGDETS[name].__name__)


def test_a_singular_map_shows_in_the_value_and_raises_nothing():
    value = ir.Krylov(2)(operator(-torch.eye(2).double().expand(1, 2, 2)))
    assert not bool((value.abs() < 3).all())


def test_dense_truth_agrees_with_scipy():
    g, x = contraction("mlp")
    dense = dense_jacobian(g, x).detach()
    close(dense_logdet(lambda x: x + g(x), x), torch.stack([matrix_log(a).trace() for a in dense]))


@pytest.mark.parametrize(("eigenvalue", "tol"), [(0.98, 1e-12), (-0.9, 1e-10), (-0.98, 1e-7), (-0.999, 1e-2)])
def test_the_quadrature_holds_close_to_singularity(eigenvalue, tol):
    matrix = eigenvalue * torch.eye(3, dtype=torch.float64)
    close(ir.Krylov(1)(operator(matrix[None])) / 3, torch.tensor([math.log1p(eigenvalue)], dtype=torch.float64), tol)


REPORTS = {
    "exact": (ir.Exact, 0.0),
    "krylov": (lambda: ir.Krylov(2, n_probes=50), None),
    "power series": (lambda: ir.PowerSeries(3, n_probes=50), None),
    "roulette": (lambda: ir.RussianRoulette(n_probes=50), 0.0),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_tell_the_error(name):
    """The distance to the truth is within four standard errors and the stated bias, and the errors are no fig leaf."""
    make, bias = REPORTS[name]
    matrix = normed(randn(6, 6), 0.4)
    truth = torch.linalg.slogdet(identity_plus(matrix))[1]
    report = make().estimate(operator(matrix.expand(40, -1, -1)), lipschitz=0.4)
    distance = (report.value - truth).abs()
    assert bool((distance <= 4 * report.standard_error + report.bias + 1e-9).all())
    spread = report.value.std() if name != "exact" else torch.tensor(0.0)
    if name in ("krylov", "power series"):  # a roulette's samples share a length
        assert 0.5 < float(report.standard_error.mean() / spread) < 2
    if bias is not None:
        assert bool((report.bias == bias).all())


def test_the_bias_bound_of_the_series_holds_where_it_is_tight():
    matrix = -0.8 * torch.eye(4, dtype=torch.float64)
    report = ir.PowerSeries(3).estimate(operator(matrix[None]), lipschitz=0.8)
    close(report.value - report.bias, torch.tensor([4 * math.log(0.2)], dtype=torch.float64), 1e-9)
    assert ir.PowerSeries(3).estimate(operator(matrix[None])).bias.isinf().all()


@pytest.mark.parametrize("name", [*STOCHASTIC, "exact"])
def test_a_map_that_changes_the_shape_has_no_log_determinant(name):
    estimator = ir.Exact() if name == "exact" else STOCHASTIC[name]()
    for n_in, n_out in ((3, 4), (4, 3)):
        jacobian = ir.linearize(torch.nn.Linear(n_in, n_out), torch.randn(5, n_in))
        with pytest.raises(ValueError, match=rf"keeps the shape, got \({n_in},\) -> \({n_out},\)"):
            estimator(jacobian)


def test_one_probe_knows_no_standard_error():
    assert ir.Krylov(2).estimate(operator(0.5 * torch.eye(3)[None])).standard_error.isinf().all()


def test_roulette_draws_lengths_with_the_stated_survival():
    for lengths, p in (("geometric", 0.4), ("poisson", 1.5)):
        estimator = ir.RussianRoulette(p=p, lengths=lengths)
        draws = torch.tensor([float(estimator._draw_length()) for _ in range(4000)]).double()
        for k in (1, 2, 4):
            within_4_errors((draws >= k).double(), LENGTHS[lengths](k, p))


def test_roulette_refuses_what_it_cannot_draw():
    for options in ({"n_exact": 0}, {"p": 0.0}, {"p": 1.0}, {"p": -1, "lengths": "poisson"}, {"lengths": "uniform"}):
        with pytest.raises(ValueError, match=r"n_exact|p must|lengths"):
            ir.RussianRoulette(**options)
