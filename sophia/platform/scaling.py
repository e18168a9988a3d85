"""How many pods: HorizontalPodAutoscaler with behaviour, KEDA where zero is allowed, and disruption budgets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sophia.catalog.models import Catalog, Service
from sophia.platform.manifests import Manifest, labels, manifest, selector

PROMETHEUS_QUERIES = {
    "cpu": 'avg(rate(container_cpu_usage_seconds_total{{container="{name}"}}[2m])) * 100',
    "memory": 'avg(container_memory_working_set_bytes{{container="{name}"}})',
    "gpu": 'avg(DCGM_FI_DEV_GPU_UTIL{{exported_container="{name}"}})',
    "queue_length": 'sum(sophia_queue_length{{service="{name}"}})',
    # Counted by the callers' proxies: a service of no pods has no metrics of its own.
    "requests_per_second": 'sum(rate(istio_requests_total{{reporter="source",destination_service_name="{name}"}}[1m]))',
}
"""What the autoscaler of a service that may have no pods asks Prometheus."""


def scaling_objects(catalog: Catalog, service: Service, workload: str) -> Iterator[Manifest]:
    """Autoscaler and disruption budget of the workload of that name, as far as the catalog asks for them."""
    if service.scaling.autoscaled:
        yield _scaled_object(catalog, service, workload) if service.scaling.min == 0 else _autoscaler(service, workload)
    if service.min_available is not None:
        yield manifest(
            "policy/v1",
            "PodDisruptionBudget",
            service.resource_name,
            namespace=service.namespace,
            object_labels=labels(service),
            spec={
                "minAvailable": service.min_available,
                "selector": {"matchLabels": selector(service)},
                # A pod that is broken anyway must not stand in the way of a drain.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        )


def _behavior(service: Service) -> dict[str, Any]:
    return {
        "scaleDown": {
            "policies": [{"periodSeconds": 60, "type": "Percent", "value": 25}],
            "selectPolicy": "Max",
            "stabilizationWindowSeconds": service.scaling.down_stabilization_seconds,
        },
        "scaleUp": {
            "policies": [
                {"periodSeconds": 30, "type": "Percent", "value": 100},
                {"periodSeconds": 30, "type": "Pods", "value": 4},
            ],
            "selectPolicy": "Max",
            "stabilizationWindowSeconds": service.scaling.up_stabilization_seconds,
        },
    }


def _target_ref(service: Service, workload: str) -> dict[str, str]:
    kind = "StatefulSet" if service.workload == "statefulset" else "Deployment"
    return {"apiVersion": "apps/v1", "kind": kind, "name": workload}


def _autoscaler(service: Service, workload: str) -> Manifest:
    return manifest(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        spec={
            "behavior": _behavior(service),
            "maxReplicas": service.scaling.max,
            "metrics": [_metric(service)],
            "minReplicas": service.scaling.min,
            "scaleTargetRef": _target_ref(service, workload),
        },
    )


def _metric(service: Service) -> dict[str, Any]:
    metric, target = service.scaling.metric, service.scaling.target or 0
    if metric in {"cpu", "memory"}:
        utilization = {"averageUtilization": round(target), "type": "Utilization"}
        return {"resource": {"name": metric, "target": utilization}, "type": "Resource"}
    average = {"averageValue": _quantity(target), "type": "AverageValue"}
    if metric == "queue_length":
        # The queue belongs to the service, not to one pod.
        series = {"name": "sophia_queue_length", "selector": {"matchLabels": {"service": service.resource_name}}}
        return {"external": {"metric": series, "target": average}, "type": "External"}
    name = "DCGM_FI_DEV_GPU_UTIL" if metric == "gpu" else "http_requests_per_second"
    return {"pods": {"metric": {"name": name}, "target": average}, "type": "Pods"}


def _scaled_object(catalog: Catalog, service: Service, workload: str) -> Manifest:
    """KEDA scales to and from zero; the plain autoscaler needs an alpha feature for that."""
    metric = service.scaling.metric or "cpu"
    scrapers = [candidate for candidate in catalog.services if candidate.scrapes and candidate.ports]
    servers = [f"http://{item.resource_name}.{item.namespace}:{item.ports[0].number}" for item in scrapers]
    return manifest(
        "keda.sh/v1alpha1",
        "ScaledObject",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        spec={
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(service)}},
            "cooldownPeriod": service.scaling.down_stabilization_seconds,
            "maxReplicaCount": service.scaling.max,
            "minReplicaCount": 0,
            "pollingInterval": 5,
            "scaleTargetRef": _target_ref(service, workload),
            "triggers": [
                {
                    "metadata": {
                        "query": PROMETHEUS_QUERIES[metric].format(name=service.resource_name),
                        "serverAddress": server,
                        "threshold": _quantity(service.scaling.target or 0),
                    },
                    "type": "prometheus",
                }
                for server in servers
            ],
        },
    )


def _quantity(value: float) -> str:
    return str(round(value)) if value == round(value) else f"{round(value * 1000)}m"
