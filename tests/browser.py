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
FLAGS += ("--disable-component-update", "--disable-sync")

KEYS = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
"""Numbers of keys."""


class Page:
    """One tab, which remembers what it asked for and complained of.

    Attributes:
        requests: addresses that it asked for, shortened.
        complaints: errors and warnings of its console.
        errors: those of them that are errors.
    """

    def __init__(self, address):
        self.socket = websocket.create_connection(address, timeout=30)
        self.n, self.requests, self.complaints, self.errors, self.events = 0, [], [], [], []
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
                self._complain(params["entry"]["text"], params["entry"]["level"])
            case "Runtime.exceptionThrown":
                self._complain(params["exceptionDetails"]["text"], "error")
            case "Runtime.consoleAPICalled":
                self._complain(str(params["args"]), params["type"])

    def _complain(self, text, level):
        self.complaints.append(text)
        if level == "error":
            self.errors.append(text)

    def open(self, address, *, width=1280, dark=False):
        """Show a file, or what is at an address, in a window of this width."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        is_url = str(address).startswith(("http://", "about:"))
        url = address if is_url else Path(address).absolute().as_uri()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self.events:
            self._note(json.loads(self.socket.recv()))

    def evaluate(self, code):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, code, patience=30):
        """Wait until an expression in the page is true."""
        end = time.monotonic() + patience
        while not self.evaluate(f"!!({code})"):
            if time.monotonic() > end:
                raise TimeoutError(f"still not true in the page: {code}")
            time.sleep(0.05)

    def place(self, code):
        """The middle of the element that an expression gives, scrolled into sight."""
        box = f"(() => {{ const e = {code}; e.scrollIntoView({{block: 'center', behavior: 'instant'}}); "
        box += "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        return self.evaluate(box)

    def drag(self, *points):
        """Press the mouse at the first point, move it over all of them, and let go at the last."""
        kinds = ("mousePressed", *["mouseMoved"] * len(points), "mouseReleased")
        for kind, (x, y) in zip(kinds, (points[0], *points, points[-1]), strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, code):
        """Click with the mouse on the element that an expression gives, once it is there and stands still."""
        self.wait(code)
        last, at = None, self.place(code)
        while at != last:
            time.sleep(0.15)
            last, at = at, self.place(code)
        self.drag(at)

    def press(self, *keys):
        """Press keys, one after the other."""
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def upload(self, code, path):
        """Choose a file in the file field that an expression gives."""
        field = self.call("Runtime.evaluate", expression=code)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=field)

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
