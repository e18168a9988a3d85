"""The whole catalog: entries by kind, look-ups by name, and what follows from the references."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

from pydantic import Field

from sophia.catalog.models.base import Entry, Frozen
from sophia.catalog.models.cluster import Cluster, Node, Route
from sophia.catalog.models.data import Collection, EmbeddingModel, Index, Retention, Source
from sophia.catalog.models.estuary import Estuary, EstuaryCapture
from sophia.catalog.models.images import Image
from sophia.catalog.models.operations import Frontend, Secret, Workflow
from sophia.catalog.models.services import Service
from sophia.errors import SophiaError

EntryT = TypeVar("EntryT", bound=Entry)


class UnknownEntryError(SophiaError, LookupError):
    """The catalog has no entry of that kind and name."""


class Catalog(Frozen):
    """What the platform should be. References between entries are whole when it came from `load`."""

    cluster: Cluster = Field(default_factory=Cluster, description="Settings of the whole cluster.")
    retention: Retention = Field(default_factory=Retention, description="How long our records live.")
    nodes: tuple[Node, ...] = Field(default=(), description="Machines of the GPU cloud.")
    routes: tuple[Route, ...] = Field(default=(), description="Where classes of work run.")
    images: tuple[Image, ...] = Field(default=(), description="Container images.")
    services: tuple[Service, ...] = Field(default=(), description="Everything that runs as pods.")
    estuary: Estuary = Field(default_factory=Estuary, description="What Estuary runs, beside its captures.")
    captures: tuple[EstuaryCapture, ...] = Field(default=(), description="Estuary's captures.")
    sources: tuple[Source, ...] = Field(default=(), description="Systems that changes come from.")
    collections: tuple[Collection, ...] = Field(default=(), description="Documents by key.")
    models: tuple[EmbeddingModel, ...] = Field(default=(), description="Embedding models.")
    indexes: tuple[Index, ...] = Field(default=(), description="Searchable vectors of collections.")
    secrets: tuple[Secret, ...] = Field(default=(), description="Secrets by name.")
    workflows: tuple[Workflow, ...] = Field(default=(), description="n8n workflows.")
    frontends: tuple[Frontend, ...] = Field(default=(), description="Vercel projects.")

    def node(self, name: str) -> Node:
        """The node of that name; raises UnknownEntryError."""
        return _find(self._nodes, "node", name)

    def route(self, name: str) -> Route:
        """The routing rule of that name; raises UnknownEntryError."""
        return _find(self._routes, "route", name)

    def image(self, name: str) -> Image:
        """The image of that name; raises UnknownEntryError."""
        return _find(self._images, "image", name)

    def service(self, name: str) -> Service:
        """The service of that name; raises UnknownEntryError."""
        return _find(self._services, "service", name)

    def source(self, name: str) -> Source:
        """The source of that name; raises UnknownEntryError."""
        return _find(self._sources, "source", name)

    def collection(self, name: str) -> Collection:
        """The collection of that name; raises UnknownEntryError."""
        return _find(self._collections, "collection", name)

    def model(self, name: str) -> EmbeddingModel:
        """The embedding model of that name; raises UnknownEntryError."""
        return _find(self._models, "model", name)

    def index(self, name: str) -> Index:
        """The index of that name; raises UnknownEntryError."""
        return _find(self._indexes, "index", name)

    def secret(self, name: str) -> Secret:
        """The secret of that name; raises UnknownEntryError."""
        return _find(self._secrets, "secret", name)

    def workflow(self, name: str) -> Workflow:
        """The workflow of that name; raises UnknownEntryError."""
        return _find(self._workflows, "workflow", name)

    def frontend(self, name: str) -> Frontend:
        """The frontend of that name; raises UnknownEntryError."""
        return _find(self._frontends, "frontend", name)

    @property
    def mcp_servers(self) -> tuple[Service, ...]:
        """The services that are MCP servers."""
        return tuple(service for service in self.services if service.category == "mcp")

    def indexes_of(self, collection: str) -> tuple[Index, ...]:
        """The indexes that the collection feeds."""
        return tuple(index for index in self.indexes if index.collection == collection)

    def callers_of(self, service: str) -> tuple[Service, ...]:
        """The services that may open connections to `service`: the flows that its policy permits.

        A caller names the service, is named by it, scrapes its metrics, or is the edge in front of
        its public routes. Raises UnknownEntryError.
        """
        called = self.service(service)
        return tuple(caller for caller in self.services if caller is not called and _calls(caller, called))

    def callees_of(self, service: str) -> tuple[Service, ...]:
        """The services that `service` may open connections to; the reverse of `callers_of`."""
        caller = self.service(service)
        return tuple(called for called in self.services if called is not caller and _calls(caller, called))

    def consumers_of(self, secret: str) -> tuple[Entry, ...]:
        """The services, workflows, frontends and captures of Estuary that get the secret."""
        holders: tuple[Service | Workflow | Frontend | EstuaryCapture, ...] = (
            *self.services,
            *self.workflows,
            *self.frontends,
            *self.captures,
        )
        return tuple(holder for holder in holders if secret in holder.secrets)

    def image_build_order(self) -> tuple[Image, ...]:
        """Our images, each after the one that it is built on; external ones are left out."""
        ordered: dict[str, Image] = {}

        def add(image: Image) -> None:
            if image.name in ordered or image.external:
                return
            if image.base is not None:
                add(self.image(image.base))
            ordered[image.name] = image

        for image in self.images:
            add(image)
        return tuple(ordered.values())

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of every catalog file, under its name; see `sophia.catalog.schema`."""
        from sophia.catalog.schema import catalog_schema

        return catalog_schema()

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return _by_name(self.nodes)

    @cached_property
    def _routes(self) -> dict[str, Route]:
        return _by_name(self.routes)

    @cached_property
    def _images(self) -> dict[str, Image]:
        return _by_name(self.images)

    @cached_property
    def _services(self) -> dict[str, Service]:
        return _by_name(self.services)

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return _by_name(self.sources)

    @cached_property
    def _collections(self) -> dict[str, Collection]:
        return _by_name(self.collections)

    @cached_property
    def _models(self) -> dict[str, EmbeddingModel]:
        return _by_name(self.models)

    @cached_property
    def _indexes(self) -> dict[str, Index]:
        return _by_name(self.indexes)

    @cached_property
    def _secrets(self) -> dict[str, Secret]:
        return _by_name(self.secrets)

    @cached_property
    def _workflows(self) -> dict[str, Workflow]:
        return _by_name(self.workflows)

    @cached_property
    def _frontends(self) -> dict[str, Frontend]:
        return _by_name(self.frontends)


def _calls(caller: Service, called: Service) -> bool:
    return (
        called.name in caller.depends_on
        or called.name in caller.calls
        or caller.name in called.callers
        or "*" in called.callers
        or (caller.scrapes and called.metrics is not None)
        or (caller.category == "edge" and bool(called.ingress))
    )


def _by_name(entries: Iterable[EntryT]) -> dict[str, EntryT]:
    return {entry.name: entry for entry in entries}


def _find(entries: dict[str, EntryT], kind: str, name: str) -> EntryT:
    try:
        return entries[name]
    except KeyError:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise UnknownEntryError(f'{kind} "{name}" is not in the catalog{hint}') from None
