"""What was trained and how: the recipe, what was changed of it, and the commands that do it again."""

__all__ = ["changes", "differences", "rerun", "setup", "value_text"]

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from iresnet.config import WORDS, Config, from_dict, leaves, load_config, recipe_names
from iresnet.errors import IResNetError
from iresnet.report.blocks import Block, Cell, Code, Fold, Hint, Panel, Section, Table, Text
from iresnet.report.reading import RunFiles, sublist, subtree
from iresnet.report.tables import pairs
from iresnet.report.words import DASH, TIMES, clipped

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
    names = [name for name in run.settings if name not in WORDS]
    names += [name for name in defaults if name.startswith("model.") and name not in run.settings]
    found = {name: (run.settings.get(name), defaults.get(name)) for name in names}
    return {name: (own, default) for name, (own, default) in found.items() if own != default}


def differences(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with the value in each."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in WORDS[1:])
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
    rest = [(option, value_text(value)) for option, value in run.settings.items() if option not in (*WORDS, *changed)]
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
    return {name: value for name, value in leaves(asdict(config)) if name not in WORDS}


def _token(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
