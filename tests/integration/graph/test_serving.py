"""Candidate, gates and serving version in the graph: a changed index serves only behind checks that passed."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from sophia.indexing.gates import NAMES
from sophia.indexing.versions import active_versions
from sophia_assets.keys import asset_key
from tests.catalogs import changed, replaced
from tests.integration.graph.conftest import RANGE, Graph

INDEX = asset_key("indexes", "documents")
CANDIDATE = asset_key("candidates", "documents")
SERVING = asset_key("serving", "documents")


def with_template(graph: Graph, template: str) -> None:
    indexes = replaced(graph.catalog.indexes, graph.catalog.index("documents"), template=template)
    graph.load(changed(graph.catalog, indexes=indexes))


def run(graph: Graph, *keys: dg.AssetKey, **options: Any) -> dg.ExecuteInProcessResult:
    """Materialise these assets with their checks in one run."""
    resolved = graph.definitions.resolve_asset_graph()
    job = dg.define_asset_job("chosen", selection=dg.AssetSelection.assets(*keys)).resolve(asset_graph=resolved)
    return job.execute_in_process(
        instance=graph.instance, resources=graph.definitions.resources, raise_on_error=False, **options
    )


def states(graph: Graph) -> dict[int, str]:
    return {version.number: version.state for version in active_versions(graph.connection)}


def test_rule_a_changed_index_is_built_gated_and_switched_in_one_run(graph: Graph) -> None:
    """All shards of the partitioned index, the candidate, its four gates and the switch."""
    graph.put(*range(30))
    graph.repair()
    with_template(graph, "{body}")
    result = run(graph, INDEX, CANDIDATE, SERVING, tags=dict(zip(RANGE, ("0", "f"), strict=True)))
    assert result.success
    assert states(graph) == {1: "retiring", 2: "serving"}
    found = graph.checks(result)
    assert {name for name in NAMES if found[name].passed} == set(NAMES)
    assert found["recall"].metadata["recall"].value >= 0.95
    assert graph.metadata(CANDIDATE)["version"] == 2
    shown = graph.metadata(SERVING)
    assert (shown["state"], shown["promoted_from"], shown["promoted_to"]) == ("promoted", 1, 2)
    assert graph.data_version(SERVING) == graph.metadata(CANDIDATE)["fingerprint"]
    assert {row[0] for row in graph.connection.execute("SELECT content FROM indexes.documents")} == {
        f"text {number}" for number in range(30)
    }


@pytest.mark.usefixtures("hasty_gates")
def test_rule_a_gate_that_fails_blocks_the_switch(graph: Graph) -> None:
    graph.put(*range(10))
    graph.repair()
    with_template(graph, "{body}")
    graph.repair(succeeds=True)
    graph.connection.execute("DELETE FROM indexes.documents_v2 WHERE key = '[3]'")
    result = run(graph, CANDIDATE, SERVING)
    assert not result.success
    found = graph.checks(result)
    assert not found["proven"].passed
    assert found["proven"].severity is dg.AssetCheckSeverity.ERROR
    assert "DIFFERS" in (found["proven"].description or "")
    assert states(graph) == {1: "serving", 2: "building"}
    assert graph.instance.get_latest_materialization_event(SERVING) is None


def test_nothing_to_promote_is_said(graph: Graph) -> None:
    graph.put(1, 2)
    graph.repair()
    assert run(graph, CANDIDATE, SERVING).success
    shown = graph.metadata(SERVING)
    assert (shown["state"], shown["version"]) == ("unchanged", 1)
    assert shown["summary"] == "nothing to promote: v1 serves already"


def test_a_candidate_that_was_not_begun_names_what_to_do(graph: Graph) -> None:
    graph.put(1)
    graph.repair()
    with_template(graph, "{body}")
    result = run(graph, CANDIDATE, SERVING)
    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "materialise indexes/documents first" in str(failure.step_failure_data)
    assert states(graph) == {1: "serving"}


def test_an_index_without_a_store_here_is_planned(graph: Graph) -> None:
    keys = [asset_key(kind, "conversation_search") for kind in ("candidates", "serving")]
    assert run(graph, *keys).success
    assert [graph.metadata(key)["state"] for key in keys] == ["planned", "planned"]


def test_the_gates_block_and_are_no_health_checks(graph: Graph) -> None:
    resolved = graph.definitions.resolve_asset_graph()
    assert all(resolved.get(dg.AssetCheckKey(CANDIDATE, name)).blocking for name in NAMES)
    job = graph.definitions.get_job_def("validate_platform")
    assert not {key.asset_key.path[0] for key in job.asset_layer.asset_graph.asset_check_keys} & {"candidates"}


def test_who_wrote_can_be_found_by_the_run(graph: Graph) -> None:
    graph.put(1)
    result = graph.repair()
    row = graph.connection.execute(
        "SELECT r.kind, r.code FROM sophia.ledger l JOIN sophia.runs r ON r.run = l.run WHERE l.run = %s",
        [result.run_id],
    ).fetchone()
    assert row is not None
    assert row[0] == "dagster"
    assert row[1]
