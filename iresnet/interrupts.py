"""Ctrl-C ends a command at once, in one line, whatever it is doing."""

__all__ = ["heed_interrupts"]

import atexit
import os
import signal
from types import FrameType

STATUS = 128 + signal.SIGINT


def heed_interrupts() -> None:
    """Have Ctrl-C end this process with status 130 and without a traceback, whenever it comes.

    A KeyboardInterrupt would not do: imports break by it, extensions turn it into errors of their own, destructors
    print it. Files of a run are there whole or not at all, so that it can be continued after any end; the loop of
    training has a first Ctrl-C end it in order.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells let their background jobs ignore it
        signal.signal(signal.SIGINT, _end)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # from here on the interpreter has no handler


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if os.environ.get("RANK", "0") == "0":
        cursor = b"\x1b[?25h\n" if os.isatty(2) else b""  # a progress bar hides it
        os.write(2, cursor + b"iresnet: interrupted\n")
    os._exit(STATUS)
