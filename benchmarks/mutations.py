"""A mutation check: breaks each estimator, bound and solver in turn and shows that the tests catch every one.

python benchmarks/mutations.py                                # all of mutants.py, in some minutes
python benchmarks/mutations.py --only krylov.py --jobs 2      # those whose file or name contains the text
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("iresnet", "tests", "pyproject.toml")
LIMIT = 900  # seconds for the tests of one mutant
START = """
import sys, pathlib, pytest, iresnet
if not pathlib.Path(iresnet.__file__).resolve().is_relative_to(pathlib.Path.cwd()):
    sys.exit(f"the tests would run on {iresnet.__file__} and not on the copy")
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Mutant:
    """One change of one file of the package, and the laws that have to notice it."""

    file: str
    name: str
    old: str
    new: str
    laws: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the law that failed, None when none did."""

    mutant: Mutant
    caught_by: str | None
    seconds: float

    def __str__(self) -> str:
        verdict = f"caught by {self.caught_by}" if self.caught_by else "SURVIVED " + " ".join(self.mutant.laws)
        return f"{self.seconds:5.1f} s  {self.mutant.file}: {self.mutant.name}: {verdict}"


def read_table() -> list[Mutant]:
    """The mutants, each of which must still fit the source: a table that has rotted is an error."""
    mutants = [
        Mutant(file, name, old, new, tuple(laws.split()))
        for (file, laws), changes in MUTANTS.items()
        for name, (old, new) in changes.items()
    ]
    for m in mutants:
        found = (ROOT / "iresnet" / m.file).read_text(encoding="utf-8").count(m.old)
        if found != 1:
            raise SystemExit(f"mutants.py: '{m.name}' replaces a text that occurs {found} times in {m.file}, not once")
    return mutants


@contextmanager
def copy_of_the_project() -> Iterator[Path]:
    """A folder with the package and its tests, so that the working tree is never touched."""
    with TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        yield Path(folder).resolve()


def run_tests(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on the copy, in a process of its own."""
    # Without compiled files: one of the same size and second as a mutant's source would be taken for it.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def in_tests(laws: Iterable[str]) -> list[str]:
    return [f"tests/{law}" for law in laws]


def check_unbroken(mutants: Sequence[Mutant]) -> None:
    """The control: without a mutant, all the laws hold."""
    start = time.perf_counter()
    with copy_of_the_project() as folder:
        result = run_tests(folder, *in_tests(dict.fromkeys(law for m in mutants for law in m.laws)))
    if result.returncode:
        raise SystemExit(f"the tests fail without a mutant:\n{result.stdout[-5000:]}{result.stderr[-5000:]}")
    print(f"{time.perf_counter() - start:5.1f} s  control: {result.stdout.splitlines()[-1]}", flush=True)


def try_mutant(mutant: Mutant) -> Outcome:
    start = time.perf_counter()
    with copy_of_the_project() as folder:
        path = folder / "iresnet" / mutant.file
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        result = run_tests(folder, "-x", *in_tests(mutant.laws))
    failed = re.search(r"^FAILED tests/\S+?::(\w+)", result.stdout, re.MULTILINE)
    if result.returncode != 0 and not failed:  # such as a mutant that is no Python
        raise SystemExit(f"no law ran on '{mutant.name}':\n{result.stdout[-5000:]}{result.stderr[-5000:]}")
    outcome = Outcome(mutant, failed and failed[1], time.perf_counter() - start)
    print(outcome, flush=True)
    return outcome


def summary(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table with a line a file."""
    rows = ["| file | broken in turn | caught |", "| --- | --- | ---: |"]
    for file in dict.fromkeys(o.mutant.file for o in outcomes):
        of_file = [o for o in outcomes if o.mutant.file == file]
        names = "; ".join(o.mutant.name for o in of_file)
        rows.append(f"| `{file}` | {names} | {sum(bool(o.caught_by) for o in of_file)} of {len(of_file)} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", default="", help="mutants whose file or name contains this")
    parser.add_argument("-n", "--jobs", type=int, default=1, help="mutants that are tried at a time")
    options = parser.parse_args()
    mutants = [m for m in read_table() if options.only in f"{m.file}: {m.name}"]
    if not mutants:
        raise SystemExit(f"no mutant's file or name contains '{options.only}'")
    start = time.perf_counter()
    check_unbroken(mutants)
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(try_mutant, mutants))
    caught = sum(bool(o.caught_by) for o in outcomes)
    print(f"\n{summary(outcomes)}\n\n{caught} of {len(outcomes)} caught in {time.perf_counter() - start:.0f} s")
    return int(caught < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
