"""Where changes come from. PostgreSQL by logical replication; one capture process a source."""

from __future__ import annotations

from sophia.capture.postgres import Binding, Capture, CaptureSource
from sophia.catalog import Catalog
from sophia.database.connect import Database
from sophia.errors import ConfigurationError
from sophia.settings import Settings

__all__ = ["Binding", "Capture", "CaptureSource", "postgres_sources"]


def postgres_sources(catalog: Catalog, settings: Settings, database: Database) -> list[CaptureSource]:
    """The PostgreSQL sources of this profile that have collections to capture.

    Raises:
        ConfigurationError: a source's URL variable is not set.
    """
    sources = []
    for source in catalog.sources:
        bindings = tuple(
            Binding(collection.table, collection.name, collection.key)
            for collection in catalog.collections
            if collection.source.for_profile(settings.profile) == source.name and collection.table is not None
        )
        if source.kind != "postgres" or not bindings:
            continue
        url: str | None = database.url
        if source.url_env is not None:
            url = settings.secret(source.url_env)
            if url is None:
                raise ConfigurationError(f"source {source.name!r}: {source.url_env} is not set")
        assert url is not None  # noqa: S101
        sources.append(CaptureSource(source.name, url, source.publication, source.slot, bindings))
    return sources
