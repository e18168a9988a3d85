"""`sophia estuary send` and `sophia estuary sweep`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sophia.cli.context import Json, begin, connected, show_json

if TYPE_CHECKING:
    from sophia.catalog.models import Collection
    from sophia.estuary.source.sweep import Swept
    from sophia.estuary.stand_in.faults import Faults
    from sophia.estuary.stand_in.materialize import Materializer

Chance = typer.Option(min=0.0, max=1.0, rich_help_panel="Faults, each a chance from 0 to 1")


def register(estuary: typer.Typer) -> None:
    """Add this module's commands."""
    estuary.command()(send)
    estuary.command()(sweep)


def send(
    collection: Annotated[str, typer.Argument(help="Name of the collection in the catalog.")],
    table: Annotated[
        str | None, typer.Option("--table", help="Table of the platform's database; the collection's own if unset.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A .jsonl file of documents, or of rows, instead of a table.")
    ] = None,
    address: Annotated[
        str, typer.Option("--url", help="Where the intake listens, up to the collection's name.")
    ] = "http://127.0.0.1:8200/estuary/",
    variable: Annotated[
        str, typer.Option("--token-env", help="Variable that holds the collection's bearer token.")
    ] = "SOPHIA_STAND_IN_TOKEN",
    follow: Annotated[bool, typer.Option("--follow", help="Go on with the table's changes until Ctrl-C.")] = False,
    duplicate: Annotated[float, Chance] = 0.0,
    lose: Annotated[float, Chance] = 0.0,
    late: Annotated[float, Chance] = 0.0,
    restart: Annotated[float, Chance] = 0.0,
    reorder: Annotated[float, Chance] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="The same faults again.")] = None,
    as_json: bool = Json,
) -> None:
    """Send documents as Estuary's webhook would, to try an intake: requests, batches, retries and faults alike.

    Faults: duplicate sends a request twice; lose drops an answer; late sends an old request again; restart replays a
    transaction, cut anew; reorder mixes its keys.
    """
    from sophia.errors import ConfigurationError
    from sophia.estuary.stand_in.faults import Faults

    context = begin()
    entry = context.catalog.collection(collection)
    if file is not None and (table is not None or follow):
        raise ConfigurationError("--file stands alone; leave out --table and --follow")
    faults = Faults(duplicate=duplicate, lost=lose, late=late, restart=restart, reorder=reorder)
    token = context.settings.secret(variable)
    headers = (("Authorization", f"Bearer {token}"),) if token else ()
    outcome = _send(context, entry, table, file, (address, headers), faults, seed, following=follow, quiet=as_json)
    if as_json:
        show_json(outcome)
        return
    made = ", ".join(f"{count} × {name}" for name, count in outcome["faults"].items() if count) or "none"
    typer.echo(
        f"{outcome['documents']:,} documents of {entry.estuary} in {outcome['requests']:,} requests "
        f"({outcome['attempts']:,} attempts, {outcome['restarts']:,} restarts, {outcome['transactions']:,} "
        f"transactions); faults: {made}"
    )


def _send(
    context: Any,
    entry: Collection,
    table: str | None,
    file: Path | None,
    endpoint: tuple[str, tuple[tuple[str, str], ...]],
    faults: Faults,
    seed: int | None,
    *,
    following: bool,
    quiet: bool,
) -> dict[str, Any]:
    import random
    import signal
    import tempfile
    import threading

    from rich.progress import Progress

    from sophia.errors import ConfigurationError
    from sophia.estuary.stand_in import trial
    from sophia.estuary.stand_in.journal import Journal
    from sophia.estuary.stand_in.materialize import Figures, Materialization, Materializer
    from sophia.estuary.stand_in.source_postgres import Captured
    from sophia.estuary.stand_in.webhook import Binding, Endpoint

    table = table or entry.table
    if file is None and table is None:
        raise ConfigurationError(f"collection {entry.name!r} names no table; give --table or --file")
    target = Endpoint(*endpoint)
    with (
        connected(context) as (database, _),
        tempfile.TemporaryDirectory(prefix="sophia-stand-in-") as folder,
        Progress(transient=True, disable=quiet) as bar,
    ):
        path = Path(folder) / "journal.sqlite"
        key = tuple(f"/{column}" for column in entry.key)
        if not key and table is not None:
            key = trial.table_key(database.url, table)
        total = None
        if not following:
            with Journal(path) as journal:
                total = (
                    trial.journal_file(journal, file, entry.estuary)
                    if file is not None
                    else trial.journal_table(journal, database.url, str(table), entry.estuary)
                )
        binding = Binding(entry.estuary, key, entry.estuary, history=entry.history)
        spec = Materialization("sophia/stand-in", target, (binding,))
        task = bar.add_task(f"sending {entry.estuary}", total=total)

        def progress(figures: Figures) -> None:
            bar.update(task, completed=figures.sent)

        with Materializer(spec, path, faults=faults, rng=random.Random(seed), most=trial.BATCH) as stand_in:  # noqa: S311
            if following:
                stop = threading.Event()
                signal.signal(signal.SIGINT, lambda *_: stop.set())
                trial.follow(stand_in, path, database.url, Captured(str(table), entry.estuary), stop, progress)
            else:
                stand_in.drain(progress)
            return _outcome(stand_in)


def _outcome(stand_in: Materializer) -> dict[str, Any]:
    figures = stand_in.figures
    return {
        "documents": figures.sent,
        "requests": stand_in.requests,
        "attempts": stand_in.attempts,
        "transactions": figures.transactions,
        "restarts": figures.restarts,
        "faults": stand_in.transport.made,
    }


def sweep(
    collection: Annotated[str, typer.Argument(help="Name of the collection in the catalog.")],
    before: Annotated[
        datetime | None,
        typer.Option("--before", help="When the re-backfill began, in UTC; unset: verify every document."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only, change nothing.")] = False,
    as_json: bool = Json,
) -> None:
    """Delete documents whose rows are gone from the source without a delivery that said so. Each is verified first."""
    from rich.progress import Progress

    from sophia.estuary.source.sweep import sweep as run_sweep

    context = begin()
    moment = datetime.now(UTC) if before is None else before.replace(tzinfo=UTC)
    with connected(context) as (_, connection), Progress(transient=True, disable=as_json) as bar:
        task = bar.add_task(f"verifying {collection}", total=None)

        def progress(swept: Swept, total: int) -> None:
            bar.update(task, completed=swept.looked_at, total=max(total, swept.looked_at))

        swept = run_sweep(
            connection,
            context.catalog,
            collection,
            context.settings,
            before=moment,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        show_json(
            {
                "collection": collection,
                "before": moment,
                "dry_run": dry_run,
                "looked_at": swept.looked_at,
                "deleted": swept.deleted,
                "refreshed": swept.refreshed,
                "left": swept.left,
                "unread": swept.unread,
            }
        )
        return
    verb = "would be " if dry_run else ""
    typer.echo(
        f"{swept.looked_at:,} documents verified against the source: {swept.deleted:,} {verb}deleted, "
        f"{swept.refreshed:,} {verb}taken anew, {swept.left:,} left, {swept.unread:,} unreadable"
    )
