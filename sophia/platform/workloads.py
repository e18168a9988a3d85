"""Deployment or StatefulSet of a service, with what it stands on: account, rights, configuration, claims, service.

A blue-green service carries the hash of its pod template in the deployment's name and in the service's selector:
the new deployment stands beside the old one, and traffic moves with one change of the selector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sophia.catalog.models import Catalog, Service, Volume
from sophia.platform.manifests import PART_OF, PLATFORM, VERSION, Manifest, labels, manifest, selector
from sophia.platform.pods import claim_name, plain_environment, pod_template, uses_kubernetes_api
from sophia.platform.reconcile import files_digest
from sophia.platform.routing import RoutingTable
from sophia.platform.text import to_yaml

VERSION_LENGTH = 10
APP_PROTOCOLS = {"http": "http", "https": "https", "grpc": "grpc", "otlp-grpc": "grpc", "metrics": "http"}

INGRESS_RULES: list[dict[str, Any]] = [
    {
        "apiGroups": [""],
        "resources": ["configmaps", "endpoints", "namespaces", "pods", "secrets", "services"],
        "verbs": ["get", "list", "watch"],
    },
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "list", "patch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    {
        "apiGroups": ["networking.k8s.io"],
        "resources": ["ingressclasses", "ingresses"],
        "verbs": ["get", "list", "watch"],
    },
    {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["update"]},
]
LAUNCH_RULES: list[dict[str, Any]] = [
    {"apiGroups": ["batch"], "resources": ["jobs", "jobs/status"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["pods", "pods/log", "pods/status"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "list", "watch"]},
]


def workload_objects(catalog: Catalog, routing: RoutingTable, service: Service, image: str) -> Iterator[Manifest]:
    """Everything that makes the pods run and be found; raises RoutingError and UnknownEntryError."""
    template = pod_template(catalog, routing, service, image)
    version: dict[str, str] = {}
    name = service.resource_name
    if service.update == "blue_green" and service.workload == "deployment":
        version = {VERSION: files_digest({"template": to_yaml(template)})[:VERSION_LENGTH]}
        template["metadata"]["labels"] = {**template["metadata"]["labels"], **version}
        name = workload_name(service, template)
    yield manifest(
        "v1",
        "ServiceAccount",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        automountServiceAccountToken=False,
    )
    if uses_kubernetes_api(service):
        yield from _rights(service)
    configuration = plain_environment(service)
    if configuration:
        yield manifest(
            "v1",
            "ConfigMap",
            f"{service.resource_name}-env",
            namespace=service.namespace,
            object_labels=labels(service),
            data=configuration,
        )
    if service.workload == "deployment":
        yield from (_claim(catalog, service, volume) for volume in service.volumes if volume.size is not None)
    if service.ports:
        yield _service(service, version)
        if service.workload == "statefulset":
            yield _headless_service(service)
    yield _workload(catalog, service, name, template, version)


def workload_name(service: Service, template: dict[str, Any]) -> str:
    """Name of the deployment or stateful set whose pods have `template`."""
    version = template["metadata"]["labels"].get(VERSION)
    return service.resource_name if version is None else f"{service.resource_name}-{version}"


def _workload(
    catalog: Catalog, service: Service, name: str, template: dict[str, Any], version: dict[str, str]
) -> Manifest:
    annotations: dict[str, str] = {}
    if service.depends_on:
        annotations["sophia.dev/depends-on"] = ",".join(service.depends_on)
    if service.backup is not None:
        annotations["sophia.dev/backup-schedule"] = service.backup.schedule
        annotations["sophia.dev/backup-retention-days"] = str(service.backup.retention_days)
    spec: dict[str, Any] = {
        "revisionHistoryLimit": 5,
        "selector": {"matchLabels": {**selector(service), **version}},
        "template": template,
    }
    if not service.scaling.autoscaled:
        # The autoscaler owns the number otherwise: a number here would fight with it at every apply.
        spec["replicas"] = service.scaling.min
    if service.workload == "statefulset":
        kind = "StatefulSet"
        spec["podManagementPolicy"] = "OrderedReady"
        spec["serviceName"] = f"{service.resource_name}-headless"
        spec["updateStrategy"] = {"type": "RollingUpdate"}
        claims = [_claim_template(catalog, volume) for volume in service.volumes if volume.size is not None]
        if claims:
            spec["volumeClaimTemplates"] = claims
    else:
        kind = "Deployment"
        spec["minReadySeconds"] = 5
        spec["progressDeadlineSeconds"] = 600
        # A claim that one node holds cannot be mounted by the old and the new pod at once.
        alone = service.update == "recreate" or any(volume.size is not None for volume in service.volumes)
        rolling = {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}, "type": "RollingUpdate"}
        spec["strategy"] = {"type": "Recreate"} if alone else rolling
    return manifest(
        "apps/v1",
        kind,
        name,
        namespace=service.namespace,
        object_labels=labels(service),
        annotations=annotations,
        spec=spec,
    )


def _service(service: Service, version: dict[str, str]) -> Manifest:
    return manifest(
        "v1",
        "Service",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        spec={
            "ports": _service_ports(service),
            "selector": {**selector(service), **version},
            "type": "LoadBalancer" if service.category == "edge" else "ClusterIP",
        },
    )


def _headless_service(service: Service) -> Manifest:
    return manifest(
        "v1",
        "Service",
        f"{service.resource_name}-headless",
        namespace=service.namespace,
        object_labels=labels(service),
        # Members of a database must find each other before they are ready.
        spec={
            "clusterIP": "None",
            "ports": _service_ports(service),
            "publishNotReadyAddresses": True,
            "selector": selector(service),
        },
    )


def _service_ports(service: Service) -> list[dict[str, Any]]:
    public = {"http": 80, "https": 443}
    return [
        {
            "appProtocol": APP_PROTOCOLS.get(port.name, "tcp"),
            "name": port.name,
            "port": public.get(port.name, port.number) if service.category == "edge" else port.number,
            "protocol": port.protocol,
            "targetPort": port.name,
        }
        for port in service.ports
        if service.category != "edge" or port.name in public
    ]


def _claim_spec(catalog: Catalog, volume: Volume) -> dict[str, Any]:
    return {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": volume.size}},
        "storageClassName": catalog.cluster.storage_class,
    }


def _claim(catalog: Catalog, service: Service, volume: Volume) -> Manifest:
    return manifest(
        "v1",
        "PersistentVolumeClaim",
        claim_name(service, volume),
        namespace=service.namespace,
        object_labels=labels(service),
        spec=_claim_spec(catalog, volume),
    )


def _claim_template(catalog: Catalog, volume: Volume) -> dict[str, Any]:
    return {
        "metadata": {"labels": {PART_OF: PLATFORM}, "name": volume.name},
        "spec": _claim_spec(catalog, volume),
    }


def _rights(service: Service) -> Iterator[Manifest]:
    everywhere = service.category == "edge"
    namespace = None if everywhere else service.namespace
    name = f"sophia-{service.resource_name}" if everywhere else service.resource_name
    prefix = "Cluster" if everywhere else ""
    group = "rbac.authorization.k8s.io"
    yield manifest(
        f"{group}/v1",
        f"{prefix}Role",
        name,
        namespace=namespace,
        object_labels=labels(service),
        rules=INGRESS_RULES if everywhere else LAUNCH_RULES,
    )
    yield manifest(
        f"{group}/v1",
        f"{prefix}RoleBinding",
        name,
        namespace=namespace,
        object_labels=labels(service),
        roleRef={"apiGroup": group, "kind": f"{prefix}Role", "name": name},
        subjects=[{"kind": "ServiceAccount", "name": service.resource_name, "namespace": service.namespace}],
    )
