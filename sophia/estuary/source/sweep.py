"""The orphan sweep: documents whose rows went without a delivery that says so.

A re-backfill sends the rows that are there and nothing of those that went; TRUNCATE is ignored; of several moves that
were combined into one document only the first tells its old key. The webhook never says when a backfill began or
ended, so a person or a job starts the sweep.

Invariants: a document is deleted only after its row was looked for in the source and is not there; a row that is there
is left, or taken as it is now if the document differs; one that cannot be read is left. What is written bears the
document's own clock with a higher ordinal, for the reason that `sophia.estuary.source.reread` gives, so it never
outranks a later delivery. It may be interrupted and started again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog import Catalog
from sophia.documents import Change, Clock, Key
from sophia.errors import ConfigurationError
from sophia.estuary.keys import kept_key
from sophia.estuary.source.reread import verified_change
from sophia.estuary.source.rows import Q, SourceRows, require_source_url
from sophia.estuary.stamps import clock_at
from sophia.failpoints import failpoint
from sophia.settings import Settings

Connection = psycopg.Connection[TupleRow]
# Documents that are verified by one query and written in one transaction.
BATCH = 500


@dataclass(slots=True)
class Swept:
    """What a sweep found: documents looked at, orphans deleted, rows taken anew, rows left as they were.

    Attributes:
        unread: rows that are there and cannot be read; they were left too.
    """

    looked_at: int = 0
    deleted: int = 0
    refreshed: int = 0
    left: int = 0
    unread: int = 0


def sweep(
    connection: Connection,
    catalog: Catalog,
    name: str,
    settings: Settings,
    *,
    before: datetime,
    dry_run: bool = False,
    progress: Callable[[Swept, int], None] = lambda swept, total: None,
) -> Swept:
    """Verify every live document of a collection whose last delivery was published before a time.

    Args:
        connection: to Sophia's database, autocommit.
        before: with time zone; the moment at which the re-backfill began, or now to verify all.
        dry_run: count only.
        progress: called behind each batch with the figures so far and how many documents there are.

    Raises:
        ConfigurationError: the collection is not fed by Estuary, nothing was delivered for it yet, it is kept by
            another key than the catalog names, or there is no DSN of its source.
        SourceError: the source's table cannot be read, or row security hides rows of it.
        TemporaryError: the source does not answer.
    """
    collection = catalog.collection(name)
    url = require_source_url(catalog, collection, settings)
    assert collection.table is not None  # noqa: S101 - `require_source_url` has seen to it
    row = connection.execute(Q["collection"], {"name": name}).fetchone()
    if row is None:
        raise ConfigurationError(f"collection {name!r} has no documents yet: Estuary has delivered nothing")
    number, key_fields, generation = row
    limit = Clock(generation, clock_at(before), 0)
    params = {"collection_id": number, "before": list(limit)}
    count = connection.execute(Q["count_suspects"], params).fetchone()
    total = int(count[0]) if count else 0
    swept = Swept()
    after = ""
    with SourceRows(url, collection.table, kept_key(collection, key_fields)) as rows:
        while True:
            suspects = connection.execute(Q["suspects"], params | {"after": after, "limit": BATCH}).fetchall()
            if not suspects:
                return swept
            after = suspects[-1][0]
            found = rows.read([Key(key) for key, _, _ in suspects])
            changes: list[Change] = []
            for key, clock, body in suspects:
                actual = found.get(key)
                if key in rows.unreadable:
                    swept.unread += 1
                    continue
                if actual is None:
                    swept.deleted += 1
                elif actual == body:
                    swept.left += 1
                    continue
                else:
                    swept.refreshed += 1
                changes.append(verified_change(key, Clock(*clock), actual))
            swept.looked_at += len(suspects)
            if changes and not dry_run:
                with connection.transaction():
                    inbox.accept(connection, name, changes)
                    failpoint("estuary.sweep.before_commit")
                failpoint("estuary.sweep.after_commit")
            progress(swept, total)
