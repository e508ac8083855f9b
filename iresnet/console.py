"""Output of the command line: results, errors and warnings, printed by one of several processes."""

__all__ = ["announce", "complain", "err", "is_main", "say", "show_thread_failure", "show_warning"]

import os
from typing import Any

from rich.console import Console

from iresnet.launch import started_together

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


_announced: list[str] = []  # printed before the first result


def announce(line: str) -> None:
    """Print a line before the first result of this command, and not at all if there is none."""
    _announced[:] = [line]


def say(result: Any) -> None:
    """Print a result, which all processes have."""
    if is_main():
        for line in (*_announced, result):
            out.print(line)
    _announced.clear()


def is_main() -> bool:
    """Return whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def complain(message: str, status: int, *, about: str | None = None) -> int:
    """Print an error in one line, and return the exit status.

    Args:
        message: what went wrong.
        status: exit status.
        about: key of the error; of processes with the same key one prints. The message when None.
    """
    first = _is_first(about or message)
    _is_first("loss")  # the others, which lose this process, need not say so
    if first:
        err.print(f"iresnet: {' '.join(message.split())}")
    return status


def show_warning(message: Any, category: Any, *_: Any) -> None:  # noqa: ARG001
    """Print a warning in one line; replaces ``warnings.showwarning``."""
    if _is_first(str(message)):
        err.print(f"iresnet: warning: {message}")


def show_thread_failure(failure: Any) -> None:
    """Print that a thread failed, such as one of a tracker; replaces ``threading.excepthook``."""
    show_warning(f"a thread beside the command failed ({failure.exc_type.__name__}: {failure.exc_value})", None)


def _is_first(message: str) -> bool:
    """Return whether no other process has printed this message."""
    if not started_together():
        return True
    from iresnet.collectives import is_first_to_say

    return is_first_to_say(message)
