"""All reconcilers of a catalog by kind."""

from __future__ import annotations

from typing import Any

from sophia.catalog.models import Catalog
from sophia.platform.cluster import ClusterReconciler
from sophia.platform.environments import EnvironmentReconciler
from sophia.platform.estuary import EstuaryReconciler
from sophia.platform.frontends import FrontendReconciler
from sophia.platform.image_references import ImageReferences
from sophia.platform.images import ImageReconciler
from sophia.platform.nodes import NodeReconciler
from sophia.platform.reconcile import Reconciler
from sophia.platform.secrets import SecretReconciler
from sophia.platform.services import ServiceReconciler
from sophia.platform.systems import PlatformSystems
from sophia.platform.workflows import WorkflowReconciler


def build_reconcilers(catalog: Catalog, systems: PlatformSystems | None = None) -> dict[str, Reconciler[Any]]:
    """One reconciler a kind, in the order in which the kinds depend on each other; connects to nothing."""
    systems = systems or PlatformSystems()
    references = ImageReferences(catalog, systems.registry, systems.image_digests)
    reconcilers: tuple[Reconciler[Any], ...] = (
        SecretReconciler(catalog, systems),
        EnvironmentReconciler(catalog, systems),
        NodeReconciler(catalog, systems),
        ClusterReconciler(catalog, systems),
        ImageReconciler(catalog, systems, references),
        ServiceReconciler(catalog, systems, references),
        EstuaryReconciler(catalog, systems),
        WorkflowReconciler(catalog, systems),
        FrontendReconciler(catalog, systems),
    )
    return {reconciler.kind: reconciler for reconciler in reconcilers}
