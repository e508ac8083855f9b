"""The published data sets, where $IRESNET_DATA has them: sizes, labels and statistics that are known."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from iresnet.data import load
from iresnet.data.published import UCI

ROOT = os.environ.get("IRESNET_DATA")


def need(name):
    if not ROOT or not (Path(ROOT) / name).exists():
        pytest.skip(f"needs $IRESNET_DATA with {name}")


#: sizes, shape, first labels, training labels per class, mean and deviation of the training pixels / 255
KNOWN = {
    "mnist": (
        (55_000, 5_000, 10_000),
        (1, 28, 28),
        ([5, 0, 4, 1, 9], [7, 2, 1, 0, 4]),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ([0.1307], [0.3081]),
    ),
    "fashion-mnist": (
        (55_000, 5_000, 10_000),
        (1, 28, 28),
        ([9, 0, 0, 3, 0], [9, 2, 1, 1, 6]),
        [6000] * 10,
        ([0.2860], [0.3530]),
    ),
    "cifar10": (
        (45_000, 5_000, 10_000),
        (3, 32, 32),
        ([6, 9, 9, 4, 1], [3, 8, 8, 0, 6]),
        [5000] * 10,
        ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_data_sets_have_their_known_content(name):
    need(name)
    sizes, shape, (first_train, first_test), counts, (mean, sd) = KNOWN[name]
    data = load(name)
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert (data.shape, data.levels, data.n_classes) == (shape, 256, 10)
    assert data.train.y[:5].tolist() == first_train
    assert data.test.y[:5].tolist() == first_test
    x, y = torch.cat([data.train.x, data.validation.x]), torch.cat([data.train.y, data.validation.y])
    assert y.bincount().tolist() == counts
    histogram = torch.stack([channel.flatten().bincount(minlength=256) for channel in x.unbind(1)]).double()
    level = torch.arange(256, dtype=torch.float64) / 255
    share = histogram / histogram.sum(1, keepdim=True)
    got_mean = share @ level
    got_sd = (share @ level**2 - got_mean**2).sqrt()
    np.testing.assert_allclose(got_mean, mean, atol=6e-5)
    np.testing.assert_allclose(got_sd, sd, atol=6e-5)


TABLES = {
    "concrete": (1030, 9),
    "energy": (768, 9),
    "kin8nm": (8192, 9),
    "naval-propulsion-plant": (11_934, 18),
    "power-plant": (9568, 5),
    "protein-tertiary-structure": (45_730, 10),
    "wine-quality-red": (1599, 12),
    "yacht": (308, 7),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_uci_tables_are_read_whole(name):
    need("uci")
    rows, columns = TABLES[name]
    path = Path(ROOT) / "uci" / f"{name}.txt.gz"
    data = load(path)
    assert (len(data.train) + len(data.validation) + len(data.test), data.shape) == (rows, (columns,))
    independent = np.loadtxt(path)
    ours = torch.cat([data.train.x, data.validation.x, data.test.x]).double().sum(0)
    np.testing.assert_allclose(ours, independent.astype(np.float32).sum(0, dtype=float), rtol=1e-9)


def test_the_quality_of_wine_is_a_class():
    need("uci")
    data = load("uci/wine-quality-red.txt.gz", target=-1)
    assert data.class_names == ("3", "4", "5", "6", "7", "8")
    assert data.shape == (11,)


ROWS = {
    "concrete": (1030, 9),
    "energy": (768, 9),
    "kin8nm": (8192, 9),
    "naval-propulsion-plant": (11934, 15),
    "power-plant": (9568, 5),
    "protein-tertiary-structure": (45730, 10),
    "wine-quality-red": (1599, 12),
    "yacht": (308, 7),
}


@pytest.mark.parametrize("name", UCI)
def test_uci_tables_have_their_rows_and_a_covariance(name):
    need("uci")
    dataset = load(name, split_seed=1)
    splits = (dataset.train, dataset.validation, dataset.test)
    rows, columns = ROWS[name]
    assert [len(split) for split in splits] == [rows - 2 * (rows // 10), rows // 10, rows // 10]
    assert dataset.shape == (columns,)
    correlation = torch.corrcoef(dataset.train.x.double().T)
    assert float(torch.linalg.eigvalsh(correlation)[0]) > 1e-9
