"""Handlers of Ctrl-C and of requests to stop: a command ends in one line, a training between two steps."""

__all__ = [
    "heed_interrupts",
    "stop_requests",
]

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STATUS = 128 + signal.SIGINT
"""Exit status of a command that Ctrl-C ended."""


def heed_interrupts() -> None:
    """Make Ctrl-C end this process with status 130 and without a traceback, at any time.

    A KeyboardInterrupt would not do: it breaks imports, extensions turn it into errors of their own, destructors print
    it. The files of a run are written completely or not at all, so that the run can be continued after any end; the
    training loop ends in order at a first Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells let their background jobs ignore it
        signal.signal(signal.SIGINT, _end)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the interpreter has no handler while it ends


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if os.environ.get("RANK", "0") == "0":
        cursor = b"\x1b[?25h\n" if os.isatty(2) else b""  # a progress bar hides it
        os.write(2, cursor + b"iresnet: interrupted\n")
    os._exit(STATUS)


# -- training ----------------------------------------------------------------------------------------------------------


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn a first SIGINT or SIGTERM into an event, for which the caller looks; a second one acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:  # noqa: ARG001
        stop.set()
        signal.signal(number, handlers[signal.Signals(number)])

    try:
        for number in handlers:
            signal.signal(number, request)
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
