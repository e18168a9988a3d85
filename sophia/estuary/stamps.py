"""UUIDs as Estuary stamps its documents with: version 1, one producer a start, a clock that only goes up.

Invariant: each stamp's clock lies at least one microsecond above the one before, also over restarts when the last
clock is handed on. The producer is random and never that of a network card (its multicast bit is set).

Source: gazette `message/uuid.go`. The inverse is `sophia.documents.uuid_clock`.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import datetime

from sophia.documents import uuid_time

# What a document is to its transaction; the lower 10 bits of `clock_seq`.
OUTSIDE_TXN, CONTINUE_TXN, ACK_TXN = 0, 1, 2

_UNIX_100NS = 122_192_928_000_000_000  # 1582-10-15 to 1970-01-01
_SEQUENCE_BITS = 4
MICROSECOND = 10 << _SEQUENCE_BITS
_MULTICAST = 1 << 40


def clock_at(time: datetime) -> int:
    """The clock of the first document that could be published at this moment (with its time zone)."""
    return int(time.timestamp() * 1_000_000) * MICROSECOND + (_UNIX_100NS << _SEQUENCE_BITS)


def uuid_of(clock: int, producer: int, flags: int) -> str:
    """The UUID of a 64-bit clock, a 48-bit producer and the flags."""
    timestamp = clock >> _SEQUENCE_BITS
    return str(
        uuid.UUID(
            fields=(
                timestamp & 0xFFFF_FFFF,
                timestamp >> 32 & 0xFFFF,
                timestamp >> 48 & 0x0FFF | 0x1000,
                0x80 | (clock & 0xF) << 2 | flags >> 8,
                flags & 0xFF,
                producer,
            )
        )
    )


def uuid_flags(text: str) -> int:
    """The flags of a document's UUID."""
    parsed = uuid.UUID(text)
    return (parsed.clock_seq_hi_variant & 0x3) << 8 | parsed.clock_seq_low


def published_at(clock: int) -> str:
    """A clock as `flow_published_at` shows it: RFC 3339 in UTC."""
    return uuid_time(clock).isoformat().replace("+00:00", "Z")


class Producer:
    """Stamps documents.

    Args:
        now: seconds since 1970, as `time.time`.
        last: the last clock of an earlier producer of the same documents.
    """

    def __init__(self, now: Callable[[], float], rng: random.Random, last: int = 0) -> None:
        self._now = now
        self.last = last
        self.id = rng.getrandbits(48) | _MULTICAST

    def stamp(self, flags: int = CONTINUE_TXN) -> str:
        """The next document's UUID."""
        wall = int(self._now() * 1_000_000) * MICROSECOND + (_UNIX_100NS << _SEQUENCE_BITS)
        self.last = max(wall, self.last + MICROSECOND)
        return uuid_of(self.last, self.id, flags)
