"""Progress bars where somebody looks: redrawn in place on a terminal and in a notebook, absent elsewhere."""

__all__ = ["Bar", "progress", "watched"]

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from iresnet.console import err, is_main

PERIOD = 0.2
"""Seconds between two drawings in a notebook."""

N_LINES = 20
"""Lines that a notebook keeps above a bar, the last ones."""


def watched() -> bool:
    """Return whether somebody looks at the output: a terminal or a notebook."""
    return is_main() and (err.is_terminal or err.is_jupyter)


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how much of a long computation is done, while it runs, on a terminal or in a notebook.

    Args:
        label: what is counted.
        total: of them; None when it is not known.

    Yields:
        A function that takes the number done so far: the ``progress`` argument of :mod:`iresnet.evaluation` and
        :mod:`iresnet.analysis`.

    Example:
        >>> with progress("steps", 3) as advance:
        ...     for step in range(3):
        ...         advance(step + 1)
    """
    time_column = TimeRemainingColumn(elapsed_when_finished=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), time_column
    bar = Bar(*columns, console=err, transient=True)
    bar.start(label, total)
    try:
        yield lambda done: bar.update(completed=done)
    finally:
        bar.stop()


class Bar:
    """Progress bar with lines above it.

    Without a terminal and a notebook the lines are printed, and there is no bar. In a notebook all is one output, HTML
    that replaces itself and is kept when the notebook is saved: rich's own needs ipywidgets, and is not kept.

    Args:
        columns: of the bar.
        console: to print to.
        transient: take the bar off the terminal at the end.
    """

    def __init__(self, *columns: ProgressColumn | str, console: Console, transient: bool = False):
        self.console = console
        self.rich = Progress(
            *columns, console=console, transient=transient, disable=not (console.is_terminal and is_main())
        )
        self.in_notebook = console.is_jupyter and is_main()
        self.lines: deque[str] = deque(maxlen=N_LINES)
        self.output: Any = None  # of the notebook
        self.drawn = -math.inf

    def start(self, label: str, total: int | None, **fields: Any) -> None:
        """Show the bar.

        Args:
            label: what is counted.
            total: of them; None when it is not known.
            fields: of the columns, or ``completed``, the number done before.
        """
        self.rich.add_task(label, total=total, **fields)
        self.rich.start()
        self._draw()

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        if self.in_notebook:
            self.lines.append(line)
            self._draw()
        else:
            self.console.print(line)

    @property
    def speed(self) -> float | None:
        """Progress in a second, None while it is not known."""
        return self.rich.tasks[0].speed

    def update(self, **changes: Any) -> None:
        """Change ``completed``, ``advance`` by a number, or fields of the columns."""
        self.rich.update(self.rich.tasks[0].id, **changes)
        if time.monotonic() - self.drawn >= PERIOD:
            self._draw()

    def stop(self) -> None:
        """Leave the bar as it is, or take it away."""
        self.rich.stop()
        self._draw()

    def _draw(self) -> None:
        if not self.in_notebook:
            return
        from IPython.display import display

        picture = Table.grid()
        for part in (*map(Text, self.lines), self.rich.get_renderable()):
            picture.add_row(part)
        if self.output is None:
            self.output = display(picture, display_id=True)
        else:
            self.output.update(picture)
        self.drawn = time.monotonic()
