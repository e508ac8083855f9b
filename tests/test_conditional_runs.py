"""Densities given a context on the command line: every command that takes one, and what it refuses."""

import csv
import json
import math

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from marks import slow

import iresnet as ir
from iresnet.data import CONDITIONAL_TOYS, load
from iresnet.evaluation import true_density

KINDS = {"of-class": ("--context", "3"), "of-angle": ("--context", "angle=0.5")}


def check_refused(answer, expected):
    status, _, err = answer
    assert expected in err
    assert (status, err.count("\n")) == (2, 1)


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["of-angle", slow("of-class")])
def test_every_command_takes_a_context(kind, copied, call):
    folder, context = copied(kind), KINDS[kind]
    # But for the export of a density of classes, whose numbers are compared below.
    export = [("export", "--what", "encode", *context)] if kind == "of-angle" else []
    commands = [
        ("evaluate", "--examples", 64),
        ("certify",),
        ("sample", "-n", 4, *context),
        ("reconstruct", "--solver-examples", 2, *context),
        ("interpolate", "-n", 1, "--steps", 2, *context),
        ("analyze", "logdet", "-n", 1, "--draws", 2, *context),
        ("analyze", "lipschitz", *context),
        ("analyze", "inverse", "-n", 2, "--coeff", 0.9, *context),
        ("analyze", "latent", "-n", 20, *context),
        *export,
        ("report",),
    ]
    for command, *options in commands:
        words = [command, options.pop(0)] if command == "analyze" else [command]
        status, _, err = call(*words, folder, *options)
        assert (status, err) == (0, ""), words


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_are_asked_for_where_they_are_needed(kind, copied, call):
    folder = copied(kind)
    example = " ".join(KINDS[kind]) if kind == "of-angle" else "--context 0"
    for command in ("reconstruct", "interpolate"):
        check_refused(call(command, folder), f"add {example}")
    check_refused(call("analyze", "latent", folder), f"add {example}")
    check_refused(call("export", folder, "--what", "encode"), f"add {example}")


def test_likelihoods_are_of_each_example_at_its_own_context(copied, call):
    folder = copied("of-angle")
    assert call("evaluate", folder)[0] == 0
    result = json.loads((folder / "evaluation.json").read_text())
    data, flow = load("turning-moons"), ir.load(folder)
    log_prob = flow.log_prob(data.test.x, context=data.test.y, logdet=ir.Exact()).detach()
    assert result["likelihood"]["nats"]["mean"] == pytest.approx(-float(log_prob.double().mean()), rel=1e-5)
    assert result["baselines"]["true density"]["nats"]["mean"] == pytest.approx(
        -float(CONDITIONAL_TOYS["turning-moons"].log_prob(data.test.x, data.test.y).mean()), rel=1e-5
    )
    check_refused(call("evaluate", folder, "--ood", "moons"), "--ood compares densities without a context")


def test_samples_are_of_the_context(copied, call, tmp_path):
    folder = copied("of-class")
    flow = ir.load(folder)
    assert call("sample", folder, "-n", 3, "--context", "7", "--out", tmp_path / "sevens.npz")[0] == 0
    sevens = np.load(tmp_path / "sevens.npz")["x"]
    with torch.no_grad():
        expected = flow.sample(3, context=torch.tensor(7), generator=torch.Generator().manual_seed(0))
    assert np.abs(sevens - expected.round().clamp(0, 16).numpy()).max() <= 1
    status, out, _ = call("sample", folder, "-n", 20)
    assert status == 0
    assert "samples.png" in out
    assert call("sample", folder, "-n", 20, "--out", tmp_path / "all.npz")[0] == 0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = [flow.sample(2, context=torch.tensor(label), generator=generator) for label in range(10)]
    everything = np.load(tmp_path / "all.npz")["x"]
    assert np.abs(everything - torch.cat(rows).round().clamp(0, 16).numpy()).max() <= 1


def test_rows_of_a_table_are_scored_at_their_own_contexts(copied, call, tmp_path):
    folder, table = copied("of-angle"), tmp_path / "points.csv"
    data = load("turning-moons").test.take(torch.arange(40))
    rows = torch.cat([data.y, data.x], 1)
    np.savetxt(table, rows.numpy(), delimiter=",", header="angle,column 1,column 2", comments="", fmt="%.9g")
    assert call("score", folder, table, "--train-examples", 200, "--out", tmp_path / "own.csv")[0] == 0
    flow = ir.load(folder)
    own = [float(row["log_likelihood"]) for row in read(tmp_path / "own.csv")]
    expected = flow.log_prob(data.x, context=data.y, logdet=ir.Exact()).detach()
    assert np.allclose(own, expected, atol=1e-4)
    assert (
        call("score", folder, table, "--train-examples", 0, "--context", "0.5", "--out", tmp_path / "one.csv")[0] == 0
    )
    one = [float(row["log_likelihood"]) for row in read(tmp_path / "one.csv")]
    at_half = flow.log_prob(data.x, context=torch.tensor([0.5]), logdet=ir.Exact()).detach()
    assert np.allclose(one, at_half, atol=1e-4)
    assert not np.allclose(own, one, atol=1e-2)
    assert call("encode", folder, table, "--out", tmp_path / "z.parquet")[0] == 0
    z = np.array(pq.read_table(tmp_path / "z.parquet").column("z").to_pylist())
    assert np.allclose(z, flow.encode(data.x, context=data.y).detach(), atol=1e-4)
    np.savetxt(table, data.x.numpy(), delimiter=",", header="column 1,column 2", comments="")
    check_refused(call("score", folder, table, "--train-examples", 0), "none called angle")


def test_latents_are_decoded_at_their_context(copied, call, tmp_path):
    folder = copied("of-class")
    digits = load("digits").test
    threes = digits.x[digits.y == 3][:4]
    np.savez(tmp_path / "x.npz", x=threes.numpy())
    context = ("--context", "3")
    assert call("encode", folder, tmp_path / "x.npz", "--out", tmp_path / "z.npz", *context)[0] == 0
    assert call("decode", folder, tmp_path / "z.npz", "--out", tmp_path / "back.npz", *context)[0] == 0
    assert np.array_equal(np.load(tmp_path / "back.npz")["x"], threes.numpy())
    check_refused(call("encode", folder, tmp_path / "x.npz", "--out", tmp_path / "z.npz"), "density given the class")


def test_an_exported_density_is_that_at_the_context(copied, call):
    folder = copied("of-class")
    assert call("export", folder, "--what", "encode", "--context", "3")[0] == 0
    x = torch.rand(3, 1, 8, 8) * 17
    (z,) = onnxruntime.InferenceSession(folder / "encode.onnx").run(None, {"x": x.numpy()})
    assert np.allclose(z, ir.load(folder).encode(x, context=torch.tensor(3)).detach(), atol=1e-3)


def test_a_table_is_modeled_given_some_of_its_columns(call, tmp_path):
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, size=(900, 1))
    kind = np.array(["low", "high"])[(c[:, 0] > 0).astype(int)]
    x = 3 * c + rng.normal(size=(900, 2))
    lines = [f"{a:.9g},{t:.9g},{k},{b:.9g}" for (a, b), t, k in zip(x, c[:, 0], kind, strict=True)]
    (tmp_path / "weather.csv").write_text("wind,temperature,kind,rain\n" + "\n".join(lines) + "\n")
    run = ("train", "toy-density", "--model.blocks", 2, "--model.hidden", 8, "--train.epochs", 1, "--tracker", "[]")
    run += ("--data.name", tmp_path / "weather.csv", "--task.conditional", "true", "--train.n-pictures", 4)
    columns = ("--data.context", "[temperature,kind]", "--data.one-hot", "[kind]")
    folder = tmp_path / "run"
    assert call(*run, *columns, "--out", folder)[0] == 0
    inputs = ir.pretrained.find_run(folder).read_config()[1]
    assert [column.title for column in inputs.columns] == ["wind", "rain"]
    assert [column.title for column in inputs.context] == ["temperature", "kind"]
    both = ("--context", "temperature=0.5", "--context", "kind=high")
    assert call("sample", folder, "-n", 5, *both, "--out", tmp_path / "s.csv")[0] == 0
    assert list(read(tmp_path / "s.csv")[0]) == ["wind", "rain"]
    assert call("evaluate", folder)[0] == 0
    check_refused(call("sample", folder, *both[:2]), "--context has no value of kind")
    check_refused(call("sample", folder, *both, *both[:2]), "--context temperature is given twice")
    check_refused(call("sample", folder, *both[:2], "--context", "kind=hgh"), "did you mean 'high'?")
    check_refused(call("sample", folder, "--context", "temperature=warm", *both[2:]), "must be a number, got 'warm'")
    check_refused(call("sample", folder, "--context", "wind=1", *both), "unknown column of the context 'wind'")


BAD_TRAINING = {
    "no context": (("toy-density", "--task.conditional", "true"), "neither classes nor a context"),
    "a classifier": (("digits-classify", "--task.conditional", "true"), "--task.conditional is for a density alone"),
    "columns alone": (
        ("toy-density", "--data.context", "[a]"),
        "--data.context is what a conditional density is given",
    ),
    "compiled": (("digits-conditional", "--train.compile", "true"), "--train.compile compiles no conditional density"),
    "shards": (("digits-conditional", "--train.sharding", "fsdp"), "shards no conditional density"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_what_cannot_be_given_a_context_is_refused(case, call, tmp_path):
    tokens, expected = BAD_TRAINING[case]
    check_refused(call("train", *tokens, "--out", tmp_path / "run"), expected)
    assert not (tmp_path / "run").exists()


def test_columns_that_cannot_be_a_context_are_refused(call, tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n" + "".join(f"{i / 7},{i / 3},{i % 2}\n" for i in range(60)))
    run = (
        "train",
        "toy-density",
        "--task.conditional",
        "true",
        "--data.name",
        tmp_path / "t.csv",
        "--out",
        tmp_path / "r",
    )
    check_refused(call(*run, "--data.context", "[d]"), "unknown column 'd'")
    check_refused(call(*run, "--data.context", "[a,b,c]"), "all columns are context")
    check_refused(call(*run, "--data.context", "[a]", "--data.target", "c"), "not both")
    check_refused(call("sample", tmp_path / "none", "--context", "1"), "none")


def test_other_densities_take_no_context(copied, call):
    check_refused(call("sample", copied("toy"), "--context", "1"), "without a context: leave out --context")


def test_the_turned_moons_have_their_density():
    toy = CONDITIONAL_TOYS["turning-moons"]
    axis = torch.linspace(-6, 6, 600).double()
    grid = torch.cartesian_prod(axis, axis)
    for angle in (0.0, 1.0, 3.0):
        mass = toy.log_prob(grid, torch.full((len(grid), 1), angle).double()).exp().sum() * (axis[1] - axis[0]) ** 2
        assert float(mass) == pytest.approx(1, abs=1e-3)
    x, c = toy.sample(20_000, torch.Generator().manual_seed(0))
    back = torch.stack(
        [c[:, 0].cos() * x[:, 0] + c[:, 0].sin() * x[:, 1], -c[:, 0].sin() * x[:, 0] + c[:, 0].cos() * x[:, 1]], 1
    )
    straight = toy.toy.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(back, straight, atol=1e-5, rtol=0)
    assert 0 <= float(c.min()) < 0.01
    assert math.pi - 0.01 < float(c.max()) < math.pi
    data = load("turning-moons")
    assert true_density(data, data.test).nats.mean == pytest.approx(
        true_density(load("moons"), load("moons").test).nats.mean, abs=0.05
    )
