"""Manifests of the real catalog: schema, rules, flows, and the comparison with a cluster."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sophia.catalog.models import Catalog, Resources, Service
from sophia.platform import PlatformSystems, Reconciler, SystemUnreachableError, build_reconcilers
from sophia.platform.kubernetes_checks import schema_findings
from sophia.platform.manifests import DIGEST, MANAGED_BY, NAME
from sophia.platform.text import from_yaml_stream
from sophia.settings import load_settings

Manifests = dict[str, dict[str, Any]]


class Cluster:
    """A cluster that holds these objects, with what a real API adds to them."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.objects = [copy.deepcopy(item) for item in objects]
        for item in self.objects:
            item["metadata"] |= {"uid": "1", "resourceVersion": "2", "managedFields": []}
            item["status"] = {"observedGeneration": 1}

    def list_objects(self, api_version: str, kind: str, selector: str) -> list[dict[str, Any]]:
        wanted = dict(part.split("=") for part in selector.split(","))
        return [
            item
            for item in self.objects
            if (item["apiVersion"], item["kind"]) == (api_version, kind)
            and wanted.items() <= item["metadata"]["labels"].items()
        ]


class Unreachable:
    def list_objects(self, api_version: str, kind: str, selector: str) -> list[dict[str, Any]]:
        raise SystemUnreachableError("no answer")


@pytest.fixture
def manifests(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> Callable[[str], Manifests]:
    def render(name: str) -> Manifests:
        files = reconcilers["services"].render(catalog.service(name)).files
        return {path.rpartition("/")[2]: from_yaml_stream(text)[0] for path, text in files.items()}

    return render


def one(manifests: Manifests, kind: str) -> dict[str, Any]:
    (found,) = (item for item in manifests.values() if item["kind"] == kind)
    return found


def container(manifests: Manifests) -> dict[str, Any]:
    (workload,) = (item for item in manifests.values() if item["kind"] in {"Deployment", "StatefulSet"})
    found: dict[str, Any] = workload["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_every_manifest_meets_the_schema(
    catalog: Catalog, reconcilers: dict[str, Reconciler[Any]], version: str
) -> None:
    unknown_to_the_api = {"DestinationRule", "ScaledObject", "VirtualService"}
    for service in catalog.services:
        for path, text in reconcilers["services"].render(service).files.items():
            (document,) = from_yaml_stream(text)
            findings = list(schema_findings(path, document, (version,)))
            if document["kind"] in unknown_to_the_api:
                assert [finding.rule for finding in findings] == ["not-validated"]
            else:
                assert findings == []


def test_every_object_can_be_found_again(catalog: Catalog, reconcilers: dict[str, Reconciler[Any]]) -> None:
    for service in catalog.services:
        for text in reconcilers["services"].render(service).files.values():
            metadata = from_yaml_stream(text)[0]["metadata"]
            assert metadata["labels"][NAME] == service.resource_name
            assert metadata["labels"][MANAGED_BY] == "sophia"
            assert len(metadata["annotations"][DIGEST]) == 64


def test_secrets_are_references_and_come_before_what_uses_them(manifests: Callable[[str], Manifests]) -> None:
    variables = container(manifests("n8n_main"))["env"]
    names = [variable["name"] for variable in variables]
    assert names.index("SOPHIA_REDIS_PASSWORD") < names.index("QUEUE_BULL_REDIS_PASSWORD")
    assert variables[0]["valueFrom"]["secretKeyRef"] == {
        "key": "SOPHIA_N8N_DATABASE_PASSWORD",
        "name": "n8n-database-password",
    }
    data = one(manifests("n8n_main"), "ConfigMap")["data"]
    assert data["EXECUTIONS_MODE"] == "queue"
    assert not any("PASSWORD" in name for name in data)


def test_gpu_pods(manifests: Callable[[str], Manifests]) -> None:
    objects = manifests("inference_warm")
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "nvidia"
    assert container(objects)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    first = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert first["preference"]["matchExpressions"][0]["values"] == ["sophia-production"]


def test_autoscaler_has_behaviour_and_owns_the_number(manifests: Callable[[str], Manifests]) -> None:
    objects = manifests("n8n_worker")
    spec = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 20)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert spec["metrics"][0]["external"]["target"] == {"averageValue": "50", "type": "AverageValue"}
    assert "replicas" not in one(objects, "Deployment")["spec"]
    assert one(objects, "PodDisruptionBudget")["spec"]["minAvailable"] == 2


def test_scaling_to_zero_goes_through_keda(manifests: Callable[[str], Manifests]) -> None:
    objects = manifests("inference")
    spec = one(objects, "ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 100)
    assert spec["triggers"][0]["metadata"]["threshold"] == "50"
    assert not any(item["kind"] == "HorizontalPodAutoscaler" for item in objects.values())


def test_blue_green_moves_by_the_selector(
    manifests: Callable[[str], Manifests], replaced: Callable[..., Catalog]
) -> None:
    objects = manifests("core_api")
    name = one(objects, "Deployment")["metadata"]["name"]
    version = one(objects, "Service")["spec"]["selector"]["sophia.dev/version"]
    assert name == f"core-api-{version}"
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == name
    changed = replaced("services", "core_api", args=("--verbose",))
    files = build_reconcilers(changed)["services"].render(changed.service("core_api")).files
    assert f"services/core-api/deployment-{name}.yaml" not in files


def test_claims_follow_the_workload(manifests: Callable[[str], Manifests]) -> None:
    claims = one(manifests("postgresql"), "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claims[0]["spec"]["resources"]["requests"]["storage"] == "500Gi"
    mlflow = manifests("mlflow")
    assert one(mlflow, "PersistentVolumeClaim")["metadata"]["name"] == "mlflow-artifacts"
    assert one(mlflow, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_route_is_limited_and_served_below_the_host(manifests: Callable[[str], Manifests]) -> None:
    ingress = one(manifests("intake"), "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.org/limit-req-rate"] == "500r/s"
    assert annotations["nginx.org/mergeable-ingress-type"] == "minion"
    assert annotations["nginx.org/rewrites"] == "serviceName=intake rewrite=/"
    assert ingress["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/intake/"


def peers(rules: list[dict[str, Any]], side: str) -> set[str]:
    return {peer["podSelector"]["matchLabels"][NAME] for rule in rules for peer in rule[side] if "podSelector" in peer}


def test_both_ends_of_each_flow_agree(catalog: Catalog, manifests: Callable[[str], Manifests]) -> None:
    policies = {
        service.resource_name: one(manifests(service.name), "NetworkPolicy")["spec"] for service in catalog.services
    }
    for name, policy in policies.items():
        for called in peers(policy["egress"], "to"):
            ingress = policies[called]["ingress"]
            everyone = any(
                "podSelector" not in peer and "namespaceSelector" in peer for r in ingress for peer in r["from"]
            )
            assert name in peers(ingress, "from") or everyone, f"{called} does not let {name} in"
        for caller in peers(policy["ingress"], "from"):
            assert name in peers(policies[caller]["egress"], "to"), f"{caller} may not reach {name}"


def test_flows_are_the_named_ones(manifests: Callable[[str], Manifests]) -> None:
    policy = one(manifests("redis"), "NetworkPolicy")["spec"]
    assert peers(policy["ingress"], "from") >= {"core-api", "n8n-main", "n8n-worker", "mcp-gateway"}
    assert "console" not in peers(policy["ingress"], "from")
    assert policy["egress"] == [rule for rule in policy["egress"] if "ipBlock" not in str(rule)]


def test_only_metrics_are_open_to_the_scraper(manifests: Callable[[str], Manifests]) -> None:
    rules = one(manifests("weaviate"), "NetworkPolicy")["spec"]["ingress"]
    (scraping,) = (rule for rule in rules if "prometheus" in peers([rule], "from"))
    assert scraping["ports"] == [{"port": 2112, "protocol": "TCP"}]


def test_indexer_serves_what_is_probed_and_scraped(catalog: Catalog, manifests: Callable[[str], Manifests]) -> None:
    """A pod whose process listens elsewhere would never be ready."""
    variables = one(manifests("indexer"), "ConfigMap")["data"]
    settings = load_settings(
        indexer={
            name.removeprefix("SOPHIA_INDEXER__").lower(): value
            for name, value in variables.items()
            if name.startswith("SOPHIA_INDEXER__")
        }
    ).indexer
    (port,) = catalog.service("indexer").ports
    assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", port.number)  # noqa: S104
    container = one(manifests("indexer"), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert {probe["port"] for probe in probes.values()} == {port.name}


def test_service_that_no_node_takes(replaced: Callable[..., Catalog], rules: Callable[..., set[str]]) -> None:
    changed = replaced("services", "inference", resources=Resources(gpu=8))
    assert rules(changed, "services", "inference") == {"not-placed"}


def test_user_of_image_and_pod_must_agree(replaced: Callable[..., Catalog], rules: Callable[..., set[str]]) -> None:
    changed = replaced("images", "redis", user=1234)
    assert rules(changed, "services", "redis") == {"user-mismatch"}


def live(catalog: Catalog, service: Service) -> Cluster:
    files = build_reconcilers(catalog)["services"].render(service).files
    return Cluster([from_yaml_stream(text)[0] for text in files.values()])


@pytest.mark.parametrize("name", ["core_api", "postgresql", "inference", "n8n_worker", "nginx_ingress", "github"])
def test_applied_service_has_nothing_to_do(catalog: Catalog, name: str) -> None:
    service = catalog.service(name)
    systems = PlatformSystems(kubernetes=live(catalog, service))
    plan = build_reconcilers(catalog, systems)["services"].plan(service)
    assert plan.empty, plan.diff()
    assert plan.observed.state == "present"


def test_drift_is_an_update_of_one_line(catalog: Catalog) -> None:
    service = catalog.service("redis")
    cluster = live(catalog, service)
    (workload,) = (item for item in cluster.objects if item["kind"] == "StatefulSet")
    workload["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "9Gi"
    plan = build_reconcilers(catalog, PlatformSystems(kubernetes=cluster))["services"].plan(service)
    (change,) = (change for change in plan.changes if change.action != "none")
    assert (change.action, change.target) == ("update", "services/redis/statefulset.yaml")
    lines = [line for line in change.diff.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}]
    assert [line.split() for line in lines] == [["-", "memory:", "9Gi"], ["+", "memory:", "4Gi"]]


def test_object_that_is_not_wanted_any_more_is_deleted(catalog: Catalog, replaced: Callable[..., Catalog]) -> None:
    cluster = live(catalog, catalog.service("console"))
    changed = replaced("services", "console", min_available=None)
    plan = build_reconcilers(changed, PlatformSystems(kubernetes=cluster))["services"].plan(changed.service("console"))
    assert [(c.action, c.target) for c in plan.changes if c.action != "none"] == [
        ("delete", "services/console/poddisruptionbudget.yaml")
    ]


def test_empty_cluster_is_absent_and_silent_one_unknown(catalog: Catalog) -> None:
    service = catalog.service("redis")
    empty = build_reconcilers(catalog, PlatformSystems(kubernetes=Cluster([])))["services"]
    assert empty.observe(service).state == "absent"
    assert empty.plan(service).counts()["update"] == 0
    silent = build_reconcilers(catalog, PlatformSystems(kubernetes=Unreachable()))["services"]
    assert silent.observe(service).reason == "no answer"
