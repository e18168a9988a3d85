"""A web service of ours as a process of its own, as its command runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[1]
# Importing torch on a busy machine takes its time.
START_SECONDS = 120.0


def answers(address: str, path: str = "/ready") -> bool:
    """Whether the service says 200 there."""
    try:
        return httpx.get(f"{address}{path}", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


class ServiceProcess:
    """A service on a free port of 127.0.0.1.

    Args:
        module: its `main()` is what the process runs.
        port_variable: tells it its port.

    Attributes:
        address: its base URL.
        home: its SOPHIA_HOME.
    """

    def __init__(self, folder: Path, module: str, port_variable: str, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.home = folder / "home"
        self._output = folder / "access.jsonl"
        self._errors = folder / "errors.txt"
        known = {"SOPHIA_HOME": str(self.home), port_variable: str(port)}
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import main; main()"],
                cwd=ROOT,
                stdout=output,
                stderr=errors,
                env={**os.environ, **known, **environment},
            )

    def ready(self) -> None:
        """Wait until it takes requests."""
        until(lambda: self.popen.poll() is not None or answers(self.address), "readiness", START_SECONDS)
        assert self.popen.poll() is None, self.errors

    @property
    def log(self) -> list[str]:
        """Its access log."""
        return self._output.read_text().splitlines()

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.popen.kill()
        self.popen.wait()
