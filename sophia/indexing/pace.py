"""How much to take at once, and when to take a row again.

A batch is as large as can be applied in the time allowed: under load it grows, which costs less per document; beside
live changes it shrinks, so that none of them waits for it. A row that changes many times a second is not embedded each
time: once taken, it rests for a moment, and for twice as long if it changed meanwhile, up to `LONGEST_REST`.
"""

from __future__ import annotations

from collections.abc import Iterable

from sophia.documents import Key

FIRST_SIZE = 16
# Below, the fixed cost of a batch is all there is.
LEAST_SIZE = 8
LARGEST_SIZE = 1 << 16
FIRST_REST = 0.025
# With the time of a batch, what keeps a hot row within 100 ms of its source.
LONGEST_REST = 0.08


class Pace:
    """The size of a batch, from how long the last ones took.

    A batch costs something whatever it holds, so a small one seems dear for each of its documents; to shrink because of
    that would end at batches of one. So the size shrinks only when a batch took too long, and is doubled when a full
    one took less than half of the time.
    """

    def __init__(self) -> None:
        self._size = FIRST_SIZE

    def size(self, most: int) -> int:
        """Documents of the next batch, from 1 to `most`."""
        return max(1, min(most, self._size))

    def took(self, documents: int, seconds: float, allowed: float) -> None:
        """Learn from a batch that took `seconds` where `allowed` were to spend."""
        if seconds > allowed and documents >= self._size // 2:
            self._size = max(LEAST_SIZE, int(documents * allowed / seconds))
        elif seconds < allowed / 2 and documents >= self._size:
            self._size = min(LARGEST_SIZE, self._size * 2)


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
