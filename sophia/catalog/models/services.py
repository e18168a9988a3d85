"""Everything that runs as pods: applications, MCP servers, databases, monitoring, ingress."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sophia.catalog.models.base import Cron, Entry, Frozen, Port
from sophia.catalog.models.cluster import QUANTITY, Quantity

Category = Literal[
    "application",
    "mcp",
    "hot_path",
    "inference",
    "orchestration",
    "workflow",
    "database",
    "monitoring",
    "edge",
]
McpGroup = Literal["ai_intelligence", "infrastructure", "integrations", "data", "development"]


class ServicePort(Frozen):
    """A port that the container listens on and the Kubernetes service offers."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,14}$", description="Port name (RFC 6335).")
    number: Port = Field(description="Port number, the same inside and outside the pod.")
    protocol: Literal["TCP", "UDP"] = Field(default="TCP", description="Transport protocol.")


class Scaling(Frozen):
    """How many pods. `min` = `max` is a fixed number; `min` 0 scales to nothing when idle."""

    min: int = Field(default=1, ge=0, description="Fewest pods.")
    max: int = Field(default=1, ge=1, description="Most pods.")
    metric: Literal["cpu", "memory", "gpu", "queue_length", "requests_per_second"] | None = Field(
        default=None, description="What the autoscaler watches; null with a fixed number."
    )
    target: float | None = Field(
        default=None, gt=0, description="Per pod: percent for cpu, memory and gpu; else a number."
    )
    up_stabilization_seconds: int = Field(default=0, ge=0, description="How long a rise must hold.")
    down_stabilization_seconds: int = Field(default=300, ge=0, description="How long a fall must hold.")

    @model_validator(mode="after")
    def _complete(self) -> Scaling:
        if self.min > self.max:
            raise ValueError("min is above max")
        if (self.min != self.max) != (self.metric is not None and self.target is not None):
            raise ValueError("metric and target go with min below max")
        return self

    @property
    def autoscaled(self) -> bool:
        """Whether the number of pods changes by load."""
        return self.min != self.max


class Resources(Frozen):
    """What one pod asks for and may use."""

    cpu_request: Quantity = Field(default="100m", pattern=QUANTITY, description="CPU asked for.")
    cpu_limit: Quantity = Field(default="1", pattern=QUANTITY, description="CPU limit.")
    memory_request: Quantity = Field(default="256Mi", pattern=QUANTITY, description="Memory asked for.")
    memory_limit: Quantity = Field(default="512Mi", pattern=QUANTITY, description="Memory limit.")
    gpu: int = Field(default=0, ge=0, description="GPUs; request and limit alike.")


class Probe(Frozen):
    """How Kubernetes asks whether a container is well: HTTP path, command, or an open port."""

    path: str | None = Field(default=None, pattern=r"^/", description="HTTP path; null: command or TCP.")
    command: tuple[str, ...] = Field(default=(), description="Command that exits 0 when well.")
    port: str = Field(default="http", description="Name of the service's port.")
    initial_delay_seconds: int = Field(default=0, ge=0, description="Wait before the first.")
    period_seconds: int = Field(default=10, ge=1, description="Time between two.")
    timeout_seconds: int = Field(default=2, ge=1, description="Longest answer time.")
    failure_threshold: int = Field(default=3, ge=1, description="Failures in a row that count.")


class Probes(Frozen):
    """The three questions; a null one is not asked."""

    liveness: Probe | None = Field(default=None, description="Failing: the container restarts.")
    readiness: Probe | None = Field(default=None, description="Failing: no traffic.")
    startup: Probe | None = Field(default=None, description="Until it succeeds, the other two wait.")


class Ingress(Frozen):
    """A public route to the service."""

    path: str = Field(pattern=r"^/", description="Path prefix on the cluster's domain.")
    port: str = Field(default="http", description="Name of the service's port.")
    strip_prefix: bool = Field(default=False, description="Whether the service sees the path without it.")
    rate_limit_rps: int = Field(default=50, ge=1, description="Requests a second from one client.")
    authenticated: bool = Field(default=True, description="Whether every request must carry a token.")


class Mesh(Frozen):
    """Retries and limits that the mesh applies to calls of this service."""

    retries: int = Field(default=2, ge=0, description="Attempts after the first; 0 unless idempotent.")
    timeout_ms: int = Field(default=5_000, ge=1, description="Longest answer time, retries included.")
    max_connections: int = Field(default=1_024, ge=1, description="Circuit breaker: connections at once.")
    consecutive_errors: int = Field(default=5, ge=1, description="Circuit breaker: errors that eject a pod.")


class Volume(Frozen):
    """A folder that outlives the container: a persistent claim with a size, else scratch space."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="Name within the pod.")
    mount_path: str = Field(pattern=r"^/", description="Where the container sees it.")
    size: Quantity | None = Field(default=None, pattern=QUANTITY, description="Claim size; null: scratch.")


class Metrics(Frozen):
    """Where Prometheus scrapes."""

    port: str = Field(default="http", description="Name of the service's port.")
    path: str = Field(default="/metrics", pattern=r"^/", description="HTTP path.")


class Security(Frozen):
    """Security context; capabilities are always dropped, seccomp is always RuntimeDefault."""

    run_as_user: int = Field(default=10001, ge=1, description="User id; never root.")
    read_only_root: bool = Field(default=True, description="Root file system is read-only.")


class Backup(Frozen):
    """Copies kept for recovery."""

    schedule: Cron = Field(description="When a copy is made.")
    retention_days: int = Field(ge=1, description="How long a copy is kept.")


class Endpoint(Frozen):
    """One function that the service offers, with its promise."""

    path: str = Field(pattern=r"^/", description="HTTP path.")
    latency_target_ms: int = Field(ge=1, description="95th percentile to stay under.")


class Service(Entry):
    """One workload on the cluster."""

    category: Category = Field(description="What sort of service it is.")
    group: McpGroup | None = Field(default=None, description="MCP category; only for MCP servers.")
    namespace: str = Field(description="Name of one of the cluster's namespaces.")
    workload: Literal["deployment", "statefulset"] = Field(
        default="deployment", description="Kubernetes workload; statefulset: each pod keeps its volumes."
    )
    image: str = Field(description="Name of the image.")
    command: tuple[str, ...] = Field(default=(), description="Command; empty: the image's.")
    args: tuple[str, ...] = Field(default=(), description="Arguments; empty: the image's.")
    ports: tuple[ServicePort, ...] = Field(default=(), description="Ports it offers.")
    scaling: Scaling = Field(default_factory=Scaling, description="How many pods.")
    resources: Resources = Field(default_factory=Resources, description="What a pod asks for.")
    route: str | None = Field(default=None, description="Routing rule that places its pods.")
    probes: Probes = Field(default_factory=Probes, description="Health questions.")
    env: dict[str, str] = Field(
        default_factory=dict, description="Plain variables; $(NAME) stands for a secret's variable."
    )
    secrets: tuple[str, ...] = Field(default=(), description="Secrets that it gets, by name.")
    depends_on: tuple[str, ...] = Field(
        default=(), description="Services that must be healthy first; also a permitted network flow."
    )
    calls: tuple[str, ...] = Field(
        default=(), description="Other services it may call: a permitted network flow, no start order."
    )
    callers: tuple[str, ...] = Field(
        default=(), description="Services that may call it beside those that name it; * is all of them."
    )
    scrapes: bool = Field(default=False, description="Whether it reads the metrics of every service.")
    internet: bool = Field(default=False, description="Whether it may reach addresses outside, on 443.")
    indexes: tuple[str, ...] = Field(default=(), description="Indexes that it searches or writes.")
    ingress: tuple[Ingress, ...] = Field(default=(), description="Public routes to it.")
    min_available: int | None = Field(
        default=None, ge=1, description="PodDisruptionBudget: pods that stay up; null: no budget."
    )
    mesh: Mesh = Field(default_factory=Mesh, description="Retries and limits for calls of it.")
    latency_target_ms: int | None = Field(
        default=None, ge=1, description="95th percentile to stay under; null: no promise."
    )
    endpoints: tuple[Endpoint, ...] = Field(default=(), description="Functions with their own promise.")
    volumes: tuple[Volume, ...] = Field(default=(), description="Persistent and scratch folders.")
    metrics: Metrics | None = Field(default=None, description="Where Prometheus scrapes; null: nowhere.")
    security: Security = Field(default_factory=Security, description="Security context.")
    update: Literal["rolling", "blue_green", "recreate"] = Field(
        default="rolling", description="How a new version takes over."
    )
    backup: Backup | None = Field(default=None, description="Copies of its volumes; null: none.")

    @property
    def resource_name(self) -> str:
        """The name as Kubernetes objects carry it: dashes for underscores."""
        return self.name.replace("_", "-")

    @model_validator(mode="after")
    def _consistent(self) -> Service:
        if (self.category == "mcp") != (self.group is not None):
            raise ValueError("group goes with category mcp, and only with it")
        names = [port.name for port in self.ports]
        if len(set(names)) != len(names):
            raise ValueError("ports carry one name twice")
        used = [
            *(route.port for route in self.ingress),
            *([self.metrics.port] if self.metrics else []),
            *(
                probe.port
                for probe in (self.probes.liveness, self.probes.readiness, self.probes.startup)
                if probe is not None and not probe.command
            ),
        ]
        for port in used:
            if port not in names:
                raise ValueError(f'port "{port}" is not one of its ports')
        shared = [volume.name for volume in self.volumes if volume.size is not None]
        if shared and self.workload == "deployment" and self.scaling.max > 1:
            raise ValueError(f'volume "{shared[0]}" with a size needs a statefulset or a single pod')
        # A budget of every pod would forbid each voluntary eviction, and with it each node drain.
        if self.min_available is not None and self.min_available >= self.scaling.min:
            raise ValueError("min_available must be below scaling.min")
        return self
