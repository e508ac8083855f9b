"""Estimators of scikit-learn: its own checks, densities by quadrature and closed forms, radii under attack."""

import math
import pickle
import subprocess
import sys
from itertools import count
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import iresnet as ir
from iresnet.config import load_config
from iresnet.data import load
from iresnet.errors import DataError, Interrupted, RecipeError
from iresnet.models import load_model
from iresnet.sklearn import FlowDensity, FlowOutlierDetector, InvertibleClassifier
from iresnet.training import Trainer

TINY = {"blocks": 1, "hidden": 8, "epochs": 4, "random_state": 0, "device": "cpu"}
DENSITY, DETECTOR = FlowDensity(**TINY), FlowOutlierDetector(**TINY)
CLASSIFIER = InvertibleClassifier(**{**TINY, "epochs": 10, "batch_size": 20})


@pytest.mark.filterwarnings("ignore:columns of integers or few values")  # some checks fit integers
@parametrize_with_checks([clone(DENSITY).set_params(epochs=1), CLASSIFIER])
def test_the_checks_of_scikit_learn_pass(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:columns of integers or few values")
@parametrize_with_checks([clone(DETECTOR).set_params(epochs=1)])
def test_the_checks_of_scikit_learn_pass_for_a_detector(estimator, check):
    """It is the density of the other test, with a threshold."""
    check(estimator)


@pytest.fixture(scope="module")
def table():
    """Two columns that depend on each other, of other means and scales."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    return np.stack([5 + 3 * a, -200 + 0.1 * (a**2 + rng.normal(size=300))], axis=1)


@pytest.fixture(scope="module")
def fitted(table):
    return clone(DENSITY).set_params(blocks=2, epochs=20).fit(table)


# -- where it stands -------------------------------------------------------------------------------------------------


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_scikit_learn_is_imported_for_its_estimators_alone():
    code = "import sys, iresnet; [getattr(iresnet, n) for n in iresnet.__all__]; sys.exit('sklearn' in sys.modules)"
    assert python(code).returncode == 0


def test_without_scikit_learn_the_error_says_what_to_install():
    process = python("import sys; sys.modules['sklearn'] = None; import iresnet.sklearn")
    last = process.stderr.strip().splitlines()[-1]
    assert last == "ImportError: iresnet.sklearn needs scikit-learn: pip install 'iresnet[sklearn]'"


# -- densities -------------------------------------------------------------------------------------------------------


def test_a_density_on_the_line_integrates_to_1(table):
    density = clone(DENSITY).fit(table[:, :1])
    x = np.linspace(-45, 55, 4001)
    assert np.trapezoid(np.exp(density.score_samples(x[:, None])), x) == pytest.approx(1, abs=1e-4)


def test_a_density_in_the_plane_integrates_to_1(fitted):
    sides = [np.linspace(m - 8 * s, m + 8 * s, 161) for m, s in zip(fitted.mean_, fitted.scale_, strict=True)]
    x = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    p = np.exp(fitted.score_samples(x.reshape(-1, 2))).reshape(161, 161)
    assert np.trapezoid(np.trapezoid(p, sides[1]), sides[0]) == pytest.approx(1, abs=1e-3)


def test_a_density_is_the_normal_one_of_latents_with_the_determinant_of_the_transform(fitted, table):
    x, step = table[:20], 1e-5 * fitted.scale_
    columns = [(fitted.transform(x + d) - fitted.transform(x - d)) for d in np.diag(step)]
    jacobian = np.stack(columns, axis=2) / (2 * step)
    z = fitted.transform(x)
    expected = -0.5 * (z**2).sum(1) - np.log(2 * np.pi) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(fitted.score_samples(x), expected, atol=1e-6)


def test_other_units_change_the_log_density_by_their_logarithm(fitted, table):
    units, start = np.array([1000.0, 0.25]), np.array([-7.0, 300.0])
    other = clone(fitted).fit(table * units + start)
    shifted = other.score_samples(table * units + start)
    np.testing.assert_allclose(shifted, fitted.score_samples(table) - np.log(units).sum(), atol=2e-3)


def test_the_score_is_the_mean_and_training_raises_it(fitted, table):
    assert fitted.score(table) == fitted.score_samples(table).mean()
    gaussian = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(table.T))[1]
    assert fitted.score(table) > gaussian + 0.1  # the second column is a parabola of the first


def test_samples_are_like_the_data_and_follow_from_the_state(fitted, table):
    samples = fitted.sample(500, random_state=1)
    np.testing.assert_array_equal(samples, fitted.sample(500, random_state=1))
    assert not np.array_equal(samples, fitted.sample(500, random_state=2))
    np.testing.assert_allclose(samples.mean(0), table.mean(0), atol=0.3 * table.std(0).max(), rtol=1e-2)
    np.testing.assert_allclose(samples.std(0), table.std(0), rtol=0.4)
    with pytest.raises(RecipeError, match="n_samples must be at least 1, got 0"):
        fitted.sample(0)


def test_latents_are_mapped_back(fitted, table):
    latents = fitted.transform(table)
    back = fitted.inverse_transform(latents)
    np.testing.assert_allclose((back - table) / fitted.scale_, 0, atol=1e-4)
    with pytest.raises(DataError, match="latents have 2 columns, got 1"):
        fitted.inverse_transform(latents[:, :1])


# -- where scikit-learn is used --------------------------------------------------------------------------------------


def test_a_search_over_a_pipeline_takes_the_better_density(table):
    pipeline = make_pipeline(StandardScaler(), clone(DENSITY).set_params(epochs=20))
    search = GridSearchCV(pipeline, {"flowdensity__blocks": [0, 2]}, cv=2).fit(table)
    assert search.best_params_ == {"flowdensity__blocks": 2}
    assert search.best_estimator_.score_samples(table).shape == (300,)


def test_tables_keep_the_names_of_their_columns(table):
    frame = pd.DataFrame(table, columns=["mass", "age"])
    density = clone(DENSITY).set_output(transform="pandas").fit(frame)
    assert density.feature_names_in_.tolist() == ["mass", "age"]
    latents = density.transform(frame)
    assert isinstance(latents, pd.DataFrame)
    assert latents.columns.tolist() == ["flowdensity0", "flowdensity1"]
    detector, classifier = clone(DETECTOR).fit(frame), clone(CLASSIFIER).fit(frame, frame["age"] > -200)
    for function in (density.transform, density.score_samples, detector.predict, classifier.certified_radius):
        with pytest.raises(ValueError, match="feature names"):
            function(frame[["age", "mass"]])


def test_a_detector_finds_the_share_that_it_was_told(table):
    detector = clone(DETECTOR).set_params(contamination=0.04).fit(table)
    found = detector.predict(table)
    assert (found == -1).sum() == 12
    np.testing.assert_array_equal(found == -1, detector.score_samples(table) < detector.offset_)
    assert detector.predict([[5.0, -100.0], [5.0, -200.0]]).tolist() == [-1, 1]


# -- training --------------------------------------------------------------------------------------------------------


def test_a_fit_follows_from_its_state_and_leaves_that_of_others(table):
    first = clone(DENSITY).fit(table)
    torch.manual_seed(3)  # not the state that a fit ends in
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global one)
    second = clone(DENSITY).fit(table)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(first.score_samples(table), second.score_samples(table))
    other = clone(DENSITY).set_params(random_state=1).fit(table)
    assert not np.array_equal(first.score_samples(table), other.score_samples(table))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_fit_ends_after_the_step_in_which_its_time_is_over(table, early_stopping):
    density = clone(DENSITY).set_params(max_seconds=1e-9, epochs=1000, early_stopping=early_stopping).fit(table)
    assert density.n_steps_ == 1
    assert np.isfinite(density.score(table))
    assert clone(DENSITY).set_params(max_seconds=1e9).fit(table).n_steps_ == 4 * 3


def test_the_best_model_stays_when_time_is_over_before_the_patience(table, worse_after, monkeypatch):
    worse_after(4)  # two epochs of two steps
    clock = count()  # read at the start and after each step
    monkeypatch.setattr("iresnet.sklearn.fitting.time", SimpleNamespace(monotonic=lambda: next(clock)))
    patient = {"early_stopping": True, "patience": 100, "options": ("--optim.schedule", "constant")}
    density = clone(DENSITY).set_params(epochs=20, max_seconds=9, **patient).fit(table)
    assert density.n_steps_ == 9
    short = clone(DENSITY).set_params(epochs=2, **patient).fit(table)
    np.testing.assert_array_equal(density.score_samples(table), short.score_samples(table))


def test_early_stopping_ends_after_its_patience_with_the_best_model(table, worse_after):
    worse_after(4)
    stopping = {"early_stopping": True, "patience": 3, "options": ("--optim.schedule", "constant")}
    density = clone(DENSITY).set_params(epochs=20, **stopping).fit(table)
    assert density.n_steps_ == 4 + 3 * 2
    short = clone(DENSITY).set_params(epochs=2, **stopping).fit(table)
    np.testing.assert_array_equal(density.score_samples(table), short.score_samples(table))


def test_a_request_to_stop_is_no_exception_that_searches_pass_over(table, monkeypatch):
    def interrupted(*_):
        raise Interrupted("stopped after step 1 of 4")

    monkeypatch.setattr(Trainer, "_loop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clone(DENSITY).fit(table)


def test_progress_is_shown_when_asked_for(table, capsys):
    clone(DENSITY).fit(table)
    assert capsys.readouterr() == ("", "")
    clone(DENSITY).set_params(verbose=1).fit(table)
    out, err = capsys.readouterr()
    assert out == ""
    assert "certified" in err


def test_a_model_of_another_device_is_saved_for_the_cpu(table, another_device):
    density = clone(DENSITY).set_params(device=another_device).fit(table)
    scores = density.score_samples(table)
    assert {p.device.type for p in density.model_.parameters()} == {torch.device(another_device).type}
    copied = pickle.loads(pickle.dumps(density)).set_params(device="cpu")
    assert {p.device.type for p in copied.model_.parameters()} == {"cpu"}
    np.testing.assert_allclose(copied.score_samples(table), scores, atol=1e-9)


# -- certified radii -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moons():
    x, y = make_moons(300, noise=0.1, random_state=0)
    return np.stack([40 * x[:, 0], np.full(300, 7.0), 0.01 * x[:, 1]], axis=1), np.where(y, "upper", "lower")


@pytest.fixture(scope="module")
def classifier(moons):
    return clone(CLASSIFIER).set_params(blocks=2, hidden=16).fit(*moons)


def logits_of(classifier, x):
    used = x[:, torch.from_numpy(classifier.varying_)]
    return classifier.model_((used - torch.from_numpy(classifier.mean_)) / torch.from_numpy(classifier.scale_))


def test_attacks_of_the_certified_radius_change_no_prediction(classifier, moons):
    x, before = torch.from_numpy(moons[0]), classifier.predict(moons[0])
    radii = torch.from_numpy(classifier.certified_radius(moons[0]))[:, None]
    steep = torch.zeros_like(x)
    steep[:, 2] = 1  # along the column of the smallest scale, where the network is steepest
    for start in (torch.zeros_like(x), steep, -steep, torch.randn_like(x)):
        attack = 0.5 * radii * start
        for _ in range(30):
            attack.requires_grad_()
            first, second = logits_of(classifier, x + attack).topk(2, dim=1).values.T
            (gradient,) = torch.autograd.grad((first - second).sum(), attack)
            attack = attack.detach() - 0.2 * radii * torch.nn.functional.normalize(gradient)
            attack = attack * (radii / attack.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
        assert (classifier.predict((x + attack).numpy()) == before).all()


def test_the_certified_constant_is_above_every_jacobian_and_not_far(classifier, moons):
    x = torch.from_numpy(moons[0])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: logits_of(classifier, row[None])[0]))(x)
    found = float(torch.linalg.matrix_norm(jacobians - jacobians.mean(1, keepdim=True), 2).max())
    assert found <= classifier.lipschitz_ < 20 * found


def test_the_certified_constant_is_the_product_of_those_of_the_parts(classifier):
    model = classifier.model_
    norms = [np.linalg.norm(w.numpy(), 2) for w in linear_weights(model.bijection)]
    network = math.prod(1 + a * b * c for a, b, c in zip(*[iter(norms)] * 3, strict=True))
    (scale,) = (m.std for m in model.modules() if isinstance(m, ir.Affine))
    norm, linear = model.head.norm, model.head.linear
    weight = linear.weight.numpy() - linear.weight.numpy().mean(0)  # what moves all logits alike does not count
    head = weight * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).numpy()
    smallest = float(scale.min()) * classifier.scale_.min()
    assert classifier.lipschitz_ == pytest.approx(network * np.linalg.norm(head, 2) / smallest, rel=1e-4)


def linear_weights(module):
    return [layer.weight for layer in module.modules() if isinstance(layer, ir.LipschitzLinear)]


def test_radii_are_margins_over_the_constant_in_the_units_of_the_data(classifier, moons):
    x, y = moons
    margins = np.abs(np.log(classifier.predict_proba(x)) @ [1, -1])  # logits but for a constant
    np.testing.assert_allclose(classifier.certified_radius(x), margins / (2**0.5 * classifier.lipschitz_), rtol=1e-6)
    larger = clone(classifier).fit(1000 * x, y)
    np.testing.assert_allclose(larger.certified_radius(1000 * x), 1000 * classifier.certified_radius(x), rtol=1e-2)


def test_labels_of_any_kind_come_back_and_constant_columns_do_not_count(classifier, moons):
    x, y = moons
    assert classifier.score(x, y) > 0.8
    assert classifier.varying_.tolist() == [True, False, True]
    np.testing.assert_array_equal(classifier.predict(x), classifier.predict(x + np.array([0, 5, 0])))


# -- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "max_seconds": ({"max_seconds": 0}, "max_seconds must be above 0, got '0'"),
    "epochs": ({"epochs": 0}, "--train.epochs must be at least 1, got '0'"),
    "coeff": ({"coeff": 1.5}, "coeff"),
    "option": ({"options": ("--optim.lrr", "1")}, "did you mean '--optim.lr'?"),
}


@pytest.mark.parametrize("name", BAD)
def test_parameters_that_cannot_be_used_are_refused(table, name):
    parameters, message = BAD[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        clone(DENSITY).set_params(**parameters).fit(table)
    assert message in str(caught.value)


@pytest.mark.parametrize("contamination", [0, 0.6])
def test_a_contamination_that_is_no_share_is_refused(table, contamination):
    with pytest.raises(RecipeError, match=r"contamination must be in \(0, 0.5\], got 0"):
        clone(DETECTOR).set_params(contamination=contamination).fit(table)


def test_columns_without_a_density_are_named(table):
    frame = pd.DataFrame(table, columns=["mass", "age"]).assign(unit=1.0)
    with pytest.raises(DataError, match="columns that are constant in all 300 samples have no density: 'unit'; drop"):
        clone(DENSITY).fit(frame)
    with pytest.warns(UserWarning, match="columns of integers or few values have no density, .*: 'count'; add"):
        clone(DENSITY).fit(frame[["mass"]].assign(count=np.arange(300.0) % 7))
    with pytest.raises(DataError, match="all 2 columns are constant in 4 samples"):
        clone(CLASSIFIER).fit(np.ones((4, 2)), [0, 1, 0, 1])


def test_one_class_is_too_few(table):
    with pytest.raises(DataError, match="at least 2 classes, got 1 class: a"):
        clone(CLASSIFIER).fit(table, ["a"] * len(table))


def test_a_trainer_notes_the_name_of_the_data_that_it_was_given(tiny, tmp_path):
    recipe, *changes = tiny["toy"]
    named = Trainer(load_config(recipe, [*changes, "--data.name", "moons"])).fit(tmp_path / "named")
    given = Trainer(load_config(recipe, changes), dataset=load("moons")).fit(tmp_path / "given")
    assert given.read_config()[0].data.name == "moons"
    weights = [load_model(run).state_dict() for run in (named, given)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
