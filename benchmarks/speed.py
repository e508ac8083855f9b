"""Time, operations and memory of iresnet, of the method of 2019, of normflows, and of the plain network.

    python benchmarks/speed.py [--run RUN] [--case density ...] [--size "width 64"] [--repeats 5] [--threads 1 2]

In each case and setting all contenders run in turns in one process: CPU time on one thread, wall time on all. Memory is
measured in a fresh process each. ``--run`` is a trained density of images to invert and to sample from; ``--full`` adds
a step of the published architectures. Writes results/speed.json and the tables of docs/performance.md.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pages import RESULTS, Results, insert_all, number, save, table
from speed_cases import CASES, MAIN, PUBLISHED, Settings, inversion, sampling
from timing import Make, environment, flops, interleaved, peak_bytes

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
ONCE = {"published"}
"""Cases that are measured for one step after one of warm-up."""

Row = dict  # of one contender at one setting


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
    path = RESULTS / "speed.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {**saved, **measured}
    save("speed", results)
    insert_all(tables(results), results, page=PAGE)


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


def _cases(options: argparse.Namespace) -> dict[str, Settings]:
    """Select cases and settings by the options."""
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


def measure(jobs: Mapping[str, Make], *, threads: list[int], warmup: int, repeats: int) -> list[dict[str, Any]]:
    """Measure times and operations of all jobs of a setting in this process, then the memory of each in its own."""
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
    built.clear()  # leave the memory to the processes that follow
    memory = {name: peak_bytes(jobs[name]) for name in alone}
    return [{**row, "memory": memory.get(row["contender"])} for row in rows]


# -- tables ----------------------------------------------------------------------------------------------------------


def line(row: Row) -> str:
    """Format a row as text, to be printed while further ones are measured."""
    checks = [f"{name} {row[name]:.2g}" for name in ("error", "residual", "within") if name in row]
    cells = [row["setting"], row["contender"], f"{_seconds(row)} s", f"x{number(_ratio(row))}", *checks]
    return ", ".join([*cells, f"{row['flops'] / 1e9:.1f} GFLOP", f"{_mebibytes(row)} MiB"])


def tables(results: Results) -> dict[str, Callable[[Results], str]]:
    """Return the table functions for all measured cases, by name."""
    return {"goals": goal_table, **{case: partial(_table, case=case) for case in results}}


def _table(results: Results, *, case: str) -> str:
    rows = results[case]["rows"]
    columns = {
        "setting": lambda row: row["setting"],
        "": lambda row: row["contender"],
        "CPU s, 1 thread": _seconds,
        "times iresnet": lambda row: number(_ratio(row), 3),
        **{
            f"wall s, {n} threads": lambda row, n=n: number(row["times"][n]["wall"]["median"], 3)
            for n in rows[0]["times"]
            if n != "1"
        },
        "GFLOP": lambda row: number(row["flops"] / 1e9, 3),
        "GFLOP/s": lambda row: number(row["flops"] / 1e9 / row["times"]["1"]["cpu"]["median"]),
        "MiB": _mebibytes,
    }
    if "error" in rows[0]:
        columns |= {
            "largest error": lambda row: f"{row['error']:.1e}",
            "largest residual": lambda row: f"{row['residual']:.1e}",
        }
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return f"{table(list(columns), cells)}\n\n{_origin(results[case])}"


def _seconds(row: Row) -> str:
    cpu = row["times"]["1"]["cpu"]
    return f"{number(cpu['median'], 3)} ({number(cpu['least'], 3)} to {number(cpu['most'], 3)})"


def _ratio(row: Row) -> float:
    return row["ratio"]["1"]["cpu"]


def _memory(row: Row) -> float:
    return row["memory"]["work"] / 2**20


def _mebibytes(row: Row) -> str:
    return f"{_memory(row):.0f}" if row["memory"] else "-"


def _origin(case: dict) -> str:
    of = case["environment"]
    changed = ", with changes" if of["changed"] else ""
    return (
        f"{of['machine']}, {of['cpus']} CPUs; torch {of['torch']}, normflows {of['normflows']}; commit {of['commit']}"
        f"{changed}, {of['date']}; {case['repeats']} rounds after {case['warmup']} to warm up."
    )


# -- goals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """Bound on the quotient of the costs of two contenders.

    Attributes:
        name: for the table.
        case: where the costs are measured.
        numerator: a contender.
        denominator: another one.
        bound: at least so much, or at most where iresnet is the numerator.
        aim: a better bound.
        memory: whether the cost is memory instead of time.
    """

    name: str
    case: str
    numerator: str
    denominator: str
    bound: float
    aim: float
    memory: bool = False

    def quotients(self, results: Results) -> Iterator[tuple[str, float]]:
        """Yield settings and quotients."""
        rows = {(row["setting"], row["contender"]): row for row in results.get(self.case, {"rows": []})["rows"]}
        for setting in dict.fromkeys(setting for setting, _ in rows):
            above, below = rows.get((setting, self.numerator)), rows.get((setting, self.denominator))
            if above is None or below is None:
                continue
            yield setting, _memory(above) / _memory(below) if self.memory else _ratio(above) / _ratio(below)


OURS = ("iresnet", "iresnet, 4 steps", "iresnet, compiled", "iresnet, 4 steps, compiled", "iresnet, bf16")

GOALS = (
    Goal("density step: 2019 / iresnet", "density", "2019", "iresnet", 5, 6),
    Goal("density step: 2019 / iresnet, compiled", "density", "2019", "iresnet, compiled", 5.5, 6.5),
    *(
        Goal(f"density step: 2019 / {ours}", "density", "2019", ours, 3, 5)
        for ours in OURS
        if "steps" in ours or "bf" in ours
    ),
    *(Goal(f"density step: normflows / {ours}", "density", "normflows", ours, 2, 4) for ours in OURS),
    *(Goal(f"density step: {ours} / plain", "density", ours, "plain", 2.3, 2.0) for ours in OURS),
    *(
        Goal(f"density step, memory: 2019 / {ours}", "density", "2019", ours, 3, 6, memory=True)
        for ours in ("iresnet", "iresnet, recompute")
    ),
    *(
        Goal(f"classification step: {ours} / plain", "classification", ours, "plain", 1.15, 1.05)
        for ours in ("iresnet", "iresnet, compiled", "iresnet, bf16")
    ),
    Goal("inversion: 2019 / iresnet", "inversion", "2019", "iresnet", 8, 15),
    Goal("inversion: normflows to 1e-5 / iresnet", "inversion", "normflows to 1e-5", "iresnet", 2, 4),
)


def goal_table(results: Results) -> str:
    """Format the goals, each with its quotient at the main setting and the range over all settings."""
    rows = []
    for goal in GOALS:
        quotients = dict(goal.quotients(results))
        main, span = "not measured", ""
        if quotients:
            main = number(quotients.get(MAIN.name, next(iter(quotients.values()))), 3)
            span = f"{number(min(quotients.values()), 3)} to {number(max(quotients.values()), 3)}"
        bound = "at most" if goal.numerator in OURS else "at least"
        rows.append([goal.name, f"{bound} {goal.bound:g}", f"{goal.aim:g}", main, span])
    return table(["quotient", "goal", "aim", f"at {MAIN.name}", "at all settings"], rows)


if __name__ == "__main__":
    main()
