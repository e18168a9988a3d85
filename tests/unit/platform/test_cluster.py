"""The cluster, its nodes and what they are configured with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sophia.catalog.models import Catalog, Node, Resources
from sophia.platform import PlatformSystems, Reconciler, build_reconcilers
from sophia.platform.cluster import autoscaling_policy, monthly_cost
from sophia.platform.quantities import amount
from sophia.platform.text import from_yaml_stream


class Nodes:
    """A cluster with these node objects."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self._objects = objects

    def list_objects(self, api_version: str, kind: str, selector: str) -> list[dict[str, Any]]:
        return [copy.deepcopy(item) for item in self._objects]


@pytest.fixture
def files(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> dict[str, str]:
    return dict(reconcilers["cluster"].render(catalog.cluster).files)


def documents(files: dict[str, str], namespace: str) -> dict[tuple[str, str], dict[str, Any]]:
    stream = from_yaml_stream(files[f"cluster/manifests/namespace-{namespace}.yaml"])
    return {(item["kind"], item["metadata"]["name"]): item for item in stream}


def test_namespace_denies_by_default_and_holds_quota(files: dict[str, str]) -> None:
    found = documents(files, "sophia-ai")
    labels = found["Namespace", "sophia-ai"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["app.kubernetes.io/part-of"] == "sophia"
    deny = found["NetworkPolicy", "default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert found["ResourceQuota", "sophia-ai"]["spec"]["hard"]["requests.nvidia.com/gpu"] == "2"
    assert found["LimitRange", "sophia-ai"]["spec"]["limits"][0]["type"] == "Container"
    assert found["PeerAuthentication", "default"]["spec"] == {"mtls": {"mode": "STRICT"}}


def test_gpu_quota_is_four(catalog: Catalog) -> None:
    assert sum(namespace.gpu_quota for namespace in catalog.cluster.namespaces) == catalog.cluster.gpu_quota == 4


def test_host_has_tls(files: dict[str, str]) -> None:
    shared = from_yaml_stream(files["cluster/manifests/shared.yaml"])
    (host,) = (item for item in shared if item["kind"] == "Ingress")
    assert host["spec"]["tls"] == [{"hosts": ["sophia.example.com"], "secretName": "sophia-tls"}]
    priorities = {item["metadata"]["name"] for item in shared if item["kind"] == "PriorityClass"}
    assert priorities == {"sophia-high", "sophia-normal", "sophia-low"}


def test_autoscaling_policy_spares_the_control_plane(catalog: Catalog) -> None:
    policy = autoscaling_policy(catalog)
    assert policy["instances"] == {"max": 10, "min": 2}
    assert (policy["targetGpuPercent"], policy["scaleUp"]["aboveGpuPercent"]) == (75, 85)
    assert policy["scaleDown"]["belowGpuPercent"] == 30
    assert policy["scaleDown"]["steps"][:2] == ["cordon", "drain"]
    assert policy["removalOrder"][0] == "sophia-development"
    assert "sophia-ai-core" not in policy["removalOrder"]


def test_cost_of_the_fleet(catalog: Catalog) -> None:
    assert monthly_cost(catalog) == pytest.approx(730 * sum(node.price_usd_hour for node in catalog.nodes))


@pytest.mark.parametrize(
    ("quantity", "value"), [("500m", "0.5"), ("2", "2"), ("1.5", "1.5"), ("2Gi", "2147483648"), ("3k", "3000")]
)
def test_quantities(quantity: str, value: str) -> None:
    assert str(amount(quantity).normalize()) == str(amount(value).normalize())


def test_bad_quantity() -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        amount("2 GB")


def cluster_rules(catalog: Catalog) -> set[str]:
    reconciler = build_reconcilers(catalog)["cluster"]
    return {finding.rule for finding in reconciler.verify(catalog.cluster) if finding.severity == "error"}


def with_cluster(catalog: Catalog, **update: Any) -> Catalog:
    fields = {field: getattr(catalog, field) for field in Catalog.model_fields}
    return Catalog.model_construct(**{**fields, "cluster": catalog.cluster.model_copy(update=update)})


@pytest.mark.parametrize("quota", [3, 6])
def test_gpu_quota_must_fit_namespaces_and_machines(catalog: Catalog, quota: int) -> None:
    assert cluster_rules(with_cluster(catalog, gpu_quota=quota)) == {"gpu-quota"}


def test_quota_must_hold_the_fewest_pods(catalog: Catalog, replaced: Callable[..., Catalog]) -> None:
    namespaces = tuple(
        item.model_copy(update={"memory_quota": "1Gi"}) if item.name == "sophia-data" else item
        for item in catalog.cluster.namespaces
    )
    assert cluster_rules(with_cluster(catalog, namespaces=namespaces)) == {"quota-too-small"}
    changed = replaced("services", "inference_warm", resources=Resources(gpu=3))
    assert cluster_rules(changed) == {"quota-too-small"}


def test_server_and_agents(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> None:
    def read(name: str) -> tuple[dict[str, Any], str]:
        rendered = reconcilers["nodes"].render(catalog.node(name)).files
        (configuration,) = from_yaml_stream(rendered[f"nodes/{name}/k3s-config.yaml"])
        return configuration, rendered[f"nodes/{name}/k3s.env"]

    server, environment = read("sophia-ai-core")
    assert server["cluster-init"] is True
    assert server["disable"] == ["traefik"]
    assert "INSTALL_K3S_EXEC=server" in environment
    assert "K3S_URL" not in environment
    agent, environment = read("sophia-development")
    assert "cluster-init" not in agent
    assert agent["node-taint"] == ["sophia.example.com/environment=staging:NoSchedule"]
    assert "K3S_URL=${SOPHIA_K3S_SERVER_URL}" in environment
    assert "K3S_TOKEN=${SOPHIA_K3S_TOKEN}" in environment


def test_mesh_has_a_peer_for_each_other_node(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> None:
    for node in catalog.nodes:
        text = reconcilers["nodes"].render(node).files[f"nodes/{node.name}/wg0.conf"]
        assert text.count("[Peer]") == len(catalog.nodes) - 1
        assert "PrivateKey = ${SOPHIA_WIREGUARD_PRIVATE_KEY}" in text


def node_object(catalog: Catalog, node: Node) -> dict[str, Any]:
    files = build_reconcilers(catalog)["nodes"].render(node).files
    (document,) = from_yaml_stream(files[f"nodes/{node.name}/node.yaml"])
    document["metadata"]["labels"]["kubernetes.io/hostname"] = node.name
    return document


def test_joined_node_has_nothing_to_do(catalog: Catalog) -> None:
    for node in catalog.nodes:
        systems = PlatformSystems(kubernetes=Nodes(node_object(catalog, node)))
        assert build_reconcilers(catalog, systems)["nodes"].plan(node).empty


def test_changed_taint_and_changed_configuration_are_planned(
    catalog: Catalog, replaced: Callable[..., Catalog]
) -> None:
    node = catalog.node("sophia-development")
    systems = PlatformSystems(kubernetes=Nodes(node_object(catalog, node)))
    changed = replaced("nodes", node.name, taints=())
    plan = build_reconcilers(changed, systems)["nodes"].plan(changed.node(node.name))
    actions = {change.target.rpartition("/")[2]: change.action for change in plan.changes}
    assert actions["node.yaml"] == "update"
    assert actions["k3s-config.yaml"] != "none"
    assert build_reconcilers(catalog, PlatformSystems(kubernetes=Nodes()))["nodes"].observe(node).state == "absent"


def test_key_of_the_mesh_must_be_a_secret(catalog: Catalog) -> None:
    fields = {field: getattr(catalog, field) for field in Catalog.model_fields}
    changed = Catalog.model_construct(**{**fields, "secrets": ()})
    findings = build_reconcilers(changed)["nodes"].verify(changed.nodes[0])
    assert {finding.rule for finding in findings} == {"unknown-variable"}


def test_one_control_plane(replaced: Callable[..., Catalog], rules: Callable[..., set[str]]) -> None:
    changed = replaced("nodes", "sophia-production", control_plane=True)
    assert rules(changed, "nodes", "sophia-ai-core") == {"control-plane"}
