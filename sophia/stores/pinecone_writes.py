"""Writes to a namespace of Pinecone: upserts that are cut to Pinecone's limits, and deletions by id.

Pinecone takes or refuses a request as a whole and does not say which record is at fault. A refused request is halved
until the record is found; its document is refused, the others go on. If Pinecone refuses one record after the other and
takes none, it is not the records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import UUID

import numpy as np
import orjson

from sophia.documents import Key
from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError
from sophia.stores.base import DocumentWrite
from sophia.stores.pinecone_http import Deadline, NoNamespaceError, PineconeHttp, RefusedError
from sophia.stores.pinecone_records import METADATA_BYTES, Record, encoded, record_id

# Of an upsert and of a deletion.
REQUEST_RECORDS = 1_000
# Documented as 2 MB; with room for what surrounds the records.
REQUEST_BYTES = 2_000_000 - 1_000
# Upserts of a write at a time. Pinecone takes 100 a second and 50 MB of a namespace.
UPSERTS = 4
# Single records that are refused before any was taken, after which the records are not blamed any more.
BLAMED = 8


class Upload:
    """The records of a batch of documents. `add` documents, then `send` once.

    Attributes:
        begun: ids of all chunks of the documents, whether they were taken or not.
    """

    def __init__(self, http: PineconeHttp, index: str, namespace: str, deadline: Deadline) -> None:
        self._http = http
        self._index = index
        self._namespace = namespace
        self._deadline = deadline
        self._records: list[Record] = []
        self._taken: list[Record] = []
        self._refused: dict[Key, str] = {}
        self._blamed = 0
        self.begun: set[str] = set()

    @property
    def stored(self) -> set[str]:
        """Ids of the records that Pinecone took, of documents of which it took all."""
        return {record.id for record in self._taken if record.key not in self._refused}

    def add(self, write: DocumentWrite, kept: Mapping[UUID, Vectors], run: str, at: datetime) -> None:
        """Take a document up, unless one of its chunks is too large.

        Args:
            kept: vectors of chunks that bear none, by chunk id. A chunk that is not there either is left out.
            at: time of the write.
        """
        self.begun |= {record_id(write.bucket, chunk.id) for chunk in write.chunks}
        of_document = []
        for chunk in write.chunks:
            vector = chunk.vector if chunk.vector is not None else kept.get(chunk.id)
            if vector is None:
                continue
            if not np.any(vector):
                self._refused[write.key] = f"the vector of chunk {chunk.number} is all zeros, which Pinecone refuses"
                return
            record, size = encoded(write, chunk, vector, run, at)
            if size > METADATA_BYTES:
                self._refused[write.key] = (
                    f"text and metadata of chunk {chunk.number} have {size:,} bytes, of which Pinecone takes "
                    f"{METADATA_BYTES:,}; use smaller chunks or fewer metadata columns"
                )
                return
            of_document.append(record)
        self._records += of_document

    def send(self) -> dict[Key, str]:
        """Send all. Returns the documents that are refused, with the reason.

        Raises:
            ConfigurationError: Pinecone refuses whatever it is sent.
            TemporaryError: Pinecone did not take a part until the deadline.
        """
        first, *others = list(batches(self._records)) or [[]]
        self._send(first)
        if others:
            # Pinecone answers in a tenth of a second or more, most of which is waiting.
            pool = ThreadPoolExecutor(UPSERTS, thread_name_prefix="pinecone")
            try:
                for _ in pool.map(self._send, others):
                    pass
            finally:
                # A write is over when all its requests are.
                pool.shutdown(cancel_futures=True)
        return self._refused

    def _send(self, batch: Sequence[Record]) -> None:
        # Halves that wait for their turn, the next one last.
        waiting = [list(batch)]
        while waiting:
            part = [record for record in waiting.pop() if record.key not in self._refused]
            if not part:
                continue
            head = b'{"namespace":%b,"vectors":[' % orjson.dumps(self._namespace)
            content = head + b",".join(record.body for record in part) + b"]}"
            try:
                self._http.post(self._index, "/vectors/upsert", content, self._deadline)
            except RefusedError as refusal:
                if len(part) == 1:
                    self._refuse(part[0], refusal)
                else:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
            else:
                self._taken += part

    def _refuse(self, record: Record, refusal: RefusedError) -> None:
        self._blamed += 1
        if self._blamed >= BLAMED and not self._taken:
            raise ConfigurationError(
                f"Pinecone refuses every record for its index {self._index} ({refusal.numbers}): check that "
                "it is the one of this model, and look the request up in Pinecone's console"
            ) from refusal
        self._refused[record.key] = f"Pinecone refuses chunk {record.number} ({refusal.numbers})"


def batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Records in order, cut to the number and bytes of a request."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (len(batch) == REQUEST_RECORDS or size + len(record.body) + 1 > REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.body) + 1
    if batch:
        yield batch


def remove(http: PineconeHttp, index: str, namespace: str, ids: Collection[str], deadline: Deadline) -> None:
    """Delete records by id; those that are not there are none to delete."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), REQUEST_RECORDS):
        body = {"ids": ordered[start : start + REQUEST_RECORDS], "namespace": namespace}
        try:
            http.post(index, "/vectors/delete", body, deadline)
        except NoNamespaceError:
            return
