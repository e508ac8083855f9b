"""A real visdom server, on a free port of this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START = "from visdom.server.run_server import main; main()"  # the command visdom fetches the files of its page first


class VisdomServer:
    """A visdom server in a process of its own.

    Args:
        folder: where it keeps its environments.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self, patience: float = 180.0):
        options = ["-port", str(self.port), "-bind_local", "-env_path", f"{self.folder}/", "-logging_level", "ERROR"]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", START, *options],
            env={**os.environ, "HOME": str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + patience
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"visdom did not start on port {self.port}")

    def signal(self, number: signal.Signals):
        self.process.send_signal(number)

    def stop(self):
        self.process.kill()
        self.process.wait(timeout=30)

    def windows(self, env: str) -> dict:
        """Every window of an environment, as the server has it."""
        import requests

        answer = requests.post(f"http://127.0.0.1:{self.port}/win_data", json={"eid": env, "win": None}, timeout=10)
        return answer.json()
