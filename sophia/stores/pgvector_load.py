"""The chunks of documents that a version has for the first time, by COPY: two thirds of what an upsert costs.

Only for keys that the ledger has taken anew in the same transaction. So there is nothing that could be newer or in
surplus; a row that someone added by hand is a unique violation, and the whole transaction is done again by upserts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import LiteralString

from psycopg import sql as composed

from sophia import sql
from sophia.indexing.versions import IndexVersion
from sophia.stores import copying
from sophia.stores.base import Connection, DocumentWrite, packed
from sophia.stores.pgvector_graph import SCHEMA

_COPY: LiteralString = sql.load("copying")["pgvector"]
_FIELDS = 15


def enter(connection: Connection, version: IndexVersion, writes: Sequence[DocumentWrite], run: str) -> None:
    """Store documents of which the store has nothing.

    Raises:
        psycopg.errors.UniqueViolation: it has something of one of them.
    """
    statement = composed.SQL(_COPY).format(table=composed.Identifier(SCHEMA, version.store_name))
    copying.copy(connection, statement, _FIELDS, _rows(writes, run, copying.now(connection)))


def _rows(writes: Sequence[DocumentWrite], run: str, now: bytes) -> Iterator[bytes]:
    vectors = iter(packed([chunk.vector for write in writes for chunk in write.chunks if chunk.vector is not None]))
    end = copying.text(run) + now
    for write in writes:
        if not write.chunks:
            continue
        origin = write.origin
        key = copying.text(write.key)
        bucket = copying.integer(write.bucket)
        rest = b"".join(
            (
                # The version of jsonb's binary form, and its text.
                copying.field(b"\1" + write.metadata_json.encode()),
                copying.clock(write.clock),
                copying.lsn(origin.lsn),
                copying.bigint(origin.txid),
                copying.timestamp(origin.committed_at),
                end,
            )
        )
        for chunk in write.chunks:
            yield b"".join(
                (
                    copying.field(chunk.id.bytes),
                    key,
                    bucket,
                    copying.integer(chunk.number),
                    copying.span(chunk.start, chunk.end),
                    copying.text(chunk.content),
                    copying.field(chunk.content_hash),
                    copying.field(next(vectors)),
                    rest,
                )
            )
