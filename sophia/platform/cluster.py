"""The cluster as a whole: namespaces, shared objects, GPU operator, autoscaling policy, routing table, cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sophia.catalog.models import Catalog, Cluster, Namespace, Service
from sophia.platform.exposure import exposures
from sophia.platform.kubernetes_checks import OLDEST_VERSION, policy_findings, schema_findings
from sophia.platform.manifests import stamped
from sophia.platform.namespaces import namespace_objects, shared_objects
from sophia.platform.quantities import amount
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.routing import RoutingError, RoutingTable, Workload
from sophia.platform.systems import PlatformSystems
from sophia.platform.text import from_yaml_stream, to_yaml, to_yaml_stream

HOURS_A_MONTH = 730
MANIFESTS = "cluster/manifests/"


@dataclass(frozen=True)
class ClusterReconciler:
    """The one cluster of the catalog."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "cluster"

    def entries(self) -> tuple[Cluster, ...]:
        """The cluster."""
        return (self.catalog.cluster,)

    def render(self, entry: Cluster) -> Rendered:
        """Manifests below `cluster/manifests`, and the documents that operators and the scaler read."""
        files = {
            f"{MANIFESTS}namespace-{namespace.name}.yaml": to_yaml_stream(
                stamped(item) for item in namespace_objects(self.catalog, namespace)
            )
            for namespace in entry.namespaces
        }
        files[f"{MANIFESTS}shared.yaml"] = to_yaml_stream(stamped(item) for item in shared_objects(self.catalog))
        files["cluster/autoscaling.yaml"] = to_yaml(autoscaling_policy(self.catalog))
        files["cluster/gpu-operator-values.yaml"] = to_yaml(gpu_operator_values())
        files["cluster/routing.yaml"] = to_yaml(routing_document(self.catalog))
        return Rendered(files)

    def observe(self, entry: Cluster) -> Observed:
        """Not read back: quotas and policies are shared with what others run in the cluster."""
        if self.systems.kube_context is None and self.systems.kubernetes is None:
            return Observed.unknown("no Kubernetes context is configured (set SOPHIA_KUBE_CONTEXT)")
        return Observed.unknown("the documents of the whole cluster are not read back; services and nodes are")

    def plan(self, entry: Cluster) -> Plan:
        """What an apply would have to do."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Cluster) -> tuple[Finding, ...]:
        """Schema, quotas against the cluster's GPUs and the services' requests, routes, and the budget."""
        return tuple(self._findings(entry))

    def _findings(self, entry: Cluster) -> Iterator[Finding]:
        rendered = self.render(entry)
        yield from exposures(rendered)
        versions = (OLDEST_VERSION, entry.k3s.channel.removeprefix("v"))
        for path, text in rendered.files.items():
            if path.startswith(MANIFESTS):
                for document in from_yaml_stream(text):
                    where = f"{path}#{document['kind']}/{document['metadata']['name']}"
                    yield from schema_findings(where, document, versions)
                    yield from policy_findings(where, document)
        quota = sum(namespace.gpu_quota for namespace in entry.namespaces)
        if quota > entry.gpu_quota:
            message = f"namespaces may hold {quota} GPUs, the cluster {entry.gpu_quota}"
            yield Finding("error", "gpu-quota", "cluster/namespaces", message, "lower a gpu_quota in nodes.yaml")
        for namespace in entry.namespaces:
            yield from _quota_findings(self.catalog, namespace)
        machines = sum(node.gpu_count for node in self.catalog.nodes)
        if entry.gpu_quota > machines:
            message = f"the quota is {entry.gpu_quota} GPUs, the machines have {machines}"
            yield Finding("error", "gpu-quota", "cluster", message, "lower cluster.gpu_quota or add a node")
        cost = monthly_cost(self.catalog)
        if cost > entry.budget.gpu_usd_month:
            message = f"all machines around the clock cost {cost:,.0f} USD a month of {entry.budget.gpu_usd_month:,.0f}"
            fix = "off hours and scaling down must save the rest"
            yield Finding("warning", "budget", "cluster/cost", message, fix)


def monthly_cost(catalog: Catalog) -> float:
    """USD a month when every machine runs around the clock."""
    return round(sum(node.price_usd_hour for node in catalog.nodes) * HOURS_A_MONTH, 2)


def _quota_findings(catalog: Catalog, namespace: Namespace) -> Iterator[Finding]:
    services = [service for service in catalog.services if service.namespace == namespace.name]
    for what, quota, field in (
        ("CPU", namespace.cpu_quota, "cpu_request"),
        ("memory", namespace.memory_quota, "memory_request"),
    ):
        asked = sum(_least(service, field) for service in services)
        if quota is not None and asked > amount(quota):
            message = f"its services ask for more {what} at their fewest pods than its quota of {quota}"
            fix = f"raise the quota of {namespace.name} or lower resources.{field}"
            yield Finding("error", "quota-too-small", f"cluster/{namespace.name}", message, fix)
    gpus = sum(service.scaling.min * service.resources.gpu for service in services)
    if gpus > namespace.gpu_quota:
        message = f"its services need {gpus} GPUs at their fewest pods, its quota is {namespace.gpu_quota}"
        yield Finding("error", "quota-too-small", f"cluster/{namespace.name}", message, "raise gpu_quota")


def _least(service: Service, field: str) -> Any:
    return service.scaling.min * amount(getattr(service.resources, field))


def autoscaling_policy(catalog: Catalog) -> dict[str, Any]:
    """When machines are added and removed, for the job that speaks to the GPU cloud."""
    scaling = catalog.cluster.scaling
    return {
        "cooldownSeconds": scaling.cooldown_seconds,
        "cost": {
            "aroundTheClockUsdMonth": monthly_cost(catalog),
            "goalUsdMonth": catalog.cluster.budget.gpu_usd_month,
        },
        "gpuUseGoalPercent": list(catalog.cluster.gpu_use_goal_percent),
        "instances": {"max": scaling.max_nodes, "min": scaling.min_nodes},
        # Cheapest to lose first; the control plane is never in this list.
        "removalOrder": [
            node.name
            for node in sorted(catalog.nodes, key=lambda node: (node.environment == "production", -node.price_usd_hour))
            if not node.control_plane
        ],
        "scaleDown": {
            "belowGpuPercent": scaling.down_gpu_percent,
            "drainSeconds": scaling.drain_seconds,
            "steps": ["cordon", "drain", "delete-node", "terminate-instance"],
        },
        "scaleUp": {
            "aboveGpuPercent": scaling.up_gpu_percent,
            "steps": ["launch-instance", "join-mesh", "join-cluster", "wait-for-gpu"],
        },
        "targetGpuPercent": scaling.target_gpu_percent,
        "windowSeconds": scaling.window_seconds,
    }


def gpu_operator_values() -> dict[str, Any]:
    """Helm values of the NVIDIA GPU operator for K3s on machines whose image brings the driver."""
    return {
        "dcgmExporter": {"enabled": True, "serviceMonitor": {"enabled": False}},
        "devicePlugin": {"enabled": True},
        "driver": {"enabled": False},
        "gfd": {"enabled": True},
        "mig": {"strategy": "none"},
        "operator": {"defaultRuntime": "containerd"},
        "toolkit": {
            "enabled": True,
            "env": [
                {"name": "CONTAINERD_CONFIG", "value": "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl"},
                {"name": "CONTAINERD_SOCKET", "value": "/run/k3s/containerd/containerd.sock"},
                {"name": "CONTAINERD_RUNTIME_CLASS", "value": "nvidia"},
                {"name": "CONTAINERD_SET_AS_DEFAULT", "value": "false"},
            ],
        },
        "validator": {"plugin": {"env": [{"name": "WITH_WORKLOAD", "value": "false"}]}},
    }


def routing_document(catalog: Catalog) -> dict[str, Any]:
    """The routing table as it works out: each rule with its nodes in order, and why others are out."""
    table = RoutingTable(catalog)
    rules: dict[str, Any] = {}
    for route in catalog.routes:
        try:
            placement = table.place(Workload(route.workload, route.priority, gpu=route.gpu))
        except RoutingError as unplaced:
            rules[route.name] = {"error": str(unplaced)}
            continue
        rules[route.name] = {
            "gpu": placement.gpu,
            "nodes": [{"name": item.node.name, "preference": item.preference} for item in placement.candidates],
            "rejected": {item.node: item.reason for item in placement.rejected},
            "service": placement.service,
            "usdHour": placement.usd_hour,
        }
    return {"dataRegions": sorted(table.data_regions), "rules": rules}
