"""Evaluation: known densities, known errors and known predictions are measured as what they are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import iresnet as ir
from iresnet import evaluation
from iresnet.bases import Base
from iresnet.bijections import Bijection
from iresnet.data import Dataset, Split, load
from iresnet.errors import DataError
from iresnet.evaluation.batching import evaluate_in_batches
from iresnet.evaluation.classification import wilson
from iresnet.evaluation.likelihood import summarize

DIGITS = load("digits")


def subset(split, n):
    return Split(split.x[:n], None if split.y is None else split.y[:n])


# -- likelihood ------------------------------------------------------------------------------------------------------


def normal_flow(dims, mean=1.0, std=2.0):
    """The density of mean + std * standard normal numbers."""
    return ir.Flow(ir.Affine(mean=mean, std=std), ir.StandardNormal(dims))


def test_the_likelihood_of_a_known_density_is_its_entropy_as_often_as_the_interval_says():
    """Entropy of N(m, s^2 I): D/2 log(2 pi e) + D log s. 400 intervals of 95 % hold it 380 times, give or take 4.4."""
    dims, n, repetitions = 3, 100, 400
    entropy = dims / 2 * math.log(2 * math.pi * math.e) + dims * math.log(2)
    held = 0
    for _ in range(repetitions):
        result = evaluation.likelihood(normal_flow(dims), Split(1 + 2 * torch.randn(n, dims)), levels=None)
        held += abs(result.nats.mean - entropy) <= result.nats.half_width
        assert abs(result.nats.mean - entropy) < 3 * result.nats.half_width
    assert (result.n, result.dims) == (n, dims)
    assert result.bits_per_dim.mean == pytest.approx(result.nats.mean / (dims * math.log(2)))
    assert result.bits_per_dim.half_width == pytest.approx(result.nats.half_width / (dims * math.log(2)))
    assert 362 <= held <= 397


def test_the_interval_is_196_standard_errors():
    nats = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    error = math.sqrt(((2**2 + 1 + 0 + 3**2) / 3) / 4)
    result = summarize(nats, 2, "closed form")
    assert (result.nats.mean, result.nats.half_width) == (3.0, pytest.approx(1.96 * error))
    assert str(result).startswith(f"{3 / math.log(4):.4f} ± ")


class Unit(Base):
    """The density 1, on whatever has volume 1; notes what it was asked for."""

    def __init__(self, features):
        super().__init__(features)
        self.seen = []

    def log_prob(self, z):
        self.seen.append(z)
        return z.new_zeros(len(z))

    def sample(self, n, *, temperature=1.0, generator=None):
        raise NotImplementedError


def test_the_uniform_density_of_integers_has_log2_levels_bits():
    split = Split(torch.randint(0, 17, (300, 1, 4, 4), dtype=torch.uint8))
    flow = ir.Flow(ir.Chain([ir.Affine(mean=8.5, std=17.0), ir.Flatten((1, 4, 4))]), Unit(16))
    result = evaluation.likelihood(flow, split, levels=17)
    assert 0.49 < float(torch.cat(flow.base.seen).abs().max()) <= 0.5
    baseline = evaluation.uniform_baseline(DIGITS, split)
    for bits in (result.bits_per_dim, baseline.bits_per_dim):
        assert bits.mean == pytest.approx(math.log2(17), abs=1e-5)
        assert bits.half_width < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gaussian_baseline_is_the_multivariate_normal_on_the_data_that_models_see(dtype):
    """Fitted with the exact moments of dequantized integers, evaluated on the very noise that a flow is given."""
    flow = ir.Flow(ir.Chain([ir.Affine(), ir.Flatten((1, 8, 8))]), Unit(64)).to(dtype)
    flow.register_parameter("anchor", nn.Parameter(torch.zeros((), dtype=dtype)))
    evaluation.likelihood(flow, DIGITS.test, levels=17, seed=5, batch_size=77)
    seen = torch.cat(flow.base.seen)[:300]  # the rest are repetitions
    assert seen.dtype == dtype
    assert torch.equal(seen.floor().byte().view(-1, 1, 8, 8), DIGITS.test.shuffled(5).x)
    train = DIGITS.train.x.flatten(1).double()
    normal = torch.distributions.MultivariateNormal(
        train.mean(0) + 0.5, train.T.cov() + torch.eye(64, dtype=torch.float64) / 12
    )
    expected = -normal.log_prob(seen.double())
    result = evaluation.gaussian_baseline(DIGITS, DIGITS.test, seed=5)
    assert result.nats.mean == pytest.approx(float(expected.mean()), abs=1e-8)
    assert result.nats.half_width == pytest.approx(1.96 * float(expected.std()) / math.sqrt(300), abs=1e-8)
    assert evaluation.gaussian_baseline(DIGITS, DIGITS.test, seed=6) != result


def table(train, test=None):
    test = train if test is None else test
    return Dataset("table", Split(train), Split(test), Split(test), None, (), "here")


def test_the_gaussian_baseline_of_real_numbers():
    x = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    result = evaluation.gaussian_baseline(table(x), Split(x))
    assert result.nats.mean == pytest.approx(-float(normal.log_prob(x).mean()), abs=1e-9)


def test_the_true_density_of_a_toy_is_what_it_says():
    dataset = load("8gaussians")
    expected = -ir.data.TOYS["8gaussians"].log_prob(dataset.test.x).mean()
    assert evaluation.true_density(dataset, dataset.test).nats.mean == pytest.approx(float(expected), abs=1e-5)


X = torch.randn(20, 2)
IMPOSSIBLE = {
    "levels of real numbers": (lambda: evaluation.uniform_baseline(table(X), Split(X)), "no uniform baseline"),
    "dependent features": (lambda: evaluation.gaussian_baseline(table(X[:, [0, 0]]), Split(X)), "singular"),
    "fewer than two examples a dimension": (
        lambda: evaluation.gaussian_baseline(table(torch.randn(17, 9)), Split(X)),
        "from 17 training examples the covariance of 9 dimensions is singular or noise; it takes 18",
    ),
    "few examples": (lambda: evaluation.gaussian_baseline(table(torch.randn(5, 9)), Split(X)), "singular"),
    "an unknown law": (lambda: evaluation.true_density(table(X), Split(X)), "law of table is not known"),
    "one example": (lambda: evaluation.likelihood(normal_flow(2), Split(X[:1]), levels=None), "at least 2 examples"),
    "no labels": (lambda: evaluation.classification(Peek(3), Split(X), levels=None), "no labels"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_evaluated_is_refused(case):
    call, expected = IMPOSSIBLE[case]
    with pytest.raises(DataError, match=expected):
        call()


# -- classification --------------------------------------------------------------------------------------------------

WILSON = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
"""Intervals published by Newcombe 1998, table I, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857>3.0.CO;2-E"""


@pytest.mark.parametrize("counts", [*WILSON, (20, 20)])
def test_wilson_intervals_against_published_ones(counts):
    expected = WILSON.get(counts, (1 - 0.1611, 1))
    assert wilson(counts[0] / counts[1], counts[1]) == pytest.approx(expected, abs=5e-5)


class Peek(nn.Module):
    """Is sure that the label is the first feature."""

    def __init__(self, n_classes, confidence=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(confidence))
        self.n_classes = n_classes

    def forward(self, x):
        return self.scale * F.one_hot(x[:, 0].long(), self.n_classes)


def test_known_predictions_have_their_accuracy_and_cross_entropy():
    guesses = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 1, 2])
    done = []
    split = Split(guesses[:, None].float(), labels)
    result = evaluation.classification(Peek(3), split, levels=None, batch_size=3, progress=done.append)
    assert done == [3, 6, 8]
    assert (result.accuracy, result.n) == (0.75, 8)
    assert result.interval == pytest.approx(wilson(6 / 8, 8))
    normalizer = math.log(math.exp(2) + 2)
    losses = torch.tensor([normalizer - 2] * 6 + [normalizer] * 2)
    assert result.cross_entropy.mean == pytest.approx(float(losses.mean()), abs=1e-6)
    assert result.cross_entropy.half_width == pytest.approx(1.96 * float(losses.std()) / math.sqrt(8), abs=1e-6)
    assert str(result).startswith("accuracy 75.00% (95 % interval 40.9")


# -- inversion -------------------------------------------------------------------------------------------------------


class Defect(Bijection):
    """The identity, whose inverse is wrong by a given amount in the first element of the last example."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        return x.clone()

    def forward_and_logdet(self, x, *, logdet=None):  # noqa: ARG002
        return self(x), x.new_zeros(len(x))

    def inverse(self, z):
        x = z.clone()
        x.view(len(x), -1)[-1, 0] += self.error
        return x


def test_a_known_defect_is_reported():
    images = Split(torch.randint(0, 17, (10, 1, 2, 2), dtype=torch.uint8))
    result = evaluation.reconstruction(Defect(0.5), images, levels=17)
    assert (result.largest, result.n) == (pytest.approx(0.5 / 17, rel=1e-4), 10)
    assert result.mean == pytest.approx(0.5 / 17 / 40, rel=1e-4)
    points = Split(torch.tensor([[0.0, -3.0], [1.0, 5.0], [2.0, 0.0]]))
    assert evaluation.reconstruction(Defect(-0.5), points, levels=None).largest == pytest.approx(0.5 / 8)
    assert evaluation.reconstruction(Defect(0.0), points, levels=None).largest == 0


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_inverse_that_is_no_number_is_not_dropped(error):
    result = evaluation.reconstruction(Defect(error), Split(torch.randn(600, 2)), levels=None, batch_size=599)
    assert not math.isfinite(result.largest)
    assert not math.isfinite(result.mean)


def test_reconstructions_in_float64_are_exact_in_float64():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8), solver=ir.Anderson(atol=1e-13)).double()
    assert evaluation.reconstruction(block, Split(torch.randn(50, 2).double()), levels=None).largest < 1e-12


# -- the same again --------------------------------------------------------------------------------------------------


def measure(name, model, split, levels, **options):
    measured = {"reconstruction": lambda: model.bijection, "likelihood": lambda: getattr(model, "flow", model)}
    return getattr(evaluation, name)(measured.get(name, lambda: model)(), split, levels=levels, **options)


MEASURES = [
    ("density", "likelihood", {}),
    ("density", "likelihood", {"logdet": ir.Krylov(2)}),
    ("density", "likelihood", {"dequantize_samples": 3, "standard_error": 0.1, "batch_size": 20}),
    ("density", "reconstruction", {}),
    ("hybrid", "likelihood", {}),
    ("hybrid", "classification", {}),
    ("classify", "classification", {}),
    ("classify", "reconstruction", {}),
]


@pytest.mark.parametrize(("kind", "name", "options"), MEASURES)
def test_evaluating_twice_gives_the_same_and_leaves_the_world_alone(kind, name, options, trained):
    model = ir.load(trained(kind))
    split, levels = subset(DIGITS.test, 60), 17
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    first = measure(name, model, split, levels, **options)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(7)
    assert measure(name, model, split, levels, **options) == first
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    if (kind, name) != ("classify", "classification"):  # which needs no noise
        assert measure(name, model, split, levels, seed=1, **options) != first


def test_one_loop_evaluates_in_eval_mode_with_weights_computed_once_and_restores_the_model():
    model = nn.Sequential(ir.LipschitzLinear(2, 2), nn.Dropout(), nn.BatchNorm1d(2).eval())
    modes, random, done, seen = [module.training for module in model.modules()], torch.get_rng_state(), [], []

    def function(x):
        seen.append((model.training, torch.is_grad_enabled(), model[0].weight))
        torch.rand(3)
        return len(x)

    batches = torch.zeros(7, 2).split(3)
    assert evaluate_in_batches(model, batches, function, progress=done.append) == [3, 3, 1]
    assert done == [3, 6, 7]
    assert [(training, grad) for training, grad, _ in seen] == [(False, False)] * 3
    assert all(weight is seen[0][2] for *_, weight in seen)
    assert evaluate_in_batches(model, batches, function, stop=lambda found: len(found) == 2) == [3, 3]
    with pytest.raises(ZeroDivisionError):
        evaluate_in_batches(model, batches, lambda x: 1 / 0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert model[0].weight is not seen[0][2]


@pytest.mark.parametrize(("kind", "name"), [("density", "likelihood"), ("hybrid", "classification")])
def test_the_size_of_batches_does_not_matter(kind, name, trained):
    model, split = ir.load(trained(kind)), subset(DIGITS.test, 60)
    small, large = (measure(name, model, split, 17, batch_size=n) for n in (7, 60))
    pick = (lambda r: r.nats) if name == "likelihood" else (lambda r: r.cross_entropy)
    assert pick(small).mean == pytest.approx(pick(large).mean, rel=1e-5)
    assert pick(small).half_width == pytest.approx(pick(large).half_width, rel=1e-4)


def test_the_estimator_is_exact_for_few_dimensions_and_named(trained):
    flow, split = ir.load(trained("density")), subset(DIGITS.test, 40)
    exact = evaluation.likelihood(flow, split, levels=17)
    assert exact.estimator.startswith("Exact")
    krylov = evaluation.likelihood(flow, split, levels=17, logdet=ir.Krylov(6, n_probes=20))
    assert krylov.estimator.startswith("Krylov")
    assert krylov.nats.mean == pytest.approx(exact.nats.mean, abs=0.5)
    large = ir.zoo.build("iresnet", shape=(3, 8, 8), blocks=[1], strides=[1], hidden=4)
    images = Split(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    assert evaluation.likelihood(large, images, levels=256).estimator.startswith("Krylov")
