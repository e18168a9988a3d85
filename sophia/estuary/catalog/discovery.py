"""Asks the source databases behind Estuary for the tables of its collections, as far as they can be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg

from sophia.catalog.models import Catalog
from sophia.estuary.catalog.columns import TableInfo, discovered_table
from sophia.estuary.naming import estuary_sources, fed_collections
from sophia.settings import Settings

CONNECT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Discovered:
    """Tables by collection, and a sentence for each collection whose table was not asked for."""

    tables: Mapping[str, TableInfo] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def discover(catalog: Catalog, settings: Settings) -> Discovered:
    """The tables of the collections that Estuary feeds from a PostgreSQL whose DSN is set here.

    Raises:
        SourceError: a reachable database does not have the table, or its key cannot be used.
    """
    postgres = {
        binding.collection
        for capture in catalog.captures
        for binding in capture.bindings
        if capture.connector == "source-postgres"
    }
    tables: dict[str, TableInfo] = {}
    notes = []
    for collection in fed_collections(catalog):
        if collection.name not in postgres or collection.table is None:
            continue
        variable = next((catalog.source(name).url_env for name in estuary_sources(catalog, collection)), None)
        url = settings.secret(variable) if variable else None
        if url is None:
            wanted = f"set {variable} to" if variable else "give its source a url_env to"
            notes.append(f"{collection.name}: columns are the catalog's; {wanted} ask the source")
            continue
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
                tables[collection.name] = discovered_table(connection, collection)
        except psycopg.OperationalError:
            notes.append(f"{collection.name}: columns are the catalog's; the source at {variable} is away")
    return Discovered(tables, tuple(notes))
