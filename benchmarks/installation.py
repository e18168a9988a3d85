"""A whole Sophia of the benchmark's own: database, catalog, source table, and the real processes on one core.

The processes are `sophia capture` and `sophia indexer` as anyone runs them. PostgreSQL, with all that it forks, and
these two share the first core that this process may use; the benchmark, its pollers and the hash endpoint, which
stands for a model on another machine, use the last. Where a poller's own server process may be moved, `aside` moves
it to the last core, too: what watches must not load what is watched.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
import yaml

from benchmarks.harness import cpu_seconds
from benchmarks.hash_endpoint import Endpoint, serving
from sophia import sample
from sophia.catalog import Catalog, default_path, load
from sophia.database import Database, open_database
from sophia.indexing.versions import IndexVersion, serving_version
from sophia.local import sophia_command
from sophia.services.supervisor import Child
from sophia.settings import Settings, load_settings

Connection = psycopg.Connection[Any]
Kind = Literal["hash", "minilm"]
INDEX = "documents"
STOP_SECONDS = 30.0
# One transaction, some words that differ from row to row; short texts, so that one row is one chunk.
ROWS = """
INSERT INTO public.documents (id, name, module, kind, title, body)
SELECT n, 'bench ' || n, 'm' || n %% 100, 'k' || n %% 10, 'Bench ' || n,
       'Row ' || n || ' tells of ' || (ARRAY['herons', 'otters', 'newts', 'carp', 'mills'])[1 + n %% 5]
       || ' and ' || md5(n::text)
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""


def content(title: str, body: str) -> str:
    """What the index must hold of a row: the catalog's template, filled without Sophia's code."""
    return f"{title}\n\n{body}".strip()


@dataclass
class Installation:
    """What a benchmark works with.

    Attributes:
        endpoint: the hash endpoint, or None when the model is MiniLM.
        cores: the first is Sophia's and PostgreSQL's, the last the benchmark's.
    """

    settings: Settings
    catalog: Catalog
    database: Database
    endpoint: Endpoint | None
    cores: list[int]
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        """Start `capture` or `indexer`, or both, on the first core."""
        environment = {
            "SOPHIA_HOME": str(self.settings.home),
            "SOPHIA_CATALOG": str(self.settings.catalog),
            "OMP_NUM_THREADS": "1",
        }
        self.pin(first=True)
        for name in names:
            child = Child(name, sophia_command("-v", name), self.settings.home / f"{name}.log", environment)
            child.start()
            self.children[name] = child
        self.pin(first=False)

    def stop(self, *names: str) -> None:
        """Stop these processes, or all; what does not end is killed."""
        stopping = [self.children.pop(name) for name in names or list(self.children)]
        for child in stopping:
            child.signal(2)
        for child in stopping:
            if child.process is not None:
                try:
                    child.process.wait(STOP_SECONDS)
                finally:
                    child.signal(9)

    def pin(self, *, first: bool) -> None:
        """Run this process on the first or the last core from here on."""
        os.sched_setaffinity(0, {self.cores[0] if first else self.cores[-1]})

    def pid(self, name: str) -> int:
        """Process id of a started process."""
        process = self.children[name].process
        assert process is not None
        return process.pid

    def rss_mb(self, name: str) -> float:
        """Resident memory of a started process."""
        for line in Path(f"/proc/{self.pid(name)}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far of each started process, and of PostgreSQL with all its processes, the ended included.

        Beside wall times it tells what a change costs, whatever else the machine is doing.
        """
        spent = {name: cpu_seconds(self.pid(name)) for name in self.children}
        if self.database.embedded is not None:
            postmaster = self.database.embedded.pid()
            family = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
            spent["postgres"] = cpu_seconds(postmaster, ended=True) + sum(map(cpu_seconds, family))
        return spent

    def add_rows(self, connection: Connection, first: int, last: int) -> None:
        """Insert the rows `first` to `last`, in one transaction."""
        connection.execute(ROWS, {"first": first, "last": last})

    def version(self, connection: Connection) -> IndexVersion:
        """The index's version that serves."""
        return serving_version(connection, INDEX)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 1800, pause: float = 0.1) -> float:
        """Until the condition holds; the seconds that took.

        Raises:
            RuntimeError: a process ended, or time is over; the end of its log is in the message.
        """
        started = time.monotonic()
        while not condition():
            for name, child in self.children.items():
                if child.process is not None and child.process.poll() is not None:
                    raise RuntimeError(f"{name} ended while waiting for {what}:\n{child.tail(15)}")
            if time.monotonic() - started > seconds:
                tails = "\n".join(f"{name}: {child.tail()}" for name, child in self.children.items())
                raise RuntimeError(f"{what} did not come within {seconds:.0f} s\n{tails}")
            time.sleep(pause)
        return time.monotonic() - started

    def captured(self, connection: Connection) -> bool:
        """Whether every table's snapshot is in the inbox."""
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE complete), count(*) FROM sophia.captured_tables"
        ).fetchone()
        return row is not None and row[1] >= 3 and row[0] == row[1]

    def compared(self, connection: Connection) -> bool:
        """Whether every shard of every version was compared with all bulk documents."""
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE s.position < GREATEST(c.bulk_position, 0)) FROM sophia.shards s "
            "JOIN sophia.index_versions v ON v.id = s.version_id JOIN sophia.collections c ON c.id = v.collection_id"
        ).fetchone()
        return row is not None and row[0] > 0 and row[1] == 0

    def built(self, connection: Connection) -> bool:
        """Whether the nearest-neighbour index of the serving version is there and valid."""
        row = connection.execute(
            "SELECT bool_and(i.indisvalid) FROM pg_index i JOIN pg_class t ON t.oid = i.indexrelid "
            "JOIN pg_am a ON a.oid = t.relam WHERE a.amname = 'hnsw' AND i.indrelid = to_regclass(%s)",
            [f"indexes.{self.version(connection).store_name}"],
        ).fetchone()
        return bool(row and row[0])

    def wait_level(self, connection: Connection, seconds: float = 1800) -> float:
        """Until snapshot, first comparison and nearest-neighbour index are done; the seconds that took."""
        taken = self.wait(lambda: self.captured(connection), "the snapshot", seconds)
        taken += self.wait(lambda: self.compared(connection), "the first comparison", seconds)
        return taken + self.wait(lambda: self.built(connection), "the nearest-neighbour index", seconds)

    def aside(self, connection: Connection) -> bool:
        """Move a connection's server process to the last core; False where that is not allowed."""
        try:
            os.sched_setaffinity(connection.info.backend_pid, {self.cores[-1]})
        except (PermissionError, ProcessLookupError):
            return False
        return True


def stop_server(database: Database) -> None:
    """Stop the benchmark's own server at once: without its folder, its watcher would leave it running."""
    if database.embedded is not None:
        os.kill(database.embedded.pid(), signal.SIGQUIT)
        while (database.embedded.pgdata / "postmaster.pid").exists():
            time.sleep(0.05)
    database.release()


def cpu_per(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    """Milliseconds of processor time a change, by process."""
    return {name: (after[name] - before.get(name, 0.0)) * 1000 / max(1, count) for name in after}


def catalog_folder(folder: Path, url: str) -> Path:
    """A copy of the catalog whose model `minilm` is the endpoint of that URL."""
    shutil.copytree(default_path(), folder)
    path = folder / "models.yaml"
    document = yaml.safe_load(path.read_text())
    for model in document["models"]:
        if model["name"] == "minilm":
            del model["path"]
            model |= {"provider": "openai", "url": url, "model": "hash", "version": "hash"}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


@contextmanager
def installation(kind: Kind, rows: int, *, delay_ms: float = 0.0) -> Iterator[Installation]:
    """A fresh installation with `rows` rows in `public.documents`, nothing started yet; removed afterwards."""
    cores = sorted(os.sched_getaffinity(0))
    home = Path(tempfile.mkdtemp(prefix="sophia-bench-"))
    home.chmod(0o755)
    try:
        os.sched_setaffinity(0, {cores[-1]})
        with serving(delay_ms=delay_ms) if kind == "hash" else nullcontext(None) as endpoint:
            folder = catalog_folder(home / "catalog", endpoint.url) if endpoint is not None else default_path()
            settings = load_settings(home=home, catalog=folder)
            os.sched_setaffinity(0, {cores[0]})
            database = open_database(settings)
            made = Installation(settings, load(folder), database, endpoint, cores)
            made.pin(first=False)
            try:
                with database.connect() as connection:
                    sample.load(connection, limit=0)
                    if rows:
                        made.add_rows(connection, 1, rows)
                yield made
            finally:
                made.stop()
                stop_server(database)
    finally:
        os.sched_setaffinity(0, set(cores))
        shutil.rmtree(home, ignore_errors=True)
