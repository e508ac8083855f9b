"""What speed.py writes: a line for each row, a table for each case, and a table of the goals."""

__all__ = ["line", "tables"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from report import Results, number, table

Row = dict  # of one contender at one setting
MAIN = "1x32x32, width 64, batch 64"


def line(row: Row) -> str:
    """One row as text, for those who wait."""
    checks = [f"{name} {row[name]:.2g}" for name in ("error", "residual", "within") if name in row]
    cells = [row["setting"], row["contender"], f"{_seconds(row)} s", f"x{number(_ratio(row))}", *checks]
    return ", ".join([*cells, f"{row['flops'] / 1e9:.1f} GFLOP", f"{_mebibytes(row)} MiB"])


def tables(results: Results) -> dict[str, Callable[[Results], str]]:
    """The tables that can be made of what was measured, by name."""
    return {"goals": _goals, **{case: partial(_table, case=case) for case in results}}


# -- a case ----------------------------------------------------------------------------------------------------------


def _table(results: Results, *, case: str) -> str:
    rows = results[case]["rows"]
    columns = {
        "setting": lambda row: row["setting"],
        "": lambda row: row["contender"],
        "CPU s, 1 thread": _seconds,
        "times iresnet": lambda row: number(_ratio(row), 3),
        **{f"wall s, {n} threads": partial(_wall, threads=n) for n in rows[0]["times"] if n != "1"},
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


def _wall(row: Row, *, threads: str) -> str:
    return f"{number(row['times'][threads]['wall']['median'], 3)}"


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
    """How many times something costs what something else does.

    Attributes:
        name: for the table.
        case: where it is measured.
        dear: the contender whose cost is divided,
        cheap: by the cost of this one.
        least: what the quotient must reach, or must not exceed when iresnet is the dear one.
        aim: likewise, and would be good.
        memory: whether the cost is memory, not time.
    """

    name: str
    case: str
    dear: str
    cheap: str
    least: float
    aim: float
    memory: bool = False

    def quotients(self, results: Results) -> Iterator[tuple[str, float]]:
        """By setting."""
        rows = {(row["setting"], row["contender"]): row for row in results.get(self.case, {"rows": []})["rows"]}
        for setting in dict.fromkeys(setting for setting, _ in rows):
            dear, cheap = rows.get((setting, self.dear)), rows.get((setting, self.cheap))
            if dear is None or cheap is None:
                continue
            yield setting, _memory(dear) / _memory(cheap) if self.memory else _ratio(dear) / _ratio(cheap)


OURS = ("iresnet", "iresnet, 4 steps", "iresnet, compiled", "iresnet, 4 steps, compiled", "iresnet, bf16")

GOALS = (
    *(Goal(f"density step: 2019 / {ours}", "density", "2019", ours, 3, 5) for ours in OURS),
    *(Goal(f"density step: normflows / {ours}", "density", "normflows", ours, 2, 4) for ours in OURS),
    *(Goal(f"density step: {ours} / plain", "density", ours, "plain", 3.5, 2.5) for ours in OURS),
    *(
        Goal(f"density step, memory: 2019 / {ours}", "density", "2019", ours, 3, 6, memory=True)
        for ours in ("iresnet", "iresnet, recompute")
    ),
    *(
        Goal(f"classification step: {ours} / plain", "classification", ours, "plain", 1.4, 1.15)
        for ours in ("iresnet", "iresnet, compiled", "iresnet, bf16")
    ),
    Goal("inversion: 2019 / iresnet", "inversion", "2019", "iresnet", 8, 15),
    Goal("inversion: normflows to 1e-5 / iresnet", "inversion", "normflows to 1e-5", "iresnet", 2, 4),
)


def _goals(results: Results) -> str:
    header = ["quotient", "goal", "aim", f"at {MAIN}", "at all settings"]
    return table(header, [_goal_row(goal, dict(goal.quotients(results))) for goal in GOALS])


def _goal_row(goal: Goal, quotients: dict[str, float]) -> list[str]:
    word = "at most" if goal.dear in OURS else "at least"
    cells = [goal.name, f"{word} {goal.least:g}", f"{goal.aim:g}"]
    if not quotients:
        return [*cells, "not measured", ""]
    main = quotients.get(MAIN, next(iter(quotients.values())))
    return [*cells, number(main, 3), f"{number(min(quotients.values()), 3)} to {number(max(quotients.values()), 3)}"]
