"""What an asset check or the doctor asks of a capture: its slot, publication and table, without changing any."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from sophia.capture import CaptureSource, postgres_sources
from sophia.capture import source as source_sql
from sophia.capture.source import slot_risk
from sophia.catalog import Catalog
from sophia.database.connect import Database, connect
from sophia.errors import SourceError
from sophia.settings import Settings

# Log that a slot may hold back: half of the embedded server's max_slot_wal_keep_size, and a quarter to be warned at.
SLOT_FAIL_BYTES = 2_000_000_000
SLOT_WARN_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CaptureHealth:
    """Facts of one captured collection; a fault is a sentence with the fix, or None.

    Attributes:
        retained_bytes: log that the server keeps for the slot.
        safe_bytes: how much more may be written before the server gives the slot up, or None without such a limit.
        at_risk: the slot will be lost if nothing is done.
        unlimited: the source sets no `max_slot_wal_keep_size`, so that a stopped capture can fill its disk.
    """

    slot_exists: bool
    retained_bytes: int
    safe_bytes: int | None
    at_risk: bool
    unlimited: bool
    slot_fault: str | None
    in_publication: bool
    publication_fault: str | None
    identity_fault: str | None


def capture_health(
    catalog: Catalog,
    settings: Settings,
    database: Database,
    connection: psycopg.Connection[TupleRow],
    source_name: str,
    collection: str,
) -> CaptureHealth:
    """Look at a collection's source. `connection` is used when the source is our own database.

    Raises:
        LookupError: no PostgreSQL source of this profile captures the collection.
        TemporaryError: the source does not answer.
    """
    for source in postgres_sources(catalog, settings, database):
        for binding in source.bindings:
            if source.name == source_name and binding.collection == collection:
                if source.url == database.url:
                    return _inspect(connection, source, binding.table, binding.key)
                with connect(source.url, "sophia-health") as remote:
                    return _inspect(remote, source, binding.table, binding.key)
    raise LookupError(f"collection {collection!r} is captured by no PostgreSQL source here")


def _inspect(
    connection: psycopg.Connection[TupleRow], source: CaptureSource, table: str, key: tuple[str, ...]
) -> CaptureHealth:
    slot = source_sql.inspect_slot(connection, source.slot)
    slot_fault = None
    if slot is None:
        slot_fault = f"slot {source.slot!r} does not exist; run `sophia capture`, which makes it and copies the tables"
    elif risk := slot_risk(source.slot, slot):
        slot_fault = risk
    elif slot.active_pid is None:
        slot_fault = f"slot {source.slot!r} is not read and holds back log; run `sophia capture`"
    published = source_sql.publication_tables(connection, source.publication) or set()
    identity_fault = None
    qualified = table
    try:
        qualified = source_sql.inspect_table(connection, table, key).qualified
    except SourceError as error:
        identity_fault = str(error)
    in_publication = qualified in {name.replace('"', "") for name in published}
    return CaptureHealth(
        slot_exists=slot is not None and slot.wal_status != "lost",
        retained_bytes=slot.retained_bytes if slot else 0,
        safe_bytes=slot.safe_bytes if slot else None,
        at_risk=slot is not None and slot.wal_status != "lost" and slot_risk(source.slot, slot) is not None,
        unlimited=source_sql.log_is_unlimited(connection),
        slot_fault=slot_fault,
        in_publication=in_publication,
        publication_fault=None
        if in_publication
        else f"publication {source.publication!r} does not name {qualified}; run `sophia capture`, or "
        f"`ALTER PUBLICATION {source.publication} ADD TABLE {qualified}`",
        identity_fault=identity_fault,
    )
