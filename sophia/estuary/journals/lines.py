"""Cuts a stream of bytes into lines, however its pieces are cut. What is kept of an unfinished line is bounded."""

from __future__ import annotations

from collections.abc import Iterator

from sophia.errors import ConfigurationError


class Lines:
    """Lines of one stream.

    Args:
        longest: bytes of a line; a longer one is a fault, not memory.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._parts: list[bytes] = []
        self._size = 0

    def cut(self, data: bytes) -> Iterator[bytes]:
        """The lines that end in the next piece, without their ends; empty ones are left out.

        Raises:
            ConfigurationError: a line is too long.
        """
        *ended, rest = data.split(b"\n")
        for line in ended:
            self._add(line)
            if whole := self.rest():
                yield whole
        self._add(rest)

    def rest(self) -> bytes:
        """What has come of a line that has not ended; it is forgotten then."""
        whole = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return whole

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._longest:
            raise ConfigurationError(
                f"Estuary's broker: a line has more than {self._longest:,} bytes, which is no document; update Sophia"
            )
        if part:
            self._parts.append(part)
