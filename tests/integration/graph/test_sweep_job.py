"""The job `estuary_sweep`."""

from __future__ import annotations

import dagster as dg
import psycopg
import pytest
from psycopg.rows import TupleRow

from jobs import build_estuary_sweep_job
from resources import DatabaseResource
from sophia import inbox
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.documents import Change, Clock, canonical_key
from tests.estuary.scene import estuary_catalog

Connection = psycopg.Connection[TupleRow]


def test_it_sweeps_and_says_what_it_did(
    connection: Connection, database: Database, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOPHIA_DATABASE_URL", database.url)
    monkeypatch.setenv("SOPHIA_ESTUARY_SOURCE_URL", database.url)
    connection.execute("CREATE TABLE items (id int PRIMARY KEY)")
    inbox.ensure_collection(connection, "items", ["id"])
    inbox.accept(connection, "items", [Change(canonical_key([1]), "c", Clock(1, 5, 0), {"id": 1})])
    job = build_estuary_sweep_job(estuary_catalog(catalog), dg.in_process_executor)

    def run(**config: object) -> dg.ExecuteInProcessResult:
        return job.execute_in_process(
            run_config={"ops": {"sweep_orphans": {"config": {"collection": "items"} | config}}},
            resources={"database": DatabaseResource()},
            raise_on_error=False,
        )

    without_zone = run(before="2026-01-01T00:00:00")
    assert not without_zone.success
    assert run(dry_run=True).success
    assert connection.execute("SELECT deleted FROM sophia.documents").fetchall() == [(False,)]
    done = run(before="2026-01-01T00:00:00Z")
    assert done.success
    assert connection.execute("SELECT deleted FROM sophia.documents").fetchall() == [(True,)]
