"""Images that stand for one image a service become those images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sophia.catalog.models import Image, Service


def service_image_name(image: str, service: str) -> str:
    """The name of the image that `service` gets from the per-service image `image`."""
    return f"{image}-{service.replace('_', '-')}"


def expand_images(
    images: Iterable[Image], services: Sequence[Service]
) -> tuple[tuple[Image, ...], tuple[Service, ...]]:
    """Images and services in which each per-service image is replaced by one for each of its services."""
    images = tuple(images)
    templates = {image.name: image for image in images if image.per_service}
    expanded: list[Image] = [image for image in images if not image.per_service]
    pointed: list[Service] = []
    for service in services:
        template = templates.get(service.image)
        if template is None:
            pointed.append(service)
            continue
        name = service_image_name(template.name, service.name)
        expanded.append(
            template.model_copy(
                update={
                    "name": name,
                    "description": f"Image of {service.name}: {service.description}",
                    "owners": service.owners,
                    "per_service": False,
                    "build_args": {**template.build_args, "SERVICE": service.name},
                }
            )
        )
        pointed.append(service.model_copy(update={"image": name}))
    return tuple(expanded), tuple(pointed)
