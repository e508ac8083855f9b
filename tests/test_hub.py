"""Folders of models to publish: they load as what was saved, strictly, and their cards tell the truth."""

import hashlib
import json
import pickle
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import iresnet as ir
from iresnet.errors import IResNetError, RecipeError, RunError

IMAGES = {"shape": (1, 8, 8), "blocks": (1, 1), "strides": (1, 2), "hidden": 4}
BUILT = {
    "density of images": lambda: ir.zoo.build("iresnet-multiscale", **IMAGES),
    "density of vectors": lambda: ir.zoo.build(
        "toy-mlp", shape=(3,), blocks=2, hidden=8, mean=torch.tensor([1.0, 2.0, 3.0]), base="standard-normal"
    ),
    "objects as options": lambda: ir.zoo.build(
        "toy-mlp", shape=(3,), blocks=1, hidden=8, logdet=ir.Krylov(tol=1e-3), solver=ir.FixedPointIteration(1e-7)
    ),
    "classifier": lambda: ir.zoo.build("iresnet", task="classify", n_classes=3, injective_pad=2, **IMAGES),
    "hybrid": lambda: ir.zoo.build("iresnet", task="hybrid", n_classes=4, head_hidden=5, **IMAGES),
    "plain network": lambda: ir.zoo.build("resnet", task="classify", n_classes=3, **IMAGES),
}


def trained(name):
    """A model after one pass in train mode, which initializes what data initialize."""
    model = BUILT[name]()
    model(data_of(model))
    return model


def data_of(model):
    shape = model.flow.event_shape if isinstance(model, ir.Hybrid) else model.event_shape
    return 128 + 50 * torch.randn(16, *shape) if len(shape) == 3 else torch.randn(16, *shape)


@torch.no_grad()
def outputs(model, x):
    """What a model computes without chance."""
    return model.log_prob(x, logdet=ir.Exact()) if isinstance(model, ir.Flow) else model(x)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder that was saved."""
    torch.manual_seed(0)
    return ir.save_pretrained(trained("density of images"), tmp_path_factory.mktemp("hub") / "model", license="mit")


@pytest.fixture
def saved(original, tmp_path):
    """A copy of it, to tamper with."""
    return shutil.copytree(original, tmp_path / "model")


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT)
def test_a_model_that_the_zoo_built_comes_back_as_it_was(name, tmp_path):
    model = trained(name)
    folder = ir.save_pretrained(model, tmp_path / "model")
    assert model.training  # a copy was sealed
    expected, x = model.eval(), data_of(model)
    for loaded in (ir.from_pretrained(folder), ir.load(folder)):
        assert not loaded.training
        torch.testing.assert_close(outputs(loaded, x), outputs(expected, x), rtol=1e-4, atol=1e-4)
        assert getattr(loaded, "class_names", ()) == getattr(model, "class_names", ())
    again = ir.save_pretrained(ir.from_pretrained(folder), tmp_path / "again")
    for file in ("model.safetensors", "config.yaml", "certificate.json"):
        assert (folder / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.parametrize("name", ["digits-density", "mnist-classify-small"])
def test_a_model_of_the_package_comes_back_to_the_bit_with_its_evaluation(name, tmp_path):
    folder = ir.save_pretrained(name, tmp_path / "model")
    loaded, before = ir.from_pretrained(folder).state_dict(), ir.from_pretrained(name).state_dict()
    assert all(torch.equal(loaded[key], before[key]) for key in before.keys() | loaded.keys())
    assert (folder / "evaluation.json").is_file()


def test_weights_that_do_not_contract_are_sealed_before_they_are_saved(tmp_path):
    model = trained("density of vectors")
    for layer in (m for m in model.modules() if isinstance(m, ir.LipschitzLinear)):
        with torch.no_grad():
            layer.unnormalized_weight.mul_(5)
            layer.normalization.u.copy_(torch.randn_like(layer.normalization.u))  # as after a fast step
            layer.unnormalized_weight[0] *= 4
    assert not ir.certify(model).certified
    folder = ir.save_pretrained(model, tmp_path / "model")
    assert json.loads((folder / "certificate.json").read_text())["certified"]
    assert ir.certify(ir.from_pretrained(folder)).certified
    assert not ir.certify(model).certified


def test_it_is_a_run_folder_for_commands(saved, call):
    status, out, _ = call("certify", saved, "--search-steps", 0)
    assert (status, "certified: largest block bound" in out) == (0, True)
    assert call("sample", saved, "-n", 2)[0] == 0


def test_a_folder_is_replaced_by_another_model_and_nothing_else_is(saved, tmp_path):
    other = ir.save_pretrained(trained("classifier"), saved)
    assert isinstance(ir.from_pretrained(other), ir.Classifier)
    (saved / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"holds something else \(thesis\.tex\)"):
        ir.save_pretrained(trained("classifier"), saved)
    assert (saved / "thesis.tex").read_text() == "x"
    with pytest.raises(RunError, match="is no folder"):
        ir.save_pretrained(trained("classifier"), saved / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_goes_to_a_device(saved, another_device):
    model = ir.from_pretrained(saved, device=another_device)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {torch.device(another_device).type}


# -- strictness --------------------------------------------------------------------------------------------------------


def with_tensors(folder, change):
    """Change the tensors, and certify the changed file, as one would who does not want to be seen."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    certificate = json.loads((folder / "certificate.json").read_text())
    certificate["model_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "certificate.json").write_text(json.dumps(certificate))


@pytest.mark.parametrize("key", ["base.mean", "bijection.bijections.0.std"])
def test_a_file_that_lacks_a_tensor_is_refused_by_its_name(saved, key):
    with_tensors(saved, lambda tensors: tensors.pop(key))
    with pytest.raises(RunError, match=re.escape(f'Missing key(s) in state_dict: "{key}"')):
        ir.from_pretrained(saved)


def test_a_file_with_a_tensor_more_is_refused_by_its_name(saved):
    with_tensors(saved, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(RunError, match=re.escape('Unexpected key(s) in state_dict: "surprise"')):
        ir.from_pretrained(saved)


def test_a_tensor_of_another_shape_is_refused_by_its_name(saved):
    with_tensors(saved, lambda tensors: tensors.update({"base.mean": torch.zeros(3)}))
    with pytest.raises(RunError, match=r"size mismatch for base\.mean"):
        ir.from_pretrained(saved)


def test_weights_that_were_changed_after_they_were_certified_are_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["base.mean"][0] += 1e-3
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(RunError, match=r"model\.safetensors is not what certificate\.json was made of"):
        ir.from_pretrained(saved)
    ir.load(saved)  # which asks for no certificate


def test_a_recipe_that_was_changed_after_it_was_certified_is_refused(saved):
    """Another activation or coefficient makes another function of the same weights."""
    config = (saved / "config.yaml").read_text()
    assert "hidden: 4" in config
    (saved / "config.yaml").write_text(config.replace("hidden: 4", "hidden: 4\n  activation: maxmin", 1))
    with pytest.raises(RunError, match=r"config\.yaml is not what certificate\.json was made of"):
        ir.from_pretrained(saved)


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_file_is_refused(saved, damage):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:-10] if damage is None else damage)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        ir.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "certificate.json"])
def test_a_file_that_is_missing_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(RunError, match=rf"has no {re.escape(name)}: it was not saved whole"):
        ir.from_pretrained(saved)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def test_pickles_are_not_read(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RunError, match=r"pytorch_model\.bin, a pickle, which is not read"):
        ir.from_pretrained(saved)
    shutil.copy(saved / "pytorch_model.bin", saved / "model.safetensors")
    with pytest.raises(RunError, match="damaged"):
        ir.from_pretrained(saved)


def by_hand():
    return ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 4)), ir.StandardNormal(2))


def grown():
    model = trained("density of vectors")
    model.bijection.bijections.append(ir.ActNorm(3))
    return model


class Unnamed(ir.Krylov):
    """An estimator that the zoo does not know."""


BAD = {
    "put together by hand": (by_hand, {}, "put together by hand"),
    "changed by hand": (
        grown,
        {},
        "is not the one that was built, and would not load again: .*Unexpected.*bijections.5",
    ),
    "an estimator without name": (
        lambda: ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, logdet=Unnamed()),
        {},
        "has no name in recipes .valid: exact",
    ),
    "another type": (lambda: trained("density of vectors").double(), {}, r"saved in float32, got torch\.float64"),
    "a license in words": (lambda: "digits-density", {"license": "ask me"}, "must be an identifier"),
    "no such run": (lambda: "digits-densty", {}, "did you mean 'digits-density'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_not_be_loaded_again_is_not_saved(name, tmp_path):
    make, options, message = BAD[name]
    with pytest.raises(IResNetError, match=message):
        ir.save_pretrained(make(), tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


# -- the card ----------------------------------------------------------------------------------------------------------


def card_of(folder):
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_has_figures_certificate_and_license(tmp_path):
    folder = ir.save_pretrained(
        "digits-density", tmp_path / "model", license="cc-by-4.0", figures={"FID": 12.3456, "a|b": "1\n2"}
    )
    header, body = card_of(folder)
    assert (header["license"], header["library_name"]) == ("cc-by-4.0", "iresnet")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    bits = evaluation["likelihood"]["bits_per_dim"]
    worst = max(block["upper"] for block in json.loads((folder / "certificate.json").read_text())["blocks"])
    for expected in (
        "# digits-density",
        f"| test bits/dim (negative log-likelihood, 95 %) | {bits['mean']:.3f} ± {bits['half_width']:.3f} |",
        "| FID | 12.35 |",
        "| a\\|b | 1 2 |",
        f"**Certified**: every residual block contracts, by upper bounds in float64; the largest is {worst:.4f}",
        "Of the weights: cc-by-4.0.",
        'ir.from_pretrained("digits-density")',
    ):
        assert expected in body


def test_the_card_of_a_classifier_has_its_accuracy(tmp_path):
    body = card_of(ir.save_pretrained("mnist-classify-small", tmp_path / "model"))[1]
    assert "| test accuracy (95 %) | 99.33% (99.15% to 99.47%) |" in body
    assert "Unknown: nobody has stated one" in body


def test_the_card_of_what_is_not_certified_says_so(tmp_path):
    assert "**Not certified**" in card_of(ir.save_pretrained(trained("plain network"), tmp_path / "model"))[1]


def test_an_evaluation_of_other_weights_is_left_out(tmp_path, copied):
    run = copied("density")
    tree = {"model_sha256": "0" * 64, "split": "test", "likelihood": {"bits_per_dim": {"mean": 1.5, "half_width": 0.1}}}
    (run / "evaluation.json").write_text(json.dumps(tree))
    folder = ir.save_pretrained(run, tmp_path / "stale")
    assert "1.500" not in card_of(folder)[1]
    assert not (folder / "evaluation.json").exists()
    tree["model_sha256"] = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    (run / "evaluation.json").write_text(json.dumps(tree))
    assert "1.500 ± 0.100" in card_of(ir.save_pretrained(run, tmp_path / "fresh"))[1]


# -- the hub, of which only the calls are pretended --------------------------------------------------------------------


class FakeApi:
    """The calls of huggingface_hub.HfApi, into a folder in place of the hub."""

    root = None
    calls: list = []  # noqa: RUF012

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, self.root / repo_id)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(FakeApi, "root", tmp_path / "hub")
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    asked = []

    def download(repository, *, allow_patterns, revision, token):
        asked.append((repository, tuple(allow_patterns), revision, token))
        return tmp_path / "hub" / repository

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_what_is_pushed_to_the_hub_comes_back(hub):
    model = trained("hybrid")
    address = ir.push_to_hub(model, "someone/hybrid", license="mit", private=True, token="t", message="first")
    assert address == "https://hub.example/someone/hybrid"
    assert FakeApi.calls == [
        ("token", "t"),
        ("create", "someone/hybrid", True, True),
        ("upload", "someone/hybrid", "first"),
    ]
    assert card_of(FakeApi.root / "someone/hybrid")[0]["license"] == "mit"
    loaded = ir.from_pretrained("someone/hybrid", revision="v1", token="t")
    assert hub == [("someone/hybrid", ("config.yaml", "model.safetensors", "certificate.json"), "v1", "t")]
    x = data_of(model)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_repository_without_a_certificate_is_refused(hub):
    ir.push_to_hub(trained("hybrid"), "someone/hybrid")
    (FakeApi.root / "someone/hybrid/certificate.json").unlink()
    with pytest.raises(RunError, match=r"someone/hybrid on the hub has no certificate\.json"):
        ir.from_pretrained("someone/hybrid")
    assert len(hub) == 1


def test_a_hub_that_refuses_ends_in_one_line(hub, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("403\nforbidden")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    with pytest.raises(RunError, match=r"^someone/x could not be uploaded \(PermissionError: 403 forbidden\)$"):
        ir.push_to_hub("digits-density", "someone/x")
    assert [call[0] for call in FakeApi.calls] == ["token"]
    with pytest.raises(RunError, match="called owner/name, got 'x'"):
        ir.push_to_hub("digits-density", "x")
    with pytest.raises(RecipeError, match="put together by hand"):
        ir.push_to_hub(by_hand(), "someone/x")
    assert hub == []
