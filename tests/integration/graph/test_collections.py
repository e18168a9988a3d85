"""Collections: observed as far as the inbox is, with checks of the capture that feeds them."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from sophia import inbox
from sophia.database import Database
from sophia.sample import load
from sophia.settings import Settings
from sophia_assets.keys import asset_key
from tests.integration.graph.conftest import Graph, captured
from tests.waiting import until

KEY = asset_key("collections", "documents")


def _observe(graph: Graph) -> dg.ExecuteInProcessResult:
    resolved = graph.definitions.resolve_asset_graph()
    job = dg.define_asset_job("observe", selection=dg.AssetSelection.groups("collections", include_sources=True))
    return job.resolve(asset_graph=resolved).execute_in_process(
        instance=graph.instance, resources=graph.definitions.resources
    )


def _checks(graph: Graph) -> dict[str, tuple[bool, str]]:
    resolved = graph.definitions.resolve_asset_graph()
    names = ("slot_retention", "in_publication", "replica_identity")
    selection = dg.AssetSelection.checks(*(dg.AssetCheckKey(KEY, name) for name in names))
    result = (
        dg.define_asset_job("checks", selection=selection)
        .resolve(asset_graph=resolved)
        .execute_in_process(instance=graph.instance, resources=graph.definitions.resources, raise_on_error=False)
    )
    return {e.check_name: (e.passed, e.description or "") for e in result.get_asset_check_evaluations()}


def test_an_observation_says_how_far_the_inbox_is(graph: Graph) -> None:
    graph.put(1, 2, 3)
    graph.delete(2)
    inbox.park(graph.connection, "documents", "[9]", stage="inbox", reason="broken")
    result = _observe(graph)
    (observation,) = (e for e in result.get_asset_observation_events() if e.asset_key == KEY)
    seen = observation.asset_observation_data.asset_observation
    found = {name: value.value for name, value in seen.metadata.items()}
    assert (found["dagster/row_count"], found["position"], found["dead_letters"]) == (2, 4, 1)
    assert seen.data_version == "1:4"
    # Collections that nothing feeds have nothing to say, and that is no fault.
    assert {e.asset_key for e in result.get_asset_observation_events()} == {KEY}


@pytest.fixture
def running(graph: Graph, configured: Settings, database: Database) -> Iterator[None]:
    load(graph.connection, limit=3)
    with captured(graph.catalog, configured, database):
        yield


@pytest.mark.usefixtures("running")
def test_checks_of_a_capture_that_runs_pass(graph: Graph) -> None:
    assert {name: passed for name, (passed, _) in _checks(graph).items()} == {
        "slot_retention": True,
        "in_publication": True,
        "replica_identity": True,
    }


@pytest.mark.usefixtures("running")
def test_a_table_without_its_key_fails_and_names_the_statement(graph: Graph) -> None:
    graph.connection.execute("ALTER TABLE public.documents REPLICA IDENTITY NOTHING")
    passed, description = _checks(graph)["replica_identity"]
    assert not passed
    assert "REPLICA IDENTITY" in description


def test_a_table_outside_the_publication_fails_and_names_the_statement(
    graph: Graph, configured: Settings, database: Database
) -> None:
    load(graph.connection, limit=3)
    with captured(graph.catalog, configured, database):
        pass
    source = graph.catalog.source("sample")
    graph.connection.execute(f"ALTER PUBLICATION {source.publication} DROP TABLE public.documents")
    passed, description = _checks(graph)["in_publication"]
    assert not passed
    assert f"ALTER PUBLICATION {source.publication} ADD TABLE public.documents" in description


def test_a_slot_that_is_gone_fails_and_names_the_command(
    graph: Graph, configured: Settings, database: Database
) -> None:
    load(graph.connection, limit=3)
    with captured(graph.catalog, configured, database):
        pass
    slot = graph.catalog.source("sample").slot
    until(lambda: not _active(graph, slot), "the slot's release")
    graph.connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    passed, description = _checks(graph)["slot_retention"]
    assert not passed
    assert "sophia capture" in description


def _active(graph: Graph, slot: str) -> bool:
    row = graph.connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]).fetchone()
    return bool(row and row[0])
