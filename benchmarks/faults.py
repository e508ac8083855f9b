"""End training processes in every way in which they end, at random moments, and see whether anything was lost.

Each run is ended several times, continued each time in a new process, and compared byte for byte with a run that
nothing interrupted: metrics, sealed model, and everything in the last checkpoint. Writes results/faults.json and the
table of docs/faults.md.

    python benchmarks/faults.py --runs 2 --ends 10 --minutes 20
"""

import argparse
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from killing import Trial, at_step, differences, end, saved, train
from report import insert_all, save, table

from iresnet.runs import Run
from iresnet.training.checkpoints import checkpoint_folders

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
OPTIONS = ("--train.epochs", "6")
N_STEPS = 120
N_WRITES = 200
"""How often such a run flushes or moves a file, at least."""

End = Callable[[Trial, random.Random], None]


def _signaled(number: int) -> End:
    """After a random step, and a while of up to half a step and a checkpoint."""

    def end_once(trial: Trial, chance: random.Random) -> None:
        step = min(saved(trial.out) + chance.randint(0, N_STEPS // 6), N_STEPS - 1)
        trial.interrupt(at_step(trial.out, step, number, chance.uniform(0, 0.05)))

    return end_once


def _killed_while_writing(trial: Trial, chance: random.Random) -> None:
    trial.interrupt(lambda process: None, die_at=chance.randint(1, N_WRITES // 5))


def _damaged(trial: Trial, chance: random.Random) -> None:
    """Stopped, and then a bit of a file of the newest checkpoint turns over."""
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
    """The disk is full after a random step, and has room again before the run continues."""
    ballast = trial.out.parent / "ballast"
    step = min(saved(trial.out) + chance.randint(1, N_STEPS // 6), N_STEPS - 1)
    trial.interrupt(lambda process: _fill(trial, ballast, step, process))
    ballast.unlink(missing_ok=True)


def _fill(trial: Trial, ballast: Path, step: int, process: subprocess.Popen) -> None:
    at_step(trial.out, step, 0)(process)
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while process.poll() is None:
            file.write(bytes(4096))
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        file.write(bytes(1))


KINDS: dict[str, tuple[End, set[int]]] = {
    "kill -9": (_signaled(signal.SIGKILL), {-signal.SIGKILL}),
    "kill -9 while a file is written": (_killed_while_writing, {-signal.SIGKILL}),
    "SIGTERM": (_signaled(signal.SIGTERM), {130, -signal.SIGTERM}),
    "Ctrl-C": (_signaled(signal.SIGINT), {130, -signal.SIGINT}),
    "full disk": (_filled, {2}),
    "SIGTERM, then a bit of the newest checkpoint turns over": (_damaged, {130, -signal.SIGTERM}),
}
"""Ways to end, and the exit statuses that belong to each: 130, or that of the signal before the command line starts."""


@contextmanager
def _place(kind: str) -> Iterator[Path]:
    """A folder for a run; for full disks, a small disk of its own."""
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


def _try(kind: str, seed: int, n_ends: int, whole: Path) -> Trial | None:
    """End one run so many times, or until it is complete; none when it cannot be tried here."""
    end_once, statuses = KINDS[kind]
    chance = random.Random(f"{kind} {seed}")
    try:
        with _place(kind) as folder:
            trial = Trial(folder / "run", OPTIONS)
            while len(trial.outcomes) < n_ends and saved(trial.out) < N_STEPS - 1:
                end_once(trial, chance)
                if trial.outcomes[-1].status not in statuses:
                    print(f"{kind}: ended by {trial.outcomes[-1]}", flush=True)
                    break
            trial.ended = sum(outcome.status in statuses for outcome in trial.outcomes)
            trial.completed = trial.complete().status == 0
            trial.differences = differences(trial.out, whole) if trial.completed else ["not complete"]
            return trial
    except subprocess.CalledProcessError:
        return None


def measure(runs: int, ends: int, minutes: float) -> dict[str, dict[str, Any]]:
    """Try all kinds in turn, until all is done or the time is over."""
    deadline = time.monotonic() + 60 * minutes
    results: dict[str, dict[str, Any]] = {
        kind: {"runs": 0, "ends": 0, "redone": [], "equal": 0, "differences": []} for kind in KINDS
    }
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        assert end(train(whole, *OPTIONS)).status == 0
        for seed in range(runs):
            for kind, result in results.items():
                trial = _try(kind, seed, ends, whole) if time.monotonic() < deadline else None
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
    """One row for each way to end."""
    rows = []
    for kind, r in results.items():
        redone = (f"{statistics.mean(r['redone']):.1f}", str(max(r["redone"]))) if r["redone"] else ("not tried", "")
        rows.append([kind, str(r["ends"]), *redone, f"{r['equal']} of {r['runs']}"])
    header = ["how the process ended", "times", "steps done again, mean", "most", "runs equal to the bit"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="runs of each kind")
    parser.add_argument("--ends", type=int, default=8, help="how often a run is ended")
    parser.add_argument("--minutes", type=float, default=20, help="no run is begun after that")
    options = parser.parse_args()
    results = measure(options.runs, options.ends, options.minutes)
    save("faults", results)
    insert_all({"faults": fault_table}, results, page=PAGE)
    if any(r["equal"] < r["runs"] for r in results.values()):
        raise SystemExit("something was lost: see the differences in results/faults.json")


if __name__ == "__main__":
    main()
