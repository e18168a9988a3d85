"""Whether what Estuary runs is what the catalog renders, asked of the control plane; changes nothing.

`sophia estuary plan` compares the same by flowctl. Here nothing needs to be installed or filled in: where a rendered
definition refers to a variable that is not set in this process, the published value is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from sophia.catalog.models import Catalog, Environment
from sophia.errors import TemporaryError
from sophia.estuary.catalog.discovery import discover
from sophia.estuary.catalog.plan import CatalogPlan, compare
from sophia.estuary.catalog.publish import rendered_models
from sophia.estuary.catalog.references import as_published
from sophia.estuary.control.client import ControlPlane
from sophia.estuary.control.observation import other_prefixes
from sophia.estuary.naming import prefix_of
from sophia.settings import Settings


def catalog_drift(
    client: ControlPlane, catalog: Catalog, environment: Environment, settings: Settings, environ: Mapping[str, str]
) -> CatalogPlan:
    """The plan from what is published below the environment's prefix to what is rendered.

    Raises:
        CatalogError: the rendered tree breaks a rule of Estuary's.
        SourceError: a source database that can be reached lacks a table.
        TemporaryError, ConfigurationError: see `ControlPlane`; also if more is published than is read.
    """
    prefix = prefix_of(catalog, environment)
    models, whole = client.published(prefix)
    if not whole:
        raise TemporaryError(f"Estuary has too many definitions below {prefix} to compare all of them")
    others = other_prefixes(catalog, prefix)
    live = {key: model for key, model in models.items() if not key[1].startswith(others)}
    return compare(
        as_published(rendered_models(catalog, environment, discover(catalog, settings).tables), live, environ), live
    )
