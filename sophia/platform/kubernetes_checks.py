"""Checks of manifests without a cluster: the API's own schema, and the platform's rules on top of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from sophia.platform.dockerfile import SECRET_NAME
from sophia.platform.manifests import Manifest
from sophia.platform.reconcile import Finding

OLDEST_VERSION = "1.30"
"""The oldest Kubernetes release whose schema every manifest must meet."""

WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job"}


def schema_findings(where: str, document: Manifest, versions: tuple[str, ...]) -> Iterator[Finding]:
    """Whether the document meets the schema of each release; info for kinds that only operators know."""
    # Imported here: schemas are only needed to verify, never to plan.
    from jsonschema.exceptions import best_match

    for version in versions:
        validator = _validator(version, document["kind"], document["apiVersion"])
        if validator is None:
            kind = f"{document['apiVersion']} {document['kind']}"
            yield Finding("info", "not-validated", where, f"no schema of {kind} to check against")
            return
        invalid = best_match(validator.iter_errors(document))
        if invalid is not None:
            place = ".".join(str(part) for part in invalid.path) or "the document"
            yield Finding("error", "bad-schema", where, f"Kubernetes {version}, {place}: {invalid.message}")


@cache
def _validator(version: str, kind: str, api_version: str) -> Any | None:
    """The strict validator of one kind in one release, or None where the release has no schema of it.

    `kubernetes_validate.validate` reads a megabyte of definitions for every document; a plan of the whole platform
    has hundreds of them.
    """
    from jsonschema import Draft202012Validator
    from kubernetes_validate.utils import schema_contents
    from referencing import Registry, Resource

    folder = _schema_folder(version)
    # rbac.authorization.k8s.io/v1 is in the file …-rbac-v1.json.
    group_version = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    try:
        schema = schema_contents(f"{folder}/{kind.lower()}-{group_version}.json", version)
    except FileNotFoundError:
        return None
    registry = Resource.from_contents(schema) @ (_definitions(folder, version) @ Registry())
    return Draft202012Validator(schema, registry=registry)


@cache
def _definitions(folder: str, version: str) -> Any:
    from kubernetes_validate.utils import schema_contents
    from referencing import Resource

    return Resource.from_contents(schema_contents(f"{folder}/_definitions.json", version))


@cache
def _schema_folder(version: str) -> str:
    """The package's folder of `version` ("1.30"), or of the newest release before it."""
    from kubernetes_validate.utils import all_versions, major_minor

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in major_minor(text).split("."))

    known = [found for found in all_versions() if number(found) <= number(version)]
    return f"kubernetes-json-schema/v{known[-1]}-local-strict"


def policy_findings(where: str, document: Manifest) -> Iterator[Finding]:
    """Breaches of the platform's rules in one document."""
    kind = document["kind"]
    if kind in WORKLOADS:
        yield from _pod_findings(where, document["spec"]["template"]["spec"])
    elif kind == "ConfigMap":
        for name in document.get("data", {}):
            if SECRET_NAME.search(name):
                yield _secret_value(where, name)
    elif kind == "Secret" and (document.get("data") or document.get("stringData")):
        fix = "let the external secret write it"
        yield Finding("error", "secret-value", where, "a secret's value would be in the file", fix)
    elif kind == "Ingress":
        yield from _ingress_findings(where, document)


def _secret_value(where: str, name: str) -> Finding:
    fix = "name the secret in `secrets` and write $(VARIABLE)"
    return Finding("error", "secret-value", where, f"{name} looks like a secret and has a plain value", fix)


def _pod_findings(where: str, pod: dict[str, Any]) -> Iterator[Finding]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 1) == 0:
        yield Finding("error", "root-user", where, "the pod may run as root", "set runAsNonRoot and a user above 0")
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield Finding("error", "no-seccomp", where, "no seccomp profile", "set seccompProfile to RuntimeDefault")
    for field in ("hostIPC", "hostNetwork", "hostPID"):
        if pod.get(field):
            yield Finding("error", "host-namespace", where, f"{field} breaks isolation", f"remove {field}")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        yield from _container_findings(f"{where}#{container['name']}", container, pod)


def _container_findings(where: str, container: dict[str, Any], pod: dict[str, Any]) -> Iterator[Finding]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        fix = "set allowPrivilegeEscalation and privileged to false"
        yield Finding("error", "privileged", where, "the container may gain privileges", fix)
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield Finding("error", "capabilities", where, "capabilities are kept", "drop ALL")
    if security.get("readOnlyRootFilesystem") is not True:
        fix = "set security.read_only_root and mount scratch volumes"
        yield Finding("warning", "writable-root", where, "the root file system is writable", fix)
    resources = container.get("resources", {})
    for part in ("requests", "limits"):
        for name in ("cpu", "memory"):
            if name not in resources.get(part, {}):
                yield Finding(
                    "error", "no-resources", where, f"no {name} in {part}", f"set resources.{name}_{part[:-1]}"
                )
    gpu = any(name.endswith("/gpu") for name in resources.get("limits", {}))
    if gpu and "runtimeClassName" not in pod:
        yield Finding("error", "gpu-runtime", where, "GPUs without a runtime class", "set runtimeClassName")
    _, _, tag = container["image"].rpartition("/")[2].partition(":")
    if "@sha256:" not in container["image"] and tag in {"", "latest"}:
        yield Finding(
            "error", "image-not-pinned", where, f"{container['image']} is not pinned", "name a tag or a digest"
        )
    if container.get("ports") and "readinessProbe" not in container:
        yield Finding(
            "error", "no-readiness", where, "it offers ports without a readiness probe", "set probes.readiness"
        )
    if "livenessProbe" not in container and "startupProbe" not in container:
        yield Finding("warning", "no-liveness", where, "a hanging process is not noticed", "set probes.liveness")
    for variable in container.get("env", []):
        if SECRET_NAME.search(variable["name"]) and "value" in variable and "$(" not in variable["value"]:
            yield _secret_value(where, variable["name"])


def _ingress_findings(where: str, document: Manifest) -> Iterator[Finding]:
    annotations = document["metadata"].get("annotations", {})
    part = annotations.get("nginx.org/mergeable-ingress-type")
    if part != "minion" and not document["spec"].get("tls"):
        yield Finding("error", "no-tls", where, "the host is served without TLS", "name a certificate in spec.tls")
    if part != "master" and "nginx.org/limit-req-rate" not in annotations:
        yield Finding("error", "no-rate-limit", where, "the route has no rate limit", "set ingress.rate_limit_rps")
