"""Removes operational records that are older than the catalog's retention says. Documents follow their source."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog.models import Retention

Q = sql.load("retention")


def apply_retention(connection: psycopg.Connection[TupleRow], retention: Retention) -> dict[str, int]:
    """Delete what is over its time. Returns rows removed, by kind of record."""
    days = {
        "inbox": retention.inbox_days,
        "batches": retention.inbox_days,
        "tombstones": retention.tombstone_days,
        "ledger": retention.ledger_days,
        "dead_letters": retention.dead_letter_days,
    }
    return {name: connection.execute(Q[name], {"days": count}).rowcount for name, count in days.items()}
