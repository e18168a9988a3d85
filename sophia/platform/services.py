"""Services: Kubernetes manifests from the catalog, compared with the objects of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sophia.catalog.models import Catalog, Service
from sophia.platform.exposure import exposures
from sophia.platform.image_references import ImageReferences
from sophia.platform.kubernetes_checks import OLDEST_VERSION, policy_findings, schema_findings
from sophia.platform.kubernetes_observation import NOT_CONFIGURED, observe_objects, reader_of
from sophia.platform.manifests import Manifest, object_path, render_objects
from sophia.platform.network import network_objects
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.routing import RoutingError, RoutingTable
from sophia.platform.scaling import scaling_objects
from sophia.platform.systems import KubernetesReader, PlatformSystems
from sophia.platform.text import from_yaml_stream
from sophia.platform.workloads import workload_objects

KINDS = (
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("networking.istio.io/v1", "DestinationRule"),
    ("networking.istio.io/v1", "VirtualService"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
)
"""Everything a service can own: what is not rendered any more must still be found."""


@dataclass(frozen=True)
class ServiceReconciler:
    """Services of the catalog, MCP servers included."""

    catalog: Catalog
    systems: PlatformSystems
    references: ImageReferences
    kind: str = "services"

    @cached_property
    def _routing(self) -> RoutingTable:
        return RoutingTable(self.catalog)

    @cached_property
    def _reader(self) -> KubernetesReader | None:
        return reader_of(self.systems)

    def entries(self) -> tuple[Service, ...]:
        """All services, in the order of the catalog."""
        return self.catalog.services

    def render(self, entry: Service) -> Rendered:
        """One file an object; raises RoutingError and UnknownEntryError."""
        return render_objects(_folder(entry), self._objects(entry), entry.resource_name)

    def observe(self, entry: Service) -> Observed:
        """The service's objects in the cluster."""
        if self._reader is None:
            return Observed.unknown(NOT_CONFIGURED)
        return observe_objects(
            self._reader,
            entry.resource_name,
            KINDS,
            self.render(entry),
            lambda live: object_path(_folder(entry), live, entry.resource_name),
        )

    def plan(self, entry: Service) -> Plan:
        """What an apply would have to do; raises RoutingError and UnknownEntryError."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Service) -> tuple[Finding, ...]:
        """Schema of two Kubernetes releases, the platform's rules, exposures, and that the catalog can be met."""
        return tuple(self._findings(entry))

    def _objects(self, entry: Service) -> Iterator[Manifest]:
        workload = entry.resource_name
        for document in workload_objects(self.catalog, self._routing, entry, self.references.reference(entry.image)):
            if document["kind"] in {"Deployment", "StatefulSet"}:
                workload = document["metadata"]["name"]
            yield document
        yield from scaling_objects(self.catalog, entry, workload)
        yield from network_objects(self.catalog, entry)

    def _findings(self, entry: Service) -> Iterator[Finding]:
        try:
            rendered = self.render(entry)
        except RoutingError as unplaced:
            yield Finding("error", "not-placed", f"services/{entry.name}", str(unplaced), "see routes in nodes.yaml")
            return
        yield from exposures(rendered)
        versions = (OLDEST_VERSION, self.catalog.cluster.k3s.channel.removeprefix("v"))
        kinds: set[str] = set()
        for path, text in rendered.files.items():
            for document in from_yaml_stream(text):
                kinds.add(document["kind"])
                yield from schema_findings(path, document, versions)
                yield from policy_findings(path, document)
        if "NetworkPolicy" not in kinds:
            yield Finding("error", "no-network-policy", _folder(entry), "nothing says who may call it")
        yield from self._image_findings(entry)

    def _image_findings(self, entry: Service) -> Iterator[Finding]:
        image = self.catalog.image(entry.image)
        if image.user != entry.security.run_as_user:
            message = f"runs as user {entry.security.run_as_user}, its image {image.name} as {image.user}"
            fix = "give security.run_as_user and the image's user the same number"
            yield Finding("warning", "user-mismatch", f"services/{entry.name}", message, fix)


def _folder(entry: Service) -> str:
    return f"services/{entry.resource_name}"
