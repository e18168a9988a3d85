"""Erasure: a document leaves everything that Sophia keeps; the fact and the hash of its key remain.

Invariants, each with a test:

* One transaction removes the document, its log, its dead letters, its ledger rows and its chunks in every version. A
  store outside of the database follows: the ledger row says `to be removed` until the store was looked at, and the same
  command does what a death in between has left.
* Nobody brings it back: deliveries up to the erasure's clock are void for the inbox, and a writer that read the
  document before is fenced, so it finds nothing when it reads again.
* The embedding cache keeps no vector of it, nor of its former texts. It does not know which texts those were, so all
  vectors of the collection's models go, behind the first transaction: from then on nobody can read the text anew, and
  who has read it before may not store its vector any more.
* The rows are vacuumed away afterwards, with the words in full-text indexes and the values in planner statistics. If a
  session's old snapshot keeps them, that session is named and the result says so.

What cannot be removed is said by `REMAINS`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psycopg
from psycopg.rows import TupleRow, class_row

from sophia import sql
from sophia.database.vacuum import snapshots_before, vacuum, vacuum_statistics
from sophia.documents import Clock, Key, bucket_of, key_hash, parse_lsn
from sophia.embedding.postgres_cache import erase_vectors
from sophia.errors import SophiaError, TemporaryError
from sophia.failpoints import failpoint
from sophia.indexing.publication import finish_drops
from sophia.indexing.removal import erase_left
from sophia.indexing.versions import IndexVersion
from sophia.stores import IN_DATABASE, Stores

Connection = psycopg.Connection[TupleRow]
Q = sql.load("erasure")
TABLES = ("documents", "inbox", "ledger", "dead_letters", "parked", "rereads", "batches", "embedding_cache")
REMAINS = (
    "the source itself, and its backups",
    "write-ahead log of source and platform databases, until it is recycled",
    "backups and replicas of the platform's database, until they age out",
    "bytes in the free space of data files, until new rows overwrite them (`--rewrite` clears them now)",
    "log files that processes wrote (they name keys of parked documents at most, never text)",
    "vectors in an embedding cache that the settings do not name, until they expire",
)
# How long to wait for sessions that may still see the rows.
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.2


class OtherCache(Protocol):
    """An embedding cache outside of this database."""

    name: str

    def check(self) -> None:
        """Raises TemporaryError if it is not there."""
        ...

    def erase(self, models: Sequence[str] | None) -> int:
        """Remove all vectors of these models, or of all if None, for good. Returns how many. May be called again.

        Raises:
            TemporaryError: it is not there.
        """
        ...


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did.

    Attributes:
        clock: deliveries up to here are void.
        removed: rows by place; a place of an index is `<index> v<number>`, and what was in the cache is the vectors of
            all documents under the same models.
        deleted: whether the source had deleted the document; if not, its next change or copy brings it back.
        unnamed: parked deliveries of the collection that remain although no key of them can be read, since none holds
            the values of this key as they are written.
        vacuumed: what was worked on afterwards.
        kept_by: process ids of sessions whose old snapshots keep removed rows in the files; 0 is a slot or prepared
            transaction. Nothing was vacuumed then; empty when everything is gone.
    """

    collection: str
    key_hash: str
    clock: Clock
    removed: dict[str, int]
    deleted: bool
    unnamed: int = 0
    vacuumed: tuple[str, ...] = ()
    kept_by: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "collection": self.collection,
            "key_hash": self.key_hash,
            "clock": list(self.clock),
            "removed": self.removed,
            "deleted_in_source": self.deleted,
            "parked_without_key": self.unnamed,
            "vacuumed": list(self.vacuumed),
            "kept_by": list(self.kept_by),
            "remains": list(REMAINS),
        }


def erase(
    connection: Connection,
    collection: str,
    key: Key,
    *,
    force: bool = False,
    rewrite: bool = False,
    patience: float = PATIENCE_SECONDS,
    caches: Sequence[OtherCache] = (),
    stores: Stores = IN_DATABASE,
) -> Erasure:
    """Remove a document from everything that is kept, then vacuum. May be called again for the same key.

    Args:
        connection: in autocommit mode, of the owner of the tables.
        force: also while the source still has the row.
        rewrite: write the touched tables anew, so that not even free space holds the text; locks each meanwhile.
        patience: seconds to wait for sessions that may still see the rows.
        caches: embedding caches elsewhere; the one in this database is always emptied.
        stores: where versions live.

    Raises:
        SophiaError: no such collection, an unknown key, or the source still has the row.
        TemporaryError: a snapshot of the collection is under way, which may bring the row once more; or a cache is
            away. If it went away in between, the message says so, and the same call does the rest.
    """
    row = connection.execute(Q["collection"], {"name": collection}).fetchone()
    if row is None:
        known = ", ".join(name for (name,) in connection.execute(Q["names"]))
        raise SophiaError(f"collection {collection!r} does not exist here; there are: {known or 'none yet'}")
    params = {"collection_id": int(row[0]), "key": key, "key_hash": key_hash(key)}
    for cache in caches:
        cache.check()
    # Of this collection only: what is left of another one's version, in a store that is away, has none of its texts.
    for (name,) in connection.execute(Q["index_names"], params).fetchall():
        finish_drops(connection, stores, name=name)
    with connection.transaction():
        clock, removed, deleted, versions = _remove(connection, collection, params, force, stores)
        failpoint("erase.before_commit")
    failpoint("erase.after_commit")
    outside = [version for version in versions if not stores.of(version).transactional]
    for version in outside:
        removed[version.label] = _erase_outside(connection, version, stores, key, clock, patience)
    models = _models(versions)
    removed["cache"], transaction = erase_vectors(connection, models)
    for cache in caches:
        try:
            removed[f"cache in {cache.name}"] = cache.erase(models)
        except TemporaryError as error:
            raise TemporaryError(
                f"the document is removed, but not yet its vectors in the cache: {error}; run this again"
            ) from error
    kept_by = _await_snapshots(connection, transaction, patience)
    (unnamed,) = connection.execute(Q["parked_left"], params).fetchone() or (0,)
    result = Erasure(collection, key_hash(key).hex(), clock, removed, deleted, int(unnamed), (), tuple(kept_by))
    if kept_by:
        # A vacuum would leave the rows, and building an index anew would wait for those sessions without end.
        return result
    done: list[str] = []
    for table in TABLES:
        vacuum(connection, "sophia", table, rewrite=rewrite)
        done.append(f"sophia.{table}")
    for version in versions:
        done += stores.of(version).reclaim(connection, version, rewrite=rewrite)
    vacuum_statistics(connection, rewrite=rewrite)
    return replace(result, vacuumed=tuple(done))


def _remove(
    connection: Connection, collection: str, params: dict[str, Any], force: bool, stores: Stores
) -> tuple[Clock, dict[str, int], bool, list[IndexVersion]]:
    # No version of these indexes is promoted or retired meanwhile.
    for (name,) in connection.execute(Q["index_names"], params).fetchall():
        connection.execute(sql.load("versions")["lock_index"], {"name": name})
    generation, source_lsn = connection.execute(Q["lock_collection"], params).fetchone() or (0, None)
    source = connection.execute(Q["unfinished_snapshot"], params).fetchone()
    if source is not None:
        raise TemporaryError(
            f"collection {collection!r} is being copied from source {source[0]!r}, which may bring the row once more; "
            "try again when `sophia status` shows its table as complete"
        )
    found = connection.execute(Q["document"], params).fetchone()
    before = connection.execute(Q["before"], params).fetchone()
    if found is None and before is None:
        raise SophiaError(
            f"collection {collection!r} has no such key, also not as deleted; keys look like 42 or '[\"a\", 2]'"
        )
    deleted = found is None or bool(found[1])
    if not deleted and not force:
        raise SophiaError(
            f"the source of collection {collection!r} still has this row, so its next change or copy would bring it "
            "back; delete it in the source first, or say --force"
        )
    clock = Clock(int(generation), parse_lsn(source_lsn) if source_lsn else 0, 0)
    parked = connection.execute(Q["parked_clock"], params).fetchone()
    clock = max(clock, *(Clock(*known[0]) for known in (found, before, parked) if known is not None and known[0]))

    # What writers of indexes do not touch comes first, so that they are stopped for as short as can be.
    removed = {
        "inbox": connection.execute(Q["erase_inbox"], params).rowcount,
        "batches": connection.execute(Q["erase_batches"], params).rowcount,
    }
    connection.execute(Q["record"], params | {"clock": clock.literal})
    connection.execute(Q["count"], params)
    connection.execute(Q["stop_writers"])
    connection.execute(Q["fence"], params)
    with connection.cursor(row_factory=class_row(IndexVersion)) as cursor:
        versions = cursor.execute(Q["versions"], params).fetchall()
    outside = [version for version in versions if not stores.of(version).transactional]
    marks = {"outside": [version.id for version in outside], "bucket": bucket_of(params["key"])}
    removed["ledger"] = connection.execute(Q["erase_ledger"], params | marks).rowcount
    if outside:
        removed["ledger"] += connection.execute(Q["mark_outside"], params | marks | {"clock": clock.literal}).rowcount
    removed["dead_letters"] = connection.execute(Q["erase_dead_letters"], params).rowcount
    values = {"values": _written_values(params["key"])}
    removed["parked"] = connection.execute(Q["erase_parked"], params | values).rowcount
    removed["rereads"] = connection.execute(Q["erase_rereads"], params).rowcount
    for version in versions:
        if version in outside:
            continue
        removed[version.label] = stores.of(version).erase(connection, version, [params["key"]])
    removed["documents"] = connection.execute(Q["erase_document"], params).rowcount
    return clock, removed, deleted, versions


def _erase_outside(
    connection: Connection, version: IndexVersion, stores: Stores, key: Key, clock: Clock, patience: float
) -> int:
    try:
        return erase_left(connection, version, stores.of(version), key, clock, patience)
    except TemporaryError as error:
        raise TemporaryError(
            f"the document is removed from the database, but not yet from {version.label}: {error}; run this again"
        ) from error


def _written_values(key: Key) -> list[bytes]:
    """A key's values as JSON writes them, without quotes."""
    return [(part if isinstance(part, str) else json.dumps(part)).encode() for part in json.loads(key)]


def _models(versions: Sequence[IndexVersion]) -> list[str] | None:
    """Fingerprints of the models that may have seen the document; None for any.

    An endpoint may be our own inference service, which keeps what it computes under a fingerprint of its own.
    """
    if any(version.model.provider == "openai" for version in versions):
        return None
    return sorted({version.model_fingerprint for version in versions})


def _await_snapshots(connection: Connection, transaction: int, patience: float) -> list[int]:
    """Sessions that still hold a snapshot from before the removal when the patience is over."""
    deadline = time.monotonic() + patience
    while True:
        found = snapshots_before(connection, transaction)
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(POLL_SECONDS)
