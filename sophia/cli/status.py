"""`sophia status`: how far every index, collection and capture is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from sophia.cli.context import Json, begin, connected, minute, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sophia.indexing.status import CollectionStatus, IndexStatus


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(status)


def status(as_json: bool = Json) -> None:
    """How far every index and every collection is: documents, lag, what waits, and up to when nothing is missing."""
    from sophia.estuary.control.observation import watermarks
    from sophia.indexing.status import capture_status, collection_status, index_status
    from sophia.indexing.versions import active_versions
    from sophia.stores.pgvector_graph import build_progress

    context = begin()
    with connected(context) as (database, connection):
        indexes = index_status(connection)
        collections = collection_status(connection)
        settings = context.settings
        complete = watermarks(connection, context.catalog, settings.profile, settings.estuary)
        captures = capture_status(connection)
        builds = [build for version in active_versions(connection) if (build := build_progress(connection, version))]
        shown = database.shown
    if as_json:
        fields = [{name: getattr(c, name) for name in c.__slots__} for c in captures]
        building = [{name: getattr(build, name) for name in build.__slots__} for build in builds]
        show_json(
            {
                "indexes": [s.to_json() for s in indexes],
                "collections": [c.to_json(complete) for c in collections],
                "captures": fields,
                "building": building,
                "database": shown,
            }
        )
        return
    if indexes:
        _show_indexes(indexes)
    else:
        typer.echo("no index has been built yet; `make demo` shows the whole way, `make up` runs everything")
    if collections:
        _show_collections(collections, complete)
    if captures:
        show_table(
            "captures",
            ["source", "slot", "confirmed", "tables"],
            [(c.source, c.slot, c.confirmed_lsn, f"{c.complete}/{c.tables}") for c in captures],
        )
    for build in builds:
        typer.echo(str(build))


def _show_indexes(indexes: list[IndexStatus]) -> None:
    show_table(
        "indexes",
        ["index", "indexed", "wait", "pending", "parked", "p50, p95 ms", "model", "in step"],
        [
            (
                f"{s.index} v{s.version}" + ("" if s.state == "serving" else f" ({s.state})"),
                f"{s.indexed}/{s.documents}",
                s.backlog,
                s.pending,
                s.parked,
                f"{_ms(s.lag_p50_ms)}, {_ms(s.lag_p95_ms)}",
                s.model,
                _level(s),
            )
            for s in indexes
        ],
        right=["indexed", "wait", "pending", "parked", "p50, p95 ms"],
    )
    show_table(
        "verification",
        ["index", "verified up to", "deep scan", "last whole one", "ended", "found, repaired"],
        [
            (
                f"{s.index} v{s.version}",
                s.verified_lsn or (f"position {s.verified}" if s.verified else "nothing yet"),
                f"{s.scanned:.0%}",
                "-" if s.scan_seconds is None else f"{s.scan_seconds:.0f} s",
                minute(s.scan_ended_at) or "-",
                f"{s.drift_found}, {s.drift_repaired}",
            )
            for s in indexes
        ],
        right=["deep scan", "last whole one", "found, repaired"],
    )


def _show_collections(collections: list[CollectionStatus], complete: Mapping[str, datetime | None]) -> None:
    show_table(
        "collections",
        ["collection", "documents", "position", "source up to", "complete up to", "to read again", "parked"],
        [
            (
                c.name,
                c.documents,
                c.position,
                _second(c.source_time) or "-",
                (_second(complete[c.name]) or "not known yet") if c.name in complete else "-",
                c.rereads,
                c.parked,
            )
            for c in collections
        ],
        right=["documents", "position", "to read again", "parked"],
    )


def _second(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(sep=" ", timespec="seconds")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _level(status: IndexStatus) -> str:
    if status.level:
        return f"at {status.source_lsn}"
    behind = f"{status.shards_behind} of {status.shards} shards to compare" if status.shards_behind else "behind"
    return behind if status.indexer_running else f"{behind}, no indexer runs"
