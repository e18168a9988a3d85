"""Examines every setting and outside system that this profile uses. Each fault comes with its fix."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
from psycopg.rows import TupleRow

from sophia.catalog import Catalog, default_path, load
from sophia.errors import SophiaError, SourceError
from sophia.settings import Settings, load_settings

State = Literal["ok", "off", "warn", "fail"]
LEAST_FREE_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined. `off` means not configured, which is all right in this profile."""

    what: str
    state: State
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Examine all; a fault in one thing does not keep the others from being looked at."""
    findings = [_python()]
    try:
        settings = load_settings()
    except SophiaError as error:
        return [*findings, Finding("settings", "fail", str(error), "set the variables that are named")]
    findings.append(Finding("settings", "ok", f"profile {settings.profile}, home {settings.home}"))
    try:
        catalog = load(settings.catalog or default_path())
    except SophiaError as error:
        return [*findings, Finding("catalog", "fail", str(error), "mend the files that are named")]
    kinds = len(catalog.services) + len(catalog.images) + len(catalog.indexes)
    findings.append(Finding("catalog", "ok", f"{kinds} services, images and indexes"))
    for part in (_disk, _database, _snowflake, _estuary, _models, _systems):
        findings.extend(_guarded(part, catalog, settings))
    return findings


def _guarded(
    part: Callable[[Catalog, Settings], Iterator[Finding]], catalog: Catalog, settings: Settings
) -> list[Finding]:
    try:
        return list(part(catalog, settings))
    except SophiaError as error:
        return [Finding(part.__name__.strip("_"), "fail", str(error), "see the message")]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", "ok" if supported else "fail", version, "" if supported else "use Python 3.11 to 3.13")


def _disk(_catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        yield Finding(
            "disk", "warn", f"{free / 1e9:.1f} GB free at {folder}", "free space or point SOPHIA_HOME elsewhere"
        )
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.1f} GB free at {folder}")


def _database(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    from sophia.capture import postgres_sources
    from sophia.capture.health import SLOT_WARN_BYTES, capture_health
    from sophia.capture.source import RAISE_LIMIT
    from sophia.database import open_database
    from sophia.indexing.status import dead_letters, index_status

    database = open_database(settings)
    with database.connect("sophia-doctor") as connection:
        version, vector, wal_level = connection.execute(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
            "current_setting('wal_level')"
        ).fetchone() or ("", "", "")
        yield Finding("database", "ok", f"PostgreSQL {version}, pgvector {vector}, {database.shown}")
        if wal_level != "logical":
            yield Finding(
                "wal_level", "warn", wal_level, "to capture from it: ALTER SYSTEM SET wal_level = logical; restart"
            )
        for source in postgres_sources(catalog, settings, database):
            unlimited = False
            for binding in source.bindings:
                what = f"capture of {binding.table}"
                # Our own database holds the sample tables; before the first `make demo` it has none.
                if source.url == database.url and not _exists(connection, binding.table):
                    yield Finding(what, "warn", "the sample table is not there yet", "`make demo` or `make up`")
                    continue
                found = capture_health(catalog, settings, database, connection, source.name, binding.collection)
                unlimited |= found.unlimited
                fault = found.identity_fault or found.publication_fault or found.slot_fault
                if found.identity_fault:
                    yield Finding(what, "fail", found.identity_fault, "see the message")
                elif found.at_risk:
                    yield Finding(what, "fail", str(found.slot_fault), "see the message")
                elif fault:
                    yield Finding(what, "warn", fault, "`make up` or `sophia capture`")
                elif found.retained_bytes > SLOT_WARN_BYTES:
                    yield Finding(
                        what,
                        "warn",
                        f"{found.retained_bytes / 1e9:.1f} GB of log held back",
                        "is the capture keeping up?",
                    )
                else:
                    yield Finding(what, "ok", f"{found.retained_bytes / 1e6:.1f} MB of log held back")
            if unlimited:
                yield Finding(
                    f"max_slot_wal_keep_size of {source.name}",
                    "warn",
                    "unlimited: a stopped capture can fill the server's disk",
                    RAISE_LIMIT.format("10GB"),
                )
        for status in index_status(connection):
            name = f"index {status.index} v{status.version}"
            if not status.level:
                yield Finding(
                    name, "warn", f"{status.backlog} waiting, {status.shards_behind} shards behind", "`make up`"
                )
            else:
                yield Finding(name, "ok", f"{status.indexed} documents, in step at {status.source_lsn}")
        parked = len(dead_letters(connection, 1000))
        if parked:
            yield Finding("dead letters", "warn", str(parked), "`sophia dead-letters` lists them with their reasons")
    database.release()


def _snowflake(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    from sophia.capture.snowflake import Session, inspect, snowflake_sources

    for source in snowflake_sources(catalog, settings):
        session = Session(source.name, source.account, settings.snowflake)
        try:
            for binding in source.bindings:
                what = f"Snowflake table {binding.table}"
                try:
                    table = inspect(session, binding)
                except SourceError as error:
                    yield Finding(what, "fail", str(error), "see the message")
                else:
                    yield Finding(what, "ok", f"{len(table.types)} columns, key {', '.join(table.key_columns)}")
        finally:
            session.close()


def _estuary(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    from sophia.estuary.control.client import ControlPlane
    from sophia.estuary.control.observation import observed_prefix
    from sophia.estuary.naming import fed_by_estuary

    if not fed_by_estuary(catalog, settings.profile):
        return
    prefix = observed_prefix(catalog, settings.estuary)
    if settings.estuary.token is None:
        fix = f"set SOPHIA_ESTUARY__TOKEN to a token that may read {prefix}"
        yield Finding("Estuary", "warn", "not observed: its alerts reach nobody here", fix)
        return
    with ControlPlane(settings.estuary) as client:
        alerts, _ = client.alerts(prefix)
    if alerts:
        yield Finding("Estuary", "warn", f"{len(alerts)} alerts fire below {prefix}", "`sophia estuary status`")
    else:
        yield Finding("Estuary", "ok", f"{prefix} is observed, no alert fires")


def _exists(connection: psycopg.Connection[TupleRow], table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s)", [table]).fetchone()
    return row is not None and row[0] is not None


def _models(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    from sophia.embedding.models import model_path
    from sophia.indexing.versions import local_indexes

    for name in sorted({index.model for index in local_indexes(catalog, settings.profile)}):
        model = catalog.model(name)
        if model.provider == "openai":
            missing = model.key_env is not None and settings.secret(model.key_env) is None
            yield Finding(
                f"model {name}", "fail" if missing else "ok", str(model.url), f"set {model.key_env}" if missing else ""
            )
            continue
        path = model_path(model)
        if Path(path).is_dir():
            yield Finding(f"model {name}", "ok", f"local, {model.dimension} dimensions")
        else:
            state: State = "ok" if settings.hub else "fail"
            yield Finding(f"model {name}", state, f"hub name {path}", "" if settings.hub else "set SOPHIA_HUB=true")


def _systems(_catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    configured = {
        "Docker": settings.docker_host or os.environ.get("DOCKER_HOST"),
        "Kubernetes": settings.kube_context,
        "n8n": settings.n8n_url,
        "Vercel": "token set" if settings.vercel_token else None,
        "Weaviate": settings.weaviate_url,
        "Pinecone": "key set" if settings.pinecone_api_key else None,
    }
    for name, value in configured.items():
        yield Finding(name, "ok" if value else "off", "configured" if value else "not configured: plan only")
    for package in ("dagster", "torch", "sentence_transformers"):
        if importlib.util.find_spec(package) is None:
            yield Finding(package, "fail", "not installed", "run `make install`")
