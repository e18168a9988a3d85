"""Another key of a collection that Estuary feeds: its documents are given up, and it begins anew.

Invariant: in one transaction the new key counts, a new generation has begun, and nothing that was kept by the old key
is left: no document, no request to read a row again. Whoever still takes documents by the old key is refused from then
on (`sophia.estuary.intake.take`). A backfill at Estuary brings the documents by the new key.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.catalog.models import Catalog
from sophia.documents import Clock
from sophia.errors import ConfigurationError
from sophia.estuary.naming import fed_by_estuary
from sophia.settings import Profile

Q = sql.load("intake")


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """The key that a collection had and the one that it gets, and how many documents that gives up."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    documents: int


def rekey(
    connection: psycopg.Connection[TupleRow], catalog: Catalog, name: str, profile: Profile, *, dry_run: bool = False
) -> Rekeyed:
    """Keep a collection by the key of the catalog from now on. Its indexes follow, as after a TRUNCATE.

    Args:
        connection: in autocommit mode.
        dry_run: only say what would be done.

    Raises:
        ConfigurationError: Estuary does not feed it in this profile, or its key is the same.
    """
    collection = catalog.collection(name)
    if collection not in fed_by_estuary(catalog, profile):
        raise ConfigurationError(f"collection {name!r} is not fed by Estuary in this profile: its table has the key")
    with connection.transaction():
        try:
            locked = inbox.lock(connection, [name])[name]
        except LookupError:
            raise ConfigurationError(f"nothing of collection {name!r} has come yet, so any key will do") from None
        if not collection.key or locked.key_fields == collection.key:
            raise ConfigurationError(
                f"collection {name!r} has the key ({', '.join(locked.key_fields)}) already; change its `key` in the "
                "catalog first"
            )
        row = connection.execute(Q["count_documents"], {"collection_id": locked.id}).fetchone()
        found = Rekeyed(locked.key_fields, collection.key, int(row[0]) if row else 0)
        if not dry_run:
            inbox.accept(connection, name, [inbox.Floor(Clock(locked.generation + 1, 0, 0))])
            inbox.ensure_collection(connection, name, collection.key)
            connection.execute(Q["forget_keys"], {"collection_id": locked.id})
    return found
