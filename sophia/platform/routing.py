"""Which node a class of work goes to, and why not the others; pure functions of the catalog.

The catalog's rule names a warm service, then nodes in order, then fallbacks. A node is only used when it fits:
enough GPUs and GPU memory, a processor architecture the image was built for, the right environment, and, for work
with a promised answer time, the region of the data. When no named node fits, the cheapest other node that does
is offered. Work outside production never reaches a production node and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from sophia.catalog.models import Architecture, Catalog, Environment, Image, Node, Route, Service
from sophia.errors import SophiaError

WorkloadKind = Literal["embedding", "batch", "realtime", "mcp", "inference", "development"]
Priority = Literal["high", "normal", "low"]
Preference = Literal["preferred", "fallback", "cheapest"]

GPU_RUNTIME_CLASS = "nvidia"
HOSTNAME = "kubernetes.io/hostname"
PREFERENCE_WEIGHTS: dict[Preference, int] = {"preferred": 100, "fallback": 20, "cheapest": 1}


class RoutingError(SophiaError, LookupError):
    """No rule, or no node, for a workload; the message names what was tried."""


@dataclass(frozen=True)
class Workload:
    """One class of work, with what its pods need. None: whatever the rule says."""

    kind: WorkloadKind
    priority: Priority = "normal"
    gpu: int | None = None
    gpu_memory_gb: int | None = None
    architectures: tuple[Architecture, ...] = ("amd64", "arm64")
    max_latency_ms: int | None = None
    environment: Environment | None = None
    max_usd_hour: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A node that fits, in the order of preference."""

    node: Node
    preference: Preference


@dataclass(frozen=True)
class Rejection:
    """A node that does not fit, and the first reason."""

    node: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """Where work goes: to `service` when it is named and warm, otherwise to the nodes in order."""

    route: Route
    service: str | None
    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    gpu: int

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the candidates, best first."""
        return tuple(candidate.node.name for candidate in self.candidates)

    @property
    def usd_hour(self) -> float | None:
        """Price of the first node; None when only a service takes the work."""
        return self.candidates[0].node.price_usd_hour if self.candidates else None


@dataclass(frozen=True)
class RoutingTable:
    """The catalog's routing rules, applied."""

    catalog: Catalog

    @cached_property
    def data_regions(self) -> frozenset[str]:
        """Regions in which the databases run: what must answer fast stays there."""
        regions: set[str] = set()
        for service in self.catalog.services:
            if service.category == "database" and service.route is not None:
                first = self.catalog.route(service.route).nodes[:1]
                regions.update(self.catalog.node(name).region for name in first)
        return frozenset(regions)

    def rule(self, workload: Workload) -> Route:
        """The rule that matches best by class, then priority, then GPU; raises RoutingError."""
        routes = [route for route in self.catalog.routes if route.workload == workload.kind]
        if not routes:
            known = ", ".join(sorted({route.workload for route in self.catalog.routes})) or "none"
            raise RoutingError(f'no routing rule for "{workload.kind}"; nodes.yaml has rules for: {known}')

        def mismatch(route: Route) -> tuple[bool, bool]:
            wants_gpu = workload.gpu is not None and workload.gpu > 0
            return route.priority != workload.priority, workload.gpu is not None and (route.gpu > 0) != wants_gpu

        return min(routes, key=mismatch)

    def place(self, workload: Workload) -> Placement:
        """Where `workload` goes; raises RoutingError when no rule or neither service nor node fits."""
        return self._place(self.rule(workload), workload)

    def place_service(self, service: Service) -> Placement:
        """Where the pods of `service` go.

        Raises RoutingError when it names no rule or no node fits, UnknownEntryError for unknown names.
        """
        if service.route is None:
            raise RoutingError(f'service "{service.name}" names no routing rule')
        route = self.catalog.route(service.route)
        workload = Workload(
            kind=route.workload,
            priority=route.priority,
            gpu=service.resources.gpu,
            gpu_memory_gb=route.min_gpu_memory_gb if service.resources.gpu else 0,
            architectures=architectures_of(self.catalog.image(service.image)),
        )
        return self._place(route, workload)

    def gpu_pod_settings(self, workload: Workload) -> dict[str, Any]:
        """Pod settings in the form of the tag `dagster-k8s/config`: affinity, tolerations, priority and, with
        GPUs, runtime class, node selector and limits. Raises RoutingError.
        """
        placement = self.place(workload)
        spec: dict[str, Any] = {
            "priority_class_name": priority_class(placement.route),
            "tolerations": tolerations(placement),
        }
        if placement.candidates:
            spec["affinity"] = {"node_affinity": _snake_affinity(placement)}
        container: dict[str, Any] = {}
        if placement.gpu:
            spec["node_selector"] = {"nvidia.com/gpu.present": "true"}
            spec["runtime_class_name"] = GPU_RUNTIME_CLASS
            count = str(placement.gpu)
            container["resources"] = {"limits": {self.catalog.cluster.gpu_resource: count}}
        return {
            "container_config": container,
            "job_spec_config": {"ttl_seconds_after_finished": 3600},
            "pod_spec_config": spec,
        }

    def _place(self, route: Route, workload: Workload) -> Placement:
        gpu = route.gpu if workload.gpu is None else workload.gpu
        named: dict[str, Preference] = dict.fromkeys(route.nodes, "preferred")
        for name in route.fallback:
            named.setdefault(name, "fallback")
        candidates: list[Candidate] = []
        rejected: list[Rejection] = []
        for name, preference in named.items():
            self._consider(self.catalog.node(name), preference, route, workload, candidates, rejected)
        if not candidates and (named or route.service is None):
            others = (node for node in self.catalog.nodes if node.name not in named)
            for node in sorted(others, key=lambda node: (node.price_usd_hour, node.name)):
                self._consider(node, "cheapest", route, workload, candidates, rejected)
        if not candidates and route.service is None:
            reasons = "; ".join(f"{item.node}: {item.reason}" for item in rejected)
            raise RoutingError(f'no node fits "{route.name}": {reasons}')
        return Placement(route, route.service, tuple(candidates), tuple(rejected), gpu)

    def _consider(
        self,
        node: Node,
        preference: Preference,
        route: Route,
        workload: Workload,
        candidates: list[Candidate],
        rejected: list[Rejection],
    ) -> None:
        reason = self._misfit(node, route, workload)
        if reason is None:
            candidates.append(Candidate(node, preference))
        else:
            rejected.append(Rejection(node.name, reason))

    def _misfit(self, node: Node, route: Route, workload: Workload) -> str | None:
        """Why `node` cannot take the work; None when it can."""
        gpu = route.gpu if workload.gpu is None else workload.gpu
        memory = route.min_gpu_memory_gb if workload.gpu_memory_gb is None else workload.gpu_memory_gb
        latency = route.max_latency_ms if workload.max_latency_ms is None else workload.max_latency_ms
        environment = workload.environment or ("staging" if route.workload == "development" else "production")
        if node.environment != environment:
            return f"is a {node.environment} node"
        if node.arch not in workload.architectures:
            return f"is {node.arch}, the image is for {' and '.join(workload.architectures)}"
        if node.gpu_count < gpu:
            return f"has {node.gpu_count} GPUs of {gpu}"
        if node.gpu_memory_gb < memory:
            return f"has {node.gpu_memory_gb} GB of GPU memory of {memory}"
        if latency is not None and self.data_regions and node.region not in self.data_regions:
            return f"is in {node.region}, the data in {', '.join(sorted(self.data_regions))}"
        if workload.max_usd_hour is not None and node.price_usd_hour > workload.max_usd_hour:
            return f"costs {node.price_usd_hour:.2f} USD an hour, above {workload.max_usd_hour:.2f}"
        return None


def architectures_of(image: Image) -> tuple[Architecture, ...]:
    """The processor architectures that an image is built for."""
    architectures: tuple[Architecture, ...] = ("amd64", "arm64")
    return tuple(arch for arch in architectures if f"linux/{arch}" in image.platforms)


def priority_class(route: Route) -> str:
    """Name of the PriorityClass for work of that rule."""
    return f"sophia-{route.priority}"


def node_affinity(placement: Placement) -> dict[str, Any]:
    """Node affinity as Kubernetes writes it: only nodes that fit, the best preferred."""
    preferred = [
        {
            "weight": PREFERENCE_WEIGHTS[candidate.preference],
            "preference": {"matchExpressions": [_hostname(candidate.node.name)]},
        }
        for candidate in placement.candidates
    ]
    required = {"nodeSelectorTerms": [{"matchExpressions": [_hostname(*placement.nodes)]}]}
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
        "requiredDuringSchedulingIgnoredDuringExecution": required,
    }


def tolerations(placement: Placement) -> list[dict[str, str]]:
    """What pods must tolerate to run on the candidates: their taints, and the GPU taint with GPUs."""
    found: list[dict[str, str]] = []
    if placement.gpu:
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    for candidate in placement.candidates:
        for taint in candidate.node.taints:
            item = {"key": taint.key, "operator": "Equal", "value": taint.value, "effect": taint.effect}
            if item not in found:
                found.append(item)
    return found


def _hostname(*names: str) -> dict[str, Any]:
    return {"key": HOSTNAME, "operator": "In", "values": list(names)}


def _snake_affinity(placement: Placement) -> dict[str, Any]:
    affinity = node_affinity(placement)
    preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return {
        "preferred_during_scheduling_ignored_during_execution": [
            {
                "weight": item["weight"],
                "preference": {"match_expressions": item["preference"]["matchExpressions"]},
            }
            for item in preferred
        ],
        "required_during_scheduling_ignored_during_execution": {
            "node_selector_terms": [{"match_expressions": term["matchExpressions"]} for term in terms]
        },
    }
