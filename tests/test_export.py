"""Exported files give torch's numbers in onnxruntime, for batches of any size, and say what their loops reached."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from marks import slow

import iresnet as ir
from iresnet import cli
from iresnet.errors import IResNetError, RecipeError, UnknownNameError
from iresnet.export import draw_probes, to_onnx

onnxruntime = pytest.importorskip("onnxruntime")

SIZES = (1, 3, 8)
"""Batch sizes; none but 1 is one with which the export itself compares."""


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options)


def facts(of):
    return json.loads(of.get_modelmeta().custom_metadata_map["iresnet"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a run and a direction to the session of the file that the command wrote."""
    sessions = {}

    def of(name, what):
        if (name, what) not in sessions:
            out = tmp_path_factory.mktemp("export") / f"{what}.onnx"
            limits = ["--n-probes", "64", "--max-steps", "500"]
            assert cli.run(["export", str(name), "--to", "onnx", "--what", what, "--out", str(out), *limits]) == 0
            sessions[name, what] = session(out)
        return sessions[name, what]

    return of


@pytest.fixture(scope="module")
def digits():
    """A function from a number to so many dequantized test digits."""
    data = ir.data.load("digits").test.x
    return lambda n: ir.dequantize(data[:n], levels=17, generator=torch.Generator().manual_seed(1))


def mixed():
    """A small density of all kinds of layers and activations."""
    torch.manual_seed(0)
    maps = [ir.networks.mlp(4, 8, activation=name) for name in ("elu", "lipswish", "maxmin", "softplus")]
    blocks = [ir.ResidualBlock(g) for g in (*maps, ir.networks.dense_concat((4,), 3, activation="clipswish"))]
    blocks += [ir.Orthogonal(4), ir.BiLipschitzBlock(partial(ir.FeedThrough, 4, 8), mu=0.5, nu=2.0)]
    flow = ir.Flow(ir.Chain([ir.Affine(1.0, 2.0), *blocks, ir.ActNorm(4)]), ir.DiagonalNormal(4), event_shape=(4,))
    ir.seal(flow.eval())
    return flow


def small():
    """A density of one block, whose weights use all of their coefficient."""
    torch.manual_seed(0)
    block = ir.ResidualBlock(ir.networks.mlp(4, 8))
    for name, parameter in block.named_parameters():
        if name.endswith("original"):
            parameter.data.mul_(4)
    flow = ir.Flow(ir.Chain([block, ir.ActNorm(4)]), ir.DiagonalNormal(4), event_shape=(4,))
    ir.seal(flow.eval())
    return flow


# -- torch's numbers ---------------------------------------------------------------------------------------------------
# Values are within 1e-4, a thousand units of rounding of numbers of order 1, as latents and logits are. Data have
# values up to 17 or 255, and log-densities of a hundred nats are sums of hundreds of terms: 1e-3 and 1e-2.


def test_latents(exported, digits, trained):
    flow, file = ir.load(trained("density")), exported(trained("density"), "encode")
    for n in SIZES:
        (z,) = file.run(None, {"x": digits(n).numpy()})
        np.testing.assert_allclose(z, flow.encode(digits(n)).detach(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_logits(exported):
    model, file = ir.load("mnist-classify-small"), exported("mnist-classify-small", "classify")
    x = torch.randint(0, 256, (8, 1, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    for n in SIZES:
        (logits,) = file.run(None, {"x": x[:n].numpy()})
        np.testing.assert_allclose(logits, model(x[:n]).detach(), atol=1e-4, rtol=0)
    assert facts(file)["class_names"] == [str(digit) for digit in range(10)]


PRETRAINED = [slow(name) for name in ("digits-density", "mnist-classify-small")]


@pytest.mark.parametrize("name", ["density", *PRETRAINED])
def test_data_from_latents(name, exported, digits, trained):
    """A round trip, in as many steps as torch takes for the hardest sample and block."""
    of = trained(name) if name == "density" else name
    model, file = ir.load(of), exported(of, "decode")
    images = 255 * torch.rand(8, 1, 28, 28) if name == "mnist-classify-small" else digits(8)
    for n in SIZES:
        z = model.bijection(images[:n]).detach()
        x, residual, steps = file.run(None, {"z": z.numpy()})
        np.testing.assert_allclose(x, images[:n], atol=1e-2 if name == "mnist-classify-small" else 1e-3, rtol=0)
        assert residual.shape == (n,)
        assert residual.max() < 1e-4
        inversion = ir.bijections.invert(model.bijection, z, solver=ir.FixedPointIteration(1e-6))
        assert abs(int(steps) - max(int(solution.steps.max()) for _, solution in inversion.solutions)) <= 1


@pytest.mark.slow
def test_log_densities_are_exact_with_as_many_hadamard_probes_as_dimensions(exported, digits, trained):
    flow, file = ir.load(trained("density")), exported(trained("density"), "log-prob")
    for n in SIZES:
        x = digits(n)
        log_prob, _, tail = file.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(log_prob, flow.log_prob(x, logdet=ir.Exact()).detach(), atol=1e-3, rtol=0)
        assert tail.max() <= 2e-6 * (1 + 1e-3)  # two blocks


def test_log_densities_with_given_probes_are_those_of_torch(exported, digits, trained):
    flow, file = ir.load(trained("density")), exported(trained("density"), "log-prob")
    for n, n_probes in ((1, 1), (3, 2)):
        probes = draw_probes(flow, n_probes, n=n, probe="rademacher", seed=3)
        log_prob, error, _ = file.run(None, {"x": digits(n).numpy(), "probes": probes.numpy()})
        generator = torch.Generator().manual_seed(3)
        krylov = ir.Krylov(n_probes=n_probes, tol=1e-6, max_steps=40, generator=generator)
        np.testing.assert_allclose(log_prob, flow.log_prob(digits(n), logdet=krylov).detach(), atol=1e-3, rtol=0)
        assert np.isnan(error).all() if n_probes == 1 else (error > 0).all()


def test_a_hybrid_of_a_run_folder_is_written_beside_its_weights(copied, capsys):
    folder = copied("hybrid")
    assert cli.run(["export", str(folder), "--what", "classify"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {folder / 'classify.onnx'} (")
    assert "largest difference of onnxruntime from torch" in said
    model, x = ir.load(folder), 17 * torch.rand(5, 1, 8, 8)
    (logits,) = session(folder / "classify.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(logits, model(x).detach(), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["decode", "log-prob"])
def test_all_layers_and_activations(what, tmp_path):
    flow = mixed()
    to_onnx(flow, what, tmp_path / "file.onnx", n_probes=4)
    x = flow.sample(7)
    given = {"z": flow.encode(x).detach().numpy()} if what == "decode" else {"x": x.numpy()}
    found = session(tmp_path / "file.onnx").run(None, given)[0]
    truth = x if what == "decode" else flow.log_prob(x).detach()  # exact with as many Hadamard probes as dimensions
    np.testing.assert_allclose(found, truth, atol=1e-4, rtol=0)


# -- loops -------------------------------------------------------------------------------------------------------------


def test_the_bound_of_a_short_series_holds_and_a_short_iteration_shows(tmp_path):
    flow = small()
    x = flow.sample(50)
    to_onnx(flow, "log-prob", tmp_path / "series.onnx", n_probes=4, max_steps=1)
    log_prob, _, tail = session(tmp_path / "series.onnx").run(None, {"x": x.numpy()})
    error = np.abs(log_prob - flow.log_prob(x).detach().numpy())
    assert (error <= tail + 1e-5).all()
    assert error.max() > 1e-3
    to_onnx(flow, "decode", tmp_path / "iteration.onnx", max_steps=3)
    _, residual, steps = session(tmp_path / "iteration.onnx").run(None, {"z": flow.encode(x).detach().numpy()})
    assert int(steps) == 3
    assert residual.max() > 1e-3


def test_metadata_say_what_is_in_the_file(exported, trained):
    known = facts(exported(trained("density"), "decode"))
    worst = max(block.upper for block in ir.certify(ir.load(trained("density"))).blocks)
    assert (known["what"], known["certified"], known["event_shape"], known["levels"]) == ("decode", True, [1, 8, 8], 17)
    assert (known["atol"], known["max_steps"]) == (1e-6, 500)
    assert known["largest_block_bound"] == pytest.approx(worst)
    assert known["iresnet"]


# -- bad input ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "another direction": (["digits-density", "--what", "sample"], "unknown direction to export 'sample'"),
    "another format": (["digits-density", "--what", "encode", "--to", "onyx"], "did you mean 'onnx'"),
    "classes of a density": (["digits-density", "--what", "classify"], "a density without classes"),
    "density of a classifier": (["mnist-classify-small", "--what", "log-prob"], "a classifier without a density"),
    "no run": (["digits-densty", "--what", "encode"], "did you mean 'digits-density'"),
    "no folder": (["digits-density", "--what", "encode", "--out", "missing/x.onnx"], "a folder that is there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens, message = REFUSED[case]
    assert cli.run(["export", *tokens]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(RecipeError, match=r"onnxscript is not installed: pip install 'iresnet\[onnx\]'"):
        to_onnx(mixed(), "encode", tmp_path / "x.onnx")


def test_other_numbers_are_not_written(monkeypatch, tmp_path):
    wrong = small()
    wrong.base.mean.data += 1
    wrong.bijection.bijections[-1].shift.data += 1e-3
    monkeypatch.setattr("iresnet.export.onnx._by_torch", lambda model, what, solver, x: wrong.encode(x).detach())
    with pytest.raises(IResNetError, match=r"encode differs by 1\.\d*e-03 .*nothing was written"):
        to_onnx(small(), "encode", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_blocks_that_are_not_certified_have_no_loops(tmp_path):
    flow = mixed()
    layer = torch.nn.Linear(4, 4)
    layer.weight.data = 2 * torch.eye(4)
    flow.bijection.bijections[1] = ir.ResidualBlock(layer)
    with pytest.raises(IResNetError, match=r"'bijection.bijections.1' has the bound 2\.0000; seal the model"):
        to_onnx(flow, "decode", tmp_path / "x.onnx")
    with pytest.raises(UnknownNameError, match="valid: fixed, gaussian, hadamard, rademacher"):
        draw_probes(mixed(), probe="signs")
