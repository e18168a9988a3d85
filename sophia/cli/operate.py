"""Commands that change something: load, repair, migrate, wait."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sophia.cli.context import Json, begin, connected, show_json


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(load)
    app.command()(repair)
    app.command()(migrate)
    app.command()(wait)


def load(
    file: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .parquet file.")],
    table: Annotated[str, typer.Option("--table", help="Target table, schema.name; made if it does not exist.")],
    key: Annotated[str | None, typer.Option("--key", help="Key column of a new table; `id` if unset.")] = None,
    as_json: bool = Json,
) -> None:
    """Load rows into a table of the platform's database, all or none."""
    from rich.progress import Progress

    from sophia.loading import load_file

    with connected(begin()) as (_, connection), Progress(transient=True, disable=as_json) as progress:
        task = progress.add_task(f"loading {file.name}", total=None)
        result = load_file(
            connection,
            file,
            table,
            key=key,
            progress=lambda rows, total: progress.update(task, completed=rows, total=total),
        )
    if as_json:
        show_json({"table": table, "rows": result.rows, "created": result.created})
        return
    typer.echo(f"{result.rows} rows into {table}{' (created)' if result.created else ''}")


def repair(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Compare with the ledger only, not the store itself.")
    ] = False,
    as_json: bool = Json,
) -> None:
    """Compare an index with its documents and mend what differs, embedding only that."""
    from sophia.embedding import load_embedder
    from sophia.indexing.repair import Session, repair_version

    context = begin()
    settings = context.settings
    with connected(context) as (_, connection):
        session = Session.open(
            connection,
            context.catalog,
            context.catalog.index(index),
            settings.profile,
            lambda version: load_embedder(version.model, version.index.precision, settings),
            settings,
            run="cli",
        )
        figures = repair_version(
            connection,
            session,
            range(session.version.index.shards),
            batch=settings.indexer.bulk_documents,
            deep=not shallow,
            progress=lambda line: None if as_json else typer.echo(line),
        )
    if as_json:
        show_json({"documents": figures.documents, "embedded": figures.embedded, "parked": figures.parked})
        return
    typer.echo(f"{figures.documents} documents written, {figures.embedded} texts embedded")


def migrate() -> None:
    """Bring the database's schema up to date; safe to run twice, also at the same time."""
    from sophia.database import migrate as run
    from sophia.database import open_database

    database = open_database(begin().settings, upgrade=False)
    typer.echo("migrated" if run(database.url) else "up to date")
    database.release()


def wait(
    run_id: Annotated[str, typer.Argument(help="Id of a Dagster run, as given to `dagster job launch --run-id`.")],
    url: Annotated[str, typer.Option(help="Address of the Dagster webserver.")] = "http://127.0.0.1:3000",
    timeout: Annotated[float, typer.Option(help="Most seconds to wait.")] = 3600.0,
) -> None:
    """Wait for a Dagster run and give its outcome: exit code 0 success, 1 failed or cancelled, 3 not known in time."""
    from sophia.waiting import wait_for_run

    outcome = wait_for_run(url, run_id, timeout, typer.echo)
    if outcome != "SUCCESS":
        raise typer.Exit(1)
