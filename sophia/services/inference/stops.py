"""Ends a text before the first stop string, while it is still being written."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on as it comes, and holds back what may be the beginning of a stop string.

    Attributes:
        stopped: whether a stop string has come; nothing is passed on from then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is certain with this piece."""
        if self.stopped:
            return ""
        self._held += text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            # The one that is complete first, however the text was cut into pieces.
            return self._take(min(found)[1])
        return self._take(len(self._held) - self._undecided())

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        return self._take(len(self._held)) if not self.stopped else ""

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _undecided(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
