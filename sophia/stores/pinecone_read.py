"""Reads of a namespace of Pinecone: by id, by prefix of the id, and of whole documents.

An id tells the bucket of a key and nothing else of it, and no filter is trusted, so what belongs to a key is found in
three ways: by the ids that the ledger says may be there, by those that a comparison came across and no ledger knows,
and by listing the key's bucket.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from sophia.documents import Key, bucket_of
from sophia.embedding.base import Vectors
from sophia.indexing.versions import IndexVersion
from sophia.settings import PineconeSettings
from sophia.stores.base import Connection, DocumentWrite, Scope, StoredDocument, vector_hash
from sophia.stores.ledger import held_ids
from sophia.stores.pinecone_http import Deadline, NoNamespaceError, PineconeHttp
from sophia.stores.pinecone_records import (
    HEX_DIGITS,
    Stored,
    as_document,
    bucket_prefix,
    prefixes,
    read,
    record_id,
    within,
)

logger = logging.getLogger("sophia.stores")
# A request names up to 1,000 ids, but all in its address: 48 characters each.
FETCHED_IDS = 100
LISTED_IDS = 100
# Of so many keys at most the buckets are listed, a request each, to find also what no ledger knows.
LISTED_KEYS = 16
# Ids that comparisons found and no ledger knows, remembered for the repair behind them.
MOST_STRAYS = 10_000


class PineconeReader:
    """Reads what is there. Safe to use from several threads."""

    def __init__(self, http: PineconeHttp, settings: PineconeSettings) -> None:
        self._http = http
        self._settings = settings
        self._strays: dict[tuple[int, str], set[str]] = {}

    def deadline(self) -> Deadline:
        """That of one question."""
        return Deadline(self._settings.read_seconds)

    def get(self, version: IndexVersion, path: str, params: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """One question to the version's namespace; nothing if there is none."""
        try:
            params = params | {"namespace": version.store_name}
            return self._http.get(index_of(version), path, params, deadline).body
        except NoNamespaceError:
            return {}

    def caught_up(self, version: IndexVersion, deadline: Deadline | None = None) -> bool:
        """Wait until reads show what was written, by whatever process; whether there is a namespace at all."""
        deadline = deadline or Deadline(self._settings.fresh_seconds)
        return self._http.catch_up(index_of(version), version.store_name, version.dimension, deadline)

    def fetch(self, version: IndexVersion, ids: Sequence[str], deadline: Deadline) -> dict[str, Stored]:
        """The records of these ids that are there."""
        found: dict[str, Stored] = {}
        names = version.index.metadata
        for start in range(0, len(ids), FETCHED_IDS):
            params = {"ids": list(ids[start : start + FETCHED_IDS])}
            there = self.get(version, "/vectors/fetch", params, deadline).get("vectors") or {}
            found |= {name: read(record | {"id": name}, names) for name, record in there.items()}
        return found

    def listed(self, version: IndexVersion, prefix: str, deadline: Deadline | None = None) -> Iterator[str]:
        """Ids that begin with a prefix, in order; each page within a deadline of its own if none is given."""
        params: dict[str, Any] = {"limit": LISTED_IDS}
        if prefix:
            params["prefix"] = prefix
        while True:
            body = self.get(version, "/vectors/list", params, deadline or self.deadline())
            yield from (item["id"] for item in body.get("vectors") or ())
            token = (body.get("pagination") or {}).get("next")
            if not token:
                return
            params["paginationToken"] = token

    def everything(
        self,
        connection: Connection,
        version: IndexVersion,
        keys: Sequence[str],
        deadline: Deadline,
        *,
        listed: bool = False,
    ) -> set[str]:
        """Ids of all records of these keys, as far as known; see above. Buckets are listed of few keys or if asked."""
        known = {
            record_id(bucket_of(key), chunk)
            for key, chunks in held_ids(connection, version, keys).items()
            for chunk in chunks
        }
        for key in keys:
            known |= self._strays.get((version.id, key), set())
        if listed or len(keys) <= LISTED_KEYS:
            buckets = sorted({bucket_of(Key(key)) for key in keys})
            there = {name for bucket in buckets for name in self.listed(version, bucket_prefix(bucket), deadline)}
            wanted = set(keys)
            unknown = self.fetch(version, sorted(there - known), deadline)
            known |= {name for name, record in unknown.items() if record.key in wanted}
        return known

    def documents(self, connection: Connection, version: IndexVersion, scope: Scope) -> Iterator[StoredDocument]:
        """What is there of a scope, page by page: the records of a document lie in one bucket, side by side."""
        ids: Iterable[str]
        if scope.keys is None:
            parts = (self.listed(version, prefix) for prefix in prefixes(scope.first, scope.last))
            ids = (name for part in parts for name in part if within(name, scope.first, scope.last))
        else:
            ids = sorted(self.everything(connection, version, scope.keys, self.deadline()))
        keys = set(scope.keys) if scope.keys is not None else None
        group: dict[Key, list[Stored]] = defaultdict(list)
        bucket = ""
        source = iter(ids)
        while page := list(itertools.islice(source, FETCHED_IDS)):
            found = self.fetch(version, page, self.deadline())
            self._note_strays(connection, version, list(found.values()))
            for name in page:
                if name[:HEX_DIGITS] != bucket:
                    yield from (as_document(key, group[key]) for key in sorted(group))
                    group.clear()
                    bucket = name[:HEX_DIGITS]
                record = found.get(name)
                if record is not None and (keys is None or record.key in keys):
                    group[record.key].append(record)
        yield from (as_document(key, group[key]) for key in sorted(group))

    def kept_vectors(
        self, version: IndexVersion, writes: Sequence[DocumentWrite], deadline: Deadline
    ) -> dict[UUID, Vectors]:
        """The stored vectors of chunks whose text has not changed, by chunk id.

        Pinecone's update of metadata alone would leave a column that became null. What is not as the ledger says is
        left out, once Pinecone shows all that was written: the verification writes it again.
        """
        wanted = {
            record_id(write.bucket, chunk.id): chunk
            for write in writes
            for chunk in write.chunks
            if chunk.vector is None
        }
        found: dict[UUID, Vectors] = {}
        for waited in (False, True):
            lacking = sorted(name for name, chunk in wanted.items() if chunk.id not in found)
            if not lacking or (waited and not self.caught_up(version, deadline)):
                break
            for name, record in self.fetch(version, lacking, deadline).items():
                if vector_hash(record.vector) == wanted[name].vector_hash:
                    found[wanted[name].id] = record.vector
        if len(found) < len(wanted):
            logger.warning(
                "%s: %d of %d unchanged chunks are not in Pinecone as they were written; the verification mends them",
                version.label,
                len(wanted) - len(found),
                len(wanted),
            )
        return found

    def forget_strays(self, version: IndexVersion, keys: Iterable[str]) -> None:
        """Forget what comparisons found of these keys: it was deleted."""
        for key in keys:
            self._strays.pop((version.id, key), None)

    def _note_strays(self, connection: Connection, version: IndexVersion, found: Sequence[Stored]) -> None:
        """Remember the ids that the ledger does not know of their key, so that a repair can delete them."""
        held = held_ids(connection, version, sorted({record.key for record in found}))
        for record in found:
            known = any(record.id == record_id(bucket_of(record.key), chunk) for chunk in held.get(record.key, ()))
            if not known and len(self._strays) < MOST_STRAYS:
                self._strays.setdefault((version.id, record.key), set()).add(record.id)


def index_of(version: IndexVersion) -> str:
    """The Pinecone index of a version; the catalog requires the field for this store."""
    return version.index.class_name or ""
