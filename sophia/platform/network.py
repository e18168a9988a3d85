"""Who may speak to whom: a policy a service with named flows, public routes, and the mesh's retries and limits.

Each namespace denies everything by default (see `namespaces`); what is allowed here is exactly what the catalog
names. A connection needs the permission of both ends: egress of the caller, ingress of the called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sophia.catalog.models import Catalog, Service, ServicePort
from sophia.platform.manifests import NAMESPACE_NAME, PART_OF, PLATFORM, Manifest, labels, manifest, selector
from sophia.platform.pods import uses_kubernetes_api

PRIVATE_NETWORKS = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
EVERYWHERE = "0.0.0.0/0"
KUBERNETES_API_PORT = 6443
AUTOSCALER_NAMESPACE = "keda"
INGRESS_CLASS = "nginx"
RETRY_ON = "connect-failure,refused-stream,unavailable,reset,503"


def network_objects(catalog: Catalog, service: Service) -> Iterator[Manifest]:
    """Network policy, routes and mesh rules of the service; raises UnknownEntryError."""
    yield _policy(catalog, service)
    if service.ingress:
        yield from (_route(catalog, service, number) for number in range(len(service.ingress)))
    if service.ports and service.category != "edge":
        yield from _mesh(catalog, service)


def _policy(catalog: Catalog, service: Service) -> Manifest:
    return manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        spec={
            "egress": list(_egress(catalog, service)),
            "ingress": list(_ingress(catalog, service)),
            "podSelector": {"matchLabels": selector(service)},
            "policyTypes": ["Ingress", "Egress"],
        },
    )


def _ingress(catalog: Catalog, service: Service) -> Iterator[dict[str, Any]]:
    offered = _ports(service.ports)
    if service.category == "edge":
        public = [port for port in service.ports if port.name in {"http", "https"}]
        yield {"from": [{"ipBlock": {"cidr": EVERYWHERE}}], "ports": _ports(public)}
    callers = catalog.callers_of(service.name)
    if offered and "*" in service.callers:
        yield {"from": [{"namespaceSelector": {"matchLabels": {PART_OF: PLATFORM}}}], "ports": offered}
    elif offered:
        named = [_pods(caller) for caller in callers if _wants_all_ports(caller, service)]
        if named:
            yield {"from": named, "ports": offered}
    metrics = _metrics_ports(service)
    scrapers = [_pods(caller) for caller in callers if caller.scrapes and not _wants_all_ports(caller, service)]
    if scrapers and metrics:
        yield {"from": scrapers, "ports": metrics}
    if service.scrapes and offered:
        autoscaler = {"matchLabels": {NAMESPACE_NAME: AUTOSCALER_NAMESPACE}}
        yield {"from": [{"namespaceSelector": autoscaler}], "ports": offered}
    if service.workload == "statefulset" and offered and service.scaling.max > 1:
        yield {"from": [_pods(service)], "ports": offered}


def _egress(catalog: Catalog, service: Service) -> Iterator[dict[str, Any]]:
    for called in catalog.callees_of(service.name):
        ports = _ports(called.ports) if _wants_all_ports(service, called) else _metrics_ports(called)
        if ports:
            yield {"to": [_pods(called)], "ports": ports}
    if service.workload == "statefulset" and service.ports and service.scaling.max > 1:
        yield {"to": [_pods(service)], "ports": _ports(service.ports)}
    if service.internet:
        outside = {"cidr": EVERYWHERE, "except": list(PRIVATE_NETWORKS)}
        yield {"to": [{"ipBlock": outside}], "ports": [{"port": 443, "protocol": "TCP"}]}
    if uses_kubernetes_api(service):
        blocks = [{"ipBlock": {"cidr": network}} for network in PRIVATE_NETWORKS]
        yield {"to": blocks, "ports": [{"port": KUBERNETES_API_PORT, "protocol": "TCP"}]}


def _wants_all_ports(caller: Service, called: Service) -> bool:
    """Whether it calls for more than metrics."""
    named = called.name in (*caller.depends_on, *caller.calls) or caller.name in called.callers
    return named or "*" in called.callers or (caller.category == "edge" and bool(called.ingress))


def _pods(service: Service) -> dict[str, Any]:
    return {
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: service.namespace}},
        "podSelector": {"matchLabels": selector(service)},
    }


def _ports(ports: tuple[ServicePort, ...] | list[ServicePort]) -> list[dict[str, Any]]:
    return [{"port": port.number, "protocol": port.protocol} for port in ports]


def _metrics_ports(service: Service) -> list[dict[str, Any]]:
    if service.metrics is None:
        return []
    return _ports([port for port in service.ports if port.name == service.metrics.port])


def _route(catalog: Catalog, service: Service, number: int) -> Manifest:
    """One path of the cluster's host. TLS and the host belong to the master ingress (see `namespaces`)."""
    route = service.ingress[number]
    rate = route.rate_limit_rps
    annotations = {
        "nginx.org/limit-req-burst": str(rate * 2),
        "nginx.org/limit-req-key": "${binary_remote_addr}",
        "nginx.org/limit-req-no-delay": "true",
        "nginx.org/limit-req-rate": f"{rate}r/s",
        "nginx.org/limit-req-reject-code": "429",
        "nginx.org/limit-req-zone-size": "10m",
        "nginx.org/mergeable-ingress-type": "minion",
        # To the service's address rather than to pods: the mesh then balances and retries.
        "nginx.org/use-cluster-ip": "true",
        "sophia.dev/authenticated": str(route.authenticated).lower(),
    }
    path = route.path
    if route.strip_prefix:
        path = f"{route.path.rstrip('/')}/"
        annotations["nginx.org/rewrites"] = f"serviceName={service.resource_name} rewrite=/"
    backend = {"service": {"name": service.resource_name, "port": {"name": route.port}}}
    name = service.resource_name if number == 0 else f"{service.resource_name}-{number + 1}"
    return manifest(
        "networking.k8s.io/v1",
        "Ingress",
        name,
        namespace=service.namespace,
        object_labels=labels(service),
        annotations=annotations,
        spec={
            "ingressClassName": INGRESS_CLASS,
            "rules": [
                {
                    "host": catalog.cluster.domain,
                    "http": {"paths": [{"backend": backend, "path": path, "pathType": "Prefix"}]},
                }
            ],
        },
    )


def _mesh(catalog: Catalog, service: Service) -> Iterator[Manifest]:
    host = f"{service.resource_name}.{service.namespace}.svc.cluster.local"
    mesh = service.mesh
    connections: dict[str, Any] = {"tcp": {"connectTimeout": "1s", "maxConnections": mesh.max_connections}}
    if _speaks_http(service):
        connections["http"] = {"http1MaxPendingRequests": mesh.max_connections}
    policy: dict[str, Any] = {
        "connectionPool": connections,
        "outlierDetection": {
            "baseEjectionTime": "30s",
            "consecutive5xxErrors": mesh.consecutive_errors,
            "interval": "10s",
            "maxEjectionPercent": 50,
        },
    }
    if catalog.cluster.mesh.mtls == "strict":
        policy["tls"] = {"mode": "ISTIO_MUTUAL"}
    yield manifest(
        "networking.istio.io/v1",
        "DestinationRule",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        spec={
            "host": host,
            "trafficPolicy": policy,
        },
    )
    if not _speaks_http(service):
        return
    retries: dict[str, Any] = {"attempts": mesh.retries}
    if mesh.retries:
        retries["perTryTimeout"] = f"{max(1, mesh.timeout_ms // (mesh.retries + 1))}ms"
        retries["retryOn"] = RETRY_ON
    yield manifest(
        "networking.istio.io/v1",
        "VirtualService",
        service.resource_name,
        namespace=service.namespace,
        object_labels=labels(service),
        spec={
            "hosts": [host],
            "http": [
                {
                    "retries": retries,
                    "route": [{"destination": {"host": host}}],
                    "timeout": f"{mesh.timeout_ms}ms",
                }
            ],
        },
    )


def _speaks_http(service: Service) -> bool:
    return any(port.name == "http" for port in service.ports)
