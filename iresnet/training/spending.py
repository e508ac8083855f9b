"""Notes what a training took, beside the metrics, which do not depend on the clock."""

__all__ = ["Spending"]

import time
from datetime import UTC, datetime

from iresnet.processes import world_size
from iresnet.runs import Run
from iresnet.training.callbacks import Callback, Event, Snapshot, Started, Stepped, Stopped
from iresnet.zoo import Model

PERIOD = 60.0
"""Seconds between notes, besides those at snapshots."""


class Spending(Callback):
    """Keeps ``cost.json``: parameters, and for every process that trained the run its steps and seconds.

    A process that was killed has noted all but its last minute. One that does no step notes nothing. Of several
    processes the first notes its own CPU time, and how many they were.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run):
        self.run = run
        noted = run.read_json("cost.json")
        self.parameters: int | None = noted.get("parameters")
        sessions = noted.get("sessions")
        self.before = sessions if isinstance(sessions, list) else []

    def __call__(self, event: Event) -> None:
        """Count steps; write at snapshots, every minute and at the end."""
        match event:
            case Started(step):
                self.first = self.step = self.written = step
                self.started = datetime.now(UTC).isoformat(timespec="seconds")
                self.begun = self.noted = time.monotonic(), time.process_time()
            case Stepped(step):
                self.step = step
                if time.monotonic() - self.noted[0] > PERIOD:
                    self._write()
            case Snapshot(_, _, model):
                self.parameters = _count(model)
                self._write()
            case Stopped() if self.step > self.written:
                self._write()

    def _write(self) -> None:
        self.written, self.noted = self.step, (time.monotonic(), time.process_time())
        wall, cpu = (round(now - then, 1) for now, then in zip(self.noted, self.begun, strict=True))
        session = {
            "started": self.started,
            "from_step": self.first,
            "to_step": self.step,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "processes": world_size(),
        }
        self.run.write_json("cost.json", {"parameters": self.parameters, "sessions": [*self.before, session]})


def _count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
