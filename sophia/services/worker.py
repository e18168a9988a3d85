"""Runs the long-lived loops: stop on a signal, try again on temporary faults, end on what a person must mend."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import psycopg

from sophia.errors import ConfigurationError, FencedError, TemporaryError

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


@dataclass(frozen=True, slots=True)
class Loop:
    """A long-lived loop: `run` works until the event that it is given is set, `ready` is set while it does."""

    name: str
    run: Callable[[threading.Event], None]
    ready: threading.Event


def keep_running(loop: Loop, stop: threading.Event) -> None:
    """Run a loop until `stop` is set, again after temporary faults, with growing pauses, in which it is not ready.

    Raises:
        FencedError: another process took over; this one must end.
        ConfigurationError: and whatever else a retry cannot mend.
    """
    delay = FIRST_DELAY_SECONDS
    while not stop.is_set():
        try:
            loop.run(stop)
            return
        except FencedError:
            raise
        except (TemporaryError, psycopg.OperationalError) as error:
            if loop.ready.is_set():
                # It worked since the last fault: this is the first of a new row.
                delay = FIRST_DELAY_SECONDS
            loop.ready.clear()
            logger.warning("%s: %s; again in %.1f s", loop.name, str(error).strip(), delay)
            stop.wait(delay)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)


def run_together(loops: Sequence[Loop], stop: threading.Event) -> None:
    """Run several loops in threads until all have ended; then the first failure is raised.

    What a person must mend ends its own loop, which is not ready from then on. Any other failure stops all of them, and
    is the one that is raised: what came before it did not end the process, and was logged.
    """
    refused: list[ConfigurationError] = []
    failures: list[BaseException] = []

    def guarded(loop: Loop) -> None:
        try:
            keep_running(loop, stop)
        except ConfigurationError as error:
            loop.ready.clear()
            refused.append(error)
            logger.error("%s has ended, start it again when this is mended: %s", loop.name, error)
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(loop,), name=loop.name, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        # In slices, so that signals reach the main thread.
        while thread.is_alive():
            thread.join(0.5)
    failures += refused
    if failures:
        raise failures[0]
