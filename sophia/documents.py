"""Change documents: one insert, update or delete of a source row, in the shape that Estuary Flow sends.

A document is the row's columns plus `_meta` with `op`, `source`, optionally `before`, and `uuid`:

    {"id": 5, "body": "…", "_meta": {"op": "u", "source": {"ts_ms": …, "schema": "public", "table": "documents",
     "loc": [last commit end, event, commit], "txid": 7}, "before": {"id": 1}, "uuid": "…"}}

Per key the higher clock wins; an equal clock is a duplicate. Clocks compare as (generation, position, ordinal):
a generation is the life of a slot or capture, the position is the commit LSN (our own capture) or the 64-bit
clock of the UUID (Estuary), the ordinal counts the changes of one transaction. Never wall time, never arrival.

Everything here is pure: no I/O.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, NewType

from sophia.errors import DocumentError

Op = Literal["c", "u", "d"]
# Canonical JSON of the key's values in the order of the collection's key fields: `[42]`, `["a", 2]`.
Key = NewType("Key", str)

BUCKETS = 65_536
_UUID_EPOCH_100NS = 122_192_928_000_000_000  # 1582-10-15 to 1970-01-01
_NODE_BITS = 40  # our producer id holds the ordinal in the lower 40 of the 48 node bits
_MULTICAST = 1 << 40
_NO_KEY = (dict, list)
_encode_key = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Clock(NamedTuple):
    """Orders the changes of one key. Compares as a tuple, in SQL as `bigint[]`."""

    generation: int
    position: int
    ordinal: int

    @property
    def literal(self) -> str:
        """As text of a `bigint[]`: `{1,42,7}`. An array of arrays would lose its inner dimension in `unnest`."""
        return f"{{{self.generation},{self.position},{self.ordinal}}}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a change came from: `lsn` is the commit's log position, `committed_at` the source's commit time."""

    lsn: int | None = None
    txid: int | None = None
    committed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change document with what the inbox needs to know of it.

    Attributes:
        body: the row's columns without `_meta`; None for a delete.
        complete: it replaces what is stored. A partial change is merged into it, top level only.
        missing: columns that the source left out because they are unchanged and large (TOAST), or that a partial
            document does not have.
        before_key: the key that this change moved away from, when it changed the key.
        bulk: it takes the bulk lane, behind single changes.
        snapshot: it is a row as a copy found it, and no change that happened at its clock.
        text: the row as a JSON object, instead of `body`: as the source wrote it, with `_meta`, which is not stored.
    """

    key: Key
    op: Op
    clock: Clock
    body: dict[str, Any] | None
    complete: bool = True
    missing: tuple[str, ...] = ()
    before_key: Key | None = None
    origin: Origin = field(default_factory=Origin)
    bulk: bool = False
    snapshot: bool = False
    text: str | None = None


def canonical_key(values: Sequence[Any]) -> Key:
    """The canonical text of a key.

    Raises:
        DocumentError: a part is null or of a type that is no key (object, list, float NaN).
    """
    for value in values:
        if value is None or isinstance(value, _NO_KEY):
            raise DocumentError(f"key part {value!r} is no key; a key part is a string, number or boolean")
    try:
        return Key(_encode_key(list(values)))
    except ValueError as error:
        raise DocumentError(f"key cannot be written: {error}") from error


def parse_key(text: str) -> Key:
    """A key as a person types it: `42`, `abc`, `["a", 2]` or several parts joined as JSON.

    Raises:
        DocumentError: it is no key, or no text that a database can hold.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    key = canonical_key(value if isinstance(value, list) else [value])
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(f"key has half a surrogate pair at character {error.start}; type it as UTF-8") from error
    return key


def bucket_of(key: Key) -> int:
    """The hash bucket (0 … 65,535) of a key. A shard of 2^n is a prefix of it, so a split refines."""
    return int.from_bytes(key_hash(key)[:2], "big")


def key_hash(key: Key) -> bytes:
    """What may be kept of a key that was erased: the 32 bytes of the SHA-256 of its UTF-8."""
    return hashlib.sha256(key.encode()).digest()


def bucket_range(shard: int, shards: int) -> tuple[int, int]:
    """First and last bucket of shard number `shard` of `shards` (a power of two)."""
    width = BUCKETS // shards
    return shard * width, (shard + 1) * width - 1


def uuid_clock(text: str) -> int:
    """The 64-bit clock of an Estuary document UUID: 60 bits of 100 ns since 1582-10-15, then 4 of sequence.

    Source: gazette `message/uuid.go`.

    Raises:
        DocumentError: not a version 1 UUID.
    """
    try:
        parsed = uuid.UUID(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise DocumentError(f"_meta.uuid {text!r} is no UUID") from error
    if parsed.version != 1:
        raise DocumentError(f"_meta.uuid {text!r} is version {parsed.version}, not 1")
    return parsed.time << 4 | (parsed.clock_seq_hi_variant >> 2) & 0xF


def uuid_time(clock: int) -> datetime:
    """Wall-clock time of an Estuary clock."""
    return datetime.fromtimestamp(((clock >> 4) - _UUID_EPOCH_100NS) / 1e7, tz=UTC)


def capture_uuid(position: int, ordinal: int) -> str:
    """The version 1 UUID of our own capture's documents: time = commit LSN, node = ordinal.

    The same change always gets the same UUID, whichever process decodes it and however often.
    """
    node = _MULTICAST | ordinal & ((1 << _NODE_BITS) - 1)
    return str(
        uuid.UUID(
            fields=(
                position & 0xFFFF_FFFF,
                position >> 32 & 0xFFFF,
                position >> 48 & 0x0FFF | 0x1000,
                0x80,
                0x00,
                node,
            )
        )
    )


def capture_clock(text: str, generation: int) -> Clock:
    """The clock of a document that our own capture wrote; the inverse of `capture_uuid`."""
    parsed = uuid.UUID(text)
    return Clock(generation, parsed.time, parsed.node & ((1 << _NODE_BITS) - 1))


def key_of(row: Mapping[str, Any], fields: Sequence[str]) -> Key:
    """The key of a row.

    Raises:
        DocumentError: a key column is absent or null.
    """
    absent = [name for name in fields if name not in row]
    if absent:
        raise DocumentError(f"key column {absent[0]!r} is absent")
    return canonical_key([row[name] for name in fields])


def from_document(
    document: Mapping[str, Any],
    key_fields: Sequence[str],
    clock: Clock,
    *,
    complete: bool,
    missing: tuple[str, ...] = (),
    committed_at: datetime | None = None,
    bulk: bool = False,
) -> Change:
    """Read a change document in Estuary's shape.

    `complete` and `missing` cannot be seen in the document itself: the capture knows them, and the commit time in
    microseconds (`ts_ms` has milliseconds).

    Raises:
        DocumentError: no `_meta`, an unknown op, or a key that is absent.
    """
    meta = document.get("_meta")
    if not isinstance(meta, Mapping):
        raise DocumentError("_meta is absent")
    op = meta.get("op")
    if op not in ("c", "u", "d"):
        raise DocumentError(f"_meta.op {op!r} is none of c, u, d")
    source = meta.get("source") or {}
    ts_ms = source.get("ts_ms")
    loc = source.get("loc")
    key = key_of(document, key_fields)
    before = meta.get("before")
    before_key = None
    if op == "u" and before and all(name in before for name in key_fields):
        before_key = key_of(before, key_fields)
    return Change(
        key=key,
        op=op,
        clock=clock,
        body=None if op == "d" else {name: value for name, value in document.items() if name != "_meta"},
        complete=complete,
        missing=missing,
        before_key=before_key if before_key != key else None,
        origin=Origin(
            lsn=loc[2] if loc and loc[0] >= 0 else (clock.position if source.get("snapshot") else None),
            txid=source.get("txid"),
            committed_at=committed_at or (datetime.fromtimestamp(ts_ms / 1000, tz=UTC) if ts_ms is not None else None),
        ),
        bulk=bulk,
    )


def format_lsn(value: int) -> str:
    """PostgreSQL's text of a log position: `16/B374D848`."""
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """The number of a log position."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
