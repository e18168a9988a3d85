"""The demo: everything for real, on this machine, in front of the reader's eyes.

Loads the sample tables, captures them, materialises the graph by Dagster, then inserts, updates and deletes rows and
measures, for each, the time from the commit until the public search returns it (or does not return it any more). The
capture and the indexer run as processes of their own, as they do in production.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sophia import sql
from sophia.capture import source as source_sql
from sophia.cli.context import Context
from sophia.database import Database, open_database
from sophia.embedding import Embedder, load_embedder
from sophia.errors import SophiaError, TemporaryError
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion
from sophia.local import dagster_environment, project_folder, sophia_command
from sophia.sample import docstrings, load
from sophia.services.supervisor import Child, Supervisor

Connection = psycopg.Connection[TupleRow]
Q = sql.load("demo")
INDEX = "documents"
# Ids that no docstring has: those are 63-bit hashes.
FIRST_ID = 1_000_001
SUBJECTS = (
    ("a lighthouse keeper who repairs violins", "lighthouse keeper repairing a violin"),
    ("sourdough bread that rises in a cold kitchen", "baking sourdough in the cold"),
    ("the migration of grey whales along the coast", "whales migrating"),
    ("a chess opening that gives up a knight early", "sacrificing a knight in chess"),
    ("how glaciers carve valleys over ten thousand years", "valleys formed by glaciers"),
)
REWRITTEN = (
    ("a submarine captain who collects stamps", "stamp collection of a submarine captain"),
    ("a bicycle workshop run by two sisters", "sisters who repair bicycles"),
    ("growing oranges in a desert greenhouse", "citrus fruit in the desert"),
    ("the rules of curling explained to a child", "explaining curling"),
    ("a telescope built from a drain pipe", "home-made telescope"),
)
LONGEST_WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """One measured change: milliseconds from its commit until search shows it."""

    what: str
    text: str
    query: str
    milliseconds: float


class Demo:
    """The steps of the demo, over one database."""

    def __init__(self, context: Context, database: Database, console: Console) -> None:
        self._context = context
        self._database = database
        self._console = console
        self._embedder: Embedder | None = None

    def load_sample(self, rows: int | None) -> dict[str, int]:
        """Fill the sample tables; returns rows added by table."""
        with self._database.connect("sophia-demo") as connection, self._progress() as progress:
            task = progress.add_task("reading docstrings", total=rows or sum(1 for _ in docstrings()))
            return load(connection, limit=rows, progress=lambda count: progress.update(task, completed=count))

    def wait_captured(self, alive: Callable[[], None]) -> int:
        """Until every table's snapshot is complete; returns documents in the inbox."""
        tables = sum(1 for c in self._context.catalog.collections if c.table and c.source.for_profile("local"))
        with self._database.connect("sophia-demo") as connection, self._progress() as progress:
            expected = _one(connection, "sample_rows")
            task = progress.add_task("capturing", total=expected)
            while True:
                alive()
                progress.update(task, completed=min(expected, _one(connection, "documents")))
                if _one(connection, "captured") >= tables:
                    progress.update(task, completed=expected)
                    return _one(connection, "documents")
                time.sleep(0.1)

    def materialise(self, environment: dict[str, str], alive: Callable[[], None]) -> dict[str, Any]:
        """Run the graph by Dagster in a process of its own; returns what the indexes' runs cost."""
        log = self._context.settings.home / "logs" / "materialise.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._database.connect("sophia-demo") as connection, self._progress() as progress:
            since = _one(connection, "last_batch")
            loader = threading.Thread(target=self.embedder, daemon=True)
            loader.start()
            # Two lines: on a second run all documents are there at once, and the runs still take their time.
            runs = progress.add_task("materialising the graph", total=None)
            documents = progress.add_task("indexing documents", total=None)
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "jobs.run_local"],
                    cwd=project_folder(),
                    env={**_environ(), **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            try:
                while process.poll() is None:
                    alive()
                    done, total = connection.execute(Q["indexed"]).fetchone() or (0, 0)
                    progress.update(documents, completed=done, total=total or None)
                    time.sleep(0.2)
            finally:
                if process.poll() is None:
                    process.terminate()
            loader.join()
            if process.returncode != 0:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise SophiaError(f"the graph did not materialise; its log is {log}:\n{tail}")
            progress.update(runs, completed=1, total=1)
            row = connection.execute(Q["bulk_figures"], {"since": since}).fetchone() or (0, 0, 0.0)
        return {"documents": row[0], "embedded": row[1], "tokens": row[2], "embed_s": float(row[3])}

    def embedder(self, version: IndexVersion | None = None) -> Embedder:
        """The model that queries are embedded with."""
        if self._embedder is None:
            catalog = self._context.catalog
            index = catalog.index(INDEX)
            self._embedder = load_embedder(catalog.model(index.model), index.precision, self._context.settings)
        return self._embedder

    def change_rows(self, count: int, alive: Callable[[], None]) -> list[Change]:
        """Insert, update and delete `count` rows each, one at a time, and time each by search."""
        changes: list[Change] = []
        with (
            self._database.connect("sophia-demo") as writer,
            self._database.connect("sophia-demo") as reader,
            self._progress() as progress,
        ):
            # What an interrupted demo may have left behind.
            writer.execute(Q["clean"], {"first": FIRST_ID, "last": FIRST_ID + 10_000})
            task = progress.add_task("changing rows", total=3 * count)
            for number in range(count):
                row = FIRST_ID + number
                text, query = _numbered(SUBJECTS, number)
                again, query_again = _numbered(REWRITTEN, number)
                steps = (
                    ("insert", "insert", text, query, text),
                    ("update", "update", again, query_again, again),
                    ("delete", "delete", again, query_again, None),
                )
                for what, statement, shown, asked, wanted in steps:
                    changes.append(
                        self._measure(
                            reader,
                            what,
                            shown,
                            asked,
                            f"[{row}]",
                            wanted,
                            partial(writer.execute, Q[statement], {"id": row, "body": shown}),
                        )
                    )
                    alive()
                    progress.advance(task)
        return changes

    def _measure(
        self,
        reader: Connection,
        what: str,
        text: str,
        query: str,
        key: str,
        wanted: str | None,
        commit: Callable[[], Any],
    ) -> Change:
        """Commit, then search until the content is there (`wanted`) or the key is gone (None)."""
        vector = self.embedder().embed_query(query)

        def query_once() -> str | None:
            fixed = _Fixed(self.embedder(), vector)
            hits = search(reader, INDEX, query, lambda _version: fixed, k=10)
            return next((hit.content for hit in hits if hit.key == key), None)

        query_once()
        commit()
        started = time.perf_counter()
        while True:
            found = query_once()
            elapsed = (time.perf_counter() - started) * 1000
            if (wanted is None and found is None) or (wanted is not None and found is not None and wanted in found):
                return Change(what, text, query, elapsed)
            if elapsed > LONGEST_WAIT_SECONDS * 1000:
                raise TemporaryError(f"the {what} of {key} was not searchable within {LONGEST_WAIT_SECONDS:g} s")
            time.sleep(0.001)

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        ) as progress:
            yield progress


class _Fixed:
    """The embedder with the query's vector computed already: the model's time for the query is not the pipeline's."""

    def __init__(self, embedder: Embedder, vector: Any) -> None:
        self._embedder = embedder
        self._vector = vector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def embed_query(self, _text: str) -> Any:
        return self._vector


def run(context: Context, *, rows: int | None, changes: int) -> None:
    """Run the demo from start to end and print what was measured."""
    console = Console()
    settings = context.settings
    began = time.monotonic()
    console.print("[bold]Sophia[/bold]: from a changed row to a searchable vector\n")
    with console.status("starting PostgreSQL"):
        database = open_database(settings)
    demo = Demo(context, database, console)
    added = demo.load_sample(rows)
    environment = dagster_environment(settings, database)
    with _processes(context, database, environment, console) as alive:
        documents = demo.wait_captured(alive)
        cost = demo.materialise(environment, alive)
        measured = demo.change_rows(changes, alive)
    database.release()
    _summary(console, added, documents, cost, measured, time.monotonic() - began)


@contextmanager
def _processes(
    context: Context, database: Database, environment: dict[str, str], console: Console
) -> Iterator[Callable[[], None]]:
    """Capture and indexer, unless they run already (`make up`). Yields a function that raises if one has died."""
    logs = context.settings.home / "logs"
    children = [Child("indexer", sophia_command("-v", "indexer", "--live-only"), logs / "indexer.log", environment)]
    with database.connect("sophia-demo") as connection:
        slot = source_sql.inspect_slot(connection, context.catalog.source("sample").slot)
    if slot is None or slot.active_pid is None:
        children.append(Child("capture", sophia_command("-v", "capture"), logs / "capture.log", environment))
    else:
        console.print("a capture is running already; using it")
    stop = threading.Event()
    failures: list[BaseException] = []

    def supervise() -> None:
        try:
            Supervisor(children, console.print).run(stop)
        except BaseException as error:
            failures.append(error)

    def alive() -> None:
        if failures:
            raise failures[0]

    thread = threading.Thread(target=supervise, daemon=True)
    thread.start()
    try:
        yield alive
    finally:
        stop.set()
        thread.join()


def _summary(
    console: Console,
    added: dict[str, int],
    documents: int,
    cost: dict[str, Any],
    measured: list[Change],
    seconds: float,
) -> None:
    table = Table(title="changes, each found by search", title_justify="left", title_style="bold", header_style="bold")
    for column, side in (("change", "left"), ("text", "left"), ("searched for", "left"), ("commit → search", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    for change in measured:
        table.add_row(change.what, change.text, change.query, f"{change.milliseconds:.1f} ms")
    console.print(table)
    totals = Table(title="summary", title_justify="left", title_style="bold", show_header=False)
    totals.add_column()
    totals.add_column(justify="right")
    totals.add_row("rows added to the sample tables", str(sum(added.values())))
    totals.add_row("documents captured", str(documents))
    totals.add_row("documents written by the graph's runs", str(cost["documents"]))
    totals.add_row("texts embedded by the graph's runs", str(cost["embedded"]))
    if cost["embed_s"]:
        totals.add_row("tokens per second", f"{cost['tokens'] / cost['embed_s']:.0f}")
    for what in ("insert", "update", "delete"):
        times = sorted(change.milliseconds for change in measured if change.what == what)
        if times:
            totals.add_row(f"{what}: median, slowest", f"{statistics.median(times):.1f} ms, {times[-1]:.1f} ms")
    totals.add_row("whole demo", f"{seconds:.0f} s")
    console.print(totals)
    if cost["embedded"] == 0:
        console.print("[green]Nothing was re-embedded: every vector was in step with its row already.[/green]")
    console.print("\nNext:")
    console.print('  .venv/bin/sophia search documents "read a file line by line" --hybrid')
    console.print("  .venv/bin/sophia verify documents")
    console.print("  make up            # Dagster UI, daemon, capture, indexer and console")


def _numbered(texts: tuple[tuple[str, str], ...], number: int) -> tuple[str, str]:
    """The text and query of a change; a repeated text gets its number, so that no two are equal."""
    text, query = texts[number % len(texts)]
    return (text, query) if number < len(texts) else (f"{text}, part {number}", f"{query}, part {number}")


def _one(connection: Connection, name: str) -> int:
    row = connection.execute(Q[name]).fetchone()
    return int(row[0] or 0) if row else 0


def _environ() -> dict[str, str]:
    import os

    return dict(os.environ)
