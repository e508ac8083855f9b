"""Training processes that can be interrupted at a given step, and comparison of the runs that they leave."""

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
"""Run that uses everything a checkpoint holds: Muon, averaged weights, batch norm, labels, noise and probes."""

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
"""Program that kills itself at the n-th call that flushes or moves a file: mostly in the middle of a checkpoint."""


@dataclass(frozen=True)
class Outcome:
    """Exit status of a process (the negative number of a signal) and the last line of its stderr."""

    status: int
    message: str


def train(
    out: Path, *options: str, recipe: Sequence[str] = RECIPE, resume: bool = False, die_at: int | None = None
) -> subprocess.Popen:
    """Start ``iresnet train``; with ``die_at``, let it kill itself at that call that flushes or moves a file."""
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
    """Wait until a process ends."""
    _, err = process.communicate(timeout=timeout)
    return Outcome(process.returncode, (err.splitlines() or [""])[-1])


def done(run: Path) -> int:
    """Return the last step in the metrics of a run, whose last line may be incomplete."""
    step = 0
    with suppress(OSError):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            with suppress(ValueError):
                step = json.loads(line)["step"]
    return step


def saved(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    folders = checkpoint_folders(Run(run))
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def differences(run: Path, other: Path) -> list[str]:
    """List files that differ between two runs: metrics, model, and every file of the last checkpoint."""
    mine, others = ({path.name: path for path in checkpoint_folders(Run(r))[-1].iterdir()} for r in (run, other))
    pairs = {name: (mine.get(name), others.get(name)) for name in {**mine, **others}}
    for name in ("metrics.jsonl", "model.safetensors"):
        pairs[name if name not in pairs else f"sealed {name}"] = run / name, other / name
    return [name for name, (a, b) in pairs.items() if not (a and b and a.read_bytes() == b.read_bytes())]


@dataclass
class Trial:
    """Run that is interrupted repeatedly and resumed each time.

    Attributes:
        out: the run folder.
        options: changes of the recipe.
        recipe: the command line after ``iresnet train``.
        timeout: seconds that a process may take.
        redone: for each interruption, the steps that had to be repeated.
        outcomes: of the interrupted processes.
        ended: number of processes that ended as intended.
        completed: whether the run reached its last step.
        differences: files that differ from those of an uninterrupted run.
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
        """Start the run, or resume it."""
        resume = (self.out / "config.yaml").exists()
        return train(self.out, *self.options, recipe=self.recipe, resume=resume, die_at=die_at)

    def interrupt(self, act: Callable[[subprocess.Popen], object], die_at: int | None = None) -> Outcome:
        """Start or resume, let ``act`` end the process, and record the lost steps."""
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
        """Resume and wait for the last step."""
        return end(self.start(), self.timeout)


def at_step(run: Path, step: int, number: int, delay: float = 0.0) -> Callable[[subprocess.Popen], None]:
    """Return an action that sends a signal ``delay`` seconds after the metrics reach a step."""

    def act(process: subprocess.Popen) -> None:
        while done(run) < step and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)

    return act
