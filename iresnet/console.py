"""What the command line prints, and which of several processes prints it."""

__all__ = ["announce", "complain", "err", "is_main", "progress", "say", "show_thread_failure", "show_warning"]

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from iresnet.launch import started_together

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def _first_to_say(message: str) -> bool:
    """Whether this process is to print what others may have to say too."""
    if not started_together():
        return True
    from iresnet.collectives import is_first_to_say

    return is_first_to_say(message)


_announced: list[str] = []


def announce(what: str) -> None:
    """Have a line printed before the first result of this command, and not at all when there is none."""
    _announced[:] = [what]


def say(what: Any) -> None:
    """Print a result, which all processes have."""
    if is_main():
        for line in (*_announced, what):
            out.print(line)
    _announced.clear()


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def complain(message: str, status: int, *, about: str | None = None) -> int:
    """Print an error in one line, and return the exit status.

    Args:
        message: what went wrong.
        status: what to exit with.
        about: processes that complain about the same thing are heard once; the message when None.
    """
    first = _first_to_say(about or message)
    _first_to_say("loss")  # that others lose this process is explained
    if first:
        err.print(f"iresnet: {' '.join(message.split())}")
    return status


def show_warning(message: Any, category: Any, *_: Any) -> None:  # noqa: ARG001
    """Print a warning in one line, in place of ``warnings.showwarning``."""
    if _first_to_say(str(message)):
        err.print(f"iresnet: warning: {message}")


def show_thread_failure(failure: Any) -> None:
    """Print that a thread failed, such as one of a tracker's, in place of ``threading.excepthook``."""
    show_warning(f"a thread beside the command failed ({failure.exc_type.__name__}: {failure.exc_value})", None)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on terminals; yields a function that takes the number done."""
    with Progress(console=err, transient=True, disable=not (err.is_terminal and is_main())) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
