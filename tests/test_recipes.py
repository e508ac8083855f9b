"""Recipes: each builds its model, takes a training step on data of its shape, and says what was published."""

import math
import os

import pytest
import torch

import iresnet as ir
from iresnet.config import load_config, recipe_names
from iresnet.data import Batches, Dataset, Split, load
from iresnet.data.uci import UCI
from iresnet.runs import inputs_of
from iresnet.training import dry_run
from iresnet.training.optim import make_optimiser
from iresnet.training.settings import check_settings
from iresnet.training.task import make_task

SHAPES = {
    **dict.fromkeys(("mnist", "fashion-mnist"), (1, 28, 28)),
    **dict.fromkeys(("cifar10", "cifar100", "svhn"), (3, 32, 32)),
    **dict.fromkeys(UCI, (9,)),
}


def small(recipe):
    """The recipe, with one block a scale when its blocks are 512 channels wide."""
    config = load_config(recipe)
    if config.model["hidden"] == 512:
        config.model["blocks"] = [1] * len(config.model["blocks"])
        config.model["n_power_steps"] = 1
    return config


def dataset_of(config, n=4):
    """The data set of a recipe, or random examples of its shape where it has to be got first."""
    name, side = config.data.name, config.data.pad_to
    if name not in SHAPES:
        return load(name)
    shape = (SHAPES[name][0], side, side) if side else SHAPES[name]
    if name in UCI:
        split = Split(torch.randn(n, *shape))
        return Dataset(name, split, split, split, None, (), "random")
    split = Split(torch.randint(0, 256, (n, *shape), dtype=torch.uint8), torch.arange(n) % 10)
    return Dataset(name, split, split, split, 256, tuple("0123456789"), "random")


TERMS = {"bits_per_dim", "log_prior", "logdet"}


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_takes_a_training_step(recipe):
    config = small(recipe)
    check_settings(config)
    dataset = dataset_of(config)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).train()
    optimiser = make_optimiser(task.model, config.optim)
    x, y = next(Batches(dataset.train, 4).epoch())
    loss, metrics = task(x, y)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    expected = {"density": TERMS, "classify": {"accuracy"}, "hybrid": {*TERMS, "accuracy"}}
    assert metrics.keys() == expected[config.task.kind]
    before = [p.detach().clone() for p in task.parameters()]
    for name, p in task.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name
    optimiser.step()
    assert any(not torch.equal(p, old) for p, old in zip(task.parameters(), before, strict=True))
    again, _ = task(x, y)
    assert math.isfinite(float(again.detach()))


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains_on_the_real_data(recipe):
    """Real steps on real data, where they are."""
    config = small(recipe)
    folder = os.environ.get("IRESNET_DATA", "")
    if config.data.name in SHAPES and not os.path.isdir(os.path.join(folder, config.data.name)):
        pytest.skip(f"needs $IRESNET_DATA with {config.data.name}")
    result = dry_run(config, sizes=(2, 4))
    assert math.isfinite(result.loss)
    if config.data.name in SHAPES:
        n = {"cifar10": 45_000}.get(config.data.name, 55_000 if folder else 0)
        assert result.n_steps == config.train.epochs * (n // config.train.batch_size)


def blocks_of(config, shape):
    """Residual blocks of the full model, without data."""
    options = {key: value for key, value in config.model.items() if key != "name"}
    model = ir.zoo.build(config.model["name"], shape=shape, task=config.task.kind, n_classes=10, **options)
    return [m for m in model.modules() if isinstance(m, ir.ResidualBlock)]


CLASSIFIER = {
    "model": {
        "name": "iresnet",
        "blocks": [7, 7, 7],
        "strides": [1, 2, 2],
        "hidden": [32, 64, 128],
        "coeff": 0.9,
        "injective_pad": 13,
        "squeeze": False,
        "activation": "elu",
        "n_power_steps": 1,
        "actnorm": True,
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.9,
        "lr": 0.1,
        "factor": 0.2,
        "milestones": (60, 120, 160),
        "weight_decay": 5e-4,
        "warmup_epochs": 10,
        "schedule": "step",
        "clip_norm": None,
    },
    "train": {"batch_size": 128, "epochs": 200, "precision": "float32"},
    "task": {"nll_weight": 0, "ce_weight": 1},
    "data": {"name": "cifar10", "augment": ("pad-crop", "flip"), "pad_to": None},
}
DENSITY = {
    "model": {
        "name": "iresnet-multiscale",
        "blocks": [16, 16, 16],
        "strides": [1, 2, 2],
        "hidden": 512,
        "coeff": 0.9,
        "squeeze": True,
        "activation": "elu",
        "n_power_steps": 5,
        "actnorm": True,
        "logdet": {"name": "power-series", "n_terms": 5, "n_probes": 1},
    },
    "optim": {"name": "adamax", "lr": 0.003, "warmup_epochs": 1, "schedule": "constant", "weight_decay": 0},
    "train": {"batch_size": 128},
    "task": {"nll_weight": 1, "ce_weight": 0},
    "data": {"name": "cifar10"},
}
PUBLISHED = {"cifar10-classify": CLASSIFIER, "cifar10-density": DENSITY}
DEFAULTS = {"squeeze": False, "actnorm": True}
"""What the architectures do unless told otherwise; see test_zoo.py."""


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_settings_are_those_of_the_paper(recipe):
    config = load_config(recipe)
    for section, expected in PUBLISHED[recipe].items():
        got = getattr(config, section)
        for key, value in expected.items():
            assert (got.get(key, DEFAULTS.get(key)) if section == "model" else getattr(got, key)) == value, key


def test_the_published_classifier_is_built_whole():
    blocks = blocks_of(load_config("cifar10-classify"), SHAPES["cifar10"])
    channels = [block.g[0 if i == 0 else 1].in_channels for i, block in enumerate(blocks)]
    assert channels == [16] * 7 + [64] * 7 + [256] * 7
    assert [next(layer for layer in block.g if hasattr(layer, "out_channels")).out_channels for block in blocks] == (
        [32] * 7 + [64] * 7 + [128] * 7
    )


def test_the_published_density_has_its_scales():
    config = load_config("cifar10-density", ["--model.blocks", "[1,1,1]", "--model.hidden", "8"])
    blocks = blocks_of(config, SHAPES["cifar10"])
    layers = [next(layer for layer in block.g if hasattr(layer, "in_channels")) for block in blocks]
    assert [(layer.in_channels, *layer.image_size) for layer in layers] == [(12, 16, 16), (24, 8, 8), (48, 4, 4)]
