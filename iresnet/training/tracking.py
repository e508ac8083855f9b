"""Trackers: programs beside the training that show it, told from threads of their own."""

__all__ = [
    "Kind",
    "TRACKERS",
    "Tracking",
    "check_trackers",
    "chosen_trackers",
    "make_trackings",
]

import importlib.util
import math
import queue
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from PIL import Image

from iresnet.certificates import Certificate
from iresnet.config import Config, leaves, to_yaml
from iresnet.errors import RecipeError, TrackerWarning
from iresnet.runs import Run
from iresnet.training.callbacks import BadStep, BlockState, Callback, Event, Snapshot, Started, Stepped, Stopped
from iresnet.training.visdom import VisdomTracker

# -- by name -----------------------------------------------------------------------------------------------------------


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
    """Refuse trackers that are not installed.

    Raises:
        RecipeError: for a missing package, with what installs it.
    """
    for name in chosen_trackers(config):
        if not _installed(name):
            raise RecipeError(
                f"the tracker '{name}' needs the package {TRACKERS[name].module}, which is not installed: pip install "
                f"'{TRACKERS[name].install}'"
            )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(TRACKERS[name].module) is not None


# -- telling them ------------------------------------------------------------------------------------------------------


Job = Callable[[Any], None]

MOST_JOBS = 1000
"""Messages that wait for a tracker, at most."""

PAUSES = (60.0, 3600.0)
"""Seconds for which a tracker is left alone after its first failure, and at most."""

PATIENCE = 30.0
"""Seconds to wait for a tracker at the end."""


def make_trackings(config: Config, run: Run) -> "list[Tracking]":
    """The callbacks that tell the trackers of a configuration."""
    return [Tracking(name, TRACKERS[name], config, run) for name in chosen_trackers(config)]


class Tracking(Callback):
    """Tells a tracker of metrics, blocks, certificates and pictures.

    The tracker is connected when there is something to tell. When it fails it is warned of once, left alone for a
    while that doubles with every failure, then connected again. What it then has missed is in ``metrics.jsonl``.

    Args:
        name: of the tracker, for the warning.
        kind: how to make it, and to talk to it.
        config: of the run.
        run: the run folder.

    Warns:
        TrackerWarning: when the tracker fails or does not answer.
    """

    def __init__(self, name: str, kind: Kind, config: Config, run: Run):
        self.name = name
        self.kind = kind
        self.config, self.run = config, run
        self.clock = _Clock()
        self.worker = _Worker()
        self.warned = False

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        match event:
            case Started():
                step = event.step
                self.clock = _Clock(event.batch_size)
                self.worker.start(lambda: self.kind.make(self.run, self.config, step))
                self.described = event.step > 0
            case Stepped(step, _, metrics, blocks):
                self.clock.steps += 1
                if metrics is not None:
                    shown = {**metrics, "examples_per_second": self.clock.restart()}
                    self._log(step, {**_under("train", shown), **_of_blocks(blocks)})
            case Snapshot(step, _, _, certificate, metrics, drawing):
                shown = {**metrics, **drawing.metrics}
                self._log(step, {**_under("validation", shown), **_bounds(certificate)})
                if (show := self.kind.show) and (pictures := drawing.pictures()):
                    self.worker.put(lambda tracker: show(tracker, pictures, step))
                self.clock.restart()  # validation is no training
            case BadStep(step, _, _, total):
                self._log(step, _under("train", {"skipped_steps": total}))
            case Stopped():
                self.worker.finish()
        if self.worker.trouble and not self.warned:
            self.warned = True
            warnings.warn(f"the tracker {self.name} {self.worker.trouble}", TrackerWarning, stacklevel=2)

    def _log(self, step: int, values: dict[str, float]) -> None:
        if not self.described:
            self.described = True
            self.worker.put(lambda tracker: self.kind.describe(tracker, self.config))
        self.worker.put(lambda tracker: tracker.log(values, step=step))


def _under(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _of_blocks(blocks: Sequence[BlockState]) -> dict[str, float]:
    values = {}
    for state in blocks:
        values |= _under("sigma", state.sigmas)
        values |= {f"grad_norm/{state.name}": state.grad_norm, f"logdet/{state.name}": state.logdet}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _bounds(certificate: Certificate) -> dict[str, float]:
    return {f"bound/{bound.name}": bound.upper for bound in (*certificate.layers, *certificate.blocks)}


class _Clock:
    """Counts examples, and the seconds that they take."""

    def __init__(self, batch_size: int = 0):
        self.batch_size = batch_size
        self.steps, self.since = 0, time.monotonic()

    def restart(self) -> float:
        """Examples a second since the last restart."""
        now = time.monotonic()
        rate = self.steps * self.batch_size / max(now - self.since, 1e-9)
        self.steps, self.since = 0, now
        return rate


class _Worker:
    """A thread that does jobs with a tracker, one after the other, and connects it before the first."""

    def __init__(self):
        self.pause, self.longest_pause = PAUSES
        self.not_before = 0.0
        self.jobs: queue.Queue[Job | None] = queue.Queue(maxsize=MOST_JOBS)
        self.tracker: GeneralTracker | None = None
        self.connected = False
        self.trouble: str | None = None  # the first

    def start(self, make: Callable[[], GeneralTracker]) -> None:
        """Begin; ``make`` makes the tracker, in the thread."""
        self.thread = threading.Thread(target=self._work, args=(make,), name="tracker", daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        """Add a job; drop it when the tracker is far behind."""
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            self._report(f"does not keep up: {MOST_JOBS} messages wait, others are dropped")

    def finish(self) -> None:
        """Let the tracker finish, within :data:`PATIENCE`."""
        try:
            self.jobs.put(None, timeout=PATIENCE)
        except queue.Full:
            return  # reported when the first job was dropped
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            self._report(f"did not finish within {PATIENCE:g} s; the training ends without it")

    def _work(self, make: Callable[[], GeneralTracker]) -> None:
        while (job := self.jobs.get()) is not None:
            if time.monotonic() >= self.not_before:
                self._attempt(job, make)
        if self.connected:
            self._attempt(lambda tracker: tracker.finish(), make)

    def _attempt(self, job: Job, make: Callable[[], GeneralTracker]) -> None:
        try:
            self.tracker = self.tracker or make()
            if not self.connected:
                self.tracker.start()
                self.connected = True
            job(self.tracker)
        except Exception as error:
            self.connected = False
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._report(f"fails ({reason}); the training goes on, it is tried again after {self.pause:g} s")
            self.not_before = time.monotonic() + self.pause
            self.pause = min(2 * self.pause, self.longest_pause)

    def _report(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble
