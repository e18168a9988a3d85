"""Runs the long-lived loops: stop on a signal, try again on temporary faults, end on what a person must mend."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import psycopg

from sophia.errors import FencedError, TemporaryError

logger = logging.getLogger("sophia.worker")
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        logger.info("%s: stopping", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def keep_running(work: Callable[[threading.Event], None], stop: threading.Event, name: str) -> None:
    """Call `work(stop)` until `stop` is set, again after temporary faults, with growing pauses.

    Raises:
        FencedError: another process took over; this one must end.
        ConfigurationError: and whatever else a retry cannot mend.
    """
    delay = FIRST_DELAY_SECONDS
    while not stop.is_set():
        try:
            work(stop)
            return
        except FencedError:
            raise
        except (TemporaryError, psycopg.OperationalError) as error:
            logger.warning("%s: %s; again in %.1f s", name, str(error).strip(), delay)
            stop.wait(delay)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)


def run_together(works: Sequence[tuple[str, Callable[[threading.Event], None]]], stop: threading.Event) -> None:
    """Run several loops in threads. The first that fails stops the others and its error is raised."""
    failures: list[BaseException] = []

    def guarded(name: str, work: Callable[[threading.Event], None]) -> None:
        try:
            keep_running(work, stop, name)
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=item, name=item[0], daemon=True) for item in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        # In slices, so that signals reach the main thread.
        while thread.is_alive():
            thread.join(0.5)
    if failures:
        raise failures[0]
