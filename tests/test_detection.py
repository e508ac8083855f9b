"""Calibration, detection of other data, typicality: against counting, closed forms and simulation."""

import math

import numpy as np
import pytest
import torch

import iresnet as ir
from iresnet import evaluation
from iresnet.data import Dataset, Split, match_format
from iresnet.errors import DataError, IResNetError
from iresnet.evaluation import calibration, detection
from iresnet.evaluation.detection import Outputs, model_outputs, scores, typicality

# -- calibration -----------------------------------------------------------------------------------------------------


def test_a_calibrated_classifier_has_no_error_but_by_chance():
    """Labels drawn from the confidences: the error goes to 0, and is above the 95 % mark in 5 % of all cases."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n, seed=0):
        p = torch.rand(n, generator=generator, dtype=torch.float64)
        return calibration(p, torch.rand(n, generator=generator) < p, seed=seed)

    assert drawn(20_000).ece < 0.012
    small = [drawn(200, seed) for seed in range(60)]
    mean = sum(c.ece for c in small) / len(small)
    assert mean == pytest.approx(sum(c.by_chance for c in small) / len(small), rel=0.1)
    assert sum(c.ece > c.by_chance_95 for c in small) <= 9  # 3 expected, standard deviation 1.7


def test_the_error_of_confidences_that_are_wrong_by_a_known_amount():
    """Confidence p where the truth is p - 0.2: the error is 0.2, give or take what its error bar says."""
    generator = torch.Generator().manual_seed(1)
    p = 0.3 + 0.7 * torch.rand(4000, generator=generator, dtype=torch.float64)
    result = calibration(p, torch.rand(4000, generator=generator) < p - 0.2)
    assert result.ece == pytest.approx(0.2, abs=3 * result.half_width)
    assert 0.01 < result.half_width < 0.03
    assert result.ece > result.by_chance_95
    assert "miscalibrated" in str(result)


def test_bins_of_a_handful_of_predictions():
    """Bins are (low, high]: 0.6 is the upper edge of the ninth of 15."""
    confidence = torch.tensor([0.6, 0.55, 1.0, 0.95, 0.0], dtype=torch.float64)
    right = torch.tensor([True, False, True, False, False])
    result = calibration(confidence, right)
    assert [b.n for b in result.bins] == [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert (result.bins[8].confidence, result.bins[8].accuracy) == (pytest.approx(0.575), 0.5)
    assert result.bins[1].confidence is None
    assert result.ece == pytest.approx((2 * abs(0.5 - 0.575) + 2 * abs(0.5 - 0.975)) / 5)
    assert (result.bins[0].low, result.bins[-1].high) == (0, 1)


# -- detection -------------------------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
SETS = {
    "apart": (rng.normal(0, 1, 30), rng.normal(9, 1, 40)),
    "the wrong way round": (rng.normal(9, 1, 30), rng.normal(0, 1, 40)),
    "overlapping": (rng.normal(0, 1, 57), rng.normal(1, 2, 40)),
    "with ties": (rng.integers(0, 4, 50), rng.integers(1, 5, 61)),
    "all the same": (np.zeros(5), np.zeros(7)),
    "few": (np.array([0.0, 1.0]), np.array([0.5, 3.0])),
}


@pytest.mark.parametrize("case", SETS)
def test_rates_are_counted(case):
    """AUROC is the share of pairs in the right order, ties counting half; FPR95 the best of all thresholds."""
    inside, outside = (torch.as_tensor(x, dtype=torch.float64) for x in SETS[case])
    result = detection(inside, outside)
    pairs = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside)
    assert result.auroc == pytest.approx(float(pairs.mean()), abs=1e-12)
    thresholds = [t for t in outside if float((outside >= t).double().mean()) >= 0.95]
    assert result.fpr95 == min(float((inside >= t).double().mean()) for t in thresholds)
    assert 0 <= result.interval[0] <= result.auroc <= result.interval[1] <= 1
    assert 0 <= result.fpr95_interval[0] <= result.fpr95 <= result.fpr95_interval[1] <= 1
    assert result.interval[0] < result.interval[1]
    assert sum(result.histogram.inside) == result.n_in == len(inside)
    assert sum(result.histogram.outside) == result.n_out == len(outside)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Normal scores of distance 1.5: the AUROC is Phi(1.5 / sqrt 2), the FPR95 Phi(1.645 - 1.5)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    auroc = float(normal.cdf(torch.tensor(1.5 / math.sqrt(2))))
    fpr95 = float(normal.cdf(torch.tensor(1.6448536 - 1.5)))
    n, held = 400, [0, 0]
    for seed in range(n):
        result = detection(torch.randn(80), 1.5 + torch.randn(60), seed=seed)
        held[0] += result.interval[0] <= auroc <= result.interval[1]
        held[1] += result.fpr95_interval[0] <= fpr95 <= result.fpr95_interval[1]
    for count in held:
        assert 0.92 * n <= count <= 0.985 * n


def test_two_examples_of_each_kind_are_needed():
    with pytest.raises(DataError, match="2 examples of each kind, got 1 and 3"):
        detection(torch.zeros(1), torch.zeros(3))


# -- what models say -------------------------------------------------------------------------------------------------


def test_typicality_of_a_gaussian_in_closed_form():
    """-log p of N(0, I) in D dimensions is |x|^2 / 2 + D/2 log 2 pi, D/2 log 2 pi e on average."""
    dims, bit = 5, 5 * math.log(2)
    flow = ir.Flow(ir.Affine(), ir.StandardNormal(dims)).double()
    x = torch.randn(6, dims, dtype=torch.float64)
    bits = model_outputs(flow, Split(x), levels=None).bits_per_dim
    half = dims / 2 * math.log(2 * math.pi)
    assert torch.allclose(bits, (x.square().sum(1) / 2 + half) / bit)
    entropy = (half + dims / 2) / bit
    assert torch.allclose(typicality(bits, entropy), (x.square().sum(1) - dims).abs() / 2 / bit, atol=1e-6)
    two = typicality(bits, entropy, size=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(two, (bits[order].view(3, 2).mean(1) - entropy).abs(), atol=1e-6)
    assert len(typicality(bits, entropy, size=4)) == 1


def test_too_likely_examples_are_atypical_and_not_unlikely():
    """The point at the mode is more likely than any sample, and no sample is like it (Nalisnick et al. 2019)."""
    dims = 50
    flow = ir.Flow(ir.Affine(), ir.StandardNormal(dims))
    own, train = Split(torch.randn(200, dims)), Split(torch.randn(200, dims))
    found = evaluation.detect(flow, own, train, {"mode": Split(0.01 * torch.randn(40, dims))}, levels=None)["mode"]
    assert found["log-likelihood"].auroc == 0
    assert found["typicality"].auroc > 0.98
    assert found["typicality of 10"].auroc == 1
    assert "predictive entropy" not in found


@pytest.mark.parametrize("kind", ["density", "hybrid", "classify"])
def test_scores_are_those_of_the_model(kind, trained):
    """The same seeds and preparation as in an evaluation; entropy is that of the softmax."""
    model = ir.load(trained(kind))
    split = Split(ir.data.load("digits").test.x[:40])
    random = torch.get_rng_state()
    result = model_outputs(model, split, levels=17, seed=3)
    assert torch.equal(torch.get_rng_state(), random)
    again = model_outputs(model, split, levels=17, seed=3, batch_size=40)
    noise = torch.Generator().manual_seed(3)
    x = split.x.float() if kind == "classify" else ir.data.dequantize(split.x, levels=17, generator=noise)
    with torch.no_grad():
        if kind != "classify":
            expected = getattr(model, "flow", model).bits_per_dim(x, logdet=ir.Exact())
            assert torch.allclose(result.bits_per_dim.float(), expected, atol=1e-4)
            assert torch.equal(result.bits_per_dim, again.bits_per_dim)
        if kind != "density":
            expected = torch.distributions.Categorical(logits=model(x)).entropy()
            assert torch.allclose(result.entropy.float(), expected, atol=1e-4)
    assert (result.bits_per_dim is None) == (kind == "classify")
    assert (result.entropy is None) == (kind == "density")


def test_the_mean_of_the_training_split_is_what_is_typical():
    own, other, train = (Outputs(torch.tensor(x), None) for x in ([1.0, 2.0], [4.0, 0.0], [1.0, 3.0]))
    inside, outside = scores(own, other, train)["typicality"]
    assert (inside.tolist(), outside.tolist()) == ([1, 0], [2, 2])


# -- other data in the form of the model's own -----------------------------------------------------------------------


def images(*shape, levels=256, value=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, levels or 2, (4, *shape), generator=generator, dtype=torch.uint8)
    x = x if value is None else torch.full_like(x, value)
    split = Split(x.float() if levels is None else x)
    return Dataset("other", split, split, split, levels)


def test_small_images_are_padded_and_gray_ones_repeated():
    data = images(1, 4, 4)
    other, how = match_format(data, "test", (3, 7, 6), 256)
    assert torch.equal(other.x[:, 2, 1:5, 1:5], data.test.x[:, 0])
    assert int(other.x.long().sum()) == 3 * int(data.test.x.long().sum())
    assert how == "gray repeated on 3 channels; padded from 4x4 to 7x6"


def test_large_images_are_scaled_by_means_of_areas():
    data = images(1, 8, 8)
    other, how = match_format(data, "train", (1, 4, 4), 256)
    means = data.train.x.double().view(4, 1, 4, 2, 4, 2).mean((3, 5))
    assert torch.equal(other.x, (means + 0.5).floor().byte())
    assert how == "scaled from 8x8 to 4x4"


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (127, 8), (255, 16)])
def test_values_are_spread_over_the_levels(value, expected):
    other, how = match_format(images(1, 4, 4, value=value), "test", (1, 4, 4), 17)
    assert set(other.x.flatten().tolist()) == {expected}
    assert how == "256 levels spread over 17"


def test_what_fits_is_left_as_it_is():
    data = images(3, 4, 4)
    other, how = match_format(data, "validation", (3, 4, 4), 256)
    assert (torch.equal(other.x, data.validation.x), how, other.y) == (True, "", None)


UNLIKE = {
    "integers and real numbers": (images(1, 4, 4), (1, 4, 4), None, "are continuous, those of other are integers"),
    "colors and gray": (images(3, 4, 4), (1, 4, 4), 256, "give gray images"),
    "another aspect": (images(1, 8, 4), (1, 4, 4), 256, "scaling would distort them"),
    "points and images": (images(1, 4, 4, levels=None), (2,), None, "give data of the same kind"),
    "another number of features": (
        Dataset("other", *[Split(torch.zeros(3, 3))] * 3, None),
        (2,),
        None,
        "the same kind and number of features",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_data_of_another_kind_are_refused(case):
    data, shape, levels, expected = UNLIKE[case]
    with pytest.raises(DataError, match=expected):
        match_format(data, "test", shape, levels)


# -- samples of a class ----------------------------------------------------------------------------------------------


def line_hybrid(weight):
    """p(y | z) of two classes on the line is a logistic function of relu(z)."""
    model = ir.Hybrid(ir.Flow(ir.Affine(), ir.StandardNormal(1)), n_classes=2)
    model(torch.zeros(2, 1))
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.tensor([[0.0], [weight]]))
        model.head.linear.bias.zero_()
    return model.eval()


def test_latents_of_a_class_have_the_density_that_bayes_says():
    """Share accepted, mean and second moment of p(z) p(y | z), by quadrature, within four standard errors."""
    model, n = line_hybrid(3.0), 40_000
    z = torch.linspace(-8, 8, 16_001)[:, None]
    with torch.no_grad():
        weight = (model.flow.base.log_prob(z).exp() * model.head(z).softmax(1)[:, 1]).double()
    weight = weight / weight.sum()
    with torch.no_grad():
        share = float((model.flow.base.log_prob(z).exp() * model.head(z).softmax(1)[:, 1]).sum()) * 1e-3
    accepted = evaluation.latents_of_class(model, 1, n, generator=torch.Generator().manual_seed(0))
    assert accepted.z.shape == (n, 1)
    assert accepted.rate == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / accepted.n_tried))
    for power in (1, 2):
        expected = float((weight * z[:, 0].double() ** power).sum())
        values = accepted.z.double() ** power
        assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / math.sqrt(n))


def test_a_hopeless_class_is_refused_and_an_unknown_one_too():
    model = line_hybrid(0.0)
    with torch.no_grad():
        model.head.linear.bias.copy_(torch.tensor([0.0, -30.0]))
    with pytest.raises(IResNetError, match="class 1 is too improbable"):
        evaluation.latents_of_class(model, 1, 1)
    with pytest.raises(IResNetError, match="classes are 0 to 1, got 2"):
        evaluation.latents_of_class(model, 2, 1)
