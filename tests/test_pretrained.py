"""The models that come with the package certify, and are worth what is stated."""

import copy
import json
from importlib import resources
from pathlib import Path

import pytest
import torch

import iresnet as ir
from iresnet import evaluation
from iresnet.data import Split, load
from iresnet.data.storage import data_folders
from iresnet.errors import RunError
from iresnet.pretrained import find_run, pretrained_names

NAME = "digits-density"
FOLDER = Path(str(resources.files("iresnet.pretrained")))


@pytest.mark.parametrize("name", pretrained_names())
def test_a_pretrained_model_is_small_and_certifies_and_says_so(name):
    model = ir.load(name)
    assert not model.training
    certificate = ir.certify(copy.deepcopy(model))
    assert certificate.certified
    assert f"\n{certificate.verdict}; all modules" in repr(model)
    assert "certified: largest block bound" in model._repr_html_()
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) <= 4 * 1024**2


def test_a_loaded_classifier_names_its_classes(copied):
    assert ir.load("mnist-classify-small").class_names == tuple("0123456789")
    run = copied("hybrid")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("- '3'", "- three"))
    assert ir.load(run).class_names == (*"012", "three", *"456789")


def test_a_model_is_loaded_onto_a_device(another_device):
    model = ir.load(NAME, device=another_device)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {torch.device(another_device).type}


@pytest.mark.parametrize("name", pretrained_names())
def test_a_pretrained_model_is_worth_what_is_stated(name):
    stated = json.loads((FOLDER / name / "stated.json").read_text())
    if stated["data"] != "digits" and not any((root / stated["data"]).exists() for root in data_folders(None)):
        pytest.skip(f"needs {stated['data']} in $IRESNET_DATA")
    dataset = load(stated["data"])
    n = stated["examples"]
    subset = Split(dataset.test.x[:n], None if dataset.test.y is None else dataset.test.y[:n])
    model = ir.load(name)
    if "accuracy" in stated:
        accuracy = evaluation.classification(model, subset, levels=dataset.levels, seed=0).accuracy
        assert accuracy == pytest.approx(stated["accuracy"], abs=1 / n)  # rounding may turn one over
    else:
        score = evaluation.likelihood(model, subset, levels=dataset.levels, seed=0)
        assert score.bits_per_dim.mean == pytest.approx(stated["bits_per_dim"], abs=2e-3)


@pytest.mark.parametrize("name", [name for name in pretrained_names() if "density" in name])
def test_training_examples_of_a_pretrained_density_are_scored_already(name):
    run = find_run(name)
    stored = run.read_json("training-scores.json")
    assert (stored["model_sha256"], stored["n_draws"], stored["seed"]) == (run.weights_sha256(), 4, 0)
    assert len(stored["log_likelihood"]) >= 1000


def test_a_model_of_the_hub_is_that_of_its_files(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or FOLDER / NAME)
    same = zip(ir.load("someone/digits").state_dict().values(), ir.load(NAME).state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert asked == ["someone/digits"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: tmp_path)
    with pytest.raises(RunError, match=r"someone/digits on the hub has no config\.yaml"):
        ir.load("someone/digits")


def _fail(*_, **__):
    raise ConnectionError("no network")


def test_a_hub_that_does_not_answer_ends_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _fail)
    with pytest.raises(RunError, match=r"someone/digits is no run folder, and could not be fetched.*no network"):
        ir.load("someone/digits")
