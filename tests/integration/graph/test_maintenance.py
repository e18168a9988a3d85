"""rebuild_index and apply_retention: versions beside each other, gates before the switch, what is old removed."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from sophia.indexing.versions import active_versions
from sophia_assets.keys import asset_key
from tests.catalogs import changed, replaced
from tests.integration.graph.conftest import Graph

KEY = asset_key("indexes", "documents")


def _rebuild(graph: Graph, **config: Any) -> dg.ExecuteInProcessResult:
    return graph.run("rebuild_index", run_config={"ops": {"rebuild": {"config": {"index": "documents"} | config}}})


def _with_template(graph: Graph, template: str) -> None:
    indexes = replaced(graph.catalog.indexes, graph.catalog.index("documents"), template=template)
    graph.load(changed(graph.catalog, indexes=indexes))


def _states(graph: Graph) -> dict[int, str]:
    return {version.number: version.state for version in active_versions(graph.connection)}


def _served(graph: Graph) -> set[str]:
    return {row[0] for row in graph.connection.execute("SELECT content FROM indexes.documents")}


def test_a_changed_template_is_built_beside_proven_and_switched(graph: Graph) -> None:
    graph.put(1, 2)
    graph.repair()
    _with_template(graph, "{body}")
    assert _served(graph) == {"title 1\n\ntext 1", "title 2\n\ntext 2"}
    result = _rebuild(graph)
    assert result.success
    assert _states(graph) == {1: "retiring", 2: "serving"}
    assert _served(graph) == {"text 1", "text 2"}
    shown = graph.metadata(asset_key("serving", "documents"))
    assert (shown["promoted_from"], shown["promoted_to"], shown["sample_queries/found"]) == (1, 2, 1.0)
    found = graph.metadata(KEY)
    assert (found["version"], found["promoted"], found["embedded"]) == (2, True, 2)
    new = next(v for v in active_versions(graph.connection) if v.state == "serving")
    assert graph.data_version(KEY) == f"{new.fingerprint}:2"
    partitions = {
        event.step_materialization_data.materialization.partition
        for event in result.all_events
        if event.is_step_materialization and event.asset_key == KEY
    }
    assert partitions == set("0123456789abcdef")


def test_without_promotion_the_old_version_goes_on_serving(graph: Graph) -> None:
    graph.put(1)
    graph.repair()
    _with_template(graph, "{body}")
    assert _rebuild(graph, promote=False).success
    assert _states(graph) == {1: "serving", 2: "building"}
    assert _served(graph) == {"title 1\n\ntext 1"}


@pytest.mark.usefixtures("hasty_gates")
def test_a_version_whose_proof_fails_does_not_serve(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    graph.put(1, 2)
    graph.repair()
    _with_template(graph, "{body}")
    import sophia.indexing.repair as repair

    finish = repair.finish_load

    def lose_a_row(connection: Any, writer: Any) -> None:
        finish(connection, writer)
        connection.execute("DELETE FROM indexes.documents_v2 WHERE key = '[1]'")

    monkeypatch.setattr(repair, "finish_load", lose_a_row)
    result = _rebuild(graph)
    assert not result.success
    assert _states(graph) == {1: "serving", 2: "building"}
    assert _served(graph) == {"title 1\n\ntext 1", "title 2\n\ntext 2"}


def test_an_unknown_index_fails_and_names_the_known_ones(graph: Graph) -> None:
    result = graph.run("rebuild_index", run_config={"ops": {"rebuild": {"config": {"index": "documnets"}}}})
    assert not result.success
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    assert "documnets" in str(failure.step_failure_data.error)


def test_retention_removes_what_is_over_its_time_and_says_how_many(graph: Graph) -> None:
    graph.put(1, 2)
    days = graph.catalog.retention.inbox_days
    graph.connection.execute(
        "UPDATE sophia.inbox SET received_at = now() - make_interval(days => %s) WHERE key = '[1]'", [days + 1]
    )
    result = graph.run("apply_retention")
    assert result.success
    (output,) = (event for event in result.all_events if event.is_successful_output)
    removed = {name: value.value for name, value in output.step_output_data.metadata.items()}
    assert removed["inbox"] == 1
    kept = {"inbox", "batches", "tombstones", "ledger", "dead_letters", "parked", "estuary_commits", "cache"}
    assert set(removed) == {*kept, "versions"}
    assert graph.connection.execute("SELECT key FROM sophia.inbox").fetchall() == [("[2]",)]
