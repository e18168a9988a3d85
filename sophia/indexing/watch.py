"""How far a repair of several shards is, how fast it goes, and how long the rest will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.database.connect import connect
from sophia.documents import BUCKETS, bucket_range
from sophia.embedding import Embedder
from sophia.embedding.progress import Meter, Progress
from sophia.errors import TemporaryError
from sophia.indexing.batch import Figures
from sophia.indexing.versions import IndexVersion
from sophia.stores.pgvector_graph import BuildProgress, build_progress

Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
# Outdated documents of a sample from which their number in all is estimated, and the time for looking at more of them.
ENOUGH_DOCUMENTS = 400
LOOK_SECONDS = 0.05
# Between two looks at an index that is being built.
BUILD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RepairProgress:
    """How far `repair_version` is.

    Attributes:
        done: shards that are done.
        shards: how many there are to do.
        ended: whether a shard has just been done.
        documents: documents written.
        embedded: texts embedded.
        building: the store's index that is being built, once all shards are done.
    """

    label: str
    done: int
    shards: int
    ended: bool
    documents: int
    embedded: int
    embedding: Progress
    building: BuildProgress | None = None

    def __str__(self) -> str:
        if self.building is not None:
            return f"{self.label}: {self.building}"
        return (
            f"{self.label}: shard {self.done}/{self.shards}, {self.documents} documents written, "
            f"{self.embedded} texts embedded; {self.embedding}"
        )


class RepairWatch:
    """Tells `progress` how far a repair of several shards is, as embedder and batches show it."""

    def __init__(
        self,
        connection: Connection,
        version: IndexVersion,
        shards: Sequence[int],
        embedder: Embedder,
        progress: Callable[[RepairProgress], None],
    ) -> None:
        self._connection = connection
        self._version = version
        self._label = version.label
        self._shards = len(shards)
        self._progress = progress
        self._ended = self._documents = self._embedded = 0
        self._meter = Meter(embedder, _outstanding(connection, version, shards))

    def note(self, whole: Figures, part: Figures) -> None:
        """Of the shards that are done, and of the present one so far."""
        self._documents, self._embedded = whole.documents + part.documents, whole.embedded + part.embedded

    def shards_ended(self, count: int) -> None:
        """So many more are done."""
        self._ended += count
        if self._ended == self._shards:
            # Whatever the estimate was.
            self._meter.total = self._documents
        self.tell(ended=True)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Meanwhile, say how far the index is that the store builds, as another session sees it."""
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), name="build-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, over: threading.Event) -> None:
        info = self._connection.info
        try:
            with connect(info.dsn, "sophia-build-watch", password=info.password or None) as connection:
                while not over.wait(BUILD_SECONDS):
                    found = build_progress(connection, self._version)
                    if found is not None:
                        self.tell(building=found)
        except (TemporaryError, psycopg.Error):
            # Nobody is told how far it is; whether the build itself fails is the other session's matter.
            return

    def tell(self, *, ended: bool = False, building: BuildProgress | None = None) -> None:
        """Say how far it is now."""
        self._progress(
            RepairProgress(
                self._label,
                self._ended,
                self._shards,
                ended,
                self._documents,
                self._embedded,
                self._meter.reading(self._documents),
                building,
            )
        )


def _outstanding(connection: Connection, version: IndexVersion, shards: Sequence[int]) -> int:
    """About how many documents the ledger lacks in these shards.

    Keys spread evenly over the buckets, so some of these are looked at: more and more, until there are enough
    documents or it takes long.
    """
    width = BUCKETS // version.index.shards
    firsts = [bucket_range(shard, version.index.shards)[0] for shard in shards]
    params = {"version_id": version.id, "collection_id": version.collection_id, "firsts": firsts}
    looked = 1
    while True:
        began = time.perf_counter()
        # Not prepared, as `outdated` is not.
        row = connection.execute(Q["count_outdated"], params | {"width": looked}, prepare=False).fetchone()
        found = int(row[0]) if row else 0
        if found >= ENOUGH_DOCUMENTS or looked == width or time.perf_counter() - began > LOOK_SECONDS:
            return round(found * width / looked)
        looked = min(looked * 4, width)
