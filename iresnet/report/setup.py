"""Setup: the recipe, what was changed of it, what the run took, and the commands that do it again."""

__all__ = [
    "changes",
    "cost",
    "cpu_seconds",
    "differences",
    "environment",
    "parameters",
    "rerun",
    "setup",
    "value_text",
    "wall_seconds",
    "when",
]

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from iresnet.config import ABOUT, Config, from_dict, leaves, load_config, recipe_names
from iresnet.errors import IResNetError
from iresnet.report.elements import Block, Cell, Code, Fold, Hint, Panel, Section, Table, Text, details, pairs
from iresnet.report.reading import RunFiles, sublist, subtree
from iresnet.report.words import DASH, TIMES, amount, clipped, duration, finite, label, number

# -- cost --------------------------------------------------------------------------------------------------------------


def cost(runs: Sequence[RunFiles]) -> Section:
    """Time, steps and size."""
    return Section("cost", "Cost", [Panel(i, _cost(run)) for i, run in enumerate(runs)])


def environment(runs: Sequence[RunFiles]) -> Section:
    """Versions and machine."""
    return Section("environment", "Environment", [Panel(i, _environment(run)) for i, run in enumerate(runs)])


def wall_seconds(run: RunFiles) -> float | None:
    """Seconds of all processes that trained the run, one after the other."""
    return _total(run, "wall_seconds")


def cpu_seconds(run: RunFiles) -> float | None:
    """The same of CPU time, of the first process each."""
    return _total(run, "cpu_seconds")


def parameters(run: RunFiles) -> tuple[str, int] | None:
    """How many parameters there are, or numbers in the file of the weights, and which of them it is."""
    for tree in (run.cost, run.evaluation):
        if n := finite(tree.get("parameters")):
            return "parameters", int(n)
    return ("numbers in the model file", run.model_numbers) if run.model_numbers else None


def when(run: RunFiles) -> str:
    """The day on which the training began, else that of the weights; empty when neither is known."""
    for session in _sessions(run):
        if isinstance(started := session.get("started"), str):
            return started[:10]
    try:
        return datetime.fromtimestamp(run.model_file.stat().st_mtime, UTC).date().isoformat()
    except (OSError, ValueError, OverflowError):
        return ""


def _sessions(run: RunFiles) -> list[dict[str, Any]]:
    sessions = run.cost.get("sessions")
    return [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else []


def _total(run: RunFiles, key: str) -> float | None:
    values = [finite(session.get(key)) for session in _sessions(run)]
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _cost(run: RunFiles) -> list[Block]:
    entries = []
    wall, cpu = wall_seconds(run), cpu_seconds(run)
    if wall is not None:
        entries.append(("training time", duration(wall)))
    if cpu is not None:
        many = max((finite(session.get("processes")) or 1 for session in _sessions(run)), default=1)
        entries.append(
            ("CPU time" if many == 1 else f"CPU time of the first of {number(many)} processes", duration(cpu))
        )
    steps = [x for line in run.metrics if (x := finite(line.get("step"))) is not None]
    if steps:
        entries.append(("steps", number(max(steps))))
    batch, done = finite(run.settings.get("train.batch_size")), _steps_done(run)
    if wall and batch and done:
        entries.append(("examples a second, with validation", number(done * batch / wall, 3)))
    if found := parameters(run):
        entries.append((found[0], number(found[1])))
    try:
        entries.append(("size of the weights", amount(run.model_file.stat().st_size)))
    except OSError:
        entries.append(("size of the weights", "no model yet"))
    blocks: list[Block] = [pairs("What the training took", entries, plain=True)]
    if wall is None:
        blocks.append(Hint("Its time was not noted: newer versions write cost.json while they train."))
    elif len(_sessions(run)) > 1:
        blocks.append(
            Fold(f"{len(_sessions(run))} processes, one after the other", details(_sessions(run), "Processes"))
        )
    return blocks


def _steps_done(run: RunFiles) -> float:
    """Steps of all processes, those that were done twice counted twice."""
    ends = [(finite(session.get("from_step")), finite(session.get("to_step"))) for session in _sessions(run)]
    return sum(max(0.0, last - first) for first, last in ends if first is not None and last is not None)


def _environment(run: RunFiles) -> list[Block]:
    if not run.env:
        return [Hint("The environment is not known: env.json, which training writes, is missing.")]
    entries = [(label(key), value) for key, value in run.env.items() if value is not None]
    entries = [(name, str(value) if isinstance(value, int) else value) for name, value in entries]
    return [pairs("Where it was trained", entries, plain=True)]


# -- setup -------------------------------------------------------------------------------------------------------------


_KINDS = {"density": "density estimation", "classify": "classification", "hybrid": "density and classification at once"}


def setup(runs: Sequence[RunFiles]) -> Section:
    """What was trained, what differs from the recipe, and all settings."""
    panels = [Panel(i, _setup(run, alone=len(runs) == 1)) for i, run in enumerate(runs)]
    return Section("setup", "What was trained", panels)


def rerun(runs: Sequence[RunFiles]) -> Section:
    """The commands that repeat the runs."""
    return Section("rerun", "Run it again", [Panel(i, _rerun(run)) for i, run in enumerate(runs)])


def changes(run: RunFiles) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from the recipe: the run's, and the recipe's; those of a missing recipe are its defaults."""
    defaults = _defaults(run)
    names = [name for name in run.settings if name not in ABOUT]
    names += [name for name in defaults if name.startswith("model.") and name not in run.settings]
    found = {name: (run.settings.get(name), defaults.get(name)) for name in names}
    return {name: (own, default) for name, (own, default) in found.items() if own != default}


def differences(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with the value in each."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in ABOUT[1:])
    found = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def value_text(value: Any) -> str:
    """A setting, as it is written in a recipe."""
    if value is None:
        return DASH
    return clipped(value if isinstance(value, str) else json.dumps(value, default=str))


def _defaults(run: RunFiles) -> dict[str, Any]:
    name = run.settings.get("name")
    try:
        config = load_config(name) if name in recipe_names() else Config()
    except IResNetError:
        config = Config()
    return dict(leaves(asdict(config)))


def _setup(run: RunFiles, *, alone: bool) -> list[Block]:
    if not run.config:
        return [Hint("The configuration cannot be read.")]
    blocks: list[Block] = [pairs("What was trained", _summary(run, alone=alone), plain=True)]
    name = value_text(run.settings.get("name"))
    known = name in recipe_names()
    base = f"the recipe {name}" if known else "the defaults"
    changed = changes(run)
    if changed:
        rows = [
            [Cell(option, "code"), Cell(value_text(own), "differs"), Cell(value_text(default))]
            for option, (own, default) in changed.items()
        ]
        headings = ("setting", "this run", base.removeprefix("the "))
        blocks.append(Table(f"Settings that differ from {base}", headings, rows))
    else:
        blocks.append(Text(f"All settings are those of {base}."))
    rest = [(option, value_text(value)) for option, value in run.settings.items() if option not in (*ABOUT, *changed)]
    everything = [[Cell(option, "code"), Cell(text)] for option, text in rest]
    blocks.append(Fold(f"{len(rest)} other settings", [Table("Other settings", ("setting", "value"), everything)]))
    return blocks


def _summary(run: RunFiles, *, alone: bool) -> list[tuple[str, str]]:
    get = {name: value_text(value) for name, value in run.settings.items()}
    model = {name[6:].removesuffix("name").rstrip("."): text for name, text in get.items() if name.startswith("model.")}
    lr, schedule = get.get("optim.lr", DASH), get.get("optim.schedule", DASH)
    epochs, batch, seed = (get.get(f"train.{name}", DASH) for name in ("epochs", "batch_size", "seed"))
    passes = "1 epoch" if epochs == "1" else f"{epochs} epochs"
    entries = {
        "recipe": get.get("name"),
        "description": None if alone else get.get("description"),  # of a single run it stands at the top
        "data": _data(run),
        "task": _KINDS[run.kind],
        "model": ", ".join(f"{name} {text}".replace("_", " ").strip() for name, text in model.items()),
        "optimizer": f"{get.get('optim.name', DASH)}, learning rate {lr}, {schedule} schedule",
        "length": f"{passes} in batches of {batch}, seed {seed}",
        "expected by the recipe": get.get("expected"),
        "cost by the recipe": get.get("cost"),
    }
    return [(name, text) for name, text in entries.items() if text]


def _data(run: RunFiles) -> str:
    inputs = subtree(run.config, "inputs")
    parts = [value_text(run.settings.get("data.name"))]
    if run.shape:
        kind = " (channels, height, width)" if len(run.shape) == 3 else " features"
        parts.append(TIMES.join(map(str, run.shape)) + kind)
    if inputs.get("levels"):
        parts.append(f"{value_text(inputs['levels'])} levels")
    if names := sublist(inputs, "class_names"):
        parts.append(f"{len(names)} classes")
    return ", ".join(parts)


def _rerun(run: RunFiles) -> list[Block]:
    again = shlex.quote(f"{run.path}-again")
    config = shlex.quote(str(run.path / "config.yaml"))
    commands = [("from the configuration of this run", f"iresnet train --config {config} --out {again}")]
    if recipe := _from_recipe(run):
        commands.append(("the same from its recipe", f"{recipe} --out {again}"))
    return [Code(commands)]


def _from_recipe(run: RunFiles) -> str:
    """The command that makes the configuration from its recipe; empty when none does."""
    name, changed = run.settings.get("name"), changes(run)
    # The name of a part of the model comes first: it begins the part anew.
    options = sorted(
        (option for option in changed if option in run.settings), key=lambda option: not option.endswith(".name")
    )
    tokens = [token for option in options for token in (f"--{option.replace('_', '-')}", _token(changed[option][0]))]
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


def _token(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
