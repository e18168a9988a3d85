"""The machines: nodes, the K3s cluster they form, and which node a workload goes to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sophia.catalog.models.base import (
    Architecture,
    Cron,
    DashedName,
    Entry,
    Environment,
    EnvName,
    Frozen,
    Name,
)

Quantity = str
"""A Kubernetes quantity such as `500m` or `2Gi`; the fields that hold one check its form."""

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"


class Taint(Frozen):
    """Keeps pods without a matching toleration off a node."""

    key: str = Field(min_length=1, description="Label-style key.")
    value: str = Field(default="", description="Value that a toleration must equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        description="What happens to pods that do not tolerate it."
    )


class OffHours(Frozen):
    """When a node is not wanted. The cloud has no stop: it is drained, terminated, launched and rejoined."""

    down: Cron = Field(description="When to drain and terminate.")
    up: Cron = Field(description="When to launch and rejoin.")


class Node(Entry):
    """One machine of the GPU cloud."""

    name: DashedName = Field(description="Host name and Kubernetes node name.")
    gpu: str = Field(description="GPU type.")
    gpu_count: int = Field(default=1, ge=0, description="GPUs in the machine.")
    gpu_memory_gb: int = Field(ge=0, description="Memory of one GPU.")
    arch: Architecture = Field(description="Processor architecture; decides which image platform runs.")
    region: str = Field(description="Region of the cloud.")
    instance_type: str = Field(description="The cloud's name of the machine type.")
    role: Literal["control_plane", "mcp_hub", "data", "production", "staging"] = Field(
        description="Part in the K3s cluster."
    )
    environment: Environment = Field(description="Which environment's workloads may run here.")
    control_plane: bool = Field(default=False, description="Runs the K3s server; never drained by policy.")
    price_usd_hour: float = Field(gt=0, description="Price of an hour.")
    suited_to: tuple[str, ...] = Field(default=(), description="Workloads it is good at, in words.")
    labels: dict[str, str] = Field(default_factory=dict, description="Kubernetes node labels.")
    taints: tuple[Taint, ...] = Field(default=(), description="Kubernetes node taints.")
    off_hours: OffHours | None = Field(default=None, description="When it may be away; null: never.")

    @model_validator(mode="after")
    def _control_plane_stays(self) -> Node:
        if self.control_plane and self.off_hours is not None:
            raise ValueError("off_hours is not possible on the control plane")
        if self.control_plane != (self.role == "control_plane"):
            raise ValueError("control_plane and role disagree")
        return self


class Route(Entry):
    """Where a class of work runs: a warm service first if named, then nodes in order, then the fallback."""

    workload: Literal["embedding", "batch", "realtime", "mcp", "inference", "development"] = Field(
        description="Class of work."
    )
    priority: Literal["high", "normal", "low"] = Field(default="normal", description="Priority it is for.")
    service: str | None = Field(default=None, description="Always-warm service that takes it, if any.")
    nodes: tuple[str, ...] = Field(default=(), description="Preferred nodes, best first.")
    fallback: tuple[str, ...] = Field(default=(), description="Nodes tried when none of those has room.")
    gpu: int = Field(default=0, ge=0, description="GPUs that one pod of it takes.")
    min_gpu_memory_gb: int = Field(default=0, ge=0, description="GPU memory that it needs.")
    max_latency_ms: int | None = Field(
        default=None, ge=1, description="Answer time; set: the work stays in the region of its data."
    )

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Route:
        if self.service is None and not self.nodes:
            raise ValueError("needs a service or nodes")
        return self


class ScalingPolicy(Frozen):
    """When the fleet grows and shrinks."""

    min_nodes: int = Field(default=2, ge=1, description="Fewest instances.")
    max_nodes: int = Field(default=10, ge=1, description="Most instances.")
    target_gpu_percent: int = Field(default=75, ge=1, le=100, description="GPU use to settle at.")
    up_gpu_percent: int = Field(default=85, ge=1, le=100, description="GPU use above which one is added.")
    down_gpu_percent: int = Field(default=30, ge=0, le=100, description="GPU use below which one leaves.")
    window_seconds: int = Field(default=300, ge=30, description="How long the use must hold.")
    cooldown_seconds: int = Field(default=900, ge=0, description="Pause between two changes.")
    drain_seconds: int = Field(default=600, ge=0, description="Longest drain before a node terminates.")

    @model_validator(mode="after")
    def _ordered(self) -> ScalingPolicy:
        if self.min_nodes > self.max_nodes:
            raise ValueError("min_nodes is above max_nodes")
        if not self.down_gpu_percent < self.target_gpu_percent < self.up_gpu_percent:
            raise ValueError("wants down_gpu_percent < target_gpu_percent < up_gpu_percent")
        return self


class ContainerDefaults(Frozen):
    """LimitRange: what a container gets that asks for nothing."""

    cpu_request: Quantity = Field(default="100m", pattern=QUANTITY, description="CPU asked for.")
    cpu_limit: Quantity = Field(default="1", pattern=QUANTITY, description="CPU limit.")
    memory_request: Quantity = Field(default="128Mi", pattern=QUANTITY, description="Memory asked for.")
    memory_limit: Quantity = Field(default="1Gi", pattern=QUANTITY, description="Memory limit.")


class Namespace(Frozen):
    """A Kubernetes namespace with its limits."""

    name: DashedName = Field(description="Name in Kubernetes.")
    description: str = Field(min_length=1, description="What lives in it.")
    gpu_quota: int = Field(default=0, ge=0, description="GPUs that all its pods may hold together.")
    cpu_quota: Quantity | None = Field(default=None, pattern=QUANTITY, description="Sum of CPU requests.")
    memory_quota: Quantity | None = Field(default=None, pattern=QUANTITY, description="Sum of memory requests.")
    defaults: ContainerDefaults = Field(
        default_factory=ContainerDefaults, description="For containers that ask for nothing."
    )
    pod_security: Literal["restricted", "baseline", "privileged"] = Field(
        default="restricted", description="Pod security standard that admission enforces."
    )


class K3s(Frozen):
    """How the cluster is formed. Addresses and tokens come from the environment."""

    channel: str = Field(default="v1.32", description="Release channel.")
    disable: tuple[str, ...] = Field(
        default=("traefik",), description="Packaged parts left out; we bring our own ingress."
    )
    token_env: EnvName = Field(default="SOPHIA_K3S_TOKEN", description="Variable with the join token.")
    server_url_env: EnvName = Field(
        default="SOPHIA_K3S_SERVER_URL", description="Variable with the server's URL on the mesh."
    )
    secrets_encryption: bool = Field(default=True, description="Encrypt Kubernetes secrets at rest.")


class WireGuard(Frozen):
    """The encrypted network between regions."""

    interface: str = Field(default="wg0", description="Interface name on each node.")
    port: int = Field(default=51820, ge=1, le=65535, description="UDP port.")
    subnet_env: EnvName = Field(default="SOPHIA_MESH_SUBNET", description="Variable with the mesh's subnet.")
    keepalive_seconds: int = Field(default=25, ge=1, description="Keeps address translations open.")


class ServiceMesh(Frozen):
    """What the mesh does for every service unless the service says otherwise."""

    mtls: Literal["strict", "permissive"] = Field(default="strict", description="Mutual TLS between pods.")
    retries: int = Field(default=2, ge=0, description="Attempts after the first.")
    timeout_ms: int = Field(default=5_000, ge=1, description="Longest answer time, retries included.")


class Budget(Frozen):
    """What a month should cost, in USD."""

    gpu_usd_month: float = Field(default=2_800, gt=0, description="Machines.")
    frontend_usd_month: float = Field(default=20, ge=0, description="Frontends.")
    transfer_usd_month: float = Field(default=50, ge=0, description="Data transfer.")
    total_usd_month: float = Field(default=3_050, gt=0, description="Everything.")


class Cluster(Frozen):
    """Settings of the whole cluster; one mapping in nodes.yaml."""

    name: Name = Field(default="sophia", description="Name of the cluster.")
    gpu_quota: int = Field(default=4, ge=0, description="GPUs that all namespaces may hold together.")
    gpu_resource: str = Field(default="nvidia.com/gpu", description="Resource that the GPU operator offers.")
    gpu_use_goal_percent: tuple[int, int] = Field(default=(80, 90), description="GPU use that is wanted.")
    storage_class: str = Field(default="local-path", description="Storage class of persistent volumes.")
    domain: str = Field(default="sophia.example.com", description="Host that the ingress answers to.")
    scaling: ScalingPolicy = Field(default_factory=ScalingPolicy, description="When the fleet changes size.")
    k3s: K3s = Field(default_factory=K3s, description="How the cluster is formed.")
    wireguard: WireGuard = Field(default_factory=WireGuard, description="Network between the nodes.")
    mesh: ServiceMesh = Field(default_factory=ServiceMesh, description="Service mesh defaults.")
    budget: Budget = Field(default_factory=Budget, description="Cost goal.")
    namespaces: tuple[Namespace, ...] = Field(default=(), description="Namespaces and their limits.")
