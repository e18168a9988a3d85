"""The real catalog, loaded once, and reconcilers in plan mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sophia.catalog import load
from sophia.catalog.models import Catalog
from sophia.platform import PlatformSystems, Reconciler, build_reconcilers

Reconcilers = dict[str, Reconciler[Any]]


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load()


@pytest.fixture(scope="session")
def reconcilers(catalog: Catalog) -> Reconcilers:
    return build_reconcilers(catalog)


@pytest.fixture
def replaced(catalog: Catalog) -> Callable[..., Catalog]:
    """The catalog with one entry of a kind changed: `replaced("services", "redis", image="n8n")`."""

    def replace(kind: str, name: str, **update: Any) -> Catalog:
        entries = tuple(
            entry.model_copy(update=update) if entry.name == name else entry for entry in getattr(catalog, kind)
        )
        assert entries != getattr(catalog, kind), f"{kind} has no {name}, or nothing changed"
        fields = {field: getattr(catalog, field) for field in Catalog.model_fields}
        return Catalog.model_construct(**{**fields, kind: entries})

    return replace


@pytest.fixture
def rules() -> Callable[..., set[str]]:
    """Rules that an entry breaks as errors or warnings."""

    def broken(catalog: Catalog, kind: str, name: str) -> set[str]:
        reconciler = build_reconcilers(catalog, PlatformSystems())[kind]
        entry = next(entry for entry in reconciler.entries() if entry.name == name)
        return {finding.rule for finding in reconciler.verify(entry) if finding.severity != "info"}

    return broken
