"""`sophia estuary replay`: what Estuary's journals hold of a collection is taken once more."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sophia.cli.context import Context, Json, begin, connected, show_json

if TYPE_CHECKING:
    from sophia.estuary.control.shapes import Authorization
    from sophia.estuary.intake.take import Taken
    from sophia.estuary.journals.replay import Replayed


def register(estuary: typer.Typer) -> None:
    """Add this module's command."""
    estuary.command()(replay)


def replay(
    collection: Annotated[str, typer.Argument(help="Name of the collection in the catalog.")],
    since: Annotated[
        datetime | None,
        typer.Option("--since", help="Documents that Estuary published from then on, in UTC; all if unset."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and count only, take nothing.")] = False,
    as_json: bool = Json,
) -> None:
    """Read a collection's journals at Estuary and take what they commit, as a delivery would. May run beside one.

    Documents that are there already change nothing, so one that was broken off is simply run again.
    """
    from rich.progress import Progress

    from sophia.estuary.control.client import ControlPlane
    from sophia.estuary.journals.broker import Broker
    from sophia.estuary.journals.replay import replay as run_replay

    context = begin()
    name = _name(context, collection)

    def authorize() -> Authorization:
        with ControlPlane(context.settings.estuary) as client:
            return client.authorize(name)

    with ExitStack() as stack:
        take = None if dry_run else _take(context, collection, stack.enter_context(connected(context))[1])
        broker = stack.enter_context(Broker(authorize))
        bar = stack.enter_context(Progress(transient=True, disable=as_json))
        task = bar.add_task(f"reading {name}", total=None)

        def progress(figures: Replayed) -> None:
            bar.update(task, completed=figures.read, total=figures.size)

        figures = run_replay(broker, take, None if since is None else since.replace(tzinfo=UTC), progress)
    if as_json:
        show_json({"collection": collection, "estuary": name, "since": since, "dry_run": dry_run, **asdict(figures)})
        return
    _show(name, figures, dry_run=dry_run)


def _show(name: str, figures: Replayed, *, dry_run: bool) -> None:
    became = "nothing was taken" if dry_run else f"{figures.changed:,} changes to the inbox, {figures.parked:,} parked"
    typer.echo(
        f"{figures.documents:,} documents in {figures.journals:,} journals of {name} ({figures.read:,} bytes): {became}"
    )
    left = (
        (figures.earlier, "published before the time asked for"),
        (figures.rolled_back, "rolled back"),
        (figures.repeated, "appended again"),
        (figures.open, "not acknowledged yet"),
        (figures.gaps, "gaps in the journals"),
    )
    if said := ", ".join(f"{count:,} {what}" for count, what in left if count):
        typer.echo(f"left out: {said}")
    if figures.parked:
        typer.echo("`sophia dead-letters` shows what is parked")


def _name(context: Context, collection: str) -> str:
    """The collection's full name in the environment that is observed."""
    from sophia.errors import ConfigurationError
    from sophia.estuary.control.observation import observed_environment, observed_prefix
    from sophia.estuary.naming import collection_name, fed_by_estuary

    catalog, settings = context.catalog, context.settings
    entry = catalog.collection(collection)
    if entry.name not in {each.name for each in fed_by_estuary(catalog, settings.profile)}:
        raise ConfigurationError(
            f"collection {entry.name!r} does not come from Estuary in profile {settings.profile}; name a source of "
            "kind estuary in its `source`"
        )
    return collection_name(catalog, entry, observed_environment(catalog, observed_prefix(catalog, settings.estuary)))


def _take(context: Context, collection: str, connection: Any) -> Any:
    from sophia.estuary.intake.documents import Reader
    from sophia.estuary.intake.take import feeds, take_documents

    catalog = context.catalog
    reader = Reader(feeds(connection, catalog, context.settings.profile)[catalog.collection(collection).estuary])

    def take(body: bytes) -> Taken:
        return take_documents(connection, reader, [body])

    return take
