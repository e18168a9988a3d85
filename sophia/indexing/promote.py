"""The switch: let a proven version serve instead of the present one, in one transaction."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.errors import TemporaryError
from sophia.indexing.versions import IndexVersion
from sophia.stores import Store

Connection = psycopg.Connection[TupleRow]
Q = sql.load("versions")


def promote(connection: Connection, version: IndexVersion, store: Store) -> bool:
    """Make `version` the one that serves. Returns False if it did already.

    The old version goes on being fed ("retiring"), so that going back loses nothing. Both versions' rows are locked,
    so neither position moves, and the new one must not be behind the old one: search never goes back in time.

    Raises:
        TemporaryError: the new version is behind; the live lane will have caught up in a moment.
    """
    with connection.transaction():
        connection.execute(Q["lock_index"], {"name": version.index_name})
        rows = {row[0]: (row[1], row[2]) for row in connection.execute(Q["positions"], {"name": version.index_name})}
        state, position = rows[version.id]
        if state == "serving":
            return False
        for other, (other_state, other_position) in rows.items():
            if other_state == "serving":
                if position < other_position:
                    raise TemporaryError(
                        f"{version.label} is at position {position}, the serving version at {other_position}; "
                        "try again when the indexer has caught up"
                    )
                connection.execute(Q["set_state"], {"version_id": other, "state": "retiring"})
        connection.execute(Q["set_state"], {"version_id": version.id, "state": "serving"})
        store.publish(connection, version)
    return True
