"""Run folders: what is loaded is what was saved, a file is whole or not there, and damage is told in one line."""

import errno
import json
import re
import shutil

import pytest
import torch
import yaml

import iresnet as ir
from iresnet.bijections import ActNorm
from iresnet.config import load_config
from iresnet.data import Dataset, Split, load
from iresnet.errors import DataError, IResNetError, RecipeError, RunError
from iresnet.files import write_atomically
from iresnet.models import build_model, inputs_of, load_model, save_model
from iresnet.runs import Run, read_contents

KINDS = ("density", "classify", "hybrid", "toy")


@pytest.fixture
def full_disk(monkeypatch):
    """Fill the disk: whatever is written, cannot be flushed."""

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)


@pytest.fixture
def copied(trained, tmp_path):
    """A function that copies a trained run, to be damaged."""
    return lambda kind: Run(shutil.copytree(trained(kind), tmp_path / "run"))


def outputs(model, x):
    """Everything that a model can tell of data, with exact log-determinants."""
    with torch.no_grad():
        if isinstance(model, ir.Classifier):
            return [model(x), model.features(x)]
        if isinstance(model, ir.Hybrid):
            return [*model.log_prob_and_logits(x, logdet=ir.Exact()), model.flow.encode(x)]
        return [model.log_prob(x, logdet=ir.Exact()), model.encode(x), model.decode(model.encode(x))]


def trained_model(kind, tiny, steps=3):
    """A model with weights that no initialization has, and data for it."""
    recipe, *changes = tiny[kind]
    config = load_config(recipe, changes)
    dataset = load(config.data.name)
    inputs = inputs_of(dataset, config.task.kind)
    model = build_model(config, inputs)
    x = dataset.train.x[:64].float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(y.square().mean() for y in ([model(x)] if kind == "classify" else model.bijection(x)[None])).backward()
        optimizer.step()
    return config, inputs, model, x


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_the_saved_one_bit_for_bit(kind, tiny, tmp_path):
    config, inputs, model, x = trained_model(kind, tiny)
    run = Run.create(tmp_path / "run", config, inputs)
    sealed, certificate = save_model(run, model)
    loaded = ir.load(tmp_path / "run")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert all(map(torch.equal, outputs(loaded, x), outputs(sealed, x)))
    state = sealed.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert certificate.certified
    assert ir.certify(loaded).to_dict() == certificate.to_dict()


def test_saving_leaves_the_model_alone(tiny, tmp_path):
    config, inputs, model, _ = trained_model("density", tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sealed, _ = save_model(Run.create(tmp_path / "run", config, inputs), model)
    assert model.training
    assert not sealed.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in sealed.state_dict().items())


def test_a_loaded_actnorm_is_not_initialized_again(trained):
    model = ir.load(trained("density")).train()
    layers = [m for m in model.modules() if isinstance(m, ActNorm)]
    before = [layer.log_scale.clone() for layer in layers]
    model.bijection(1000 * torch.rand(8, 1, 8, 8))
    assert layers
    assert all(map(torch.equal, before, [layer.log_scale for layer in layers]))


def test_a_run_knows_its_configuration_and_its_data(trained, tiny):
    recipe, *changes = tiny["hybrid"]
    config, inputs = Run.open(trained("hybrid")).read_config()
    assert config == load_config(recipe, changes)
    assert inputs == inputs_of(load("digits"), "hybrid")
    assert (inputs.mean, inputs.std, inputs.class_names) == ((8.5,), (17.0,), tuple("0123456789"))


def test_a_run_notes_where_its_data_was(tiny, tmp_path):
    config, inputs, _, _ = trained_model("toy", tiny, steps=0)
    assert Run.create(tmp_path / "a", config, inputs).data_dir is None
    assert Run.create(tmp_path / "b", config, inputs, data_dir=tmp_path).data_dir == str(tmp_path)
    assert torch.__version__.startswith(json.loads((tmp_path / "b" / "env.json").read_text())["torch"])


# -- moments ---------------------------------------------------------------------------------------------------------


def table(x, y=None):
    split = Split(x, y)
    return Dataset("table", split, split, split, None, () if y is None else ("a", "b"), "here")


def test_moments_are_those_of_the_training_split():
    x = torch.randn(50, 3) * torch.tensor([1.0, 10.0, 100.0]) + 7
    inputs = inputs_of(table(x), "density")
    torch.testing.assert_close(torch.tensor(inputs.mean), x.mean(0))
    torch.testing.assert_close(torch.tensor(inputs.std), x.std(0))


NO_INPUTS = {
    "a constant feature": (
        table(torch.tensor([[1.0, 2.0], [3.0, 2.0]])),
        "density",
        "constant in all 2 .*: feature 2$",
    ),
    "no labels": (table(torch.randn(9, 2)), "classify", "table has no labels, which the task 'classify' needs"),
}


@pytest.mark.parametrize("case", NO_INPUTS)
def test_data_that_do_not_do_are_refused(case):
    *args, expected = NO_INPUTS[case]
    with pytest.raises(DataError, match=expected):
        inputs_of(*args)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_atomically(tmp_path / "file", "old")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RunError, match=r"cannot write .*file: No space left on device; free the space"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("full_disk")
def test_a_run_that_cannot_be_started_leaves_no_folder(tiny, tmp_path):
    config, inputs, _, _ = trained_model("toy", tiny, steps=0)
    with pytest.raises(RunError, match="No space left on device"):
        Run.create(tmp_path / "run", config, inputs)
    assert not list(tmp_path.iterdir())


def test_folders_that_are_taken_are_left_alone(tiny, trained, tmp_path):
    config, inputs, _, _ = trained_model("toy", tiny, steps=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("irreplaceable")
    for path, expected in (
        (trained("toy"), "holds a run already; continue it with --resume, or choose another --out"),
        (tmp_path / "mine", "is not empty and holds no run"),
        (tmp_path / "mine" / "thesis.tex", "cannot write .*thesis.tex"),
        (tmp_path / "mine" / "thesis.tex" / "run", "cannot write .*run: Not a directory"),
    ):
        with pytest.raises(RunError, match=expected):
            Run.create(path, config, inputs)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "irreplaceable"
    assert (trained("toy") / "model.safetensors").is_file()


# -- damage ----------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(run, **sections):
    tree = yaml.safe_load(run.config_file.read_text())
    for section, changes in sections.items():
        tree[section].update(changes)
    run.config_file.write_text(yaml.safe_dump(tree))


DAMAGE = {
    "no config": (lambda run: run.config_file.unlink(), "is not a run folder"),
    "half a config": (lambda run: run.config_file.write_text("data: ["), "config.yaml is damaged"),
    "an empty config": (lambda run: run.config_file.write_text(""), "config.yaml is damaged"),
    "a list for a config": (lambda run: run.config_file.write_text("[inputs]"), "config.yaml is damaged"),
    "a binary config": (lambda run: run.config_file.write_bytes(b"\xff\xfe\x80\x00"), "config.yaml is damaged"),
    "a config without inputs": (lambda run: run.config_file.write_text("data: {name: digits}"), "is damaged"),
    "a config without shape": (lambda run: run.config_file.write_text("inputs: {levels: 17}"), "is damaged"),
    "an option of another version": (
        lambda run: change(run, train={"epocs": 3}),
        r"config.yaml: unknown key 'train.epocs'; did you mean 'train.epochs'",
    ),
    "no weights": (lambda run: run.model_file.unlink(), "has no model yet; continue its training with --resume"),
    "half the weights": (lambda run: cut(run.model_file), "model.safetensors is damaged"),
    "empty weights": (lambda run: run.model_file.write_bytes(b""), "model.safetensors is damaged"),
    "no weights at all": (lambda run: run.model_file.write_text("hello, world"), "model.safetensors is damaged"),
    "another width": (lambda run: change(run, model={"hidden": 16}), "does not fit config.yaml: .*size mismatch"),
    "another depth": (lambda run: change(run, model={"blocks": [2, 1]}), "does not fit config.yaml: .*Missing key"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line(case, copied):
    damage, expected = DAMAGE[case]
    run = copied("density")
    damage(run)
    with pytest.raises((RunError, RecipeError), match=expected) as caught:
        ir.load(run.path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_weights_of_another_model_are_refused(copied, trained):
    run = copied("density")
    shutil.copy(trained("hybrid") / "model.safetensors", run.model_file)
    with pytest.raises(RunError, match=r"does not fit config\.yaml"):
        ir.load(run.path)


def test_what_is_refused_and_what_is_listed_is_the_same_damage(copied):
    run = copied("density")
    run.config_file.write_text("data: [")
    (problem,) = read_contents(run.path).problems
    with pytest.raises(RunError, match=re.escape(f"{run.path}/{problem}")):
        run.read_config()


@pytest.mark.parametrize("case", ["half the weights", "empty weights", "no weights at all"])
def test_damaged_weights_are_known_without_loading_them(case, copied):
    run = copied("density")
    assert run.has_model
    assert read_contents(run.path).n_weights == sum(x.numel() for x in load_model(run).state_dict().values())
    DAMAGE[case][0](run)
    contents = read_contents(run.path)
    assert not run.has_model
    assert contents.n_weights is None
    assert contents.problems == [f"model.safetensors is damaged; write it again with: {run.resume_command}"]


def test_a_damaged_env_is_no_obstacle(copied):
    run = copied("density")
    (run.path / "env.json").write_text("{")
    assert run.data_dir is None
    ir.load(run.path)


MODEL_OPTIONS = {
    "a word": ({"coeff": "abc"}, r"--model.coeff must be of type float \| null, got 'abc'"),
    "words": ({"blocks": ["a", "b"]}, "--model.blocks must be of type list of int"),
    "a fraction": ({"n_power_steps": 1.5}, "--model.n-power-steps must be of type int"),
    "a number": ({"logdet": 3}, "--model.logdet must be of type str"),
    "a word in a part": ({"logdet": {"n_steps": "x"}}, "--model.logdet.n-steps must be of type int, got 'x'"),
    "a word in a part without a name": ({"solver": {"atol": "x"}}, "--model.solver.atol must be of type float"),
    "what the data say": ({"shape": [3]}, "--model.shape follows from the data and the task"),
    "an unknown part": ({"solver": {"name": "andersen"}}, "unknown solver 'andersen'; did you mean 'anderson'"),
    "an unknown architecture": ({"name": "irsnet"}, "unknown architecture 'irsnet'; did you mean 'iresnet'"),
}


@pytest.mark.parametrize("case", MODEL_OPTIONS)
def test_wrong_model_options_are_refused(case):
    model, expected = MODEL_OPTIONS[case]
    config = load_config("digits-density")
    config.model.update(model)
    with pytest.raises(IResNetError, match=expected):
        build_model(config, inputs_of(load("digits"), "density"))


def test_a_part_without_a_name_is_the_default_one():
    config = load_config("digits-density", ["--model.blocks", "[1,1]", "--model.solver.atol", "1e-7"])
    model = build_model(config, inputs_of(load("digits"), "density"))
    solvers = [m.solver for m in model.modules() if isinstance(m, ir.ResidualBlock)]
    assert [(type(s), s.atol) for s in solvers] == [(ir.Anderson, 1e-7)] * 2


@pytest.mark.parametrize("inputs", ["[1]", "null", "text"])
def test_inputs_that_are_no_section_are_damage(copied, inputs):
    folder = copied("density")
    text = folder.config_file.read_text()
    folder.config_file.write_text(f"{text[: text.index('inputs:')]}inputs: {inputs}\n")
    assert folder.read_tree("config.yaml")[1].startswith("config.yaml is damaged")
    with pytest.raises(RunError, match=r"config\.yaml"):
        folder.read_config()
