"""The uncertainty of a likelihood: every part of it against a flow for which it is known in closed form."""

import math

import pytest
import torch
from marks import slow
from torch import nn

import iresnet as ir
from iresnet import evaluation
from iresnet.bases import Base
from iresnet.data import Dataset, Split, load
from iresnet.data.transforms import dequantize
from iresnet.errors import DataError, IResNetError
from iresnet.evaluation.batching import importance_weighted
from iresnet.evaluation.uncertainty import Record, recording, variance_components, weight_noise
from iresnet.logdet import LogDetEstimate, LogDetEstimator

DIMS = 6
BIT = DIMS * math.log(2)


class Linear(Base):
    """The log-density c.z, which is all that is needed of one."""

    def __init__(self, c):
        super().__init__(len(c))
        self.c = c

    def log_prob(self, z):
        return z @ self.c

    def sample(self, n, *, temperature=1.0, generator=None):
        raise NotImplementedError


def linear_map(matrix):
    """A residual map x -> M x."""
    g = nn.Sequential(nn.Linear(*matrix.shape, bias=False)).double()
    g[0].weight = nn.Parameter(matrix)
    return g


class Known:
    """A flow of linear blocks x -> x + M x, whose log-density is a.x + log det: all its variances are closed forms.

    The probes of Krylov with D steps give v^T log(I+M) v exactly. For Rademacher probes, with S the symmetric part of
    log(I+M), its variance is 2 sum_{i != j} S_ij^2; uniform noise on unit cells adds |a|^2 / 12.
    """

    def __init__(self, n_blocks=1):
        matrices = torch.randn(n_blocks, DIMS, DIMS, dtype=torch.float64)
        matrices = 0.7 * matrices / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
        self.matrices = matrices
        self.a = torch.tensor([3.0, -3.0, 2.0, -2.0, 1.0, -1.0], dtype=torch.float64)
        eye = torch.eye(DIMS, dtype=torch.float64)
        whole = torch.linalg.multi_dot([*(eye + m for m in reversed(matrices)), eye])
        self.logdet = torch.linalg.slogdet(whole)[1]
        self.blocks = [ir.ResidualBlock(linear_map(m)) for m in matrices]
        self.flow = ir.Flow(ir.Chain(self.blocks), Linear(torch.linalg.solve(whole.T, self.a)))
        logs = [log1p(m) for m in matrices]
        symmetric = torch.stack([(m + m.T) / 2 for m in logs])
        self.probe_variance = float(
            2 * (symmetric - torch.diag_embed(symmetric.diagonal(dim1=1, dim2=2))).square().sum()
        )
        self.noise_variance = float(self.a.square().sum()) / 12

    def mean(self, x):
        """Mean over noise and probes of the negative log-likelihood of each example."""
        return -(x.double() + 0.5) @ self.a - self.logdet


def log1p(matrix):
    """log(I + M) for |M| < 1, by its series."""
    power, total = torch.eye(len(matrix), dtype=matrix.dtype), torch.zeros_like(matrix)
    for k in range(1, 200):
        power = -power @ matrix
        total -= power / k
    return total


FULL = ir.Krylov(DIMS)


def integers(n, levels=2):
    return Split(torch.randint(0, levels, (n, DIMS), dtype=torch.uint8))


def half_width(variance, n):
    return 1.96 * math.sqrt(variance / n) / BIT


# -- chance ----------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_nested_model_are_found():
    n = 40000
    a = 3 * torch.randn(n, dtype=torch.float64)
    b = 2 * torch.randn(3, 1, n, dtype=torch.float64)
    c = 1.5 * torch.randn(3, 2, n, dtype=torch.float64)
    found = variance_components(a + b + c, 9 + 4 + 2.25)
    for value, expected, freedom in zip(found, (9, 4, 2.25), (2 * n, n, 3 * n), strict=True):
        assert abs(value - expected) < 4 * 2 * expected * math.sqrt(2 / freedom)


def test_a_part_without_repetitions_and_a_negative_one_are_zero():
    y = torch.tensor([[[0.0, 0.0], [2.0, 4.0]], [[2.0, 4.0], [0.0, 0.0]]])  # equal means: all variance is of probes
    assert variance_components(y, 9.0) == (4.0, 0.0, 5.0)
    assert variance_components(y, 1.0) == (0.0, 0.0, 5.0)
    assert variance_components(y[:1, :1], 9.0) == (9.0, 0.0, 0.0)
    assert variance_components(y[:, :1], 9.0) == (4.0, 5.0, 0.0)


@pytest.mark.parametrize("estimator", [FULL, ir.Exact()], ids=str)
@pytest.mark.parametrize("levels", [2, None])
def test_images_noise_and_probes_have_their_known_parts(levels, estimator):
    """Each within four standard errors of an estimated variance, and together the whole interval."""
    known, n = Known(2), 3000
    split = integers(n)
    if levels is None:
        split = Split(split.x.double())
    result = evaluation.likelihood(known.flow, split, levels=levels, logdet=estimator, n_repeated=n)
    variances = {
        "images": float((split.x.double() @ known.a).var()),
        "noise": known.noise_variance if levels else 0.0,
        "probes": known.probe_variance if estimator is FULL else 0.0,
    }
    for name, variance in variances.items():
        slack = 4 * sum(variances.values()) / 2 / math.sqrt(variance * n) * half_width(1, n) if variance else 0
        assert abs(getattr(result.uncertainty, name) - half_width(variance, n)) <= slack, name
    parts = math.hypot(*(getattr(result.uncertainty, name) for name in variances))
    assert parts == pytest.approx(result.bits_per_dim.half_width)
    assert result.bits_per_dim.half_width == pytest.approx(half_width(sum(variances.values()), n), rel=0.06)


@pytest.mark.parametrize("images", ["drawn anew", slow("all the same")])
def test_the_interval_holds_the_truth_as_often_as_it_says(images):
    """150 intervals of 95 %: 142 hold it, give or take 2.7. Where images are the same, noise and probes are all."""
    known, held, repetitions = Known(), 0, 150
    truth = float(known.mean(torch.full((DIMS,), 0.5)))
    for seed in range(repetitions):
        split = integers(60)
        if images == "all the same":
            split, truth = Split(torch.zeros_like(split.x)), float(known.mean(torch.zeros(DIMS)))
        result = evaluation.likelihood(known.flow, split, levels=2, logdet=FULL, n_repeated=2, seed=seed)
        held += abs(result.nats.mean - truth) <= result.nats.half_width
    assert 132 <= held <= 149


# -- bias and cost ---------------------------------------------------------------------------------------------------


def test_the_bias_of_power_series_is_the_sum_of_the_tails_of_blocks():
    known = Known(3)
    own = [block.logdet for block in known.blocks]
    for scale, block in zip((0.2, 0.6, 1.0), known.blocks, strict=True):
        block.g[0].weight.data *= scale
    result = evaluation.likelihood(known.flow, integers(20), levels=2, logdet=ir.PowerSeries(4, 3), batch_size=7)
    norms = [float(torch.linalg.matrix_norm(block.g[0].weight.detach(), 2)) for block in known.blocks]
    tails = [DIMS * sum(norm**k / k for k in range(5, 400)) for norm in norms]
    assert result.uncertainty.bias_nats == pytest.approx(sum(tails))
    assert result.uncertainty.bias == pytest.approx(sum(tails) / BIT)
    assert result.uncertainty.n_products == 3 * 3 * 4
    assert [block.logdet for block in known.blocks] == own


def test_a_bias_that_nothing_bounds_is_none_and_said():
    known = Known(2)
    known.blocks[0].g[0].weight.data *= 1.2 / 0.7
    uncertainty = evaluation.likelihood(known.flow, integers(9), levels=2, logdet=ir.PowerSeries()).uncertainty
    assert (uncertainty.bias, uncertainty.bias_nats) == (None, None)
    assert "not bounded" in str(uncertainty)


def test_exact_log_determinants_have_no_bias_and_cost_a_product_a_dimension():
    result = evaluation.likelihood(Known(2).flow, integers(9), levels=2)
    uncertainty = result.uncertainty
    assert result.estimator == "Exact()"
    assert (uncertainty.probes, uncertainty.bias, uncertainty.bias_nats, uncertainty.weights) == (0, 0, 0, 0)
    assert uncertainty.n_products == 2 * DIMS


class Reports(LogDetEstimator):
    """Reports biases that depend on the sample, and a cost that depends on the batch."""

    def prepare(self, jacobian):
        return lambda _: jacobian.value.new_zeros(len(jacobian.value))

    def estimate(self, jacobian, *, lipschitz=math.inf):  # noqa: ARG002
        zero = jacobian.value.new_zeros(len(jacobian.value))
        return LogDetEstimate(zero, zero, jacobian.value.abs().sum(1), 10 * len(zero))


@pytest.mark.parametrize("draws", [1, 3])
def test_reports_are_means_over_examples_and_draws_whatever_the_batches(draws):
    """Batches of 8, 8 and 4 cost 80, 80 and 40 products: what repetitions cost is not counted."""
    known, split = Known(), Split(torch.zeros(20, DIMS, dtype=torch.uint8))
    result = evaluation.likelihood(
        known.flow, split, levels=2, logdet=Reports(), batch_size=8, dequantize_samples=draws
    )
    assert result.uncertainty.n_products == pytest.approx(draws * (80 * 16 + 40 * 4) / 20)
    noise = torch.Generator().manual_seed(0)
    u = torch.cat([dequantize(split.x[:n], levels=2, generator=noise) for n in (8, 8, 4) for _ in range(draws)])
    bias = (u.double() @ known.matrices[0].T).abs().sum(1).mean()
    assert result.uncertainty.bias_nats == pytest.approx(float(bias))


def test_reports_are_counted_block_by_block():
    known, record = Known(2), Record()
    logdets = recording(known.flow, ir.Exact(), record)
    assert list(logdets) == list(known.blocks)
    x = torch.zeros(3, DIMS, dtype=torch.float64)
    found = known.flow.log_prob(x, logdet=logdets)
    assert torch.equal(found, known.flow.log_prob(x, logdet=ir.Exact()))
    assert record.take().n_products == 2 * 3 * DIMS
    assert record.n_products == 0


# -- several draws ---------------------------------------------------------------------------------------------------


def normal_flow(dims, mean, std):
    return ir.Flow(ir.Affine(mean=mean, std=std), ir.StandardNormal(dims))


def cell_nats(x, mean, std):
    """-log of the probability that the normal law gives to the cells [x, x + 1), and its bound with one draw."""
    low = (x.double() - mean) / std
    cells = torch.special.ndtr(low + 1 / std) - torch.special.ndtr(low)
    bound = ((low + 0.5 / std).square() + 1 / (12 * std**2)) / 2 + math.log(std) + math.log(2 * math.pi) / 2
    return float(-cells.log().sum(1).mean()), float(bound.sum(1).mean())


def test_the_bound_falls_with_every_draw_to_the_probability_of_cells():
    mean, std = 1.7, 0.7
    x = torch.randint(0, 4, (4000, 2), dtype=torch.uint8)
    exact, with_one = cell_nats(x, mean, std)
    results = [
        evaluation.likelihood(
            normal_flow(2, mean, std), Split(x), levels=4, dequantize_samples=k, n_repeated=4000, batch_size=4000
        )
        for k in (1, 3, 256)
    ]
    errors = [r.uncertainty.noise * 2 * math.log(2) / 1.96 for r in results]  # x is given: only noise is random
    nats = [r.nats.mean for r in results]
    assert abs(nats[0] - with_one) < 4 * errors[0]
    assert abs(nats[-1] - exact) < 4 * errors[-1] + 0.01
    for i in range(2):
        assert nats[i] - nats[i + 1] > 4 * math.hypot(errors[i], errors[i + 1])
    assert all(n > exact - 4 * error for n, error in zip(nats, errors, strict=True))
    assert [r.dequantize_samples for r in results] == [1, 3, 256]


def test_several_draws_change_nothing_where_the_density_is_constant():
    flow = ir.Flow(ir.Affine(std=4.0), Linear(torch.zeros(2)))
    for k in (1, 5):
        result = evaluation.likelihood(
            flow, Split(torch.arange(4, dtype=torch.uint8)[:, None].repeat(2, 2)), levels=4, dequantize_samples=k
        )
        assert result.bits_per_dim.mean == pytest.approx(2, abs=1e-6)
        assert result.bits_per_dim.half_width < 1e-6


def test_weighting_is_the_mean_of_densities_however_small():
    log_probs = torch.randn(5, 3, dtype=torch.float64)
    expected = -log_probs.exp().mean(0).log()
    assert torch.allclose(importance_weighted(log_probs), expected, atol=1e-14)
    assert torch.allclose(importance_weighted(log_probs - 1e5), expected + 1e5, atol=1e-10)
    assert torch.allclose(importance_weighted(log_probs.T, dim=1), expected, atol=1e-14)


def test_the_gaussian_baseline_takes_the_same_number_of_draws():
    digits = load("digits")
    noise = torch.Generator().manual_seed(3)
    x = digits.train.x.flatten(1).double()
    covariance = x.T.cov() + torch.eye(64, dtype=torch.float64) / 12
    normal = torch.distributions.MultivariateNormal(x.mean(0) + 0.5, covariance)
    test = digits.test.shuffled(3).x
    draws = [normal.log_prob(dequantize(test, levels=17, generator=noise).flatten(1).double()) for _ in range(4)]
    expected = -torch.stack(draws).exp().mean(0).log().mean()
    result = evaluation.gaussian_baseline(digits, digits.test, dequantize_samples=4, seed=3)
    assert result.nats.mean == pytest.approx(float(expected), abs=1e-6)
    assert result.dequantize_samples == 4


def test_errors_that_draws_share_do_not_make_the_bound_too_good():
    """The Jacobian is the same at all draws, so with the same probes its error is too: it only shifts the bound.

    With probes of their own the weights take the best errors: too good by half their variance, in the limit.
    """
    known, n = Known(), 500
    split = Split(torch.zeros(n, DIMS, dtype=torch.uint8))
    options = {"levels": 2, "dequantize_samples": 24, "n_repeated": n, "batch_size": n}
    exact = evaluation.likelihood(known.flow, split, **options)
    shared = evaluation.likelihood(known.flow, split, logdet=FULL, **options)
    error = 4 * math.sqrt((known.probe_variance + known.noise_variance) / n)
    assert abs(shared.nats.mean - exact.nats.mean) < error
    assert shared.uncertainty.weights < 1e-12
    apart = evaluation.likelihood(known.flow, split, logdet=ir.Krylov(DIMS, generator=torch.Generator()), **options)
    assert exact.nats.mean - apart.nats.mean > 0.1
    assert exact.nats.mean - apart.nats.mean < apart.uncertainty.weights * BIT
    assert apart.uncertainty.weights * BIT == pytest.approx(known.probe_variance / 2, rel=0.1)
    assert "too good by up to" in str(apart.uncertainty)


def test_the_noise_of_weights_is_half_of_what_draws_and_probes_have_between_them():
    shared = torch.randn(2, 1, 3, 5000, dtype=torch.float64)
    of_draws = 5 * torch.randn(2, 8, 1, 5000, dtype=torch.float64)
    between = 0.7 * torch.randn(2, 8, 3, 5000, dtype=torch.float64)
    freedom = 2 * 7 * 2 * 5000
    expected = 0.7**2 / 2
    assert abs(weight_noise(shared + of_draws + between) - expected) < 4 * expected * math.sqrt(2 / freedom)
    assert weight_noise(shared) == weight_noise(between[:, :, :1]) == 0


# -- stopping --------------------------------------------------------------------------------------------------------


def test_evaluation_stops_at_the_standard_error_asked_for():
    known, split, done = Known(), integers(5000), []
    options = {"levels": 2, "logdet": FULL, "batch_size": 50}
    whole = evaluation.likelihood(known.flow, split, **options)
    target = 2 * whole.bits_per_dim.standard_error  # a quarter of the examples
    result = evaluation.likelihood(known.flow, split, standard_error=target, progress=done.append, **options)
    assert result.bits_per_dim.standard_error <= target
    assert 1000 <= result.n <= 1500
    assert done == list(range(50, result.n + 1, 50))
    before = evaluation.likelihood(known.flow, split, standard_error=1.05 * target, **options)
    assert before.n < result.n
    assert result.uncertainty.n_products == DIMS


def test_examples_are_taken_in_random_order():
    """The first ones of a sorted split would say little of the others."""
    known, split = Known(), integers(5000)
    order = (split.x.double() @ known.a).argsort()
    split = Split(split.x[order])
    result = evaluation.likelihood(known.flow, split, levels=2, standard_error=0.05, batch_size=100)
    assert result.n < 1000
    assert abs(result.nats.mean - float(known.mean(split.x).mean())) < 2 * result.nats.half_width
    other = evaluation.likelihood(known.flow, split, levels=2, standard_error=0.05, batch_size=100, seed=1)
    assert other.nats.mean != result.nats.mean


@pytest.mark.parametrize(("batch_size", "expected"), [(10, 70), (64, 128), (100, 200), (1000, 300)])
def test_two_batches_and_64_examples_are_the_least(batch_size, expected):
    result = evaluation.likelihood(Known().flow, integers(300), levels=2, standard_error=100.0, batch_size=batch_size)
    assert result.n == expected


def test_a_standard_error_out_of_reach_takes_all_examples():
    result = evaluation.likelihood(Known().flow, integers(300), levels=2, standard_error=1e-9)
    assert result.n == 300
    assert result.bits_per_dim.standard_error > 1e-9


# -- what cannot be --------------------------------------------------------------------------------------------------


def bad(flow=None, split=None, levels: int | None = 2, **options):
    return lambda: evaluation.likelihood(flow or Known().flow, split or integers(9), levels=levels, **options)


def not_finite():
    known = Known()
    known.blocks[0].g[0].weight.data[0] = math.nan
    return known.flow


POINTS = Split(torch.randn(20, 3))
TABLE = Dataset("table", POINTS, POINTS, POINTS, None, (), "here")
IMPOSSIBLE = {
    "no draws": (bad(dequantize_samples=0), IResNetError, "dequantize_samples must be at least 1, got 0"),
    "draws of real numbers": (bad(split=POINTS, levels=None, dequantize_samples=2), DataError, "continuous data"),
    "a baseline without draws": (
        lambda: evaluation.gaussian_baseline(TABLE, POINTS, dequantize_samples=0),
        IResNetError,
        "at least 1",
    ),
    "a baseline with draws of real numbers": (
        lambda: evaluation.gaussian_baseline(TABLE, POINTS, dequantize_samples=2),
        DataError,
        "continuous data",
    ),
    "no standard error": (bad(standard_error=0.0), IResNetError, "must be positive, got 0.0"),
    "a standard error that is none": (bad(standard_error=math.nan), IResNetError, "must be positive, got nan"),
    "nothing repeated": (bad(n_repeated=0), IResNetError, "n_repeated must be at least 1, got 0"),
    "empty batches": (bad(batch_size=0), IResNetError, "batch_size must be at least 1, got 0"),
    "no number": (bad(flow=not_finite()), IResNetError, "of 9 of 9 examples is not finite"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_evaluated_is_refused(case):
    call, kind, message = IMPOSSIBLE[case]
    with pytest.raises(kind, match=message):
        call()
