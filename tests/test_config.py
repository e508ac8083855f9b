"""Configurations: what can be written is read with its type, and everything else is refused in one line."""

import inspect
from dataclasses import replace
from functools import partial

import pytest
import yaml
from data_fixtures import examples, write_folder

from iresnet.activations import ACTIVATIONS
from iresnet.bijections.memory import MEMORY
from iresnet.config import (
    Config,
    DataConfig,
    OptimConfig,
    TaskConfig,
    TrainConfig,
    check,
    differences,
    from_dict,
    load_config,
    recipe_names,
    to_yaml,
)
from iresnet.data import load
from iresnet.errors import IResNetError, RecipeError, UnknownNameError
from iresnet.options import check_types, flag, options
from iresnet.precision import PRECISIONS
from iresnet.signatures import model_options
from iresnet.training.distributed import SHARDINGS
from iresnet.training.optim import OPTIMIZERS, SCHEDULES
from iresnet.training.task import AUGMENTATIONS
from iresnet.training.tracking import TRACKERS
from iresnet.zoo import ARCHITECTURES, LOGDETS, SOLVERS, options_of


def get(config, path):
    for key in path.split("."):
        config = config[key] if isinstance(config, dict) else getattr(config, key)
    return config


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_survive_writing_and_reading(recipe, tmp_path):
    config = load_config(recipe)
    assert config.name == recipe
    assert from_dict(Config, yaml.safe_load(to_yaml(config))) == config
    file = tmp_path / "other.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config


ACCEPTED = {
    "an int": (["--train.epochs", "3"], "train.epochs", 3),
    "an equals sign": (["--train.epochs=3"], "train.epochs", 3),
    "dashes": (["--train.batch-size", "7"], "train.batch_size", 7),
    "underscores": (["--train.batch_size", "7"], "train.batch_size", 7),
    "an int for a float": (["--optim.lr", "1"], "optim.lr", 1.0),
    "1e-3": (["--optim.lr", "1e-3"], "optim.lr", 1e-3),
    "-1E+2": (["--optim.milestones=-1E+2"], "optim.milestones", (-100.0,)),
    "2.5e1": (["--optim.lr", "2.5e1"], "optim.lr", 25.0),
    "a number": (["--optim.clip-norm", "5"], "optim.clip_norm", 5.0),
    "null": (["--optim.clip-norm", "null"], "optim.clip_norm", None),
    "a list": (["--optim.milestones", "[1,2.5]"], "optim.milestones", (1.0, 2.5)),
    "one for a list": (["--data.augment", "flip"], "data.augment", ("flip",)),
    "a list of words": (["--data.augment", "[pad-crop, flip]"], "data.augment", ("pad-crop", "flip")),
    "a name": (["--data.name", "8gaussians"], "data.name", "8gaussians"),
    "a path": (["--data.name=/a/b=c.csv"], "data.name", "/a/b=c.csv"),
    "the last of two": (["--train.seed", "1", "--train.seed", "2"], "train.seed", 2),
    "a list for the model": (["--model.blocks", "[2,2]"], "model.blocks", [2, 2]),
    "a small number for the model": (["--model.coeff", "1e-1"], "model.coeff", 0.1),
    "an option of a part": (["--model.logdet.n-steps", "5"], "model.logdet", {"name": "krylov", "n_steps": 5}),
    "a part by its short name": (["--model.logdet", "exact"], "model.logdet", "exact"),
    "a part, which drops the options of the old": (["--model.logdet.name", "exact"], "model.logdet", {"name": "exact"}),
    "a short name, then an option": (
        ["--model.logdet", "krylov", "--model.logdet.tol", "1e-2"],
        "model.logdet",
        {"name": "krylov", "tol": 0.01},
    ),
    "an option of a part that was not there": (["--model.solver.atol", "1e-6"], "model.solver", {"atol": 1e-6}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_overrides(case):
    overrides, path, expected = ACCEPTED[case]
    value = get(load_config("digits-density", overrides), path)
    assert value == expected
    assert type(value) is type(expected)


def test_overrides_leave_the_rest_alone():
    config = load_config("digits-density")
    assert load_config("digits-density", ["--train.epochs", "3"]) == replace(
        config, train=replace(config.train, epochs=3), expected="", cost=""
    )


REFUSED = {
    "an unknown option": (["--train.epocs", "3"], "--train.epocs'; did you mean '--train.epochs'?"),
    "an option without its section": (["--epochs", "3"], "'--epochs'; did you mean '--train.epochs'?"),
    "an unknown section": (["--trian.epochs", "3"], "'--trian.epochs'; did you mean '--train.epochs'?"),
    "a flag of the command": (["--out-fodler", "x"], "did you mean '--out-folder'?"),
    "nothing like it": (["--qqqq", "3"], "--train.epochs"),
    "a word for an int": (["--train.epochs", "abc"], "--train.epochs must be of type int, got 'abc'"),
    "a float for an int": (["--train.epochs", "1.5"], "--train.epochs must be of type int, got '1.5'"),
    "yes for an int": (["--train.epochs", "true"], "--train.epochs must be of type int, got 'True'"),
    "yes for a float": (["--optim.lr", "true"], "--optim.lr must be of type float"),
    "a word for a float": (["--optim.lr", "fast"], "--optim.lr must be of type float, got 'fast'"),
    "a word in a list": (["--optim.milestones", "[1,a]"], "--optim.milestones must be of type float, got 'a'"),
    "a list for a float": (["--optim.lr", "[1]"], "--optim.lr must be of type float"),
    "nothing for an int": (["--train.epochs", "null"], "--train.epochs must be of type int"),
    "a value for a section": (["--train", "3"], "train is a section with keys, got '3'"),
    "a value for the model": (["--model", "3"], "--model must be of type dict, got '3'"),
    "no value": (["--train.epochs"], "the option --train.epochs needs a value"),
    "no option": (["train.epochs", "3"], "expected an option such as --train.epochs 3, got 'train.epochs'"),
    "half a list": (["--model.blocks", "[1,"], "'[1,' is not a value"),
}


def refusal(call, *args):
    with pytest.raises(IResNetError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_overrides_are_refused(case):
    overrides, expected = REFUSED[case]
    assert expected in refusal(partial(load_config, flags=["out_folder"]), "digits-density", overrides)


WORDS = {
    "nothing": ([], "description expected cost"),
    "the same again": (["--train.epochs", "20", "--data.name", "digits"], "description expected cost"),
    "chance, and what is written": (["--train.seed", "3", "--train.log-every", "7"], "description expected cost"),
    "a tracker": (["--tracker", "[]"], "description expected cost"),
    "the length": (["--train.epochs", "3"], "description"),
    "an optimizer": (["--optim.lr", "1"], "description"),
    "the size of the model": (["--model.hidden", "8"], "description"),
    "a part of the model": (["--model.logdet.n-steps", "9"], "description"),
    "the data": (["--data.name", "photos/"], ""),
    "the size of the data": (["--data.pad-to", "16"], ""),
    "the task": (["--task.ce-weight", "1"], ""),
    "the architecture": (["--model.name", "iresnet-multiscale"], ""),
    "the data, with words of their own": (["--data.name", "x/", "--expected", "much", "--train.seed", "1"], "expected"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_recipe_says_of_itself_what_is_true_after_a_change(case, tmp_path):
    overrides, kept = WORDS[case]
    config = load_config("digits-density", overrides)
    assert [word for word in ("description", "expected", "cost") if getattr(config, word)] == kept.split()
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


FILES = {
    "not YAML": (b"train: [", "is not YAML"),
    "not text": (b"\xff\xfe\x80", "is not YAML"),
    "a list": (b"- 1", "must hold sections"),
    "empty": (b"", "must hold sections"),
    "a section that is none": (b"train:", "train is a section with keys, got 'None'"),
    "an unknown key": (b"data: {nmae: digits}", "recipe.yaml: unknown key 'data.nmae'; did you mean 'data.name'?"),
    "an unknown section": (b"trian: {epochs: 3}", "unknown key 'trian.epochs'; did you mean 'train.epochs'?"),
    "nothing like it": (b"task: {qqq: 3}", "unknown key 'task.qqq'; there are task.nll_weight, task.ce_weight"),
    "a number for a key": (b"3: 4", "unknown key '3'; there are name, description, "),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_recipes_are_refused(case, tmp_path):
    content, expected = FILES[case]
    (tmp_path / "recipe.yaml").write_bytes(content)
    message = refusal(load_config, tmp_path / "recipe.yaml")
    assert expected in message
    assert "\n" not in message


def test_unknown_recipes_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'digits-density'"):
        load_config("digits-densty")
    with pytest.raises(RecipeError, match=r"there is no recipe file nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_a_recipe_file_may_say_little_and_is_named_after_itself(tmp_path):
    (tmp_path / "mine.yaml").write_text("optim: {lr: 1e-4}\nmodel: {solver: {atol: 1e-7}}")
    config = load_config(tmp_path / "mine.yaml")
    assert config == Config(name="mine", optim=OptimConfig(lr=1e-4), model={"solver": {"atol": 1e-7}})


def test_kinds_of_tasks():
    assert [TaskConfig(*weights).kind for weights in ((1, 0), (0, 2), (0.5, 1))] == ["density", "classify", "hybrid"]


def test_every_option_is_described_and_takes_its_default():
    for o in options(Config):
        assert o.help
        if "." in o.name:
            given = get(load_config("digits-density", [flag(o.name), o.default]), o.name)
            assert given == get(Config(), o.name)
    assert ("data.pad_to", "int | null", "null") in [(o.name, o.type, o.default) for o in options(DataConfig, "data.")]


def part(*, size: int, rate: float | None = None, flag: bool = False, kind: str = "a"):
    """Something with options."""


TYPES = {
    "int": ({"size": 2.0}, "--p.size must be of type int, got '2.0'"),
    "bool is no int": ({"size": True}, "--p.size must be of type int"),
    "int is no bool": ({"flag": 1}, "--p.flag must be of type bool"),
    "optional": ({"rate": "x"}, "--p.rate must be of type float | null, got 'x'"),
    "str": ({"kind": 3}, "--p.kind must be of type str"),
}


@pytest.mark.parametrize("case", TYPES)
def test_types_are_those_that_the_function_declares(case):
    given, expected = TYPES[case]
    parameters = inspect.signature(part).parameters
    assert expected in refusal(check_types, parameters, given, "p.")
    check_types(parameters, {"size": 2, "rate": 1, "flag": True, "kind": "b", "unknown": object()}, "p.")
    check_types(parameters, {"rate": None}, "p.")


# -- limits and choices ------------------------------------------------------------------------------------------------

CHOICES = {
    "data.augment": AUGMENTATIONS,
    "optim.name": OPTIMIZERS,
    "optim.schedule": SCHEDULES,
    "train.precision": PRECISIONS,
    "train.sharding": SHARDINGS,
    "tracker": TRACKERS,
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_what_is_registered(name):
    (limits,) = [o.limits for o in options(Config) if o.name == name]
    assert limits.choices == tuple(sorted(CHOICES[name]))


def test_choices_of_images_are_what_their_reader_takes(tmp_path):
    write_folder(tmp_path, list(examples(3, 1, 8)[0]))
    (limits,) = [o.limits for o in options(Config) if o.name == "data.mode"]
    assert refusal(lambda: load(tmp_path, mode="X")).endswith(f"(valid: {', '.join(limits.choices)})")


def test_all_choices_are_compared_with_what_is_registered():
    assert {o.name for o in options(Config) if o.limits.choices} == CHOICES.keys() | {"data.mode", "train.capture"}


NUMBERS = [o for o in options(Config) if "int" in o.type.split(" | ") or "float" in o.type]


@pytest.mark.parametrize("option", NUMBERS, ids=lambda o: o.name)
def test_numbers_out_of_their_limits_are_refused_by_name(option):
    limits = option.limits
    wrong = [limits.above, limits.below, *((".nan", "1e39") if "float" in option.type else ())]
    wrong += [bound + step for bound, step in ((limits.at_least, -1), (limits.at_most, 1)) if bound is not None]
    for value in [value for value in wrong if value is not None]:
        message = refusal(load_config, "digits-density", [flag(option.name), str(value)])
        assert message.startswith(f"{flag(option.name)} must be ")
        got = message.partition(", got '")[2].rstrip("'")
        assert str(float(got)) == str(float(str(value).lstrip(".")))


CONFLICTS = {
    "no task": ({"task": TaskConfig(0, 0)}, "--task.nll-weight or --task.ce-weight must be above 0"),
    "one example and a batch norm": (
        {"task": TaskConfig(0, 1), "train": TrainConfig(batch_size=1)},
        "--train.batch-size must be at least 2",
    ),
    "chunks of nothing": ({"train": TrainConfig(batch_size=4, accumulate=5)}, "--train.accumulate must be at most 4"),
    "nesterov of adam": (
        {"optim": OptimConfig(nesterov=True)},
        "--optim.nesterov is for sgd with momentum, got adamax",
    ),
    "nesterov without momentum": (
        {"optim": OptimConfig("sgd", momentum=0.0, nesterov=True)},
        "got sgd with --optim.momentum 0.0",
    ),
    "averages in shards": ({"train": TrainConfig(sharding="fsdp", ema=0.9)}, "leave out --train.ema"),
    "fp16 in shards": ({"train": TrainConfig(sharding="fsdp", precision="fp16")}, "use --train.precision bf16"),
    "a bound": ({"train": TrainConfig(ema=1.0)}, "--train.ema must be below 1, got '1.0'"),
    "a choice": ({"train": TrainConfig(precision="bf61")}, "unknown --train.precision 'bf61'; did you mean 'bf16'"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_configurations_made_in_python_are_checked_likewise(case):
    sections, expected = CONFLICTS[case]
    assert expected in refusal(check, Config(**sections))


def test_what_makes_another_run_is_told_from_what_does_not():
    old = load_config("digits-density")
    kept = ["--train.keep-checkpoints", "9", "--tracker", "[]", "--visdom.port", "1"]
    assert differences(load_config("digits-density", kept), old) == []
    changed = load_config("digits-density", ["--train.log-every", "7", "--model.logdet.n-steps", "9"])
    assert differences(changed, old) == ["model.logdet.n_steps: 3 -> 9", "train.log_every: 20 -> 7"]


# -- options of models -------------------------------------------------------------------------------------------------


def test_options_of_models_are_those_of_the_signatures():
    """They are read from the source, and here compared with what Python makes of it."""
    listed = {o.name: o for o in model_options()}
    expected = {f"model.{name}" for made in ARCHITECTURES.values() for name in options_of(made)}
    expected |= {
        f"model.{name}" for name in ("base", "components", "dequantization", "head_hidden", "name", "spline", "whiten")
    }
    for part, registry in (("logdet", LOGDETS), ("solver", SOLVERS)):
        expected |= {f"model.{part}.{name}" for made in registry.values() for name in options_of(made)}
        expected |= {f"model.{part}.name"}
        expected -= {f"model.{part}"}
        for name, made in registry.items():
            assert name in listed[f"model.{part}.name"].help
            for option, parameter in options_of(made).items():
                assert str(parameter.default).replace("None", "null") in listed[f"model.{part}.{option}"].default
    assert listed.keys() == expected
    assert all(o.help and o.type and o.default and "`" not in o.help for o in listed.values())
    for name, registry in (("activation", ACTIVATIONS), ("memory", MEMORY)):
        assert f"one of {', '.join(registry)}" in listed[f"model.{name}"].help


# -- recipes based on others -----------------------------------------------------------------------------------------


@pytest.fixture
def based(tmp_path):
    """A function that writes a recipe file beside the others and returns its path."""

    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_recipe_says_what_is_different_from_its_base(based):
    below = load_config("digits-density")
    config = load_config(based("mine.yaml", "base: digits-density\nmodel: {blocks: [1, 2]}\noptim: {lr: 1e-3}\n"))
    assert config == replace(
        below,
        name="mine",
        description="",
        expected="",
        cost="",
        model=below.model | {"blocks": [1, 2]},
        optim=replace(below.optim, lr=1e-3),
    )


def test_bases_have_bases_which_may_be_files_beside_them(based):
    based("a.yaml", "base: digits-density\ntrain: {epochs: 7}\n")
    config = load_config(based("b.yaml", "base: a.yaml\nmodel: {logdet: {name: exact}}\n"), ["--train.seed", "5"])
    assert (config.train.epochs, config.train.seed) == (7, 5)
    assert config.model["logdet"] == {"name": "exact"}
    assert config.model["hidden"] == load_config("digits-density").model["hidden"]


def test_what_an_architecture_lacks_is_left_out_when_it_is_named(based):
    plain = ["--model.name", "resnet"]
    assert load_config("cifar10-classify", plain).model.keys() == {
        "name",
        "blocks",
        "strides",
        "hidden",
        "injective_pad",
    }
    assert load_config("cifar10-classify", [*plain, "--model.coeff", "0.9"]).model["coeff"] == 0.9  # refused later
    file = based("plain.yaml", "base: cifar10-classify\nmodel: {name: resnet}\n")
    assert load_config(file).model == load_config("cifar10-classify", plain).model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: a.yaml\n", "its own base"),
        ("base: digits-densty\n", "did you mean 'digits-density'"),
        ("base: none.yaml\n", "there is no recipe file"),
    ],
)
def test_bases_that_cannot_be_are_refused(based, text, message):
    with pytest.raises(IResNetError, match=message):
        load_config(based("a.yaml", text))


def test_options_of_your_own_data_are_those_that_load_takes():
    tokens = [
        "--data.keys",
        "[x=images,y=labels]",
        "--data.drop",
        "[id,3]",
        "--data.target",
        "-1",
        "--data.test",
        "b.npz",
    ]
    options = load_config("digits-density", tokens).data.options
    assert options["keys"] == {"x": "images", "y": "labels"}
    assert (options["drop"], options["target"], options["test"]) == (("id", 3), -1, "b.npz")
    assert options.keys() == inspect.signature(load).parameters.keys() - {"name", "data_dir", "like"}
