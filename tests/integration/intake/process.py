"""`sophia serve intake` as a process of its own, with a small catalog."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sophia.database import Database
from tests.inference import ROOT, START_SECONDS, answers, free_port
from tests.waiting import until

# Name of the failpoint at which the process dies.
DIE_VARIABLE = "SOPHIA_TEST_DIE_AT"


class Process:
    """The service in a process of its own.

    Attributes:
        address: its base URL.
    """

    def __init__(self, folder: Path, database: Database, **environment: str) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._output = folder / "access.jsonl"
        self._errors = folder / "errors.txt"
        known = {
            "SOPHIA_HOME": str(folder / "home"),
            "SOPHIA_DATABASE_URL": database.url,
            "SOPHIA_INTAKE__PORT": str(port),
        }
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", "from tests.integration.intake.process import main; main()"],
                cwd=ROOT,
                stdout=output,
                stderr=errors,
                env={**os.environ, **known, **environment},
            )

    def ready(self) -> None:
        """Wait until it takes requests."""
        until(lambda: self.popen.poll() is not None or answers(self.address), "readiness", START_SECONDS)
        assert self.popen.poll() is None, self.errors

    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

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


def main() -> None:
    """What the process runs: `sophia serve intake`, over a catalog in which `documents` comes from Estuary."""
    from sophia import failpoints
    from sophia.cli import main as command
    from sophia.services.intake import server
    from tests.intake import fed_catalog

    point = os.environ.get(DIE_VARIABLE)
    if point is not None:
        failpoints.arm(lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None)
    real = server.serve
    server.serve = lambda settings, catalog, database: real(settings, fed_catalog(catalog), database)  # type: ignore[assignment,misc]
    sys.argv = ["sophia", "serve", "intake"]
    command()
