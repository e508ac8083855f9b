"""The command line: parse, call the library, print. Imports torch only in the commands that need it."""

__all__ = ["main", "run"]

import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators
from rich.table import Table

from iresnet.config import Config, load_config, options, recipe_names
from iresnet.console import complain, err, is_main, progress, say, show_thread_failure, show_warning
from iresnet.errors import Interrupted, IResNetError, ProcessLost, RecipeError, RunError, UnknownNameError
from iresnet.launch import check_processes, launch, started_together

if TYPE_CHECKING:
    from iresnet.data import Dataset, Split
    from iresnet.evaluation import Likelihood
    from iresnet.flows import Flow
    from iresnet.runs import Inputs, Run
    from iresnet.zoo import Model

app = App(
    name="iresnet",
    help="Train, evaluate, sample, invert and certify invertible residual networks.\n\n"
    "Start with: iresnet train digits-density --out runs/digits",
    help_epilogue="Exit status: 0 done, 1 a check failed or a process was lost, 2 bad input, 130 interrupted.",
)
RunFolder = Annotated[Path, Parameter(name="RUN", help="Run folder, made by iresnet train.")]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder of data sets; then $IRESNET_DATA, the user cache and the hub are tried.",
        validator=validators.Path(exists=True, file_okay=False),
    ),
]
Count = Annotated[int, Parameter(name=["--n", "-n"], validator=validators.Number(gte=1))]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**63))]
Processes = Annotated[
    int | None,
    Parameter(
        help="Work in so many processes of this machine, one for each GPU where there are any; torchrun starts them on "
        "several machines.",
        validator=validators.Number(gte=1),
    ),
]
Gpus = Annotated[
    int | None, Parameter(help="The same, and so many GPUs must be there.", validator=validators.Number(gte=1))
]


class _Several(Exception):  # noqa: N818
    """Asks for the command line to be run in several processes."""

    def __init__(self, n: int):
        self.n = n


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(tokens: Sequence[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted.

    Args:
        tokens: the command line after the program's name.
    """
    warnings.showwarning, threading.excepthook = show_warning, show_thread_failure
    try:
        with _joined():
            return app(tokens, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except _Several as several:
        return launch(tokens, several.n, complain)
    except ProcessLost as error:
        return complain(f"{error}; a run continues from its newest checkpoint with --resume", 1, about="loss")
    except (IResNetError, CycloptsError) as error:
        return complain(str(error), 2)
    except OSError as error:
        return complain(f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}", 2)
    except Interrupted as error:
        return complain(str(error), 130)
    except KeyboardInterrupt:
        return complain("interrupted", 130)


def _joined() -> AbstractContextManager[None]:
    if not started_together():
        return nullcontext()
    from iresnet.processes import joined

    return joined()


# -- commands --------------------------------------------------------------------------------------------------------


@app.command
def recipes() -> None:
    """List the bundled recipes: task, data, expected result and cost."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "task", "data", "expected", "cost"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for name in recipe_names():
        config = load_config(name)
        table.add_row(name, config.task.kind, config.data.name, config.expected, config.cost)
    say(table)


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
        resume: Continue the run in that folder.
        dry_run: Run real steps of the full model on a few examples, print what the run costs here and on GPUs; no more.
        compile: Short for --train.compile true: compile the residual blocks first, for faster steps.
        tracker: Show the run there too, may be repeated: tensorboard (the default, if installed), visdom, wandb,
            mlflow, aim, clearml, comet_ml, dvclive, swanlab, trackio.
        verbose: At every line of metrics, say what each block does.
    """
    recipe, overrides = _source(recipe, overrides, config)
    short = ["--train.compile", "true"] if compile else []
    if tracker is not None:
        names = [token.strip("[]") for token in tracker]  # several options, or the list of a recipe
        short += ["--tracker", f"[{','.join(filter(None, names))}]"]
    settings = load_config(recipe, [*overrides, *short])
    from iresnet import training

    data_dir = data_dir or _data_dir_of(recipe)
    if dry_run:
        say(str(training.dry_run(settings, data_dir=data_dir)))
        return
    _spread(processes, gpus)
    folder = out or Path("runs") / settings.name
    _train(settings, recipe, folder, data_dir, resume=resume, verbose=verbose)


def _source(recipe: str, overrides: tuple[str, ...], config: Path | None) -> tuple[str, tuple[str, ...]]:
    """Where the settings come from, a recipe or a file, and how they are changed."""
    if config is None and (not recipe or recipe.startswith("--")):
        raise RecipeError(f"iresnet train needs a recipe ({', '.join(recipe_names())}) or --config FILE")
    if config is None:
        return recipe, overrides
    if recipe and not recipe.startswith("--"):
        raise RecipeError(f"give a recipe or --config, not both: got '{recipe}' and --config {config}")
    return str(config), (recipe, *overrides) if recipe else overrides


def _data_dir_of(recipe: str) -> Path | None:
    """Where the run that a config.yaml belongs to found its data."""
    from iresnet.runs import Run

    folder = Run(Path(recipe).parent).data_dir if Path(recipe).name == "config.yaml" else None
    return Path(folder) if folder else None


def _train(config: Config, recipe: str, folder: Path, data_dir: Path | None, *, resume: bool, verbose: bool) -> None:
    from iresnet import training
    from iresnet.training.progress import BlockLog, ProgressBar

    callbacks = [ProgressBar(err), *([BlockLog(err)] if verbose else ())]
    try:
        result = training.train(config, folder, data_dir=data_dir, resume=resume, callbacks=callbacks)
    except Interrupted as error:
        raise Interrupted(f"{error}; continue with the same command and --resume") from error
    say(f"trained {recipe}: {result.path}; next: iresnet evaluate {result.path}")


@app.command
def evaluate(
    run: RunFolder,
    *,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    standard_error: float | None = None,
    dequantise_samples: int = 1,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Measure bits/dim or accuracy on a split, with error bars, beside baselines; writes evaluation.json.

    Args:
        run: Run folder.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the order of examples, dequantisation noise and probes.
        standard_error: Of the mean bits/dim, at which to stop before the end of the split.
        dequantise_samples: Noise draws for each example, whose mean density is a tighter bound.
    """
    _spread(processes, gpus)
    from iresnet import evaluation
    from iresnet.classifiers import Classifier, Hybrid

    folder, model, dataset, part = _open(run, data_dir, split)
    n = len(part)
    result: dict[str, Any] = {"split": split, "examples": n}
    common = {"levels": dataset.levels, "seed": seed}
    asked = standard_error is not None or dequantise_samples != 1
    if asked or not isinstance(model, Classifier):  # a classifier of which a density is asked is refused
        options: dict[str, Any] = {"standard_error": standard_error, "dequantise_samples": dequantise_samples}
        with progress("likelihood", n) as advance:
            score = evaluation.likelihood(_flow(model), part, **common, **options, progress=advance)
        result["likelihood"] = asdict(score)
        noise = {"dequantise_samples": dequantise_samples, "seed": seed}
        baselines = _baselines(dataset, part, **noise) if is_main() else {}
        result["baselines"] = {name: asdict(baseline) for name, baseline in baselines.items()}
        _print_likelihoods({"this model": score, **baselines}, split)
        _print_uncertainty(score, n, standard_error)
    if isinstance(model, (Classifier, Hybrid)):
        with progress("classification", n) as advance:
            accuracy = evaluation.classification(model, part, **common, progress=advance)
        result["classification"] = asdict(accuracy)
        say(f"{split} {accuracy}")
    if is_main():
        say(f"wrote {folder.write_json('evaluation.json', result)}")


@app.command
def sample(
    run: RunFolder,
    *,
    n: Count = 64,
    temperature: float = 1.0,
    seed: Seed = 0,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Draw samples: a grid of images, a scatter plot of points, or a table; writes samples/samples.*.

    Args:
        run: Run folder.
        n: How many.
        temperature: Multiplies the latent's standard deviation; below 1 gives more typical samples.
        seed: Of the latents.
    """
    _spread(processes, gpus)
    import torch

    from iresnet import evaluation
    from iresnet.pictures import draw

    folder, model, inputs = _load(run)
    generator = torch.Generator().manual_seed(seed)
    samples = evaluation.sample(_flow(model), n, temperature=temperature, generator=generator)
    if is_main():
        say(f"wrote {draw(samples, inputs, folder.samples / 'samples')}")


@app.command
def reconstruct(
    run: RunFolder,
    *,
    n: Count = 10,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Invert a whole split and report the largest error; draws data above their reconstructions.

    Args:
        run: Run folder.
        n: How many to draw in samples/reconstructions.*.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the dequantisation noise.
    """
    _spread(processes, gpus)
    import torch

    from iresnet import evaluation
    from iresnet.data import dequantise
    from iresnet.pictures import draw

    folder, model, dataset, part = _open(run, data_dir, split)
    _, inputs = folder.read_config()
    bijection = model.bijection
    with progress("inversion", len(part)) as advance:
        result = evaluation.reconstruction(bijection, part, levels=dataset.levels, seed=seed, progress=advance)
    if not is_main():
        return
    x = dequantise(part.x[:n], levels=dataset.levels, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        back = bijection.inverse(bijection(x))
    path = draw(torch.cat([x, back]), inputs, folder.samples / "reconstructions", columns=len(x))
    say(f"{split} {result}")
    say(f"wrote {path} (above: data, below: data -> latent -> data)")


@app.command
def certify(
    run: RunFolder, *, search_steps: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 100
) -> int:
    """Bound the Lipschitz constant of every layer and block; writes certificate.json; exit status 1 if not certified.

    Upper bounds are proved, lower ones are ratios |g(x)-g(y)|/|x-y| that were found; between them lies the truth. Steps
    are those of the fixed-point iteration that are proved to bring an inverse 100000 times closer.

    Args:
        run: Run folder.
        search_steps: Steps of gradient ascent for the largest ratio of each block.
    """
    import hashlib

    from iresnet.certificates import certify as certify_model

    folder, model, _ = _load(run)
    certificate = certify_model(model, search_steps=search_steps)
    sha256 = hashlib.sha256(folder.model_file.read_bytes()).hexdigest()
    stored = folder.read_json("certificate.json")
    if stored and stored.get("model_sha256") != sha256:
        say("the stored certificate was of other weights: it is stale, and replaced")
    path = folder.write_json("certificate.json", {"model_sha256": sha256, **certificate.to_dict()})
    say(str(certificate))
    say(f"wrote {path}")
    return 0 if certificate.certified else 1


# -- shared by the commands ------------------------------------------------------------------------------------------


def _spread(processes: int | None, gpus: int | None) -> None:
    """Have the command run in several processes, unless this one is already one of them."""
    if not started_together() and check_processes(processes, gpus) > 1:
        raise _Several(check_processes(processes, gpus))


def _load(path: Path) -> "tuple[Run, Model, Inputs]":
    from iresnet.runs import Run

    folder = Run.open(path)
    return folder, folder.load_model(), folder.read_config()[1]


def _open(path: Path, data_dir: Path | None, split: str) -> "tuple[Run, Model, Dataset, Split]":
    from iresnet.data import load

    splits = ("train", "validation", "test")
    if split not in splits:
        raise UnknownNameError("split", split, splits)
    folder, model, _ = _load(path)
    config, inputs = folder.read_config()
    options = {"pad_to": config.data.pad_to, "stream": config.data.stream}
    dataset = load(config.data.name, data_dir or folder.data_dir, **options)
    if (dataset.shape, dataset.levels, dataset.class_names) != (inputs.shape, inputs.levels, inputs.class_names):
        raise RunError(f"{path} was trained on other data than {dataset}; give its --data-dir")
    return folder, model, dataset, getattr(dataset, split)


def _flow(model: "Model") -> "Flow":
    from iresnet.classifiers import Classifier, Hybrid

    if isinstance(model, Classifier):
        raise RecipeError("this run is a classifier without a density; train one with --task.nll-weight 1")
    return model.flow if isinstance(model, Hybrid) else model


def _baselines(dataset: "Dataset", part: "Split", **noise: int) -> dict[str, Any]:
    """The densities to beat: those that exist for the data."""
    from iresnet import evaluation
    from iresnet.data import TOYS
    from iresnet.errors import DataError

    found = {}
    if dataset.name in TOYS:
        found["true density"] = evaluation.true_density(dataset, part)
    if dataset.levels is not None:
        found[f"uniform on {dataset.levels} levels"] = evaluation.uniform_baseline(dataset, part)
    try:
        found["full-covariance Gaussian"] = evaluation.gaussian_baseline(dataset, part, **noise)
    except DataError as error:
        err.print(f"iresnet: {error}")
    return found


def _print_likelihoods(scores: dict[str, Any], split: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{split} likelihood", no_wrap=True)
    for heading in ("bits/dim", "95 % interval", "nats", "log-determinant"):
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        bits = score.bits_per_dim
        interval = f"{bits.mean - bits.half_width:.4f} to {bits.mean + bits.half_width:.4f}"
        table.add_row(name, f"{bits.mean:.4f}", interval, f"{score.nats.mean:.2f}", score.estimator)
    say(table)


def _print_uncertainty(score: "Likelihood", n: int, target: float | None) -> None:
    say(str(score.uncertainty))
    if score.dequantise_samples > 1:
        say(f"importance-weighted over {score.dequantise_samples} dequantisation draws")
    if target is not None:
        reached = score.bits_per_dim.standard_error
        say(f"standard error {reached:.2g} after {score.n} of {n} examples, {target:.2g} was asked for")


def _train_help() -> str:
    lines = [
        f"--{name.replace('_', '-')}  {doc} (default: {default!r})" for name, default, doc in options() if "." in name
    ]
    sections = "\n\n".join(lines)
    return (
        "Train a model into a run folder.\n\n"
        "Any option of the recipe can be changed: iresnet train digits-density --train.epochs 3 --model.blocks [2,2] "
        "--optim.lr=1e-3\n\n"
        "--model.name and --model.OPTION  architecture and its options: blocks, strides, hidden, coeff, activation, "
        "logdet.name, logdet.n-steps, solver.name, solver.atol, ...\n\n"
        f"{sections}"
    )


app.command(train, help=_train_help())
