"""Nodes: K3s configuration, its environment and the WireGuard mesh, all with references for what is not ours to keep.

`${NAME}` is filled in on the machine, from the environment; no address, key or token is ever rendered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sophia.catalog.models import Catalog, Node
from sophia.platform.exposure import exposures
from sophia.platform.kubernetes_api import projected
from sophia.platform.kubernetes_observation import NOT_CONFIGURED, reader_of
from sophia.platform.manifests import manifest, platform_labels, stamped
from sophia.platform.pods import CONFIG_DIGEST
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, files_digest, make_plan
from sophia.platform.systems import KubernetesReader, PlatformSystems, SystemUnreachableError
from sophia.platform.text import from_yaml_stream, render_template, to_yaml

REFERENCE = re.compile(r"\$\{([^}]*)\}")
PRIVATE_KEY = "SOPHIA_WIREGUARD_PRIVATE_KEY"

AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # The bodies would hold the secrets themselves.
        {"level": "Metadata", "resources": [{"group": "", "resources": ["configmaps", "secrets"]}]},
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Request"},
    ],
}
"""What the API server records: every change, and who touched secrets."""


def mesh_address(node: Node) -> str:
    """Variable with the node's address on the mesh."""
    return _variable("MESH_ADDRESS", node)


def public_endpoint(node: Node) -> str:
    """Variable with the host under which other nodes reach it."""
    return _variable("NODE_ENDPOINT", node)


def public_key(node: Node) -> str:
    """Variable with the node's WireGuard public key."""
    return _variable("WIREGUARD_PUBLIC_KEY", node)


def _variable(prefix: str, node: Node) -> str:
    return f"SOPHIA_{prefix}_{node.name.removeprefix('sophia-').replace('-', '_').upper()}"


@dataclass(frozen=True)
class NodeReconciler:
    """Machines of the catalog. In a cluster, only labels and taints can be read back."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "nodes"

    @cached_property
    def _reader(self) -> KubernetesReader | None:
        return reader_of(self.systems)

    def entries(self) -> tuple[Node, ...]:
        """The control plane first: the others join it."""
        return tuple(sorted(self.catalog.nodes, key=lambda node: not node.control_plane))

    def render(self, entry: Node) -> Rendered:
        """Configuration files of the machine, and its Kubernetes node object."""
        folder = f"nodes/{entry.name}"
        peers = [node for node in self.catalog.nodes if node.name != entry.name]
        mesh = render_template(
            "k3s/wireguard.conf.j2",
            node=entry,
            peers=peers,
            wireguard=self.catalog.cluster.wireguard,
            mesh_address=mesh_address,
            public_endpoint=public_endpoint,
            public_key=public_key,
            private_key=PRIVATE_KEY,
        )
        environment = render_template("k3s/k3s.env.j2", node=entry, k3s=self.catalog.cluster.k3s)
        files = {
            f"{folder}/k3s-config.yaml": to_yaml(k3s_configuration(self.catalog, entry)),
            f"{folder}/k3s.env": environment,
            f"{folder}/{self.catalog.cluster.wireguard.interface}.conf": mesh,
        }
        if entry.control_plane:
            files[f"{folder}/audit.yaml"] = to_yaml(AUDIT_POLICY)
        files[_object_path(entry)] = to_yaml(stamped(_node_object(entry, files_digest(files))))
        return Rendered(files)

    def observe(self, entry: Node) -> Observed:
        """The node object. Files of the machine are not reached: its object tells by a digest which it joined with."""
        if self._reader is None:
            return Observed.unknown(NOT_CONFIGURED)
        try:
            found = self._reader.list_objects("v1", "Node", f"kubernetes.io/hostname={entry.name}")
        except SystemUnreachableError as unreachable:
            return Observed.unknown(str(unreachable))
        if not found:
            return Observed("absent", f"{entry.name} has not joined the cluster")
        rendered = self.render(entry)
        path = _object_path(entry)
        live = projected(from_yaml_stream(rendered.files[path])[0], found[0])
        files = {path: to_yaml(live)}
        wanted = from_yaml_stream(rendered.files[path])[0]["metadata"]["annotations"][CONFIG_DIGEST]
        if live["metadata"].get("annotations", {}).get(CONFIG_DIGEST) == wanted:
            files = {**rendered.files, **files}
        return Observed("present", f"{entry.name} has joined the cluster", files=files)

    def plan(self, entry: Node) -> Plan:
        """What an apply would have to do."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Node) -> tuple[Finding, ...]:
        """References are known variables, nothing is exposed, there is exactly one server."""
        return tuple(self._findings(entry))

    def _findings(self, entry: Node) -> Iterator[Finding]:
        rendered = self.render(entry)
        yield from exposures(rendered)
        known = self._known_variables()
        for path, text in rendered.files.items():
            for name in sorted(set(REFERENCE.findall(text)) - known):
                fix = "use a variable of cluster.k3s, cluster.wireguard or a secret"
                yield Finding("error", "unknown-variable", path, f"${{{name}}} is not a variable of the cluster", fix)
        servers = [node.name for node in self.catalog.nodes if node.control_plane]
        if len(servers) != 1:
            message = f"{len(servers)} nodes are control planes"
            yield Finding("error", "control-plane", f"nodes/{entry.name}", message, "set control_plane on one node")
        if PRIVATE_KEY not in {secret.env for secret in self.catalog.secrets}:
            message = f"no secret of the catalog is {PRIVATE_KEY}"
            yield Finding("error", "unknown-variable", f"nodes/{entry.name}", message, "add it to secrets.yaml")

    def _known_variables(self) -> set[str]:
        cluster = self.catalog.cluster
        known = {cluster.k3s.token_env, cluster.k3s.server_url_env, cluster.wireguard.subnet_env, PRIVATE_KEY}
        for node in self.catalog.nodes:
            known.update((mesh_address(node), public_endpoint(node), public_key(node)))
        return known


def k3s_configuration(catalog: Catalog, node: Node) -> dict[str, Any]:
    """`config.yaml` of K3s; the token and the server's URL come from its environment file instead."""
    cluster = catalog.cluster
    taints = [f"{taint.key}={taint.value}:{taint.effect}" for taint in node.taints]
    configuration: dict[str, Any] = {
        "flannel-iface": cluster.wireguard.interface,
        "kubelet-arg": ["image-gc-high-threshold=80", "image-gc-low-threshold=70", "max-pods=150"],
        "node-ip": f"${{{mesh_address(node)}}}",
        "node-label": [f"{key}={value}" for key, value in sorted(_labels(node).items())],
        "node-name": node.name,
        "protect-kernel-defaults": True,
    }
    if taints:
        configuration["node-taint"] = taints
    if node.control_plane:
        configuration |= {
            "advertise-address": f"${{{mesh_address(node)}}}",
            "cluster-init": True,
            "disable": sorted(cluster.k3s.disable),
            "etcd-snapshot-retention": 28,
            "etcd-snapshot-schedule-cron": "0 */6 * * *",
            # The mesh already encrypts what passes between nodes.
            "flannel-backend": "vxlan",
            "kube-apiserver-arg": [
                "anonymous-auth=false",
                "audit-log-maxage=30",
                "audit-log-path=/var/lib/rancher/k3s/server/logs/audit.log",
                "audit-policy-file=/var/lib/rancher/k3s/server/audit.yaml",
            ],
            "secrets-encryption": cluster.k3s.secrets_encryption,
            "tls-san": [f"${{{mesh_address(node)}}}"],
            "write-kubeconfig-mode": "0600",
        }
    return configuration


def _labels(node: Node) -> dict[str, str]:
    return {
        **node.labels,
        "sophia.dev/environment": node.environment,
        "sophia.dev/gpu-memory-gb": str(node.gpu_memory_gb),
        "topology.kubernetes.io/region": node.region,
    }


def _node_object(node: Node, configuration_digest: str) -> dict[str, Any]:
    labels = {**platform_labels(node.name), **_labels(node)}
    taints = [{"effect": taint.effect, "key": taint.key, "value": taint.value} for taint in node.taints]
    return manifest(
        "v1",
        "Node",
        node.name,
        object_labels=labels,
        annotations={CONFIG_DIGEST: configuration_digest},
        spec={"taints": taints},
    )


def _object_path(node: Node) -> str:
    return f"nodes/{node.name}/node.yaml"
