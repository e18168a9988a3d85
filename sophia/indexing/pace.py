"""How much to take at once, and when to take a row again.

A batch is as large as can be applied in the time allowed: under load it grows, which costs less per document; beside
live changes it shrinks, so that none of them waits for it. A row that changes many times a second is not embedded each
time: once taken, it rests for a moment, and for twice as long if it changed meanwhile, up to `LONGEST_REST`.
"""

from __future__ import annotations

from collections.abc import Iterable

from sophia.documents import Key

FIRST_SIZE = 16
FIRST_REST = 0.025
# With the time of a batch, what keeps a hot row within 100 ms of its source.
LONGEST_REST = 0.08
# Weight of the newest batch in the running mean.
_WEIGHT = 0.3


class Pace:
    """What documents have cost so far, as a running mean."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def size(self, seconds: float, most: int) -> int:
        """Documents that take about `seconds`, from 1 to `most`; before the first was timed, few."""
        if self._seconds is None:
            return min(most, FIRST_SIZE)
        return max(1, min(most, int(seconds / self._seconds)))

    def took(self, documents: int, seconds: float) -> None:
        """Learn from a batch."""
        if documents == 0:
            return
        each = max(seconds / documents, 1e-6)
        self._seconds = each if self._seconds is None else _WEIGHT * each + (1 - _WEIGHT) * self._seconds


class HotRows:
    """When each row may be taken again. All times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        # Key to (taken at, rest), the oldest first.
        self._taken: dict[Key, tuple[float, float]] = {}

    def due(self, key: Key) -> float:
        """From when on the row may be taken; in the past for one that does not change often."""
        taken, rest = self._taken.get(key, (0.0, 0.0))
        return taken + rest

    def take(self, keys: Iterable[Key], now: float) -> None:
        """The rows were taken now."""
        for key in keys:
            before = self._taken.pop(key, None)
            # Taken again soon after its rest: it is hot. After a longer pause it begins anew.
            again = before is not None and now < before[0] + 3 * before[1]
            self._taken[key] = (now, min(LONGEST_REST, 2 * before[1]) if again and before else FIRST_REST)
        for key, (taken, _rest) in list(self._taken.items()):
            if now < taken + 3 * LONGEST_REST:
                break
            del self._taken[key]
