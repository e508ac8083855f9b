"""``iresnet train``: a recipe becomes a run folder."""

__all__ = ["train", "train_help"]

import inspect
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from iresnet.commands.arguments import DataDir, DeviceName, Gpus, Processes, use_processes
from iresnet.config import Config, load_config, options, recipe_names
from iresnet.console import err, say
from iresnet.errors import Interrupted, RecipeError


def train(
    recipe: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    config: Annotated[Path | None, Parameter(name="--config")] = None,
    data_dir: DataDir = None,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    compile: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 (the name of the option)
    tracker: Annotated[list[str] | None, Parameter(negative="--no-tracker")] = None,
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
        data_dir: Folder of data sets.
        out: Run folder to write; runs/RECIPE by default.
        resume: Continue the run in that folder: --out RUN --resume needs nothing else. More --train.epochs make it
            longer.
        dry_run: Run real steps of the full model on a few examples, print what the run costs here and on GPUs; no more.
        compile: Short for --train.compile true: compile the residual blocks first, for faster steps.
        tracker: Show the run there too, may be repeated: tensorboard (the default, if installed), visdom, wandb,
            mlflow, aim, clearml, comet_ml, dvclive, swanlab, trackio.
        verbose: At every line of metrics, say what each block does.
    """
    recipe, overrides = _source(recipe, overrides, config, out if resume else None)
    short = ["--train.compile", "true"] if compile else []
    if tracker is not None:
        names = [token.strip("[]") for token in tracker]  # several options, or the list of a recipe
        short += ["--tracker", f"[{','.join(filter(None, names))}]"]
    settings = load_config(recipe, [*overrides, *short], flags=_flags())
    from iresnet import training

    folder = out or Path("runs") / settings.name
    data_dir = data_dir or _data_dir_of(recipe, folder if resume else None)
    if dry_run:
        say(str(training.dry_run(settings, data_dir=data_dir, device=device)))
        return
    use_processes(processes, gpus, device)
    _train(settings, recipe, folder, data_dir, device=device, resume=resume, verbose=verbose)


def _source(
    recipe: str, overrides: tuple[str, ...], config: Path | None, run: Path | None
) -> tuple[str, tuple[str, ...]]:
    """Where the settings come from, a recipe, a file, or the run that is continued, and how they are changed."""
    named = bool(recipe) and not recipe.startswith("--")
    if named and config:
        raise RecipeError(f"give a recipe or --config, not both: got '{recipe}' and --config {config}")
    if named:
        return recipe, overrides
    source = config or (run and _config_of(run))
    if source is None:
        known = ", ".join(recipe_names())
        raise RecipeError(f"iresnet train needs a recipe ({known}), --config FILE, or --out RUN --resume")
    return str(source), (recipe, *overrides) if recipe else overrides


def _flags() -> list[str]:
    """The options of the command that are none of the recipe."""
    return [name for name, p in inspect.signature(train).parameters.items() if p.kind is p.KEYWORD_ONLY]


def _config_of(run: Path) -> Path:
    from iresnet.runs import Run

    return Run.open(run).config_file


def _data_dir_of(recipe: str, run: Path | None) -> Path | None:
    """Where the run that is continued, or that a config.yaml belongs to, found its data."""
    from iresnet.runs import Run

    origin = run or (Path(recipe).parent if Path(recipe).name == "config.yaml" else None)
    folder = Run(origin).data_dir if origin else None
    return Path(folder) if folder else None


def _train(
    config: Config, recipe: str, folder: Path, data_dir: Path | None, *, device: str, resume: bool, verbose: bool
) -> None:
    from iresnet import training
    from iresnet.training.progress import BlockLog, ProgressBar

    callbacks = [ProgressBar(err), *([BlockLog(err)] if verbose else ())]
    try:
        result = training.train(config, folder, data_dir=data_dir, device=device, resume=resume, callbacks=callbacks)
    except Interrupted as error:
        raise Interrupted(f"{error}; continue with the same command and --resume") from error
    say(f"trained {recipe}: {result.path}; next: iresnet evaluate {result.path}")


def train_help() -> str:
    """What ``iresnet train --help`` says: every option of a recipe."""
    lines = [
        f"--{name.replace('_', '-')}  {doc} (default: {default!r})" for name, default, doc in options() if "." in name
    ]
    sections = "\n\n".join(lines)
    return (
        "Train a model into a run folder.\n\n"
        "Any option of the recipe can be changed: iresnet train digits-density --train.epochs 3 --model.blocks '[2,2]' "
        "--optim.lr=1e-3\n\n"
        "--model.name and --model.OPTION  architecture and its options: blocks, strides, hidden, coeff, activation, "
        "logdet.name, logdet.n-steps, solver.name, solver.atol, head-hidden, ...\n\n"
        f"{sections}"
    )
