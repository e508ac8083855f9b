"""The model behind the page, and the command that serves it; what a browser sees is tested in test_page_browser.py."""

import json
import math
import socket

import numpy as np
import pytest
import torch
from data_fixtures import isolated  # noqa: F401 (used by all)
from PIL import Image, ImageDraw

import iresnet as ir
from iresnet import evaluation
from iresnet.data import Column, Examples, load
from iresnet.errors import DataError
from iresnet.evaluation import Reference
from iresnet.inputs import Inputs
from iresnet.page.served import ServedModel, principal_directions
from iresnet.pretrained import find_run


def no_file(path):
    raise DataError(f"{path}: no such file")


@pytest.fixture(scope="module")
def digits():
    """A density of the package, with the training data and their kept scores."""
    run, data = find_run("digits-density"), load("digits")
    reference = Reference(torch.tensor(run.read_json("training-scores.json")["log_likelihood"]))
    inputs = run.read_config()[1]
    return ServedModel(ir.load("digits-density"), inputs, read=no_file, reference=reference, examples=data.train.x)


# -- examples ----------------------------------------------------------------------------------------------------------


def test_what_is_found_is_what_score_and_the_inverse_say(digits):
    x = load("digits").test.x[3:4]
    found = digits.examine(x)
    ((_, scores),) = evaluation.score(digits.flow, [Examples(x, [1])], digits.inputs)
    assert torch.equal(found.scores.log_prob, scores.log_prob)
    assert found.p_likelihood == float(digits.reference.p_likelihood(scores.log_prob))
    assert found.p_typicality == float(digits.reference.p_typicality(scores.log_prob))
    assert found.predictions is None
    assert torch.equal(found.decoded.floor().byte(), x)
    assert 0 < found.error < 1e-3


def test_a_class_has_the_radius_and_the_probabilities_of_predict(trained):
    run = find_run(trained("classify"))
    served = ServedModel(ir.load(run.path), run.read_config()[1], read=no_file)
    x = load("digits").test.x[:1]
    found = served.examine(x)
    ((_, truth),) = evaluation.predict(served.classifier, [Examples(x, [1])], served.inputs)
    assert torch.equal(found.predictions.probabilities, truth.probabilities)
    assert torch.equal(found.predictions.radius, truth.radius)
    assert found.scores is None
    assert (served.flow, served.directions) == (None, None)  # no examples, and nothing to sample from
    assert np.array_equal(served.picture(x), served.picture(found.decoded))


@pytest.mark.parametrize(("levels", "channels"), [(17, 1), (256, 1), (256, 3), (2, 1)])
def test_a_drawing_has_the_size_and_levels_of_the_model(levels, channels):
    inputs = Inputs((channels, 4, 8), levels, (), (0.0,), (1.0,))
    flow = ir.Flow(ir.Flatten((channels, 4, 8)), ir.StandardNormal(32 * channels))
    served = ServedModel(flow, inputs, read=no_file)
    drawing = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    with pytest.raises(DataError, match="nothing is drawn"):
        served.from_drawing(drawing)
    gray = math.ceil(256 / levels - 0.5)  # the darkest that is no longer black, as in image files
    ImageDraw.Draw(drawing).rectangle((0, 0, 39, 39), fill=(255, 255, 255, 255))
    ImageDraw.Draw(drawing).rectangle((60, 0, 79, 39), fill=(gray, gray, gray, 255))
    x = served.from_drawing(drawing)
    assert (x.dtype, x.shape) == (torch.uint8, (1, channels, 4, 8))
    assert bool((x[..., :4] == levels - 1).all())
    assert bool((x[..., 4:6] == 0).all())
    assert bool((x[..., 6:] == 1).all())


def test_a_row_is_read_back_from_its_values():
    columns = (Column("kind", 1, categories=("lily", "rose")), Column("time", 2, offset=1.7e9), Column("width", 3))
    flow = ir.zoo.build("toy-mlp", shape=(4,), blocks=1, hidden=4)
    inputs = Inputs((4,), None, (), (0.5, 0.5, 10.0, 2.0), (0.5, 0.5, 5.0, 1.0), columns)
    served = ServedModel(flow, inputs, read=no_file)
    x = served.from_values(["rose", 1700000012.5, 0.1])
    assert x.tolist() == [[0.0, 1.0, 1700000012.5, 0.1]]
    assert served.to_values(x) == ["rose", 1700000012.5, 0.1]
    assert served.to_values(x.float().double())[2] == 0.1
    assert served.ranges()[1:] == [(1.7e9, 1700000010.0, 1700000020.0), (0.0, 2.0, 4.0)]
    with pytest.raises(DataError, match="width: expected a value"):
        served.from_values(["rose", 1.0, None])
    served.examples = torch.arange(101.0).double()[:, None].expand(-1, 4)
    assert served.ranges()[2] == (5.0, 50.0, 95.0)


def test_an_error_names_the_file_and_not_the_folder_of_uploads(digits, tmp_path):
    with pytest.raises(DataError, match=r"^photo.png: no such file$"):
        digits.read(tmp_path / "photo.png")


# -- latents -----------------------------------------------------------------------------------------------------------


def test_principal_directions_are_the_eigenvectors_of_the_covariance():
    z = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    found = principal_directions(z, 3)
    variances, vectors = torch.linalg.eigh(z.T.cov())
    truth = (vectors * variances.sqrt()).T.flip(0)[:3]
    signs = (found.axes * truth).sum(1).sign()
    torch.testing.assert_close(found.axes, signs[:, None] * truth)
    torch.testing.assert_close(found.mean, z.mean(0))
    assert abs(found.share - float(variances[-3:].sum() / variances.sum())) < 1e-12
    assert principal_directions(z[:3], 5).axes.shape == (2, 5)


def test_a_move_starts_at_the_example_and_follows_the_directions(digits):
    x, n = load("digits").test.x[:1], len(digits.directions.axes)
    assert torch.equal(digits.move(x, [0.0] * n).floor().byte(), x)
    steps = torch.tensor([1.5, -2.0, *[0.0] * (n - 2)])
    z = digits.encode(x) + 1.5 * digits.directions.axes[0] - 2.0 * digits.directions.axes[1]
    torch.testing.assert_close(digits.move(x, steps.tolist()), digits.flow.decode(z), atol=1e-3, rtol=0)
    mean = digits.flow.decode(digits.directions.mean[None])
    torch.testing.assert_close(digits.move(None, [0.0] * n), mean, atol=1e-3, rtol=0)


def test_a_path_has_the_examples_at_its_ends(digits):
    first, last = load("digits").test.x[:1], load("digits").test.x[1:2]
    for kind in evaluation.KINDS:
        path = digits.path(first, last, steps=5, kind=kind).floor().byte()
        assert torch.equal(path[:1], first)
        assert torch.equal(path[-1:], last)


def test_samples_are_those_of_the_command(copied, call):
    folder = copied("hybrid")
    served = ServedModel(ir.load(folder), find_run(folder).read_config()[1], read=no_file)
    for options, label in ((), None), (("--class", 3), 3):
        out = folder / "x.npz"
        assert call("sample", folder, "-n", 5, "--temperature", 0.8, "--seed", 7, "--out", out, *options)[0] == 0
        x = served.samples(5, temperature=0.8, seed=7, label=label)
        assert np.array_equal(np.load(out)["x"], x.floor().clamp(0, 16).byte().numpy())


# -- the command -------------------------------------------------------------------------------------------------------


def test_without_gradio_one_line_says_what_to_install(call, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = call("serve", "digits-density")
    assert (status, err) == (2, "iresnet: iresnet serve needs gradio: pip install 'iresnet[page]'\n")


def test_what_cannot_be_served_is_told_in_one_line(call, tmp_path):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            f"--port {port} of 127.0.0.1 is taken": ("digits-density", "--port", port),
            "cannot listen on --host no.such.host.invalid": ("digits-density", "--host", "no.such.host.invalid"),
            "is not a run folder": (tmp_path / "nothing", "--port", 0),
            "--port": ("digits-density", "--port", 70000),
        }
        for expected, tokens in cases.items():
            status, _, err = call("serve", *tokens)
            assert expected in err
            assert (status, err.count("\n")) == (2, 1)


def test_kept_scores_are_those_that_the_page_takes(copied, call, tmp_path):
    """The settings of the page are the defaults of score, or it would score the training examples again."""
    from iresnet.commands.serve import _served

    folder = copied("density")
    np.savez(tmp_path / "x.npz", x=load("digits").test.x[:1].numpy())
    assert call("score", folder, tmp_path / "x.npz", "--train-examples", 120)[0] == 0
    kept = (folder / "training-scores.json").read_bytes()
    run = find_run(folder)
    served = _served(run, ir.load(folder), run.read_config()[1], None, None, None)
    assert (folder / "training-scores.json").read_bytes() == kept
    assert served.reference.log_probs.tolist() == sorted(json.loads(kept)["log_likelihood"])
    assert len(served.examples) == len(load("digits").train)
