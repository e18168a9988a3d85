"""`sophia estuary status`: what Estuary says of our collections and tasks, beside what we have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sophia.cli.context import Context, Json, begin, connected, show_json, show_table

if TYPE_CHECKING:
    from sophia.estuary.control.observation import CollectionView, Look, Position


def register(estuary: typer.Typer) -> None:
    """Add this module's command."""
    estuary.command()(status)


def status(
    names: Annotated[
        list[str] | None, typer.Argument(help="Full names at Estuary: the state of these as their controllers see it.")
    ] = None,
    as_json: bool = Json,
) -> None:
    """Tasks, lag, alerts and watermarks of what Estuary feeds us; without a token only our own side."""
    context = begin()
    if names:
        _show_controllers(context, names, as_json)
        return
    if context.settings.estuary.token is None:
        _show_ours(context, as_json)
        return
    look = _look(context)
    if as_json:
        show_json(_look_json(look))
        return
    _show(look)


def _look(context: Context) -> Look:
    from sophia.estuary.control.client import ControlPlane
    from sophia.estuary.control.observation import look

    settings = context.settings
    with connected(context) as (_, connection), ControlPlane(settings.estuary) as client:
        return look(client, connection, context.catalog, settings.profile, settings.estuary, datetime.now(UTC))


def _show(look: Look) -> None:
    tasks = [spec for spec in look.specs if spec.kind in ("capture", "materialization")]
    show_table(
        f"tasks below {look.prefix}" + ("" if look.whole else " (not all)"),
        ["task", "kind", "state", "what Estuary says", "published"],
        [
            (
                spec.name,
                spec.kind,
                "disabled" if spec.disabled else spec.health.lower(),
                spec.summary,
                spec.published_at,
            )
            for spec in tasks
        ],
    )
    show_table(
        "collections, totals of this month",
        ["collection", "written", "delivered", "lag", "waits", "errors", "alerts", "watermark", "in our inbox"],
        [
            (
                view.name,
                f"{view.written_docs:,.0f}",
                f"{view.delivered_docs:,.0f}",
                "" if view.lag is None else f"{view.lag:.1f} s",
                f"{view.waiting_seconds:.0f} s" if view.waiting_seconds else "",
                f"{view.totals.errors:,.0f}",
                len(view.alerts),
                _until(view.ours.watermark),
                _inbox(view.ours),
            )
            for view in look.collections
        ],
        right=["written", "delivered", "lag", "waits", "errors", "alerts"],
    )
    if look.alerts:
        from sophia.estuary.control.alerts import alert_kind

        show_table(
            "alerts that fire",
            ["alert", "of", "since", "what Estuary says", "what to do"],
            [
                (a.type, a.name, a.fired_at, a.text or alert_kind(a.type).meaning, alert_kind(a.type).fix)
                for a in look.alerts
            ],
        )
    else:
        typer.echo("no alert fires")


def _look_json(look: Look) -> dict[str, Any]:
    return {
        "at": look.at,
        "prefix": look.prefix,
        "complete": look.whole,
        "tasks": [
            spec.model_dump(include={"name", "kind", "disabled", "health", "summary", "publication", "published_at"})
            for spec in look.specs
            if spec.kind in ("capture", "materialization")
        ],
        "collections": [_view_json(view) for view in look.collections],
        "alerts": [alert.model_dump() for alert in look.alerts],
    }


def _view_json(view: CollectionView) -> dict[str, Any]:
    return {
        "name": view.name,
        "estuary": view.estuary,
        "written_docs": view.written_docs,
        "written_bytes": view.written_bytes,
        "delivered_docs": view.delivered_docs,
        "lag_seconds": view.lag,
        "waiting_seconds": view.waiting_seconds,
        "warnings": view.totals.warnings,
        "errors": view.totals.errors,
        "failures": view.totals.failures,
        "alerts": len(view.alerts),
        **_ours_json(view.ours),
    }


def _ours_json(ours: Position) -> dict[str, Any]:
    return {
        "watermark": ours.watermark,
        "generation": ours.generation,
        "position": ours.position,
        "source_time": ours.source_time,
    }


def _show_ours(context: Context, as_json: bool) -> None:
    from sophia.estuary.control.observation import fed_names, positions

    settings = context.settings
    names = fed_names(context.catalog, settings.profile, settings.estuary)
    with connected(context) as (_, connection):
        found = positions(connection, names)
    if as_json:
        collections = [{"name": name, "estuary": names[name], **_ours_json(ours)} for name, ours in found.items()]
        show_json({"at": None, "collections": collections})
        return
    if not names:
        typer.echo(f"no collection comes from Estuary in profile {settings.profile}")
        return
    show_table(
        "collections, our own side",
        ["collection", "at Estuary", "watermark", "in our inbox"],
        [(name, names[name], _until(ours.watermark), _inbox(ours)) for name, ours in found.items()],
    )
    typer.echo("SOPHIA_ESTUARY__TOKEN is not set, so Estuary was not asked", err=True)


def _show_controllers(context: Context, names: list[str], as_json: bool) -> None:
    from sophia.estuary.control.client import ControlPlane

    with ControlPlane(context.settings.estuary) as client:
        found = client.status(names)
    if as_json:
        show_json([status.model_dump() for status in found])
        return
    show_table(
        "state at Estuary",
        ["name", "kind", "state", "what Estuary says", "failures in a row", "changed", "next run"],
        [
            (s.name, s.kind, _state(s.disabled, s.health), s.error or s.message, s.failures, s.updated_at, s.next_run)
            for s in found
        ],
        right=["failures in a row"],
    )


def _state(disabled: bool, health: str) -> str:
    return "disabled" if disabled else health.lower()


def _until(watermark: datetime | None) -> str:
    return watermark.isoformat(timespec="seconds") if watermark else "none yet"


def _inbox(ours: Position) -> str:
    return f"position {ours.position}" if ours.id is not None else "nothing yet"
