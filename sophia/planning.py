"""What would change, everywhere: the platform's kinds by their reconcilers, and the data path's by their own state."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.indexing.versions import active_versions, fingerprint
from sophia.settings import Settings

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class Planned:
    """One entry of the plan; `changes` is False when nothing is to do."""

    kind: str
    name: str
    changes: bool
    summary: str
    diff: str


def plan_everything(catalog: Catalog, settings: Settings, connection: Connection) -> list[Planned]:
    """Plan every entry of the catalog. Changes nothing."""
    return [
        *_platform(catalog, settings),
        *_collections(catalog, settings, connection),
        *_indexes(catalog, settings, connection),
    ]


def _platform(catalog: Catalog, settings: Settings) -> Iterator[Planned]:
    from sophia.platform import build_reconcilers
    from sophia.platform.systems import systems_of

    for kind, reconciler in build_reconcilers(catalog, systems_of(settings, os.environ)).items():
        for entry in reconciler.entries():
            plan = reconciler.plan(entry)
            summary = plan.summary().partition(": ")[2]
            yield Planned(kind, entry.name, not plan.empty, summary, plan.diff())


def _collections(catalog: Catalog, settings: Settings, connection: Connection) -> Iterator[Planned]:
    captured = {row[0] for row in connection.execute(sql.load("status")["captured"])}
    for collection in catalog.collections:
        source = collection.source.for_profile(settings.profile)
        if source is None:
            yield Planned("collections", collection.name, False, f"no source in profile {settings.profile!r}", "")
        elif collection.name in captured:
            yield Planned("collections", collection.name, False, "captured", "")
        else:
            yield Planned("collections", collection.name, True, f"to capture from {source}", "")


def _indexes(catalog: Catalog, settings: Settings, connection: Connection) -> Iterator[Planned]:
    versions = active_versions(connection)
    for index in catalog.indexes:
        store = index.store.for_profile(settings.profile)
        if store is None or catalog.collection(index.collection).source.for_profile(settings.profile) is None:
            yield Planned("indexes", index.name, False, f"no store in profile {settings.profile!r}", "")
            continue
        model = catalog.model(index.model)
        mark = fingerprint(index, model, store)
        known = [version for version in versions if version.index_name == index.name]
        if any(version.fingerprint == mark for version in known):
            yield Planned("indexes", index.name, False, f"built ({mark})", "")
            continue
        serving = next((version for version in known if version.state == "serving"), None)
        wanted = {"index": index.model_dump(mode="json"), "model": model.model_dump(mode="json")}
        if serving is None:
            yield Planned("indexes", index.name, True, "to build: version 1", "")
        else:
            yield Planned(
                "indexes",
                index.name,
                True,
                f"to build beside {serving.label}: {', '.join(_changed(serving.index, index)) or 'the model'} changed",
                _diff(serving.spec, wanted, index.name),
            )


def _changed(before: Index, after: Index) -> list[str]:
    return [name for name in type(after).model_fields if getattr(before, name) != getattr(after, name)]


def _diff(before: dict[str, Any], after: dict[str, Any], name: str) -> str:
    old, new = (json.dumps(value, indent=1, sort_keys=True).splitlines() for value in (before, after))
    return "\n".join(difflib.unified_diff(old, new, f"serving/{name}", f"catalog/{name}", lineterm=""))
