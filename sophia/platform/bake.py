"""Build definitions for `docker buildx bake`: both platforms, shared cache, attestations, push by digest.

Nothing is tagged by the build. A tag is attached to the digest after the scan, so that no reader of tags can meet
an image that has not been scanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sophia.catalog.models import Image
from sophia.platform.image_references import ImageReferences

DIGEST_LABEL = "sophia.dev/digest"


def dockerfile_path(image: Image) -> str:
    """Where the rendered Dockerfile lies."""
    return f"images/{image.name}/Dockerfile"


def bake_definition(images: Sequence[Image], references: ImageReferences) -> dict[str, Any]:
    """One definition for `images`; a base among them is linked as a target, any other is pulled."""
    names = {image.name for image in images}
    return {
        "group": {"default": {"targets": [image.name for image in images]}},
        "target": {image.name: _target(image, names, references) for image in images},
    }


def _target(image: Image, names: set[str], references: ImageReferences) -> dict[str, Any]:
    repository = f"{references.registry}/{image.name}"
    attestations = ["type=provenance,mode=max"]
    if image.scan.sbom:
        attestations.append("type=sbom")
    target: dict[str, Any] = {
        "args": dict(image.build_args),
        "attest": attestations,
        "cache-from": [f"type=registry,ref={repository}:build-cache"],
        "cache-to": [f"type=registry,ref={repository}:build-cache,mode=max,image-manifest=true"],
        "context": ".",
        "dockerfile": dockerfile_path(image),
        "labels": {
            DIGEST_LABEL: references.content_digest(image),
            "org.opencontainers.image.description": image.description,
            "org.opencontainers.image.title": image.name,
        },
        "output": [f"type=image,name={repository},push=true,push-by-digest=true,name-canonical=true"],
        "platforms": list(image.platforms),
    }
    base = references.catalog.image(image.base or "")
    if not base.external:
        source = f"target:{base.name}" if base.name in names else f"docker-image://{references.reference(base.name)}"
        target["contexts"] = {references.local(base): source}
    return target
