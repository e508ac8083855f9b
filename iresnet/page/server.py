"""Server of the page, on a port of this machine; whatever is uploaded is gone when it ends."""

__all__ = ["is_loopback", "listen", "serve"]

import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Callable

import fastapi
import gradio as gr
import uvicorn
from gradio.themes import Default, Font
from starlette.middleware.trustedhost import TrustedHostMiddleware

from iresnet.errors import RecipeError
from iresnet.page.markup import STYLE

MAX_UPLOAD = "10mb"
"""Largest file that can be uploaded."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open a port to listen on, a free one for port 0.

    Raises:
        RecipeError: when the port is taken, or the address is none of this machine.

    Example:
        >>> with listen("127.0.0.1", 0) as opened:
        ...     listen("127.0.0.1", opened.getsockname()[1])
        Traceback (most recent call last):
        iresnet.errors.RecipeError: --port ... of 127.0.0.1 is taken; choose another, or 0 for any that is free
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RecipeError(f"--port {port} of {host} is taken; choose another, or 0 for any that is free") from error
        reason = str(error.strerror or error).partition(" (while")[0]
        raise RecipeError(f"cannot listen on --host {host} --port {port}: {reason}") from error


def serve(blocks: gr.Blocks, listener: socket.socket, *, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Serve a page until a stop is requested.

    Fonts are those of the reader's system, so that none is loaded, and there is no footer with links to other hosts. On
    loopback, requests by any other name are refused: a page elsewhere could have its own name resolve
    to this machine, and read the answers.

    Args:
        blocks: the page.
        listener: the port.
        stop: ends it.
        ready: called when it answers.
    """
    app = fastapi.FastAPI(openapi_url=None)
    host = listener.getsockname()[0]
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])
    theme = Default(
        font=[Font("system-ui"), Font("sans-serif")],
        font_mono=[Font("ui-monospace"), Font("monospace")],
        primary_hue="blue",
    )
    gr.mount_gradio_app(
        app,
        blocks,
        path="",
        theme=theme,
        css=STYLE,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    # In a thread, where it leaves the signals alone.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    ready()
    while thread.is_alive() and not stop.wait(0.5):
        pass
    server.should_exit = True
    thread.join()
