"""The toy densities are densities, and those of their samples."""

import math

import pytest
import torch

from iresnet.data import TOYS, load

HALF_WIDTH, BINS, FINE = 6.0, 48, 16  # bins of 0.25, each a grid of midpoints 1/64 apart


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bin_probabilities(toy):
    """Integrate the density over each bin by the midpoint rule, shape (BINS, BINS)."""
    n = BINS * FINE
    step = 2 * HALF_WIDTH / n
    axis = -HALF_WIDTH + step * (torch.arange(n, dtype=torch.float64) + 0.5)
    density = toy.log_prob(torch.cartesian_prod(axis, axis)).exp() * step**2
    return density.reshape(BINS, FINE, BINS, FINE).sum((1, 3))


@pytest.mark.parametrize("name", TOYS)
def test_the_density_integrates_to_one_and_is_that_of_the_samples(name):
    toy, n = TOYS[name], 50_000
    expected = bin_probabilities(toy)
    assert abs(expected.sum() - 1) < 2e-3
    x = toy.sample(n, generator(), dtype=torch.float64)
    assert x.abs().max() < HALF_WIDTH
    index = ((x + HALF_WIDTH) / (2 * HALF_WIDTH) * BINS).long()
    counts = torch.bincount(index[:, 0] * BINS + index[:, 1], minlength=BINS**2).double().reshape(BINS, BINS)
    filled = expected * n > 5
    chi2 = ((counts - n * expected) ** 2 / (n * expected))[filled].sum()
    degrees = int(filled.sum())
    assert abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)
    rest = float(expected[~filled].clamp_min(0).sum())
    assert abs(counts[~filled].sum() - n * rest) < 5 * math.sqrt(n * rest) + 5


@pytest.mark.parametrize("name", TOYS)
def test_log_prob_is_the_same_in_float32(name):
    x = TOYS[name].sample(2000, generator())
    assert x.dtype == torch.float32
    inside = TOYS[name].log_prob(x)
    exact = TOYS[name].log_prob(x.double())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.double(), exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", TOYS)
def test_log_prob_is_never_nan(name):
    axis = 0.3 * torch.arange(-100, 101)
    points = torch.cartesian_prod(axis, axis)
    assert (points == 0).all(1).any()
    assert not TOYS[name].log_prob(points).isnan().any()


@pytest.mark.parametrize("name", TOYS)
def test_samples_are_within_the_usual_range_and_follow_the_generator(name):
    x = TOYS[name].sample(2000, generator(3))
    assert x.shape == (2000, 2)
    assert (x.abs() < 4.2).all(1).float().mean() > 0.995
    assert x.abs().max() > 2
    assert torch.equal(x, TOYS[name].sample(2000, generator(3)))
    assert not torch.equal(x, TOYS[name].sample(2000, generator(4)))


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_loads_as_a_fixed_continuous_data_set(name):
    one, other = load(name), load(name)
    assert torch.equal(one.train.x, other.train.x)
    assert (len(one.train), len(one.validation), len(one.test)) == (10_000, 2_000, 10_000)
    assert (one.shape, one.levels, one.n_classes, one.train.y) == ((2,), None, 0, None)
    assert not torch.equal(one.train.x, one.test.x)
