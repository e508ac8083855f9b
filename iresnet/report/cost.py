"""What a run took, and on what it ran."""

__all__ = ["cost", "cpu_seconds", "environment", "parameters", "wall_seconds", "when"]

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from iresnet.report.blocks import Block, Fold, Hint, Panel, Section
from iresnet.report.reading import RunFiles
from iresnet.report.tables import details, pairs
from iresnet.report.words import amount, duration, finite, label, number


def cost(runs: Sequence[RunFiles]) -> Section:
    """Time, steps and size."""
    return Section("cost", "Cost", [Panel(i, _cost(run)) for i, run in enumerate(runs)])


def environment(runs: Sequence[RunFiles]) -> Section:
    """Versions and machine."""
    return Section("environment", "Environment", [Panel(i, _environment(run)) for i, run in enumerate(runs)])


def wall_seconds(run: RunFiles) -> float | None:
    """Seconds of all processes that trained the run, one after the other."""
    return _total(run, "wall_seconds")


def cpu_seconds(run: RunFiles) -> float | None:
    """The same of CPU time, of the first process each."""
    return _total(run, "cpu_seconds")


def parameters(run: RunFiles) -> tuple[str, int] | None:
    """How many parameters there are, or numbers in the file of the weights, and which of them it is."""
    for tree in (run.cost, run.evaluation):
        if n := finite(tree.get("parameters")):
            return "parameters", int(n)
    return ("numbers in the model file", run.model_numbers) if run.model_numbers else None


def when(run: RunFiles) -> str:
    """The day on which the training began, else that of the weights; empty when neither is known."""
    for session in _sessions(run):
        if isinstance(started := session.get("started"), str):
            return started[:10]
    try:
        return datetime.fromtimestamp(run.model_file.stat().st_mtime, UTC).date().isoformat()
    except (OSError, ValueError, OverflowError):
        return ""


def _sessions(run: RunFiles) -> list[dict[str, Any]]:
    sessions = run.cost.get("sessions")
    return [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else []


def _total(run: RunFiles, key: str) -> float | None:
    values = [finite(session.get(key)) for session in _sessions(run)]
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _cost(run: RunFiles) -> list[Block]:
    entries = []
    wall, cpu = wall_seconds(run), cpu_seconds(run)
    if wall is not None:
        entries.append(("training time", duration(wall)))
    if cpu is not None:
        many = max((finite(session.get("processes")) or 1 for session in _sessions(run)), default=1)
        entries.append(
            ("CPU time" if many == 1 else f"CPU time of the first of {number(many)} processes", duration(cpu))
        )
    steps = [x for line in run.metrics if (x := finite(line.get("step"))) is not None]
    if steps:
        entries.append(("steps", number(max(steps))))
    batch, done = finite(run.settings.get("train.batch_size")), _steps_done(run)
    if wall and batch and done:
        entries.append(("examples a second, with validation", number(done * batch / wall, 3)))
    if found := parameters(run):
        entries.append((found[0], number(found[1])))
    try:
        entries.append(("size of the weights", amount(run.model_file.stat().st_size)))
    except OSError:
        entries.append(("size of the weights", "no model yet"))
    blocks: list[Block] = [pairs("What the training took", entries, plain=True)]
    if wall is None:
        blocks.append(Hint("Its time was not noted: newer versions write cost.json while they train."))
    elif len(_sessions(run)) > 1:
        blocks.append(
            Fold(f"{len(_sessions(run))} processes, one after the other", details(_sessions(run), "Processes"))
        )
    return blocks


def _steps_done(run: RunFiles) -> float:
    """Steps of all processes, those that were done twice counted twice."""
    ends = [(finite(session.get("from_step")), finite(session.get("to_step"))) for session in _sessions(run)]
    return sum(max(0.0, last - first) for first, last in ends if first is not None and last is not None)


def _environment(run: RunFiles) -> list[Block]:
    if not run.env:
        return [Hint("The environment is not known: env.json, which training writes, is missing.")]
    entries = [(label(key), value) for key, value in run.env.items() if value is not None]
    entries = [(name, str(value) if isinstance(value, int) else value) for name, value in entries]
    return [pairs("Where it was trained", entries, plain=True)]
