"""Work goes where the fleet's table says, and never where it does not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sophia.catalog.models import Catalog, Image
from sophia.platform import RoutingError, RoutingTable, Workload


@pytest.fixture
def table(catalog: Catalog) -> RoutingTable:
    return RoutingTable(catalog)


@pytest.mark.parametrize(
    ("workload", "service", "first"),
    [
        (Workload("embedding", "high"), "inference_warm", "sophia-production"),
        (Workload("embedding"), None, "sophia-ai-core"),
        (Workload("batch", "low"), None, "sophia-data-pipeline"),
        (Workload("batch"), None, "sophia-data-pipeline"),
        (Workload("realtime", "high"), None, "sophia-production"),
        (Workload("mcp"), None, "sophia-mcp-orchestrator"),
        (Workload("inference"), None, "sophia-ai-core"),
        (Workload("development", "low"), None, "sophia-development"),
    ],
)
def test_rules_of_the_fleet(table: RoutingTable, workload: Workload, service: str | None, first: str) -> None:
    placement = table.place(workload)
    assert placement.service == service
    assert placement.nodes[0] == first


@pytest.mark.parametrize("kind", ["embedding", "batch", "mcp", "inference"])
def test_fallback_is_the_production_node(table: RoutingTable, kind: str) -> None:
    assert table.place(Workload(kind)).nodes[-1] == "sophia-production"  # type: ignore[arg-type]


def test_memory_leads_past_the_named_nodes(table: RoutingTable) -> None:
    placement = table.place(Workload("batch", gpu_memory_gb=80))
    assert [(item.node.name, item.preference) for item in placement.candidates] == [("sophia-ai-core", "cheapest")]
    assert {item.node for item in placement.rejected} >= {"sophia-data-pipeline", "sophia-production"}


def test_architecture_keeps_work_off_the_arm_host(table: RoutingTable) -> None:
    placement = table.place(Workload("embedding", architectures=("amd64",)))
    assert placement.nodes == ("sophia-production",)
    assert placement.rejected[0].reason == "is arm64, the image is for amd64"


def test_latency_keeps_work_beside_its_data(table: RoutingTable) -> None:
    assert table.data_regions == {"us-south-1"}
    placement = table.place(Workload("embedding", max_latency_ms=100))
    assert placement.nodes == ("sophia-production",)
    assert "us-east-3" in placement.rejected[0].reason


def test_price_limit(table: RoutingTable) -> None:
    assert table.place(Workload("batch", max_usd_hour=1.0)).nodes == ("sophia-production",)
    assert table.place(Workload("batch")).usd_hour == 1.10


def test_cheapest_first_among_nodes_that_are_not_named(table: RoutingTable) -> None:
    placement = table.place(Workload("batch", gpu_memory_gb=44, max_usd_hour=0.7))
    assert [(item.node.name, item.preference) for item in placement.candidates] == [
        ("sophia-mcp-orchestrator", "cheapest")
    ]


def test_environments_do_not_mix(table: RoutingTable, catalog: Catalog) -> None:
    for route in catalog.routes:
        placement = table.place(Workload(route.workload, route.priority))
        production = route.workload != "development"
        assert all((catalog.node(name).environment == "production") == production for name in placement.nodes)


def test_no_fit_names_every_reason(table: RoutingTable) -> None:
    with pytest.raises(RoutingError, match=r"sophia-ai-core: has 96 GB of GPU memory of 500"):
        table.place(Workload("inference", gpu_memory_gb=500))


def test_unknown_class_names_the_known_ones(catalog: Catalog) -> None:
    empty = catalog.model_copy(update={"routes": ()})
    with pytest.raises(RoutingError, match=r"nodes\.yaml has rules for: none"):
        RoutingTable(empty).place(Workload("mcp"))


def test_gpu_decides_between_rules_of_one_class(table: RoutingTable) -> None:
    assert table.rule(Workload("realtime", "high", gpu=1)).name == "realtime_gpu"
    assert table.rule(Workload("realtime", "high", gpu=0)).name == "realtime"


def test_gpu_pod_settings(table: RoutingTable) -> None:
    settings = table.gpu_pod_settings(Workload("batch", "low", gpu=1))
    assert settings["container_config"] == {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    assert settings["job_spec_config"] == {"ttl_seconds_after_finished": 3600}
    spec = settings["pod_spec_config"]
    assert spec["runtime_class_name"] == "nvidia"
    assert spec["node_selector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    affinity = spec["affinity"]["node_affinity"]
    terms = affinity["required_during_scheduling_ignored_during_execution"]["node_selector_terms"]
    assert terms[0]["match_expressions"][0]["values"] == ["sophia-data-pipeline", "sophia-production"]
    weights = [item["weight"] for item in affinity["preferred_during_scheduling_ignored_during_execution"]]
    assert weights == [100, 20]


def test_settings_without_gpu_ask_for_none(table: RoutingTable) -> None:
    settings = table.gpu_pod_settings(Workload("mcp"))
    assert settings["container_config"] == {}
    assert "runtime_class_name" not in settings["pod_spec_config"]


def test_staging_work_tolerates_the_staging_taint(table: RoutingTable) -> None:
    tolerations = table.gpu_pod_settings(Workload("development", "low"))["pod_spec_config"]["tolerations"]
    assert tolerations == [
        {"key": "sophia.example.com/environment", "operator": "Equal", "value": "staging", "effect": "NoSchedule"}
    ]


def test_settings_convert_to_a_pod(table: RoutingTable) -> None:
    k8s = pytest.importorskip("kubernetes.client")
    for workload in (Workload("batch", gpu=1), Workload("mcp"), Workload("embedding", "high")):
        spec = table.gpu_pod_settings(workload)["pod_spec_config"]
        assert set(spec) <= set(k8s.V1PodSpec.openapi_types)
        assert set(spec.get("affinity", {})) <= set(k8s.V1Affinity.openapi_types)


def test_service_of_an_amd64_image_stays_off_arm(replaced: Callable[..., Catalog], catalog: Catalog) -> None:
    image: Image = catalog.image("sophia-inference")
    changed = replaced("images", image.name, platforms=("linux/amd64",))
    assert RoutingTable(changed).place_service(changed.service("inference")).nodes == ("sophia-production",)
