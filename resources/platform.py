"""The reconcilers of the platform's kinds, looking at whatever outside systems the settings name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import dagster as dg

from sophia.settings import load_settings

if TYPE_CHECKING:
    from sophia.catalog import Catalog
    from sophia.platform import Reconciler


class PlatformResource(dg.ConfigurableResource):
    """Builds reconcilers. Without any system configured everything is planned against nothing known."""

    def reconcilers(self, catalog: Catalog) -> dict[str, Reconciler[Any]]:
        """Reconcilers by kind."""
        from sophia.platform import build_reconcilers
        from sophia.platform.systems import systems_of

        return build_reconcilers(catalog, systems_of(load_settings(), os.environ))
