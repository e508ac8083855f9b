"""Signals that ask a run to stop."""

__all__ = ["stop_requests"]

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into a request that the loop honors between two steps; a second one acts at once."""
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
