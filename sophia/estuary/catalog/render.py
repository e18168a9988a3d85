"""Estuary's catalog from ours: the tree of flow.yaml files of one environment.

Rendering is pure: the same catalog and the same tables give the same bytes. No file holds an address, a user or a
secret; `${NAME}` stands for the variable NAME, and `sophia estuary apply` fills it in on the way to flowctl. A capture
that nothing of us reads is published disabled, so it costs nothing until somebody does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sophia.catalog.models import (
    Catalog,
    Collection,
    Environment,
    EstuaryBinding,
    EstuaryCapture,
    EstuaryStaging,
    EstuaryWebhook,
)
from sophia.estuary.catalog.columns import TableInfo, declared_table
from sophia.estuary.catalog.samples import catalog_test
from sophia.estuary.catalog.schemas import Schema, postgres_schema, pushed_schema, schema_of
from sophia.estuary.naming import capture_name, collection_name, fed_collections, task_name
from sophia.platform.text import to_yaml

IMAGES = {
    "source-postgres": "v3",
    "source-snowflake": "v1",
    "materialize-webhook": "v1",
    "materialize-postgres": "v5",
}
REGISTRY = "ghcr.io/estuary"
ROOT = "flow.yaml"
HEADER = """\
# Rendered by `sophia estuary render` from Sophia's catalog: change that, not this file.
# ${NAME} stands for the variable NAME; `sophia estuary apply` fills it in, and nowhere is the result kept.
"""
# What the intake answers to, below its base URL.
DOCUMENTS_PATH = "estuary/"
EVENTS_PATH = "estuary-events"
# Only variables that every version of Estuary has; the run's id has two names, and an unknown one is refused.
PAYLOAD = (
    '{"materialization":"{{materialization_name}}",'
    '"collections":[{{#each collection_names}}"{{this}}"{{#unless @last}},{{/unless}}{{/each}}],'
    '"publishedAtMin":"{{flow_published_at_min}}","publishedAtMax":"{{flow_published_at_max}}"}'
)


@dataclass(frozen=True, slots=True)
class _Captured:
    """A collection with the capture that writes it, as far as one does."""

    collection: Collection
    table: TableInfo
    capture: EstuaryCapture | None = None
    binding: EstuaryBinding | None = None

    @property
    def qualified(self) -> str | None:
        """`schema.name` at the capture; in Snowflake in capitals, as it keeps names that were not quoted."""
        name = (self.binding.table if self.binding else None) or self.collection.table
        return name.upper() if name and self.capture and self.capture.connector == "source-snowflake" else name

    @property
    def key(self) -> tuple[str, ...]:
        """The key as the documents have it."""
        upper = self.capture is not None and self.capture.connector == "source-snowflake"
        return tuple(name.upper() if upper else name for name in self.table.key)


def reference(variable: str) -> str:
    """What stands in a file for a variable's value."""
    return f"${{{variable}}}"


def render_tree(
    catalog: Catalog, environment: Environment, tables: Mapping[str, TableInfo] | None = None
) -> dict[str, str]:
    """Relative path to text of every file of one environment, the root `flow.yaml` among them.

    `tables` has the tables that were read from a source database, by the collection's name; the others are as the
    catalog declares them. Raises UnknownEntryError for a secret that the catalog lacks.
    """
    entries = _entries(catalog, tables or {})
    read = _read_collections(catalog)
    parts: dict[str, dict[str, Any]] = {
        "captures.flow.yaml": {"captures": _captures(catalog, environment, entries, read)},
        "materializations.flow.yaml": {"materializations": _materializations(catalog, environment)},
        "tests.flow.yaml": {"tests": _tests(catalog, environment, entries)},
    }
    for entry in entries:
        name = collection_name(catalog, entry.collection, environment)
        path = f"collections/{entry.collection.name}.flow.yaml"
        parts[path] = {"collections": {name: _collection(entry)}}
    files = {path: f"{HEADER}{to_yaml(part)}" for path, part in sorted(parts.items()) if any(part.values())}
    return {ROOT: f"{HEADER}{to_yaml({'import': sorted(files)})}", **files}


def _entries(catalog: Catalog, tables: Mapping[str, TableInfo]) -> list[_Captured]:
    """Every collection of the tree: those that a capture writes, and those that we read."""
    bound = {binding.collection: (capture, binding) for capture in catalog.captures for binding in capture.bindings}
    wanted = {*bound, *_read_collections(catalog)}
    return [
        _Captured(
            collection,
            tables.get(collection.name) or declared_table(catalog, collection),
            *bound.get(collection.name, (None, None)),
        )
        for collection in catalog.collections
        if collection.name in wanted
    ]


def _read_collections(catalog: Catalog) -> set[str]:
    staging = catalog.estuary.staging
    return {collection.name for collection in fed_collections(catalog)} | set(staging.collections if staging else ())


def _captures(catalog: Catalog, environment: Environment, entries: list[_Captured], read: set[str]) -> dict[str, Any]:
    rendered: dict[str, Any] = {}
    for capture in catalog.captures:
        mine = [entry for entry in entries if entry.capture is capture]
        model: dict[str, Any] = {
            "endpoint": {"connector": {"image": _image(capture), "config": _capture_config(catalog, capture)}},
            "bindings": [
                {
                    "resource": _capture_resource(entry),
                    "target": collection_name(catalog, entry.collection, environment),
                }
                for entry in mine
            ],
        }
        if capture.connector == "source-snowflake":
            model["interval"] = capture.interval
        if not read & {entry.collection.name for entry in mine}:
            model["shards"] = {"disable": True}
        rendered[capture_name(catalog, capture, environment)] = model
    return rendered


def _image(capture: EstuaryCapture) -> str:
    return f"{REGISTRY}/{capture.variant or capture.connector}:{IMAGES[capture.connector]}"


def _capture_config(catalog: Catalog, capture: EstuaryCapture) -> dict[str, Any]:
    secret = reference(catalog.secret(capture.secret).env)
    if capture.connector == "source-snowflake":
        return {
            **_variables(capture.variables, "HOST", "DATABASE", "WAREHOUSE", "ROLE"),
            "credentials": {"auth_type": "jwt", "private_key": secret, **_variables(capture.variables, "USER")},
        }
    return {
        **_variables(capture.variables, "ADDRESS", "USER", "DATABASE"),
        "historyMode": capture.history,
        "credentials": {"auth_type": "UserPassword", "password": secret},
        "advanced": {
            "publicationName": capture.publication,
            "slotName": capture.slot,
            "watermarksTable": capture.watermarks,
        },
    }


def _variables(begin: str, *names: str) -> dict[str, str]:
    return {name.lower(): reference(f"{begin}_{name}") for name in names}


def _capture_resource(entry: _Captured) -> dict[str, Any]:
    assert entry.capture is not None  # noqa: S101 - the caller chose entries that have one
    namespace, _, name = (entry.qualified or "").partition(".")
    if entry.capture.connector == "source-snowflake":
        return {"schema": namespace, "table": name}
    return {"namespace": namespace, "stream": name, "mode": ""}


def _collection(entry: _Captured) -> dict[str, Any]:
    projections = {"_meta/op": "/_meta/op"}
    if entry.capture is None or entry.qualified is None:
        schema: Schema = (
            postgres_schema(entry.table, entry.qualified)
            if entry.qualified
            else pushed_schema(entry.table, entry.collection.name)
        )
    else:
        schema = schema_of(entry.capture.connector, entry.table, entry.qualified, history=entry.capture.history)
    if entry.qualified is not None and (entry.capture is None or entry.capture.connector == "source-postgres"):
        # The capture sends transaction ids only to a collection that projects them.
        projections["_meta/source/txid"] = "/_meta/source/txid"
    return {"key": [pointer(name) for name in entry.key], "projections": projections, "schema": schema}


def pointer(name: str) -> str:
    """The JSON pointer of a top-level property."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _materializations(catalog: Catalog, environment: Environment) -> dict[str, Any]:
    fed = fed_collections(catalog)
    named = {name for webhook in catalog.estuary.webhooks for name in webhook.collections}
    rendered: dict[str, Any] = {}
    for webhook in catalog.estuary.webhooks:
        wanted = [
            collection
            for collection in fed
            if (collection.name in webhook.collections if webhook.collections else collection.name not in named)
        ]
        if wanted:
            name = task_name(catalog, webhook.name, environment)
            rendered[name] = _webhook(catalog, webhook, wanted, environment)
    if (staging := catalog.estuary.staging) is not None:
        rendered[task_name(catalog, staging.name, environment)] = _staging(catalog, staging, environment)
    return rendered


def _webhook(
    catalog: Catalog, webhook: EstuaryWebhook, collections: list[Collection], environment: Environment
) -> dict[str, Any]:
    base = reference(catalog.estuary.intake)
    authorization = f"Bearer {reference(catalog.secret(webhook.token).env)}"
    return {
        "endpoint": {
            "connector": {
                "image": f"{REGISTRY}/materialize-webhook:{IMAGES['materialize-webhook']}",
                "config": {
                    "address": f"{base}/{DOCUMENTS_PATH}",
                    "headers": {"customHeaders": [{"name": "Authorization", "value": authorization}]},
                },
            }
        },
        "bindings": [
            {
                "source": collection_name(catalog, collection, environment),
                # All that tells the intake what a request holds: in every environment the name in production.
                "resource": {"relativePath": collection.estuary},
                "fields": {"recommended": True},
            }
            for collection in collections
        ],
        # A change waits for no other: a transaction closes as soon as no document is ready.
        "shards": {"minTxnDuration": "0s"},
        "triggers": {
            # The form that all versions take.
            "config": [
                {
                    "url": f"{base}/{EVENTS_PATH}",
                    "method": "POST",
                    "headers": {"Authorization": authorization},
                    "payloadTemplate": PAYLOAD,
                }
            ]
        },
    }


def _staging(catalog: Catalog, staging: EstuaryStaging, environment: Environment) -> dict[str, Any]:
    return {
        "endpoint": {
            "connector": {
                "image": f"{REGISTRY}/materialize-postgres:{IMAGES['materialize-postgres']}",
                "config": {
                    **_variables(staging.variables, "ADDRESS", "USER", "DATABASE"),
                    "schema": staging.namespace,
                    "hardDelete": staging.hard_delete,
                    "credentials": {
                        "auth_type": "UserPassword",
                        "password": reference(catalog.secret(staging.secret).env),
                    },
                },
            }
        },
        "bindings": [
            {
                "source": collection_name(catalog, catalog.collection(name), environment),
                "resource": {"table": name, "schema": staging.namespace},
                "fields": {"recommended": True},
            }
            for name in staging.collections
        ],
    }


def _tests(catalog: Catalog, environment: Environment, entries: list[_Captured]) -> dict[str, Any]:
    return dict(_each_test(catalog, environment, entries))


def _each_test(catalog: Catalog, environment: Environment, entries: list[_Captured]) -> Iterator[tuple[str, list[Any]]]:
    for entry in entries:
        if entry.capture is None or entry.qualified is None or entry.capture.history:
            continue
        name = task_name(catalog, f"tests/{entry.collection.name.replace('_', '-')}", environment)
        full_name = collection_name(catalog, entry.collection, environment)
        yield name, catalog_test(full_name, entry.table, entry.qualified, entry.capture.connector)
