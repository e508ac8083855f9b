"""Trackers: TensorBoard, visdom and others, each told of a training by a thread of its own."""

__all__ = [
    "TRACKERS",
    "TrackerSpec",
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

from iresnet.config import Config, leaves, to_yaml
from iresnet.errors import RecipeError, TrackerWarning
from iresnet.runs import Run
from iresnet.training.callbacks import BadStep, BlockState, Callback, Event, Snapshot, Started, Stepped, Stopped
from iresnet.training.visdom import VisdomTracker

# -- by name -----------------------------------------------------------------------------------------------------------


def _log_settings(tracker: Any, config: Config) -> None:
    plain = {key: str(value) if isinstance(value, list) else value for key, value in leaves(asdict(config))}
    tracker.store_init_configuration(plain)


def _log_text(tracker: Any, config: Config) -> None:
    """Log the settings as text, since accelerate's TensorBoard would put them into a second run folder."""
    tracker.log({"config": textwrap.indent(to_yaml(config), "    ")}, step=0)


@dataclass(frozen=True)
class TrackerSpec:
    """Specification of a tracker.

    Attributes:
        module: the module that has to be importable.
        install: argument of ``pip install`` that provides it.
        make: makes the tracker from the run folder, its name, the configuration, and the step that a resumed run
            continues after.
        log_pictures: logs pictures by name, at a step; None when the tracker takes none.
        log_config: logs the configuration.
    """

    module: str
    install: str
    make: Callable[[Run, str, Config, int], tracking.GeneralTracker]
    log_pictures: Callable[[Any, Mapping[str, Image.Image], int], None] | None = None
    log_config: Callable[[Any, Config], None] = _log_settings


def _accelerate(tracker: str, **options: Any) -> tracking.GeneralTracker:
    return tracking.LOGGER_TYPE_TO_CLASS[tracker]("iresnet", **options)


def _log_lists(tracker: Any, pictures: Mapping[str, Image.Image], step: int) -> None:
    tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)


def _log_arrays(tracker: Any, pictures: Mapping[str, Image.Image], step: int) -> None:
    arrays = {name: np.asarray(picture)[None] for name, picture in pictures.items()}
    tracker.log_images(arrays, step=step, dataformats="NHWC")


TRACKERS: dict[str, TrackerSpec] = {
    "aim": TrackerSpec("aim", "aim", lambda run, *_: _accelerate("aim", logging_dir=run.path)),
    "clearml": TrackerSpec("clearml", "clearml", lambda run, name, *_: _accelerate("clearml", task_name=name)),
    "comet_ml": TrackerSpec("comet_ml", "comet-ml", lambda *_: _accelerate("comet_ml")),
    "dvclive": TrackerSpec("dvclive", "dvclive", lambda run, *_: _accelerate("dvclive", dir=str(run.path / "dvclive"))),
    "mlflow": TrackerSpec("mlflow", "mlflow", lambda run, name, *_: _accelerate("mlflow", run_name=name)),
    "swanlab": TrackerSpec(
        "swanlab", "swanlab", lambda run, name, *_: _accelerate("swanlab", experiment_name=name), _log_lists
    ),
    "tensorboard": TrackerSpec(
        "tensorboard",
        "iresnet[tensorboard]",
        # Points after the step of a resumed run are logged again; the old ones are hidden.
        lambda run, name, config, step: tracking.TensorBoardTracker(
            "tensorboard", run.path, purge_step=step + 1 if step else None
        ),
        _log_arrays,
        _log_text,
    ),
    "trackio": TrackerSpec("trackio", "trackio", lambda run, name, *_: _accelerate("trackio", name=name)),
    "visdom": TrackerSpec(
        "visdom",
        "iresnet[trackers]",
        lambda run, name, config, step: VisdomTracker(
            config.visdom.server, config.visdom.port, config.visdom.env or name, run.metrics_file
        ),
        VisdomTracker.log_images,
    ),
    "wandb": TrackerSpec("wandb", "wandb", lambda run, name, *_: _accelerate("wandb", name=name), _log_lists),
}
"""Trackers by name: ``visdom`` is :class:`~iresnet.training.visdom.VisdomTracker`, the others are accelerate's."""


def chosen_trackers(config: Config) -> tuple[str, ...]:
    """Return the names of the trackers of a configuration: ``tensorboard`` if none are named and it is installed.

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


# -- callbacks ---------------------------------------------------------------------------------------------------------


Job = Callable[[Any], None]

MOST_JOBS = 1000
"""Most messages that wait for a tracker."""

PAUSES = (60.0, 3600.0)
"""Seconds until a tracker that failed is tried again, after its first failure and at most."""

PATIENCE = 30.0
"""Seconds to wait for a tracker at the end of the training."""


def make_trackings(config: Config, run: Run) -> "list[Tracking]":
    """Make the callbacks for the trackers of a configuration."""
    return [Tracking(name, TRACKERS[name], config, run) for name in chosen_trackers(config)]


class Tracking(Callback):
    """Callback that logs metrics, states of blocks, certificates and pictures with a tracker.

    The tracker is connected when there is something to log. When it fails, a warning is given once, and it is tried
    again after a pause that doubles with every failure. What it missed is in ``metrics.jsonl``.

    Args:
        name: of the tracker, for the warning.
        spec: of the tracker.
        config: of the run.
        run: the run folder.

    Warns:
        TrackerWarning: when the tracker fails or does not answer.
    """

    def __init__(self, name: str, spec: TrackerSpec, config: Config, run: Run):
        self.name, self.spec = name, spec
        self.config, self.run = config, run
        self.clock = _Clock()
        self.worker = _Worker()
        self.warned = False

    def __call__(self, event: Event) -> None:
        """Hand an event to the thread of the tracker."""
        match event:
            case Started():
                step, name = event.step, self.run.path.absolute().name
                self.clock = _Clock(event.batch_size)
                self.worker.start(lambda: self.spec.make(self.run, name, self.config, step))
                self.config_logged = event.step > 0
            case Stepped(step, _, metrics, blocks):
                self.clock.steps += 1
                if metrics is not None:
                    shown = {**metrics, "examples_per_second": self.clock.restart()}
                    self._log(step, {**_prefixed("train", shown), **_block_values(blocks)})
            case Snapshot(step, _, _, certificate, metrics, drawing):
                shown = {**metrics, **drawing.metrics}
                bounds = {bound.name: bound.upper for bound in (*certificate.layers, *certificate.blocks)}
                self._log(step, {**_prefixed("validation", shown), **_prefixed("bound", bounds)})
                if (log_pictures := self.spec.log_pictures) and (pictures := drawing.pictures()):
                    self.worker.put(lambda tracker: log_pictures(tracker, pictures, step))
                self.clock.restart()  # validation does not count as training
            case BadStep(step, _, _, total):
                self._log(step, {"train/skipped_steps": total})
            case Stopped():
                self.worker.finish()
        if self.worker.trouble and not self.warned:
            self.warned = True
            warnings.warn(f"the tracker {self.name} {self.worker.trouble}", TrackerWarning, stacklevel=2)

    def _log(self, step: int, values: dict[str, float]) -> None:
        if not self.config_logged:
            self.config_logged = True
            self.worker.put(lambda tracker: self.spec.log_config(tracker, self.config))
        self.worker.put(lambda tracker: tracker.log(values, step=step))


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _block_values(blocks: Sequence[BlockState]) -> dict[str, float]:
    values = {}
    for state in blocks:
        values |= _prefixed("sigma", state.sigmas)
        values |= {f"grad_norm/{state.name}": state.grad_norm, f"logdet/{state.name}": state.logdet}
    return {name: value for name, value in values.items() if not math.isnan(value)}


class _Clock:
    """Clock for the throughput: examples and the seconds that they take."""

    def __init__(self, batch_size: int = 0):
        self.batch_size = batch_size
        self.steps, self.since = 0, time.monotonic()

    def restart(self) -> float:
        """Return the examples a second since the last restart."""
        now = time.monotonic()
        rate = self.steps * self.batch_size / max(now - self.since, 1e-9)
        self.steps, self.since = 0, now
        return rate


class _Worker:
    """Thread that does jobs with a tracker, one after the other, and connects it before the first."""

    def __init__(self):
        self.pause, self.longest_pause = PAUSES
        self.not_before = 0.0
        self.jobs: queue.Queue[Job | None] = queue.Queue(maxsize=MOST_JOBS)
        self.tracker: GeneralTracker | None = None
        self.connected = False
        self.trouble: str | None = None  # the first

    def start(self, make: Callable[[], GeneralTracker]) -> None:
        """Start the thread, in which ``make`` makes the tracker."""
        self.thread = threading.Thread(target=self._work, args=(make,), name="tracker", daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        """Add a job, or drop it when the tracker is far behind."""
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            self._report(f"does not keep up: {MOST_JOBS} messages wait, others are dropped")

    def finish(self) -> None:
        """Let the tracker finish within :data:`PATIENCE`."""
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
