"""Removes operational records that are older than the catalog's retention says. Documents follow their source."""

from __future__ import annotations

import logging

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog.models import Retention
from sophia.errors import SophiaError
from sophia.indexing.promotion import retire, versions_over_time
from sophia.indexing.versions import active_versions
from sophia.stores import IN_DATABASE, Stores

logger = logging.getLogger("sophia.retention")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("retention")


def apply_retention(connection: Connection, retention: Retention, *, stores: Stores = IN_DATABASE) -> dict[str, int]:
    """Delete what is over its time. Returns rows removed, by kind of record, and versions retired."""
    days = {
        "inbox": retention.inbox_days,
        "batches": retention.inbox_days,
        "tombstones": retention.tombstone_days,
        "ledger": retention.ledger_days,
        "dead_letters": retention.dead_letter_days,
        "parked": retention.dead_letter_days,
        "estuary_commits": retention.inbox_days,
        # In Redis entries expire by themselves.
        "cache": retention.cache_days,
    }
    retired = _retire_versions(connection, retention.retire_after_days, stores)
    removed = {name: connection.execute(Q[name], {"days": count}).rowcount for name, count in days.items()}
    return removed | {"versions": retired}


def _retire_versions(connection: Connection, days: int, stores: Stores) -> int:
    """End the versions that stopped serving long ago. One that is busy, or serves again by now, stays."""
    over = set(versions_over_time(connection, days))
    retired = 0
    for version in active_versions(connection):
        if version.id in over:
            try:
                retire(connection, version, stores.of(version))
            except SophiaError as error:
                logger.warning("%s", error)
            else:
                retired += 1
    return retired
