"""Commit events of Estuary's triggers: everything of some collections up to a time was delivered and committed.

An event may come twice, late, or in another order: a watermark never goes back. The document that a trigger sends is
the one that Sophia's catalog renders for it (`sophia.estuary.catalog.render`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.errors import DocumentError

Connection = psycopg.Connection[TupleRow]
Q = sql.load("intake")
# What is parked is listed under a name as those of collections; none of these begins with a slash.
NAME = "/events"
MOST_COLLECTIONS = 1_000
LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class CommitEvent:
    """One committed transaction, or several, of a materialisation.

    Attributes:
        collections: full Estuary names, in order.
        published_at_min, published_at_max: of its documents, in UTC.
    """

    materialization: str
    collections: tuple[str, ...]
    published_at_min: datetime
    published_at_max: datetime


class _Payload(msgspec.Struct, rename="camel"):
    materialization: str
    collections: list[str]
    published_at_min: datetime
    published_at_max: datetime


_decode = msgspec.json.Decoder(_Payload).decode


def read_event(body: bytes | bytearray) -> CommitEvent:
    """The event of a request's body.

    Raises:
        DocumentError: it is none.
    """
    try:
        payload = _decode(body)
        names = (payload.materialization, *payload.collections)
        for name in names:
            if not name or len(name.encode()) > LONGEST_NAME or "\0" in name:
                raise DocumentError("a name of the event is empty, too long or holds the character NUL")
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, msgspec.ValidationError) else "it is no JSON"
        raise DocumentError(f"the body is no commit event: {reason}") from None
    if not payload.collections or len(payload.collections) > MOST_COLLECTIONS:
        raise DocumentError(
            f"the event names {len(payload.collections):,} collections; 1 to {MOST_COLLECTIONS:,} may be"
        )
    if payload.published_at_min.tzinfo is None or payload.published_at_max.tzinfo is None:
        raise DocumentError("a time of the event has no time zone")
    try:
        first, last = payload.published_at_min.astimezone(UTC), payload.published_at_max.astimezone(UTC)
    except OverflowError:
        raise DocumentError("a time of the event lies outside of the years 1 to 9999") from None
    return CommitEvent(payload.materialization, tuple(sorted(set(payload.collections))), first, last)


def record_event(connection: Connection, event: CommitEvent) -> None:
    """Note the event and raise the watermarks of its collections, in the caller's transaction or at once."""
    with connection.transaction():
        connection.execute(
            Q["commit_event"],
            {
                "materialization": event.materialization,
                "collections": list(event.collections),
                "published_at_min": event.published_at_min,
                "published_at_max": event.published_at_max,
            },
        )
        connection.execute(
            Q["raise_watermarks"],
            {"collections": list(event.collections), "published_at_max": event.published_at_max},
        )
