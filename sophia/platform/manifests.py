"""What all Kubernetes manifests share: names, labels, the digest by which they are recognised, their paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sophia.catalog.models import Secret, Service
from sophia.platform.reconcile import Rendered, files_digest
from sophia.platform.text import to_yaml

Manifest = dict[str, Any]

NAME = "app.kubernetes.io/name"
PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "app.kubernetes.io/managed-by"
NAMESPACE_NAME = "kubernetes.io/metadata.name"
DIGEST = "sophia.dev/digest"
VERSION = "sophia.dev/version"
PLATFORM = "sophia"


def selector(service: Service) -> dict[str, str]:
    """Labels that pick all pods of a service, of every version."""
    return {NAME: service.resource_name}


def labels(service: Service) -> dict[str, str]:
    """Labels of everything that belongs to a service."""
    return {
        NAME: service.resource_name,
        "app.kubernetes.io/component": service.category.replace("_", "-"),
        MANAGED_BY: PLATFORM,
        PART_OF: PLATFORM,
    }


def platform_labels(name: str) -> dict[str, str]:
    """Labels of objects that belong to the cluster rather than to one service."""
    return {NAME: name, MANAGED_BY: PLATFORM, PART_OF: PLATFORM}


def manifest(
    api_version: str,
    kind: str,
    name: str,
    *,
    namespace: str | None = None,
    object_labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
    **content: Any,
) -> Manifest:
    """One object; `content` is what stands beside the metadata."""
    metadata: dict[str, Any] = {"name": name, "labels": dict(object_labels)}
    if namespace is not None:
        metadata["namespace"] = namespace
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def stamped(document: Manifest) -> Manifest:
    """The manifest with its own digest as an annotation, so that a reader of the cluster can compare."""
    metadata = document["metadata"]
    annotations = {**metadata.get("annotations", {}), DIGEST: files_digest({"manifest": to_yaml(document)})}
    return {**document, "metadata": {**metadata, "annotations": annotations}}


def object_path(folder: str, document: Manifest, plain_name: str) -> str:
    """`folder/kind.yaml`, with the object's name when it is not the entry's own."""
    kind, name = document["kind"].lower(), document["metadata"]["name"]
    return f"{folder}/{kind}.yaml" if name == plain_name else f"{folder}/{kind}-{name}.yaml"


def render_objects(folder: str, documents: Iterable[Manifest], plain_name: str) -> Rendered:
    """One file an object, each with its digest."""
    return Rendered({object_path(folder, item, plain_name): to_yaml(stamped(item)) for item in documents})


def secret_object_name(secret: Secret) -> str:
    """Name of the Kubernetes secret that holds it; its key is the variable's name."""
    return secret.name.replace("_", "-")
