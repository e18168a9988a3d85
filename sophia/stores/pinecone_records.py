"""Records of Pinecone: ids, metadata, and what is read back from them.

A chunk is one record. Its id is `<bucket as four hex digits>#<chunk id>`, so that the records of a range of buckets are
listed by prefix. Its metadata holds:

* `content`, the chunk's text;
* the index's metadata columns under their own names, for filters: Pinecone takes strings, numbers, booleans and lists
  of strings. A null is left out; anything else, and an integer that a float does not hold, is there as JSON text;
* `sophia_…`, what else belongs to a chunk. `sophia_exact` is the JSON of the columns that do not come back as they
  were: Pinecone keeps each number as a 64-bit float.

Whoever has the API key can write records by hand. What does not parse is read as something that the comparison finds
wrong, and never as an error. Nothing here speaks to Pinecone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import orjson

from sophia.documents import BUCKETS, Clock, Key, format_lsn
from sophia.embedding.base import Vectors
from sophia.indexing.text import HASH_BYTES
from sophia.stores.base import ChunkOrigin, ChunkWrite, DocumentWrite, Hit, StoredChunk, StoredDocument, vector_hash

CONTENT = "content"
OWN = "sophia_"
# Of one record, as JSON. Documented as 40 KB.
METADATA_BYTES = 40_960
# Integers up to here are exact as a 64-bit float.
EXACT_INTEGER = 1 << 53
HEX_DIGITS = 4
NO_ID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Record:
    """A chunk as it is sent: `body` is its JSON."""

    id: str
    key: Key
    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it was read. `metadata` are the columns; `own` is the rest, by its names without `sophia_`."""

    id: str
    key: Key
    number: int
    content: str
    metadata: dict[str, Any]
    own: dict[str, Any]
    vector: Vectors

    @property
    def clock(self) -> Clock:
        """The clock of its write; zero if it is none of ours."""
        try:
            generation, position, ordinal = map(int, str(self.own.get("clock")).strip("{}").split(","))
        except ValueError:
            return Clock(0, 0, 0)
        return Clock(generation, position, ordinal)


def record_id(bucket: int, chunk: UUID) -> str:
    """Id of a chunk's record: at most 41 ASCII characters, of 512 that Pinecone takes."""
    return f"{bucket:0{HEX_DIGITS}x}#{chunk}"


def bucket_prefix(bucket: int) -> str:
    """What the ids of all records of a bucket begin with."""
    return f"{bucket:0{HEX_DIGITS}x}"


def prefixes(first: int, last: int) -> Iterator[str]:
    """Few id prefixes that cover the buckets from `first` to `last`, in order; an empty one for all.

    At most 17, which together cover less than three times as much: an exact cover would be up to 90, and each is a
    request.
    """
    block, digits = 1, HEX_DIGITS
    while block * 16 <= last - first + 1:
        block, digits = block * 16, digits - 1
    for start in range(first - first % block, last + 1, block):
        yield bucket_prefix(start)[:digits]


def within(name: str, first: int, last: int) -> bool:
    """Whether an id lies in these buckets. Those of no bucket's form lie somewhere, too."""
    whole = (first, last) == (0, BUCKETS - 1)
    return whole or bucket_prefix(first) <= name[:HEX_DIGITS] <= bucket_prefix(last)


def flat(value: Any) -> str | int | float | bool | list[str] | None:
    """A column's value as Pinecone takes it, for storing and for filters; None where it is left out."""
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) <= EXACT_INTEGER else str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return list(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def comes_back(value: Any) -> bool:
    """Whether a flat value is read as it was written."""
    return value is None or isinstance(value, str | bool) or (isinstance(value, list) and flat(value) == value)


def columns(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata columns as they are stored; `restored` is the inverse."""
    kept = {name: value for name, given in metadata.items() if (value := flat(given)) is not None}
    exact = {name: value for name, value in metadata.items() if not comes_back(value)}
    if exact:
        kept[f"{OWN}exact"] = json.dumps(exact, ensure_ascii=False)
    return kept


def restored(stored: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The metadata columns of a record, with nulls; a column that someone edited or added as it is there."""
    try:
        exact = json.loads(stored.get(f"{OWN}exact", "{}"))
    except (ValueError, TypeError):
        exact = {}
    found: dict[str, Any] = dict.fromkeys(names)
    found |= {name: value for name, value in stored.items() if name != CONTENT and not name.startswith(OWN)}
    for name, value in exact.items() if isinstance(exact, dict) else ():
        if same(found.get(name), flat(value)):
            found[name] = value
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal as PostgreSQL's jsonb has it: 1 is 1.0 and is not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def condition(name: str, value: Any) -> list[dict[str, Any]]:
    """Filters that a record must pass to have this value in a column.

    Of a list Pinecone knows only whether it has an element, so what passes must be compared again.
    """
    wanted = flat(value)
    if wanted is None:
        return [{name: {"$exists": False}}]
    return [{name: {"$eq": part}} for part in (wanted if isinstance(wanted, list) else [wanted])]


def encoded(write: DocumentWrite, chunk: ChunkWrite, vector: Vectors, run: str, at: datetime) -> tuple[Record, int]:
    """A chunk's record, and the bytes of its metadata as JSON."""
    origin = write.origin
    own = {
        "key": write.key,
        "chunk": chunk.number,
        "start": chunk.start,
        "end": chunk.end,
        "hash": chunk.content_hash.hex(),
        # As text: a float does not hold a log position.
        "clock": write.clock.literal,
        "lsn": format_lsn(origin.lsn) if origin.lsn is not None else None,
        "txid": str(origin.txid) if origin.txid is not None else None,
        "committed_at": origin.committed_at.isoformat() if origin.committed_at is not None else None,
        "run": run,
        "indexed_at": at.isoformat(),
    }
    metadata = orjson.dumps(
        {CONTENT: chunk.content}
        | columns(write.metadata)
        | {f"{OWN}{name}": value for name, value in own.items() if value is not None}
    )
    name = record_id(write.bucket, chunk.id)
    # Of float32 orjson prints the fewest digits that read back as the same float32.
    values = orjson.dumps(np.ascontiguousarray(vector, dtype=np.float32), option=orjson.OPT_SERIALIZE_NUMPY)
    body = b'{"id":%b,"values":%b,"metadata":%b}' % (orjson.dumps(name), values, metadata)
    return Record(name, write.key, chunk.number, body), len(metadata)


def read(record: Mapping[str, Any], names: Sequence[str]) -> Stored:
    """A record of a fetch or a query. One that bears no key, since someone else wrote it, has its id as its key."""
    metadata = record.get("metadata") or {}
    own = {name.removeprefix(OWN): value for name, value in metadata.items() if name.startswith(OWN)}
    return Stored(
        id=record["id"],
        key=Key(str(own.get("key", record["id"]))),
        number=_integer(own.get("chunk")) or 0,
        content=str(metadata.get(CONTENT, "")),
        metadata=restored(metadata, names),
        own=own,
        vector=np.asarray(record.get("values") or [], dtype=np.float32),
    )


def as_document(key: Key, records: Sequence[Stored]) -> StoredDocument:
    """The records of one key as the comparison reads them, hashes computed from what is there."""
    ordered = sorted(records, key=lambda record: (record.number, record.id))
    clocks = [record.clock for record in ordered]
    return StoredDocument(
        key=key,
        ids=tuple(_uuid(record.id) for record in ordered),
        content_hashes=tuple(_bytes(record.own.get("hash")) for record in ordered),
        read_hashes=tuple(hashlib.sha256(record.content.encode()).digest()[:HASH_BYTES] for record in ordered),
        vector_hashes=tuple(vector_hash(record.vector) for record in ordered),
        metadata=tuple(sorted({json.dumps(record.metadata, sort_keys=True) for record in ordered})),
        oldest=min(clocks),
        newest=max(clocks),
    )


def as_hit(record: Stored, score: float) -> Hit:
    """A result of a search."""
    return Hit(
        key=record.key,
        chunk=record.number,
        score=score,
        content=record.content,
        metadata=record.metadata,
        lsn=record.own.get("lsn"),
        committed_at=_time(record.own.get("committed_at")),
        indexed_at=_time(record.own.get("indexed_at")) or datetime.fromtimestamp(0, tz=UTC),
    )


def as_chunk(record: Stored) -> StoredChunk:
    """A chunk with its vector."""
    return StoredChunk(record.key, record.content, record.metadata, record.vector)


def as_origin(record: Stored) -> ChunkOrigin:
    """Where a chunk came from."""
    own = record.own
    return ChunkOrigin(
        chunk=record.number,
        start=_integer(own.get("start")) or 0,
        end=_integer(own.get("end")) or 0,
        content_hash=str(own.get("hash", "")),
        clock=list(record.clock),
        lsn=own.get("lsn"),
        txid=_integer(own.get("txid")),
        committed_at=_time(own.get("committed_at")),
        run=str(own.get("run", "")),
        indexed_at=_time(own.get("indexed_at")) or datetime.fromtimestamp(0, tz=UTC),
    )


def _uuid(name: str) -> UUID:
    try:
        return UUID(name.partition("#")[2])
    except ValueError:
        return NO_ID


def _bytes(text: Any) -> bytes:
    try:
        return bytes.fromhex(str(text))
    except ValueError:
        return b""


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
