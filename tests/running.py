"""The processes' loops in threads: what a test starts is stopped at its end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.waiting import WAIT_SECONDS, until


class Running:
    """A loop `run(stop)` in a thread of its own."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.stop_event = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run(self.stop_event)
        except BaseException as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def ready(self) -> None:
        """Wait until the loop says that it is set up."""
        until(lambda: self.loop.ready.is_set() or self.ended, "readiness")
        if self.error is not None:
            raise self.error

    def failed(self, seconds: float = WAIT_SECONDS) -> BaseException:
        """Wait for the loop to end by itself, and return its error."""
        until(lambda: self.ended, "the end of the loop", seconds)
        assert self.error is not None, "the loop ended without an error"
        return self.error

    def stop(self) -> None:
        """Stop the loop; its error, if it had one, is raised here."""
        self.stop_event.set()
        self._thread.join(WAIT_SECONDS)
        assert self.ended, "the loop does not stop"
        if self.error is not None:
            raise self.error


@pytest.fixture
def run_loop() -> Iterator[Callable[[Any], Running]]:
    """Runs `loop.run(stop)` in a thread until the test ends."""
    started: list[Running] = []

    def start(loop: Any, *, wait: bool = True) -> Running:
        running = Running(loop)
        started.append(running)
        if wait:
            running.ready()
        return running

    yield start
    for running in started:
        with contextlib.suppress(BaseException):
            running.stop()
