"""A headless Chromium, told what to do through its debugging protocol: for pages that are checked as they look."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0")
FLAGS += ("--remote-allow-origins=*", "--no-first-run", "--disable-background-networking", "--disable-extensions")


class Page:
    """One tab, which remembers what it asked for and complained of.

    Attributes:
        requests: addresses that it asked for, shortened.
        complaints: errors and warnings of its console.
    """

    def __init__(self, address):
        self.socket = websocket.create_connection(address, timeout=30)
        self.n, self.requests, self.complaints, self.events = 0, [], [], []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps({"id": self.n, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.n:
                if "error" in message:
                    raise RuntimeError(message["error"]["message"])
                return message["result"]
            self._note(message)

    def _note(self, message):
        self.events.append(message["method"])
        params = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"][:200])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(params["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(params["args"]))

    def open(self, path, *, width=1280, dark=False):
        """Show a file in a window of this width."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._note(json.loads(self.socket.recv()))

    def evaluate(self, code):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def screenshot(self, path, *, whole=True):
        """Save what is to be seen; all of the page, or the first window."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def page(folder):
    """A browser with one tab, with its files in a folder of its own."""
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tab = None
    try:
        tab = Page(_address(Path(folder) / "DevToolsActivePort"))
        yield tab
    finally:
        if tab:
            with suppress(websocket.WebSocketException, OSError):
                tab.socket.close()
        process.terminate()
        process.wait(10)


def _address(file, patience=60):
    """Where the tab listens, once the browser has written it down."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with suppress(OSError, ValueError, IndexError, StopIteration):
            port = int(file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                return next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
        time.sleep(0.1)
    raise TimeoutError("the browser does not listen")
