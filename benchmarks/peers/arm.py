"""One system under measurement: its server, its worker processes, its embedder, and where its index can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from benchmarks.hash_endpoint import serving
from benchmarks.peers.installs import QUIET
from benchmarks.peers.workload import Difference, Source, compare, load
from sophia.database.connect import connect, ensure_database
from sophia.database.embedded import EmbeddedPostgres
from sophia.services.supervisor import Child

LOOK_SECONDS = 0.001
PATIENCE_SECONDS = 60.0
STOP_SECONDS = 20.0


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside runs on that core; this process goes back to its own."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


class Arm(ABC):
    """Base of all arms. `home` is a folder of the run, `core` where server and workers are pinned.

    A subclass says how its index is read: `TABLE` with the columns `KEY` and `CONTENT` and `embedding`.
    """

    name: ClassVar[str]
    database: ClassVar[str] = "peers"
    TABLE: ClassVar[str]
    KEY: ClassVar[str] = "id"
    CONTENT: ClassVar[str]
    # Seconds between two looks at the source: a change comes at a random moment of it.
    cycle: ClassVar[float] = 0.0
    # Whether the workers are stopped (SIGSTOP) while others are measured, because they work without being asked.
    restless: ClassVar[bool] = True

    def __init__(self, home: Path, core: int) -> None:
        self.home = home
        self.core = core
        self.restarts = 0
        home.mkdir(parents=True)
        self._resources = ExitStack()
        self._embedder = self._resources.enter_context(serving())
        self.embedder_url = self._embedder.url
        with on_core(core):
            self.server = EmbeddedPostgres(home / "postgres")
        ensure_database(self.server.url(), self.database)
        self.url = self.server.url(self.database)
        self.writer = connect(self.url, "client")
        self.reader = connect(self.url, "client")
        self.children: list[Child] = []

    @abstractmethod
    def prepare(self) -> None:
        """Set the system up on the filled source table.

        Raises:
            UnavailableError: it cannot run here.
        """

    @abstractmethod
    def workers(self) -> list[Child]:
        """Its processes, not started."""

    def loaded(self) -> None:
        """After the initial load: make what the system does not make itself."""
        self.writer.execute(
            f"CREATE INDEX ON {self.TABLE} USING hnsw (embedding vector_cosine_ops) "
            "WITH (m = 16, ef_construction = 128)"
        )

    def fill(self, bodies: Sequence[str]) -> Source:
        """Load the source table and set the system up."""
        load(self.writer, bodies)
        self.prepare()
        return Source(self.writer, len(bodies))

    def child(self, name: str, command: Sequence[str | Path], **environment: str) -> Child:
        """A worker process with telemetry off."""
        return Child(
            name,
            [str(part) for part in command],
            self.home / f"{name}.log",
            QUIET | {"OMP_NUM_THREADS": "1"} | environment,
        )

    def start(self) -> None:
        """Start the workers, pinned."""
        self.children = self.workers()
        with on_core(self.core):
            for child in self.children:
                child.start()

    def pause(self) -> None:
        """Let the others have the core."""
        if self.restless:
            for child in self.children:
                child.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        for child in self.children:
            child.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the workers, kindly first."""
        self.resume()
        for child in self.children:
            child.signal(signal.SIGINT)
        for child in self.children:
            assert child.process is not None
            try:
                child.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.signal(signal.SIGKILL)
                child.process.wait()
        self.children = []

    def kill(self) -> None:
        """Kill -9 every worker."""
        for child in self.children:
            child.signal(signal.SIGKILL)
        for child in self.children:
            assert child.process is not None
            child.process.wait()
        self.children = []

    def revive(self) -> None:
        """Start again the workers that have ended, as a supervisor would."""
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self.restarts += 1
                with on_core(self.core):
                    child.start()

    def counts(self) -> tuple[int, int]:
        """(requests, texts) that the embedder has served."""
        counts = self._embedder.counts()
        return int(counts["calls"]), int(counts["texts"])

    def content(self, number: int) -> str | None:
        """The indexed text of a source row, or None."""
        row = self.reader.execute(
            f"SELECT {self.CONTENT} FROM {self.TABLE} WHERE {self.KEY} = %s", [self.key(number)], prepare=True
        ).fetchone()
        return row[0] if row else None

    def contents(self, numbers: Sequence[int]) -> dict[int, str]:
        """Indexed texts by source id."""
        rows = self.reader.execute(
            f"SELECT {self.KEY}, {self.CONTENT} FROM {self.TABLE} WHERE {self.KEY} = ANY(%s)",
            [[self.key(number) for number in numbers]],
        )
        return {self.number(key): content for key, content in rows}

    def count(self) -> int:
        """Rows in the index; 0 as long as there is no table."""
        try:
            row = self.reader.execute(f"SELECT count(*) FROM {self.TABLE}").fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
        return int(row[0]) if row else 0

    def difference(self, source: Source) -> Difference:
        """The whole index compared with the whole source."""
        rows = self.reader.execute(f"SELECT {self.KEY}, {self.CONTENT}, embedding::real[] FROM {self.TABLE}")
        return compare(source.rows(), ((self.number(key), content, vector) for key, content, vector in rows))

    def key(self, number: int) -> Any:
        """How the index's table names a source id."""
        return number

    def number(self, key: Any) -> int:
        """The source id of a key."""
        return int(key)

    def release(self) -> None:
        """Stop everything."""
        self.stop()
        self._resources.close()
        self.writer.close()
        self.reader.close()
        # The folder is removed next, and with it what the server's watcher needs to stop it.
        os.kill(self.server.pid(), signal.SIGINT)
        lock = self.server.pgdata / "postmaster.pid"
        deadline = time.monotonic() + STOP_SECONDS
        while lock.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.server.release()

    def until(self, reached: Callable[[], bool], what: str, look: float = LOOK_SECONDS) -> None:
        """Wait; workers that end are started again.

        Raises:
            TimeoutError: not within `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        looks = 0
        while not reached():
            looks += 1
            if looks % 200 == 0:
                self.revive()
            if time.monotonic() > deadline:
                logs = " / ".join(filter(None, (child.tail(1) for child in self.children)))
                raise TimeoutError(f"{what}: not after {PATIENCE_SECONDS:.0f} s {logs[-200:]}".strip())
            time.sleep(look)
