"""Commands that run until they are stopped: capture, indexer, console, serve, up; and the demo."""

from __future__ import annotations

from collections import ChainMap
from typing import Annotated

import typer

from sophia.cli.context import begin


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(capture)
    app.command()(indexer)
    app.command()(console)
    app.command()(up)
    app.command()(demo)
    serve = typer.Typer(help="Serve over HTTP until stopped.", no_args_is_help=True)
    serve.command()(inference)
    serve.command()(intake)
    app.add_typer(serve, name="serve")


def capture(
    source: Annotated[list[str] | None, typer.Option(help="Capture only this source; may be given again.")] = None,
) -> None:
    """Capture this profile's PostgreSQL and Snowflake sources into the inbox."""
    from sophia.database import open_database
    from sophia.errors import ConfigurationError
    from sophia.services.captures import captures
    from sophia.services.metrics import CaptureMetrics, exposed
    from sophia.services.pauses import expect_batches
    from sophia.services.worker import run_together, stop_on_signals

    context = begin()
    settings = context.settings.capture
    catalog = context.catalog
    if source:
        catalog = catalog.model_copy(update={"sources": tuple(catalog.source(name) for name in source)})
    database = open_database(context.settings)
    loops, sources = captures(catalog, context.settings, database)
    if not loops:
        raise ConfigurationError(
            f"no PostgreSQL or Snowflake source has collections in profile {context.settings.profile!r}"
        )
    stop = stop_on_signals()
    metrics = CaptureMetrics(database, sources)
    with exposed(metrics, settings.metrics_host, settings.metrics_port, loops, "SOPHIA_CAPTURE__METRICS_PORT"):
        expect_batches()
        run_together(loops, stop)


def indexer(
    live_only: Annotated[bool, typer.Option("--live-only", help="Leave the bulk lane to Dagster runs.")] = False,
) -> None:
    """Keep this profile's indexes in step with the inbox."""
    from sophia.database import open_database
    from sophia.indexing.indexer import indexers
    from sophia.services.metrics import IndexerMetrics, exposed
    from sophia.services.pauses import expect_batches
    from sophia.services.worker import Loop, run_together, stop_on_signals

    context = begin()
    settings = context.settings.indexer
    database = open_database(context.settings)
    stop = stop_on_signals()
    metrics = IndexerMetrics(database)
    each = indexers(context.catalog, database, context.settings, bulk=not live_only, observe=metrics.observe)
    metrics.watch(ChainMap(*(indexing.embedders for indexing in each)))
    loops = [Loop(f"indexer of {indexing.kind}", indexing.run, indexing.ready) for indexing in each]
    with exposed(metrics, settings.metrics_host, settings.metrics_port, loops, "SOPHIA_INDEXER__METRICS_PORT"):
        expect_batches()
        run_together(loops, stop)


def console() -> None:
    """Serve the console: search, freshness, live feed."""
    from sophia.database import open_database
    from sophia.services.console.app import serve

    context = begin()
    database = open_database(context.settings)
    settings = context.settings.console
    typer.echo(f"console: http://{settings.host}:{settings.port}")
    serve(context.settings, database, context.catalog)


def inference() -> None:
    """Serve embedding, sentiment, classification, summaries and generation."""
    from sophia.services.inference.server import serve

    context = begin()
    serve(context.settings, context.catalog)


def intake() -> None:
    """Take what Estuary's webhook and triggers send, into the inbox."""
    from sophia.database import open_database
    from sophia.services.intake.server import serve

    context = begin()
    database = open_database(context.settings)
    try:
        serve(context.settings, context.catalog, database)
    finally:
        database.release()


def up(
    dagster_port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    sample: Annotated[bool, typer.Option(help="Load the sample tables if they are not there.")] = True,
) -> None:
    """Run everything locally: capture, indexer, console, Dagster UI and daemon. Ctrl-C stops all of it."""
    from sophia.database import open_database
    from sophia.local import dagster_environment, local_processes, require_free_ports
    from sophia.sample import load
    from sophia.services.supervisor import Supervisor
    from sophia.services.worker import stop_on_signals

    settings = begin().settings
    require_free_ports(
        {
            "--dagster-port": dagster_port,
            "SOPHIA_CONSOLE__PORT": settings.console.port,
            "SOPHIA_CAPTURE__METRICS_PORT": settings.capture.metrics_port,
            "SOPHIA_INDEXER__METRICS_PORT": settings.indexer.metrics_port,
        }
    )
    stop = stop_on_signals()
    database = open_database(settings)
    if sample and settings.profile == "local":
        with database.connect("sophia-up") as connection:
            load(connection)
    children = local_processes(settings, dagster_environment(settings, database), dagster_port)
    typer.echo(f"Dagster UI  http://127.0.0.1:{dagster_port}  (answers in about 15 s)")
    typer.echo(f"console     http://{settings.console.host}:{settings.console.port}")
    typer.echo(f"logs        {settings.home / 'logs'}")
    typer.echo("Ctrl-C stops all of it.")
    Supervisor(children, typer.echo).run(stop)
    database.release()
    typer.echo("stopped")


def demo(
    rows: Annotated[int | None, typer.Option(help="Documents to load; all of the standard library's if unset.")] = None,
    changes: Annotated[int, typer.Option(min=1, help="Rows to insert, update and delete each.")] = 5,
) -> None:
    """Show the whole way: load, capture, materialise, then change rows and find them by search."""
    from sophia.demo import run

    run(begin(), rows=rows, changes=changes)
