"""`sophia estuary rekey`: another key of a collection that Estuary feeds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sophia.cli.context import Json, begin, connected, show_json


def register(estuary: typer.Typer) -> None:
    """Add this module's command."""
    estuary.command()(rekey)


def rekey(
    collection: Annotated[str, typer.Argument(help="Name of the collection in the catalog.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only what would be done is shown.")] = False,
    as_json: bool = Json,
) -> None:
    """Give up a collection's documents and begin anew with the catalog's key. Exit code 1 without --yes."""
    from sophia.estuary.intake.rekey import rekey as run

    context = begin()
    with connected(context) as (_, connection):
        found = run(connection, context.catalog, collection, context.settings.profile, dry_run=not yes)
    if as_json:
        show_json({"collection": collection, "done": yes, **asdict(found)})
    else:
        typer.echo(
            f"{collection}: key ({', '.join(found.before)}) becomes ({', '.join(found.after)}); {found.documents:,} "
            f"documents {'were' if yes else 'would be'} given up, and searches find none until they have come again"
        )
        if yes:
            typer.echo(
                "start the intake again, then have Estuary bring them: reset the collection there if `sophia estuary "
                f"plan` says so, and `sophia estuary apply -e ENVIRONMENT --yes --backfill {collection}`"
            )
    if not yes:
        typer.echo("nothing was done; say --yes", err=True)
        raise typer.Exit(1)
