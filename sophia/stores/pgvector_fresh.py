"""The rows of a pgvector version that its neighbours' graph does not have yet.

To enter a vector into the graph is the dearest part of writing it. The live lane does not wait for that: it writes to
`indexes.<name>_v<n>_fresh`, a table that inherits from the version's. Whoever reads the version's table, or the public
view, reads both; a search asks the graph and compares all fresh rows exactly. Later the oldest of them are moved into
the version's own table, a few a transaction.

Invariants:

* a chunk is in one of the two tables: it is moved by one statement, and whoever writes or moves it holds the row of its
  key in the ledger;
* the newest `KEPT` fresh rows are not moved: a graph may miss a row that is far from all others, and a change that was
  just made is what people look for;
* nothing waits for a key that is being written, so that a move and a writer cannot block each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Key
from sophia.errors import FencedError
from sophia.indexing.versions import IndexVersion
from sophia.stores.pgvector_graph import SCHEMA

Connection = psycopg.Connection[TupleRow]
Q = sql.load("pgvector")
KEPT = 500


def name(store_name: str) -> str:
    """The table of a version's fresh rows, without its schema."""
    return f"{store_name}_fresh"


def table(store_name: str) -> composed.Identifier:
    """The same, to be put into a query."""
    return composed.Identifier(SCHEMA, name(store_name))


def tables(store_name: str) -> dict[str, composed.Identifier]:
    """Both tables of a version, by their names in a query."""
    return {"table": composed.Identifier(SCHEMA, store_name), "fresh": table(store_name)}


def ensure(connection: Connection, version: IndexVersion) -> None:
    """Make the table, in the caller's transaction, where an earlier release has not.

    Raises:
        psycopg.errors.LockNotAvailable: an index of the version's table is being built; try again later.
    """
    found = connection.execute("SELECT to_regclass(%s)", [f'{SCHEMA}."{name(version.store_name)}"']).fetchone()
    if found is not None and found[0] is not None:
        return
    # An index that is being built waits for this transaction, which must not wait for it in turn.
    connection.execute("SET LOCAL lock_timeout = '500ms'")
    connection.execute(_query("create_fresh_table", version))
    for kind in ("hash", "bucket", "age"):
        index = composed.Identifier(f"{name(version.store_name)}_{kind}")
        text: LiteralString = Q[f"create_{kind}_index"]
        connection.execute(composed.SQL(text).format(name=index, table=table(version.store_name)))
    connection.execute("SET LOCAL lock_timeout = DEFAULT")


@contextmanager
def unless_retired(version: IndexVersion) -> Iterator[None]:
    """A version that was retired under its writer has fenced it; its tables are gone, too."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise FencedError(
            f"{version.label} lacks a table; it was retired, or no indexer of this release has begun it yet"
        ) from error


def count(connection: Connection, version: IndexVersion) -> int:
    """How many rows are fresh."""
    with unless_retired(version):
        row = connection.execute(_query("fresh_count", version), prepare=True).fetchone()
    return int(row[0]) if row else 0


def oldest(connection: Connection, version: IndexVersion, limit: int) -> list[TupleRow]:
    """(id, key, indexed_at) of up to `limit` of the oldest fresh rows, without the newest `KEPT`."""
    params = {"kept": KEPT, "limit": limit}
    with unless_retired(version):
        return connection.execute(_query("fresh_oldest", version), params, prepare=True).fetchall()


def absorb(connection: Connection, version: IndexVersion, rows: list[TupleRow]) -> int:
    """Move rows of `oldest` into the version's own table, in the caller's transaction. Returns how many went.

    Those stay that were written since, or are being written.
    """
    params = {"version_id": version.id, "keys": [row[1] for row in rows]}
    keys = [Key(row[0]) for row in connection.execute(Q["fresh_lock"], params, prepare=True)]
    if not keys:
        return 0
    params = {"ids": [row[0] for row in rows], "ages": [row[2] for row in rows], "keys": keys}
    return connection.execute(_query("fresh_absorb", version), params, prepare=True).rowcount


def _query(query: str, version: IndexVersion) -> composed.Composed:
    text: LiteralString = Q[query]
    return composed.SQL(text).format(**tables(version.store_name))
