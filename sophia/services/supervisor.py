"""Starts child processes together, restarts those that die of temporary faults, and stops all of them cleanly."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sophia.errors import ConfigurationError, SophiaError

# A child that dies this often in a row, each time within QUICK_SECONDS, is not going to work.
QUICK_SECONDS = 15.0
QUICK_DEATHS = 4
STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """A process to keep running; its output goes to `log`."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0

    def start(self) -> None:
        """Start it in a process group of its own, so that Ctrl-C in the terminal reaches only the supervisor."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self.started = time.monotonic()

    def signal(self, number: int) -> None:
        """Signal the whole group: a child's own children must not outlive it."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return

    def tail(self, lines: int = 5) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _end_with_parent() -> None:
    """In the child: be told to end when the parent dies, also by kill -9 (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Keeps children running until `stop` is set.

    Raises (from `run`):
        ConfigurationError: a child ended with exit code 2; its log's last lines are in the message.
        SophiaError: a child kept dying.
    """

    def __init__(self, children: Sequence[Child], report: Callable[[str], None]) -> None:
        self._children = list(children)
        self._report = report

    def run(self, stop: threading.Event) -> None:
        """Start all, watch, restart; on the way out, stop all."""
        try:
            for child in self._children:
                child.start()
            while not stop.wait(0.5):
                for child in self._children:
                    self._watch(child)
        finally:
            self.stop()

    def _watch(self, child: Child) -> None:
        code = child.process.poll() if child.process is not None else None
        if code is None:
            return
        if code == ConfigurationError.exit_code:
            raise ConfigurationError(f"{child.name} cannot run:\n{child.tail()}")
        quick = time.monotonic() - child.started < QUICK_SECONDS
        child.deaths = child.deaths + 1 if quick else 1
        if child.deaths >= QUICK_DEATHS:
            raise SophiaError(f"{child.name} keeps ending (exit code {code}); its log is {child.log}:\n{child.tail()}")
        self._report(f"{child.name} ended with exit code {code}; starting it again")
        child.start()

    def stop(self) -> None:
        """SIGINT to all, in reverse order of start; SIGKILL to what is still there after a while."""
        for child in reversed(self._children):
            child.signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children:
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._report(f"{child.name} does not stop; killing it")
            # Also after a clean end: what it started may still be there.
            child.signal(signal.SIGKILL)
            child.process.wait()
