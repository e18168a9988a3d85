"""Tries to take what is parked once more: by a newer Sophia, or once the catalog knows its collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.errors import DocumentError
from sophia.estuary.intake import events
from sophia.estuary.intake.documents import Feed, Reader, Rejected
from sophia.estuary.intake.take import park, take_documents

Connection = psycopg.Connection[TupleRow]
Q = sql.load("intake")


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many parked entries were taken, still cannot be, and are of a collection that nobody knows."""

    taken: int
    parked: int
    unknown: int


def replay_parked(connection: Connection, feeds: Mapping[str, Feed]) -> Replayed:
    """Take parked entries in the order in which they came. May run beside a delivery and beside itself.

    Args:
        connection: in autocommit mode.
        feeds: the collections that Estuary feeds, by their full Estuary names.
    """
    readers = {name: Reader(feed) for name, feed in feeds.items()}
    taken = parked = unknown = 0
    for (number,) in connection.execute(Q["parked_ids"]).fetchall():
        row = connection.execute(Q["parked"], {"id": number}).fetchone()
        if row is None:
            continue
        name, documents, digest, body = row
        if name == events.NAME:
            done = _replay_event(connection, number, bytes(body))
        elif (reader := readers.get(name)) is not None:
            done = _replay_documents(connection, reader, number, documents, bytes(digest), bytes(body))
        else:
            unknown += 1
            continue
        taken += done
        parked += not done
    return Replayed(taken, parked, unknown)


def _replay_documents(
    connection: Connection, reader: Reader, number: int, documents: int, digest: bytes, body: bytes
) -> bool:
    """Whether nothing of the entry is parked under the same text any more."""

    def finish(connection: Connection, rejected: set[bytes]) -> None:
        if digest not in rejected:
            connection.execute(Q["unpark"], {"id": number})

    array = b"[%b]" % body if documents == 1 else body
    return digest not in take_documents(connection, reader, [array], finish).rejected


def _replay_event(connection: Connection, number: int, body: bytes) -> bool:
    try:
        event = events.read_event(body)
    except DocumentError as error:
        park(connection, events.NAME, Rejected(body, str(error), documents=0))
        return False
    with connection.transaction():
        events.record_event(connection, event)
        connection.execute(Q["unpark"], {"id": number})
    return True
