"""Names in Estuary's catalog: those of the catalog's entries in one environment; and which entries are of Estuary.

`Collection.estuary` is the name in production. Another environment has the same tree below its own prefix, so two
environments never share a collection or a task.
"""

from __future__ import annotations

from sophia.catalog.models import Catalog, Collection, Environment, EstuaryCapture
from sophia.catalog.models.base import Profile


def prefix_of(catalog: Catalog, environment: Environment) -> str:
    """The environment's prefix, ending in a slash as Estuary's own prefixes do."""
    return f"{catalog.estuary.prefixes.of(environment)}/"


def collection_name(catalog: Catalog, collection: Collection, environment: Environment) -> str:
    """The collection's full name in Estuary, such as `sophia/staging/conversations`."""
    rest = collection.estuary.removeprefix(prefix_of(catalog, "production"))
    return f"{prefix_of(catalog, environment)}{rest}"


def task_name(catalog: Catalog, name: str, environment: Environment) -> str:
    """The full name of a capture, materialisation or test."""
    return f"{prefix_of(catalog, environment)}{name}"


def capture_name(catalog: Catalog, capture: EstuaryCapture, environment: Environment) -> str:
    """The full name of a capture, such as `sophia/app/source-postgres`."""
    return task_name(catalog, f"{capture.name.replace('_', '-')}/{capture.variant or capture.connector}", environment)


def fed_collections(catalog: Catalog) -> tuple[Collection, ...]:
    """The collections whose documents come from Estuary in some profile."""
    return tuple(collection for collection in catalog.collections if estuary_sources(catalog, collection))


def fed_by_estuary(catalog: Catalog, profile: Profile) -> list[Collection]:
    """The collections that a source of kind estuary feeds in this profile."""
    return [
        collection
        for collection in catalog.collections
        if (name := collection.source.for_profile(profile)) and catalog.source(name).kind == "estuary"
    ]


def estuary_sources(catalog: Catalog, collection: Collection) -> tuple[str, ...]:
    """The sources of kind estuary that the collection names, each once."""
    names = dict.fromkeys(name for name in (collection.source.local, collection.source.cluster) if name is not None)
    return tuple(name for name in names if catalog.source(name).kind == "estuary")
