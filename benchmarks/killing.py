"""Training in processes of its own, that are ended in all the ways in which processes end; and what is left then."""

__all__ = ["RECIPE", "Outcome", "Trial", "at_step", "differences", "done", "end", "saved", "train"]

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from iresnet.runs import Run
from iresnet.training.checkpoints import checkpoint_folders

RECIPE = ("digits-hybrid", "--model.blocks", "[1,1]", "--model.hidden", "8", "--train.batch-size", "64")
RECIPE += ("--train.log-every", "1", "--train.n-pictures", "4", "--train.ema", "0.99", "--train.checkpoint-every", "7")
RECIPE += ("--train.snapshot-every", "1")
"""A run with everything that a checkpoint holds: Muon, averaged weights, batch norm, labels, noise and probes."""

_DIE_AT = """
import os, signal, sys
left = int(sys.argv.pop(1))
def counted(call):
    def counting(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return counting
for name in ("fsync", "rename", "replace"):
    setattr(os, name, counted(getattr(os, name)))
from iresnet.cli import main
main()
"""
"""The command line, killed at the n-th time that it flushes or moves a file: in the middle of a checkpoint, mostly."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit status, the negative number of a signal, and its last line."""

    status: int
    message: str


def train(
    out: Path, *options: str, recipe: Sequence[str] = RECIPE, resume: bool = False, die_at: int | None = None
) -> subprocess.Popen:
    """Start ``iresnet train``, killed at the ``die_at``-th time that it flushes or moves a file."""
    program = ["-m", "iresnet"] if die_at is None else ["-c", _DIE_AT, str(die_at)]
    command = [*program, "train", *recipe, *options, "--out", str(out), *(["--resume"] if resume else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells let their jobs ignore it
    )


def end(process: subprocess.Popen, timeout: float | None = 300) -> Outcome:
    """Wait for the end of a process."""
    _, err = process.communicate(timeout=timeout)
    return Outcome(process.returncode, (err.splitlines() or [""])[-1])


def done(run: Path) -> int:
    """The last step in the metrics of a run, of which the last line may be half a one."""
    step = 0
    with suppress(OSError):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            with suppress(ValueError):
                step = json.loads(line)["step"]
    return step


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    folders = checkpoint_folders(Run(run))
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def differences(run: Path, other: Path) -> list[str]:
    """Files that are not the same, byte for byte: the metrics, the model, and everything in the last checkpoint."""
    mine, others = ({path.name: path for path in checkpoint_folders(Run(r))[-1].iterdir()} for r in (run, other))
    pairs = {name: (mine.get(name), others.get(name)) for name in {**mine, **others}}
    for name in ("metrics.jsonl", "model.safetensors"):
        pairs[name if name not in pairs else f"sealed {name}"] = run / name, other / name
    return [name for name, (a, b) in pairs.items() if not (a and b and a.read_bytes() == b.read_bytes())]


@dataclass
class Trial:
    """A run that is ended again and again, and continued each time.

    Attributes:
        out: the run folder.
        options: changes of the recipe.
        recipe: the command line after ``iresnet train``.
        timeout: seconds that a process may take to its end.
        redone: for each end, the steps that had to be done again.
        outcomes: how the processes ended.
        ended: how many of them ended as they were meant to.
        completed: whether the run came to its end.
        differences: what is not the same as without the interruptions.
    """

    out: Path
    options: Sequence[str] = ()
    recipe: Sequence[str] = RECIPE
    timeout: float | None = 300
    redone: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ended: int = 0
    completed: bool = False
    differences: list[str] = field(default_factory=list)

    def start(self, die_at: int | None = None) -> subprocess.Popen:
        """Start the run, or continue it if it has begun."""
        resume = (self.out / "config.yaml").exists()
        return train(self.out, *self.options, recipe=self.recipe, resume=resume, die_at=die_at)

    def interrupt(self, act: Callable[[subprocess.Popen], object], die_at: int | None = None) -> Outcome:
        """Start or continue, let ``act`` end the process, and note what was lost."""
        process = self.start(die_at)
        try:
            act(process)
            outcome = end(process, self.timeout)
        finally:
            process.kill()
        self.outcomes.append(outcome)
        self.redone.append(max(0, done(self.out) - saved(self.out)))
        return outcome

    def complete(self) -> Outcome:
        """Continue to the end."""
        return end(self.start(), self.timeout)


def at_step(run: Path, step: int, number: int, delay: float = 0.0) -> Callable[[subprocess.Popen], None]:
    """Send a signal when so many steps are in the metrics, and a while later."""

    def act(process: subprocess.Popen) -> None:
        while done(run) < step and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)

    return act
