"""A namespace with what holds for everything in it: quota, limits, default deny, name resolution, mesh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sophia.catalog.models import Catalog, Namespace
from sophia.platform.manifests import NAMESPACE_NAME, Manifest, manifest, platform_labels

MESH_NAMESPACE = "istio-system"
MESH_CONTROL_PORT = 15012
DNS_PORT = 53


def namespace_objects(catalog: Catalog, namespace: Namespace) -> Iterator[Manifest]:
    """The namespace first, then what is in it."""
    labels = platform_labels(namespace.name)
    standard = namespace.pod_security
    yield manifest(
        "v1",
        "Namespace",
        namespace.name,
        object_labels={
            **labels,
            # Sidecars come with the mesh's own network plug-in: no pod needs the right to change addresses.
            "istio-injection": "enabled",
            "pod-security.kubernetes.io/audit": "restricted",
            "pod-security.kubernetes.io/enforce": standard,
            "pod-security.kubernetes.io/enforce-version": "latest",
            "pod-security.kubernetes.io/warn": "restricted",
        },
        annotations={"sophia.dev/description": namespace.description},
    )
    yield manifest(
        "v1",
        "ResourceQuota",
        namespace.name,
        namespace=namespace.name,
        object_labels=labels,
        spec={"hard": _quota(catalog, namespace)},
    )
    yield manifest(
        "v1",
        "LimitRange",
        namespace.name,
        namespace=namespace.name,
        object_labels=labels,
        spec={"limits": [_limits(namespace)]},
    )
    policy = "networking.k8s.io/v1"
    yield manifest(
        policy,
        "NetworkPolicy",
        "default-deny",
        namespace=namespace.name,
        object_labels=labels,
        spec={"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    )
    yield manifest(
        policy,
        "NetworkPolicy",
        "name-resolution-and-mesh",
        namespace=namespace.name,
        object_labels=labels,
        spec={"egress": _common_egress(), "podSelector": {}, "policyTypes": ["Egress"]},
    )
    yield manifest(
        "security.istio.io/v1",
        "PeerAuthentication",
        "default",
        namespace=namespace.name,
        object_labels=labels,
        spec={"mtls": {"mode": catalog.cluster.mesh.mtls.upper()}},
    )


def _quota(catalog: Catalog, namespace: Namespace) -> dict[str, str]:
    hard = {f"requests.{catalog.cluster.gpu_resource}": str(namespace.gpu_quota)}
    if namespace.cpu_quota is not None:
        hard["requests.cpu"] = namespace.cpu_quota
    if namespace.memory_quota is not None:
        hard["requests.memory"] = namespace.memory_quota
    return hard


def _limits(namespace: Namespace) -> dict[str, Any]:
    defaults = namespace.defaults
    return {
        "default": {"cpu": defaults.cpu_limit, "memory": defaults.memory_limit},
        "defaultRequest": {"cpu": defaults.cpu_request, "memory": defaults.memory_request},
        "type": "Container",
    }


def _common_egress() -> list[dict[str, Any]]:
    return [
        {
            "ports": [{"port": DNS_PORT, "protocol": "UDP"}, {"port": DNS_PORT, "protocol": "TCP"}],
            "to": [
                {
                    "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "kube-system"}},
                    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                }
            ],
        },
        {
            "ports": [{"port": MESH_CONTROL_PORT, "protocol": "TCP"}],
            "to": [{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: MESH_NAMESPACE}}}],
        },
    ]


def shared_objects(catalog: Catalog) -> Iterator[Manifest]:
    """Objects of the whole cluster: priorities, the GPU runtime, the ingress class and the host with its TLS."""
    for name, value in (("high", 100_000), ("normal", 10_000), ("low", 1_000)):
        yield manifest(
            "scheduling.k8s.io/v1",
            "PriorityClass",
            f"sophia-{name}",
            object_labels=platform_labels("priority"),
            description=f"Work that the catalog routes at {name} priority.",
            globalDefault=name == "normal",
            preemptionPolicy="Never" if name == "low" else "PreemptLowerPriority",
            value=value,
        )
    yield manifest(
        "node.k8s.io/v1", "RuntimeClass", "nvidia", object_labels=platform_labels("gpu-runtime"), handler="nvidia"
    )
    yield manifest(
        "networking.k8s.io/v1",
        "IngressClass",
        "nginx",
        object_labels=platform_labels("ingress"),
        spec={"controller": "nginx.org/ingress-controller"},
    )
    edges = [service for service in catalog.services if service.category == "edge"]
    for edge in edges[:1]:
        yield _host(catalog, edge.namespace)


def _host(catalog: Catalog, namespace: str) -> Manifest:
    """The host's master ingress; each route of a service is a minion of it, whatever its namespace."""
    return manifest(
        "networking.k8s.io/v1",
        "Ingress",
        "sophia-host",
        namespace=namespace,
        object_labels=platform_labels("ingress"),
        annotations={
            "acme.cert-manager.io/http01-edit-in-place": "true",
            "cert-manager.io/cluster-issuer": "sophia",
            "nginx.org/hsts": "true",
            "nginx.org/hsts-max-age": "31536000",
            "nginx.org/mergeable-ingress-type": "master",
            "nginx.org/redirect-to-https": "true",
            "nginx.org/server-tokens": "false",
        },
        spec={
            "ingressClassName": "nginx",
            "rules": [{"host": catalog.cluster.domain}],
            "tls": [{"hosts": [catalog.cluster.domain], "secretName": "sophia-tls"}],
        },
    )
