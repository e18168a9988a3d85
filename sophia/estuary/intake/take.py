"""Takes what Estuary delivered into the inbox: the one way for the intake service, for a replay and for tests.

Invariants, each with a test:

* One transaction takes all documents of the given bodies in their order, parks those that cannot be taken, and notes
  the rows that must be read again. Whoever answers Estuary does so after it.
* A document that the database refuses is found and parked; the transaction is done anew without it. What cannot be
  explained even then is parked as a whole: no document ever blocks the ones behind it.
* A parked document whose key is known marks that key as incomplete, and asks for its row to be read again.
* The same delivery again, cut differently, takes nothing and parks nothing twice.
* Documents of one collection are never kept by two different keys: a key that was changed in the catalog is refused
  until a person begins anew with it (`sophia.estuary.intake.rekey`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.catalog.models import Catalog
from sophia.database.connect import pipelined_transaction
from sophia.documents import Change, Clock, Key
from sophia.errors import ConfigurationError
from sophia.estuary.intake.documents import STEP_BYTES, Feed, Parsed, Reader, Rejected
from sophia.estuary.keys import another_key, kept_key
from sophia.estuary.naming import fed_by_estuary
from sophia.failpoints import failpoint
from sophia.settings import Profile

Connection = psycopg.Connection[TupleRow]
Cursor = psycopg.Cursor[TupleRow]
Q = sql.load("intake")
# Called in the transaction, with the digests of what it parks.
Finish = Callable[[Connection, set[bytes]], None]
_LEFT = "a row has left this key, and what became of the key is not told"
_CAME = "a row came to this key by a document that does not tell all of it"
_PARKED = "a document of this key is parked"
_REFUSALS = {
    "22003": "the document holds a number that jsonb cannot hold",
    "22P05": "the document holds a character that jsonb cannot hold",
    "54001": "the document is nested too deep for the database",
}


@dataclass(slots=True)
class Taken:
    """What became of deliveries.

    Attributes:
        bodies: of each body how many documents it had, and how many entries were parked of it.
        changed: keys whose documents changed, counted by call of the inbox.
        duplicates: documents that were there already.
        stale: documents that are older than what was there, or void.
        rejected: digests of what was parked.
        parked_documents: how many documents that was, as far as they can be told apart.
    """

    bodies: list[tuple[int, int]] = field(default_factory=list)
    changed: int = 0
    duplicates: int = 0
    stale: int = 0
    rejected: set[bytes] = field(default_factory=set)
    parked_documents: int = 0

    @property
    def documents(self) -> int:
        """How many documents there were."""
        return sum(documents for documents, _ in self.bodies)

    @property
    def parked(self) -> int:
        """How many entries were parked."""
        return sum(parked for _, parked in self.bodies)


def feeds(connection: Connection, catalog: Catalog, profile: Profile) -> dict[str, Feed]:
    """The collections that Estuary feeds in a profile, by their full Estuary names. Their rows are made if need be.

    Raises:
        ConfigurationError: the key of one is not known, or is another than its documents are kept by.
    """
    found = {}
    for collection in fed_by_estuary(catalog, profile):
        # Looked at under the collection's lock: what another process sets meanwhile is not set back.
        with connection.transaction():
            inbox.ensure_collection(connection, collection.name)
            key = kept_key(collection, inbox.lock(connection, [collection.name])[collection.name].key_fields)
            if not key:
                raise ConfigurationError(
                    f"collection {collection.name!r} comes from Estuary, and nothing says what its key is; name its "
                    "key columns in the catalog's `key`"
                )
            inbox.ensure_collection(connection, collection.name, key)
        read = (
            name for index in catalog.indexes_of(collection.name) for name in (*index.template_columns, *index.metadata)
        )
        found[collection.estuary] = Feed(
            collection.name, collection.estuary, key, tuple(dict.fromkeys(read)), collection.history
        )
    return found


def take_documents(
    connection: Connection, reader: Reader, bodies: Sequence[bytes | bytearray], finish: Finish | None = None
) -> Taken:
    """Take the documents of one or several requests in one transaction, in their order.

    Args:
        connection: in autocommit mode, without an open transaction.
        bodies: each a JSON array of documents, as it came.
        finish: what else belongs to the transaction.

    Raises:
        LookupError: the collection has no row; `feeds` makes it.
        ConfigurationError: the collection has got another key since the reader was made.
        psycopg.OperationalError: the database is away; nothing was taken.
    """
    try:
        return _Transaction(reader, bodies, finish).run(connection)
    except psycopg.Error as error:
        if not _about_a_document(error):
            raise
    try:
        return _Transaction(reader, bodies, finish, sift=True).run(connection)
    except psycopg.Error as error:
        if not _about_a_document(error):
            raise
        reason = _refusal(error)
    return _Transaction(reader, bodies, finish, refused=reason).run(connection)


class _Transaction:
    """One attempt to take bodies.

    Args:
        sift: have the database look at every document before it is taken.
        refused: why the bodies are parked as they are.
    """

    def __init__(
        self,
        reader: Reader,
        bodies: Sequence[bytes | bytearray],
        finish: Finish | None,
        *,
        sift: bool = False,
        refused: str | None = None,
    ) -> None:
        self._reader = reader
        self._bodies = bodies
        self._finish = finish
        self._sift = sift
        self._refused = refused
        self._taken = Taken()
        self._waiting: list[Change] = []
        self._size = 0
        # Of each call of the inbox: the newest clock by key, and what it says of them.
        self._sent: list[tuple[dict[Key, Clock], list[Cursor]]] = []

    def run(self, connection: Connection) -> Taken:
        feed = self._reader.feed
        # To sift is to ask, and a pipeline cannot be asked.
        with connection.transaction() if self._sift else pipelined_transaction(connection):
            locked = inbox.lock(connection, [feed.collection])[feed.collection]
            if locked.key_fields != feed.key:
                raise another_key(feed.collection, locked.key_fields, feed.key)
            for body in self._bodies:
                documents = parked = 0
                for step in self._steps(body, locked.generation):
                    if self._sift:
                        _sift(connection, step)
                    documents += step.documents
                    parked += len(step.rejected)
                    self._add(connection, locked, step)
                self._taken.bodies.append((documents, parked))
            self._send(connection, locked)
            if self._finish is not None:
                self._finish(connection, self._taken.rejected)
            failpoint("intake.before_commit")
        failpoint("intake.after_commit")
        for newest, cursors in self._sent:
            changed = sum(row[0] for cursor in cursors if (row := cursor.fetchone()))
            self._taken.changed += changed
            if changed < len(newest):
                self._count(connection, locked, newest, changed)
        return self._taken

    def _steps(self, body: bytes | bytearray, generation: int) -> Iterable[Parsed]:
        if self._refused is None:
            return self._reader.read(body, generation)
        return [Parsed(rejected=[Rejected(bytes(body), self._refused, documents=0)])]

    def _add(self, connection: Connection, locked: inbox.Locked, step: Parsed) -> None:
        told = {*step.left, *step.came, *(rejected.key for rejected in step.rejected if rejected.key is not None)}
        erased = inbox.erased_clocks(connection, locked, told)
        rereads = {key: (clock, _LEFT) for key, clock in step.left.items()}
        for key, clock in step.came.items():
            if key not in rereads or rereads[key][0] < clock:
                rereads[key] = (clock, _CAME)
        rereads = {key: want for key, want in rereads.items() if key not in erased or want[0] > erased[key]}
        for rejected in step.rejected:
            if rejected.key in erased and rejected.clock is not None and rejected.clock <= erased[rejected.key]:
                # It may not come back, not even as what cannot be taken.
                continue
            self._taken.rejected.add(rejected.digest)
            self._taken.parked_documents += rejected.documents
            park(connection, self._reader.feed.estuary, rejected, collection_id=locked.id)
            marker = rejected.marker()
            if marker is not None and rejected.clock is not None:
                # Ahead of the step's other documents: one of these may be merged into what was there before.
                self._waiting.append(marker)
                if marker.key not in rereads or rereads[marker.key][0] < rejected.clock:
                    rereads[marker.key] = (rejected.clock, _PARKED)
        if rereads:
            _want(connection, locked.id, rereads)
        self._waiting += step.changes
        self._size += step.size
        if self._size >= STEP_BYTES:
            self._send(connection, locked)

    def _send(self, connection: Connection, locked: inbox.Locked) -> None:
        if not self._waiting:
            return
        newest: dict[Key, Clock] = {}
        for change in self._waiting:
            for key in (change.key, change.before_key):
                known = newest.get(key) if key is not None else None
                if key is None or (change.snapshot and change.missing):
                    continue
                if known is not None and known == change.clock:
                    self._taken.duplicates += 1
                if known is None or known < change.clock:
                    newest[key] = change.clock
        self._sent.append((newest, inbox.take(connection, locked, self._waiting)))
        self._waiting = []
        self._size = 0

    def _count(self, connection: Connection, locked: inbox.Locked, newest: dict[Key, Clock], changed: int) -> None:
        params = {
            "collection_id": locked.id,
            "keys": list(newest),
            "clocks": [clock.literal for clock in newest.values()],
        }
        row = connection.execute(Q["outgrown"], params).fetchone()
        stale = min(int(row[0]) if row else 0, len(newest) - changed)
        self._taken.stale += stale
        self._taken.duplicates += len(newest) - changed - stale


def park(connection: Connection, name: str, rejected: Rejected, *, collection_id: int | None = None) -> None:
    """Keep what cannot be taken, under the full Estuary name of its collection."""
    connection.execute(
        Q["park"],
        {
            "collection_id": collection_id,
            "name": name,
            "key": rejected.key,
            "clock": None if rejected.clock is None else rejected.clock.literal,
            "documents": rejected.documents,
            "digest": rejected.digest,
            "reason": rejected.reason,
            "body": rejected.text,
        },
    )


def _want(connection: Connection, collection_id: int, rereads: dict[Key, tuple[Clock, str]]) -> None:
    connection.execute(
        Q["want_reread"],
        {
            "collection_id": collection_id,
            "keys": list(rereads),
            "clocks": [clock.literal for clock, _ in rereads.values()],
            "reasons": [reason for _, reason in rereads.values()],
        },
    )


def _sift(connection: Connection, step: Parsed) -> None:
    """Move what the database refuses from the step's changes to what cannot be taken."""
    places = [place for place, change in enumerate(step.changes) if change.text is not None]
    refused = _refused_of(connection, [(place, step.changes[place].text or "") for place in places])
    for place, reason in refused.items():
        change = step.changes[place]
        text = (change.text or "").encode()
        step.rejected.append(Rejected(text, reason, key=change.key, clock=change.clock))
    step.changes = [change for place, change in enumerate(step.changes) if place not in refused]


def _refused_of(connection: Connection, texts: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Reason by place of what the database refuses, found by halving."""
    if not texts:
        return {}
    try:
        with connection.transaction():
            connection.execute(Q["readable"], {"bodies": [text for _, text in texts]})
    except psycopg.Error as error:
        if not _about_a_document(error):
            raise
        if len(texts) == 1:
            return {texts[0][0]: _refusal(error)}
        middle = len(texts) // 2
        return _refused_of(connection, texts[:middle]) | _refused_of(connection, texts[middle:])
    return {}


def _about_a_document(error: psycopg.Error) -> bool:
    """Whether an error speaks of data or of a limit, and not of the server or the connection."""
    return (error.sqlstate or "")[:2] in ("22", "54")


def _refusal(error: psycopg.Error) -> str:
    """Why, without the server's own words: they quote the document."""
    state = error.sqlstate or ""
    return _REFUSALS.get(state, f"the database cannot hold the document (SQLSTATE {state})")
