"""UCI tables: found by name, columns without density left out, resolution made up for, split by seed."""

import gzip

import pytest
import torch
from data_fixtures import isolated  # noqa: F401
from laws import close

from iresnet.cli import run
from iresnet.data import load
from iresnet.data.published import add_resolution_noise
from iresnet.errors import DataError


@pytest.fixture
def table(tmp_path):
    """A folder with a table named yacht: discrete, constant, copied and continuous columns."""
    values = (torch.randperm(60) * 0.013).tolist()
    rows = [f"{i % 4}.5  7 {i % 4}.5\t{value:.3f} {10 * (i % 3)}" for i, value in enumerate(values)]
    (tmp_path / "uci").mkdir()
    with gzip.open(tmp_path / "uci" / "yacht.txt.gz", "wt") as file:
        file.write("\n".join(rows) + "\n\n")
    return tmp_path, torch.tensor([[float(field) for field in row.split()] for row in rows])


def rows_of(dataset):
    """All rows, sorted."""
    x = torch.cat([dataset.train.x, dataset.validation.x, dataset.test.x])
    return x[torch.argsort(x[:, 1])]


@pytest.mark.usefixtures("isolated")
def test_columns_without_density_are_left_out_and_named(table):
    folder, raw = table
    dataset = load("yacht", folder)
    assert dataset.shape == (3,)
    assert dataset.source.endswith("without columns 1 (constant), 2 (a copy of 0)")
    kept = raw[torch.argsort(raw[:, 3])][:, [0, 3, 4]]
    noise = (rows_of(dataset) - kept) / torch.tensor([1.0, 0.013, 10.0])
    assert -1e-4 < float(noise.min()) < float(noise.max()) < 1 + 1e-4
    assert all(len(column.unique()) == len(raw) for column in rows_of(dataset).T)  # no value comes twice


@pytest.mark.usefixtures("isolated")
def test_a_split_is_its_seed_and_the_noise_is_the_same_in_all(table):
    folder, raw = table
    first, again, other = (load("yacht", folder, split_seed=seed) for seed in (1, 1, 2))
    for kind in ("train", "validation", "test"):
        close(getattr(first, kind).x, getattr(again, kind).x, 0.0)
        assert len(getattr(first, kind)) == {"train": 48}.get(kind, 6)
    assert not torch.equal(first.test.x, other.test.x)
    close(rows_of(first), rows_of(other), 0.0)
    assert len(rows_of(first)) == len(raw)


@pytest.mark.usefixtures("isolated")
def test_seeds_split_files_and_are_refused_where_there_is_nothing_to_split(table):
    folder, _ = table
    path = folder / "uci" / "yacht.txt.gz"
    assert not torch.equal(load(path, split_seed=1).test.x, load(path).test.x)
    with pytest.raises(DataError, match="split_seed applies only"):
        load("digits", split_seed=1)
    with pytest.raises(DataError, match=r"concrete: not found; looked for .*concrete.txt.gz"):
        load("concrete", folder)


def test_noise_fills_the_gaps_between_values_and_no_more():
    x = torch.tensor([0.0, 0.25, 1.0, 2.0]).repeat(500)[:, None]
    noise = add_resolution_noise(x, generator=torch.Generator().manual_seed(0)) - x
    assert float(noise.min()) >= 0
    assert 0.24 < float(noise.max()) <= 0.25
    assert abs(float(noise.mean()) - 0.125) < 4 * 0.25 / (12 * len(x)) ** 0.5


@pytest.mark.usefixtures("isolated")
def test_a_run_of_a_table_is_evaluated_on_its_own_split(table, tmp_path, capsys):
    folder, _ = table
    out = tmp_path / "run"
    options = ("--model.blocks", "1", "--train.epochs", "1", "--train.batch-size", "10", "--tracker", "[]")
    recipe = ("train", "uci-density", "--data.name", "yacht", "--data.split-seed", "3", "--data-dir", str(folder))
    assert run([*recipe, *options, "--out", str(out)]) == 0
    assert "split_seed: 3" in (out / "config.yaml").read_text()
    assert run(["evaluate", str(out)]) == 0
    assert "full-covariance Gaussian" in capsys.readouterr().out
    assert run(["train", "uci-density", "--data.split-seed", "-1", "--out", str(tmp_path / "no")]) == 2
    assert "--data.split-seed must be at least 0" in capsys.readouterr().err
