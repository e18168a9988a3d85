"""Makes removed rows unreadable: dead tuples, index entries and planner statistics of one table."""

from __future__ import annotations

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]
_CLEARS_STATISTICS = 180000


def vacuum(connection: Connection, schema: str, table: str, *, rewrite: bool = False) -> None:
    """Vacuum a table with all its indexes and its TOAST table, and sample its statistics anew.

    Without `INDEX_CLEANUP ON` PostgreSQL leaves few dead rows in the indexes for later. The statistics hold values of
    the columns, so they must not be older than the removal either.

    Args:
        connection: in autocommit mode.
        rewrite: write the table anew, which also clears the free space of its pages; locks readers out meanwhile.
    """
    name = sql.Identifier(schema, table)
    options = sql.SQL("FULL, ANALYZE" if rewrite else "INDEX_CLEANUP ON, ANALYZE")
    connection.execute(sql.SQL("VACUUM ({}) {}").format(options, name))
    # ANALYZE leaves the statistics of an empty table as they were; those of it with its heirs are a set of their own.
    for inherited, rows in ((False, sql.SQL("ONLY {}")), (True, sql.SQL("{}"))):
        row = connection.execute(sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(rows.format(name))).fetchone()
        if row is not None and not row[0]:
            _clear_statistics(connection, schema, table, inherited=inherited)


def vacuum_statistics(connection: Connection, *, rewrite: bool = False) -> None:
    """Vacuum the catalog that held the former statistics. Where the role may not, the server warns and goes on."""
    options = sql.SQL("FULL" if rewrite else "INDEX_CLEANUP ON")
    connection.execute(sql.SQL("VACUUM ({}) pg_catalog.pg_statistic").format(options))


def snapshots_before(connection: Connection, transaction: int) -> list[int]:
    """Process ids of the sessions that may still see rows which `transaction` deleted; 0 stands for a slot or a
    prepared transaction. As long as there is one, VACUUM keeps those rows.

    Args:
        transaction: the 64-bit id, as `pg_current_xact_id()` gives it.
    """
    rows = connection.execute(
        """
        SELECT pid FROM (
            SELECT pid, backend_xmin AS xmin FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
            UNION ALL SELECT 0, xmin FROM pg_replication_slots
            UNION ALL SELECT 0, transaction FROM pg_prepared_xacts WHERE database = current_database()
        ) s
        WHERE xmin IS NOT NULL AND age(xmin) >= age(%s::text::xid)
        """,
        [str(transaction & 0xFFFFFFFF)],
    ).fetchall()
    return [int(row[0]) for row in rows]


def _clear_statistics(connection: Connection, schema: str, table: str, *, inherited: bool) -> None:
    names = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
        [f'{schema}."{table}"'],
    ).fetchall()
    if connection.info.server_version >= _CLEARS_STATISTICS:
        for (name,) in names:
            connection.execute("SELECT pg_clear_attribute_stats(%s, %s, %s, %s)", [schema, table, name, inherited])
    else:
        # Only a superuser may; for another role they stay until the table holds rows again and is analysed.
        connection.execute(
            "DELETE FROM pg_statistic WHERE starelid = to_regclass(%s) AND stainherit = %s "
            "AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
            [f'{schema}."{table}"', inherited],
        )
