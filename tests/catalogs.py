"""Catalogs that differ from the checkout's in some entries."""

from __future__ import annotations

from typing import Any

from sophia.catalog import Catalog


def changed(catalog: Catalog, **kinds: tuple[Any, ...]) -> Catalog:
    """The catalog with other entries of some kinds. Built anew: a copy would keep the look-ups of the old entries."""
    return Catalog(**{name: getattr(catalog, name) for name in Catalog.model_fields} | kinds)


def replaced(entries: tuple[Any, ...], entry: Any, **fields: Any) -> tuple[Any, ...]:
    """The entries with some fields of one of them changed."""
    return tuple(other.model_copy(update=fields) if other is entry else other for other in entries)
