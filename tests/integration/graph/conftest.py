"""The graph over a real database: the resources find it by the settings, as in any process; only the model is cheap."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg.rows import TupleRow

import sophia.embedding
from sophia import inbox
from sophia.capture import Capture, postgres_sources
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.documents import Change, Clock, Origin, canonical_key
from sophia.settings import Settings, load_settings
from sophia_assets.definitions import build_definitions
from sophia_assets.keys import asset_key
from tests.embedders import HashEmbedder
from tests.waiting import until

INDEX = "documents"
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dataclass
class Graph:
    """The graph of a catalog, with one Dagster instance and one database behind it."""

    catalog: Catalog
    connection: psycopg.Connection[TupleRow]
    embedder: HashEmbedder
    instance: dg.DagsterInstance
    definitions: dg.Definitions = field(init=False)
    _positions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.load(self.catalog)

    def load(self, catalog: Catalog) -> None:
        """Build the definitions from another catalog, as a redeployment would."""
        self.catalog = catalog
        self.definitions = build_definitions(catalog, "local")

    # ---- rows ----------------------------------------------------------------------------------------------

    def put(self, *numbers: int, text: str = "text", collection: str = "documents", bulk: bool = False) -> None:
        """Insert or update documents in the inbox."""
        self._take(numbers, collection, lambda n: {"id": n, "title": f"title {n}", "body": f"{text} {n}"}, bulk)

    def delete(self, *numbers: int, collection: str = "documents") -> None:
        self._take(numbers, collection, lambda n: None, False)

    def _take(self, numbers: Sequence[int], collection: str, body: Any, bulk: bool) -> None:
        inbox.ensure_collection(self.connection, collection, ["id"])
        changes = []
        for number in numbers:
            row, position = body(number), next(self._positions)
            origin = Origin(lsn=position * 256, txid=position)
            row = row and row | {"module": "m", "kind": "k"}
            op: Any = "d" if row is None else "c"
            changes.append(Change(canonical_key([number]), op, Clock(1, position, 0), row, origin=origin, bulk=bulk))
        with self.connection.transaction():
            inbox.accept(self.connection, collection, changes)

    # ---- runs ----------------------------------------------------------------------------------------------

    def repair(
        self, first: str = "0", last: str = "f", index: str = INDEX, *, succeeds: bool = True, deep: bool = True
    ) -> dg.ExecuteInProcessResult:
        """Run the repair job over a range of shards of one index, with its checks."""
        job = self.definitions.get_job_def("repair_indexes")
        tags = dict(zip(RANGE, (first, last), strict=True))
        config = {} if deep else {"ops": {f"indexes__{index}": {"config": {"deep": False}}}}
        result = job.execute_in_process(
            run_config=config,
            instance=self.instance,
            tags=tags,
            asset_selection=[asset_key("indexes", index)],
            raise_on_error=False,
        )
        assert result.success is succeeds
        return result

    def run(self, job: str, *assets: dg.AssetKey, **arguments: Any) -> dg.ExecuteInProcessResult:
        """Run a job, or some of its assets."""
        return self.definitions.get_job_def(job).execute_in_process(
            instance=self.instance, asset_selection=list(assets) or None, raise_on_error=False, **arguments
        )

    def materialization(self, key: dg.AssetKey) -> dg.AssetMaterialization:
        """The asset's latest materialization."""
        event = self.instance.get_latest_materialization_event(key)
        assert event is not None
        assert event.asset_materialization is not None
        return event.asset_materialization

    def metadata(self, key: dg.AssetKey) -> dict[str, Any]:
        """The metadata of the latest materialization, as plain values."""
        return {name: value.value for name, value in self.materialization(key).metadata.items()}

    def data_version(self, key: dg.AssetKey) -> str | None:
        return (self.materialization(key).tags or {}).get("dagster/data_version")

    def checks(self, result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
        """The run's check evaluations by name."""
        return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> HashEmbedder:
    """What the resource loads instead of a model; it counts what it is asked."""
    embedder = HashEmbedder()
    monkeypatch.setattr(sophia.embedding, "load_embedder", lambda *arguments: embedder)
    return embedder


@pytest.fixture
def configured(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The environment names the test's database and home, for the resources and for child processes."""
    monkeypatch.setenv("SOPHIA_DATABASE_URL", database.url)
    monkeypatch.setenv("SOPHIA_HOME", str(tmp_path / "home"))
    return load_settings()


@pytest.fixture
def graph(
    catalog: Catalog, configured: Settings, connection: psycopg.Connection[TupleRow], embedder: HashEmbedder
) -> Iterator[Graph]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Graph(catalog, connection, embedder, instance)


@contextlib.contextmanager
def captured(catalog: Catalog, settings: Settings, database: Database) -> Iterator[None]:
    """The capture of the sample tables, running."""
    (source,) = postgres_sources(catalog, settings, database)
    capture = Capture(source, database, settings.capture)
    stop = threading.Event()
    thread = threading.Thread(target=capture.run, args=[stop], daemon=True)
    thread.start()
    try:
        until(lambda: capture.ready.is_set() or not thread.is_alive(), "the capture")
        assert thread.is_alive()
        yield
    finally:
        stop.set()
        thread.join(60)
