"""Interrupt training runs in every way at random steps, resume them, and compare them with an uninterrupted run.

Each run is interrupted several times and resumed in a new process each time. Its metrics, sealed model and last
checkpoint are compared byte for byte. Writes interruptions.json beside this script and the table of docs/faults.md.

    python tests/faults/interruptions.py --runs 2 --ends 10 --minutes 20
"""

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from killing import Trial, at_step, differences, end, saved, train

from iresnet.runs import Run
from iresnet.training.checkpoints import checkpoint_folders

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from pages import insert_all, save, table

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
OPTIONS = ("--train.epochs", "6")
N_STEPS = 120
N_WRITES = 200
"""Lower bound of the calls with which such a run flushes or moves a file."""

End = Callable[[Trial, random.Random], None]


def _signaled(trial: Trial, chance: random.Random, *, number: int) -> None:
    """Send a signal after a random step, delayed by up to half a step and a checkpoint."""
    step = min(saved(trial.out) + chance.randint(0, N_STEPS // 6), N_STEPS - 1)
    trial.interrupt(at_step(trial.out, step, number, chance.uniform(0, 0.05)))


def _killed_while_writing(trial: Trial, chance: random.Random) -> None:
    trial.interrupt(lambda process: None, die_at=chance.randint(1, N_WRITES // 5))


def _damaged(trial: Trial, chance: random.Random) -> None:
    """Stop the run, then flip a bit in a file of its newest checkpoint."""
    step = min(saved(trial.out) + chance.randint(8, N_STEPS // 6), N_STEPS - 1)
    trial.interrupt(at_step(trial.out, step, signal.SIGTERM))
    folders = checkpoint_folders(Run(trial.out))
    if len(folders) > 1:
        file = chance.choice(sorted(folders[-1].iterdir()))
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        trial.redone[-1] = int(folders[-1].name[5:]) - int(folders[-2].name[5:])


def _filled(trial: Trial, chance: random.Random) -> None:
    """Fill the disk after a random step, and make room again before the run is resumed."""
    ballast = trial.out.parent / "ballast"
    step = min(saved(trial.out) + chance.randint(1, N_STEPS // 6), N_STEPS - 1)

    def fill(process: subprocess.Popen) -> None:
        at_step(trial.out, step, 0)(process)
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while process.poll() is None:
                file.write(bytes(4096))
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            file.write(bytes(1))

    trial.interrupt(fill)
    ballast.unlink(missing_ok=True)


KINDS: dict[str, tuple[End, set[int]]] = {
    "kill -9": (partial(_signaled, number=signal.SIGKILL), {-signal.SIGKILL}),
    "kill -9 while a file is written": (_killed_while_writing, {-signal.SIGKILL}),
    "SIGTERM": (partial(_signaled, number=signal.SIGTERM), {130, -signal.SIGTERM}),
    "Ctrl-C": (partial(_signaled, number=signal.SIGINT), {130, -signal.SIGINT}),
    "full disk": (_filled, {2}),
    "SIGTERM, then a bit of the newest checkpoint turns over": (_damaged, {130, -signal.SIGTERM}),
}
"""Interruptions, each with its exit statuses: 130, or that of the signal before the command line has started."""


@contextmanager
def _folder(kind: str) -> Iterator[Path]:
    """Make a temporary folder for a run; for full disks, mount a disk of 6 MB there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind != "full disk":
            yield folder
            return
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)


def _try(kind: str, seed: int, n_ends: int, reference: Path) -> Trial | None:
    """Interrupt one run so many times or until it is complete; return None where a disk cannot be mounted."""
    end_once, statuses = KINDS[kind]
    chance = random.Random(f"{kind} {seed}")
    try:
        with _folder(kind) as folder:
            trial = Trial(folder / "run", OPTIONS)
            while len(trial.outcomes) < n_ends and saved(trial.out) < N_STEPS - 1:
                end_once(trial, chance)
                if trial.outcomes[-1].status not in statuses:
                    print(f"{kind}: ended by {trial.outcomes[-1]}", flush=True)
                    break
            trial.ended = sum(outcome.status in statuses for outcome in trial.outcomes)
            trial.completed = trial.complete().status == 0
            trial.differences = differences(trial.out, reference) if trial.completed else ["not complete"]
            return trial
    except subprocess.CalledProcessError:
        return None


def measure(runs: int, ends: int, minutes: float) -> dict[str, dict[str, Any]]:
    """Try all kinds of interruption in turn, and start no further run after so many minutes."""
    deadline = time.monotonic() + 60 * minutes
    results: dict[str, dict[str, Any]] = {
        kind: {"runs": 0, "ends": 0, "redone": [], "equal": 0, "differences": []} for kind in KINDS
    }
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference"
        assert end(train(reference, *OPTIONS)).status == 0
        for seed in range(runs):
            for kind, result in results.items():
                trial = _try(kind, seed, ends, reference) if time.monotonic() < deadline else None
                if trial is None:
                    continue
                print(f"{kind}: {trial.ended} ends, redone {trial.redone}, differences {trial.differences}", flush=True)
                result["runs"] += 1
                result["ends"] += trial.ended
                result["redone"] += trial.redone[: trial.ended]
                result["equal"] += not trial.differences
                result["differences"] += trial.differences
    return results


def fault_table(results: dict[str, dict[str, Any]]) -> str:
    """Format a table with a row for each kind of interruption."""
    rows = []
    for kind, r in results.items():
        redone = (f"{statistics.mean(r['redone']):.1f}", str(max(r["redone"]))) if r["redone"] else ("not tried", "")
        rows.append([kind, str(r["ends"]), *redone, f"{r['equal']} of {r['runs']}"])
    header = ["how the process ended", "times", "steps done again, mean", "most", "runs equal to the bit"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="runs of each kind")
    parser.add_argument("--ends", type=int, default=8, help="interruptions of each run")
    parser.add_argument("--minutes", type=float, default=20, help="no run is started after that")
    options = parser.parse_args()
    results = measure(options.runs, options.ends, options.minutes)
    save("interruptions", results, folder=Path(__file__).parent)
    insert_all({"faults": fault_table}, results, page=PAGE)
    if any(r["equal"] < r["runs"] for r in results.values()):
        raise SystemExit("something was lost: see the differences in tests/faults/interruptions.json")


if __name__ == "__main__":
    main()
