"""Estuary's control plane, as the settings name it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from sophia.settings import load_settings

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from sophia.catalog import Catalog
    from sophia.estuary.catalog.plan import CatalogPlan
    from sophia.estuary.control.observation import Look
    from sophia.settings import Profile


class EstuaryResource(dg.ConfigurableResource):
    """Looks at Estuary; a connection is opened for each look and ends with it."""

    def look(
        self,
        connection: psycopg.Connection[TupleRow],
        catalog: Catalog,
        profile: Profile,
        *,
        remember: bool = False,
    ) -> Look:
        """What Estuary says of the collections that it feeds, beside what Sophia's database has of them.

        `remember`: whether the next look compares with this one.

        Raises:
            ConfigurationError: no token is set, or Estuary refuses; the message says what to change.
            TemporaryError: Estuary is away.
        """
        from sophia.estuary.control.client import ControlPlane
        from sophia.estuary.control.observation import look

        settings = load_settings().estuary
        with ControlPlane(settings) as client:
            return look(client, connection, catalog, profile, settings, datetime.now(UTC), remember=remember)

    def drift(self, catalog: Catalog) -> CatalogPlan:
        """The way from what is published at Estuary to what the catalog renders; nothing is changed.

        Raises:
            CatalogError: the rendered tree breaks a rule of Estuary's.
            ConfigurationError, TemporaryError: as `look`.
        """
        from sophia.estuary.control.client import ControlPlane
        from sophia.estuary.control.drift import catalog_drift
        from sophia.estuary.control.observation import observed_environment, observed_prefix

        settings = load_settings()
        environment = observed_environment(catalog, observed_prefix(catalog, settings.estuary))
        with ControlPlane(settings.estuary) as client:
            return catalog_drift(client, catalog, environment, settings, os.environ)
