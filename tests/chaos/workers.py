"""What the forked processes run: the same loops and calls as `sophia capture`, `sophia indexer`, `sophia repair` and a
promotion, with quick settings and the chaos embedder. A worker may be armed to kill itself at a failpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sophia.embedding
import sophia.embedding.models
from sophia import failpoints
from sophia.capture import Binding, Capture, CaptureSource
from sophia.catalog import Catalog
from sophia.catalog.models import Collection, EmbeddingModel, Index, Source
from sophia.database import Database
from sophia.embedding import Embedder
from sophia.erasure import erase
from sophia.errors import TemporaryError
from sophia.indexing import absorbing
from sophia.indexing import indexer as indexer_module
from sophia.indexing.indexer import Indexer
from sophia.indexing.promotion import BehindError, promote, retire, rollback
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.verify import verify
from sophia.indexing.versions import IndexVersion, active_versions
from sophia.services import worker
from sophia.settings import Settings, load_settings
from sophia.stores import IN_DATABASE, pgvector_fresh
from tests.chaos.embedder import ChaosEmbedder
from tests.chaos.tables import CHUNK_TOKENS, DIMENSION, MODELS, TABLES

SOURCE = "chaos"
SLOT = "chaos_slot"
PUBLICATION = "chaos_publication"
SHARDS = 2
# What a driver starts now and then; they end by themselves.
JOBS = ("repair", "promote", "rollback", "retire", "erase")


@dataclass(frozen=True)
class Spec:
    """What one worker does.

    Attributes:
        role: one of `ROLES`.
        arm: a failpoint and the number of the hit at which the process kills itself.
        hits, calls: files to which it appends the name of that failpoint, and its embedder's counts.
        delay: seconds of a forward pass.
        index, model: of a repair, promotion, rollback or retirement.
    """

    role: str
    url: str
    hits: str
    calls: str
    log: str
    arm: tuple[str, int] | None = None
    delay: float = 0.0
    index: str = ""
    model: str = MODELS[0]
    deep: bool = True
    capture: dict[str, Any] = field(default_factory=dict)
    indexer: dict[str, Any] = field(default_factory=dict)


def work(spec: Spec) -> None:
    """Run one worker to its end."""
    calls = os.open(spec.calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _use_embedder(lambda model: ChaosEmbedder(model.name, calls, spec.delay))
    # A process that comes up while its server is down looks again soon, so that a round stays short.
    worker.LONGEST_DELAY_SECONDS = 0.4
    # There is no quiet moment in a round.
    indexer_module.LATE_SECONDS = 0.5
    # With as few rows as here none would ever be moved into a graph.
    pgvector_fresh.KEPT, absorbing.MOST_FRESH = 5, 20
    if spec.arm is not None:
        failpoints.arm(_killer(*spec.arm, hits=spec.hits))
    ROLES[spec.role](spec)


def settings_of(spec: Spec) -> Settings:
    """Quick settings, so that leases end and looks come soon."""
    capture = {"status_seconds": 0.2, "catalog_check_seconds": 0.5} | spec.capture
    # A deep scan takes some seconds.
    indexer = {"lease_seconds": 1.0, "poll_seconds": 0.1, "scan_hours": 0.001} | spec.indexer
    return load_settings(environ={}, database_url=spec.url, capture=capture, indexer=indexer)


def catalog(model: str) -> Catalog:
    """Every table as a collection and an index, the indexes with one model's templates."""
    models = tuple(
        EmbeddingModel(
            name=name,
            description="A function of the text.",
            provider="openai",
            url="http://127.0.0.1:9",
            model=name,
            dimension=DIMENSION,
            max_tokens=1024,
            version="1",
        )
        for name in MODELS
    )
    source = Source(name=SOURCE, description="The tables.", kind="postgres", publication=PUBLICATION, slot=SLOT)
    collections = tuple(
        Collection(
            name=table.name, description="Rows.", source=SOURCE, table=table.qualified, estuary=f"chaos/{table.name}"
        )
        for table in TABLES
    )
    indexes = tuple(
        Index(
            name=table.name,
            description="Texts of rows.",
            collection=table.name,
            model=model,
            template=table.templates[model],
            chunk_tokens=CHUNK_TOKENS,
            metadata=(table.number,),
            store="pgvector",
            shards=SHARDS,
        )
        for table in TABLES
    )
    return Catalog(sources=(source,), collections=collections, models=models, indexes=indexes)


def _use_embedder(make: Callable[[EmbeddingModel], ChaosEmbedder]) -> None:
    def load(model: EmbeddingModel, precision: str, settings: Settings) -> ChaosEmbedder:
        return make(model)

    modules: tuple[Any, ...] = (sophia.embedding, sophia.embedding.models, indexer_module)
    for module in modules:
        module.load_embedder = load


def _killer(name: str, count: int, *, hits: str) -> Callable[[str], None]:
    left = count

    def action(reached: str) -> None:
        nonlocal left
        if reached != name:
            return
        left -= 1
        if left == 0:
            with open(hits, "ab", buffering=0) as file:  # noqa: PTH123 - as few steps as can be
                file.write(f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return action


def _capture(spec: Spec) -> None:
    bindings = tuple(Binding(table.qualified, table.name) for table in TABLES)
    source = CaptureSource(SOURCE, spec.url, PUBLICATION, SLOT, bindings)
    loop = Capture(source, Database(spec.url), settings_of(spec).capture)
    worker.keep_running(worker.Loop("capture", loop.run, loop.ready), worker.stop_on_signals())


def _indexer(spec: Spec) -> None:
    loop = Indexer(catalog(MODELS[0]), Database(spec.url), settings_of(spec))
    worker.keep_running(worker.Loop("indexer", loop.run, loop.ready), worker.stop_on_signals())


def _repair(spec: Spec) -> None:
    """Repair the version of one index under one model, which must live."""
    settings = settings_of(spec)
    with Database(spec.url).connect("sophia-repair") as connection:
        session = _session(connection, spec, settings)
        repair_version(connection, session, range(SHARDS), batch=settings.indexer.bulk_documents, deep=spec.deep)


def _promote(spec: Spec) -> None:
    """Fill the version of one index under one model, prove it, let it serve. Done if it serves already."""
    settings = settings_of(spec)
    with Database(spec.url).connect("sophia-promote") as connection:
        session = _session(connection, spec, settings)
        version, store = session.version, session.writer.store
        for _ in range(20):
            repair_version(connection, session, range(SHARDS), batch=settings.indexer.bulk_documents, deep=False)
            verify(connection, version, store, _embedder_of(version, settings))
            try:
                promote(connection, version, store)
            except BehindError:
                # The live lane of the other one was faster.
                time.sleep(0.1)
            else:
                return
        raise TemporaryError(f"{version.label} does not catch up")


def _rollback(spec: Spec) -> None:
    with Database(spec.url).connect("sophia-rollback") as connection:
        rollback(connection, spec.index)


def _retire(spec: Spec) -> None:
    """End the version of one index under one model, unless it serves."""
    with Database(spec.url).connect("sophia-retire") as connection:
        for version in active_versions(connection):
            if (version.index_name, version.model.name) == (spec.index, spec.model):
                retire(connection, version, IN_DATABASE.of(version))


def _erase(spec: Spec) -> None:
    """Erase a document that its source has deleted, as `sophia erase`. The key may come back any time."""
    with Database(spec.url).connect("sophia-erase") as connection:
        row = connection.execute(
            "SELECT d.key FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id "
            "WHERE c.name = %s AND d.deleted ORDER BY random() LIMIT 1",
            [spec.index],
        ).fetchone()
        if row is not None:
            erase(connection, spec.index, row[0], patience=0.2)


def _session(connection: Any, spec: Spec, settings: Settings) -> Session:
    made = catalog(spec.model)
    return Session.open(
        connection,
        made,
        made.index(spec.index),
        "local",
        lambda version: _embedder_of(version, settings),
        settings,
        run=f"chaos-{spec.role}",
    )


def _embedder_of(version: IndexVersion, settings: Settings) -> Embedder:
    return sophia.embedding.load_embedder(version.model, version.index.precision, settings)


ROLES: dict[str, Callable[[Spec], None]] = {
    "capture": _capture,
    "indexer": _indexer,
    "repair": _repair,
    "promote": _promote,
    "rollback": _rollback,
    "retire": _retire,
    "erase": _erase,
}
