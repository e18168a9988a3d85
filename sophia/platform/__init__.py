"""The platform's reconcilers: what should be from the catalog, what is, the difference, and whether it is sound.

One reconciler a kind, all with the same steps (see `reconcile`). In this version nothing is applied: outside
systems are only looked at, and only those that are configured (`PlatformSystems`).
"""

from sophia.platform.environments import SecretEnvironment
from sophia.platform.estuary import EstuaryTree
from sophia.platform.reconcile import (
    Change,
    Finding,
    Observed,
    Plan,
    Reconciler,
    Rendered,
    has_errors,
    make_plan,
)
from sophia.platform.registry import build_reconcilers
from sophia.platform.routing import (
    Candidate,
    Placement,
    Rejection,
    RoutingError,
    RoutingTable,
    Workload,
    architectures_of,
)
from sophia.platform.secrets import status_of
from sophia.platform.systems import (
    ContainerEngine,
    KubernetesReader,
    PlatformSystems,
    SystemUnreachableError,
)
from sophia.platform.text import TemplateMissingError

__all__ = [
    "Candidate",
    "Change",
    "ContainerEngine",
    "EstuaryTree",
    "Finding",
    "KubernetesReader",
    "Observed",
    "Placement",
    "Plan",
    "PlatformSystems",
    "Reconciler",
    "Rejection",
    "Rendered",
    "RoutingError",
    "RoutingTable",
    "SecretEnvironment",
    "SystemUnreachableError",
    "TemplateMissingError",
    "Workload",
    "architectures_of",
    "build_reconcilers",
    "has_errors",
    "make_plan",
    "status_of",
]
