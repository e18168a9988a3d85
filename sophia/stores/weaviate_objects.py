"""A chunk as a Weaviate object, and back. Pure: no I/O.

Invariants:

* What Sophia itself reads, filters by and compares is in its own `sophia_` properties, as text that loses nothing:
  metadata as JSON, the clock in decimal. Weaviate's numbers are floats.
* A filter compares by JSON equality, as in the other stores: `sophia_fields` holds one token for each metadata column,
  its name and its value as canonical JSON. So 5 and "5" differ, and null, lists and objects can be asked for.
* The typed properties of the metadata columns are for other readers. A value that does not fit its type is left out
  there; `sophia_metadata` has it in any case.
* All of this follows from key and metadata, so an object in which one of them was edited shows itself on reading: its
  metadata then reads as what the properties say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np

from sophia.catalog.models import PropertyType
from sophia.documents import Clock, Key, format_lsn, key_hash
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import ChunkOrigin, ChunkWrite, DocumentWrite, Hit, StoredDocument, vector_hash
from sophia.stores.weaviate_schema import VECTOR, alias_name, class_name

# 48 bits of the key's hash: its bucket and 32 more, so that a range can be split until it holds one key.
SLOT_BITS = 48
_BUCKET_BITS = 16
# A longer value is compared by its hash.
LONGEST_TOKEN = 256
_PLAIN_TENANT = re.compile(r"[A-Za-z0-9_-]{1,60}")
# Weaviate's integers travel as floats.
_LARGEST_INTEGER = 2**53


@dataclass(frozen=True)
class Layout:
    """What is decided once for a version. `tenant_column` is None without multi-tenancy."""

    class_name: str
    alias: str
    label: str
    columns: tuple[str, ...]
    names: Mapping[str, str]
    types: Mapping[str, PropertyType]
    tenant_column: str | None

    @classmethod
    def of(cls, version: IndexVersion) -> Layout:
        """From the catalog entry that the version keeps."""
        index = version.index
        options = index.weaviate
        return cls(
            class_name=class_name(version),
            alias=alias_name(version),
            label=version.label,
            columns=index.metadata,
            names={column: options.property_name(column) for column in index.metadata},
            types={column: options.property_of(column).type for column in index.metadata},
            tenant_column=index.required_filter if options.tenancy else None,
        )

    def tenant(self, metadata: Mapping[str, Any]) -> str | None:
        """The tenant of a document's metadata, or of a query's filters; None without multi-tenancy."""
        return None if self.tenant_column is None else tenant_name(metadata.get(self.tenant_column))

    def properties(self, write: DocumentWrite, chunk: ChunkWrite, run: str, now: datetime) -> dict[str, Any]:
        """The properties of a chunk's object."""
        origin = write.origin
        return self._shown(write.metadata) | {
            "content": chunk.content,
            "sophia_key": write.key,
            "sophia_slot": slot_of(write.key),
            "sophia_chunk": chunk.number,
            "sophia_start": chunk.start,
            "sophia_end": chunk.end,
            "sophia_hash": chunk.content_hash.hex(),
            "sophia_fields": self._fields(write.metadata),
            "sophia_metadata": json.dumps(dict(write.metadata), ensure_ascii=False),
            "sophia_clock": "/".join(map(str, write.clock)),
            "sophia_lsn": None if origin.lsn is None else format_lsn(origin.lsn),
            "sophia_txid": None if origin.txid is None else str(origin.txid),
            "sophia_committed_at": origin.committed_at,
            "sophia_run": run,
            "sophia_indexed_at": now,
        }

    def _shown(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The typed properties; None where a value does not fit."""
        return {
            self.names[column]: None if value is None else _FITTING[self.types[column]](value)
            for column, value in ((column, metadata.get(column)) for column in self.columns)
        }

    def _fields(self, metadata: Mapping[str, Any]) -> list[str]:
        return [field_token(column, metadata.get(column)) for column in self.columns]

    def metadata_of(self, found: Mapping[str, Any]) -> str:
        """An object's metadata as JSON: as it was written, or, if someone edited it, as its properties say now."""
        text = found.get("sophia_metadata") or "{}"
        try:
            metadata = json.loads(text)
            wanted = self._shown(metadata)
            fields = self._fields(metadata)
        except (ValueError, AttributeError):
            return json.dumps({"sophia_metadata": text})
        altered = {
            column: _plain(found.get(name))
            for column, name in self.names.items()
            if not _same(wanted[name], found.get(name))
        }
        if sorted(fields) != sorted(found.get("sophia_fields") or []):
            altered["sophia_fields"] = _plain(found.get("sophia_fields"))
        if found.get("sophia_slot") != slot_of(Key(found.get("sophia_key") or "")):
            altered["sophia_slot"] = found.get("sophia_slot")
        return json.dumps(metadata | altered, ensure_ascii=False) if altered else text


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it was read. `vector` is None if it was not asked for."""

    id: UUID
    properties: Mapping[str, Any]
    vector: Vectors | None

    @property
    def key(self) -> Key:
        """Empty if the object is not Sophia's."""
        return Key(self.properties.get("sophia_key") or "")

    @property
    def chunk(self) -> int:
        """Its number in the document."""
        return int(self.properties.get("sophia_chunk") or 0)

    @property
    def content(self) -> str:
        """Its text."""
        return str(self.properties.get("content") or "")

    @property
    def clock(self) -> Clock:
        """Its clock; zero if someone removed or changed it so that it is none."""
        try:
            generation, position, ordinal = map(int, str(self.properties.get("sophia_clock")).split("/"))
        except ValueError:
            return Clock(0, 0, 0)
        return Clock(generation, position, ordinal)

    @property
    def content_hash(self) -> bytes:
        """The hash that was written with it; empty if it is none."""
        try:
            return bytes.fromhex(self.properties.get("sophia_hash") or "")
        except ValueError:
            return b""

    @property
    def vector_hash(self) -> bytes:
        """Of the vector as it was read; empty without one."""
        return b"" if self.vector is None else vector_hash(self.vector)

    def origin(self) -> ChunkOrigin:
        """Where it came from."""
        found = self.properties
        txid = found.get("sophia_txid")
        return ChunkOrigin(
            chunk=self.chunk,
            start=int(found.get("sophia_start") or 0),
            end=int(found.get("sophia_end") or 0),
            content_hash=str(found.get("sophia_hash") or ""),
            clock=list(self.clock),
            lsn=found.get("sophia_lsn"),
            txid=None if txid is None else int(txid),
            committed_at=found.get("sophia_committed_at"),
            run=str(found.get("sophia_run") or ""),
            indexed_at=found.get("sophia_indexed_at") or datetime.fromtimestamp(0, UTC),
        )

    def hit(self, score: float) -> Hit:
        """As a search result."""
        found = self.properties
        return Hit(
            key=self.key,
            chunk=self.chunk,
            score=score,
            content=self.content,
            metadata=_metadata(found),
            lsn=found.get("sophia_lsn"),
            committed_at=found.get("sophia_committed_at"),
            indexed_at=found.get("sophia_indexed_at") or datetime.fromtimestamp(0, UTC),
        )


def found_of(item: Any) -> Found:
    """From an object of the client."""
    vector = item.vector.get(VECTOR)
    return Found(
        UUID(int=item.uuid.int), item.properties, None if vector is None else np.asarray(vector, dtype=np.float32)
    )


def document_of(layout: Layout, key: Key, chunks: Sequence[Found]) -> StoredDocument:
    """What the store holds of a key, hashes computed from what was read."""
    ordered = sorted(chunks, key=lambda each: (each.chunk, each.id))
    clocks = [each.clock for each in ordered]
    return StoredDocument(
        key=key,
        ids=tuple(each.id for each in ordered),
        content_hashes=tuple(each.content_hash for each in ordered),
        read_hashes=tuple(content_hash(each.content) for each in ordered),
        vector_hashes=tuple(each.vector_hash for each in ordered),
        metadata=tuple(dict.fromkeys(layout.metadata_of(each.properties) for each in ordered)),
        oldest=min(clocks),
        newest=max(clocks),
    )


def metadata_dict(found: Found) -> dict[str, Any]:
    """The metadata as it was written."""
    return _metadata(found.properties)


def slot_of(key: Key) -> int:
    """The key's place: its bucket, then 32 more bits of its hash."""
    return int.from_bytes(key_hash(key)[: SLOT_BITS // 8], "big")


def slot_range(first_bucket: int, last_bucket: int) -> tuple[int, int]:
    """First and last slot of these buckets."""
    width = SLOT_BITS - _BUCKET_BITS
    return first_bucket << width, ((last_bucket + 1) << width) - 1


def field_token(column: str, value: Any) -> str:
    """What a filter on this value looks for."""
    token = f"{column}={_canonical(value)}"
    if len(token) <= LONGEST_TOKEN:
        return token
    return f"{column}#{hashlib.sha256(token.encode()).hexdigest()}"


def tenant_name(value: Any) -> str:
    """The tenant of a value, in the letters that Weaviate allows: itself if it is a plain name, else its hash."""
    if isinstance(value, str) and _PLAIN_TENANT.fullmatch(value):
        return f"s-{value}"
    return f"h-{hashlib.sha256(_canonical(value).encode()).hexdigest()[:40]}"


def _metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    try:
        metadata = json.loads(found.get("sophia_metadata") or "{}")
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _canonical(value: Any) -> str:
    return json.dumps(_whole(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _whole(value: Any) -> Any:
    """With 5.0 as 5, which are equal in JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list) else value


# ---- typed properties ------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _int(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) <= _LARGEST_INTEGER else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _date(value: Any) -> datetime | None:
    """ISO 8601, as PostgreSQL, Snowflake and Estuary write times; UTC where it says no zone."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _list(fitting: Callable[[Any], Any]) -> Callable[[Any], list[Any] | None]:
    def fit(value: Any) -> list[Any] | None:
        items = [fitting(each) for each in (value if isinstance(value, list) else [value])]
        return None if any(each is None for each in items) else items

    return fit


_FITTING: dict[PropertyType, Callable[[Any], Any]] = {
    "text": _text,
    "int": _int,
    "number": _number,
    "boolean": _boolean,
    "date": _date,
    "text[]": _list(_text),
    "int[]": _list(_int),
    "number[]": _list(_number),
}


def _same(wanted: Any, found: Any) -> bool:
    """Whether a property reads as it was written: an empty list and nothing are one to Weaviate."""
    return (wanted in (None, []) and found in (None, [])) or wanted == found


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
