"""What stores outside of Sophia's database read from the ledger, which is inside.

A store that cannot join its objects with the ledger in one statement asks here which objects are vouched for, which it
may hold at all, and what their vectors hash to. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from uuid import UUID

from sophia import sql
from sophia.documents import BUCKETS, Key
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import Connection

Q = sql.load("ledger")


def live_ids(connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[Key, tuple[UUID, ...]]:
    """Ids of the chunks that the ledger vouches for, in chunk order, by key: applied and not deleted.

    A key that the ledger does not hold as live is left out; one whose text is empty has no ids.
    """
    return _ids(connection, version, "applied", keys)


def held_ids(connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[Key, tuple[UUID, ...]]:
    """Ids of the chunks that the store may hold, in chunk order, by key: also of deleted keys and of pending writes.

    A key that the ledger does not know is left out: the store should hold nothing of it.
    """
    return _ids(connection, version, "held", keys)


def vector_hashes(
    connection: Connection, version: IndexVersion, keys: Sequence[str]
) -> dict[tuple[Key, int], tuple[bytes, bytes]]:
    """(content hash, vector hash) of each chunk, as the ledger noted them, by key and chunk number."""
    rows = connection.execute(Q["hashes"], {"version_id": version.id, "keys": list(keys)})
    return {
        (Key(key), number): (bytes(content), bytes(vector))
        for key, contents, vectors in rows
        for number, (content, vector) in enumerate(zip(contents, vectors, strict=True))
    }


def ledger_sample(connection: Connection, version: IndexVersion, size: int, seed: str) -> list[tuple[Key, int]]:
    """Up to `size` applied chunks as (key, chunk number), spread evenly over the keys; the same for the same seed."""
    random = Random(f"{seed}/{version.fingerprint}")  # noqa: S311
    buckets = [random.randrange(BUCKETS) for _ in range(size)]
    rows = connection.execute(Q["sample"], {"version_id": version.id, "buckets": buckets, "seed": seed}).fetchall()
    return [(Key(key), int(mark, 16) % chunks) for key, chunks, mark in rows]


def _ids(connection: Connection, version: IndexVersion, query: str, keys: Sequence[str]) -> dict[Key, tuple[UUID, ...]]:
    rows = connection.execute(Q[query], {"version_id": version.id, "keys": list(keys)})
    return {Key(key): tuple(version.chunk_id(key, n) for n in range(count)) for key, count in rows}
