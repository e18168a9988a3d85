"""Under which reference each image is built, pulled and run.

An external image keeps the pinned reference of the catalog. Ours get a content tag: a hash of the Dockerfile, the
build arguments and, through its FROM line, of everything below. Equal inputs give an equal tag, so that an
unchanged image is known without building it, and a changed base changes everything built on it. Once pushed, an
image goes by its digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sophia.catalog.models import Catalog, Image
from sophia.platform.reconcile import files_digest
from sophia.platform.text import render_template

UV_VERSION = "0.9.7"
"""The installer that all our images share."""

TAG_LENGTH = 16


@dataclass(frozen=True)
class ImageReferences:
    """References of the catalog's images in one registry."""

    catalog: Catalog
    registry: str
    digests: Mapping[str, str] = field(default_factory=dict)
    _dockerfiles: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def dockerfile(self, image: Image) -> str:
        """Text of the Dockerfile; raises TemplateMissingError, UnknownEntryError, ValueError for an external image."""
        if image.dockerfile is None or image.base is None:
            raise ValueError(f'image "{image.name}" comes from outside and has no Dockerfile')
        if image.name not in self._dockerfiles:
            self._dockerfiles[image.name] = render_template(
                f"docker/{image.dockerfile}.Dockerfile.j2",
                image=image,
                base=self.local(self.catalog.image(image.base)),
                uv_version=UV_VERSION,
            )
        return self._dockerfiles[image.name]

    def content_digest(self, image: Image) -> str:
        """SHA-256 (hex) of what the image is built from."""
        if image.reference is not None:
            return files_digest({"reference": image.reference})
        arguments = "".join(f"{key}={value}\n" for key, value in sorted(image.build_args.items()))
        platforms = " ".join(image.platforms)
        return files_digest({"Dockerfile": self.dockerfile(image), "arguments": arguments, "platforms": platforms})

    def local(self, image: Image) -> str:
        """Reference without registry, as FROM lines name it."""
        return image.reference or f"{image.name}:{self.content_digest(image)[:TAG_LENGTH]}"

    def reference(self, name: str) -> str:
        """Reference to pull: by digest once pushed, else by content tag. Raises UnknownEntryError."""
        image = self.catalog.image(name)
        if image.reference is not None:
            return image.reference
        if name in self.digests:
            return f"{self.registry}/{name}@{self.digests[name]}"
        return f"{self.registry}/{self.local(image)}"
