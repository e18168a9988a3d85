"""Deliveries into the inbox by the one function that takes them, and what they left."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.estuary.intake.documents import Feed, Reader
from sophia.estuary.intake.take import Taken, take_documents
from tests.intake import FEED, body, position_of


class Deliveries:
    """What was delivered of one collection."""

    def __init__(self, connection: psycopg.Connection[TupleRow], feed: Feed = FEED) -> None:
        self.connection = connection
        self.feed = feed
        self.reader = Reader(feed)
        inbox.ensure_collection(connection, feed.collection, feed.key)

    def take(self, *documents: Any) -> Taken:
        """One request."""
        return self.take_raw(body(*documents))

    def take_raw(self, *bodies: bytes) -> Taken:
        """Several requests in one transaction."""
        return take_documents(self.connection, self.reader, bodies)

    def rows(self) -> dict[str, tuple[Any, ...]]:
        """By key: number of the last change (0 of a marker), body (None of a deleted one), missing columns."""
        found = self.connection.execute(
            "SELECT key, clock, CASE WHEN deleted THEN NULL ELSE body END, missing FROM sophia.documents d "
            "JOIN sophia.collections c ON c.id = d.collection_id WHERE c.name = %s ORDER BY key",
            [self.feed.collection],
        ).fetchall()
        base = position_of(0)
        return {
            key: ((clock[1] - base) // 160 if clock[2] == 0 else 0, row, missing) for key, clock, row, missing in found
        }

    def parked(self) -> list[tuple[Any, ...]]:
        """Key, reason, attempts and text of what is parked."""
        found = self.connection.execute("SELECT key, reason, attempts, body FROM sophia.parked ORDER BY id").fetchall()
        return [(*rest, bytes(text)) for *rest, text in found]

    def rereads(self) -> dict[str, int]:
        """Number of the change by key."""
        base = position_of(0)
        return {
            key: (clock[1] - base) // 160
            for key, clock in self.connection.execute("SELECT key, clock FROM sophia.rereads").fetchall()
        }
