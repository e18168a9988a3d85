"""Waiting on a condition with a deadline; a test never sleeps for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# What comes at once on a quiet machine may take this long where many others work; a test never waits so long in vain.
WAIT_SECONDS = 60.0


def until(condition: Callable[[], T], what: str = "the condition", seconds: float = WAIT_SECONDS) -> T:
    """Call `condition` until it is true and return its value; fail when `seconds` are over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s; last value: {value!r}")
        time.sleep(0.01)
