"""Names of the last release still work, with a warning, and files that it wrote are still read."""

import importlib
import sys

import pytest
import torch

import iresnet as ir
from iresnet import solvers
from iresnet.cli import run
from iresnet.config import load_config
from iresnet.models import load_model
from iresnet.renamed import MODULES
from iresnet.runs import Run


def same(new, old):
    torch.manual_seed(0)
    with pytest.warns(DeprecationWarning, match="is now"):
        result = old()
    torch.manual_seed(0)
    return torch.equal(result, new())


def test_names_of_arguments_and_functions():
    x = torch.randint(8, (5, 3))
    assert same(lambda: ir.dequantize(x, levels=8), lambda: ir.dequantise(x, levels=8))
    assert ir.data.dequantise is ir.dequantise
    layers = {"in_features": 3, "out_features": 3}
    assert same(
        lambda: ir.LipschitzLinear(**layers, normalization="gram").weight,
        lambda: ir.LipschitzLinear(**layers, normalisation="gram").weight,
    )
    options = {"shape": (2,), "blocks": 2, "hidden": 4}
    for block, old in (
        ("dense-monotone", {"block": "monotone", "network": "dense-concat"}),
        ("residual", {"network": "mlp"}),
    ):
        assert same(
            lambda block=block: ir.zoo.build("toy-mlp", **options, block=block).log_prob(torch.ones(3, 2)),
            lambda old=old: ir.zoo.build("toy-mlp", **options, **old).log_prob(torch.ones(3, 2)),
        )
    assert same(
        lambda: ir.zoo.build("toy-mlp", **options, normalization="linf").log_prob(torch.ones(3, 2)),
        lambda: ir.zoo.build("toy-mlp", **options, normalisation="linf").log_prob(torch.ones(3, 2)),
    )


def test_attributes_of_layers():
    layer = ir.LipschitzLinear(3, 3)
    with pytest.warns(DeprecationWarning, match="unnormalised_weight is now unnormalized_weight"):
        assert layer.unnormalised_weight is layer.unnormalized_weight
    with pytest.warns(DeprecationWarning, match="normalisation is now normalization"):
        assert layer.normalisation is layer.normalization
    with pytest.warns(DeprecationWarning, match="normalised is now normalized"):
        assert layer.normalised
    with pytest.warns(DeprecationWarning, match="initialised is now initialized"):
        assert not ir.ActNorm(3).initialised


def test_options_of_recipes(tmp_path):
    (tmp_path / "old.yaml").write_text("base: digits-density\nmodel: {normalisation: gram}\n")
    assert load_config(tmp_path / "old.yaml").model["normalization"] == "gram"
    assert load_config("digits-density", ["--model.normalisation", "gram"]).model["normalization"] == "gram"
    assert load_config("digits-density", ["--data.dequantise", "true"]).data.dequantize
    (tmp_path / "dense.yaml").write_text("base: toy-density\nmodel: {network: dense-concat, block: implicit}\n")
    for config in (
        load_config(tmp_path / "dense.yaml"),
        load_config("toy-density", ["--model.network", "dense-concat", "--model.block", "implicit"]),
    ):
        assert config.model["block"] == "dense-implicit"
        assert "network" not in config.model


def rename(path, new, old):
    path.write_bytes(path.read_bytes().replace(new, old))


def test_run_folders(copied, capsys):
    folder = Run(copied("density"))
    model = load_model(folder).state_dict()
    assert b"initialized" in folder.model_file.read_bytes()
    rename(folder.model_file, b"initialized", b"initialised")
    again = load_model(folder).state_dict()
    assert all(torch.equal(model[name], again[name]) for name in model)
    assert run(["evaluate", str(folder.path), "--examples", "20", "--dequantise-samples", "2"]) == 0
    rename(folder.path / "evaluation.json", b"dequantize_samples", b"dequantise_samples")
    assert folder.read_json("evaluation.json")["likelihood"]["dequantize_samples"] == 2
    assert run(["analyse", "lipschitz", str(folder.path)]) == 0
    assert "lipschitz.png" in capsys.readouterr().out


@pytest.mark.parametrize("old", MODULES)
def test_modules(old):
    new = importlib.import_module(f"iresnet.{MODULES[old]}")
    spec = new.__spec__
    sys.modules.pop(f"iresnet.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"iresnet\.{old} is now"):
        assert importlib.import_module(f"iresnet.{old}") is new
    assert new.__spec__ is spec


def test_other_modules_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("iresnet.no_such_module")


def test_what_has_moved():
    with pytest.warns(DeprecationWarning, match="is now iresnet.accelerated.Anderson"):
        assert solvers.Anderson is ir.Anderson
    with pytest.raises(AttributeError, match="no_such_solver"):
        solvers.no_such_solver  # noqa: B018
