"""One home for the whole flows: the demo fills it once, what comes after looks at what it left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

ROOT = Path(__file__).parents[2]
# The watcher stops PostgreSQL a few seconds after its last user.
SERVER_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Home:
    """A SOPHIA_HOME of the tests' own.

    Attributes:
        demo: the first demo's outcome in it.
    """

    folder: Path
    demo: subprocess.CompletedProcess[str]

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.folder)

    def sophia(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run `sophia …` in this home."""
        return sophia(self.folder, *arguments, timeout=timeout)

    def processes(self) -> list[psutil.Process]:
        """What still runs for this home: its name is in every command line or environment."""
        return _processes(self.folder)


def environment(folder: Path) -> dict[str, str]:
    """The variables of a process in that home, and no other `SOPHIA_` variable."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SOPHIA_", "DAGSTER_"))}
    return ours | {"SOPHIA_HOME": str(folder), "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}


def sophia(folder: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sophia", *arguments],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            texts = [*process.cmdline(), process.environ().get("SOPHIA_HOME", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in texts):
            found.append(process)
    return found


@pytest.fixture(scope="session")
def home() -> Iterator[Home]:
    """A home in which the demo has run. Its name is short: a unix socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="se", dir="/tmp"))
    folder.chmod(0o755)
    demo = sophia(folder, "demo", "--rows", "150", "--changes", "1", timeout=600)
    try:
        yield Home(folder, demo)
        until(lambda: not _processes(folder), "the end of all processes of the home", SERVER_STOP_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
