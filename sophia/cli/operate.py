"""Commands that change something: load, repair, promote, rollback, retire, erase, migrate, wait."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sophia.cli.context import Json, begin, connected, show_json, show_table
from sophia.cli.progress import repair_shown

if TYPE_CHECKING:
    from sophia.indexing.versions import IndexVersion


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(load)
    app.command()(repair)
    app.command()(promote)
    app.command()(rollback)
    app.command()(retire)
    app.command()(erase)
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
    from sophia.indexing.provenance import register_run
    from sophia.indexing.repair import Session, repair_version

    context = begin()
    settings = context.settings
    with connected(context) as (_, connection), repair_shown(quiet=as_json) as progress:
        session = Session.open(
            connection,
            context.catalog,
            context.catalog.index(index),
            settings.profile,
            lambda version: load_embedder(version.model, version.index.precision, settings),
            settings,
            run=register_run(connection, "cli", settings),
            stores=context.stores,
        )
        figures = repair_version(
            connection,
            session,
            range(session.version.index.shards),
            batch=settings.indexer.bulk_documents,
            deep=not shallow,
            progress=progress,
        )
    if as_json:
        show_json({"documents": figures.documents, "embedded": figures.embedded, "parked": figures.parked})
        return
    typer.echo(
        f"{figures.documents} documents written, {figures.embedded} texts embedded by {session.embedder.backend}"
    )


def promote(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    number: Annotated[
        int | None, typer.Option("--version", help="Version to promote; the one that the catalog asks for if unset.")
    ] = None,
    skip_gates: Annotated[bool, typer.Option("--skip-gates", help="Switch without asking the gates.")] = False,
    as_json: bool = Json,
) -> None:
    """Let another version of an index serve, once its gates pass. Exit code 1 if one does not."""
    from sophia.embedding import load_embedder
    from sophia.errors import SophiaError
    from sophia.indexing.gates import run_gates
    from sophia.indexing.promotion import promote as switch_to
    from sophia.indexing.versions import candidate_version, numbered_version, serving_version

    context = begin()
    settings = context.settings
    with connected(context) as (_, connection):
        serving = serving_version(connection, index)
        if number is None:
            wanted = context.catalog.index(index)
            version = candidate_version(connection, context.catalog, wanted, settings.profile)
            if version is None:
                raise SophiaError(
                    f"the version of {index!r} that the catalog asks for was not begun yet; run `sophia repair {index}`"
                )
        else:
            version = numbered_version(connection, index, number)
        store = context.stores.of(version)
        loaded: dict[int, Any] = {}

        def embedder_of(version: IndexVersion) -> Any:
            if version.id not in loaded:
                loaded[version.id] = load_embedder(version.model, version.index.precision, settings)
            return loaded[version.id]

        gates = []
        if version.id != serving.id and not skip_gates:
            for gate in run_gates(connection, version, store, embedder_of, serving=serving, stores=context.stores):
                gates.append(gate)
                if not as_json:
                    typer.echo(f"{'pass' if gate.passed else 'FAIL'}  {gate.name}: {gate.sentence}")
        failed = [gate.name for gate in gates if not gate.passed]
        switch = None if failed else switch_to(connection, version, store)
    if as_json:
        shown = [{name: getattr(gate, name) for name in gate.__slots__} for gate in gates]
        serves = serving.number if switch is None else switch.now
        show_json({"index": index, "before": serving.number, "serves": serves, "gates": shown})
    elif switch is None:
        typer.echo(f"v{serving.number} goes on serving: v{version.number} does not pass {', '.join(failed)}")
    elif switch.switched:
        typer.echo(f"v{switch.now} serves; v{switch.before} goes on being fed: `sophia rollback {index}` goes back")
    else:
        typer.echo(f"nothing to promote: v{switch.now} serves already")
    if failed:
        raise typer.Exit(1)


def rollback(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    as_json: bool = Json,
) -> None:
    """Go back to the version that served before; it was fed all the time, so no change is lost."""
    from sophia.indexing.promotion import rollback as go_back

    context = begin()
    with connected(context) as (_, connection):
        switch = go_back(connection, index, stores=context.stores)
    if as_json:
        show_json({"index": index, "before": switch.before, "serves": switch.now})
        return
    typer.echo(f"v{switch.now} serves again; v{switch.before} goes on being fed")


def retire(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    number: Annotated[int, typer.Argument(metavar="VERSION", help="Its number, as `sophia versions` shows it.")],
    as_json: bool = Json,
) -> None:
    """End a version that does not serve: its vectors and its ledger are removed."""
    from sophia.indexing.promotion import retire as end
    from sophia.indexing.versions import numbered_version

    context = begin()
    with connected(context) as (_, connection):
        version = numbered_version(connection, index, number)
        removed = end(connection, version, context.stores.of(version))
    if as_json:
        show_json({"index": index, "version": number, "ledger_rows": removed})
        return
    typer.echo(f"{version.label} is retired: its store is dropped, {removed} ledger rows are removed")


def erase(
    collection: Annotated[str, typer.Argument(help="Name of the collection.")],
    key: Annotated[str, typer.Argument(help='Key of the document: 42, abc, or ["a", 2].')],
    force: Annotated[bool, typer.Option("--force", help="Also while the source still has the row.")] = False,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Write the touched tables anew, locking each for that time.")
    ] = False,
    as_json: bool = Json,
) -> None:
    """Remove a document from everything that is kept. Exit code 3 if old snapshots still keep its dead rows."""
    from sophia.documents import parse_key
    from sophia.embedding.redis_cache import redis_cache
    from sophia.erasure import REMAINS
    from sophia.erasure import erase as remove

    context = begin()
    cache = redis_cache(context.settings)
    caches = [cache] if cache is not None else []
    with connected(context) as (_, connection):
        done = remove(
            connection,
            collection,
            parse_key(key),
            force=force,
            rewrite=rewrite,
            caches=caches,
            stores=context.stores,
        )
    if as_json:
        show_json(done.to_json())
    else:
        show_table("removed", ["place", "rows"], sorted(done.removed.items()), right=["rows"])
        if done.vacuumed:
            typer.echo(f"vacuumed: {', '.join(done.vacuumed)}")
        typer.echo(f"kept: that a document with the key hash {done.key_hash} was erased")
        if done.unnamed:
            typer.echo(
                f"kept: {done.unnamed} parked deliveries without a readable key, in which the values of this key do "
                "not occur; `sophia dead-letters` lists them"
            )
        typer.echo("not ours to remove:")
        for place in REMAINS:
            typer.echo(f"  {place}")
        if not done.deleted:
            typer.echo("the source still has the row: its next change or copy brings it back")
    if done.kept_by:
        sessions = ", ".join(f"pid {pid}" if pid else "a slot or prepared transaction" for pid in done.kept_by)
        typer.secho(
            f"sophia: removed, but {sessions} may still see the rows, so they stay in the files; end these and run "
            "this again",
            err=True,
            fg=typer.colors.RED,
        )
        raise typer.Exit(3)


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
