"""Reads rows again from the PostgreSQL behind Estuary, where a delivery does not tell what became of them.

A primary-key change arrives as one document of the new key that names the old one. What it was combined with, nobody
says: in one transaction 1 may have become 5, a new 1 been inserted and 5 been updated, so a delete of 1 would bury a
live row. So the intake asks for the old key in `sophia.rereads`, under the clock of the document that named it,
and for the new key where the document does not tell all of the row. The other case is a document that lacks columns
which the inbox never had.

The clock of what is read is that of the newest document of the key that had been delivered before, with an ordinal one
higher; where the request bears a higher clock, it is that one. No wall time is in it. That is right wherever the stream
is, since that document was published, so committed, before the row was read:

* A change with a lower clock committed before the row was read: what was read has it, and when it arrives it is void.
* A change that committed after the row was read is published later, so its clock is higher, and it wins.
* A change between the two, committed before the row was read and published after that document, wins too when it
  arrives. It may show an older state for a moment; the last change of the key follows it and is the row.

A document that arrives between the look and the writing outranks what was read; the request then stays for another
look. So the key is right at rest. A row that is gone becomes a delete at the same clock. A row that is there and cannot
be read is tried again after pauses that grow, behind all others, and its key counts as incomplete. The source must be
the primary.
"""

from __future__ import annotations

import logging
from threading import Event

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog import Catalog
from sophia.catalog.models import Collection
from sophia.database.connect import Database
from sophia.documents import Change, Clock, Key
from sophia.errors import SophiaError
from sophia.estuary.keys import kept_key
from sophia.estuary.naming import fed_by_estuary
from sophia.estuary.source.rows import Q, SourceRows, source_url
from sophia.failpoints import failpoint
from sophia.settings import Settings

logger = logging.getLogger("sophia.estuary")
Connection = psycopg.Connection[TupleRow]
# Rows of one transaction.
MOST_ROWS = 500
# Between two looks; a key change is served wrongly for about as long.
POLL_SECONDS = 0.5
# After a fault: the source may be away for long.
PAUSE_SECONDS = 5.0
# Before a row that could not be read is tried again: the first time, and at most.
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0


class Rereader:
    """Answers requests until told to stop. Nothing stops it but `stop`: faults are logged and tried again.

    Attributes:
        ready: set after the first look.
    """

    def __init__(
        self, catalog: Catalog, database: Database, settings: Settings, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._sources = [
            (collection, url)
            for collection in fed_by_estuary(catalog, settings.profile)
            if (url := source_url(catalog, collection, settings)) is not None
        ]
        self._database = database
        self._poll_seconds = poll_seconds
        self.ready = Event()

    @property
    def configured(self) -> bool:
        """Whether any collection has a source to read from."""
        return bool(self._sources)

    def run(self, stop: Event) -> None:
        """Look for requests and answer them, collection by collection."""
        while not stop.is_set():
            try:
                with self._database.connect("sophia-estuary-reread") as own:
                    while not stop.is_set():
                        faults = self._look(own, stop)
                        self.ready.set()
                        stop.wait(PAUSE_SECONDS if faults else self._poll_seconds)
            except (SophiaError, psycopg.Error) as error:
                logger.warning("rows cannot be read again, trying later: %s", _told(error))
                stop.wait(PAUSE_SECONDS)

    def _look(self, own: Connection, stop: Event) -> int:
        """One look at every collection. Returns how many of them had a fault."""
        faults = 0
        for collection, url in self._sources:
            try:
                # What is left then waits for the next look: a key that goes on changing is not run after.
                while not stop.is_set() and reread_collection(own, collection, url) >= MOST_ROWS:
                    pass
            except (SophiaError, psycopg.Error) as error:
                if own.broken:
                    raise
                faults += 1
                logger.warning("rows of %s cannot be read again: %s", collection.name, _told(error))
        return faults


def reread_collection(own: Connection, collection: Collection, url: str, limit: int = MOST_ROWS) -> int:
    """Answer at most `limit` requests of each kind for one collection. Returns how many rows were looked for.

    Rows that are there and cannot be read are logged and listed as dead letters.

    Raises:
        SourceError: the source's table cannot be read.
        ConfigurationError: the collection's documents are kept by another key than the catalog names.
        TemporaryError: the source does not answer.
    """
    row = own.execute(Q["collection"], {"name": collection.name}).fetchone()
    if row is None:
        return 0
    number, key_fields, _generation = row
    pauses = {"first_pause": FIRST_PAUSE_SECONDS, "longest_pause": LONGEST_PAUSE_SECONDS}
    params = {"collection_id": number, "limit": limit} | pauses
    requests = own.execute(Q["requested"], params).fetchall()
    wanted = {Key(key): Clock(*clock) for key, clock in own.execute(Q["incomplete"], params)}
    wanted |= {Key(key): Clock(*newest) for key, _, newest in requests}
    if not wanted:
        return 0
    assert collection.table is not None  # noqa: S101 - a source URL is only given with a table
    with SourceRows(url, collection.table, kept_key(collection, key_fields)) as rows:
        found = rows.read(list(wanted))
    unreadable = rows.unreadable
    changes = [verified_change(key, clock, found.get(key)) for key, clock in wanted.items() if key not in unreadable]
    written = {change.key: change.clock for change in changes}
    requests = [request for request in requests if request[0] in written]
    with own.transaction():
        inbox.accept(own, collection.name, [*changes, *(_distrusted(key, wanted[key]) for key in unreadable)])
        for key, reason in unreadable.items():
            told = f"its row in the source cannot be read, change it there: {reason}"
            inbox.park(own, collection.name, key, stage="inbox", reason=told, clock=wanted[key])
        for change in changes:
            inbox.resolve(own, collection.name, [change.key], change.clock)
        own.execute(
            Q["answered"],
            {
                "collection_id": number,
                "keys": [key for key, _, _ in requests],
                "clocks": [Clock(*clock).literal for _, clock, _ in requests],
                "written": [written[Key(key)].literal for key, _, _ in requests],
            },
        )
        failpoint("estuary.reread.before_commit")
    failpoint("estuary.reread.after_commit")
    logger.info("read %d rows of %s again", len(changes), collection.name)
    if unreadable:
        logger.warning(
            "%s: %d rows cannot be read; `sophia dead-letters` lists them: change them",
            collection.table,
            len(unreadable),
        )
    return len(wanted)


def verified_change(key: Key, clock: Clock, row: dict[str, object] | None) -> Change:
    """What a look at the source says of a key whose delivery bears `clock`: its row, or that it is gone."""
    if row is None:
        return Change(key, "d", _after(clock), None)
    return Change(key, "c", _after(clock), row)


def _after(clock: Clock) -> Clock:
    return clock._replace(ordinal=clock.ordinal + 1)


def _distrusted(key: Key, clock: Clock) -> Change:
    """Nothing that was delivered of the key before the request is trusted; no change where it is done already."""
    return Change(key, "u", clock, {}, complete=False, missing=(inbox.WHOLE_ROW,), snapshot=True)


def _told(error: SophiaError | psycopg.Error) -> str:
    """Why, without the server's words: they may quote a value."""
    return f"{type(error).__name__} (SQLSTATE {error.sqlstate})" if isinstance(error, psycopg.Error) else str(error)
