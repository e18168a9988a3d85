"""Which file holds which kinds, and which model each entry is parsed with."""

from __future__ import annotations

from dataclasses import dataclass

from sophia.catalog.models import (
    Cluster,
    Collection,
    EmbeddingModel,
    Estuary,
    EstuaryCapture,
    Frontend,
    Frozen,
    Image,
    Index,
    Node,
    Retention,
    Route,
    Secret,
    Service,
    Source,
    Workflow,
)


@dataclass(frozen=True, slots=True)
class Section:
    """A top-level key of a catalog file, which is also the field of `Catalog` that it fills."""

    key: str
    kind: str
    model: type[Frozen]
    many: bool = True
    defaults: bool = False


SERVICES = Section("services", "service", Service, defaults=True)

FILES: dict[str, tuple[Section, ...]] = {
    "nodes.yaml": (
        Section("cluster", "cluster", Cluster, many=False),
        Section("nodes", "node", Node),
        Section("routes", "route", Route),
    ),
    "images.yaml": (Section("images", "image", Image),),
    "services.yaml": (SERVICES,),
    "mcp_servers.yaml": (SERVICES,),
    "sources.yaml": (Section("sources", "source", Source),),
    "estuary.yaml": (
        Section("estuary", "estuary", Estuary, many=False),
        Section("captures", "capture", EstuaryCapture),
    ),
    "collections.yaml": (
        Section("retention", "retention", Retention, many=False),
        Section("collections", "collection", Collection),
    ),
    "models.yaml": (Section("models", "model", EmbeddingModel),),
    "indexes.yaml": (Section("indexes", "index", Index),),
    "secrets.yaml": (Section("secrets", "secret", Secret),),
    "workflows.yaml": (Section("workflows", "workflow", Workflow),),
    "frontends.yaml": (Section("frontends", "frontend", Frontend),),
}

DEFAULTS_KEY = "defaults"
"""In files whose section allows it: fields that every entry of the file has unless it gives its own."""
