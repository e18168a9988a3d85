"""How secrets travel: a Pulumi ESC environment of references, and the external secrets that bring them to pods.

Values are written by the synchronisation into `sophia/<environment>-values` and nowhere else. What is rendered here
imports that environment and gives each value its variable, so that nothing in the repository can hold one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from sophia.catalog.models import Catalog, Environment, Secret
from sophia.platform.exposure import exposures
from sophia.platform.manifests import Manifest, manifest, platform_labels, secret_object_name, stamped
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.systems import PlatformSystems
from sophia.platform.text import from_yaml_stream, to_yaml, to_yaml_stream

PROJECT = "sophia"
STORE = "sophia-secrets"
ACCESS_SECRET = "pulumi_access_token"  # noqa: S105
OPERATOR_NAMESPACE = "external-secrets"
REFERENCE = re.compile(r"^\$\{secrets\.[a-z][a-z0-9_]*\}$")
REFRESH = "5m"


@dataclass(frozen=True)
class SecretEnvironment:
    """One of the separate environments, with a set of values of its own."""

    name: Environment


@dataclass(frozen=True)
class EnvironmentReconciler:
    """The way of all secrets into each environment."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "environments"

    def entries(self) -> tuple[SecretEnvironment, ...]:
        """Development, staging, production."""
        return tuple(SecretEnvironment(name) for name in get_args(Environment))

    def render(self, entry: SecretEnvironment) -> Rendered:
        """The ESC environment, the store that reads it, and one external secret for each namespace that needs it."""
        folder = f"environments/{entry.name}"
        return Rendered(
            {
                f"{folder}/esc.yaml": to_yaml(self._esc(entry)),
                f"{folder}/external-secrets.yaml": to_yaml_stream(
                    stamped(item) for item in self._external_secrets(entry)
                ),
                f"{folder}/secret-store.yaml": to_yaml(stamped(_store(entry))),
            }
        )

    def observe(self, entry: SecretEnvironment) -> Observed:
        """Not read back: reading an ESC environment opens its values."""
        return Observed.unknown(f"environment {entry.name} is not opened, because that would read its values")

    def plan(self, entry: SecretEnvironment) -> Plan:
        """What an apply would have to do."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: SecretEnvironment) -> tuple[Finding, ...]:
        """Only references, and every secret that a service needs in this environment is there."""
        return tuple(self._findings(entry))

    def secrets(self, entry: SecretEnvironment) -> tuple[Secret, ...]:
        """Secrets with a value of their own in that environment."""
        return tuple(secret for secret in self.catalog.secrets if entry.name in secret.environments)

    def _esc(self, entry: SecretEnvironment) -> dict[str, Any]:
        held = [secret for secret in self.secrets(entry) if "pulumi_esc" in secret.providers]
        return {
            "imports": [f"{PROJECT}/{entry.name}-values"],
            "values": {"environmentVariables": {secret.env: f"${{secrets.{secret.name}}}" for secret in held}},
        }

    def _external_secrets(self, entry: SecretEnvironment) -> Iterator[Manifest]:
        for secret in self.secrets(entry):
            if "kubernetes" not in secret.providers:
                continue
            namespaces = {service.namespace for service in self.catalog.services if secret.name in service.secrets}
            for namespace in sorted(namespaces):
                yield _external_secret(secret, namespace)

    def _findings(self, entry: SecretEnvironment) -> Iterator[Finding]:
        rendered = self.render(entry)
        yield from exposures(rendered)
        folder = f"environments/{entry.name}"
        esc = from_yaml_stream(rendered.files[f"{folder}/esc.yaml"])[0]
        yield from reference_findings(f"{folder}/esc.yaml", esc)
        if entry.name != "production":
            return
        held = {secret.name for secret in self.secrets(entry) if "kubernetes" in secret.providers}
        for service in self.catalog.services:
            for name in service.secrets:
                if name not in held:
                    message = f"service {service.name} needs {name}, which does not reach Kubernetes here"
                    fix = f"add {entry.name} to its environments and kubernetes to its providers"
                    yield Finding("error", "secret-missing", folder, message, fix)


def reference_findings(where: str, esc: dict[str, Any]) -> Iterator[Finding]:
    """Every variable of an ESC environment that is anything but a reference to a secret."""
    for name, value in esc["values"]["environmentVariables"].items():
        if not REFERENCE.match(str(value)):
            fix = "refer to a secret of the imported environment"
            yield Finding("error", "secret-value", where, f"{name} is not a reference", fix)


def _store(entry: SecretEnvironment) -> Manifest:
    token = {"key": "SOPHIA_PULUMI_ACCESS_TOKEN", "name": ACCESS_SECRET.replace("_", "-")}
    return manifest(
        "external-secrets.io/v1",
        "ClusterSecretStore",
        STORE,
        object_labels=platform_labels(STORE),
        spec={
            "provider": {
                "pulumi": {
                    "auth": {"accessToken": {"secretRef": {**token, "namespace": OPERATOR_NAMESPACE}}},
                    "environment": entry.name,
                    "organization": "sophia",
                    "project": PROJECT,
                }
            }
        },
    )


def _external_secret(secret: Secret, namespace: str) -> Manifest:
    name = secret_object_name(secret)
    return manifest(
        "external-secrets.io/v1",
        "ExternalSecret",
        name,
        namespace=namespace,
        object_labels=platform_labels(name),
        annotations={"sophia.dev/rotation": secret.rotation},
        spec={
            "data": [{"remoteRef": {"key": f"environmentVariables.{secret.env}"}, "secretKey": secret.env}],
            "refreshInterval": REFRESH,
            "secretStoreRef": {"kind": "ClusterSecretStore", "name": STORE},
            "target": {"creationPolicy": "Owner", "deletionPolicy": "Retain", "name": name},
        },
    )
