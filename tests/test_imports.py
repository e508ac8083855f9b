"""Import of published checkpoints: outputs of the code that made them, nothing executed, certificates that are true."""

import builtins
import io
import pickle
import sys
import zipfile

import code2019
import pytest
import torch
import torch.nn.functional as F
from data_fixtures import COLOR, isolated, write_cifar_python  # noqa: F401 (isolated is used by all)
from torch import nn

import iresnet as ir
from iresnet.data import formats, load
from iresnet.errors import WriteError
from iresnet.imports import pickles
from iresnet.lipschitz import lipschitz_layers
from iresnet.runs import Run

SHAPE = (3, 8, 8)


def classifier(**options):
    settings = {"blocks": [2, 1, 2], "strides": [1, 2, 2], "channels": [6, 8, 8], "pad": 3}
    return code2019.conv_iResNet(SHAPE, **settings | options)


def multiscale(**options):
    settings = {"blocks": [2, 1, 2], "strides": [1, 2, 1], "channels": [8, 8, 8]}
    return code2019.multiscale_conv_iResNet(SHAPE, **settings | options)


def single_density(**options):
    return classifier(pad=0, density=True, init_ds=2, strides=[1, 2, 1], **options)


CLASSIFIERS = {
    "published": classifier,
    "squeezed": lambda: classifier(init_ds=2, strides=[1, 2, 1]),
    "without actnorm": lambda: classifier(actnorm=False),
    "relu": lambda: classifier(nonlin=nn.ReLU),
    "softplus": lambda: classifier(nonlin=nn.Softplus),
    "no padding, 100 classes": lambda: classifier(pad=0, classes=100),
    "scales without blocks": lambda: classifier(blocks=[1, 0, 1]),
}
DENSITIES = {
    "multiscale": multiscale,
    "multiscale without squeeze, strides 2": lambda: multiscale(init=False, strides=[2, 2, 1]),
    "multiscale without actnorm": lambda: multiscale(actnorm=False),
    "multiscale without classes": lambda: multiscale(classes=None),
    "one scale": single_density,
}
WAYS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "parallel": {"parallel": True},
    "legacy, parallel": {"_use_new_zipfile_serialization": False, "parallel": True},
}


@pytest.fixture
def imported(call, tmp_path):
    def import_(network, *options, **ways):
        checkpoint = code2019.save(network, tmp_path / "iresnet-28.t7", **ways)
        status, _, err = call("import", checkpoint, "--out", tmp_path / "run", *options)
        assert (status, err) == (0, "")
        return ir.load(tmp_path / "run")

    return import_


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "data" / "cifar10"
    write_cifar_python(folder, formats.CIFAR10, COLOR)
    return folder


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["published", "squeezed"])
def test_whole_modules_are_read_however_they_were_saved(imported, name, way):
    network, x = CLASSIFIERS[name](), torch.randn(4, *SHAPE)
    with torch.no_grad():
        model, expected = imported(network, **WAYS[way]), network.eval()(x)[0]
        assert torch.allclose(model(x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_logits_of_the_code_that_made_them(imported, name):
    network, x = CLASSIFIERS[name](), torch.randn(4, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(imported(network)(x), network.eval()(x)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_take_pixels_and_give_the_latents_and_the_prior(imported, name):
    network, pixels = DENSITIES[name](), 256 * torch.rand(4, *SHAPE)
    with torch.no_grad():
        model = imported(network, parallel=True)
        zs, log_prior, _ = network.eval()(pixels / 256 - 0.5)
        expected = torch.cat([z.flatten(1) for z in zs], 1) if isinstance(zs, list) else zs.flatten(1)
        density = model.density(pixels)
    assert torch.allclose(density.z, expected, rtol=0, atol=1e-5)
    assert torch.allclose(density.log_prior, log_prior, rtol=1e-5)


def test_log_densities_are_those_of_the_jacobian_of_that_code(imported):
    network = multiscale(blocks=[1, 1, 1]).double()
    model = imported(network.float()).double()
    network.eval().double()

    def latent(pixels):
        zs, _, _ = network(pixels[None] / 256 - 0.5)
        return torch.cat([z.flatten() for z in zs])

    pixels = 256 * torch.rand(*SHAPE, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(latent, pixels).reshape(192, 192)
    with torch.no_grad():
        expected = network(pixels[None] / 256 - 0.5)[1] + torch.linalg.slogdet(jacobian)[1]
        found = model.log_prob(pixels[None], logdet=ir.Exact())
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)


def test_norms_are_those_of_the_buffers_and_not_those_that_the_weights_have(imported):
    network = classifier()
    model = imported(network)
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    network.eval()(torch.zeros(1, *SHAPE))  # its hooks compute the weights
    for kernel, layer in zip(kernels, lipschitz_layers(model), strict=True):
        assert torch.allclose(layer.weight, kernel.weight, rtol=2e-6, atol=0)
    bounds = [bound.lower for bound in ir.certify(model).layers]
    assert max(bounds) > 0.91  # above the coefficient, as power iteration that has not converged leaves them


def test_series_terms_and_coefficient_go_into_the_recipe(imported, tmp_path):
    imported(multiscale(coeff=0.8, terms=(4, 2)))
    config, inputs = Run.open(tmp_path / "run").read_config()
    assert config.model["logdet"] == {"name": "power-series", "n_terms": 4, "n_probes": 2}
    assert config.model["coeff"] == 0.8
    assert (inputs.shape, inputs.levels) == (SHAPE, 256)


# -- what other commands make of it ------------------------------------------------------------------------------------


def test_certify_tells_and_sealing_repairs(call, tmp_path):
    network = classifier(blocks=[1], strides=[1], channels=[8])
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight_orig.data *= 3  # buffers know their direction, but it has changed since
            layer.weight_v.copy_(F.normalize(torch.randn(layer.weight_v.shape), dim=0))
    checkpoint = code2019.save(network, tmp_path / "checkpoint.t7")
    call("import", checkpoint, "--out", tmp_path / "run")
    model = ir.load(tmp_path / "run")
    with torch.no_grad():
        x = torch.randn(4, *SHAPE)
        assert torch.allclose(model(x), network(x)[0], rtol=0, atol=1e-5)
    status, out, _ = call("certify", tmp_path / "run", "--search-steps", 0)
    assert status == 1
    assert "not certified" in out
    assert ir.seal(model).certified
    call("import", checkpoint, "--out", tmp_path / "sealed", "--seal")
    status, out, _ = call("certify", tmp_path / "sealed", "--search-steps", 0)
    assert status == 0
    bounds = [bound.upper for bound in ir.certify(ir.load(tmp_path / "sealed")).layers]
    assert max(bounds) < 0.9 * 1.05


def test_densities_can_be_drawn_from(imported, call, tmp_path):
    imported(multiscale())
    assert call("sample", tmp_path / "run", "-n", 4)[0] == 0
    assert (tmp_path / "run" / "samples" / "samples.png").exists()


def test_a_classifier_takes_pixels_where_its_data_are_known(imported, cifar10):
    network = code2019.conv_iResNet((3, 32, 32), [1], [1], [4])
    model = imported(network, "--data", "cifar10", "--data-dir", cifar10)
    images = load("cifar10", cifar10).test.x[:4].float()
    mean, std = ([[[[0.4914]], [[0.4822]], [[0.4465]]]], [[[[0.2023]], [[0.1994]], [[0.2010]]]])
    normalized = (images / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        assert torch.allclose(model(images), network(normalized)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["classifier", "density"])
def test_imported_models_are_evaluated(imported, call, cifar10, tmp_path, kind):
    options = {"density": kind == "density", "pad": 0}
    network = code2019.conv_iResNet((3, 32, 32), [1], [1], [4], **options)
    imported(network, *(["--data", "cifar10", "--data-dir", cifar10] if kind == "classifier" else []))
    status, out, err = call("evaluate", tmp_path / "run", "--data-dir", cifar10)
    assert status == 0, err
    assert ("accuracy" if kind == "classifier" else "bits/dim") in out


def test_a_classifier_of_unknown_data_is_not_evaluated(imported, call, tmp_path):
    imported(classifier())
    status, _, err = call("evaluate", tmp_path / "run")
    assert status == 2
    assert "import it again with --data" in err
    assert err.count("\n") == 1


# -- bad input ---------------------------------------------------------------------------------------------------------


class Printing:
    """An object whose pickle calls a function, harmless here."""

    def __reduce__(self):
        return builtins.print, ("executed",)


class Unknown(nn.Module):
    """A module that no published code has."""


def changed(change, **options):
    """A checkpoint whose network was changed before it was saved."""

    def write(path):
        network = classifier()
        change(network)
        code2019.save(network, path, **options)

    return write


def whole(make, **options):
    return lambda path: code2019.save(make(), path, **options)


def cut(path):
    code2019.save(classifier(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_legacy(path):
    code2019.save(classifier(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def beyond_its_storage(path):
    """A tensor that claims more numbers than its storage has."""
    torch.save({"model": torch.zeros(7)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content.replace(b"K\x07\x85", b"K\xff\x85"))


def with_hidden_call(path):
    torch.save({"model": classifier_with(Printing())}, path)


def classifier_with(extra):
    network = code2019.ActNorm2D(2)
    return {"a": network.state_dict(), "b": extra}


def script(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


BAD = {
    "function": (with_hidden_call, "builtins.print"),
    "function, legacy": (
        lambda path: torch.save(Printing(), path, _use_new_zipfile_serialization=False),
        "builtins.print",
    ),
    "function in a plain pickle": (lambda path: path.write_bytes(pickle.dumps(Printing(), 2)), "print"),
    "unknown class": (changed(lambda n: setattr(n, "more", Unknown())), "Unknown"),
    "unknown class, parallel": (changed(lambda n: setattr(n, "more", Unknown()), parallel=True), "Unknown"),
    "cut": (cut, "damaged"),
    "cut, legacy": (cut_legacy, "damaged"),
    "no checkpoint": (lambda path: path.write_text("weights"), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "beyond": (beyond_its_storage, "beyond"),
    "script": (script, "TorchScript"),
    "missing": (lambda path: None, "no such file"),
    "weights alone": (lambda path: torch.save({"model": classifier().state_dict()}, path), "OrderedDict"),
    "other dictionary": (lambda path: torch.save({"weights": 1}, path), "weights"),
    "padded density": (whole(lambda: multiscale(pad=2)), "volume zero"),
    "classifier of several scales": (whole(lambda: multiscale(density=False)), "last scale"),
    "sorting": (whole(lambda: classifier(nonlin=code2019.MaxMinGroup)), "MaxMinGroup"),
    "not initialized": (changed(lambda n: setattr(n.stack[0].actnorm, "_init", False)), "ActNorm"),
    "without blocks": (whole(lambda: classifier(blocks=[0, 0, 0])), "no blocks"),
    "attribute": (changed(lambda n: delattr(n, "in_shapes")), "in_shapes"),
    "shapes": (changed(lambda n: setattr(n, "in_shapes", [(3, "8", None)])), "sizes"),
    "no shapes": (changed(lambda n: setattr(n, "in_shapes", [])), "3 sizes"),
    "counts": (changed(lambda n: setattr(n, "nBlocks", [1, 1])), "blocks more"),
    "buffer": (changed(lambda n: setattr(n.stack[0].bottleneck_block[0], "weight_u", torch.zeros(3))), "weight_u"),
    "stride": (changed(lambda n: setattr(n.stack[0].bottleneck_block[0], "stride", (2, 2))), "stride"),
    "coefficients": (changed(lambda n: setattr(n.stack[0], "coeff", 0.5)), "coeff"),
    "head": (changed(lambda n: setattr(n, "logits", nn.Linear(3, 10))), "weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_known_network_is_one_line_and_leaves_nothing(call, tmp_path, name):
    write, reason = BAD[name]
    path = tmp_path / "checkpoint.t7"
    write(path)
    before = set(tmp_path.iterdir())
    status, out, err = call("import", path, "--out", tmp_path / "run")
    assert (status, out) == (2, "")  # "executed" would be printed
    assert err.count("\n") == 1
    assert reason in err
    assert set(tmp_path.iterdir()) == before


def test_classes_of_a_checkpoint_are_never_imported(call, tmp_path, monkeypatch):
    path = code2019.save(classifier(), tmp_path / "checkpoint.t7")
    for name in code2019.PLACES:
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    assert call("import", path, "--out", tmp_path / "run")[0] == 0


def test_a_pickle_cannot_change_the_classes_that_stand_in():
    path = "torch.nn.modules.linear.Linear"
    state = b"\x80\x02ctorch.nn.modules.linear\nLinear\nN}X\x04\x00\x00\x00pathX\x01\x00\x00\x00xs\x86b."
    with pytest.raises(TypeError, match="stays as it is"):
        pickles._unpickler(pickles._known([path]))(io.BytesIO(state)).load()


def test_a_run_is_not_written_over(call, tmp_path):
    path = code2019.save(classifier(), tmp_path / "checkpoint.t7")
    assert call("import", path, "--out", tmp_path / "run")[0] == 0
    status, _, err = call("import", path, "--out", tmp_path / "run")
    assert status == 2
    assert "holds a run already" in err


def test_nothing_stays_when_the_disk_is_full(call, tmp_path, monkeypatch):
    def full(*_):
        raise WriteError("model.safetensors", "No space left on device")

    monkeypatch.setattr("iresnet.models.save_weights", full)
    path = code2019.save(classifier(), tmp_path / "checkpoint.t7")
    assert call("import", path, "--out", tmp_path / "run")[0] == 2
    assert not (tmp_path / "run").exists()
