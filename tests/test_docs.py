"""The pages about use: every command line parses and builds its model, every block of code runs."""

import re
import shlex
from pathlib import Path

import pytest
from test_recipes import dataset_of

from iresnet.cli import app
from iresnet.config import load_config
from iresnet.data import Dataset
from iresnet.runs import inputs_of
from iresnet.training.optim import make_optimiser
from iresnet.training.settings import check_settings
from iresnet.training.task import make_task

DOCS = Path(__file__).parent.parent / "docs"
FLAGS = ("--verbose", "--resume", "--dry-run")
PLACES = ("--out", "--tracker", "--data-dir")


def commands(page):
    """Command lines in the blocks of a page, and within its text and tables, without comments."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`(iresnet [^`]*)`", text)
    return list(dict.fromkeys(line.split("  #")[0].strip() for line in lines if line.startswith("iresnet ")))


def overrides_in_tables(page):
    """What the second column of a page's first table gives in place of an option."""
    rows = [line.split("|")[2] for line in (DOCS / page).read_text().splitlines() if line.startswith("| `-")]
    return [code for cell in rows for code in re.findall(r"`(--[^`]*)`", cell)]


def changes(tokens):
    """The changes of a recipe among the tokens of a command line."""
    rest, found = list(tokens), []
    while rest:
        token = rest.pop(0)
        if token in PLACES:
            rest.pop(0)
        elif token not in FLAGS:
            found += [token, rest.pop(0)]
    return found


def builds(recipe, tokens):
    """Build what a command line would train: the whole recipe parses, a model with few blocks is built."""
    config = load_config(recipe, tokens)
    check_settings(config)
    n_scales = len(config.model["blocks"])
    small = ("--model.blocks", str([1] * n_scales), "--model.hidden", "4")
    small += () if config.model["name"] == "resnet" else ("--model.n-power-steps", "1")
    dataset = dataset_of(config)
    small_config = load_config(recipe, [*tokens, *small])
    task = make_task(small_config, dataset, inputs_of(dataset, config.task.kind))
    make_optimiser(task.model, config.optim)
    assert isinstance(dataset, Dataset)


@pytest.mark.parametrize("line", commands("migrating.md"))
def test_every_command_for_those_who_come_from_2019_works(line):
    _, *tokens = shlex.split(line)
    if tokens[0] not in app:
        pytest.skip(f"this version has no iresnet {tokens[0]}")
    app.parse_args(tokens, exit_on_error=False, print_error=False)
    if tokens[0] == "train":
        builds(tokens[1], changes(tokens[2:]))


@pytest.mark.parametrize("code", overrides_in_tables("migrating.md"))
def test_every_option_in_place_of_one_of_2019_works(code):
    tokens = [token.replace("DIR", "runs/x") for token in shlex.split(code)]
    app.parse_args(["train", "cifar10-classify", *tokens], exit_on_error=False, print_error=False)
    density = any(word in code for word in ("logdet", "base", "multiscale"))
    builds("cifar10-density" if density else "cifar10-classify", changes(tokens))


def test_the_options_of_2019_are_all_there():
    text = (DOCS / "migrating.md").read_text()
    rows = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `-"))
    for option in OPTIONS_OF_2019:
        assert re.search(rf"`--?{option}\b", rows), option


OPTIONS_OF_2019 = [
    "densityEstimation",
    "optimizer",
    "lr",
    "coeff",
    "numTraceSamples",
    "numSeriesTerms",
    "powerIterSpectralNorm",
    "weight_decay",
    "drop_rate",
    "batch",
    "init_batch",
    "init_ds",
    "warmup_epochs",
    "inj_pad",
    "epochs",
    "nBlocks",
    "nStrides",
    "nChannels",
    "resume",
    "evaluate",
    "interpolate",
    "drop_two",
    "nesterov",
    "norm",
    "analysisTraceEst",
    "multiScale",
    "fixedPrior",
    "noActnorm",
    "nonlin",
    "dataset",
    "save_dir",
    "vis_port",
    "vis_server",
    "log_every",
    "log_verbose",
    "deterministic",
]
