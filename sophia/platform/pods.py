"""The pod of a service: one container, non-root, nothing writable but its volumes, secrets by reference only."""

from __future__ import annotations

from typing import Any

from sophia.catalog.models import Catalog, Probe, Service, Volume
from sophia.platform.manifests import labels, secret_object_name, selector
from sophia.platform.reconcile import files_digest
from sophia.platform.routing import (
    GPU_RUNTIME_CLASS,
    RoutingTable,
    node_affinity,
    priority_class,
    tolerations,
)
from sophia.platform.text import to_yaml

CONFIG_DIGEST = "sophia.dev/config-digest"
SCRATCH_LIMIT = "1Gi"
DRAIN_SECONDS = 5
"""Between leaving the endpoints and SIGTERM, so that no proxy still sends to a closing pod."""

GRACE_SECONDS = {"database": 120, "hot_path": 60, "orchestration": 60, "workflow": 60}
"""From SIGTERM to SIGKILL by category: what must flush or hand over gets longer than the default."""

DEFAULT_GRACE_SECONDS = 30


def plain_environment(service: Service) -> dict[str, str]:
    """Variables without references: they live in a ConfigMap."""
    return {name: value for name, value in service.env.items() if "$(" not in value}


def uses_kubernetes_api(service: Service) -> bool:
    """Whether its pods speak to the Kubernetes API: the ingress controller, and Dagster that launches pods."""
    return service.category in {"edge", "orchestration"}


def pod_template(catalog: Catalog, routing: RoutingTable, service: Service, image: str) -> dict[str, Any]:
    """The pod template; raises RoutingError and UnknownEntryError."""
    annotations: dict[str, str] = {}
    configuration = plain_environment(service)
    if configuration:
        # Pods do not notice a changed ConfigMap by themselves; a changed annotation rolls them.
        annotations[CONFIG_DIGEST] = files_digest({"env": to_yaml(configuration)})
    if service.category == "edge":
        # Clients from outside have no mesh certificate, so the sidecar must not take their connections.
        annotations["traffic.sidecar.istio.io/includeInboundPorts"] = ""
    metadata: dict[str, Any] = {"labels": labels(service)}
    if annotations:
        metadata["annotations"] = annotations
    user = service.security.run_as_user
    spec: dict[str, Any] = {
        "automountServiceAccountToken": uses_kubernetes_api(service),
        "containers": [_container(catalog, service, image)],
        "enableServiceLinks": False,
        "securityContext": {
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsGroup": user,
            "runAsNonRoot": True,
            "runAsUser": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "serviceAccountName": service.resource_name,
        "terminationGracePeriodSeconds": GRACE_SECONDS.get(service.category, DEFAULT_GRACE_SECONDS),
        "volumes": _volumes(service),
    }
    if service.scaling.max > 1:
        spec["topologySpreadConstraints"] = [
            {
                "labelSelector": {"matchLabels": selector(service)},
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ]
    if service.route is not None:
        placement = routing.place_service(service)
        if placement.candidates:
            spec["affinity"] = {"nodeAffinity": node_affinity(placement)}
        spec["priorityClassName"] = priority_class(placement.route)
        spec["tolerations"] = tolerations(placement)
    if service.resources.gpu:
        spec["runtimeClassName"] = GPU_RUNTIME_CLASS
        spec["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
    return {"metadata": metadata, "spec": spec}


def _container(catalog: Catalog, service: Service, image: str) -> dict[str, Any]:
    resources = service.resources
    requests = {"cpu": resources.cpu_request, "memory": resources.memory_request}
    limits = {"cpu": resources.cpu_limit, "memory": resources.memory_limit}
    if resources.gpu:
        gpu = catalog.cluster.gpu_resource
        requests[gpu] = limits[gpu] = str(resources.gpu)
    container: dict[str, Any] = {
        "env": _environment(catalog, service),
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "name": service.resource_name,
        "resources": {"limits": limits, "requests": requests},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": service.security.read_only_root,
        },
        "volumeMounts": [{"mountPath": volume.mount_path, "name": volume.name} for volume in service.volumes],
    }
    if plain_environment(service):
        container["envFrom"] = [{"configMapRef": {"name": f"{service.resource_name}-env"}}]
    if service.command:
        container["command"] = list(service.command)
    if service.args:
        container["args"] = list(service.args)
    if service.ports:
        container["ports"] = [
            {"containerPort": port.number, "name": port.name, "protocol": port.protocol} for port in service.ports
        ]
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}}
    probes = service.probes
    for key, probe in (
        ("livenessProbe", probes.liveness),
        ("readinessProbe", probes.readiness),
        ("startupProbe", probes.startup),
    ):
        if probe is not None:
            container[key] = _probe(probe)
    return container


def _environment(catalog: Catalog, service: Service) -> list[dict[str, Any]]:
    """Secrets first: $(NAME) is only expanded for variables that stand before."""
    variables: list[dict[str, Any]] = []
    for secret in sorted((catalog.secret(name) for name in service.secrets), key=lambda secret: secret.env):
        reference: dict[str, Any] = {"key": secret.env, "name": secret_object_name(secret)}
        if not secret.required:
            reference["optional"] = True
        variables.append({"name": secret.env, "valueFrom": {"secretKeyRef": reference}})
    variables += [{"name": name, "value": value} for name, value in service.env.items() if "$(" in value]
    return variables


def _probe(probe: Probe) -> dict[str, Any]:
    if probe.command:
        question: dict[str, Any] = {"exec": {"command": list(probe.command)}}
    elif probe.path is not None:
        question = {"httpGet": {"path": probe.path, "port": probe.port}}
    else:
        question = {"tcpSocket": {"port": probe.port}}
    return {
        **question,
        "failureThreshold": probe.failure_threshold,
        "initialDelaySeconds": probe.initial_delay_seconds,
        "periodSeconds": probe.period_seconds,
        "timeoutSeconds": probe.timeout_seconds,
    }


def _volumes(service: Service) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = []
    for volume in service.volumes:
        if volume.size is None:
            volumes.append({"emptyDir": {"sizeLimit": SCRATCH_LIMIT}, "name": volume.name})
        elif service.workload == "deployment":
            claim = {"claimName": claim_name(service, volume)}
            volumes.append({"name": volume.name, "persistentVolumeClaim": claim})
    return volumes


def claim_name(service: Service, volume: Volume) -> str:
    """Name of the claim behind a deployment's volume."""
    return f"{service.resource_name}-{volume.name}"
