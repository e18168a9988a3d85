"""Images: Dockerfile and build definition from templates, compared with the engine by a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sophia.catalog.models import Catalog, Image
from sophia.platform import dockerfile
from sophia.platform.bake import DIGEST_LABEL, bake_definition, dockerfile_path
from sophia.platform.docker_engine import DockerCommand
from sophia.platform.exposure import exposures
from sophia.platform.image_references import ImageReferences
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.systems import PlatformSystems, SystemUnreachableError
from sophia.platform.text import TemplateMissingError, to_json


@dataclass(frozen=True)
class ImageReconciler:
    """Images of the catalog. An image from outside is rendered as the pin it is pulled by."""

    catalog: Catalog
    systems: PlatformSystems
    references: ImageReferences
    kind: str = "images"

    def entries(self) -> tuple[Image, ...]:
        """External images first, then ours, each after its base."""
        external = tuple(image for image in self.catalog.images if image.external)
        return external + self.catalog.image_build_order()

    def render(self, entry: Image) -> Rendered:
        """Dockerfile and bake definition, or the pin; raises TemplateMissingError."""
        if entry.external:
            pin = {"image": entry.name, "reference": entry.reference, "platforms": list(entry.platforms)}
            return Rendered({f"images/{entry.name}/pin.json": to_json(pin)})
        return Rendered(
            {
                dockerfile_path(entry): self.references.dockerfile(entry),
                f"images/{entry.name}/docker-bake.json": to_json(bake_definition((entry,), self.references)),
            }
        )

    def observe(self, entry: Image) -> Observed:
        """The local engine's image of the same name; equal when it was built from the same content."""
        engine = self.systems.engine
        if engine is None and self.systems.docker_host is not None:
            engine = DockerCommand(self.systems.docker_host)
        if engine is None:
            return Observed.unknown("no Docker engine is configured (set SOPHIA_DOCKER_HOST)")
        reference = self.references.reference(entry.name)
        try:
            labels = engine.image_labels(reference)
        except SystemUnreachableError as unreachable:
            return Observed.unknown(str(unreachable))
        if labels is None:
            return Observed("absent", f"{reference} is not on the engine")
        built_from = labels.get(DIGEST_LABEL, "")
        attributes = {DIGEST_LABEL: built_from, "reference": reference}
        # The pin of an external image is part of its reference: finding the reference is finding the content.
        if entry.external or built_from == self.references.content_digest(entry):
            return Observed(
                "present", f"{reference} is up to date", files=self.render(entry).files, attributes=attributes
            )
        reason = f"{reference} was built from other content"
        return Observed("present", reason, digest=built_from or "unlabelled", attributes=attributes)

    def plan(self, entry: Image) -> Plan:
        """What a build would have to do."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Image) -> tuple[Finding, ...]:
        """Dockerfile rules, platforms and exposures."""
        return tuple(self._findings(entry))

    def _findings(self, entry: Image) -> Iterator[Finding]:
        try:
            rendered = self.render(entry)
        except TemplateMissingError as missing:
            yield Finding("error", "template-missing", f"images/{entry.name}", str(missing))
            return
        yield from exposures(rendered)
        if entry.external:
            return
        path = dockerfile_path(entry)
        text = rendered.files[path]
        known = frozenset(self.references.local(image) for image in self.catalog.images if image.name != entry.name)
        yield from dockerfile.check(path, text, entry, known)
        yield from dockerfile.hadolint(path, text)
        base = self.catalog.image(entry.base or "")
        for platform in sorted(set(entry.platforms) - set(base.platforms)):
            message = f"is built for {platform}, its base {base.name} is not"
            yield Finding("error", "platform-missing", path, message, f"add {platform} to {base.name}")
