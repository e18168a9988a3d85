"""A thread beside the event loop for calls that one at a time must go through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sophia.services.inference.errors import CrowdedError

# Requests that may wait for a function which takes one at a time.
MOST_WAITING = 64
_R = TypeVar("_R")


class OneThread:
    """Runs calls one after another in a thread, beside the event loop; what waits is bounded."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, call: Callable[..., _R], *arguments: Any) -> _R:
        """The call's result. Cancelled while it waits, the call is never made.

        Raises:
            CrowdedError: too many wait.
        """
        if self._waiting >= MOST_WAITING:
            raise CrowdedError(self._name, 1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
