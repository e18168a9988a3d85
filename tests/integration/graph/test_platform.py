"""Platform assets: planned, never applied; their data version is what was observed, so a plan does not move it."""

from __future__ import annotations

from sophia.catalog import Catalog
from sophia_assets.keys import asset_key
from tests.catalogs import changed, replaced
from tests.integration.graph.conftest import Graph

NODE = asset_key("nodes", "sophia-production")


def test_a_platform_asset_is_planned_with_its_diff(graph: Graph) -> None:
    assert graph.run("plan_platform", NODE).success
    found = graph.metadata(NODE)
    assert found["state"] == "planned"
    assert found["to_create"] >= 1
    assert (found["to_update"], found["to_delete"]) == (0, 0)
    assert found["diff"].startswith("```diff\n--- /dev/null\n+++ b/")
    assert found["diff_lines"] >= found["files"] >= 1


def test_planning_moves_no_data_version(graph: Graph) -> None:
    graph.run("plan_platform", NODE)
    first, digest = graph.data_version(NODE), graph.metadata(NODE)["desired_digest"]
    graph.run("plan_platform", NODE)
    assert graph.data_version(NODE) == first
    nodes = replaced(graph.catalog.nodes, graph.catalog.node("sophia-production"), labels={"changed": "yes"})
    graph.load(changed(graph.catalog, nodes=nodes))
    graph.run("plan_platform", NODE)
    # Another plan, and nothing outside has moved.
    assert graph.metadata(NODE)["desired_digest"] != digest
    assert graph.data_version(NODE) == first


def test_a_faulty_entry_fails_its_own_check_alone(graph: Graph, catalog: Catalog) -> None:
    service = catalog.service("console")
    security = service.security.model_copy(update={"run_as_user": 0})
    graph.load(changed(catalog, services=replaced(catalog.services, service, security=security)))
    keys = [asset_key("services", "console"), asset_key("services", "core_api")]
    result = graph.run("plan_platform", *keys)
    passed = {e.asset_key: e.passed for e in result.get_asset_check_evaluations()}
    assert passed == {keys[0]: False, keys[1]: True}
    (fault,) = (e for e in result.get_asset_check_evaluations() if not e.passed)
    assert "root-user" in (fault.description or "")
    assert fault.metadata["errors"].value >= 1


def test_the_whole_platform_is_planned_in_one_run(graph: Graph) -> None:
    result = graph.run("plan_platform")
    assert result.success
    planned = {event.asset_key for event in result.get_asset_materialization_events() if event.asset_key}
    resolved = graph.definitions.resolve_asset_graph()
    data = ("indexes", "candidates", "serving")
    assert planned == {k for k in resolved.materializable_asset_keys if k.path[0] not in data}
    failed = [e.asset_key.to_user_string() for e in result.get_asset_check_evaluations() if not e.passed]
    assert failed == []
