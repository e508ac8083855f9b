"""Time, operations and memory of iresnet, of the method of 2019, of normflows, and of the plain network.

    python benchmarks/speed.py [--run RUN] [--case density ...] [--size "width 64"] [--repeats 5] [--threads 1 2]

In each case and setting all contenders run in turns, in one process: CPU time on one thread, wall time on all. Memory
is that of a fresh process each. ``--run`` is a trained density of images, to invert and to sample from; ``--full`` adds
a step of the published architectures. Figures go into results/speed.json, tables into docs/performance.md.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cases import CASES, PUBLISHED, Settings
from report import RESULTS, insert_all, save
from speed_tables import line, tables
from timing import Make, flops, interleaved, peak_bytes
from trained import inversion, sampling

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
ONCE = {"published"}
"""Cases of one step each, after one to warm up."""


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    measured = {}
    for case, settings in _cases(options).items():
        rounds = {"warmup": 1, "repeats": 1} if case in ONCE else {"warmup": options.warmup, "repeats": options.repeats}
        rows = []
        for setting, jobs in settings.items():
            rows += [{"setting": setting, **row} for row in measure(jobs, threads=options.threads, **rounds)]
            print("\n".join(f"{case}, {line(row)}" for row in rows if row["setting"] == setting), flush=True)
        measured[case] = {"environment": environment(), **rounds, "rows": rows}
    if options.quick:
        return
    results = {**_saved(), **measured}
    save("speed", results)
    insert_all(tables(results), results, page=PAGE)


def measure(jobs: Mapping[str, Make], *, threads: list[int], warmup: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of one setting: times and operations of jobs that live side by side, then memory of each alone."""
    built = {name: make() for name, make in jobs.items()}
    times = {n: interleaved(built, threads=n, warmup=warmup, repeats=repeats) for n in threads}
    rows = [
        {
            "contender": name,
            "times": {str(n): of[name].summary() for n, of in times.items()},
            "ratio": {str(n): of[name].ratio(next(iter(of.values()))) for n, of in times.items()},
            "flops": flops(job),
            **job.check(),
        }
        for name, job in built.items()
    ]
    alone = [name for name, job in built.items() if job.prepare is None]
    built.clear()  # their memory would only crowd that of the processes to come
    memory = {name: peak_bytes(jobs[name]) for name in alone}
    return [{**row, "memory": memory.get(row["contender"])} for row in rows]


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit."""
    return {
        "machine": _processor(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "normflows", "iresnet")},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "iresnet", "benchmarks/*.py")),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _saved() -> dict[str, Any]:
    """What earlier runs measured of other cases."""
    path = RESULTS / "speed.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _cases(options: argparse.Namespace) -> dict[str, Settings]:
    """The cases and settings that were asked for."""
    cases = {**CASES, **(PUBLISHED if options.full else {})}
    if options.run:
        name = options.run.name
        cases["inversion"] = {name: inversion(options.run, options.data_dir)}
        cases["sampling"] = {name: sampling(options.run)}
    unknown = set(options.case) - set(cases)
    if unknown:
        raise SystemExit(f"unknown case {', '.join(unknown)}; there are {', '.join(cases)} (see --run and --full)")
    size = "width 64, batch 64" if options.quick else options.size
    chosen = {case: cases[case] for case in options.case or cases}
    return {
        case: {name: jobs for name, jobs in settings.items() if len(settings) == 1 or case in ONCE or size in name}
        for case, settings in chosen.items()
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=[], help="measure these, not all")
    parser.add_argument("--size", default="", help="only settings with this in their name")
    parser.add_argument("--run", type=Path, help="a run folder of a density of images")
    parser.add_argument("--data-dir", help="a folder of data sets, if not where the run found them")
    parser.add_argument("--full", action="store_true", help="the published architectures too: minutes a step")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1], help="besides 1")
    parser.add_argument("--quick", action="store_true", help="few rounds, one size, one thread; nothing is written")
    options = parser.parse_args()
    if options.quick:
        options.warmup, options.repeats, options.threads = 1, 2, []
    options.threads = sorted({1, *options.threads})
    return options


if __name__ == "__main__":
    main()
