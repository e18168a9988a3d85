"""What a source server must offer: tables with usable keys, a publication that names them, a slot.

`inspect_*` only read; `ensure_publication` changes the source, and only the publication. Every fault says the
statement that mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import parse_lsn
from sophia.errors import SourceError

Connection = psycopg.Connection[TupleRow]
Q = sql.load("source")
RAISE_LIMIT = "ALTER SYSTEM SET max_slot_wal_keep_size = '{}'; SELECT pg_reload_conf()"


class NoTableError(SourceError):
    """A table does not exist in the source."""


@dataclass(frozen=True, slots=True)
class Server:
    """Identity and log position of a source server."""

    system_identifier: str
    database: str
    lsn: int


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table as the source has it. `identity` is d(efault), f(ull), i(ndex) or n(othing)."""

    oid: int
    schema: str
    name: str
    identity: str
    key_fields: tuple[str, ...]
    partitioned: bool = False

    @property
    def qualified(self) -> str:
        """`schema.name`"""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Slot:
    """A logical replication slot.

    Attributes:
        wal_status: reserved, extended, unreserved or lost.
        retained_bytes: log that the server keeps for it.
        safe_bytes: how much log may still be written before the slot is lost, or None if the server sets no limit.
    """

    database: str
    active_pid: int | None
    confirmed_lsn: int | None
    wal_status: str
    retained_bytes: int
    safe_bytes: int | None


def inspect_server(connection: Connection) -> Server:
    """Check what every capture needs of the server.

    Raises:
        SourceError: a standby, `wal_level` below logical, or an encoding that is not UTF-8.
    """
    row = connection.execute(Q["server"]).fetchone()
    assert row is not None  # noqa: S101 - a single-row function
    system, in_recovery, wal_level, encoding, database, lsn = row
    if in_recovery:
        raise SourceError("the source is a standby; capture from the primary")
    if wal_level != "logical":
        raise SourceError(
            f"the source has wal_level={wal_level}; run `ALTER SYSTEM SET wal_level = logical` and restart it"
        )
    if encoding != "UTF8":
        raise SourceError(f"the source database has encoding {encoding}; only UTF8 is captured")
    return Server(system, database, parse_lsn(lsn))


def inspect_table(connection: Connection, table: str, key: Sequence[str] = ()) -> SourceTable:
    """Check one table; `key` overrides its primary key.

    Raises:
        NoTableError: it does not exist.
        SourceError: it is not readable, or not all of it, has no key, or a replica identity without the key.
    """
    row = connection.execute(Q["table"], {"table": table}).fetchone()
    if row is None:
        raise NoTableError(f"{table}: does not exist in the source; create it or take it out of the catalog")
    oid, kind, identity, schema, name, primary, identity_index, readable, secured = row
    if kind not in ("r", "p"):
        raise SourceError(f"{table}: is not a table; only tables and partitioned tables can be captured")
    if not readable:
        raise SourceError(f"{table}: may not be read; run `GRANT SELECT ON {table} TO CURRENT_USER` as its owner")
    if secured:
        raise SourceError(
            f"{table}: row security may hide rows from this role, and what is hidden would pass for gone; run "
            "`ALTER ROLE … BYPASSRLS` as a superuser"
        )
    identity_columns = {"d": primary, "i": identity_index, "n": []}.get(identity)
    key_fields = tuple(key) or tuple(primary) or tuple(identity_index)
    if not key_fields:
        raise SourceError(
            f"{table}: has no primary key; add one, or create a unique index on NOT NULL columns and run "
            f"`ALTER TABLE {table} REPLICA IDENTITY USING INDEX …`"
        )
    if identity_columns is not None and not set(key_fields) <= set(identity_columns):
        raise SourceError(
            f"{table}: deletes would not carry the key ({', '.join(key_fields)}); "
            f"run `ALTER TABLE {table} REPLICA IDENTITY FULL`, or key the collection by the identity's columns"
        )
    return SourceTable(oid, schema, name, identity, key_fields, partitioned=kind == "p")


def inspect_tables(connection: Connection, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[SourceTable | str]:
    """Check several tables, reporting all faults at once. In place of a table that does not exist stands why.

    Raises:
        SourceError: none exists, or others are at fault; with a line for each table at fault.
    """
    found: list[SourceTable | str] = []
    faults, gone = [], []
    for table, key in wanted:
        try:
            found.append(inspect_table(connection, table, key))
        except NoTableError as error:
            gone.append(str(error))
            faults.append(str(error))
            found.append(str(error))
        except SourceError as error:
            faults.append(str(error))
    if len(faults) > len(gone) or len(gone) == len(wanted):
        raise SourceError("\n".join(faults))
    return found


def columns(connection: Connection, oid: int) -> list[tuple[str, int]]:
    """Names and type oids of a table's columns, without generated ones (the stream does not carry those)."""
    return [(name, type_oid) for name, type_oid in connection.execute(Q["columns"], {"oid": oid})]


def table_shape(connection: Connection, table: SourceTable) -> str:
    """The columns of a table with their types and collations, and its key, as one text to compare."""
    row = connection.execute(Q["shape"], {"oid": table.oid, "key": list(table.key_fields)}).fetchone()
    return str(row[0]) if row else ""


def restricted(connection: Connection, publication: str, tables: Sequence[SourceTable]) -> list[SourceTable]:
    """The tables of which a publication leaves out rows (`WHERE`) or columns (a column list)."""
    oids = {row[0] for row in connection.execute(Q["restricted"], {"publication": publication})}
    return [table for table in tables if table.oid in oids]


def publication_tables(connection: Connection, publication: str) -> set[str] | None:
    """The tables that a publication names, quoted where need be, or None if there is no such publication."""
    if connection.execute(Q["publication"], {"publication": publication}).fetchone() is None:
        return None
    return {row[0] for row in connection.execute(Q["publication_tables"], {"publication": publication})}


def unpublished(connection: Connection, publication: str, tables: Sequence[SourceTable]) -> list[SourceTable]:
    """The tables that a publication does not name (yet): the changes of these are not streamed."""
    present = publication_tables(connection, publication) or set()
    return [table for table in tables if _quoted(connection, table) not in present]


def ensure_publication(connection: Connection, publication: str, tables: Sequence[SourceTable]) -> None:
    """Make the publication name at least these tables.

    Raises:
        SourceError: the role may not do so, or the publication leaves changes out; the statement to run is named.
    """
    options = connection.execute(Q["publication"], {"publication": publication}).fetchone()
    if options is not None:
        _check_publication(publication, *options, tables=tables)
        for table in restricted(connection, publication, tables):
            raise SourceError(
                f"publication {publication!r} leaves out rows or columns of {table.qualified}; run "
                f"`ALTER PUBLICATION {publication} DROP TABLE {table.qualified}` and "
                f"`ALTER PUBLICATION {publication} ADD TABLE {table.qualified}`"
            )
    absent = unpublished(connection, publication, tables)
    if not absent:
        return
    names = composed.SQL(", ").join(composed.Identifier(table.schema, table.name) for table in absent)
    text: LiteralString = "ALTER PUBLICATION {} ADD TABLE {}"
    if options is None:
        text = "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)"
    statement = composed.SQL(text).format(composed.Identifier(publication), names)
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SourceError(
            f"the role may not change publication {publication!r}; run as the tables' owner: "
            f"{statement.as_string(connection)}"
        ) from error
    except psycopg.errors.DuplicateObject:
        # Another process was faster; if not with these tables, the next start adds them.
        if unpublished(connection, publication, tables):
            raise


def _check_publication(
    publication: str, via_root: bool, left_out: Sequence[str], *, tables: Sequence[SourceTable]
) -> None:
    if left_out:
        raise SourceError(
            f"publication {publication!r} leaves out {', '.join(left_out)}; run "
            f"`ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')`"
        )
    partitioned = [table.qualified for table in tables if table.partitioned]
    if partitioned and not via_root:
        raise SourceError(
            f"publication {publication!r} sends the changes of {partitioned[0]} as those of its partitions; run "
            f"`ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)`"
        )


def _quoted(connection: Connection, table: SourceTable) -> str:
    row = connection.execute("SELECT format('%%I.%%I', %s::text, %s::text)", [table.schema, table.name]).fetchone()
    assert row is not None  # noqa: S101
    return str(row[0])


def inspect_slot(connection: Connection, slot: str) -> Slot | None:
    """The slot of that name, or None.

    Raises:
        SourceError: the name belongs to a slot of another kind or plugin.
    """
    row = connection.execute(Q["slot"], {"slot": slot}).fetchone()
    if row is None:
        return None
    plugin, kind, database, active_pid, confirmed, wal_status, retained, safe = row
    if kind != "logical" or plugin != "pgoutput":
        raise SourceError(f"slot {slot!r} exists but is {kind}/{plugin}; name another slot in the catalog")
    return Slot(database, active_pid, parse_lsn(confirmed) if confirmed else None, wal_status, retained or 0, safe)


def log_is_unlimited(connection: Connection) -> bool:
    """Whether the server keeps log for a slot until its disk is full."""
    return connection.execute(Q["keep_size"]).fetchone() == ("-1",)


def slot_risk(name: str, slot: Slot) -> str | None:
    """Why a slot is lost or near to it, with the fix, or None."""
    if slot.wal_status == "lost":
        return f"slot {name!r} lost log that it needed; `sophia capture` will copy the tables anew"
    more = RAISE_LIMIT.format(f"{max(slot.retained_bytes * 4 // 1_000_000, 1_000)}MB")
    if slot.wal_status == "unreserved":
        return f"slot {name!r} is lost at the source's next checkpoint; run `sophia capture` at once, or first: {more}"
    if slot.safe_bytes is not None and slot.safe_bytes < slot.retained_bytes:
        return (
            f"slot {name!r} holds back {slot.retained_bytes / 1e6:,.0f} MB of log and is lost after "
            f"{slot.safe_bytes / 1e6:,.0f} MB more; see that `sophia capture` runs and keeps up, or: {more}"
        )
    return None
