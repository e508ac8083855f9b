"""Import of checkpoints of Residual Flows: latents and densities of the code that made them, nothing executed."""

import argparse
import math
import sys

import pytest
import residual_flows_code as code
import torch
import torch.nn.functional as F
from data_fixtures import isolated  # noqa: F401 (used by all)
from torch import nn

import iresnet as ir
from iresnet.certificates import excesses
from iresnet.imports import residual_flows
from iresnet.lipschitz import lipschitz_layers
from iresnet.runs import Run

IMAGES = {
    "published": {},
    "MNIST": {"data": "mnist"},
    "factored out, squeezed first": {"data": "imagenet64", "squeeze_first": True, "factor_out": True, "imagesize": 16},
    "factored out": {"factor_out": True},
    "no dense blocks, one scale": {"fc_end": False, "nblocks": "2", "act": "elu"},
    "more scales than the images have": {"nblocks": "1-1-1-1-1", "act": "softplus"},
    "without actnorm and logit": {"actnorm": False, "logit_transform": False, "act": "relu"},
    "five bits": {"data": "celeba_5bit"},
    "last weights": {"ema_val": False},
}
TOYS = {"published": {}, "elu": {"act": "elu", "dims": "5", "vnorms": "222", "nblocks": 4}}


@pytest.fixture
def imported(call, tmp_path):
    def import_(content, *options, **ways):
        checkpoint = code.save(content, tmp_path / "most_recent.pth", **ways)
        status, out, err = call("import", checkpoint, "--out", tmp_path / "run", *options)
        assert (status, err) == (0, "")
        return ir.load(tmp_path / "run"), out

    return import_


def levels(options):
    return 32 if options.data == "celeba_5bit" else 256


def dense_log_prob(network, x):
    """Log-densities of a network of that code, with the determinant of its Jacobian."""
    found = []
    for sample in x:
        z = network(sample[None]).flatten()
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None]).flatten(), sample)
        prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum()
        found.append(prior + torch.linalg.slogdet(jacobian.reshape(len(z), len(z)))[1])
    return torch.stack(found).detach()


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_densities_of_images_take_pixels_and_give_the_latents_of_the_code_that_made_them(imported, name):
    network, content = code.images(**IMAGES[name])
    model, out = imported(content)
    n = levels(content["args"])
    pixels = n * torch.rand(4, *model.event_shape)
    assert f"pixels from 0 to {n - 1}" in out
    with torch.no_grad():
        expected = code.evaluated(network, content)(pixels / n)
        assert torch.allclose(model.encode(pixels), expected, rtol=1e-6, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", ["published", "factored out", "without actnorm and logit", "five bits"])
def test_log_densities_are_those_of_the_jacobian_of_that_code(imported, name):
    network, content = code.images(**IMAGES[name])
    model = imported(content)[0].double()
    code.evaluated(network, content).double()
    n = levels(content["args"])
    pixels = n * torch.rand(2, *model.event_shape, dtype=torch.float64)
    with torch.no_grad():
        found = model.log_prob(pixels, logdet=ir.Exact())
    # That code subtracts log(levels) for each number from the density on [0, 1).
    expected = dense_log_prob(network, pixels / n) - math.log(n) * pixels[0].numel()
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", TOYS)
def test_densities_of_points_are_those_of_that_code(imported, name):
    network, content = code.toys(**TOYS[name])
    model, _ = imported(content)
    x = torch.randn(8, 2)
    with torch.no_grad():
        assert torch.allclose(model.encode(x), network(x), rtol=0, atol=1e-5)
        assert torch.allclose(model.log_prob(x), dense_log_prob(network, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ways", [{"package": "lib"}, {"_use_new_zipfile_serialization": False}], ids=["lib", "legacy"])
def test_checkpoints_of_all_times_are_read(imported, ways):
    network, content = code.images()
    model, _ = imported(content, **ways)
    pixels = 256 * torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = code.evaluated(network, content)(pixels / 256)
        assert torch.allclose(model.encode(pixels), expected, rtol=1e-6, atol=1e-5)


def test_options_that_older_checkpoints_lack_have_their_defaults(imported):
    network, content = code.images()
    for name in ("logit_transform", "learn_p", "preact", "ema_val"):
        delattr(content["args"], name)
    model, _ = imported(content)
    content["args"].ema_val = True
    with torch.no_grad():
        x = 256 * torch.rand(2, 3, 8, 8)
        assert torch.allclose(model.encode(x), code.evaluated(network, content)(x / 256), rtol=1e-6, atol=1e-5)


def test_norms_are_those_of_the_buffers_which_certify_tells_and_sealing_repairs(imported, call, tmp_path):
    network, content = code.images(ema_val=False, actnorm=False, nblocks="1", imagesize=4)
    theirs = [layer for layer in network.modules() if hasattr(layer, "normalized")]
    for layer in theirs:
        layer.weight.data *= 3
        layer.v.copy_(F.normalize(layer.v + 0.5 * F.normalize(torch.randn_like(layer.v), dim=0), dim=0))  # lags behind
    model, _ = imported(content)
    for layer, other in zip(lipschitz_layers(model), theirs, strict=True):
        assert torch.allclose(layer.weight, other.normalized(), rtol=2e-6, atol=1e-7)
    assert excesses(model)
    status, out, _ = call("certify", tmp_path / "run", "--search-steps", 0)
    assert (status, "not certified" in out) == (1, True)
    assert call("import", tmp_path / "most_recent.pth", "--out", tmp_path / "sealed", "--seal")[0] == 0
    assert call("certify", tmp_path / "sealed", "--search-steps", 0)[0] == 0


def test_the_run_says_what_it_is_and_can_be_drawn_from(imported, call, tmp_path):
    _, content = code.images(data="mnist", imagesize=28, nblocks="1-1-1")
    _, out = imported(content)
    assert "test_bpd 3.25" in out
    assert "data: mnist" in out
    config, inputs = Run.open(tmp_path / "run").read_config()
    assert (config.data.name, config.model["logit"], config.model["blocks"]) == ("mnist", 1e-6, [1, 1, 1])
    assert (inputs.shape, inputs.levels, len(inputs.class_names)) == ((1, 28, 28), 256, 10)
    assert call("sample", tmp_path / "run", "-n", 4)[0] == 0
    assert (tmp_path / "run" / "samples" / "samples.png").exists()


def test_classes_of_a_checkpoint_are_never_imported(call, tmp_path, monkeypatch):
    path = code.save(code.images()[1], tmp_path / "most_recent.pth")
    for place in code.PLACES:
        monkeypatch.setitem(sys.modules, f"resflows{place}", None)  # importing it would raise
    assert call("import", path, "--out", tmp_path / "run")[0] == 0


# -- bad input ---------------------------------------------------------------------------------------------------------


def images_with(change, **options):
    """A checkpoint that was changed before it was saved."""

    def write(path):
        _, content = code.images(**options)
        change(content)
        code.save(content, path)

    return write


def options(**changed):
    return images_with(lambda c: vars(c["args"]).update(changed))


def state(name, value):
    return images_with(lambda c: c["state_dict"].update({name: value}))


def drop(numbers, part):
    for name in [name for name in numbers if part in name]:
        del numbers[name]


class Unknown(nn.Module):
    """A module that no published code has."""


BAD = {
    **{
        f"option {name}": (options(**{name: "other"}), f"--{name.replace('_', '-')} other")
        for name in residual_flows.ONLY
    },
    "mixed norms": (options(vnorms="122f"), "--vnorms 122f"),
    "classifier": (options(task="hybrid"), "--task hybrid"),
    "activation": (options(act="lcube"), "--act"),
    "bits": (options(data="celebahq", nbits=5), "--nbits 5"),
    "blocks": (options(nblocks="16-16-"), "'nblocks'"),
    "no image size": (images_with(lambda c: delattr(c["args"], "imagesize")), "'imagesize'"),
    "coefficient": (options(coeff="0.9"), "'coeff'"),
    "options": (images_with(lambda c: c.update(args={"data": "mnist"})), "args"),
    "averages": (images_with(lambda c: c.update(ema=3)), "ema"),
    "other blocks": (options(nblocks="1-1-1"), "blocks and norms"),
    "other preactivation": (options(nblocks="2"), "blocks and norms"),
    "sizes": (options(idim=9), "nnet.0.weight"),
    "no tensor": (state("transforms.0.chain.1.initialized", 1.0), "transforms.0.chain.1.initialized"),
    "buffer": (state("transforms.0.chain.2.nnet.0.u", torch.zeros(3)), "chain.2.nnet.0.u"),
    "not initialized": (state("transforms.0.chain.1.initialized", torch.tensor(0)), "chain.1.initialized' is not set"),
    "unknown number": (state("more.weight", torch.zeros(1)), "more.weight"),
    "missing": (images_with(lambda c: c["state_dict"].pop("transforms.0.chain.2.nnet.0.v")), "chain.2.nnet.0.v"),
    "missing layer": (
        images_with(
            lambda c: [c["state_dict"].pop(k) for k in list(c["state_dict"]) if ".2.nnet.2." in k], ema_val=False
        ),
        "chain.2.nnet.2.",
    ),
    "unknown class": (images_with(lambda c: setattr(c["ema"].module, "more", Unknown())), "Unknown"),
    "toy with norms": (lambda path: code.save(code.toys(actnorm=True)[1], path), "--actnorm True"),
    "coupling": (lambda path: code.save(code.toys(arch="realnvp")[1], path), "--arch realnvp"),
    "toy of other norms": (lambda path: code.save(code.toys(vnorms="1222f")[1], path), "--vnorms 1222f"),
    "toy of several sizes": (lambda path: code.save(code.toys(dims="7-8-7")[1], path), "7-8-7"),
    "no dictionary of it": (
        lambda path: torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, path),
        "'data' of its options",
    ),
    "no options": (lambda path: torch.save({"state_dict": {}}, path), "Residual Flows"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_counterpart_is_told_in_one_line_and_leaves_nothing(call, tmp_path, name):
    write, reason = BAD[name]
    path = tmp_path / "most_recent.pth"
    write(path)
    before = set(tmp_path.iterdir())
    status, out, err = call("import", path, "--out", tmp_path / "run")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert reason in err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("given", "reason"), [("2019", "--from residual-flows"), ("residual-flows", "Residual Flows")])
def test_a_checkpoint_of_the_other_code_is_told(call, tmp_path, given, reason):
    path = tmp_path / "checkpoint.pth"
    if given == "2019":
        code.save(code.toys()[1], path)
    else:
        torch.save({"model": torch.zeros(1)}, path)
    status, _, err = call("import", path, "--from", given, "--out", tmp_path / "run")
    assert status == 2
    assert reason in err
    assert err.count("\n") == 1


def test_points_are_not_those_of_a_data_set_here(call, tmp_path):
    path = code.save(code.toys()[1], tmp_path / "checkpt.pth")
    status, _, err = call("import", path, "--data", "moons", "--out", tmp_path / "run")
    assert status == 2
    assert "leave --data out" in err
