"""The page of results says what the archives beside it say, and a new seed joins those that are kept."""

import json
import zipfile

import pytest
import reproduce
import result_tables
import yaml

from iresnet.config import load_config, to_yaml


@pytest.mark.parametrize("name", result_tables.TABLES)
def test_a_table_of_the_page_is_that_of_the_archives(name):
    table = result_tables.TABLES[name](reproduce.results())
    assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in reproduce.PAGE.read_text(encoding="utf-8")


OF_THE_OPTIMIZER = ("name", "lr", "momentum", "weight_decay", "warmup_epochs", "schedule", "decay_from")


def settings(config):
    """What decides on a result, of a configuration as a tree; recipes may have said it otherwise once."""
    activation = "relu" if config["model"]["name"] == "resnet" else "elu"
    model = {"activation": activation, "spline": 0, "base": "diagonal-normal", **config["model"]}
    if model["base"] != "mixture-normal":
        model.pop("components", None)
    optim = {key: config["optim"][key] for key in OF_THE_OPTIMIZER}
    data, train = (
        {key: config[part][key] for key in keys}
        for part, keys in (("data", ("name", "augment", "split_seed")), ("train", ("epochs", "batch_size", "seed")))
    )
    return data, model, [config["task"][key] for key in ("nll_weight", "ce_weight")], optim, train


def was_trained_by_an_earlier_recipe(name):
    return "-classify-small-" in name


def test_every_experiment_is_kept_with_its_settings_and_command_and_without_where_its_data_lay():
    for name, experiment in (pair for group in reproduce.GROUPS.values() for pair in group.items()):
        runs = reproduce.archived(name)
        assert runs, name
        for run in runs:
            command = experiment.command(int(run.name.removeprefix("seed-")))
            _, recipe, *overrides = command
            now = yaml.safe_load(to_yaml(load_config(recipe, overrides)))
            assert settings(yaml.safe_load((run / "config.yaml").read_text())) == settings(now), (name, run.name)
            kept = json.loads((run / "origin.json").read_text())["command"]
            assert kept.startswith(f"iresnet train {recipe} ")
            assert was_trained_by_an_earlier_recipe(name) or kept == " ".join(["iresnet", *command])
            assert "data_dir" not in json.loads((run / "env.json").read_text())


def run_of(folder, seed, commit):
    run = folder / f"seed-{seed}"
    run.mkdir(parents=True)
    (run / "origin.json").write_text(commit)
    (run / "env.json").write_text('{"data_dir": "somewhere", "torch": "2"}')
    (run / "model.safetensors").write_text("large")
    return run


def test_new_seeds_join_the_kept_ones_and_replace_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RAW", tmp_path / "results")
    reproduce.archive("some", [run_of(tmp_path / "a", seed, "old") for seed in (0, 1)])
    reproduce.archive("some", [run_of(tmp_path / "b", seed, "new") for seed in (2, 1)])
    runs = reproduce.archived("some")
    assert [(run.name, (run / "origin.json").read_text()) for run in runs] == [
        ("seed-0", "old"),
        ("seed-1", "new"),
        ("seed-2", "new"),
    ]
    assert json.loads((runs[0] / "env.json").read_text()) == {"torch": "2"}
    assert len(zipfile.ZipFile(tmp_path / "results" / "some.zip").namelist()) == 6
