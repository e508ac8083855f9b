"""``iresnet train`` makes a run folder of a recipe, ``iresnet recipes`` lists those there are."""

__all__ = ["listing", "recipes", "train", "train_help"]

import inspect
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from iresnet.commands.arguments import DataDir, DeviceName, Gpus, Processes, use_processes
from iresnet.config import TRACKERS, Config, load_config, recipe_names
from iresnet.console import err, say
from iresnet.errors import Interrupted, RecipeError
from iresnet.options import Option, flag, options

_TRACKER_HELP = f"Show the run there too, may be repeated: {', '.join(TRACKERS)}; by default tensorboard, if installed."


def train(
    recipe: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    config: Annotated[Path | None, Parameter(name="--config")] = None,
    init: str | None = None,
    data_dir: DataDir = None,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    compile: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 (the name of the option)
    tracker: Annotated[list[str] | None, Parameter(negative="--no-tracker", help=_TRACKER_HELP)] = None,
    verbose: Annotated[bool, Parameter(negative="")] = False,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Train a model into a run folder.

    Args:
        recipe: Name of a bundled recipe (see: iresnet recipes), or a YAML file.
        overrides: Changes of the recipe.
        config: YAML file in place of a recipe; the config.yaml of a run repeats that run.
        init: Short for --train.init: start from the weights of this run folder or bundled model.
        data_dir: Folder of data sets.
        out: Run folder to write; runs/RECIPE by default.
        resume: Continue the run in that folder: --out RUN --resume needs nothing else. More --train.epochs make it
            longer.
        dry_run: Run real steps of the full model on a few examples, print what the run costs here and on GPUs; no more.
        compile: Short for --train.compile true: compile the residual blocks first, for faster steps.
        tracker: Trackers that show the run.
        verbose: At every line of metrics, say what each block does.
    """
    recipe, overrides = _source(recipe, overrides, config, out if resume else None)
    short = ["--train.compile", "true"] if compile else []
    if init is not None:  # found again when the run is resumed elsewhere
        short += ["--train.init", json.dumps(str(Path(init).absolute()) if Path(init).exists() else init)]
    if tracker is not None:
        names = [token.strip("[]") for token in tracker]  # several options, or the list of a recipe
        short += ["--tracker", f"[{','.join(filter(None, names))}]"]
    flags = [name for name, p in inspect.signature(train).parameters.items() if p.kind is p.KEYWORD_ONLY]
    settings = load_config(recipe, [*overrides, *short], flags=flags)
    from iresnet import training
    from iresnet.training.progress import BlockLog, ProgressBar

    folder = out or Path("runs") / settings.name
    data_dir = data_dir or _data_dir_of(recipe, folder if resume else None)
    if dry_run:
        say(str(training.dry_run(settings, data_dir=data_dir, device=device)))
        return
    use_processes(processes, gpus, device)
    callbacks = [ProgressBar(err), *([BlockLog(err)] if verbose else ())]
    try:
        result = training.train(settings, folder, data_dir=data_dir, device=device, resume=resume, callbacks=callbacks)
    except Interrupted as error:
        raise Interrupted(f"{error}; continue with the same command and --resume") from error
    say(f"trained {recipe}: {result.path}; next: iresnet evaluate {result.path}")


def _source(
    recipe: str, overrides: tuple[str, ...], config: Path | None, run: Path | None
) -> tuple[str, tuple[str, ...]]:
    """Find the settings, of a recipe, a file, or the run that is continued, and what changes them."""
    named = bool(recipe) and not recipe.startswith("--")
    if named and config:
        raise RecipeError(f"give a recipe or --config, not both: got '{recipe}' and --config {config}")
    if named:
        return recipe, overrides
    source = config
    if run and not config:
        from iresnet.runs import Run

        source = Run.open(run).config_file
    if source is None:
        known = ", ".join(recipe_names())
        raise RecipeError(f"iresnet train needs a recipe ({known}), --config FILE, or --out RUN --resume")
    return str(source), (recipe, *overrides) if recipe else overrides


def _data_dir_of(recipe: str, run: Path | None) -> Path | None:
    """Return the folder of data sets of the run that is continued, or that a config.yaml belongs to."""
    from iresnet.runs import Run

    origin = run or (Path(recipe).parent if Path(recipe).name == "config.yaml" else None)
    folder = Run(origin).data_dir if origin else None
    return Path(folder) if folder else None


# -- what can be trained -----------------------------------------------------------------------------------------------


def recipes() -> None:
    """List the bundled recipes: task, data, expected result and cost."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "task", "data", "expected", "cost"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for name in recipe_names():
        config = load_config(name)
        table.add_row(name, config.task.kind, config.data.name, config.expected, config.cost)
    say(table)


def listing() -> list[Option]:
    """List every option of a recipe: what its sections declare, and what models take."""
    from iresnet.signatures import model_options

    declared = [o for o in options(Config) if "." in o.name]
    data = [o for o in declared if o.name.startswith("data.")]
    return [*data, *model_options(), *(o for o in declared if o not in data)]


def train_help() -> str:
    """Describe ``iresnet train`` and every option of a recipe."""
    lines = []
    for o in listing():
        limits = f"{o.limits}; " if str(o.limits) else ""
        lines.append(f"{flag(o.name)}  {o.help} ({limits}default: {o.default})")
    return (
        "Train a model into a run folder.\n\n"
        "Any option of the recipe can be changed: iresnet train digits-density --train.epochs 3 --model.blocks '[2,2]' "
        "--optim.lr=1e-3\n\n" + "\n\n".join(lines)
    )
