"""Trackers: programs beside the training that show it, by name."""

__all__ = ["TRACKERS", "Kind", "check_trackers", "chosen_trackers"]

import importlib.util
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from accelerate import tracking
from PIL import Image

from iresnet.config import Config, leaves, to_yaml
from iresnet.errors import RecipeError, UnknownNameError
from iresnet.runs import Run
from iresnet.training.visdom import VisdomTracker


def _store_settings(tracker: Any, config: Config) -> None:
    plain = {key: str(value) if isinstance(value, list) else value for key, value in leaves(asdict(config))}
    tracker.store_init_configuration(plain)


def _store_text(tracker: Any, config: Config) -> None:
    """As text, where accelerate would start a second run in a folder of its own for the settings."""
    tracker.log({"config": textwrap.indent(to_yaml(config), "    ")}, step=0)


@dataclass(frozen=True)
class Kind:
    """How to make a tracker.

    Attributes:
        module: the module that has to be importable.
        install: what to tell ``pip install`` when it is not.
        make: from the run folder, the configuration, and the step that a resumed run continues after.
        show: hands pictures by name, at a step, to the tracker; None when it takes none.
        describe: hands the configuration to the tracker.
    """

    module: str
    install: str
    make: Callable[[Run, Config, int], tracking.GeneralTracker]
    show: Callable[[Any, Mapping[str, Image.Image], int], None] | None = None
    describe: Callable[[Any, Config], None] = _store_settings


def _tensorboard(run: Run, config: Config, step: int) -> tracking.GeneralTracker:  # noqa: ARG001
    """Event files in ``tensorboard/``; what was logged after the step is done again, and hidden."""
    return tracking.TensorBoardTracker("tensorboard", run.path, purge_step=step + 1 if step else None)


def _visdom(run: Run, config: Config, step: int) -> tracking.GeneralTracker:  # noqa: ARG001
    where = config.visdom
    return VisdomTracker(where.server, where.port, where.env or run.path.absolute().name, run.metrics_file)


def _of_accelerate(name: str, /, **options: Callable[[Run], Any]) -> Callable[[Run, Config, int], Any]:
    """A tracker of accelerate for the project ``iresnet``, with options that depend on the run folder."""

    def make(run: Run, config: Config, step: int) -> Any:  # noqa: ARG001
        return tracking.LOGGER_TYPE_TO_CLASS[name]("iresnet", **{key: of(run) for key, of in options.items()})

    return make


def _run_name(run: Run) -> str:
    return run.path.absolute().name


def _show_arrays(tracker: Any, pictures: Mapping[str, Image.Image], step: int) -> None:
    arrays = {name: np.asarray(picture)[None] for name, picture in pictures.items()}
    tracker.log_images(arrays, step=step, dataformats="NHWC")


def _show_lists(tracker: Any, pictures: Mapping[str, Image.Image], step: int) -> None:
    tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)


TRACKERS: dict[str, Kind] = {
    "aim": Kind("aim", "aim", _of_accelerate("aim", logging_dir=lambda run: run.path)),
    "clearml": Kind("clearml", "clearml", _of_accelerate("clearml", task_name=_run_name)),
    "comet_ml": Kind("comet_ml", "comet-ml", _of_accelerate("comet_ml")),
    "dvclive": Kind("dvclive", "dvclive", _of_accelerate("dvclive", dir=lambda run: str(run.path / "dvclive"))),
    "mlflow": Kind("mlflow", "mlflow", _of_accelerate("mlflow", run_name=_run_name)),
    "swanlab": Kind("swanlab", "swanlab", _of_accelerate("swanlab", experiment_name=_run_name), _show_lists),
    "tensorboard": Kind("tensorboard", "iresnet[tensorboard]", _tensorboard, _show_arrays, _store_text),
    "trackio": Kind("trackio", "trackio", _of_accelerate("trackio", name=_run_name)),
    "visdom": Kind("visdom", "iresnet[trackers]", _visdom, VisdomTracker.log_images),
    "wandb": Kind("wandb", "wandb", _of_accelerate("wandb", name=_run_name), _show_lists),
}
"""Trackers by name: ``visdom`` is ours, the others are accelerate's."""


def chosen_trackers(config: Config) -> tuple[str, ...]:
    """Names of the trackers of a configuration: ``tensorboard`` where none are named and it is installed.

    Example:
        >>> chosen_trackers(Config(tracker=("visdom", "tensorboard", "visdom")))
        ('visdom', 'tensorboard')
    """
    if config.tracker is None:
        return ("tensorboard",) if _installed("tensorboard") else ()
    return tuple(dict.fromkeys(config.tracker))


def check_trackers(config: Config) -> None:
    """Refuse trackers that do not exist or are not installed.

    Raises:
        UnknownNameError: for an unknown name.
        RecipeError: for a missing package, with what installs it, and a port that is none.

    Example:
        >>> check_trackers(Config(tracker=("tensorbord",)))
        Traceback (most recent call last):
        ...
        iresnet.errors.UnknownNameError: unknown tracker 'tensorbord'; did you mean 'tensorboard'? (valid: aim, ...)
    """
    for name in chosen_trackers(config):
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
        if not _installed(name):
            raise RecipeError(
                f"the tracker '{name}' needs the package {TRACKERS[name].module}, which is not installed: pip install "
                f"'{TRACKERS[name].install}'"
            )
    if not 0 < config.visdom.port < 2**16:
        raise RecipeError(f"--visdom.port must be between 1 and {2**16 - 1}, got {config.visdom.port}")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(TRACKERS[name].module) is not None
