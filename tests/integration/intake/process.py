"""`sophia serve intake` as a process of its own, with a small catalog."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from sophia.database import Database
from tests.service_process import ServiceProcess

# Name of the failpoint at which the process dies.
DIE_VARIABLE = "SOPHIA_TEST_DIE_AT"


class Process(ServiceProcess):
    """The service in a process of its own, over a database."""

    def __init__(self, folder: Path, database: Database, **environment: str) -> None:
        known = {"SOPHIA_DATABASE_URL": database.url}
        super().__init__(folder, "tests.integration.intake.process", "SOPHIA_INTAKE__PORT", known | environment)

    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


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
