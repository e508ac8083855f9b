"""Setup of a run: its settings, what the training took, the machine, and the commands that repeat it."""

__all__ = [
    "changes",
    "cost",
    "differences",
    "environment",
    "parameters",
    "rerun",
    "seconds",
    "setup",
    "start_date",
    "value_text",
]

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from iresnet.config import ABOUT, Config, from_dict, leaves, load_config, recipe_names
from iresnet.errors import IResNetError
from iresnet.report.elements import Block, Cell, Code, Fold, Hint, Table, Text, details, pairs
from iresnet.report.formatting import (
    DASH,
    TIMES,
    amount,
    clipped,
    duration,
    finite,
    label,
    number,
    sublist,
    subtree,
)
from iresnet.runs import Contents

_TASKS = {"density": "density estimation", "classify": "classification", "hybrid": "density and classification at once"}

# -- settings ----------------------------------------------------------------------------------------------------------


def setup(run: Contents, *, alone: bool) -> Iterator[Block]:
    """Show what was trained, what differs from the recipe, and all settings.

    Args:
        run: the run.
        alone: leave out the description, which stands at the top of the page of a single run.
    """
    if not run.config:
        yield Hint("The configuration cannot be read.")
        return
    yield pairs("What was trained", _summary(run, alone=alone), plain=True)
    name = value_text(run.settings.get("name"))
    base = f"the recipe {name}" if name in recipe_names() else "the defaults"
    changed = changes(run)
    if changed:
        rows = [
            [Cell(option, "code"), Cell(value_text(own), "differs"), Cell(value_text(default))]
            for option, (own, default) in changed.items()
        ]
        headings = ("setting", "this run", base.removeprefix("the "))
        yield Table(f"Settings that differ from {base}", headings, rows)
    else:
        yield Text(f"All settings are those of {base}.")
    rest = {option: value for option, value in run.settings.items() if option not in (*ABOUT, *changed)}
    rows = [[Cell(option, "code"), Cell(value_text(value))] for option, value in rest.items()]
    yield Fold(f"{len(rest)} other settings", [Table("Other settings", ("setting", "value"), rows)])


def changes(run: Contents) -> dict[str, tuple[Any, Any]]:
    """List the settings that differ from the recipe: the run's, and the recipe's, or the default without a recipe."""
    name = run.settings.get("name")
    try:
        recipe = load_config(name) if name in recipe_names() else Config()
    except IResNetError:
        recipe = Config()
    defaults = dict(leaves(asdict(recipe)))
    names = [name for name in run.settings if name not in ABOUT]
    names += [name for name in defaults if name.startswith("model.") and name not in run.settings]
    found = {name: (run.settings.get(name), defaults.get(name)) for name in names}
    return {name: (own, default) for name, (own, default) in found.items() if own != default}


def differences(runs: Sequence[Contents]) -> dict[str, list[Any]]:
    """List the settings that are not the same in all runs, with the value in each."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in ABOUT[1:])
    found = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def value_text(value: Any) -> str:
    """Format a setting as it is written in a recipe."""
    if value is None:
        return DASH
    return clipped(value if isinstance(value, str) else json.dumps(value, default=str))


def _summary(run: Contents, *, alone: bool) -> list[tuple[str, str]]:
    get = {name: value_text(value) for name, value in run.settings.items()}
    model = {name[6:].removesuffix("name").rstrip("."): text for name, text in get.items() if name.startswith("model.")}
    lr, schedule = get.get("optim.lr", DASH), get.get("optim.schedule", DASH)
    epochs, batch, seed = (get.get(f"train.{name}", DASH) for name in ("epochs", "batch_size", "seed"))
    passes = "1 epoch" if epochs == "1" else f"{epochs} epochs"
    entries = {
        "recipe": get.get("name"),
        "description": None if alone else get.get("description"),
        "data": _data(run),
        "task": _TASKS[run.kind],
        "model": ", ".join(f"{name} {text}".replace("_", " ").strip() for name, text in model.items()),
        "optimizer": f"{get.get('optim.name', DASH)}, learning rate {lr}, {schedule} schedule",
        "length": f"{passes} in batches of {batch}, seed {seed}",
        "expected by the recipe": get.get("expected"),
        "cost by the recipe": get.get("cost"),
    }
    return [(name, text) for name, text in entries.items() if text]


def _data(run: Contents) -> str:
    inputs = subtree(run.config, "inputs")
    facts = [value_text(run.settings.get("data.name"))]
    if run.shape:
        axes = " (channels, height, width)" if len(run.shape) == 3 else " features"
        facts.append(TIMES.join(map(str, run.shape)) + axes)
    if inputs.get("levels"):
        facts.append(f"{value_text(inputs['levels'])} levels")
    if names := sublist(inputs, "class_names"):
        facts.append(f"{len(names)} classes")
    return ", ".join(facts)


# -- cost and environment ----------------------------------------------------------------------------------------------


def cost(run: Contents) -> Iterator[Block]:
    """Show time, steps and size."""
    sessions, entries = _sessions(run), []
    wall, cpu = seconds(run, "wall_seconds"), seconds(run, "cpu_seconds")
    if wall is not None:
        entries.append(("training time", duration(wall)))
    if cpu is not None:
        many = max((finite(session.get("processes")) or 1 for session in sessions), default=1)
        name = "CPU time" if many == 1 else f"CPU time of the first of {number(many)} processes"
        entries.append((name, duration(cpu)))
    steps = [x for line in run.metrics if (x := finite(line.get("step"))) is not None]
    if steps:
        entries.append(("steps", number(max(steps))))
    # steps that were done twice, after a break, count twice
    ends = [(finite(session.get("from_step")), finite(session.get("to_step"))) for session in sessions]
    done = sum(max(0.0, last - first) for first, last in ends if first is not None and last is not None)
    batch = finite(run.settings.get("train.batch_size"))
    if wall and batch and done:
        entries.append(("examples a second, with validation", number(done * batch / wall, 3)))
    if found := parameters(run):
        entries.append((found[0], number(found[1])))
    try:
        entries.append(("size of the weights", amount(run.folder.model_file.stat().st_size)))
    except OSError:
        entries.append(("size of the weights", "no model yet"))
    yield pairs("What the training took", entries, plain=True)
    if wall is None:
        yield Hint("Its time was not noted: newer versions write cost.json while they train.")
    elif len(sessions) > 1:
        yield Fold(f"{len(sessions)} processes, one after the other", details(sessions, "Processes"))


def environment(run: Contents) -> Iterator[Block]:
    """Show versions and machine."""
    if run.env:
        entries = [(label(key), value) for key, value in run.env.items() if value is not None]
        entries = [(name, str(value) if isinstance(value, int) else value) for name, value in entries]
        yield pairs("Where it was trained", entries, plain=True)
    else:
        yield Hint("The environment is not known: env.json, which training writes, is missing.")


def seconds(run: Contents, key: str) -> float | None:
    """Sum the time of all processes that trained the run one after the other, None when it is not known.

    Args:
        run: the run.
        key: ``wall_seconds``, or ``cpu_seconds``: of the first process where several worked together.
    """
    values = [finite(session.get(key)) for session in _sessions(run)]
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def parameters(run: Contents) -> tuple[str, int] | None:
    """Count the parameters, or else the numbers in the file of the weights; return which of them, and the count."""
    for tree in (run.cost, run.evaluation):
        if n := finite(tree.get("parameters")):
            return "parameters", int(n)
    return ("numbers in the model file", run.n_weights) if run.n_weights else None


def start_date(run: Contents) -> str:
    """Return the day on which the training began, else that of the weights; empty when neither is known."""
    for session in _sessions(run):
        if isinstance(started := session.get("started"), str):
            return started[:10]
    try:
        return datetime.fromtimestamp(run.folder.model_file.stat().st_mtime, UTC).date().isoformat()
    except (OSError, ValueError, OverflowError):
        return ""


def _sessions(run: Contents) -> list[dict[str, Any]]:
    return [session for session in sublist(run.cost, "sessions") if isinstance(session, dict)]


# -- commands ----------------------------------------------------------------------------------------------------------


def rerun(run: Contents) -> Iterator[Block]:
    """Show the commands that repeat the run."""
    again = shlex.quote(f"{run.folder.path}-again")
    config = shlex.quote(str(run.folder.config_file))
    commands = [("from the configuration of this run", f"iresnet train --config {config} --out {again}")]
    if recipe := _recipe_command(run):
        commands.append(("the same from its recipe", f"{recipe} --out {again}"))
    yield Code(commands)


def _recipe_command(run: Contents) -> str:
    """Return the command that makes the configuration from its recipe; empty when none does."""
    name, changed = run.settings.get("name"), changes(run)
    # The name of an estimator or solver comes first: it drops the options of the other one.
    options = sorted((option for option in changed if option in run.settings), key=lambda o: not o.endswith(".name"))
    values = [changed[option][0] for option in options]
    texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in values]
    tokens = [t for option, text in zip(options, texts, strict=True) for t in (f"--{option.replace('_', '-')}", text)]
    try:
        wanted = from_dict(Config, {key: value for key, value in run.config.items() if key != "inputs"})
        made = load_config(str(name), tokens) if name in recipe_names() else None
    except (IResNetError, TypeError):
        return ""
    if made is None or _settings(made) != _settings(wanted):
        return ""
    data_dir = run.env.get("data_dir")
    where = ["--data-dir", data_dir] if isinstance(data_dir, str) else []
    return shlex.join(["iresnet", "train", str(name), *where, *tokens])


def _settings(config: Config) -> dict[str, Any]:
    return {name: value for name, value in leaves(asdict(config)) if name not in ABOUT}
