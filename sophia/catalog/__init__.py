"""What the platform should be: YAML in `deploy/catalog`, one file a kind, as frozen models.

`load` either returns a catalog in which every name leads somewhere, or raises with every problem.
"""

from sophia.catalog.errors import CatalogError, Problem
from sophia.catalog.loader import default_path, load
from sophia.catalog.models import (
    Catalog,
    Cluster,
    Collection,
    EmbeddingModel,
    Entry,
    Frontend,
    Image,
    Index,
    Node,
    PerProfile,
    Profile,
    Retention,
    Route,
    Secret,
    Service,
    Source,
    UnknownEntryError,
    Workflow,
)

__all__ = [
    "Catalog",
    "CatalogError",
    "Cluster",
    "Collection",
    "EmbeddingModel",
    "Entry",
    "Frontend",
    "Image",
    "Index",
    "Node",
    "PerProfile",
    "Problem",
    "Profile",
    "Retention",
    "Route",
    "Secret",
    "Service",
    "Source",
    "UnknownEntryError",
    "Workflow",
    "default_path",
    "load",
]
