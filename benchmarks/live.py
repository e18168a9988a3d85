"""How live changes are made and timed: one at a time by search, or at a steady rate by the public view.

The clock starts when the source's commit has returned. One at a time: a change, then the public `search` until it
shows the new content (or no longer shows the row), then the next. At a rate: a writer commits every so many
milliseconds and waits for nothing, while a poller reads the keys that it still waits for, by key, through the public
view on a connection whose server process is moved to the other core; its queries cost the measured core nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.harness import Prepared, quantiles, show
from benchmarks.installation import INDEX, Installation, content
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion

Connection = psycopg.Connection[Any]
KINDS = ("insert", "update", "delete")
STAGES = ("wal_inbox", "queue", "embed", "store")
LOST_SECONDS = 60.0
STATEMENTS = {
    "insert": "INSERT INTO public.documents (id, name, module, kind, title, body) "
    "VALUES (%(id)s, 'bench', 'bench', 'bench', %(title)s, %(body)s)",
    "update": "UPDATE public.documents SET title = %(title)s, body = %(body)s WHERE id = %(id)s",
    "delete": "DELETE FROM public.documents WHERE id = %(id)s",
}
TITLE = "Bench"
# A batch is recorded in the transaction that wrote it, after its ledger rows.
STAGE_TIMES = """
SELECT d.key, EXTRACT(epoch FROM d.received_at - d.committed_at)::float8 * 1000,
       EXTRACT(epoch FROM b.applied_at - d.received_at)::float8 * 1000 - b.apply_ms,
       b.embed_ms::float8, (b.apply_ms - b.embed_ms)::float8
FROM sophia.documents d
JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = d.key AND l.clock = d.clock
CROSS JOIN LATERAL (SELECT * FROM sophia.batches b
                    WHERE b.version_id = %(version_id)s AND b.lane = 'live' AND b.applied_at >= l.updated_at
                    ORDER BY b.applied_at LIMIT 1) b
WHERE d.collection_id = %(collection_id)s AND d.key = ANY(%(keys)s)
"""


@dataclass(slots=True)
class Change:
    """One single-row transaction. `expected` is the content that the index must show, None for a delete."""

    kind: str
    id: int
    body: str
    committed: float = 0.0
    seen: float = 0.0
    stages: tuple[float, ...] = ()

    @property
    def expected(self) -> str | None:
        return None if self.kind == "delete" else content(TITLE, self.body)

    @property
    def milliseconds(self) -> float:
        """From commit to searchable."""
        return (self.seen - self.committed) * 1000

    def commit(self, writer: Connection) -> None:
        """Make it, on a connection in autocommit mode."""
        writer.execute(STATEMENTS[self.kind], {"id": self.id, "title": TITLE, "body": self.body}, prepare=True)
        self.committed = time.perf_counter()


def mixed(count: int, new: int, updated: int, deleted: int) -> Iterator[Change]:
    """Inserts, updates and deletes in turn; ids count up from `new`, `updated` and `deleted`: each row once."""
    for number in range(count):
        kind = KINDS[number % 3]
        row = {"insert": new, "update": updated, "delete": deleted}[kind] + number // 3
        yield Change(kind, row, f"measurement {new + number}: a heron waits by the river")


def lives(count: int, new: int) -> Iterator[Change]:
    """Rows that are inserted, updated and deleted one after the other."""
    for row in range(new, new + count):
        yield Change("insert", row, f"measurement {row}: a heron waits by the river")
        yield Change("update", row, f"measurement {row}: a kingfisher dives into the pond")
        yield Change("delete", row, f"measurement {row}: a kingfisher dives into the pond")


def at_rate(made: Installation, changes: Sequence[Change], rate: float) -> bool:
    """Commit the changes at so many a second and note when the view shows each.

    Returns whether the poller's server process could be moved off the measured core.
    """
    waiting: dict[str, Change] = {}
    lock = threading.Lock()
    done = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with made.database.connect("bench-writer") as writer:
                started = time.perf_counter()
                for number, change in enumerate(changes):
                    time.sleep(max(0.0, started + number / rate - time.perf_counter()))
                    change.commit(writer)
                    with lock:
                        waiting[f"[{change.id}]"] = change
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    with made.database.connect("bench-poller") as poller:
        aside = made.aside(poller)
        thread = threading.Thread(target=write)
        thread.start()
        deadline = time.monotonic() + len(changes) / rate + LOST_SECONDS
        while not done.is_set() or waiting:
            with lock:
                asked = dict(waiting)
            if asked:
                rows = dict(
                    poller.execute(
                        f"SELECT key, content FROM indexes.{INDEX} WHERE key = ANY(%s)", [list(asked)], prepare=True
                    ).fetchall()
                )
                now = time.perf_counter()
                for key, change in asked.items():
                    if rows.get(key) == change.expected:
                        change.seen = now
                        with lock:
                            del waiting[key]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(waiting)} changes never became searchable, such as {next(iter(waiting))}")
            time.sleep(0.0005)
        thread.join()
        note_stages(poller, made.version(poller), changes)
    if failures:
        raise failures[0]
    return aside


def one_at_a_time(
    made: Installation, changes: Sequence[Change], vector_of: Callable[[Change], Any], until: Callable[[], bool]
) -> list[Change]:
    """Make changes one after the other until `until` holds, each timed by the public search. Returns those made."""
    pause = random.Random(1)  # noqa: S311
    finished = []
    with made.database.connect("bench-writer") as writer, made.database.connect("bench-reader") as reader:
        made.aside(reader)
        version = made.version(reader)
        for change in changes:
            prepared = Prepared(vector_of(change))
            key = f"[{change.id}]"
            change.commit(writer)
            while True:
                hits = search(reader, INDEX, change.body, lambda _version, p=prepared: p, k=10)  # type: ignore[misc]
                found = next((hit.content for hit in hits if hit.key == key), None)
                change.seen = time.perf_counter()
                if found == change.expected:
                    break
                if change.milliseconds > LOST_SECONDS * 1000:
                    raise TimeoutError(f"the {change.kind} of {key} never became searchable")
            note_stages(reader, version, [change])
            finished.append(change)
            if until():
                break
            # So that no change meets the processes in the same phase of their loops as the one before.
            time.sleep(pause.uniform(0, 0.01))
    return finished


def note_stages(connection: Connection, version: IndexVersion, changes: Sequence[Change]) -> None:
    """Put Sophia's own records into changes that are still the newest of their rows."""
    rows = connection.execute(
        STAGE_TIMES,
        {
            "version_id": version.id,
            "collection_id": version.collection_id,
            "keys": [f"[{change.id}]" for change in changes],
        },
    ).fetchall()
    found = {key: tuple(values) for key, *values in rows}
    for change in changes:
        change.stages = found.get(f"[{change.id}]", ())


def summary(changes: Sequence[Change]) -> dict[str, Any]:
    """By kind of change: quantiles of milliseconds, and the medians of the stages."""
    figures = {}
    for kind in KINDS:
        of_kind = [change for change in changes if change.kind == kind]
        known = [change.stages for change in of_kind if change.stages]
        figures[kind] = quantiles([change.milliseconds for change in of_kind]) | {
            stage: quantiles([parts[place] for parts in known])["p50"] for place, stage in enumerate(STAGES)
        }
    return figures


def table(title: str, figures: dict[str, Any]) -> None:
    """Print a summary."""
    names = ("p50", "p95", "p99", *STAGES)
    show(
        title,
        ["change", "n", "p50", "p95", "p99", "WAL + inbox", "queue", "embed", "store"],
        [(kind, int(found["n"]), *(found[name] for name in names)) for kind, found in figures.items()],
    )
