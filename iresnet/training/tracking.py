"""Tells trackers of a run, from a thread of their own, so that none can stop or delay the training."""

__all__ = ["Tracking", "make_trackings"]

import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.tracking import GeneralTracker

from iresnet.certificates import Certificate
from iresnet.config import Config
from iresnet.errors import TrackerWarning
from iresnet.runs import Run
from iresnet.training.blocks import BlockState
from iresnet.training.callbacks import BadStep, Callback, Event, Snapshot, Started, Stepped, Stopped
from iresnet.training.trackers import TRACKERS, Kind, chosen_trackers

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
